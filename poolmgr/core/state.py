"""What a pool is between two steps, and the scratch pad of one step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from poolmgr.core.effects import Effect, Note, NoteName
from poolmgr.core.leases import LeaseTable
from poolmgr.core.lifecycle import Trigger, advance
from poolmgr.core.memo import Judged, Memo, RegisteredEngine, RolledBack
from poolmgr.core.messages import Moment
from poolmgr.core.progress import Evidence, Suspicion
from poolmgr.core.restart import RestartPolicy
from poolmgr.model.engine import EngineFacts, Usage
from poolmgr.model.lease import Lease
from poolmgr.model.plan import SplitPlan
from poolmgr.model.pool import Origin, PoolError, PoolRecord, PoolSpec, PoolState
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
    adopted: bool
    main_alive: bool = True
    ready_at: float | None = None
    kill_at: float | None = None
    paused: float = 0.0  # seconds of its start in which the daemon itself did not run
    facts: EngineFacts = EngineFacts()
    usage: Usage = Usage()
    ready_usage: Usage | None = None
    probe: ProbeTimer = ProbeTimer()
    ticks: int = 0
    evidence: Evidence = Evidence()
    suspicion: Suspicion | None = None
    plan: SplitPlan | None = None


@dataclass(frozen=True, slots=True)
class RegisteredRun:
    """An engine that somebody else runs, as this daemon has heard of it. Times in boot-time seconds.

    `heard`: its last registration or heartbeat, None before the first. What it did not say is None. `hung`: why it gets
    no lease though it answers.
    """

    engine: RegisteredEngine
    heard: float | None = None
    last_heartbeat: float | None = None
    slots_free: int | None = None
    in_flight: int | None = None
    progress_counter: int | None = None
    ready_at: float | None = None
    probe: ProbeTimer = ProbeTimer()
    evidence: Evidence = Evidence()
    hung: str = ""


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


class ReloadPhase(StrEnum):
    """How far a reload is. All but the last come before its commit."""

    DRAINING = "draining"  # the old engine, where the two do not fit beside each other
    STARTING = "starting"  # the new engine
    VERIFYING = "verifying"  # by a synthetic request
    COMMITTING = "committing"
    ENDING = "ending"  # it failed; the new engine goes
    RETIRING = "retiring"  # the old engine, after the commit


@dataclass(frozen=True, slots=True)
class Reload:
    """The way to another generation (DRN-2). `since`: boot-time seconds; `drain_deadline`: seconds.

    `comeback`: to the engine that was retiring, which still has leases.
    """

    generation: int
    spec: PoolSpec
    phase: ReloadPhase
    drain_deadline: float
    since: float
    comeback: bool = False


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
    newest: int  # the highest generation number that was used
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
    queued: int = 0  # the place of its start in the queue for permits, from 1
    probes: int = 0  # sent so far, over all runs: an answer of an earlier run is never taken for this one's
    last_error: PoolError | None = None
    wanted: bool = False  # an engine; what an operator or a spec asked for last
    judged: Judged = Judged()
    held_until: float | None = None  # no grants before: leases may be out that nobody here knows of
    recovering: bool = False  # until all that an earlier daemon left of it has been told
    closing: bool = False  # the daemon ends with its engines: what falls due from now on is the next one's
    host_doubt: bool = False  # its engine went with many others: the host is asked before the next start (RST-6)
    reload: Reload | None = None
    beside: Pool | None = None  # the engine of another generation, as the pool that it would be alone: one that is to
    # come, or one that goes. It decides by the same rules; what is settled between the two is in `core.reload`.
    good: tuple[int, ...] = ()
    rolled_back: tuple[RolledBack, ...] = ()
    registered: RegisteredRun | None = None  # for a pool of Origin.REGISTERED; `engine` and `home` are None then


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
        newest=record.generation,
        good=(record.generation,),
        registered=RegisteredRun(RegisteredEngine()) if record.origin is Origin.REGISTERED else None,
    )


_AGAIN: dict[PoolState | None, Trigger] = {PoolState.BACKOFF: Trigger.RETRY, PoolState.PARKED: Trigger.PARK}


def remembering(pool: Pool, memo: Memo) -> Pool:
    """A pool of which nothing has been found yet, with what an earlier daemon left of it. `pool` has its generation."""
    return changed(
        pool,
        recovering=True,
        wanted=memo.wanted and not memo.deleting,
        deleting=memo.deleting,
        reason=memo.reason or pool.reason,
        then=_AGAIN.get(memo.resting, Trigger.HALT),
        resume_at=memo.resume_at,
        drain_until=memo.drain_until,
        policy=memo.policy,
        restart_count=memo.restart_count,
        last_error=memo.last_error,
        judged=memo.judged,
        newest=max(memo.newest, pool.newest),
        good=memo.good or pool.good,
        rolled_back=memo.rolled_back,
        registered=RegisteredRun(memo.registered) if memo.registered and pool.registered else pool.registered,
    )


_RESTING = {
    PoolState.BACKOFF: PoolState.BACKOFF,
    PoolState.PARKED: PoolState.PARKED,
}
_RESTING_THEN = {Trigger.RETRY: PoolState.BACKOFF, Trigger.PARK: PoolState.PARKED}


def memo_of(pool: Pool) -> Memo:
    resting = _RESTING.get(pool.state)
    if pool.state is PoolState.STOPPING:
        resting = _RESTING_THEN.get(pool.then)
    reload, beside = pool.reload, pool.beside
    committed = reload is None or reload.phase is ReloadPhase.RETIRING or reload.comeback
    return Memo(
        generation=pool.generation,
        newest=pool.newest,
        wanted=pool.wanted,
        deleting=pool.deleting,
        resting=resting,
        reason=pool.reason if resting else "",
        resume_at=pool.resume_at if resting else None,
        drain_until=pool.drain_until,
        policy=pool.policy,
        restart_count=pool.restart_count,
        last_error=pool.last_error,
        judged=pool.judged,
        target=reload.generation if reload and not committed else 0,
        retiring=beside.home.engine_id if beside and beside.home and committed else "",
        good=pool.good,
        rolled_back=pool.rolled_back,
        registered=pool.registered.engine if pool.registered else None,
    )


def version(pool: Pool, generation: int) -> Pool:
    """The one of the two that runs, or is to run, this generation; the pool itself where none of them does."""
    beside = pool.beside
    return beside if beside is not None and beside.generation == generation else pool


def spec_of(pool: Pool, generation: int) -> PoolSpec:
    """As it was asked for: the engine that is to come stands under a spec that restarts nothing."""
    coming = pool.reload is not None and pool.reload.generation == generation != pool.generation
    return pool.reload.spec if coming and pool.reload is not None else version(pool, generation).spec


def commits(pool: Pool, generation: int) -> bool:
    """Whether a reload to this generation waits for its commit."""
    reload = pool.reload
    return reload is not None and reload.phase is ReloadPhase.COMMITTING and reload.generation == generation


def owner(pool: Pool, engine_id: str) -> Pool:
    """The one of the two that this engine belongs to; the pool itself where it is neither's."""
    beside = pool.beside
    if beside is None:
        return pool
    if (beside.engine and beside.engine.engine_id == engine_id) or (beside.home and beside.home.engine_id == engine_id):
        return beside
    return pool


