"""The verdict over one rig, from its three files: what the harness did, what the observer saw, what clients heard."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos import history, journal, truth
from tests.chaos.history import Facts, Violation
from tests.chaos.journal import Journal

KINDS = {"signal": "wrong_signals", "second": "second_engines", "lost": "lost_leases", "doubled": "doubled_leases"}
# LEASE-3: an expired lease keeps its slot so long.
GRACE_SECONDS = 1.0


@dataclass(slots=True)
class Figures:
    """Sums over rigs. `live_at_kill`: leases certainly held at each kill of a daemon."""

    runs: int = 0
    steps: int = 0
    operations: int = 0
    unknown: int = 0
    batched: int = 0
    crash_points: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    phases: Counter[str] = field(default_factory=Counter)
    engine_exits: Counter[str] = field(default_factory=Counter)
    causes: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    live_at_kill: list[int] = field(default_factory=list)
    violations: list[tuple[str, Violation]] = field(default_factory=list)
    notes: set[str] = field(default_factory=set)

    def add(self, other: Figures) -> None:
        for name in ("runs", "steps", "operations", "unknown", "batched"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("crash_points", "faults", "phases", "engine_exits", "causes", "kinds", "live_at_kill"):
            mine = getattr(self, name)
            (mine.extend if isinstance(mine, list) else mine.update)(getattr(other, name))
        self.violations += other.violations
        self.notes |= other.notes

    def summary(self) -> dict[str, object]:
        """The last line of a run."""
        return {
            "runs": self.runs,
            "violations": len(self.violations),
            "steps": self.steps,
            "crash_points_hit": len(self.crash_points),
            "faults_hit": dict(sorted(self.faults.items())),
            "engine_exits": dict(sorted(self.causes.items())),
            "engine_exits_observed": dict(sorted(self.engine_exits.items())),
            **{name: self.kinds[kind] for kind, name in KINDS.items()},
            "leases_live_at_kill_p50": statistics.median(self.live_at_kill) if self.live_at_kill else 0,
            "kills_by_phase": dict(sorted(self.phases.items())),
            "operations": self.operations,
            "of_them_in_batches": self.batched,
            "unknown_share": round(self.unknown / self.operations, 5) if self.operations else 0.0,
            "notes": sorted(self.notes),
        }


def judge(directory: Path) -> Figures:
    """Everything that can be said of a rig that has ended."""
    deeds, observed, heard = (journal.read(directory / name) for name in ("deeds", "observer", "history"))
    lives = truth.lives(observed) + truth.registered(deeds)
    facts = facts_of(deeds, lives)
    found = history.operations(heard.lines)
    violations = truth.check(observed, deeds)
    if heard.problem:
        violations.append(Violation("LEASE-4", 0, f"evidence is missing: {heard.problem}"))
    violations += history.check(found, facts) + check_endpoints(found, lives)
    asked = [operation for operation in found if operation.kind != "use"]
    made = history.leases(found, facts)
    kills = deeds.of("kill-daemon")
    return Figures(
        runs=len(deeds.of("run")),
        steps=len(deeds.lines) + len(found),
        operations=len(asked),
        unknown=sum(operation.end == "unknown" for operation in asked),
        batched=sum(operation.via == "session" and operation.end == "ok" for operation in asked),
        crash_points=Counter(str(line["point"]) for line in deeds.of("crash-point")),
        faults=Counter(str(line["fault"]) for line in deeds.of("run")),
        phases=Counter(str(line["phase"]) for line in kills),
        engine_exits=truth.exits(lives),
        causes=Counter(str(line["cause"]) for line in deeds.of("exit-checked")),
        kinds=Counter(violation.kind for violation in violations if violation.kind),
        live_at_kill=[history.live_at(made, facts, int(line["at"])) for line in kills],  # type: ignore[call-overload]
        violations=[(run_at(deeds, violation.at), violation) for violation in violations],
        notes={str(line["text"]) for line in deeds.of("note")},
    )


def facts_of(deeds: Journal, lives: Sequence[truth.EngineLife]) -> Facts:
    slots: dict[str, int] = next((dict(line["slots"]) for line in deeds.of("rig")), {})  # type: ignore[call-overload]
    return Facts(
        slots=slots,
        deaths=truth.deaths_by_endpoint(lives),
        restarts=restarts(deeds),
        forfeited=tuple(int(line["at"]) for line in deeds.of("forfeit")),  # type: ignore[call-overload]
        grace=int(GRACE_SECONDS * 1e9),
    )


def restarts(deeds: Journal) -> tuple[tuple[int, int], ...]:
    """(kill, exec of the next that came to serve); a daemon that was killed before it served changes nothing."""
    pairs, killed, executed = [], 0, 0
    for line in deeds.of("kill-daemon", "crash-point", "exec", "serving"):
        at = int(line["at"])  # type: ignore[call-overload]
        match line["event"]:
            case "exec":
                executed = at
            case "serving":
                if killed:
                    pairs.append((killed, executed))
                killed = 0
            case _:
                killed = killed or at
    return tuple(pairs)


def check_endpoints(found: Iterable[history.Operation], lives: Sequence[truth.EngineLife]) -> list[Violation]:
    """A lease names an engine of its pool; while that engine lives, who holds the lease is served (PROC-7)."""
    problems = []
    for operation in found:
        if not operation.endpoint:
            continue
        own = [life for life in lives if life.pool == operation.pool and serves(life, operation.endpoint)]
        if operation.kind == "acquire" and not any(life.born <= (operation.answered or 0) for life in own):
            text = f"a lease of {operation.pool} names {operation.endpoint}, where no engine of it ever listened"
            problems.append(Violation("LEASE-1", operation.invoked, text, (history.show(operation),)))
        refused = operation.kind == "use" and operation.outcome.startswith("ConnectionRefusedError")
        if refused and any(life.born < operation.invoked and life.died is None for life in own):
            text = f"the engine of {operation.pool} lives and does not answer"
            problems.append(Violation("PROC-7", operation.invoked, text, (history.show(operation),)))
    return problems


def serves(life: truth.EngineLife, endpoint: str) -> bool:
    return endpoint in {f"127.0.0.1:{port}" for port in life.ports}


def run_at(deeds: Journal, at: int) -> str:
    """The run during which something happened, as `fault#number`."""
    last = "before the first run"
    for line in deeds.of("run"):
        if int(line["at"]) > at:  # type: ignore[call-overload]
            break
        last = f"{line['fault']}#{line['run']} ({line.get('detail', '')})"
    return last
