"""Unary load: callers that each have a connection of their own and ask again as soon as they are answered.

Requests and answers are bytes, so that a caller costs less than the call it makes: with 16 callers or more it is the
server's core that is full, and the report shows that it was.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import grpc

from bench.common import cpu_seconds
from poolmgr.v1 import lease_pb2

CALL_SECONDS = 10.0
Ask = grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]  # without a serializer: bytes
Caller = Callable[[grpc.aio.Channel], Callable[[], Awaitable[None]]]


class WrongAnswerError(Exception):
    """The daemon did not do what its contract says; what was measured is worth nothing."""


@dataclass(frozen=True, slots=True)
class Call:
    """A method and what to send; the answer has `reply_bytes`, give or take a number's own width."""

    method: str
    request: bytes
    reply_bytes: int

    def on(self, channel: grpc.aio.Channel) -> Callable[[], Awaitable[bytes]]:
        ask: Ask = channel.unary_unary(self.method)
        return lambda: ask(self.request, timeout=CALL_SECONDS)


def repeating(*calls: Call) -> Caller:
    """Makes the calls one after the other."""

    def caller(channel: grpc.aio.Channel) -> Callable[[], Awaitable[None]]:
        ready = [(call.on(channel), call.reply_bytes) for call in calls]

        async def once() -> None:
            for ask, size in ready:
                reply = await ask()
                if len(reply) != size:
                    raise RuntimeError(f"{len(reply)} bytes where {size} were expected")

        return once

    return caller


def leasing(acquire: Call, release_method: str) -> Caller:
    """Takes a lease and gives it back."""

    def caller(channel: grpc.aio.Channel) -> Callable[[], Awaitable[None]]:
        ask = acquire.on(channel)
        release: Ask = channel.unary_unary(release_method)
        released = lease_pb2.ReleaseLeaseResponse(outcome=lease_pb2.Lease.RELEASED).SerializeToString()

        async def once() -> None:
            lease = lease_pb2.AcquireLeaseResponse.FromString(await ask()).lease
            request = lease_pb2.ReleaseLeaseRequest(lease_id=lease.lease_id, token=lease.token)
            if await release(request.SerializeToString(), timeout=CALL_SECONDS) != released:
                raise RuntimeError(f"lease {lease.lease_id!r} was not released")

        return once

    return caller


@dataclass(frozen=True, slots=True)
class Target:
    """A server under load."""

    name: str
    pid: int
    address: str


@dataclass(frozen=True, slots=True)
class Stretch:
    """One stretch of load: what came of it, and how much of their cores server and client used (1: all)."""

    per_second: float
    busy: float
    client_busy: float = float("nan")


class Meter:
    """Counts from its making to `stretch`."""

    def __init__(self, target: Target) -> None:
        self._pid = target.pid
        self._before = self._read()

    def _read(self) -> tuple[float, float, float]:
        return time.monotonic(), cpu_seconds(self._pid), time.process_time()

    def stretch(self, count: int) -> Stretch:
        took, server, client = (now - before for now, before in zip(self._read(), self._before, strict=True))
        return Stretch(count / took, server / took, client / took)


async def _connect(target: Target, callers: int) -> list[grpc.aio.Channel]:
    # Without a pool of its own, channels to one address share one connection.
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(target.address, options) for _ in range(callers)]
    for channel in channels:
        await channel.channel_ready()
    return channels


class Load:
    """`callers` connections to one server, kept between stretches."""

    def __init__(self, target: Target, caller: Caller, channels: Sequence[grpc.aio.Channel]) -> None:
        self._target = target
        self._channels = channels
        self._callers = [caller(channel) for channel in channels]

    @classmethod
    async def on(cls, target: Target, caller: Caller, callers: int) -> Load:
        load = cls(target, caller, await _connect(target, callers))
        await asyncio.gather(*(once() for once in load._callers))
        return load

    async def stretch(self, seconds: float) -> Stretch:
        meter, deadline = Meter(self._target), time.monotonic() + seconds
        return meter.stretch(sum(await asyncio.gather(*(_ask_until(deadline, once) for once in self._callers))))

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()


async def _ask_until(deadline: float, once: Callable[[], Awaitable[None]]) -> int:
    count = 0
    while time.monotonic() < deadline:
        await once()
        count += 1
    return count
