"""Leases and the daemon that must not lose them: adoption, a session beside the echo, unary leases, 1,000 watchers.

The daemon is the one that ships, with its store on a disk.
"""

from __future__ import annotations

import asyncio
import os
import resource
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench import adoption, beside, commits, common, watchers
from bench.adoption import Adoption
from bench.beside import CALLERS, CLIENT_CORE, SERVER_CORE, Samples
from bench.commits import Commits, Counted
from bench.daemon import ready_pools, running_daemon
from bench.load import Load, Stretch, Target
from bench.session_load import BATCHES, SessionLoad
from bench.tracing import traced
from poolmgr.client import Client
from poolmgr.v1 import pool_pb2

POOL_IDS = tuple(f"bench-{number:02d}" for number in range(64))  # as many as operations in a batch
CALLED_POOLS = 8  # for unary leases and watchers: what it costs to watch over pools is bench.rpc's to tell
SLOTS = 128
ECHO_CALLERS = (16, 64)  # of the session's peer: the better of the two counts
TRACED_SECONDS = 1.0
BARS = (
    common.at_most("adopt_32_ms_p99", 2000.0),
    common.at_least("session_vs_echo", 5.0),
    *(common.at_least(f"lease_vs_echo_{callers}", 0.6) for callers in CALLERS),
    common.at_most("watch_1000x5_cpu_percent", 30.0),
)


@dataclass(frozen=True, slots=True)
class Effort:
    """Starts of a daemon, the session's and the unary load's, seconds of watching, commits of each kind."""

    starts: int
    session: beside.Effort
    unary: beside.Effort
    watch: float
    commits: int


FULL = Effort(60, beside.Effort(21, 1.0), beside.Effort(11, 1.0), 30.0, 5000)
QUICK = Effort(12, beside.Effort(5, 0.4), beside.Effort(5, 0.3), 5.0, 1000)


@dataclass(frozen=True, slots=True)
class SessionRounds:
    """Pairs of acquire and release of each round: on a session, and on the echo by its callers."""

    session: list[Stretch] = field(default_factory=list)
    echo: dict[int, list[Stretch]] = field(default_factory=lambda: {callers: [] for callers in ECHO_CALLERS})

    @property
    def ratio(self) -> float:
        """The median over the rounds of the session's pairs by those of the better echo."""
        rounds = zip(self.session, *self.echo.values(), strict=True)
        return common.median([ours.per_second / max(bare.per_second for bare in echo) for ours, *echo in rounds])


@dataclass(frozen=True, slots=True)
class Calls:
    """Unary leases by number of callers, beside either echo; the watchers each on a connection of its own, and all on
    one."""

    unary: Mapping[str, Samples]
    tuned: Mapping[str, Samples]
    watching: Stretch
    watching_shared: Stretch


@dataclass(frozen=True, slots=True)
class Servers:
    """The daemon and the echo on their core, and the calls as the daemon answers them."""

    daemon: Target
    echo: Target
    tuned: Target  # an echo on the daemon's own loop, with its switches
    sizes: beside.Sizes


@contextmanager
def servers(directory: Path, pool_ids: Sequence[str]) -> Iterator[Servers]:
    """Within, this process is on the clients' core."""
    directory.mkdir()
    engine = pool_pb2.PoolSpec(engine=pool_pb2.ENGINE_COMMAND, command="sleep", args=["infinity"], slots=SLOTS)
    with beside.on_core(SERVER_CORE), running_daemon(directory, {}) as daemon:
        with Client(daemon.address) as client:
            ready_pools(client, engine, *pool_ids)
        sizes = beside.sizes_of(daemon.address, pool_ids[0])
        replies = sizes.replies()
        with (
            beside.echo_server(replies) as echo,
            beside.echo_server(replies, tuned=True) as tuned,
            beside.on_core(CLIENT_CORE),
        ):
            yield Servers(Target("poolmgr", daemon.pid, daemon.address), echo, tuned, sizes)


async def session_rounds(on: Servers, effort: beside.Effort) -> SessionRounds:
    """Each round in another order."""
    rounds = SessionRounds()
    async with AsyncExitStack() as stack:
        session = await SessionLoad.on(on.daemon, POOL_IDS)
        stack.push_async_callback(session.close)
        turns: list[tuple[Load | SessionLoad, list[Stretch]]] = [(session, rounds.session)]
        for callers, taken in rounds.echo.items():
            bare = await Load.on(on.echo, on.sizes.leases().echo, callers)
            stack.push_async_callback(bare.close)
            turns.append((bare, taken))
        for number in range(effort.rounds):
            first = number % len(turns)
            for load, taken in turns[first:] + turns[:first]:
                taken.append(await load.stretch(effort.stretch))
    return rounds


async def traced_session(daemon: Target, log: Path) -> int | None:
    """The pairs that strace has seen; None where nothing can be traced."""
    session = await SessionLoad.on(daemon, POOL_IDS)
    with traced([daemon.pid], commits.TRACED, log, "-y") as attached:
        before = session.pairs
        if attached:
            await session.stretch(TRACED_SECONDS)
    await session.close()
    return session.pairs - before if attached else None


def measure_session(
    directory: Path, effort: beside.Effort, loop: asyncio.Runner
) -> tuple[SessionRounds, Counted | None]:
    log = directory / "strace"
    with servers(directory, POOL_IDS) as on:
        rounds = loop.run(session_rounds(on, effort))
        pairs = loop.run(traced_session(on.daemon, log))
    return rounds, None if pairs is None else commits.count(log.read_text().splitlines(), pairs, len(POOL_IDS))


