"""What the observer saw of engines, held against what the harness did to them (PROC-6, PROC-7)."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tests.chaos.history import Violation
from tests.chaos.journal import Journal, Line
from tests.chaos.procs import NANOSECONDS, seconds

# The observer looks a hundred times a second; silent for so long it was not there.
BLIND = seconds(5)


@dataclass(frozen=True, slots=True)
class EngineLife:
    """One engine process. `died` None: it lived when the observer ended. `status`: as wait(2) gives it, if told.

    It ended between `alive`, when it was last seen so, and `died`, when it was seen to have.
    """

    pool: str
    version: str
    engine: str
    pid: int
    start: int
    born: int
    died: int | None
    status: int | None
    ports: tuple[int, ...]
    cgroup: str
    alive: int = 0

    def __str__(self) -> str:
        end = "lives" if self.died is None else f"died {self.died / NANOSECONDS:.6f}, wait status {self.status}"
        return (
            f"engine {self.engine} of {self.pool} (version {self.version}), pid {self.pid}, start {self.start}, "
            f"ports {list(self.ports)}, born {self.born / NANOSECONDS:.6f}, {end}"
        )


def lives(observed: Journal) -> list[EngineLife]:
    """By birth."""
    by_process: dict[tuple[object, object], dict[str, Line]] = defaultdict(dict)
    for line in observed.of("birth", "port", "death", "status"):
        by_process[line["pid"], line["start"]].setdefault(str(line["event"]), line)
    return [_life(found) for found in by_process.values() if "birth" in found]


def _life(found: Mapping[str, Line]) -> EngineLife:
    birth = found["birth"]
    died = found.get("death", {}).get("at")
    status = found.get("status", {}).get("status")
    return EngineLife(
        pool=str(birth["pool"]),
        version=str(birth["v"]),
        engine=str(birth["engine"]),
        pid=int(birth["pid"]),
        start=int(birth["start"]),
        born=int(birth["at"]),
        died=None if died is None else int(died),
        status=None if status is None else int(status),
        ports=tuple(found.get("port", {}).get("ports", ())),
        cgroup=str(birth["cgroup"]),
        alive=0 if died is None else int(found["death"].get("since", died)),
    )


def registered(deeds: Journal) -> list[EngineLife]:
    """Engines of the harness itself, which told the daemon of themselves and live as long as the rig."""
    return [
        EngineLife(
            pool=str(line["pool"]),
            version="",
            engine=str(line["pool"]),
            pid=int(line["pid"]),  # type: ignore[call-overload]
            start=0,
            born=int(line["at"]),  # type: ignore[call-overload]
            died=None,
            status=None,
            ports=tuple(line["ports"]),  # type: ignore[arg-type]
            cgroup="",
        )
        for line in deeds.of("registered")
    ]


@dataclass(frozen=True, slots=True)
class Allowed:
    """When engines of a pool may end: from the harness's deeds `may-end` and `must-live`, by pool or for all ("")."""

    changes: Mapping[str, Sequence[tuple[int, bool]]]

    @classmethod
    def of(cls, deeds: Journal) -> Allowed:
        changes: dict[str, list[tuple[int, bool]]] = defaultdict(list)
        for line in deeds.of("may-end", "must-live"):
            changes[str(line["pool"])].append((int(line["at"]), line["event"] == "may-end"))
        return cls(changes)

    def at(self, pool: str, at: int) -> bool:
        """True before anything was said of the pool."""
        everywhere = [change for change in self.changes.get("", ()) if change[0] <= at]
        if everywhere and everywhere[-1][1]:
            return True
        said = [change for change in self.changes.get(pool, ()) if change[0] <= at]
        return said[-1][1] if said else True


def check(observed: Journal, deeds: Journal) -> list[Violation]:
    problems = [Violation("PROC-7", 0, f"evidence is missing: {j.problem}") for j in (observed, deeds) if j.problem]
    return [
        *problems,
        *_check_eyes(observed),
        *_check_deaths(lives(observed), Allowed.of(deeds)),
        *_check_twins(observed),
        *_reported(deeds),
    ]


def _check_eyes(observed: Journal) -> Iterator[Violation]:
    """The observer has seen engines, and was never away."""
    if not observed.of("birth"):
        yield Violation("PROC-7", 0, "evidence is missing: the observer saw no engine")
    times = [int(line["at"]) for line in observed.lines]
    for before, after in pairwise(times):
        if after - before > BLIND:
            away = (after - before) / NANOSECONDS
            yield Violation("PROC-7", before, f"evidence is missing: the observer looked away for {away:.1f} s")


def _check_deaths(found: Sequence[EngineLife], allowed: Allowed) -> Iterator[Violation]:
    """An engine that nobody was to end has ended: by a wrong signal, or by itself for want of something we took."""
    for life in found:
        if life.died is not None and not allowed.at(life.pool, life.died):
            yield Violation("PROC-7", life.died, f"a good engine of {life.pool} ended", (str(life),), "signal")


def _check_twins(observed: Journal) -> Iterator[Violation]:
    for line in observed.of("two"):
        text = f"two engines of {line['pool']} (version {line['v']}) were alive at one instant"
        yield Violation("PROC-7", int(line["at"]), text, (str(dict(line)),), "second")


def _reported(deeds: Journal) -> Iterator[Violation]:
    """What the harness itself saw go wrong, as it saw it."""
    for line in deeds.of("violation"):
        evidence = tuple(map(str, line["evidence"]))  # type: ignore[call-overload]
        yield Violation(str(line["rule"]), int(line["at"]), str(line["text"]), evidence, str(line["kind"]))


def deaths_by_endpoint(found: Sequence[EngineLife]) -> dict[str, list[int]]:
    """When they ended, at the earliest: the daemon may hear of it before the observer looks."""
    deaths: dict[str, list[int]] = defaultdict(list)
    for life in found:
        for port in life.ports if life.died is not None else ():
            deaths[f"127.0.0.1:{port}"].append(life.alive)
    return deaths


def exits(found: Sequence[EngineLife]) -> Counter[str]:
    """How engines ended, as the kernel says."""
    ends = (life.status for life in found if life.died is not None)
    return Counter("unknown" if status is None else _kind(status) for status in ends)


def _kind(status: int) -> str:
    return f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}"
