"""Runs seeds, scenarios, every crash point and every fault of them, and adds up what came of it."""

from __future__ import annotations

import gc
import multiprocessing
import os
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from tests.sim.gate import ERRORS, CrashPoint, FaultPoint
from tests.sim.oracle import Violation
from tests.sim.scenarios import SCENARIOS
from tests.sim.stage import Stage
from tests.sim.swarm import Swarm
from tests.sim.world import World

WHEN = ("before", "during", "after")
SAME_CALL_AT_MOST = 6  # crash points at calls of one name, in one scenario: the hundredth probe is like the tenth
REPLAY_EVERY = 100
COLLECT_EVERY = 50


@dataclass(frozen=True)
class Job:
    """One run: a seed of the swarm, or a scenario with or without a point at which something is made to happen."""

    seed: int | None = None
    scenario: str = ""
    crash: CrashPoint | None = None
    fault: FaultPoint | None = None
    twice: bool = False

    @property
    def name(self) -> str:
        if self.seed is not None:
            return str(self.seed)
        point = f" crash={self.crash.call}/{self.crash.when}" if self.crash else ""
        point += f" fault={self.fault.call}/{self.fault.error}" if self.fault else ""
        return self.scenario + point


@dataclass
class Outcome:
    name: str
    steps: int
    callbacks: int
    digest: str
    violations: list[Violation]
    events: frozenset[str]
    counts: Counter = field(default_factory=Counter)
    faults: Counter = field(default_factory=Counter)
    phases: Counter = field(default_factory=Counter)
    leases_at_kill: list[int] = field(default_factory=list)
    calls: tuple[str, ...] = ()


def world_of(job: Job) -> tuple[World, Stage]:
    """The world at its beginning, its story laid out."""
    world = World(job.seed if job.seed is not None else job.scenario)
    world.name = job.name
    stage = Stage(world)
    if job.seed is not None:
        Swarm(stage, job.seed).tell()
    else:
        SCENARIOS[job.scenario](stage)
        world.crash_point, world.fault_point = job.crash, job.fault
        world.call_names = []
    return world, stage


def run(job: Job) -> Outcome:
    world, stage = world_of(job)
    stage.play()
    oracle = world.oracle
    return Outcome(
        job.name,
        world.steps,
        world.callbacks,
        world.digest(),
        list(oracle.violations),
        frozenset(world.events),
        Counter(
            crash_points_hit=world.crash_points_hit,
            engine_exits=world.exits,
            wrong_signals=oracle.wrong_signals,
            lost_leases=oracle.leases.lost,
            doubled_leases=oracle.leases.doubled,
            leases=oracle.leases.acknowledged,
            kills=len(world.leases_at_kill),
            changes=oracle.stream.changes,
        ),
        Counter(world.faults_hit),
        Counter(world.kills_by_phase),
        world.leases_at_kill,
        tuple(world.call_names or ()),
    )


def run_checked(job: Job) -> Outcome:
    """As `run`; twice where the job says so, and the two must be one."""
    outcome = run(job)
    if job.twice:
        again = run(job)
        outcome.counts["replays_checked"] += 1
        if again.digest != outcome.digest or again.steps != outcome.steps:
            text = f"a second run differs: {again.digest} instead of {outcome.digest}"
            outcome.violations.append(Violation(job.name, outcome.steps, 0.0, "REPLAY", text, ()))
    return outcome


def seeds(first: int, count: int) -> list[Job]:
    return [Job(seed=n, twice=n % REPLAY_EVERY == 0) for n in range(first, first + count)]


def clean(name: str) -> Job:
    return Job(scenario=name)


def crash_points(name: str, calls: Iterable[str], every: int = 1) -> Iterator[Job]:
    """One for each call of a port in a clean run, in turn before, during and after it."""
    seen: Counter = Counter()
    for number, call in enumerate(calls, 1):
        seen[call] += 1
        if seen[call] <= SAME_CALL_AT_MOST and number % every == 0:
            yield Job(scenario=name, crash=CrashPoint(number, WHEN[(number // every) % len(WHEN)]))


def all_crash_points(name: str, calls: Iterable[str]) -> Iterator[Job]:
    """Before, during and after each."""
    for job in crash_points(name, calls):
        for when in WHEN:
            yield Job(scenario=name, crash=CrashPoint(job.crash.call, when))


def fault_points(name: str, calls: Iterable[str], every: int = 1) -> Iterator[Job]:
    """Each call once with each error that it may raise."""
    for number, call in enumerate(calls, 1):
        if call in ERRORS and number % every == 0:
            for error in range(len(ERRORS[call])):
                yield Job(scenario=name, fault=FaultPoint(number, error))


def _in_process(job: Job) -> Outcome:
    _in_process.done = getattr(_in_process, "done", 0) + 1
    if _in_process.done == 1:
        gc.disable()
    elif _in_process.done % COLLECT_EVERY == 0:
        gc.collect()
    return run_checked(job)


def run_all(jobs: list[Job], processes: int | None = None) -> Iterator[Outcome]:
    """In the order of the jobs, on every core."""
    processes = processes or min(os.cpu_count() or 1, max(1, len(jobs)))
    if processes == 1 or len(jobs) < 2 * processes:
        yield from map(run_checked, jobs)
        return
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        yield from pool.imap(_in_process, jobs, chunksize=max(1, min(16, len(jobs) // (4 * processes))))


@dataclass
class Summary:
    runs: int = 0
    steps: list[int] = field(default_factory=list)
    callbacks: int = 0
    violations: list[Violation] = field(default_factory=list)
    counts: Counter = field(default_factory=Counter)
    faults: Counter = field(default_factory=Counter)
    phases: Counter = field(default_factory=Counter)
    leases_at_kill: list[int] = field(default_factory=list)
    event_sets: dict[frozenset[str], str] = field(default_factory=dict)
    scenarios: int = 0

    def add(self, outcome: Outcome, seed: bool) -> None:
        self.runs += 1
        if seed:
            self.steps.append(outcome.steps)
            self.leases_at_kill += outcome.leases_at_kill
        self.counts["steps"] += outcome.steps
        self.callbacks += outcome.callbacks
        self.violations += outcome.violations
        self.counts += outcome.counts
        self.faults += outcome.faults
        self.phases += outcome.phases

    def figures(self) -> dict[str, object]:
        counts = self.counts
        return {
            "runs": self.runs,
            "violations": len(self.violations),
            "steps": counts["steps"],
            "steps_p50": int(statistics.median(self.steps)) if self.steps else 0,
            "callbacks": self.callbacks,
            "crash_points_hit": counts["crash_points_hit"],
            "faults_hit": sum(self.faults.values()),
            "faults_by_call": dict(sorted(self.faults.items())),
            "engine_exits": counts["engine_exits"],
            "wrong_signals": counts["wrong_signals"],
            "lost_leases": counts["lost_leases"],
            "doubled_leases": counts["doubled_leases"],
            "leases": counts["leases"],
            "leases_live_at_kill_p50": statistics.median(self.leases_at_kill) if self.leases_at_kill else 0,
            "kills": sum(self.phases.values()),
            "kills_by_phase": dict(sorted(self.phases.items())),
            "scenarios": self.scenarios,
            "event_sets": len(self.event_sets),
            "replays_checked": counts["replays_checked"],
        }
