"""Builders and a scripted driver for tests of the pure core."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from poolmgr.core.effects import Commit, LeaseAnswered, Note, NoteName, RunProbe, Start, Verify
from poolmgr.core.memo import Memo
from poolmgr.core.messages import (
    Acquire,
    ChangeSpec,
    Committed,
    Drain,
    Event,
    Exited,
    InDoubt,
    Moment,
    Preload,
    Probed,
    Spawned,
    Stop,
    Tick,
    TreeEmpty,
    Verified,
)
from poolmgr.core.pool import step
from poolmgr.core.settle import next_deadline
from poolmgr.core.state import Pool, ReloadPhase, new_pool, owner, remembering
from poolmgr.model.engine import CrashCause, Diagnosis, EngineFacts, ExitRecord, ProbeOutcome, ProbeResult, Usage
from poolmgr.model.lease import Lease, LeaseAsk, Refusal
from poolmgr.model.pool import EngineName, Origin, PoolRecord, PoolSpec, PoolState, ProbeSpec, ReloadStrategy
from poolmgr.model.settings import LeaseSettings, SupervisionSettings

T = TypeVar("T")

# HYPOTHESIS_EFFORT=20 runs twenty times the examples.
EFFORT = int(os.environ.get("HYPOTHESIS_EFFORT", "1"))
MOST_LATE_TICKS = 100  # at one instant: a step that leaves what is due undone would be asked for ever

OK = ProbeResult(ProbeOutcome.OK)
LOADING = ProbeResult(ProbeOutcome.LOADING, "loading model")
FAILED = ProbeResult(ProbeOutcome.FAILED, "connection refused")
EXIT_0 = ExitRecord(exit_code=0, source="shim")
EXIT_1 = ExitRecord(exit_code=1, source="shim")
KILLED = ExitRecord(signal=9, source="shim")
OOM = ExitRecord(signal=9, oom_killed=True, source="shim")
CUDA = Diagnosis("CUDA_ERROR", "an illegal memory access was encountered", permanent=False)
BAD_ARGUMENTS = Diagnosis("BAD_ARGUMENTS", "unknown flag --nonsense", permanent=True)

ENGINE = "e" * 32
NEXT = "f" * 32  # the engine that a reload starts
BORN = 1000.0


SETTINGS = SupervisionSettings()
CUDA_CAUSES = (CrashCause.CUDA_ERROR, CrashCause.GPU_OOM, CrashCause.DEVICE_LOST)
JITTER = st.floats(0, 1, exclude_max=True)


def searching(examples: int, steps: int = 40) -> settings:
    """Settings of a property that is expected to hold."""
    return settings(
        max_examples=examples * EFFORT,
        stateful_step_count=steps,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def hunting(examples: int, steps: int = 40) -> settings:
    """Settings of a property that is expected to fail: the first failure is enough, it is not made smaller."""
    return settings(searching(examples, steps), phases=(Phase.generate,), report_multiple_bugs=False, print_blob=False)


def a_spec(**changes: Any) -> PoolSpec:
    return replace(PoolSpec(EngineName.COMMAND, command="/opt/engine", slots=2), **changes)


# Probed so seldom that only leases have deadlines.
QUIET = a_spec(slots=2, liveness=ProbeSpec(interval=1e9))


def a_pool(
    spec: PoolSpec | None = None,
    supervision: SupervisionSettings | None = None,
    leases: LeaseSettings | None = None,
) -> Pool:
    record = PoolRecord("p", spec or a_spec(), 1, Origin.API, 0.0)
    return new_pool(record, supervision or SupervisionSettings(), leases or LeaseSettings())


def a_remembering_pool(spec: PoolSpec | None = None, **memo: Any) -> Pool:
    """A pool as a new daemon has it before anything of it was found; wanted unless told otherwise."""
    return remembering(a_pool(spec), Memo(**{"generation": 1, "newest": 1, "wanted": True, **memo}))


def both(pool: Pool) -> list[Pool]:
    """The pool, and the one that stands beside it in a reload."""
    return [pool] if pool.beside is None else [pool, pool.beside]


def an_ask(name: str, **changes: Any) -> LeaseAsk:
    return replace(LeaseAsk(lease_id=f"p.{name}", token=f"token-{name}", holder="tester"), **changes)


def of(kind: type[T], effects: list[Any]) -> list[T]:
    return [e for e in effects if isinstance(e, kind)]


def only(kind: type[T], effects: list[Any]) -> T:
    found = of(kind, effects)
    assert len(found) == 1, f"{len(found)} of {kind.__name__} in {effects}"
    return found[0]


def notes(effects: list[Any], name: NoteName) -> list[Note]:
    return [n for n in of(Note, effects) if n.name is name]


def backoff_bounds(failures: int, cuda: bool, s: SupervisionSettings = SETTINGS) -> tuple[float, float]:
    """The shortest and the longest delay that RST-1 allows, from a list of doublings."""
    delays = [s.backoff_initial]
    while len(delays) < failures and delays[-1] < s.backoff_max:
        delays.append(delays[-1] * 2)
    middle = delays[-1] * (2 if cuda else 1)
    if middle >= s.backoff_max:
        low, high = s.backoff_max * (1 - s.backoff_jitter), s.backoff_max
    else:
        low, high = middle * (1 - s.backoff_jitter), min(middle * (1 + s.backoff_jitter), s.backoff_max)
    return max(low, s.backoff_floor), max(high, s.backoff_floor)


def only_note(effects: list[Any], name: NoteName) -> Note:
    (note,) = notes(effects, name)
    return note


def answers(effects: list[Any]) -> dict[str, Lease | Refusal]:
    given = of(LeaseAnswered, effects)
    told = {e.answer.lease_id: e.answer.result for e in given}
    assert len(told) == len(given), f"an ask was answered twice in one step: {given}"
    return told


@dataclass
class Driver:
    """Drives one pool by hand: every step is at `now`, and the probes are answered by the test."""

    pool: Pool = field(default_factory=a_pool)
    now: float = BORN
    jitter: float = 0.5
    fence: int = 1
    host_restarts: int = 0
    usage: Usage = Usage()
    log: list[Any] = field(default_factory=list)

    @property
    def state(self) -> PoolState:
        return self.pool.state

    def do(self, event: Event) -> list[Any]:
        moment = Moment(self.now, 1.7e9 + self.now, self.jitter, self.fence, self.host_restarts)
        self.pool, effects = step(self.pool, event, moment)
        for answered in of(LeaseAnswered, list(effects)):
            if isinstance(answered.answer.result, Lease):
                self.fence = max(self.fence, answered.answer.result.fencing_token + 1)
        self.log += effects
        return list(effects)

    def at(self, when: float) -> list[Any]:
        """One late Tick at `when`, with nothing before it."""
        self.now = when
        return self.do(Tick())

    def pass_time(self, seconds: float, answer: ProbeResult | None = None) -> list[Any]:
        """Lets time go by with a Tick at every deadline; `answer` goes to every probe, None to none."""
        end, effects, late = self.now + seconds, [], 0
        while (due := next_deadline(self.pool)) is not None and due <= end:
            late = late + 1 if due <= self.now else 0
            assert late < MOST_LATE_TICKS, "a deadline that has passed is announced again and again"
            self.now = max(due, self.now)
            happened = self.do(Tick())
            for probe in of(RunProbe, happened) if answer is not None else ():
                happened += self.answer(answer, probe.engine_id)
            effects += happened
        self.now = end
        return effects

    def answer(self, result: ProbeResult, engine_id: str = "", **changes: Any) -> list[Any]:
        """Answers the probe that is under way, of the pool's own engine unless another is named."""
        run = owner(self.pool, engine_id).engine
        assert run is not None
        probed = Probed(run.engine_id, run.probe.serial, result, self.usage, owned=True)
        return self.do(replace(probed, **changes))

    def spawn(self, engine_id: str = ENGINE, pid: int = 100, port: int = 8000, generation: int = 0) -> list[Any]:
        return self.do(Spawned(engine_id, pid, port, ticks=pid, generation=generation or self.pool.generation))

    def start(self) -> list[Any]:
        """To STARTING."""
        effects = self.do(Preload())
        assert of(Start, effects)
        return effects + self.spawn()

    def make_ready(self, facts: EngineFacts | None = None) -> list[Any]:
        """To READY, from whatever comes before it by itself."""
        effects: list[Any] = []
        if self.state in (PoolState.PENDING, PoolState.STOPPED):
            effects += self.do(Preload())
        if self.state in (PoolState.BACKOFF, PoolState.PARKED):
            assert self.pool.resume_at is not None
            effects += self.at(max(self.now, self.pool.resume_at))
        if self.state is PoolState.PROVISIONING:
            effects += self.spawn()
        effects += self.answer(OK, facts=facts)
        assert self.state is PoolState.READY
        return effects

    def crash(self, record: ExitRecord = EXIT_1, diagnosis: Diagnosis | None = None) -> list[Any]:
        """The engine ends, and its tree with it."""
        assert self.pool.engine is not None
        return self.end(self.pool.engine.engine_id, record, diagnosis)

    def end(self, engine_id: str, record: ExitRecord = EXIT_1, diagnosis: Diagnosis | None = None) -> list[Any]:
        effects = self.do(Exited(engine_id, record, ("last words",), diagnosis))
        return effects + self.do(TreeEmpty(engine_id))

    def ask(self, name: str, **changes: Any) -> Lease | Refusal | None:
        """The answer, or None while it waits."""
        ask = an_ask(name, **changes)
        return answers(self.do(Acquire(ask))).get(ask.lease_id)

    def lease(self, name: str, **changes: Any) -> Lease:
        result = self.ask(name, **changes)
        assert isinstance(result, Lease), result
        return result

    # A reload, as far as it is asked for.

    def change(
        self, strategy: ReloadStrategy = ReloadStrategy.MAKE_BEFORE_BREAK, *, fits: bool = True, **spec: Any
    ) -> list[Any]:
        """Asks for another engine. `fits`: whether its devices have room for both."""
        pool = self.pool
        new = replace(pool.spec, **(spec or {"args": (f"--{pool.newest + 1}",)}))
        return self.do(ChangeSpec(new, pool.newest + 1, strategy, fits=fits))

    def start_next(self) -> list[Any]:
        assert self.pool.beside is not None
        return self.spawn(NEXT, 200, 8001, self.pool.beside.generation)

    def verify_next(self, detail: str = "") -> list[Any]:
        assert self.pool.reload is not None
        return self.do(Verified(self.pool.reload.generation, detail))

    def commit(self, fault: str = "") -> list[Any]:
        assert self.pool.reload is not None
        return self.do(Committed(self.pool.reload.generation, fault))

    def reload_to(self, phase: ReloadPhase) -> list[Any]:
        """Takes a reload that was begun as far as `phase`, an engine at a time."""
        effects: list[Any] = []
        for _ in range(len(ReloadPhase) + 1):
            if self.pool.reload is None or self.pool.reload.phase is phase:
                break
            match self.pool.reload.phase:
                case ReloadPhase.DRAINING:
                    effects += self.crash(EXIT_0)
                case ReloadPhase.STARTING:
                    effects += self.start_next() + self.answer(OK, NEXT)
                    assert of(Verify, effects)
                case ReloadPhase.VERIFYING:
                    effects += self.verify_next()
                    assert of(Commit, effects)
                case ReloadPhase.COMMITTING:
                    effects += self.commit()
                case _:
                    raise AssertionError(f"{self.pool.reload.phase} does not lead to {phase}")
        assert self.pool.reload is not None and self.pool.reload.phase is phase
        return effects


