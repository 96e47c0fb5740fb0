"""The engine of a pool: what the outside reports about it, and the watch over its start and its health."""

from __future__ import annotations

from dataclasses import replace

from poolmgr.core import hang, restart
from poolmgr.core.effects import NoteName, RunProbe
from poolmgr.core.ending import blamed, exited, explained, fail, found, gone, refused, try_again
from poolmgr.core.lifecycle import Trigger
from poolmgr.core.messages import (
    Adopted,
    Blamed,
    Cleared,
    DevicesChanged,
    Exited,
    Explained,
    Found,
    InDoubt,
    Probed,
    Queued,
    Spawned,
    StartRefused,
    TreeEmpty,
    WorkAnswered,
)
from poolmgr.core.starting import queued, slot_limit, spawned
from poolmgr.core.state import EngineRun, Home, Pool, ProbeTimer, Turn
from poolmgr.errors import Reason
from poolmgr.model.engine import CrashCause, ProbeOutcome, Usage
from poolmgr.model.pool import PoolError, PoolState

# Growth between two probes that counts as progress of a load (PRE-3). An engine may write a line to its log for
# each probe, and answer it from a small read; both would make a dead load look alive.
PROGRESS_LOG_BYTES = 512
PROGRESS_READ_BYTES = 64 * 1024
PROGRESS_RSS_BYTES = 256 * 1024

Fact = (
    Queued
    | Spawned
    | StartRefused
    | Adopted
    | InDoubt
    | Found
    | Cleared
    | Probed
    | WorkAnswered
    | Exited
    | TreeEmpty
    | DevicesChanged
    | Explained
    | Blamed
)


def observe(turn: Turn, fact: Fact) -> None:  # noqa: C901 - flat match
    """Applies what happened. A fact about an engine or a probe that is not the current one changes nothing."""
    match fact:
        case Queued(_, position, reason):
            queued(turn, position, reason)
        case Spawned() | Adopted():
            spawned(turn, fact)
        case StartRefused():
            refused(turn, fact)
        case DevicesChanged():
            try_again(turn)
        case Explained():
            explained(turn, fact)
        case Blamed():
            blamed(turn, fact)
        case InDoubt(engine_id, detail):
            _doubted(turn, engine_id, detail)
        case Cleared():
            _cleared(turn)
        case Found():
            found(turn, fact, _home(turn, fact.engine_id))
        case Probed():
            _probed(turn, fact)
        case WorkAnswered():
            hang.answered(turn, fact)
        case Exited():
            exited(turn, fact)
        case TreeEmpty(engine_id):
            if turn.pool.engine is not None and turn.pool.engine.engine_id == engine_id:
                gone(turn)


def _doubted(turn: Turn, engine_id: str, detail: str) -> None:
    turn.go(Trigger.DOUBTED, detail, home=_home(turn, engine_id))
    turn.note(NoteName.POOL_IN_DOUBT, detail=detail)


def _cleared(turn: Turn) -> None:
    """An operator has ended what was in doubt."""
    if turn.pool.state is PoolState.UNKNOWN:
        turn.go(Trigger.HALT, "nothing is left of what was in doubt", wanted=False)


def _home(turn: Turn, engine_id: str) -> Home:
    return Home(engine_id, turn.pool.generation, turn.pool.spec.slots)


def start_deadline(pool: Pool) -> float | None:
    """When a start counts as failed: the start timeout, moved by progress, never past three of it (PRE-3)."""
    run = pool.engine
    if run is None or pool.state is not PoolState.STARTING:
        return None
    s = pool.settings
    deadline = run.started + s.start_timeout
    if run.progressed > run.started:
        deadline = max(deadline, run.progressed + min(s.stall_timeout, s.start_timeout))
    latest = run.started + s.start_timeout * s.start_extension_factor
    return min(deadline, latest, run.progressed + s.stall_timeout) + run.paused


def watch(turn: Turn) -> None:
    """Fails a start that is over its time; sends the probe that is due."""
    _forgive_pause(turn)
    run, now = turn.pool.engine, turn.at.now
    deadline = start_deadline(turn.pool)
    if deadline is not None and deadline <= now:
        _start_too_slow(turn)
        return
    if run is None or run.probe.due is None or run.probe.due > now:
        return
    if turn.pool.state not in (PoolState.STARTING, PoolState.READY, PoolState.DRAINING):
        turn.set_engine(probe=replace(run.probe, due=None))
        return
    probe = ProbeTimer(turn.pool.probes + 1, None, now, now - run.probe.due, run.probe.failures)
    turn.set(probes=probe.serial)
    turn.set_engine(probe=probe)
    readiness = turn.pool.state is PoolState.STARTING
    asked = turn.pool.spec.readiness if readiness else turn.pool.spec.liveness
    turn.do(RunProbe(run.engine_id, probe.serial, readiness, asked.timeout or turn.pool.settings.health_check_timeout))


def _forgive_pause(turn: Turn) -> None:
    """A daemon that was not scheduled has not watched the start meanwhile: that time does not count (LIVE-1)."""
    run, s = turn.pool.engine, turn.pool.settings
    if run is None or turn.pool.state is not PoolState.STARTING:
        return
    if run.probe.due is not None and (late := turn.at.now - run.probe.due) > s.loop_lag_limit:
        turn.set_engine(paused=run.paused + late)


