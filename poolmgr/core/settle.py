"""What follows from the pool's state and the time, whatever event came before.

The order matters in one place only: a state must have left before its waiters and leases are dealt with.
"""

from __future__ import annotations

from poolmgr.core import engine, leases, restart
from poolmgr.core.effects import Forget, KillTree, LeaseAnswered, NoteName, RecordLeases
from poolmgr.core.ending import stop
from poolmgr.core.leases import Grantor
from poolmgr.core.lifecycle import Admission, Trigger, admission
from poolmgr.core.starting import discard_home, outdated, start
from poolmgr.core.state import Pool, ReloadPhase, Turn, leased, serving, silent_at
from poolmgr.errors import Reason
from poolmgr.model.lease import Lease, RefusalReason
from poolmgr.model.pool import BreakerState, PoolError, PoolState

_WAITING = (PoolState.BACKOFF, PoolState.PARKED)


def settle(turn: Turn) -> None:
    if _at_rest(turn.pool, turn.at.now):
        return
    _resume(turn)
    if turn.pool.engine is not None:
        engine.watch(turn)
    _replace_outdated(turn)
    _end_unwanted(turn)
    release_hold(turn)
    expire_leases(turn)
    _finish_drain(turn)
    _kill_late(turn)
    tell_waiters(turn)
    _revoke(turn)
    _forget(turn)


def _at_rest(pool: Pool, now: float) -> bool:
    """Whether nothing below applies, as after almost every grant and release: asked once instead of ten times."""
    if pool.state is not PoolState.READY or pool.leases.waiters or pool.deleting or outdated(pool) or not pool.wanted:
        return False
    due = next_deadline(pool)
    return due is None or now < due


def next_deadline(pool: Pool) -> float | None:
    """When `step` has something to do without an event (boot-time seconds)."""
    times = [leases.next_deadline(pool.leases), pool.held_until]
    run, state = pool.engine, pool.state
    if run is not None:
        times += (run.kill_at, run.probe.due)
    elif pool.registered is not None:
        times += (silent_at(pool), pool.registered.probe.due, None if pool.wanted else pool.drain_until)
    if state is PoolState.READY:
        times.append(restart.stable_at(pool.policy, pool.settings))
    elif state is PoolState.STARTING:
        times.append(engine.start_deadline(pool))
    elif state is PoolState.DRAINING:
        times += (None if pool.recovering else pool.drain_until, restart.stable_at(pool.policy, pool.settings))
    elif state in _WAITING and not pool.closing:
        times.append(pool.resume_at)
    if pool.beside is not None:
        times.append(next_deadline(pool.beside))
    return min([t for t in times if t is not None], default=None)


def grantor(turn: Turn) -> Grantor:
    """What the next grant of this step is made of; fencing numbers go on where this step's last grant stopped."""
    pool, run = turn.pool, turn.pool.engine
    granted = sum(1 for e in turn.effects if isinstance(e, LeaseAnswered)) if turn.effects else 0
    fence = turn.at.fence + granted
    if run is None:
        return Grantor(pool.registered.engine.endpoint if pool.registered else "", pool.generation, fence)
    return Grantor(f"127.0.0.1:{run.port}" if run.port else "", run.generation, fence)


def retry_after(turn: Turn) -> float | None:
    """Seconds until another ask may fare better; None when no time is known."""
    pool, now = turn.pool, turn.at.now
    if pool.held_until is not None:
        return max(0.0, pool.held_until - now)
    if pool.state in _WAITING:
        return None if pool.resume_at is None else max(0.0, pool.resume_at - now)
    if pool.state is PoolState.READY and pool.leases.live:
        first = min(lease.expires for lease in pool.leases.live.values())
        return max(0.0, first + pool.lease_settings.grace - now)
    return None


