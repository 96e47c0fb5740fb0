"""An engine that registers itself: leased, probed and observed like ours, never started or ended by us (ENG-1 to 3).

Its pool goes through the one table of `core.lifecycle`, by triggers of its own:

- STARTING: it has told of itself, and has not answered a probe since, or says that it is not ready.
- READY: it answers probes, and heartbeats come.
- DRAINING: an operator wants it, then it ends in STOPPED; or the engine does, until it says otherwise.
- LOST: it is silent, or its probes failed. Nobody knows whether it lives, so its leases stay; the next heartbeat is
  enough to bring it back to STARTING (ENG-3).
- STOPPED: an operator has ended it here. It has no leases, and is told to be gone; whether it ends is its own business.

No effect that comes out of here does anything to a process: the one thing that is asked for is a probe.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from poolmgr.core import leases
from poolmgr.core.effects import Forget, NoteName
from poolmgr.core.lifecycle import Command, Trigger, Verdict
from poolmgr.core.memo import MAX_GENERATIONS, RegisteredEngine
from poolmgr.core.messages import (
    Acquire,
    ChangeSpec,
    Delete,
    Drain,
    Event,
    ForgetWaiter,
    Heartbeat,
    LeasesKept,
    Preload,
    Probed,
    Recovered,
    Register,
    Release,
    Renew,
    Stop,
    Tick,
    Undrain,
)
from poolmgr.core.registered_health import (
    NOT_READY,
    heed_progress,
    lose_silent,
    probe_now,
    probed,
    run_of,
    send_probe,
)
from poolmgr.core.registration import not_ours, said_or
from poolmgr.core.settle import expire_leases, release_hold, take_leases, tell_waiters
from poolmgr.core.state import ProbeTimer, RegisteredRun, Turn, heartbeat_ttl, may_serve
from poolmgr.errors import ClientError, Reason
from poolmgr.model.pool import PoolState
from poolmgr.model.registration import Beat

Verdicts = Callable[[Turn, Command], Verdict]  # raises ClientError where a command is refused

ITS_OWN_DRAIN = "the engine says that it drains"

S = PoolState


def apply(turn: Turn, verdict: Verdicts, event: Event) -> bool:  # noqa: C901 - flat match
    """Whether the event is dealt with; what concerns leases is not, that is as with any pool.

    Raises ClientError for a command that is refused.
    """
    match event:
        case Acquire() | Renew() | Release() | ForgetWaiter() | LeasesKept() | Tick():
            return False
        case Heartbeat(beat):
            _beat(turn, beat)
        case Register():
            _register(turn, event)
        case Probed():
            probed(turn, event)
        case Preload():
            _preload(turn, verdict)
        case Drain(deadline):
            _drain(turn, verdict, deadline)
        case Undrain():
            _undrain(turn, verdict)
        case Stop():
            _stop(turn, verdict)
        case Delete(deadline):
            _delete(turn, verdict, deadline)
        case ChangeSpec():
            raise not_ours(turn.pool)
        case Recovered():
            _recovered(turn)
    return True  # the rest is about processes of ours and their restarts


def _register(turn: Turn, fact: Register) -> None:
    pool, run = turn.pool, run_of(turn)
    if pool.deleting:
        raise ClientError(Reason.POOL_DELETING, f"pool {pool.pool_id} is being deleted")
    before = RegisteredEngine() if fact.anew else run.engine
    engine = replace(fact.engine, ready=before.ready, draining=before.draining)
    moved = (run.engine.endpoint, run.engine.pid, pool.spec.engine) != (engine.endpoint, engine.pid, fact.spec.engine)
    known = RegisteredRun(engine) if moved else replace(run, engine=engine)
    resized = fact.slots_free is not None or fact.spec.slots != pool.spec.slots or moved
    turn.set(
        registered=replace(known, heard=turn.at.now, slots_free=said_or(fact.slots_free, known.slots_free)),
        spec=fact.spec,
        generation=fact.generation,
        newest=max(pool.newest, fact.generation),
        good=(*(g for g in pool.good if g != fact.generation), fact.generation)[-MAX_GENERATIONS:],
    )
    if resized:
        _limit_slots(turn)
    if moved and pool.state in (S.READY, S.DRAINING):
        turn.go(Trigger.UNREADY, "it registered anew; not probed since")
    if moved:
        probe_now(turn)
    _heard(turn)


def _beat(turn: Turn, beat: Beat) -> None:
    run = run_of(turn)
    became_ready = beat.ready is True and not run.engine.ready
    turn.set(
        registered=replace(
            run,
            engine=replace(
                run.engine,
                ready=said_or(beat.ready, run.engine.ready),
                draining=said_or(beat.draining, run.engine.draining),
            ),
            heard=turn.at.now,
            last_heartbeat=turn.at.now,
            slots_free=said_or(beat.slots_free, run.slots_free),
            in_flight=said_or(beat.in_flight, run.in_flight),
            progress_counter=said_or(beat.progress_counter, run.progress_counter),
        )
    )
    if beat.slots_free is not None:
        _limit_slots(turn)
    if became_ready:
        probe_now(turn)
    _heard(turn)
    heed_progress(turn, beat)


def _heard(turn: Turn) -> None:
    """An engine that was lost is back, to be probed first (ENG-3)."""
    if turn.pool.state in (S.PENDING, S.LOST):
        turn.go(Trigger.HEARD, "it told of itself; not probed since")
        probe_now(turn)


def _limit_slots(turn: Turn) -> None:
    """What the engine says is free may be leased on top of what is leased now, until it says something else.

    So a slot that is given back is free at once, and what others use of it is not granted twice.
    """
    pool, said = turn.pool, run_of(turn).slots_free
    total = pool.spec.slots
    free = total if said is None else max(0, min(said, total))
    turn.set(leases=pool.leases._replace(slots=min(total, len(pool.leases.live) + free)))


# Commands.


def _preload(turn: Turn, verdict: Verdicts) -> None:
    acts = verdict(turn, Command.PRELOAD) is Verdict.ACT
    turn.set(wanted=True, drain_until=None)
    if not acts:
        return
    heard = run_of(turn).heard
    turn.go(Trigger.LOSE, "asked to serve; no heartbeat since")
    if heard is not None and turn.at.now < heard + heartbeat_ttl(turn.pool):
        _heard(turn)


def _drain(turn: Turn, verdict: Verdicts, deadline: float | None) -> None:
    verdict(turn, Command.DRAIN)
    if not turn.pool.wanted:
        return
    seconds = turn.pool.spec.drain_deadline if deadline is None else deadline
    turn.set(wanted=False, drain_until=turn.at.now + seconds)
    if turn.pool.state is S.DRAINING:  # of itself, so far
        turn.set(reason="draining")
        _note_drain(turn)


def _undrain(turn: Turn, verdict: Verdicts) -> None:
    """Cancels the operator's drain; one of the engine's own goes on."""
    verdict(turn, Command.UNDRAIN)
    turn.set(wanted=True, drain_until=None)
    if turn.pool.state is S.DRAINING and run_of(turn).engine.draining:
        turn.set(reason=ITS_OWN_DRAIN)


def _stop(turn: Turn, verdict: Verdicts) -> None:
    if verdict(turn, Command.STOP) is Verdict.ACT:
        _halt(turn, "asked to stop")


def _delete(turn: Turn, verdict: Verdicts, deadline: float | None) -> None:
    """Idempotent. Asked again, a shorter deadline counts; and what the store failed to forget is forgotten again."""
    turn.set(deleting=True, forgotten=False)
    _drain(turn, verdict, deadline)
    until = turn.pool.drain_until
    if until is not None and deadline is not None:
        turn.set(drain_until=min(until, turn.at.now + deadline))


def _recovered(turn: Turn) -> None:
    pool = turn.pool
    if pool.state is not S.PENDING:
        return
    if may_serve(pool):
        turn.go(Trigger.LOSE, "no heartbeat since the daemon's start")
    else:
        turn.go(Trigger.HALT, "stopped before the daemon's start")


# What follows from the state and the time.


def settle(turn: Turn) -> None:
    """In this order: a state must have left before its waiters and leases are dealt with."""
    lose_silent(turn)
    send_probe(turn)
    _follow(turn)
    release_hold(turn)
    expire_leases(turn)
    _end(turn)
    tell_waiters(turn)
    _forget(turn)


def _follow(turn: Turn) -> None:
    """What the engine says of itself, and what an operator wants of it."""
    pool, engine = turn.pool, run_of(turn).engine
    if pool.state is S.DRAINING and pool.wanted and not engine.draining:
        turn.go(Trigger.UNDRAIN, "the drain is over")
    if turn.pool.state is S.READY and not engine.ready:
        turn.go(Trigger.UNREADY, NOT_READY, registered=replace(run_of(turn), ready_at=None))
    if turn.pool.state is S.READY and not pool.wanted:
        turn.go(Trigger.DRAIN, "draining")
        _note_drain(turn)
    elif turn.pool.state is S.READY and engine.draining:
        turn.go(Trigger.DRAIN, ITS_OWN_DRAIN)


def _note_drain(turn: Turn) -> None:
    until = turn.pool.drain_until
    left = 0.0 if until is None else max(0.0, until - turn.at.now)
    turn.note(NoteName.DRAIN_STARTED, deadline_ms=int(left * 1000), active_leases=len(turn.pool.leases.live))


def _end(turn: Turn) -> None:
    """An operator's drain is over: no lease is left, or its time has come (DRN-1)."""
    pool = turn.pool
    until, left = pool.drain_until, len(pool.leases.live)
    if pool.wanted or until is None or pool.state in (S.PENDING, S.STOPPED):
        return
    if (left or pool.held_until is not None) and turn.at.now < until:
        return
    turn.note(NoteName.DRAIN_FINISHED, outcome="forced" if left else "complete", active_leases=left)
    _halt(turn, f"drain deadline passed with {left} live leases" if left else "drained")


def _halt(turn: Turn, reason: str) -> None:
    """The engine may go on; it is nobody's here any more."""
    run = replace(run_of(turn), probe=ProbeTimer(), ready_at=None)
    turn.set(wanted=False, drain_until=None, registered=run)
    turn.go(Trigger.STOP, reason)
    turn.go(Trigger.HALT, reason)
    if turn.pool.leases.live:
        turn.note(NoteName.LEASES_REVOKED, count=len(turn.pool.leases.live))
        take_leases(turn, leases.revoke(turn.pool.leases, turn.pool.lease_settings))


def _forget(turn: Turn) -> None:
    pool = turn.pool
    if pool.deleting and not pool.forgotten and pool.state is S.STOPPED:
        turn.set(forgotten=True)
        turn.do(Forget())