def _start_too_slow(turn: Turn) -> None:
    run, s = turn.pool.engine, turn.pool.settings
    assert run is not None
    took, silent = turn.at.now - run.started - run.paused, turn.at.now - run.progressed - run.paused
    if run.progressed + s.stall_timeout + run.paused <= turn.at.now:
        cause, text = CrashCause.STALLED, f"no progress for {silent:.1f} s, the limit is {s.stall_timeout:g} s"
    else:
        cause, text = CrashCause.START_FAILED, f"not ready after {took:.1f} s, the limit is {s.start_timeout:g} s"
    fail(turn, PoolError(cause, text, turn.at.wall, uptime=took, memory_bytes=run.usage.rss_bytes), grace=0.0)


def _probed(turn: Turn, fact: Probed) -> None:
    run = turn.pool.engine
    if run is None or run.engine_id != fact.engine_id or run.probe.sent is None or not run.main_alive:
        return
    if fact.serial != run.probe.serial:
        return
    turn.set_engine(
        usage=fact.usage,
        progressed=turn.at.now if _progressed(run.usage, fact.usage) else run.progressed,
    )
    match turn.pool.state:
        case PoolState.STARTING:
            _judge_readiness(turn, fact)
        case PoolState.READY | PoolState.DRAINING:
            _judge_health(turn, fact, run)


def _progressed(before: Usage, after: Usage) -> bool:
    return (
        after.log_bytes - before.log_bytes >= PROGRESS_LOG_BYTES
        or _grew(before.rss_bytes, after.rss_bytes, PROGRESS_RSS_BYTES)
        or _grew(before.read_bytes, after.read_bytes, PROGRESS_READ_BYTES)
    )


def _grew(before: int | None, after: int | None, least: int) -> bool:
    """What was not known before counts from nothing."""
    return after is not None and after - (before or 0) >= least


def _judge_readiness(turn: Turn, fact: Probed) -> None:
    run = turn.pool.engine
    assert run is not None
    if fact.owned is False:
        # Somebody answers on the port that is not ours: the engine cannot get it, and its health is not the engine's.
        text = f"port {run.port} is held by a process that is not engine {run.engine_id}"
        error = PoolError(Reason.PORT_TAKEN, text, turn.at.wall, uptime=turn.at.now - run.started)
        fail(turn, error, grace=0.0)
    elif fact.result.outcome is ProbeOutcome.OK and fact.owned:
        _ready(turn, fact)
    elif fact.result.outcome is ProbeOutcome.OK:
        # Somebody answered, and now nobody can be seen to listen: not proven ours, so not ready (PRE-4).
        _next_probe(turn, turn.pool.spec.readiness.interval or turn.pool.settings.readiness_interval)
        turn.set(reason=f"port {run.port} answered, but who listens there cannot be told")
    else:
        _next_probe(turn, turn.pool.spec.readiness.interval or turn.pool.settings.readiness_interval)
        turn.set(reason=fact.result.detail or turn.pool.reason)


def _ready(turn: Turn, fact: Probed) -> None:
    pool, now, run = turn.pool, turn.at.now, turn.pool.engine
    assert run is not None
    turn.set_engine(ready_at=now, facts=fact.facts or run.facts, ready_usage=fact.usage)
    home = replace(pool.home, proven=True) if pool.home else None
    turn.go(Trigger.BECAME_READY, "serving", policy=restart.became_healthy(pool.policy, now), home=home)
    turn.set(leases=pool.leases._replace(slots=slot_limit(turn.pool)))
    turn.note(
        NoteName.POOL_READY,
        duration_ms=int((now - run.started) * 1000),
        pid=run.pid,
        endpoint=f"127.0.0.1:{run.port}",
        slots=turn.pool.leases.slots,
        adopted=run.adopted,
    )
    _next_liveness(turn)


def _judge_health(turn: Turn, fact: Probed, run: EngineRun) -> None:
    s, sent = turn.pool.settings, run.probe.sent
    assert sent is not None
    timeout = turn.pool.spec.liveness.timeout or s.health_check_timeout
    # A daemon that was not scheduled sees its own lateness as the engine's (LIVE-1).
    lag = max(run.probe.late, turn.at.now - sent - timeout)
    if fact.result.outcome is ProbeOutcome.OK:
        turn.set_engine(probe=replace(run.probe, failures=0))
    elif lag <= s.loop_lag_limit and fact.result.outcome is not ProbeOutcome.NOT_ASKED:
        turn.set_engine(probe=replace(run.probe, failures=run.probe.failures + 1))
        limit = turn.pool.spec.liveness.failure_threshold or s.health_check_failures
        if run.probe.failures + 1 >= limit:
            text = f"{limit} probes failed in a row; the last: {fact.result.detail}"
            turn.note(NoteName.HEALTH_CHECK_FAILED, failures=limit, detail=fact.result.detail)
            error = PoolError(
                CrashCause.HEALTH_CHECK_FAILED, text, turn.at.wall, uptime=turn.at.now - run.started,
                memory_bytes=run.usage.rss_bytes,
            )  # fmt: skip
            fail(turn, error, grace=s.stop_grace)
            return
    if not hang.found_hung(turn, fact):
        _next_liveness(turn)


def _next_liveness(turn: Turn) -> None:
    s = turn.pool.settings
    interval = turn.pool.spec.liveness.interval or s.health_check_interval
    _next_probe(turn, interval * (1 + s.health_jitter * (2 * turn.at.jitter - 1)))


def _next_probe(turn: Turn, after: float) -> None:
    assert turn.pool.engine is not None
    turn.set_engine(probe=replace(turn.pool.engine.probe, due=turn.at.now + after, sent=None))