def admitted(pool: Pool) -> tuple[Admission, RefusalReason]:
    """What is told to somebody who asks this pool for a slot, and why it is not granted."""
    if pool.deleting or (pool.registered is not None and _goes(pool)):
        return Admission.REFUSE, RefusalReason.POOL_DRAINING
    between = pool.reload is not None and pool.wanted and pool.state in (PoolState.STOPPING, PoolState.STOPPED)
    if between:
        return Admission.QUEUE, RefusalReason.POOL_NOT_READY
    if pool.state is PoolState.STOPPING and pool.then in (Trigger.RETRY, Trigger.RESUME):
        return Admission.QUEUE, RefusalReason.POOL_NOT_READY  # as in BACKOFF, where it is about to be
    admitted, reason = admission(pool.state, pool.policy.breaker_state)
    if admitted is Admission.GRANT and pool.held_until is not None:
        return Admission.QUEUE, RefusalReason.POOL_NOT_READY
    return admitted, reason


def _goes(pool: Pool) -> bool:
    """Whether an operator lets an engine that registered itself finish what it has, in whatever state it is."""
    return not pool.wanted and pool.drain_until is not None


def credit_stability(turn: Turn) -> None:
    """Has to come before an event too: an end after the stable time is no failure of the run before it (RST-2)."""
    if not serving(turn.pool):
        return
    due = restart.stable_at(turn.pool.policy, turn.pool.settings)
    if due is not None and due <= turn.at.now:
        if turn.pool.policy.breaker_state is BreakerState.HALF_OPEN:
            turn.note(NoteName.BREAKER_CLOSED, by="trial")
        turn.set(policy=restart.became_stable(turn.pool.policy))


def waits(pool: Pool) -> bool:
    """Whether its next start waits for its time, or will once no process is left."""
    ends = pool.state is PoolState.STOPPING and pool.then in (Trigger.RETRY, Trigger.PARK)
    return ends or pool.state in _WAITING


def _resume(turn: Turn) -> None:
    pool = turn.pool
    if pool.state not in _WAITING or pool.closing or pool.resume_at is None or pool.resume_at > turn.at.now:
        return
    if pool.policy.breaker_state is BreakerState.OPEN:
        half_open(turn)
        start(turn, Trigger.RESUME, "the breaker's one trial")
    else:
        start(turn, Trigger.RESUME, "restarting after backoff")


def half_open(turn: Turn) -> None:
    turn.set(policy=restart.trial(turn.pool.policy))
    turn.note(NoteName.BREAKER_HALF_OPEN, consecutive_failures=turn.pool.policy.consecutive)


def _replace_outdated(turn: Turn) -> None:
    """A new generation, or one that came while no daemon ran, replaces the engine that serves (DRN-2)."""
    pool = turn.pool
    if pool.state is PoolState.READY and outdated(pool) and pool.reload is None and pool.wanted:
        begin_drain(turn, f"draining for generation {pool.generation}", pool.spec.drain_deadline, then=Trigger.RESUME)


def _end_unwanted(turn: Turn) -> None:
    """The daemon that was asked to end this engine died before it had: its successor goes on, by stop or by drain."""
    pool = turn.pool
    if pool.wanted or pool.engine is None:
        return
    drain = pool.deleting or pool.drain_until is not None
    if not drain and (pool.state is PoolState.READY or (pool.state is PoolState.STARTING and pool.engine.adopted)):
        stop(turn, pool.settings.stop_grace, "asked to stop before the daemon's start")
    elif drain and pool.state is PoolState.READY:
        seconds = pool.spec.drain_deadline if pool.drain_until is None else max(0.0, pool.drain_until - turn.at.now)
        begin_drain(turn, "asked to end before the daemon's start", seconds, then=Trigger.HALT)


def release_hold(turn: Turn) -> None:
    if turn.pool.held_until is not None and turn.pool.held_until <= turn.at.now:
        turn.set(held_until=None)


def begin_drain(turn: Turn, reason: str, seconds: float, then: Trigger) -> None:
    turn.go(Trigger.DRAIN, reason, drain_until=turn.at.now + seconds, then=then)
    turn.note(NoteName.DRAIN_STARTED, deadline_ms=int(seconds * 1000), active_leases=leased(turn.pool))


