"""The pool: `step(pool, event, at) -> (pool, effects)`.

A step has two halves. The event is applied (commands here, facts about the engine in `core.engine`); then `settle`
brings about everything that follows from the state and the time: what is due is done, who waits is served, what
nobody may hold any longer is taken back. So no event needs to know what else it makes possible.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from poolmgr.core import engine, leases, recovering, registered, reload, restart
from poolmgr.core.effects import Effect, LeaseAnswered, LeaseEnded, NoteName, RecordLeases
from poolmgr.core.ending import hurry, stop
from poolmgr.core.leases import Answer
from poolmgr.core.lifecycle import COMMANDS, Admission, Command, Trigger, Verdict
from poolmgr.core.memo import MAX_GENERATIONS
from poolmgr.core.messages import (
    Acquire,
    AdoptedBeside,
    ChangeSpec,
    Committed,
    Delete,
    Drain,
    Evacuate,
    Event,
    Exited,
    Explained,
    ForgetWaiter,
    Heartbeat,
    HostFault,
    LeasesKept,
    Moment,
    Preload,
    Probed,
    Queued,
    Recovered,
    Register,
    Release,
    Renew,
    ResetBreaker,
    Spawned,
    StartRefused,
    Stop,
    Tick,
    TreeEmpty,
    Undrain,
    Verified,
    WorkAnswered,
)
from poolmgr.core.settle import admitted, begin_drain, credit_stability, grantor, half_open, retry_after, settle, waits
from poolmgr.core.starting import needs_restart, outdated, slot_limit, start
from poolmgr.core.state import Pool, ReloadPhase, Turn, owner, parked_for_good
from poolmgr.errors import ClientError, Reason
from poolmgr.model.lease import EndedLease, LeaseAsk, LeaseOutcome, Refusal, RefusalReason
from poolmgr.model.pool import BreakerState, PoolSpec, PoolState
from poolmgr.model.settings import override


def step(pool: Pool, event: Event, at: Moment) -> tuple[Pool, Sequence[Effect]]:
    """One decision. Raises ClientError for a command that the state refuses; nothing has changed then."""
    turn = Turn(pool, at)
    if pool.registered is not None:
        if not registered.apply(turn, _verdict, event):
            _apply(turn, event)
        registered.settle(turn)
        return turn.pool, turn.effects
    credit_stability(turn)
    if pool.reload is None or not _beside(turn, event):
        _apply(turn, event)
    settle(turn)
    while turn.pool.reload is not None:  # each round takes the reload a phase further, or is the last
        before = turn.pool.reload
        reload.advance(turn, step)
        _count_elsewhere(turn)
        settle(turn)
        if turn.pool.reload is before:
            break
    return turn.pool, turn.effects


def _apply(turn: Turn, event: Event) -> None:  # noqa: C901 - flat match
    match event:
        case Acquire(ask):
            _acquire(turn, ask)
        case Renew(lease_id, token):
            _renew(turn, lease_id, token)
        case Release(lease_id, token):
            _release(turn, lease_id, token)
        case ForgetWaiter(lease_id):
            turn.set(leases=leases.forget_waiter(turn.pool.leases, lease_id))
        case Preload():
            _preload(turn)
        case Drain(deadline):
            _drain(turn, deadline)
        case Undrain():
            _undrain(turn)
        case Stop(grace, for_now):
            _close(turn) if for_now else _stop(turn, grace)
        case Delete(deadline):
            _delete(turn, deadline)
        case ResetBreaker():
            _reset(turn)
        case ChangeSpec():
            _change_spec(turn, event)
        case AdoptedBeside():
            reload.adopted_beside(turn, step, event)
        case LeasesKept():
            recovering.take_leases(turn, step, event)
        case Recovered():
            recovering.go_on(turn, step)
        case Verified():
            reload.verified(turn, step, event)
        case Committed():
            reload.committed(turn, step, event)
        case HostFault():
            _host_fault(turn)
        case Evacuate(reason):
            reload.evacuate(turn, reason)
        case Tick() | Register() | Heartbeat():
            pass
        case _:
            engine.observe(turn, event)


def _beside(turn: Turn, event: Event) -> bool:
    """Hands what concerns the other engine of a reload to its pool; whether it did."""
    pool, beside = turn.pool, turn.pool.beside
    if beside is None:
        return False
    match event:
        case Queued() | Spawned() | StartRefused():
            theirs = event.generation == beside.generation
        case Probed() | WorkAnswered() | Exited() | Explained() | TreeEmpty():
            theirs = owner(pool, event.engine_id) is beside
        case Renew() | Release():
            theirs = leases.knows(beside.leases, event.lease_id)
        case _:
            theirs = False
    if theirs:
        reload.observe(turn, step, event)
        _count_elsewhere(turn)
    return theirs


def _count_elsewhere(turn: Turn) -> None:
    """Slots are counted over both engines (LEASE-1)."""
    count = len(turn.pool.beside.leases.live) if turn.pool.beside else 0
    if count != turn.pool.leases.elsewhere:
        turn.set(leases=turn.pool.leases._replace(elsewhere=count))


def _verdict(turn: Turn, command: Command) -> Verdict:
    """Raises ClientError where the table refuses, or where a deletion leaves no choice any more."""
    pool = turn.pool
    if pool.deleting and command in (Command.PRELOAD, Command.UNDRAIN):
        raise ClientError(Reason.POOL_DELETING, f"pool {pool.pool_id} is being deleted")
    verdict = COMMANDS[command][pool.state]
    if verdict is Verdict.REFUSE:
        if pool.state is PoolState.PARKED and pool.policy.breaker_state is BreakerState.OPEN:
            raise _breaker_open(turn)
        raise ClientError(
            Reason.POOL_STATE,
            f"cannot {command} pool {pool.pool_id}: it is {pool.state} ({pool.reason})",
            numbers={"pool_id": pool.pool_id, "state": pool.state},
        )
    return verdict


def _breaker_open(turn: Turn) -> ClientError:
    pool, left = turn.pool, max(0.0, turn.pool.policy.open_until - turn.at.now)
    return ClientError(
        Reason.BREAKER_OPEN,
        f"the breaker of pool {pool.pool_id} is open after {pool.policy.consecutive} failures in a row; "
        f"it lets one trial through in {left:.0f} s, or ResetBreaker closes it now",
        numbers={"consecutive_failures": pool.policy.consecutive, "seconds_left": round(left, 3)},
        retry_after=left,
    )


def _preload(turn: Turn) -> None:
    if _verdict(turn, Command.PRELOAD) is Verdict.DONE:
        turn.set(wanted=True)
        return
    if _before_commit(turn.pool):  # the engine of the next generation is on its way, or that of the old one back
        turn.set(wanted=True)
        return
    policy = turn.pool.policy
    if policy.breaker_state is BreakerState.OPEN:  # a stop in between does not shorten its time (RST-2)
        if policy.open_until > turn.at.now:
            raise _breaker_open(turn)
        half_open(turn)
    turn.set(wanted=True)
    start(turn, Trigger.START, "asked to start")


def _before_commit(pool: Pool) -> bool:
    return pool.reload is not None and pool.reload.phase is not ReloadPhase.RETIRING


def _unwant(turn: Turn, grace: float | None) -> None:
    """An operator wants no engine: a reload that has not been committed ends with it."""
    turn.set(wanted=False)
    reload.cancel(turn, step, "the pool was asked to end", grace)


def _drain(turn: Turn, deadline: float | None) -> None:
    verdict = _verdict(turn, Command.DRAIN)
    seconds = turn.pool.spec.drain_deadline if deadline is None else deadline
    if turn.pool.wanted and turn.pool.state is PoolState.DRAINING:
        turn.set(drain_until=turn.at.now + seconds)  # no longer the daemon's own drain, nor its deadline
    _unwant(turn, None)
    if verdict is Verdict.DONE:
        if turn.pool.state in (PoolState.DRAINING, PoolState.STOPPING):
            turn.set(then=Trigger.HALT)
        return
    if turn.pool.state is not PoolState.READY:
        stop(turn, turn.pool.settings.drain_grace, "drained: it held no lease")
        return
    begin_drain(turn, "draining", seconds, then=Trigger.HALT)


def _undrain(turn: Turn) -> None:
    if _verdict(turn, Command.UNDRAIN) is Verdict.DONE:
        return
    if outdated(turn.pool):
        raise ClientError(Reason.POOL_STATE, f"pool {turn.pool.pool_id} drains for its new spec; that is not undone")
    if _before_commit(turn.pool):
        reload.cancel(turn, step, "the drain was cancelled", None)
    turn.go(Trigger.UNDRAIN, "drain cancelled", drain_until=None, wanted=True)


def _stop(turn: Turn, grace: float | None) -> None:
    verdict = _verdict(turn, Command.STOP)
    _unwant(turn, turn.pool.settings.stop_grace if grace is None else grace)
    if verdict is Verdict.DONE:
        if turn.pool.state is PoolState.STOPPING:
            turn.set(then=Trigger.HALT)
            hurry(turn, grace)
        return
    stop(turn, turn.pool.settings.stop_grace if grace is None else grace, "asked to stop")


def _close(turn: Turn) -> None:
    """The daemon ends with its engines. What waits for its time, waits on under the next one (RST-8)."""
    pool = turn.pool
    if waits(pool):
        reload.cancel(turn, step, "the daemon ends", None)
    else:
        _stop(turn, None)
    turn.set(wanted=pool.wanted, closing=True)


def _delete(turn: Turn, deadline: float | None) -> None:
    """Idempotent. Asked again once it is forgotten, it is forgotten again: the store may have failed the first time."""
    if turn.pool.deleting:
        turn.set(forgotten=False)
        return
    turn.set(deleting=True)
    _drain(turn, deadline)


def _reset(turn: Turn) -> None:
    turn.set(policy=restart.reset(turn.pool.policy), rolled_back=())
    turn.note(NoteName.BREAKER_CLOSED, by="operator")
    if turn.pool.state is PoolState.PARKED:
        start(turn, Trigger.RESUME, "breaker reset by an operator")
    elif turn.pool.state is PoolState.STOPPING and turn.pool.then is Trigger.PARK:
        turn.set(then=Trigger.RESUME)


def _change_spec(turn: Turn, change: ChangeSpec) -> None:
    """Takes over another generation: at once, or by a reload where an engine serves that cannot serve it."""
    pool = turn.pool
    if reload.can_come_back(pool, change) and not pool.deleting:
        reload.come_back(turn, step, change)
        return
    affected = change.anew or needs_restart(pool, change.spec)
    _may_change(turn, change, affected)
    turn.set(newest=max(pool.newest, change.generation))
    if affected and pool.state is PoolState.READY and not outdated(pool):
        reload.begin(turn, change)
    else:
        _take_spec(turn, change, affected)


def _may_change(turn: Turn, change: ChangeSpec, affected: bool) -> None:
    pool = turn.pool
    if pool.deleting:
        raise ClientError(Reason.POOL_DELETING, f"pool {pool.pool_id} is being deleted")
    if pool.reload is not None:
        raise ClientError(
            Reason.RELOAD_IN_PROGRESS,
            f"pool {pool.pool_id} is on its way to generation {pool.reload.generation} ({pool.reload.phase}); "
            "wait for its end, or stop the pool",
            numbers={"generation": pool.reload.generation, "phase": pool.reload.phase},
            retry_after=1.0,
        )
    if affected and reload.blocked(pool, change.spec):
        raise ClientError(
            Reason.GENERATION_BLOCKED,
            f"this spec was rolled back {reload.ROLLBACKS_ALLOWED} times; change what the engine is started with, or "
            "ResetBreaker to try it again",
            numbers={"generation": change.generation, "rolled_back": reload.ROLLBACKS_ALLOWED},
        )


def _take_spec(turn: Turn, change: ChangeSpec, affected: bool) -> None:
    pool, home, spec = turn.pool, turn.pool.home, change.spec
    if home and not affected and not outdated(pool):
        home = replace(home, generation=change.generation)
    turn.set(
        spec=spec,
        generation=change.generation,
        settings=override(pool.daemon_settings, spec.supervision),
        home=home,
        good=(*(g for g in pool.good if g != change.generation), change.generation)[-MAX_GENERATIONS:],
    )
    turn.set(leases=pool.leases._replace(slots=slot_limit(turn.pool)))
    if affected or (pool.state is PoolState.PARKED and _may_start_better(pool.spec, spec)):
        turn.set(policy=restart.new_generation(pool.policy))
        if pool.wanted:
            _restart_for(turn, f"generation {change.generation}")


def _may_start_better(old: PoolSpec, new: PoolSpec) -> bool:
    """Whether a parked pool has a reason to try again with the same engine: a longer timeout, say (RST-7)."""
    return (old.readiness, old.supervision) != (new.readiness, new.supervision)


def _restart_for(turn: Turn, why: str) -> None:
    match turn.pool.state:
        case PoolState.BACKOFF | PoolState.PARKED:
            start(turn, Trigger.RESUME, why)
        case PoolState.PROVISIONING | PoolState.STARTING:
            stop(turn, turn.pool.settings.stop_grace, f"restarting for {why}")
            turn.set(then=Trigger.RESUME)
        case PoolState.STOPPING if turn.pool.then is not Trigger.HALT:
            turn.set(then=Trigger.RESUME)


def _acquire(turn: Turn, ask: LeaseAsk) -> None:
    pool, now = turn.pool, turn.at.now
    before = leases.find(pool.leases, ask, now)
    if before is None and pool.beside is not None:  # the first try of it may be on the engine that retires
        before = leases.find(pool.beside.leases, ask, now)
    if before is not None:
        turn.do(LeaseAnswered(Answer(ask.lease_id, before)))
        return
    verdict, reason = admitted(pool)
    if verdict is Admission.GRANT and pool.leases.free:
        table, lease = leases.grant(pool.leases, ask, grantor(turn), now)
        turn.set(leases=table)
        turn.do(RecordLeases((lease,)), LeaseAnswered(Answer(ask.lease_id, lease)))
    elif verdict is not Admission.REFUSE and ask.wait > 0:
        table, answers = leases.enqueue(pool.leases, ask, now, pool.lease_settings)
        turn.set(leases=table)
        turn.do(*map(LeaseAnswered, answers))
    else:
        refusal = Refusal(reason, _why_no_slot(pool, reason), retry_after(turn))
        turn.do(LeaseAnswered(Answer(ask.lease_id, refusal)))


def _why_no_slot(pool: Pool, reason: RefusalReason) -> str:
    if pool.held_until is not None:
        return f"the record of pool {pool.pool_id}'s leases was lost; slots are given once none of them can be live"
    if reason is RefusalReason.POOL_FULL and pool.leases.slots < pool.spec.slots and pool.registered is not None:
        return f"the engine of pool {pool.pool_id} says that it has no free slot"
    if reason is RefusalReason.POOL_FULL:
        return f"all {pool.leases.slots} slots of pool {pool.pool_id} are leased"
    return f"pool {pool.pool_id} is {pool.state} ({pool.reason})"


def _renew(turn: Turn, lease_id: str, token: str) -> None:
    table, outcome, expires = leases.renew(turn.pool.leases, lease_id, token, turn.at.now)
    turn.set(leases=table)
    turn.do(LeaseEnded(outcome, expires))


def _release(turn: Turn, lease_id: str, token: str) -> None:
    before = turn.pool.leases
    table, outcome = leases.release(before, lease_id, token, turn.at.now, turn.pool.lease_settings)
    if table is not before:
        turn.set(leases=table)
        remembered = LeaseOutcome.EXPIRED if outcome is LeaseOutcome.EXPIRED else LeaseOutcome.ALREADY_RELEASED
        turn.do(RecordLeases(ended=(EndedLease(lease_id, token, remembered),)))
    turn.do(LeaseEnded(outcome))


def _host_fault(turn: Turn) -> None:
    """What was charged to this pool was the host's (RST-6): not counted, but not started at once either."""
    cannot_start = parked_for_good(turn.pool)
    policy = restart.refunded(turn.pool.policy, turn.at.now, turn.pool.settings)
    turn.set(policy=policy, host_doubt=True)
    turn.note(NoteName.HOST_FAULT, window_seconds=turn.pool.settings.host_fault_window)
    if policy.breaker_state is BreakerState.OPEN or cannot_start:
        return
    if waits(turn.pool):
        turn.set(resume_at=turn.at.now + turn.pool.settings.backoff_initial, then=Trigger.RETRY)
