"""How a run of an engine ends: by our own doing, by its own, or because it is unfit; and where the pool goes then."""

from __future__ import annotations

from dataclasses import replace

from poolmgr.core import restart
from poolmgr.core.effects import CountDeath, CountRestart, KillTree, NoteName, Terminate
from poolmgr.core.lifecycle import Trigger
from poolmgr.core.memo import Judged
from poolmgr.core.messages import Blamed, Exited, Explained, Found, StartRefused
from poolmgr.core.starting import rest, start
from poolmgr.core.state import Home, Turn
from poolmgr.errors import Reason
from poolmgr.model.engine import CrashCause, ExitRecord
from poolmgr.model.pool import PoolError, PoolState, RestartMode

# What keeps an engine from starting and is the host's: no pool is charged, none parked for it.
_OF_DEVICES = (
    Reason.GPU_REQUIRED, Reason.DEVICE_UNAVAILABLE, Reason.INSUFFICIENT_MEMORY, Reason.TELEMETRY_STALLED
)  # fmt: skip
NOT_ITS_OWN = (Reason.HOST_FAULT, *_OF_DEVICES)


def refused(turn: Turn, fact: StartRefused) -> None:
    if turn.pool.state is PoolState.STOPPING:
        _settle_down(turn)
        return
    turn.note(NoteName.START_FAILED, reason=fact.reason, message=fact.message, permanent=fact.permanent)
    once = turn.pool.spec.restart is RestartMode.NEVER and fact.reason in _OF_DEVICES
    if fact.reason in NOT_ITS_OWN and not fact.permanent and not once:  # asked again in a while
        again = turn.at.now + turn.pool.settings.host_probe_interval
        error = turn.pool.last_error
        if error is None or error.reason != CrashCause.DEVICE_LOST:  # that is why the device takes no work now
            error = PoolError(fact.reason, fact.message, turn.at.wall)
        turn.set(then=Trigger.RETRY, resume_at=again, last_error=error, reason=f"{fact.reason}: {fact.message}")
        _settle_down(turn)
        return
    error = PoolError(fact.reason, fact.message, turn.at.wall)
    _judge(turn, error, permanent=fact.permanent)
    _settle_down(turn)


def try_again(turn: Turn) -> None:
    """What kept the engine from starting may be over: no more waiting for the next look."""
    reason, _, _ = turn.pool.reason.partition(":")
    if turn.pool.state is PoolState.BACKOFF and reason in _OF_DEVICES:
        turn.set(resume_at=turn.at.now)


def stop(turn: Turn, grace: float, reason: str) -> None:
    """Our own end of a pool: SIGTERM, then the kill after `grace` seconds. Never counted as a failure."""
    state = turn.pool.state
    _judged(turn)
    turn.set(policy=restart.ended_well(turn.pool.policy, turn.at.now, turn.pool.settings), drain_until=None)
    if state in (PoolState.BACKOFF, PoolState.PARKED):
        turn.go(Trigger.HALT, reason, resume_at=None)
        rest(turn)
        return
    turn.go(Trigger.STOP, reason, then=Trigger.HALT)
    _end_process(turn, grace)


def _judged(turn: Turn) -> None:
    """The end of this run is accounted for, whoever finds the engine dead later."""
    run = turn.pool.engine
    if run is not None:
        turn.set(judged=Judged(run.engine_id, run.pid, run.ticks))


def hurry(turn: Turn, grace: float | None) -> None:
    """Asked to stop once more: a shorter grace counts, a longer one does not."""
    run = turn.pool.engine
    if grace is not None and run is not None and run.kill_at is not None:
        turn.set_engine(kill_at=min(run.kill_at, turn.at.now + grace))


def _end_process(turn: Turn, grace: float) -> None:
    run = turn.pool.engine
    if run is None:
        return
    turn.set_engine(probe=replace(run.probe, due=None, sent=None))
    if run.main_alive and grace > 0:
        turn.set_engine(kill_at=turn.at.now + grace)
        turn.do(Terminate(run.engine_id))
    else:
        turn.do(KillTree(run.engine_id))


def cause_of(record: ExitRecord) -> CrashCause:
    if record.oom_killed:
        return CrashCause.HOST_OOM
    if record.signal is not None:
        return CrashCause.SIGNAL
    return CrashCause.EXIT_CODE if record.exit_code is not None else CrashCause.UNKNOWN


def _text_of(record: ExitRecord, where: str) -> str:
    if record.oom_killed:
        return f"killed by the host's out-of-memory killer {where}"
    if record.signal is not None:
        return f"ended by signal {record.signal} {where}"
    if record.exit_code is not None:
        return f"exited with code {record.exit_code} {where}"
    return f"ended {where}; nobody could tell how"