def expire_leases(turn: Turn) -> None:
    pool = turn.pool
    if not (pool.leases.live or pool.leases.waiters):
        return
    _, reason = admitted(pool)
    table, answers = leases.expire(pool.leases, turn.at.now, reason, pool.lease_settings)
    if table is not pool.leases:
        take_leases(turn, table)
    turn.do(*map(LeaseAnswered, answers))


def take_leases(turn: Turn, table: leases.LeaseTable) -> None:
    """Takes over a table in which leases may be over, and has those recorded."""
    ended = leases.ended_since(turn.pool.leases, table) if table.live is not turn.pool.leases.live else ()
    turn.set(leases=table)
    if ended:
        turn.do(RecordLeases(ended=ended))


def _finish_drain(turn: Turn) -> None:
    pool = turn.pool
    if pool.state is not PoolState.DRAINING or pool.recovering:  # leases may be out that it has not been told of yet
        return
    left = len(pool.leases.live)
    forced = pool.drain_until is not None and pool.drain_until <= turn.at.now
    if (left or pool.held_until is not None) and not forced:
        return
    if left and pool.reload is not None and pool.reload.phase is ReloadPhase.DRAINING:
        _abort_reload(turn, left)
        return
    outcome = "forced" if left else "complete"
    reason = f"drain deadline passed with {left} live leases" if left else "drained"
    turn.note(
        NoteName.DRAIN_FINISHED,
        outcome=outcome,
        active_leases=left,
        duration_ms=int((turn.at.now - pool.since) * 1000),
    )
    then = pool.then
    stop(turn, pool.settings.drain_grace if not left else pool.settings.stop_grace, reason)
    turn.set(then=then)


def _abort_reload(turn: Turn, left: int) -> None:
    """Whoever holds a lease on the old generation goes before the new one (DRN-2)."""
    reload = turn.pool.reload
    assert reload is not None
    text = f"reload to generation {reload.generation}: aborted, {left} leases were live at its drain deadline"
    turn.go(Trigger.UNDRAIN, text, drain_until=None, reload=None)
    turn.set(last_error=PoolError(Reason.RELOAD_ABORTED, text, turn.at.wall))
    turn.note(NoteName.RELOAD_FINISHED, outcome="aborted", reason=text, new_generation=reload.generation)


def _kill_late(turn: Turn) -> None:
    run = turn.pool.engine
    if run is not None and run.kill_at is not None and run.kill_at <= turn.at.now:
        turn.set_engine(kill_at=None)
        turn.do(KillTree(run.engine_id))


def tell_waiters(turn: Turn) -> None:
    pool = turn.pool
    if not pool.leases.waiters:
        return
    verdict, reason = admitted(pool)
    if verdict is Admission.REFUSE:
        message = f"pool {pool.pool_id} is {pool.state} ({pool.reason})"
        table, answers = leases.refuse_waiters(pool.leases, reason, message, retry_after(turn))
    elif verdict is Admission.GRANT:
        table, answers = leases.serve(pool.leases, grantor(turn), turn.at.now)
        granted = tuple(a.result for a in answers if isinstance(a.result, Lease))
        if granted:
            turn.do(RecordLeases(granted))
    else:
        return
    turn.set(leases=table)
    turn.do(*map(LeaseAnswered, answers))


def _revoke(turn: Turn) -> None:
    pool = turn.pool
    if pool.leases.live and not serving(pool) and not _may_still_serve(pool):
        turn.note(NoteName.LEASES_REVOKED, count=len(pool.leases.live))
        take_leases(turn, leases.revoke(pool.leases, pool.lease_settings))


def _may_still_serve(pool: Pool) -> bool:
    """An engine that was taken over keeps its leases until its first probe says better; so does one in doubt."""
    if pool.state is PoolState.STARTING:
        return pool.engine is not None and pool.engine.adopted
    return pool.state is PoolState.UNKNOWN


def _forget(turn: Turn) -> None:
    pool = turn.pool
    if pool.beside is not None or pool.reload is not None or pool.recovering:
        return
    if pool.deleting and not pool.forgotten and pool.state in (PoolState.STOPPED, PoolState.PENDING):
        discard_home(turn)
        turn.set(forgotten=True)
        turn.do(Forget())
