"""SIGKILL of an engine to the first line of the next one, beside supervisord, circus and a C loop.

Every party keeps the same child alive. Kills go round the parties, so that whatever else the machine does happens to
all of them; who goes first alternates.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench import common, supervisors
from bench.daemon import Daemon
from bench.supervisors import Arrivals, Child, Party
from bench.syncs import count_syncs

BARS = (common.at_most("respawn_vs_c_loop", 4.0), common.at_least("supervisord_vs_respawn", 100.0))
SETTLE_SECONDS = 0.3  # between two rounds: every party serves again and has made durable what it does later
TRACED_KILLS = 10


@dataclass(frozen=True, slots=True)
class Rounds:
    """How often each party is killed: the two slow ones in every n-th round only, for they take seconds."""

    count: int
    supervisord_every: int
    circus_every: int


FULL = Rounds(count=120, supervisord_every=1, circus_every=4)
QUICK = Rounds(count=30, supervisord_every=3, circus_every=8)


@dataclass(frozen=True, slots=True)
class Parties:
    poolmgr: Party
    c_loop: Party
    supervisord: Party
    circus: Party

    def due(self, number: int, rounds: Rounds) -> list[Party]:
        """Who is killed in this round, in this order."""
        fast = [self.poolmgr, self.c_loop] if number % 2 else [self.c_loop, self.poolmgr]
        slow = [(self.supervisord, rounds.supervisord_every), (self.circus, rounds.circus_every)]
        return fast + [party for party, every in slow if number % every == 0]


def measure(parties: Parties, rounds: Rounds) -> dict[str, list[float]]:
    """Milliseconds of every respawn by party."""
    taken: dict[str, list[float]] = {}
    for number in range(rounds.count):
        for party in parties.due(number, rounds):
            taken.setdefault(party.name, []).append(party.respawn())
        time.sleep(SETTLE_SECONDS)
    return taken


def decisions(daemon: Daemon, kills: int) -> dict[str, float]:
    """What the daemon decided per respawn: transitions of the pool, and everything that it told its log."""
    events = [line["event"] for line in daemon.log()]
    since = events[events.index("engine_crashed") :] if "engine_crashed" in events else []
    return {
        "transitions_per_respawn": since.count("pool_transition") / kills,
        "events_per_respawn": len(since) / kills,
    }


def report(taken: dict[str, list[float]]) -> common.Report:
    result = common.Report("respawn", BARS)
    p50 = {party: common.percentile(values, 50) for party, values in taken.items()}
    result.figures["respawn_ms_p50"] = p50["poolmgr"]
    result.figures["respawn_ms_p99"] = common.percentile(taken["poolmgr"], 99)
    for peer in ("c_loop", "supervisord", "circus"):
        result.figures[f"{peer}_ms_p50"] = p50[peer]
        result.figures[f"{peer}_ms_p99"] = common.percentile(taken[peer], 99)
    result.ratios["respawn_vs_c_loop"] = p50["poolmgr"] / p50["c_loop"]
    result.ratios["supervisord_vs_respawn"] = p50["supervisord"] / p50["poolmgr"]
    result.ratios["circus_vs_respawn"] = p50["circus"] / p50["poolmgr"]
    return result


def rows(taken: dict[str, list[float]]) -> Sequence[Sequence[str]]:
    limit = common.percentile(taken["c_loop"], 50)
    return [
        (
            party,
            str(len(values)),
            f"{min(values):.2f}",
            f"{common.percentile(values, 50):.2f}",
            f"{common.percentile(values, 99):.2f}",
            f"{common.percentile(values, 50) / limit:.2f}",
        )
        for party, values in taken.items()
    ]


def run(directory: Path, rounds: Rounds) -> common.Report:
    with ExitStack() as stack:
        # A socket's path is short; the checkout's need not be.
        sockets = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        arrivals = Arrivals(sockets / "arrivals")
        stack.callback(arrivals.close)
        child = Child(common.compile_c("child", directory), arrivals)
        poolmgr, daemon = stack.enter_context(supervisors.poolmgr(child, directory / "poolmgr"))
        parties = Parties(
            poolmgr,
            stack.enter_context(supervisors.c_loop(child, common.compile_c("spawn_loop", directory))),
            stack.enter_context(supervisors.supervisord(child, directory / "supervisord")),
            stack.enter_context(supervisors.circus(child, directory / "circus")),
        )
        time.sleep(1.0)  # what a supervisor still does after its first child
        taken = measure(parties, rounds)
        result = report(taken)
        result.figures |= decisions(daemon, len(taken["poolmgr"]))
        syncs = count_syncs(poolmgr, daemon.pid, directory / "strace", TRACED_KILLS, SETTLE_SECONDS)
    columns = ("party", "kills", "min ms", "p50 ms", "p99 ms", "× C loop")
    common.print_table("SIGKILL to the next child's first line", columns, rows(taken))
    common.console.print(
        f"per respawn of poolmgr: {result.figures['transitions_per_respawn']:.1f} transitions,"
        f" {result.figures['events_per_respawn']:.1f} events logged"
    )
    if syncs is None:
        common.console.print("fsyncs: not measured (strace is missing or may not trace)")
    else:
        result.figures["fsyncs_on_path"], result.figures["fsyncs_per_respawn"] = syncs
        common.console.print(f"fsyncs: {syncs[0]:.1f} before the first line, {syncs[1]:.1f} per respawn in all")
    return result


def main() -> None:
    options = common.arguments(__doc__ or "")
    with common.state_directory(options.directory, "respawn") as directory:
        run(directory, QUICK if options.quick else FULL).print(options.json)


if __name__ == "__main__":
    main()