def may_serve(pool: Pool) -> bool:
    """Whether something may be there that a lease of an earlier daemon is on."""
    if pool.registered is not None:
        return pool.wanted or pool.drain_until is not None
    return pool.engine is not None or pool.beside is not None or pool.state is PoolState.UNKNOWN


def parked_for_good(pool: Pool) -> bool:
    """Whether it is parked, or about to be, and not for how often it failed: bad arguments are nobody else's fault."""
    parked = pool.state is PoolState.PARKED or (pool.state is PoolState.STOPPING and pool.then is Trigger.PARK)
    return parked and pool.resume_at is None and len(pool.policy.history) < pool.settings.slow_loop_limit


def live_leases(pool: Pool) -> Iterator[Lease]:
    """On both engines."""
    yield from pool.leases.live.values()
    if pool.beside is not None:
        yield from pool.beside.leases.live.values()


def leased(pool: Pool) -> int:
    """Live leases, on both engines."""
    return len(pool.leases.live) + pool.leases.elsewhere


_TELLING = (PoolState.STARTING, PoolState.READY, PoolState.DRAINING)


def silent_at(pool: Pool) -> float | None:
    """When an engine that registered itself counts as lost unless it is heard of before (boot-time seconds)."""
    run = pool.registered
    if run is None or run.heard is None or pool.state not in _TELLING:
        return None
    return run.heard + heartbeat_ttl(pool)


def heartbeat_ttl(pool: Pool) -> float:
    """Seconds."""
    told = pool.registered.engine.ttl if pool.registered else None
    return told or pool.settings.heartbeat_ttl


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
        self.note(
            NoteName.POOL_TRANSITION,
            old_state=str(old),
            new_state=str(new),
            reason=reason,
            generation=self.pool.generation,
        )


SERVING = (PoolState.READY, PoolState.DRAINING)


def serving(pool: Pool) -> bool:
    """Whether an engine is there that holders of leases may use."""
    return pool.state in SERVING
