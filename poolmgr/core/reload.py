"""The way to another generation and back (DRN-2, DRN-3, DRN-4).

The engine of the other generation stands beside the pool's own as a pool of its own, which decides by the same rules;
here stands only what is between the two. Before the commit it is the one that is to come: it serves nobody, and its
failure costs the pool nothing but the try. The commit makes it the pool's, durably first; the old one then stands
beside and retires: it drains, stops, and is forgotten. Slots are counted over both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from poolmgr.core import leases, restart
from poolmgr.core.effects import Commit, Effect, NoteName, Verify
from poolmgr.core.ending import NOT_ITS_OWN
from poolmgr.core.leases import LeaseTable
from poolmgr.core.lifecycle import Trigger
from poolmgr.core.memo import MAX_GENERATIONS, RolledBack
from poolmgr.core.messages import (
    AdoptedBeside,
    ChangeSpec,
    Committed,
    Drain,
    Event,
    LeasesKept,
    Moment,
    Preload,
    Stop,
    Tick,
    Undrain,
    Verified,
)
from poolmgr.core.settle import begin_drain, next_deadline
from poolmgr.core.starting import discard_home, engine_arguments, slot_limit, start
from poolmgr.core.state import Pool, Reload, ReloadPhase, Turn, changed, memo_of
from poolmgr.errors import Reason
from poolmgr.model.lease import Lease
from poolmgr.model.pool import PoolError, PoolSpec, PoolState, ReloadStrategy, RestartMode
from poolmgr.model.settings import override

Step = Callable[[Pool, Event, Moment], tuple[Pool, Sequence[Effect]]]

ROLLBACKS_ALLOWED = 2  # a generation that came back so often is blocked until it is edited (DRN-3)


def fits_beside(change: ChangeSpec) -> bool:
    """Whether the new engine may run while the old one does: not on one port, nor where there is no room for both."""
    if change.strategy is ReloadStrategy.AUTO:
        return change.fits and not change.spec.port
    return change.strategy is ReloadStrategy.MAKE_BEFORE_BREAK


def blocked(pool: Pool, spec: PoolSpec) -> bool:
    return any(r.times >= ROLLBACKS_ALLOWED and _alike(r.spec, spec) for r in pool.rolled_back)


def _alike(one: PoolSpec, other: PoolSpec) -> bool:
    return engine_arguments(one) == engine_arguments(other) and one.readiness == other.readiness


def evacuate(turn: Turn, reason: str) -> None:
    """The engine drains and goes; the next start waits for a device that takes work. A reload under way goes on."""
    pool = turn.pool
    if pool.state is PoolState.READY and pool.wanted and pool.reload is None:
        begin_drain(turn, reason, pool.spec.drain_deadline, then=Trigger.RESUME)


def begin(turn: Turn, change: ChangeSpec) -> None:
    """Towards a generation that the serving engine cannot serve."""
    pool = turn.pool
    seconds = pool.spec.drain_deadline if change.drain_deadline is None else change.drain_deadline
    beside = fits_beside(change)
    phase = ReloadPhase.STARTING if beside else ReloadPhase.DRAINING
    turn.set(reload=Reload(change.generation, change.spec, phase, seconds, turn.at.now))
    turn.note(NoteName.RELOAD_STARTED, old_generation=pool.generation, new_generation=change.generation, beside=beside)
    if not beside:
        begin_drain(turn, f"draining for generation {change.generation}", seconds, then=Trigger.HALT)


def can_come_back(pool: Pool, change: ChangeSpec) -> bool:
    """Whether this is the way back to the engine that is retiring, and still serves those who hold leases on it."""
    side, reload = pool.beside, pool.reload
    if side is None or reload is None or reload.phase is not ReloadPhase.RETIRING or change.anew:
        return False
    if pool.state is PoolState.UNKNOWN:
        return False  # its own engine could not be ended after the commit
    return side.generation == change.generation and side.state is PoolState.DRAINING


def come_back(turn: Turn, step: Step, change: ChangeSpec) -> None:
    """The engine that was retiring takes over again, verified and committed like any other."""
    seconds = turn.pool.spec.drain_deadline if change.drain_deadline is None else change.drain_deadline
    turn.set(reload=Reload(change.generation, change.spec, ReloadPhase.STARTING, seconds, turn.at.now, comeback=True))
    turn.note(
        NoteName.RELOAD_STARTED, old_generation=turn.pool.generation, new_generation=change.generation, beside=True
    )
    _tell(turn, step, Undrain())


def _retire_after_all(turn: Turn, step: Step) -> None:
    """The engine that was to come back does not."""
    reload, pool = turn.pool.reload, turn.pool
    assert reload is not None
    back = replace(reload, generation=pool.generation, spec=pool.spec, phase=ReloadPhase.RETIRING, comeback=False)
    turn.set(reload=back)
    retire(turn, step)


def cancel(turn: Turn, step: Step, why: str, grace: float | None) -> None:
    """An operator ends the pool: what is to come goes at once, what retires is hurried."""
    reload = turn.pool.reload
    if reload is None:
        return
    if reload.comeback:
        _retire_after_all(turn, step)
    elif reload.phase is ReloadPhase.RETIRING:
        if grace is not None:
            _tell(turn, step, Stop(grace))
    elif turn.pool.beside is None:
        _finish(turn, "cancelled", why)
    else:
        _phase(turn, ReloadPhase.ENDING)
        _tell(turn, step, Stop(0.0))


def advance(turn: Turn, step: Step) -> None:
    """Takes the reload as far as the two engines allow, one phase at a time."""
    if turn.pool.beside is not None:
        due = next_deadline(turn.pool.beside)
        if due is not None and due <= turn.at.now:
            _tell(turn, step, Tick())
    reload, side = turn.pool.reload, turn.pool.beside
    if reload is None:
        return
    match reload.phase:
        case ReloadPhase.DRAINING:
            if turn.pool.state is PoolState.STOPPED:
                _phase(turn, ReloadPhase.STARTING)
        case ReloadPhase.STARTING | ReloadPhase.VERIFYING:
            _bring_up(turn, step, reload, side)
        case ReloadPhase.ENDING | ReloadPhase.RETIRING if side is None or side.state is PoolState.STOPPED:
            _put_aside(turn)
            _end(turn, reload)


def _bring_up(turn: Turn, step: Step, reload: Reload, side: Pool | None) -> None:
    if side is None:
        _start(turn, step)
    elif side.state in (PoolState.STOPPED, PoolState.STOPPING, PoolState.PARKED):
        _fail(turn, step, side.last_error)
    elif reload.phase is ReloadPhase.STARTING and side.state is PoolState.READY and side.engine:
        _phase(turn, ReloadPhase.VERIFYING)
        turn.do(Verify(side.engine.engine_id, side.generation, side.settings.verify_timeout))


def _end(turn: Turn, reload: Reload) -> None:
    """Nothing is left of the engine beside."""
    if reload.phase is ReloadPhase.RETIRING:
        _finish(turn, "complete", f"generation {reload.generation} serves alone")
        return
    pool = turn.pool
    _finish(turn, "rolled_back", f"generation {pool.generation} serves on")
    if pool.state is PoolState.STOPPED and pool.wanted and not pool.deleting:
        start(turn, Trigger.START, f"back to generation {pool.generation}")


def _start(turn: Turn, step: Step) -> None:
    reload = turn.pool.reload
    assert reload is not None
    turn.set(beside=_alone(turn, reload.spec, reload.generation))
    _tell(turn, step, Preload())


def _alone(turn: Turn, spec: PoolSpec, generation: int) -> Pool:
    """The pool that an engine of this generation would be alone; it is not started a second time."""
    pool = turn.pool
    return Pool(
        pool_id=pool.pool_id,
        spec=replace(spec, restart=RestartMode.NEVER),
        generation=generation,
        origin=pool.origin,
        create_time=pool.create_time,
        settings=override(pool.daemon_settings, spec.supervision),
        lease_settings=pool.lease_settings,
        leases=LeaseTable(spec.slots),
        daemon_settings=pool.daemon_settings,
        since=turn.at.now,
        newest=generation,
    )


def _tell(turn: Turn, step: Step, event: Event) -> None:
    """The other engine's pool decides; what it asks for is asked for here."""
    assert turn.pool.beside is not None
    beside, effects = step(turn.pool.beside, event, turn.at)
    turn.set(beside=beside)
    turn.do(*effects)