def exited(turn: Turn, fact: Exited) -> None:
    run = turn.pool.engine
    if run is None or run.engine_id != fact.engine_id or not run.main_alive:
        return
    state = turn.pool.state
    turn.set_engine(main_alive=False, kill_at=None, probe=replace(run.probe, due=None, sent=None))
    turn.do(KillTree(run.engine_id))
    if state is PoolState.STOPPING:
        return
    if run.ready_at is not None:
        turn.do(CountDeath())
    where = "before it was ready" if state is PoolState.STARTING else f"after {turn.at.now - run.started:.1f} s"
    diagnosis = fact.diagnosis
    if diagnosis is not None and diagnosis.permanent and state is not PoolState.STARTING:
        diagnosis = None  # what keeps an engine from starting is not what ended one that served
    error = PoolError(
        reason=diagnosis.reason if diagnosis else cause_of(fact.record),
        message=_text_of(fact.record, where) + (f": {diagnosis.message}" if diagnosis else ""),
        at=turn.at.wall,
        log_tail=fact.log_tail,
        exit=fact.record,
        uptime=turn.at.now - run.started,
        memory_bytes=run.usage.rss_bytes,
    )
    # A vLLM whose engine core has died ends with 0 as well: its log is what tells.
    graceful = fact.record.exit_code == 0 and fact.diagnosis is None and state is not PoolState.STARTING
    if graceful and turn.pool.spec.restart is not RestartMode.ALWAYS:
        _ended_by_itself(turn)
    else:
        fail(turn, error, grace=0.0, permanent=diagnosis is not None and diagnosis.permanent)


def explained(turn: Turn, fact: Explained) -> None:
    """An XID can be told after the end that it caused (LIVE-3). What was decided stays."""
    run, error = turn.pool.engine, turn.pool.last_error
    if run is None or run.engine_id != fact.engine_id or error is None or error.exit is None:
        return
    if run.main_alive or turn.pool.then not in (Trigger.RETRY, Trigger.PARK):  # we ended it
        return
    message = f"{error.message}: {fact.diagnosis.message}"
    turn.set(last_error=replace(error, reason=fact.diagnosis.reason, message=message))


def blamed(turn: Turn, fact: Blamed) -> None:
    """Time does not mend it: parked until its spec is edited, or somebody asks for another try."""
    pool = turn.pool
    if pool.generation != fact.generation or pool.last_error is None or pool.state is not PoolState.STOPPING:
        return
    if pool.then in (Trigger.RETRY, Trigger.PARK):
        error = replace(pool.last_error, message=f"{pool.last_error.message}; {fact.reason}")
        reason = f"{Reason.GENERATION_BLOCKED}: {fact.reason}; edit the spec, which makes a new one"
        turn.set(last_error=error, reason=reason, then=Trigger.PARK, resume_at=None)


def _ended_by_itself(turn: Turn) -> None:
    then = Trigger.RESUME if turn.pool.then is Trigger.RESUME else Trigger.HALT
    policy = restart.ended_well(turn.pool.policy, turn.at.now, turn.pool.settings)
    _judged(turn)
    if turn.pool.state is not PoolState.DRAINING:  # there it was about to be stopped anyway
        turn.set(wanted=then is Trigger.RESUME)
    turn.go(Trigger.FAIL, "the engine exited with code 0", then=then, policy=policy, drain_until=None)


def found(turn: Turn, fact: Found, home: Home) -> None:
    """It ended while no daemon ran: judged as if that were now, unless an earlier daemon has done so (PROC-6)."""
    turn.set(home=home)
    run = Judged(fact.engine_id, fact.pid, fact.ticks)
    if fact.exited is None or not turn.pool.wanted or turn.pool.judged == run or not fact.pid:
        return
    record, diagnosis = fact.exited.record, fact.exited.diagnosis
    if diagnosis is not None and diagnosis.permanent:
        diagnosis = None  # whether it had served by then is not known; the next start will tell
    turn.set(judged=run)
    if record.exit_code == 0 and diagnosis is None and turn.pool.spec.restart is not RestartMode.ALWAYS:
        turn.set(then=Trigger.HALT, wanted=False)
        return
    error = PoolError(
        reason=diagnosis.reason if diagnosis else cause_of(record),
        message=_text_of(record, "while no daemon ran") + (f": {diagnosis.message}" if diagnosis else ""),
        at=turn.at.wall,
        log_tail=fact.exited.log_tail,
        exit=record,
    )
    turn.note(NoteName.ENGINE_CRASHED, reason=error.reason, message=error.message, uptime_seconds=0.0)
    _judge(turn, error, permanent=False)


