"""What a pool is between two steps, and the scratch pad of one step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from poolmgr.core.leases import LeaseTable
from poolmgr.core.lifecycle import Trigger, advance
from poolmgr.core.messages import Effect, Moment, Note, NoteName
from poolmgr.core.restart import RestartPolicy
from poolmgr.model.engine import EngineFacts, Usage
from poolmgr.model.pool import BreakerState, Origin, PoolError, PoolRecord, PoolSpec, PoolState, PoolView
from poolmgr.model.settings import LeaseSettings, SupervisionSettings, override


@dataclass(frozen=True, slots=True)
class ProbeTimer:
    """One probe at a time: `due` while none is under way, `sent` while one is (boot-time seconds)."""

    serial: int = 0
    due: float | None = None
    sent: float | None = None
    late: float = 0.0
    failures: int = 0


@dataclass(frozen=True, slots=True)
class EngineRun:
    """One run of an engine: from its exec until no process of its tree is left. Times in boot-time seconds."""

    engine_id: str
    pid: int
    port: int
    generation: int
    started: float
    progressed: float
    adopted: bool = False
    main_alive: bool = True
    ready_at: float | None = None
    kill_at: float | None = None
    paused: float = 0.0  # seconds of its start in which the daemon itself did not run
    facts: EngineFacts = EngineFacts()
    usage: Usage = Usage()
    ready_usage: Usage | None = None
    probe: ProbeTimer = ProbeTimer()


@dataclass(frozen=True, slots=True)
class Home:
    """The engine directory of a generation, which every start of it uses again (PROC-5).

    `engine_id` is empty until the first start succeeded. `generation`: the newest whose spec gives the command line
    that was launched here; `slots`: what it was launched with.
    """

    engine_id: str
    generation: int
    slots: int
    proven: bool = False
    fresh_port: bool = False


@dataclass(frozen=True)
class Pool:
    """`then`: where STOPPING leads once no process is left. `resume_at`: when BACKOFF or PARKED ends by itself.

    Not slotted: a dictionary is copied at once, slots one by one (0.4 instead of 1.7 us for each change).
    """

    pool_id: str
    spec: PoolSpec
    generation: int
    origin: Origin
    create_time: float
    settings: SupervisionSettings
    lease_settings: LeaseSettings
    leases: LeaseTable
    daemon_settings: SupervisionSettings
    state: PoolState = PoolState.PENDING
    reason: str = "declared"
    since: float = 0.0
    engine: EngineRun | None = None
    home: Home | None = None
    policy: RestartPolicy = RestartPolicy()
    then: Trigger = Trigger.HALT
    resume_at: float | None = None
    drain_until: float | None = None
    deleting: bool = False
    forgotten: bool = False
    restart_count: int = 0
    probes: int = 0  # sent so far, over all runs: an answer of an earlier run is never taken for this one's
    last_error: PoolError | None = None


def changed(pool: Pool, **changes: Any) -> Pool:
    """`dataclasses.replace` at a sixth of its cost: every grant and every release pays for it."""
    made = object.__new__(Pool)
    vars(made).update(vars(pool), **changes)
    return made


def new_pool(record: PoolRecord, settings: SupervisionSettings, lease_settings: LeaseSettings) -> Pool:
    return Pool(
        pool_id=record.pool_id,
        spec=record.spec,
        generation=record.generation,
        origin=record.origin,
        create_time=record.create_time,
        settings=override(settings, record.spec.supervision),
        daemon_settings=settings,
        lease_settings=lease_settings,
        leases=LeaseTable(record.spec.slots),
    )


class Turn:
    """One step in the making: the pool as it is so far and the effects so far. Lives inside `step` only."""

    __slots__ = ("at", "effects", "pool")

    def __init__(self, pool: Pool, at: Moment) -> None:
        self.pool = pool
        self.at = at
        self.effects: list[Effect] = []

    def set(self, **changes: Any) -> None:
        self.pool = changed(self.pool, **changes)

    def set_engine(self, **changes: Any) -> None:
        assert self.pool.engine is not None
        self.pool = changed(self.pool, engine=replace(self.pool.engine, **changes))

    def do(self, *effects: Effect) -> None:
        self.effects.extend(effects)

    def note(self, name: NoteName, **fields: str | float | bool) -> None:
        self.effects.append(Note(name, fields))

    def go(self, trigger: Trigger, reason: str, **changes: Any) -> None:
        """Takes a transition; every one is an event with its evidence (RST-8)."""
        old = self.pool.state
        new = advance(old, trigger)
        self.pool = changed(self.pool, state=new, reason=reason, since=self.at.now, **changes)
        self.note(NoteName.POOL_TRANSITION, old_state=str(old), new_state=str(new), reason=reason)


_SERVING = (PoolState.READY, PoolState.DRAINING)


def serving(pool: Pool) -> bool:
    """Whether an engine is there that holders of leases may use."""
    return pool.state in _SERVING


class ShownRun(NamedTuple):
    """What is shown of a run of an engine; the defaults where there is none."""

    engine_id: str = ""
    pid: int = 0
    port: int = 0
    started: float | None = None
    main_alive: bool = False
    adopted: bool = False
    ready_at: float | None = None
    facts: EngineFacts = EngineFacts()
    ready_usage: Usage | None = None


_NO_RUN = ShownRun()


class Fingerprint(NamedTuple):
    """All that `view` is made of, so that what it does not hold can neither be shown nor make a new revision.

    It counts the leases and does not hold them: thousands of revisions are kept.
    """

    pool_id: str
    spec: PoolSpec
    origin: Origin
    generation: int
    create_time: float
    state: PoolState
    reason: str
    slots: int
    leased: int
    waiting: int
    breaker: BreakerState
    resume_at: float | None
    restart_count: int
    last_error: PoolError | None
    deleting: bool
    home: str
    progress: int
    run: ShownRun


def fingerprint(pool: Pool) -> Fingerprint:
    """Equal for two pools that look the same from outside: what decides whether there is a new revision."""
    run, leases = pool.engine, pool.leases
    return Fingerprint(
        pool.pool_id, pool.spec, pool.origin, pool.generation, pool.create_time, pool.state, pool.reason,
        leases.slots, len(leases.live), len(leases.waiters), pool.policy.breaker_state, pool.resume_at,
        pool.restart_count, pool.last_error, pool.deleting, pool.home.engine_id if pool.home else "", _progress(pool),
        _NO_RUN if run is None else ShownRun(
            run.engine_id, run.pid, run.port, run.started, run.main_alive, run.adopted, run.ready_at, run.facts,
            run.ready_usage,
        ),
    )  # fmt: skip


def _progress(pool: Pool) -> int:
    """Bytes that a starting engine has moved so far: read, or written to its log where reads are not known."""
    if pool.engine is None or pool.state is not PoolState.STARTING:
        return 0
    return pool.engine.usage.read_bytes or pool.engine.usage.log_bytes


PHASES = {
    PoolState.PROVISIONING: "provisioning",
    PoolState.STARTING: "loading",
    PoolState.DRAINING: "draining",
    PoolState.STOPPING: "stopping",
    PoolState.BACKOFF: "waiting",
}


def view(of: Fingerprint, revision: int, wall_offset: float) -> PoolView:
    """The pool as others see it. `wall_offset`: Unix time minus boot time, in seconds."""
    run = of.run
    ready = of.state is PoolState.READY and not of.deleting
    measured = run.ready_at is not None and run.started is not None and not run.adopted
    return PoolView(
        pool_id=of.pool_id,
        spec=of.spec,
        origin=of.origin,
        revision=revision,
        generation=of.generation,
        state=of.state,
        state_reason=of.reason,
        live=run.main_alive,
        ready=ready,
        draining=of.state is PoolState.DRAINING,
        slots_total=of.slots,
        slots_free=max(0, of.slots - of.leased) if ready else 0,
        active_leases=of.leased,
        waiting=of.waiting,
        engine_id=run.engine_id or of.home,
        engine_version=run.facts.version,
        endpoint=f"127.0.0.1:{run.port}" if run.port and of.state in _SERVING else "",
        pid=run.pid,
        restart_count=of.restart_count,
        breaker_state=of.breaker,
        backoff_until=_wall(of.resume_at, wall_offset),
        last_error=of.last_error,
        progress_phase=PHASES.get(of.state, ""),
        progress_message=of.reason if of.state in PHASES else "",
        progress_bytes=of.progress,
        create_time=of.create_time,
        start_time=_wall(run.started, wall_offset),
        ready_time=_wall(run.ready_at, wall_offset),
        context_length=run.facts.context_length,
        load_time=(run.ready_at or 0.0) - (run.started or 0.0) if measured else None,
        memory_bytes=run.ready_usage.rss_bytes if run.ready_usage else None,
    )


def _wall(at: float | None, offset: float) -> float | None:
    return None if at is None else at + offset