def observe(turn: Turn, step: Step, event: Event) -> None:
    """A fact about the engine beside."""
    _tell(turn, step, event)


def verified(turn: Turn, step: Step, fact: Verified) -> None:
    reload = turn.pool.reload
    if reload is None or reload.phase is not ReloadPhase.VERIFYING or fact.generation != reload.generation:
        return
    if fact.detail:
        _fail(turn, step, PoolError(Reason.VERIFICATION_FAILED, fact.detail, turn.at.wall))
        return
    _phase(turn, ReloadPhase.COMMITTING)
    turn.do(Commit(reload.generation, memo_of(_swapped(turn))))


def committed(turn: Turn, step: Step, fact: Committed) -> None:
    reload = turn.pool.reload
    if reload is None or reload.phase is not ReloadPhase.COMMITTING or fact.generation != reload.generation:
        return
    if fact.fault:
        _fail(turn, step, PoolError(Reason.STORE_UNAVAILABLE, fact.fault, turn.at.wall))
        return
    turn.pool = _swapped(turn)
    turn.note(NoteName.RELOAD_COMMITTED, generation=reload.generation, duration_ms=_ms(turn, reload))
    retire(turn, step)
    if turn.pool.state is PoolState.STOPPED and turn.pool.wanted:  # it died while the commit was written
        start(turn, Trigger.START, f"starting generation {turn.pool.generation}")
    elif turn.pool.state is PoolState.STOPPING:
        turn.set(then=Trigger.RESUME)


