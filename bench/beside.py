"""Beside the echo: the same calls on the daemon and on a bare grpcio aio server, in turn; each round gives one ratio.

Callers run on core 0, the server under load on core 1 while the other one idles. What else the machine does meets both.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import grpc

from bench import common
from bench.daemon import environment
from bench.echo import SERVICE
from bench.load import Call, Caller, Load, Stretch, Target, leasing, repeating
from poolmgr.v1 import lease_pb2, pool_pb2

CALLERS = (1, 16, 64)
CLIENT_CORE, SERVER_CORE = 0, 1


@dataclass(frozen=True, slots=True)
class Effort:
    """Rounds, and the seconds of a stretch of load in each."""

    rounds: int
    stretch: float


@dataclass(frozen=True, slots=True)
class Work:
    """The same work for both servers."""

    name: str
    daemon: Caller
    echo: Caller


@dataclass(frozen=True, slots=True)
class Samples:
    """The calls, or pairs of calls, of each round: ours and the echo's."""

    daemon: list[Stretch]
    echo: list[Stretch]

    @property
    def ratio(self) -> float:
        """The median over the rounds."""
        rounds = zip(self.daemon, self.echo, strict=True)
        return common.median([ours.per_second / bare.per_second for ours, bare in rounds])


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """This thread, and what is started from it, on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def echo_server(sizes: Mapping[str, int], *, tuned: bool = False) -> Iterator[Target]:
    command = [sys.executable, "-m", "bench.echo", *(["--tuned"] if tuned else [])]
    command += [f"{method}={size}" for method, size in sizes.items()]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment(), cwd=common.ROOT)
    try:
        assert process.stdout is not None
        yield Target("echo", process.pid, f"127.0.0.1:{int(process.stdout.readline())}")
    finally:
        process.kill()
        process.communicate()


@dataclass(frozen=True, slots=True)
class Sizes:
    """The calls as they are made of the daemon, with the sizes of their answers."""

    get: Call
    acquire: Call
    release: Call

    def works(self) -> list[Work]:
        return [Work("getpool", repeating(self.get), repeating(_bare(self.get))), self.leases()]

    def leases(self) -> Work:
        """A lease taken and given back, beside two calls of the same sizes."""
        ours = leasing(self.acquire, self.release.method)
        return Work("lease", ours, repeating(_bare(self.acquire), _bare(self.release)))

    def replies(self) -> dict[str, int]:
        return {_name(call): call.reply_bytes for call in (self.get, self.acquire, self.release)}


def _bare(call: Call) -> Call:
    return Call(f"/{SERVICE}/{_name(call)}", call.request, call.reply_bytes)


def _name(call: Call) -> str:
    return call.method.rpartition("/")[2]


def sizes_of(address: str, pool_id: str) -> Sizes:
    """Asks the daemon once for each."""
    with grpc.insecure_channel(address) as channel:

        def ask(method: str, request: bytes) -> tuple[Call, bytes]:
            call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
            reply = call(request)
            return Call(method, request, len(reply)), reply

        get, _ = ask("/poolmgr.v1.PoolService/GetPool", pool_pb2.GetPoolRequest(pool_id=pool_id).SerializeToString())
        wanted = lease_pb2.AcquireLeaseRequest(pool_id=pool_id, holder="bench").SerializeToString()
        acquire, granted = ask("/poolmgr.v1.LeaseService/AcquireLease", wanted)
        lease = lease_pb2.AcquireLeaseResponse.FromString(granted).lease
        back = lease_pb2.ReleaseLeaseRequest(lease_id=lease.lease_id, token=lease.token).SerializeToString()
        release, _ = ask("/poolmgr.v1.LeaseService/ReleaseLease", back)
        return Sizes(get, acquire, release)


async def compare(work: Work, callers: int, daemon: Target, echo: Target, effort: Effort) -> Samples:
    ours = await Load.on(daemon, work.daemon, callers)
    bare = await Load.on(echo, work.echo, callers)
    samples = Samples([], [])
    for number in range(effort.rounds):
        turns = [(ours, samples.daemon), (bare, samples.echo)]
        for load, taken in turns if number % 2 else reversed(turns):
            taken.append(await load.stretch(effort.stretch))
    await ours.close()
    await bare.close()
    return samples


async def compare_all(works: Sequence[Work], daemon: Target, echo: Target, effort: Effort) -> dict[str, Samples]:
    """By `<work>_<callers>`."""
    return {
        f"{work.name}_{callers}": await compare(work, callers, daemon, echo, effort)
        for work in works
        for callers in CALLERS
    }


def print_calls(samples: Mapping[str, Samples]) -> None:
    rows = []
    for name, taken in samples.items():
        each = [_figures(side) for side in (taken.daemon, taken.echo)]
        rows.append((name, *each, f"{taken.ratio:.2f}"))
    title = "per second (the server's part of its core, the callers' part of theirs); a lease is two calls"
    common.print_table(title, ("work_callers", "poolmgr", "echo", "ratio"), rows)


def _figures(side: Sequence[Stretch]) -> str:
    busy, client = (100 * common.median(part) for part in ([s.busy for s in side], [s.client_busy for s in side]))
    return f"{common.median([s.per_second for s in side]):.0f} ({busy:.0f} %, {client:.0f} %)"