def measure_calls(directory: Path, effort: Effort, loop: asyncio.Runner) -> Calls:
    pool_ids = POOL_IDS[:CALLED_POOLS]
    with servers(directory, pool_ids) as on:
        return Calls(
            loop.run(beside.compare_all([on.sizes.leases()], on.daemon, on.echo, effort.unary)),
            loop.run(beside.compare_all([on.sizes.leases()], on.daemon, on.tuned, effort.unary)),
            loop.run(watchers.measure(on.daemon, pool_ids, effort.watch, shared=False)),
            loop.run(watchers.measure(on.daemon, pool_ids, effort.watch, shared=True)),
        )


def report(starts: Sequence[Adoption], session: SessionRounds, written: Commits, calls: Calls) -> common.Report:
    result = common.Report("leases", BARS)
    answered, ready = ([1000 * each for each in taken] for taken in zip(*map(_times, starts), strict=True))
    result.figures |= {
        "adopt_32_ms_p50": common.percentile(answered, 50),
        "adopt_32_ms_p99": common.percentile(answered, 99),
        "adopt_32_ready_ms_p99": common.percentile(ready, 99),
        "session_pairs_per_s": common.median([each.per_second for each in session.session]),
        "commit_ms_p50": written.batch_p50,
        "full_commit_ms_p50": written.full_p50,
        "watch_1000x5_cpu_percent": 100 * calls.watching.busy,
        "watch_1000x5_shared_cpu_percent": 100 * calls.watching_shared.busy,
    }
    for callers, taken in session.echo.items():
        result.figures[f"echo_pairs_per_s_{callers}"] = common.median([each.per_second for each in taken])
    result.ratios["session_vs_echo"] = session.ratio
    for name, samples in calls.unary.items():
        _, _, callers_text = name.rpartition("_")
        result.ratios[f"lease_vs_echo_{callers_text}"] = samples.ratio
        result.figures[f"lease_pairs_per_s_{callers_text}"] = common.median([s.per_second for s in samples.daemon])
        result.ratios[f"lease_vs_tuned_echo_{callers_text}"] = calls.tuned[name].ratio
    return result


def _times(start: Adoption) -> tuple[float, float]:
    return start.answered, start.ready


def print_adoption(starts: Sequence[Adoption]) -> None:
    rows = []
    for name, taken in zip(
        ("first answered call", "every pool READY"), zip(*map(_times, starts), strict=True), strict=True
    ):
        each = [common.percentile(taken, percent) for percent in (50, 99)]
        rows.append((name, *(f"{1000 * seconds:.0f}" for seconds in (min(taken), *each, max(taken)))))
    title = (
        f"ms from exec; {len(starts)} starts after a SIGKILL, each with the same {adoption.ENGINES} engines and leases"
    )
    common.print_table(title, ("to", "min", "p50", "p99", "max"), rows)


def print_session(rounds: SessionRounds) -> None:
    rows = []
    loads = [("one session", rounds.session), *((f"echo, {n} callers", taken) for n, taken in rounds.echo.items())]
    for name, taken in loads:
        pairs = [each.per_second for each in taken]
        busy = [100 * common.median(part) for part in ([s.busy for s in taken], [s.client_busy for s in taken])]
        rows.append((name, f"{common.median(pairs):.0f}", f"{min(pairs):.0f}", *(f"{part:.0f} %" for part in busy)))
    size = len(POOL_IDS)
    title = f"acquire + release; {BATCHES} batches of {size} in flight over {size} pools; an echo pair is two calls"
    common.print_table(title, ("load", "pairs/s", "least", "server's core", "client's core"), rows)


def print_commits(written: Commits, counted: Counted | None) -> None:
    common.console.print(
        f"recording a batch of {len(POOL_IDS)}: p50 {written.batch_p50:.3f} ms, p99"
        f" {common.percentile(written.batch, 99):.3f}; a commit with full sync: p50 {written.full_p50:.3f} ms, p99"
        f" {common.percentile(written.full, 99):.3f} (the shipped store, in the bench's process)"
    )
    if counted is None:
        common.console.print("writes of the daemon: not measured (strace is missing or may not trace)")
    else:
        common.console.print(
            f"the daemon under load: {counted.writes_per_batch:.2f} writes to the lease log per batch,"
            f" {counted.syncs_per_1000_grants:.1f} fsyncs per 1,000 grants"
        )


def print_watching(calls: Calls) -> None:
    for name, taken in (("on a connection each", calls.watching), ("on one connection", calls.watching_shared)):
        common.console.print(
            f"{watchers.WATCHERS} watchers {name}, {taken.per_second / watchers.WATCHERS:.2f} changes a second to each:"
            f" daemon {100 * taken.busy:.1f} % of a core, watchers {100 * taken.client_busy:.0f} %"
        )


def run(directory: Path, effort: Effort) -> common.Report:
    starts = adoption.measure(directory / "adoption", effort.starts)
    print_adoption(starts)
    with asyncio.Runner() as loop:  # one for all: gRPC does not go from one loop to another
        session, counted = measure_session(directory / "session", effort.session, loop)
        print_session(session)
        written = loop.run(commits.measure(directory / "commits", POOL_IDS, effort.commits))
        print_commits(written, counted)
        calls = measure_calls(directory / "calls", effort, loop)
    beside.print_calls(calls.unary)
    print_watching(calls)
    return report(starts, session, written, calls)


def allow_connections() -> None:
    """As many files as a service may open; a shell's soft limit is often 1,024, and each watcher is a connection."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> None:
    options = common.arguments(__doc__ or "")
    if os.cpu_count() == 1:
        raise SystemExit("client and server need a core each; there is one")
    allow_connections()
    with common.state_directory(options.directory, "leases") as directory:
        run(directory, QUICK if options.quick else FULL).print(options.json)


if __name__ == "__main__":
    main()