def retire(turn: Turn, step: Step) -> None:
    """The engine beside goes: at once, or when those who hold leases on it have let go of them, or at the deadline."""
    reload, side = turn.pool.reload, turn.pool.beside
    assert reload is not None and side is not None
    if side.state is PoolState.READY:
        _tell(turn, step, Drain(reload.drain_deadline))
    elif side.state is not PoolState.STOPPED:
        _tell(turn, step, Stop(None))


def _swapped(turn: Turn) -> Pool:
    """The pool after the commit: the engine beside is its own, and its own stands beside."""
    old, side, reload = turn.pool, turn.pool.beside, turn.pool.reload
    assert side is not None and reload is not None
    retiring = changed(
        old, beside=None, reload=None, deleting=False, leases=old.leases._replace(waiters=()),
        spec=replace(old.spec, restart=RestartMode.NEVER),
    )  # fmt: skip
    good = (*(g for g in old.good if g != reload.generation), reload.generation)[-MAX_GENERATIONS:]
    new = changed(
        side,
        spec=reload.spec,
        create_time=old.create_time,
        policy=restart.became_healthy(restart.new_generation(old.policy), turn.at.now),
        restart_count=old.restart_count,
        last_error=old.last_error,
        reason="serving" if side.state is PoolState.READY else side.reason,
        judged=old.judged,
        wanted=old.wanted or not reload.comeback,  # whoever stops wanting it before the commit cancels the reload
        deleting=old.deleting,
        newest=max(old.newest, reload.generation),
        good=good,
        rolled_back=tuple(r for r in old.rolled_back if not _alike(r.spec, reload.spec)),
        held_until=old.held_until,
        reload=replace(reload, phase=ReloadPhase.RETIRING, comeback=False),
        beside=retiring,
    )
    table = side.leases._replace(
        slots=slot_limit(new),
        waiters=old.leases.waiters,
        asked=old.leases.asked,
        quiet_until=min(old.leases.quiet_until, side.leases.quiet_until),
        elsewhere=len(old.leases.live),
    )
    return changed(new, leases=table)