def ready(spec: PoolSpec | None = None, **changes: Any) -> Driver:
    driver = Driver(a_pool(spec, **changes))
    driver.make_ready()
    return driver


def in_state(state: PoolState, spec: PoolSpec | None = None) -> Driver:
    """A pool brought into `state` by events that lead there; DRAINING holds one lease."""
    driver = Driver(a_pool(spec))
    REACH[state](driver)
    assert driver.state is state
    return driver


def _reach_draining(driver: Driver) -> None:
    driver.make_ready()
    driver.lease("held", ttl=300.0)
    driver.do(Drain())


def _reach_stopping(driver: Driver) -> None:
    driver.make_ready()
    driver.do(Stop())


def _reach_stopped(driver: Driver) -> None:
    _reach_stopping(driver)
    driver.crash()


def _reach_backoff(driver: Driver) -> None:
    driver.make_ready()
    driver.crash()


def _reach_parked(driver: Driver) -> None:
    """By an open breaker."""
    while driver.state is not PoolState.PARKED:
        driver.make_ready()
        driver.crash()


def _reach_unknown(driver: Driver) -> None:
    driver.do(InDoubt(ENGINE, "start time differs"))


REACH = {
    PoolState.PENDING: lambda driver: None,
    PoolState.PROVISIONING: lambda driver: driver.do(Preload()),
    PoolState.STARTING: lambda driver: driver.start(),
    PoolState.READY: lambda driver: driver.make_ready(),
    PoolState.DRAINING: _reach_draining,
    PoolState.STOPPING: _reach_stopping,
    PoolState.STOPPED: _reach_stopped,
    PoolState.BACKOFF: _reach_backoff,
    PoolState.PARKED: _reach_parked,
    PoolState.UNKNOWN: _reach_unknown,
}
