"""The pool: `step(pool, event, at) -> (pool, effects)`.

A step has two halves. The event is applied (commands here, facts about the engine in `core.engine`); then `settle`
brings about everything that follows from the state and the time: what is due is done, who waits is served, what
nobody may hold any longer is taken back. So no event needs to know what else it makes possible.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from poolmgr.core import engine, leases, restart
from poolmgr.core.ending import hurry, stop
from poolmgr.core.leases import Answer
from poolmgr.core.lifecycle import COMMANDS, Admission, Command, Trigger, Verdict
from poolmgr.core.messages import (
    Acquire,
    Adopted,
    ChangeSpec,
    Delete,
    Drain,
    Effect,
    Event,
    Exited,
    ForgetWaiter,
    Found,
    InDoubt,
    LeaseAnswered,
    LeaseEnded,
    Moment,
    NoteName,
    Preload,
    Probed,
    Release,
    Renew,
    ResetBreaker,
    Spawned,
    StartRefused,
    Stop,
    Tick,
    TreeEmpty,
    Undrain,
)
from poolmgr.core.settle import admitted, begin_drain, credit_stability, grantor, half_open, retry_after, settle
from poolmgr.core.starting import outdated, slot_limit, start
from poolmgr.core.state import Pool, Turn
from poolmgr.errors import ClientError, Reason
from poolmgr.model.lease import LeaseAsk, Refusal, RefusalReason
from poolmgr.model.pool import BreakerState, PoolSpec, PoolState
from poolmgr.model.settings import override


def step(pool: Pool, event: Event, at: Moment) -> tuple[Pool, Sequence[Effect]]:  # noqa: C901 - flat match
    """One decision. Raises ClientError for a command that the state refuses; nothing has changed then."""
    turn = Turn(pool, at)
    credit_stability(turn)
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
        case Stop(grace):
            _stop(turn, grace)
        case Delete(deadline):
            _delete(turn, deadline)
        case ResetBreaker():
            _reset(turn)
        case ChangeSpec(spec, generation):
            _change_spec(turn, spec, generation)
        case Spawned() | StartRefused() | Adopted() | InDoubt() | Found() | Probed() | Exited() | TreeEmpty():
            engine.observe(turn, event)
        case Tick():
            pass
    settle(turn)
    return turn.pool, turn.effects


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
        return
    policy = turn.pool.policy
    if policy.breaker_state is BreakerState.OPEN:  # a stop in between does not shorten its time (RST-2)
        if policy.open_until > turn.at.now:
            raise _breaker_open(turn)
        half_open(turn)
    start(turn, Trigger.START, "asked to start")


def _drain(turn: Turn, deadline: float | None) -> None:
    if _verdict(turn, Command.DRAIN) is Verdict.DONE:
        if turn.pool.state in (PoolState.DRAINING, PoolState.STOPPING):
            turn.set(then=Trigger.HALT)
        return
    if turn.pool.state is not PoolState.READY:
        stop(turn, turn.pool.settings.drain_grace, "drained: it held no lease")
        return
    seconds = turn.pool.spec.drain_deadline if deadline is None else deadline
    begin_drain(turn, "draining", seconds, then=Trigger.HALT)


def _undrain(turn: Turn) -> None:
    if _verdict(turn, Command.UNDRAIN) is Verdict.DONE:
        return
    if outdated(turn.pool):
        raise ClientError(Reason.POOL_STATE, f"pool {turn.pool.pool_id} drains for its new spec; that is not undone")
    turn.go(Trigger.UNDRAIN, "drain cancelled", drain_until=None)


def _stop(turn: Turn, grace: float | None) -> None:
    if _verdict(turn, Command.STOP) is Verdict.DONE:
        if turn.pool.state is PoolState.STOPPING:
            turn.set(then=Trigger.HALT)
            hurry(turn, grace)
        return
    stop(turn, turn.pool.settings.stop_grace if grace is None else grace, "asked to stop")


def _delete(turn: Turn, deadline: float | None) -> None:
    """Idempotent. Asked again once it is forgotten, it is forgotten again: the store may have failed the first time."""
    if turn.pool.deleting:
        turn.set(forgotten=False)
        return
    turn.set(deleting=True)
    _drain(turn, deadline)


def _reset(turn: Turn) -> None:
    turn.set(policy=restart.reset(turn.pool.policy))
    turn.note(NoteName.BREAKER_CLOSED, by="operator")
    if turn.pool.state is PoolState.PARKED:
        start(turn, Trigger.RESUME, "breaker reset by an operator")
    elif turn.pool.state is PoolState.STOPPING and turn.pool.then is Trigger.PARK:
        turn.set(then=Trigger.RESUME)


def engine_arguments(spec: PoolSpec) -> PoolSpec:
    """The spec less everything that a running engine does not notice (DRN-2)."""
    blank = PoolSpec(engine=spec.engine)
    return replace(
        spec,
        slots=blank.slots,
        readiness=blank.readiness,
        liveness=blank.liveness,
        restart=blank.restart,
        supervision=blank.supervision,
        drain_deadline=blank.drain_deadline,
        preload=blank.preload,
        priority=blank.priority,
        labels=blank.labels,
    )


def needs_restart(pool: Pool, spec: PoolSpec) -> bool:
    """Whether what was launched cannot serve `spec`. Fewer slots are a limit; more than it was given are not."""
    grown = pool.home is not None and spec.slots > pool.home.slots
    return grown or engine_arguments(pool.spec) != engine_arguments(spec)


def _change_spec(turn: Turn, spec: PoolSpec, generation: int) -> None:
    """Takes over a new generation. One that the engine notices starts it anew, after a drain if it serves."""
    pool, home = turn.pool, turn.pool.home
    affected = needs_restart(pool, spec)
    if home and not affected and not outdated(pool):
        home = replace(home, generation=generation)
    turn.set(
        spec=spec,
        generation=generation,
        settings=override(pool.daemon_settings, spec.supervision),
        home=home,
    )
    turn.set(leases=replace(pool.leases, slots=slot_limit(turn.pool)))
    if affected or (pool.state is PoolState.PARKED and _may_start_better(pool.spec, spec)):
        turn.set(policy=restart.new_generation(pool.policy))
        _restart_for(turn, f"generation {generation}")


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
    if before is not None:
        turn.do(LeaseAnswered(Answer(ask.lease_id, before)))
        return
    verdict, reason = admitted(pool)
    if verdict is Admission.GRANT and pool.leases.free:
        table, lease = leases.grant(pool.leases, ask, grantor(turn), now)
        turn.set(leases=table)
        turn.do(LeaseAnswered(Answer(ask.lease_id, lease)))
    elif verdict is not Admission.REFUSE and ask.wait > 0:
        table, answers = leases.enqueue(pool.leases, ask, now, pool.lease_settings)
        turn.set(leases=table)
        turn.do(*map(LeaseAnswered, answers))
    else:
        refusal = Refusal(reason, _why_no_slot(pool, reason), retry_after(turn))
        turn.do(LeaseAnswered(Answer(ask.lease_id, refusal)))


def _why_no_slot(pool: Pool, reason: RefusalReason) -> str:
    if reason is RefusalReason.POOL_FULL:
        return f"all {pool.leases.slots} slots of pool {pool.pool_id} are leased"
    return f"pool {pool.pool_id} is {pool.state} ({pool.reason})"


def _renew(turn: Turn, lease_id: str, token: str) -> None:
    table, outcome, expires = leases.renew(turn.pool.leases, lease_id, token, turn.at.now)
    turn.set(leases=table)
    turn.do(LeaseEnded(outcome, expires))


def _release(turn: Turn, lease_id: str, token: str) -> None:
    table, outcome = leases.release(turn.pool.leases, lease_id, token, turn.at.now, turn.pool.lease_settings)
    turn.set(leases=table)
    turn.do(LeaseEnded(outcome))