def _fail(turn: Turn, step: Step, error: PoolError | None) -> None:
    """The new engine is not taken; the old one serves on, or is started again (DRN-3)."""
    reload, pool = turn.pool.reload, turn.pool
    assert reload is not None
    error = error or PoolError(Reason.VERIFICATION_FAILED, "the engine ended", turn.at.wall)
    message = f"reload to generation {reload.generation}: {error.message}"
    before = next((r.times for r in pool.rolled_back if _alike(r.spec, reload.spec)), 0)
    others = tuple(r for r in pool.rolled_back if not _alike(r.spec, reload.spec))
    times = before if error.reason in NOT_ITS_OWN else before + 1  # nothing is said of the generation by a full GPU
    back = RolledBack(reload.generation, reload.spec, times)
    turn.set(last_error=replace(error, message=message), rolled_back=(*others, back)[-MAX_GENERATIONS:])
    if reload.comeback:
        _retire_after_all(turn, step)
        return
    _phase(turn, ReloadPhase.ENDING)
    side = turn.pool.beside
    if side is not None and side.state not in (PoolState.STOPPED, PoolState.STOPPING):
        _tell(turn, step, Stop(0.0))


def _put_aside(turn: Turn) -> None:
    """Forgets the engine beside, and keeps what is to be told of its leases."""
    side = turn.pool.beside
    if side is None:
        return
    inner = Turn(side, turn.at)
    discard_home(inner)
    turn.do(*inner.effects)
    table = leases.remember(turn.pool.leases, side.leases, turn.pool.lease_settings)
    turn.set(beside=None, leases=table)  # of which none are elsewhere any more: `pool.step` counts them


def _finish(turn: Turn, outcome: str, why: str) -> None:
    reload = turn.pool.reload
    assert reload is not None
    turn.set(reload=None)
    turn.note(
        NoteName.RELOAD_FINISHED,
        outcome=outcome,
        reason=why,
        new_generation=reload.generation,
        duration_ms=_ms(turn, reload),
    )


def _phase(turn: Turn, phase: ReloadPhase) -> None:
    assert turn.pool.reload is not None
    turn.set(reload=replace(turn.pool.reload, phase=phase))


def _ms(turn: Turn, reload: Reload) -> int:
    return int((turn.at.now - reload.since) * 1000)


# A daemon has died in a reload.


def adopted_beside(turn: Turn, step: Step, fact: AdoptedBeside) -> None:
    """Takes over the second engine. It stays as it is until `Recovered`."""
    phase = ReloadPhase.RETIRING if fact.retiring else ReloadPhase.ENDING
    target = turn.pool.generation if fact.retiring else fact.generation
    turn.set(
        beside=changed(_alone(turn, fact.spec, fact.generation), wanted=True),
        reload=Reload(target, fact.spec, phase, fact.spec.drain_deadline, turn.at.now),
    )
    _tell(turn, step, fact.adopted)


def recovered(turn: Turn, step: Step) -> None:
    """Rolls forward or back, as the commit has it."""
    reload, side = turn.pool.reload, turn.pool.beside
    if reload is None or side is None:
        return
    if reload.phase is ReloadPhase.ENDING:
        _tell(turn, step, Stop(0.0))
    elif side.leases.live or side.held_until is not None:
        if side.state is PoolState.STARTING:  # else it has been probed, or has ended, meanwhile
            inner = Turn(side, turn.at)
            inner.go(Trigger.BECAME_READY, "it served before")
            turn.set(beside=inner.pool)
            turn.do(*inner.effects)
        retire(turn, step)
    else:
        _tell(turn, step, Stop(None))


def belongs_beside(pool: Pool, lease: Lease) -> bool:
    """Whether this lease is on the engine beside."""
    side = pool.beside
    if side is None or side.engine is None or (pool.engine and pool.engine.port and not side.engine.port):
        return False
    return lease.endpoint == endpoint_of(side)


def endpoint_of(pool: Pool) -> str:
    return f"127.0.0.1:{pool.engine.port}" if pool.engine and pool.engine.port else ""


def kept_beside(turn: Turn, step: Step, fact: LeasesKept) -> LeasesKept:
    """Hands the engine beside its leases. Returns what is left for the pool's own."""
    pool = turn.pool
    if pool.beside is None:
        return fact
    theirs = tuple(lease for lease in fact.live if belongs_beside(pool, lease))
    _tell(turn, step, LeasesKept(theirs, (), fact.known))
    return replace(fact, live=tuple(lease for lease in fact.live if lease not in theirs))
