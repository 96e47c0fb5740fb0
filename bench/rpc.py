"""GetPool, and acquire + release, beside an echo of the same sizes on a bare grpcio aio server; then 32 pools at rest.

Callers run on core 0, the server under load on core 1 while the other one idles. Rounds go round the servers, and each
round gives one ratio: what else the machine does meets both.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from bench import common, idle
from bench.daemon import environment, ready_pools, running_daemon
from bench.echo import SERVICE
from bench.load import Call, Caller, Load, Stretch, Target, leasing, repeating
from poolmgr.client import Client
from poolmgr.v1 import lease_pb2, pool_pb2

CALLERS = (1, 16, 64)
CLIENT_CORE, SERVER_CORE = 0, 1
POOL = "bench"
SLOTS = 128
BARS = (
    *(common.at_least(f"getpool_vs_echo_{callers}", 0.8) for callers in CALLERS),
    *(common.at_least(f"lease_vs_echo_{callers}", 0.6) for callers in CALLERS),
    common.at_most("daemon_rss_mb", 100.0),
    common.at_most("shim_rss_mb", 12.0),
    common.at_most("idle_cpu_percent", 2.0),
)


@dataclass(frozen=True, slots=True)
class Effort:
    """Rounds per number of callers, seconds of a stretch of load, seconds at rest."""

    rounds: int
    stretch: float
    rest: float


FULL = Effort(rounds=11, stretch=1.0, rest=60.0)
QUICK = Effort(rounds=5, stretch=0.3, rest=10.0)


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
def echo_server(sizes: Mapping[str, int]) -> Iterator[Target]:
    command = [sys.executable, "-m", "bench.echo", *(f"{method}={size}" for method, size in sizes.items())]
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
        def bare(call: Call) -> Call:
            return Call(f"/{SERVICE}/{_name(call)}", call.request, call.reply_bytes)

        return [
            Work("getpool", repeating(self.get), repeating(bare(self.get))),
            Work(
                "lease", leasing(self.acquire, self.release.method), repeating(bare(self.acquire), bare(self.release))
            ),
        ]

    def replies(self) -> dict[str, int]:
        return {_name(call): call.reply_bytes for call in (self.get, self.acquire, self.release)}


def _name(call: Call) -> str:
    return call.method.rpartition("/")[2]


def sizes_of(address: str) -> Sizes:
    """Asks the daemon once for each."""
    with grpc.insecure_channel(address) as channel:

        def ask(method: str, request: bytes) -> tuple[Call, bytes]:
            call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
            reply = call(request)
            return Call(method, request, len(reply)), reply

        get, _ = ask("/poolmgr.v1.PoolService/GetPool", pool_pb2.GetPoolRequest(pool_id=POOL).SerializeToString())
        wanted = lease_pb2.AcquireLeaseRequest(pool_id=POOL, holder="bench").SerializeToString()
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


async def compare_all(works: list[Work], daemon: Target, echo: Target, effort: Effort) -> dict[str, Samples]:
    """By `<work>_<callers>`."""
    return {
        f"{work.name}_{callers}": await compare(work, callers, daemon, echo, effort)
        for work in works
        for callers in CALLERS
    }


def measure_calls(directory: Path, effort: Effort) -> dict[str, Samples]:
    directory.mkdir()
    engine = pool_pb2.PoolSpec(engine=pool_pb2.ENGINE_COMMAND, command="sleep", args=["infinity"], slots=SLOTS)
    with on_core(SERVER_CORE), running_daemon(directory, {}) as daemon:
        with Client(daemon.address) as client:
            ready_pools(client, engine, POOL)
        sizes = sizes_of(daemon.address)
        with echo_server(sizes.replies()) as echo, on_core(CLIENT_CORE):
            target = Target("poolmgr", daemon.pid, daemon.address)
            return asyncio.run(compare_all(sizes.works(), target, echo, effort))


def print_calls(samples: Mapping[str, Samples]) -> None:
    rows = []
    for name, taken in samples.items():
        figures = [common.median([s.per_second for s in side]) for side in (taken.daemon, taken.echo)]
        busy = [100 * common.median([s.busy for s in side]) for side in (taken.daemon, taken.echo)]
        each = [f"{figure:.0f} ({part:.0f} %)" for figure, part in zip(figures, busy, strict=True)]
        rows.append((name, *each, f"{taken.ratio:.2f}"))
    title = "per second (server's part of its core); a lease is two calls"
    common.print_table(title, ("work_callers", "poolmgr", "echo", "ratio"), rows)


def print_idle(rest: idle.Idle) -> None:
    rows = [
        ("daemon", f"{rest.daemon_rss:.1f}", f"{rest.daemon_private:.1f}", f"{rest.daemon_cpu:.2f}"),
        ("largest shim", f"{rest.shim_rss:.1f}", f"{rest.shim_private:.1f}", ""),
        ("median shim", f"{rest.shim_rss_median:.1f}", "", ""),
        ("all shims", "", "", f"{rest.shims_cpu:.2f}"),
    ]
    common.print_table(f"{idle.POOLS} READY pools at rest", ("", "RSS MB", "private MB", "% of a core"), rows)


def run(directory: Path, effort: Effort) -> common.Report:
    samples = measure_calls(directory / "calls", effort)
    print_calls(samples)
    (directory / "idle").mkdir()
    rest = idle.measure(directory / "idle", effort.rest)
    print_idle(rest)
    report = common.Report("rpc", BARS)
    for name, taken in samples.items():
        work, _, callers = name.rpartition("_")
        report.ratios[f"{work}_vs_echo_{callers}"] = taken.ratio
        report.figures[f"{work}_per_second_{callers}"] = common.median([s.per_second for s in taken.daemon])
        report.figures[f"{work}_echo_per_second_{callers}"] = common.median([s.per_second for s in taken.echo])
    report.figures |= {
        "daemon_rss_mb": rest.daemon_rss,
        "daemon_private_mb": rest.daemon_private,
        "shim_rss_mb": rest.shim_rss,
        "shim_private_mb": rest.shim_private,
        "idle_cpu_percent": rest.daemon_cpu,
    }
    return report


def main() -> None:
    options = common.arguments(__doc__ or "")
    if os.cpu_count() == 1:
        raise SystemExit("callers and server need a core each; there is one")
    with common.state_directory(options.directory, "rpc") as directory:
        run(directory, QUICK if options.quick else FULL).print(options.json)


if __name__ == "__main__":
    main()
