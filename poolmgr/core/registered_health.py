"""Whether an engine that registered itself is there and well: by heartbeats, and by probes as ours (ENG-2, LIVE-1)."""

from __future__ import annotations

from dataclasses import replace

from poolmgr.core.effects import NoteName, RunProbe
from poolmgr.core.hang import stall_text
from poolmgr.core.lifecycle import Trigger
from poolmgr.core.messages import Probed
from poolmgr.core.progress import Observation, Verdict, observe
from poolmgr.core.state import ProbeTimer, RegisteredRun, Turn, heartbeat_ttl, silent_at
from poolmgr.errors import Reason
from poolmgr.model.engine import CrashCause, ProbeOutcome, Progress
from poolmgr.model.pool import PoolError, PoolState
from poolmgr.model.registration import Beat

NOT_READY = "the engine says that it is not ready"
NO_CPU_SEEN = 0.0

S = PoolState


def run_of(turn: Turn) -> RegisteredRun:
    assert turn.pool.registered is not None
    return turn.pool.registered


def lose_silent(turn: Turn) -> None:
    due, now = silent_at(turn.pool), turn.at.now
    if due is None or due > now:
        return
    if now - due > turn.pool.settings.loop_lag_limit:
        # A daemon that was not scheduled has not read what it was told meanwhile (LIVE-1).
        turn.set(registered=replace(run_of(turn), heard=now))
        return
    _lose(turn, PoolError(Reason.UNREACHABLE, f"no heartbeat for {heartbeat_ttl(turn.pool):g} s", turn.at.wall))


def _lose(turn: Turn, error: PoolError) -> None:
    turn.set(last_error=error, registered=replace(run_of(turn), probe=ProbeTimer(), ready_at=None))
    turn.note(NoteName.ENGINE_LOST, reason=error.reason, message=error.message)
    turn.go(Trigger.LOSE, f"{error.reason}: {error.message}")


def probe_now(turn: Turn) -> None:
    run = run_of(turn)
    if run.probe.sent is None:
        turn.set(registered=replace(run, probe=replace(run.probe, due=turn.at.now)))


def send_probe(turn: Turn) -> None:
    pool, run, now = turn.pool, run_of(turn), turn.at.now
    if run.probe.due is None or run.probe.due > now:
        return
    if pool.state not in (S.STARTING, S.READY, S.DRAINING):
        turn.set(registered=replace(run, probe=ProbeTimer()))
        return
    probe = ProbeTimer(pool.probes + 1, None, now, now - run.probe.due, run.probe.failures)
    turn.set(probes=probe.serial, registered=replace(run, probe=probe))
    turn.do(RunProbe(run.engine.engine_id, probe.serial, pool.state is S.STARTING, pool.settings.health_check_timeout))


def probed(turn: Turn, fact: Probed) -> None:
    """An answer to a probe that is not the current one changes nothing."""
    run = run_of(turn)
    if run.probe.sent is None or fact.serial != run.probe.serial:
        return
    if turn.pool.state is S.STARTING:
        _judge_readiness(turn, fact)
    elif turn.pool.state in (S.READY, S.DRAINING):
        _judge_health(turn, fact, run)


def _judge_readiness(turn: Turn, fact: Probed) -> None:
    pool, s, run = turn.pool, turn.pool.settings, run_of(turn)
    well = fact.result.outcome is ProbeOutcome.OK
    if not well or not run.engine.ready or run.hung:
        # As often as a start is asked, while it may be one; an engine that stays so is asked like one that serves.
        young = not well and turn.at.now - pool.since < s.start_timeout
        _next_probe(turn, s.readiness_interval if young else _liveness_interval(turn))
        turn.set(reason=(run.hung or NOT_READY) if well else fact.result.detail or pool.reason)
        return
    turn.set(registered=replace(run, ready_at=turn.at.now, probe=replace(run.probe, failures=0)))
    turn.go(Trigger.BECAME_READY, "serving")
    turn.note(
        NoteName.POOL_READY,
        duration_ms=int((turn.at.now - pool.since) * 1000),
        pid=run.engine.pid,
        endpoint=run.engine.endpoint,
        slots=turn.pool.leases.slots,
        adopted=False,
    )
    _next_probe(turn, _liveness_interval(turn))


def _judge_health(turn: Turn, fact: Probed, run: RegisteredRun) -> None:
    s, sent = turn.pool.settings, run.probe.sent
    assert sent is not None
    failures = run.probe.failures + 1
    # A daemon that was not scheduled sees its own lateness as the engine's (LIVE-1).
    lag = max(run.probe.late, turn.at.now - sent - s.health_check_timeout)
    if fact.result.outcome is ProbeOutcome.OK:
        failures = 0
    elif lag > s.loop_lag_limit or fact.result.outcome is ProbeOutcome.NOT_ASKED:
        failures = run.probe.failures
    turn.set(registered=replace(run, probe=replace(run.probe, failures=failures)))
    if failures >= s.health_check_failures:
        detail = fact.result.detail
        turn.note(NoteName.HEALTH_CHECK_FAILED, failures=failures, detail=detail)
        text = f"{failures} probes failed in a row; the last: {detail}"
        _lose(turn, PoolError(CrashCause.HEALTH_CHECK_FAILED, text, turn.at.wall))
        return
    _next_probe(turn, _liveness_interval(turn))


def heed_progress(turn: Turn, beat: Beat) -> None:
    """Whether it gets on with what it has, by what it says itself (LIVE-2). HUNG, it gets no lease until it does.

    Nobody here sees its processes or its GPU, and nothing here ends it: the counter that it tells of speaks alone.
    """
    pool, now, run = turn.pool, turn.at.now, run_of(turn)
    if run.in_flight is None or (beat.in_flight is None and beat.progress_counter is None):
        return
    mark = None if run.progress_counter is None else str(run.progress_counter)
    pace = heartbeat_ttl(pool) + pool.settings.loop_lag_limit
    told = Progress(run.in_flight, mark, run.slots_free)
    seen = Observation(told, NO_CPU_SEEN, False, bool(pool.leases.live), pace)
    evidence, verdict = observe(run.evidence, seen, now, pool.settings)
    if verdict is not Verdict.HUNG:
        turn.set(registered=replace(run, evidence=evidence, hung=""))
        if run.hung:
            probe_now(turn)
        return
    text = stall_text(evidence, now, pool.settings)
    turn.set(registered=replace(run, evidence=evidence, hung=f"{CrashCause.HUNG}: {text}"))
    if not run.hung:
        turn.note(NoteName.ENGINE_HUNG, detail=text, in_flight=run.in_flight)
    if pool.state in (S.READY, S.DRAINING):
        _lose(turn, PoolError(CrashCause.HUNG, text, turn.at.wall))


def _liveness_interval(turn: Turn) -> float:
    s = turn.pool.settings
    return s.health_check_interval * (1 + s.health_jitter * (2 * turn.at.jitter - 1))


def _next_probe(turn: Turn, after: float) -> None:
    run = run_of(turn)
    turn.set(registered=replace(run, probe=replace(run.probe, due=turn.at.now + after, sent=None)))