def fail(turn: Turn, error: PoolError, grace: float, permanent: bool = False) -> None:
    """The run is over or unfit: decide what comes next, then end what is left of it."""
    draining, then, main_alive = turn.pool.state is PoolState.DRAINING, turn.pool.then, _main_alive(turn)
    _judged(turn)
    turn.note(
        NoteName.ENGINE_CRASHED,
        reason=error.reason,
        message=error.message,
        uptime_seconds=round(error.uptime or 0.0, 3),
    )
    if draining or not turn.pool.wanted:  # it was about to be stopped anyway
        policy = restart.ended_well(turn.pool.policy, turn.at.now, turn.pool.settings)
        turn.set(last_error=error, then=then if draining else Trigger.HALT, policy=policy)
    else:
        _judge(turn, error, permanent)
    turn.go(Trigger.FAIL, f"{error.reason}: {error.message}", drain_until=None)
    if main_alive:
        _end_process(turn, grace)


def _main_alive(turn: Turn) -> bool:
    return turn.pool.engine is not None and turn.pool.engine.main_alive


def _judge(turn: Turn, error: PoolError, permanent: bool) -> None:
    """Sets where the pool goes once no process is left: BACKOFF, PARKED or STOPPED, and until when."""
    pool, at = turn.pool, turn.at
    turn.set(last_error=error)
    if pool.home and error.reason == Reason.PORT_TAKEN:
        turn.set(home=replace(pool.home, fresh_port=True))
    if permanent or pool.spec.restart is RestartMode.NEVER:
        turn.set(then=Trigger.PARK if permanent else Trigger.HALT, resume_at=None, wanted=permanent)
        turn.set(policy=restart.ended_well(pool.policy, at.now, pool.settings))
        return
    decision = restart.failed(
        pool.policy, error.reason, at.now, at.jitter, at.host_restarts, pool.settings,
        host_limit=pool.daemon_settings.restart_rate_limit,
    )  # fmt: skip
    turn.set(
        policy=decision.policy,
        resume_at=None if decision.parked else decision.resume_at,
        then=Trigger.PARK if decision.opened or decision.parked else Trigger.RETRY,
        restart_count=pool.restart_count + 1,
    )
    turn.do(CountRestart())
    _note_decision(turn, decision)


def _note_decision(turn: Turn, decision: restart.Decision) -> None:
    pool, s = turn.pool, turn.pool.settings
    of_host = decision.opened_by == "host_rate"
    evidence = {
        "restarts": decision.rate,
        "host_restarts": turn.at.host_restarts + 1,
        "window_seconds": s.restart_window,
        "limit": (pool.daemon_settings if of_host else s).restart_rate_limit,
    }
    if decision.opened_by in ("pool_rate", "host_rate"):
        turn.note(NoteName.RESTART_STORM, scope=decision.opened_by, **evidence)
    elif max(decision.rate, turn.at.host_restarts + 1) > s.restart_rate_warn:
        turn.note(NoteName.RESTART_RATE_HIGH, **evidence)
    if decision.flapping:
        turn.note(
            NoteName.FLAPPING, failures=decision.flapping, window_seconds=s.flapping_window, parked=decision.parked
        )
    if decision.oom_storm:
        turn.note(NoteName.OOM_STORM, ooms=len(decision.policy.ooms), window_seconds=s.restart_window)
    if decision.opened_by:
        turn.note(
            NoteName.BREAKER_OPENED,
            by=decision.opened_by,
            consecutive_failures=decision.policy.consecutive,
            open_ms=int((decision.resume_at - turn.at.now) * 1000),
        )
    else:
        turn.note(
            NoteName.BACKOFF_SCHEDULED,
            backoff_ms=int(decision.backoff * 1000),
            failure_count=decision.policy.failures,
            restart_count=pool.restart_count,
        )


def gone(turn: Turn) -> None:
    """No process of the run is left."""
    if turn.pool.engine is not None and turn.pool.engine.main_alive:
        # The tree cannot be empty while its root runs; the exit will come first.
        return
    turn.set(engine=None, held_until=None)  # whatever leases were out on it are void with it
    _settle_down(turn)


def _settle_down(turn: Turn) -> None:
    """Leaves STOPPING, or a start that never ran, for where the pool was to go."""
    pool = turn.pool
    trigger = Trigger.HALT if pool.deleting else pool.then
    if trigger is Trigger.RESUME:
        start(turn, Trigger.RESUME, f"starting generation {pool.generation}")
        return
    turn.go(trigger, pool.reason)
    if trigger is not Trigger.RETRY:
        turn.set(resume_at=pool.resume_at if trigger is Trigger.PARK else None)
        rest(turn)
