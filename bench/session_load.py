"""Load on one LeaseService.Session: a batch takes a lease of every pool, the next gives all back, four batches ahead.

The client does all that a client has to: it reads every result, checks that each acquire got a lease of the pool that
it asked for with a fencing number above all before, and gives exactly that lease back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import grpc

from bench.load import Meter, Stretch, Target, WrongAnswerError
from poolmgr.v1 import lease_pb2 as pb

METHOD = "/poolmgr.v1.LeaseService/Session"
BATCHES = 4  # in flight, as many as poolmgr.client sends ahead
HOLDER = "bench"
Stream = grpc.aio.StreamStreamCall[bytes, bytes]


@dataclass(frozen=True, slots=True)
class _Sent:
    """A batch without an answer: what its operations were. `leases` are those that it gives back."""

    leases: tuple[str, ...]


class Holder:
    """What one client of a session knows: the batches without an answer, and the last fencing number. No I/O."""

    def __init__(self, pool_ids: Sequence[str]) -> None:
        self.pairs = 0
        self._pool_ids = tuple(pool_ids)
        self._unanswered: dict[int, _Sent] = {}
        self._batches = 0
        self._requests = 0
        self._fence = 0
        self._wanted = pb.SessionRequest()
        for pool_id in pool_ids:
            self._wanted.operations.add().acquire.MergeFrom(pb.AcquireLeaseRequest(pool_id=pool_id, holder=HOLDER))

    def wanted(self) -> bytes:
        """A batch that takes one lease of every pool, each under a request id of its own, as poolmgr.client does."""
        for operation in self._wanted.operations:
            self._requests += 1
            operation.acquire.request_id = f"{self._requests:032x}"
        return self._send(self._wanted, ())

    def answered(self, data: bytes) -> bytes | None:
        """The batch that gives back what the answered one took; None when it gave back. Raises WrongAnswerError."""
        response = pb.SessionResponse.FromString(data)
        sent = self._unanswered.pop(response.batch_id, None)
        if sent is None:
            raise WrongAnswerError(f"an answer to batch {response.batch_id}, which was answered or never sent")
        if not response.done or len(response.results) != len(self._pool_ids):
            raise WrongAnswerError(f"{len(response.results)} results of {len(self._pool_ids)}, done {response.done}")
        if sent.leases:
            self._released(response, sent.leases)
            return None
        return self._granted(response)

    def _granted(self, response: pb.SessionResponse) -> bytes:
        request, leases, fence = pb.SessionRequest(), [], self._fence
        add = request.operations.add
        for index, (result, pool_id) in enumerate(zip(response.results, self._pool_ids, strict=True)):
            lease = result.acquire.lease
            if result.index != index or lease.pool_id != pool_id or lease.fencing_token <= fence or not lease.token:
                raise WrongAnswerError(f"after fencing number {fence}, for {pool_id}: {result}")
            fence = lease.fencing_token
            release = add().release
            release.lease_id, release.token = lease.lease_id, lease.token
            leases.append(lease.lease_id)
        self._fence = fence
        return self._send(request, tuple(leases))

    def _released(self, response: pb.SessionResponse, leases: Sequence[str]) -> None:
        for index, (result, lease_id) in enumerate(zip(response.results, leases, strict=True)):
            if result.index != index or result.release.outcome != pb.Lease.RELEASED:
                raise WrongAnswerError(f"{lease_id} was not released: {result}")
        self.pairs += len(leases)

    def _send(self, request: pb.SessionRequest, leases: tuple[str, ...]) -> bytes:
        self._batches += 1
        request.batch_id = self._batches
        self._unanswered[self._batches] = _Sent(leases)
        return request.SerializeToString()


class SessionLoad:
    """One stream, kept between stretches; between two of them it holds no lease."""

    def __init__(self, target: Target, channel: grpc.aio.Channel, stream: Stream, holder: Holder) -> None:
        self._target = target
        self._channel = channel
        self._stream = stream
        self._holder = holder

    @classmethod
    async def on(cls, target: Target, pool_ids: Sequence[str]) -> SessionLoad:
        channel = grpc.aio.insecure_channel(target.address)
        method: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(METHOD)
        load = cls(target, channel, method(), Holder(pool_ids))
        try:
            await load.stretch(0.0)
        except BaseException:
            await channel.close()
            raise
        return load

    @property
    def pairs(self) -> int:
        """So far."""
        return self._holder.pairs

    async def stretch(self, seconds: float) -> Stretch:
        """Pairs of acquire and release; it ends when every lease is given back. Raises WrongAnswerError."""
        meter, before = Meter(self._target), self.pairs
        try:
            await self._run_until(time.monotonic() + seconds)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            raise WrongAnswerError("the daemon ended the session") from error
        return meter.stretch(self.pairs - before)

    async def _run_until(self, deadline: float) -> None:
        holder, stream = self._holder, self._stream
        for _ in range(BATCHES):
            await stream.write(holder.wanted())
        in_flight = BATCHES
        while in_flight:
            answer = await stream.read()
            if not isinstance(answer, bytes):
                raise WrongAnswerError("the daemon ended the session")
            following = holder.answered(answer)
            if following is None and time.monotonic() < deadline:
                following = holder.wanted()
            if following is None:
                in_flight -= 1
            else:
                await stream.write(following)

    async def close(self) -> None:
        await self._stream.done_writing()
        await self._channel.close()
