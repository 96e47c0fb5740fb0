"""What is done about an engine of ours that is alive and may not work (LIVE-2). The evidence is in `core.progress`.

A suspicion is decided by a request of our own, one at a time and only where a slot is free for it: no answer within
its limit, and the engine is HUNG; an answer, and all evidence begins anew. An answer that is not the one asked for says
that somebody is there: only as many in a row as make a failed health check are HUNG too. While no slot is free nobody
can be asked, so requests that are in flight decide: none of them getting on for `stall_limit` is HUNG.
"""

from __future__ import annotations

from dataclasses import replace

from poolmgr.core.effects import AskWork, NoteName
from poolmgr.core.ending import fail
from poolmgr.core.messages import Probed, WorkAnswered
from poolmgr.core.progress import (
    Evidence,
    Observation,
    Suspicion,
    Verdict,
    late,
    longest_batch,
    observe,
    stall_limit,
    vouched,
)
from poolmgr.core.state import EngineRun, Pool, Turn, serving
from poolmgr.model.engine import CrashCause, ProbeOutcome
from poolmgr.model.pool import PoolError
from poolmgr.model.settings import SupervisionSettings

TIMED_OUT = 0.9  # of its limit: an answer that comes later is none, whatever two clocks make of it


def found_hung(turn: Turn, fact: Probed) -> bool:
    """Takes in what a look at a serving engine showed; whether that ended it."""
    pool, now, s = turn.pool, turn.at.now, turn.pool.settings
    run = _run(pool)
    pace = _pace(pool)
    seen = Observation(fact.progress, fact.usage.cpu_seconds, fact.gpu_busy, bool(pool.leases.live), pace)
    evidence, verdict = observe(run.evidence, seen, now, s)
    if verdict is Verdict.HUNG:
        turn.set_engine(evidence=evidence)
        quiet = f"neither CPU nor GPU worked for {now - evidence.active:.0f} s"
        _hung(turn, f"{stall_text(evidence, now, s)} and {quiet}")
        return True
    doubt = run.suspicion
    if doubt is not None and doubt.asked is not None:
        void = doubt.void or verdict is not Verdict.SUSPECT or late(run.evidence, pace, now)
        doubt = replace(doubt, void=void)
    elif verdict is not Verdict.SUSPECT:
        doubt = None
    turn.set_engine(evidence=evidence, suspicion=doubt)
    return verdict is Verdict.SUSPECT and _suspected(turn)


def _suspected(turn: Turn) -> bool:
    """Asks, where that is possible and not under way; whether what is in flight has decided it already."""
    pool, now, s = turn.pool, turn.at.now, turn.pool.settings
    run = _run(pool)
    doubt, evidence = run.suspicion, run.evidence
    if doubt is None:
        turn.note(NoteName.ENGINE_SUSPECTED, detail=stall_text(evidence, now, s), in_flight=evidence.in_flight)
        doubt = Suspicion()
    if doubt.asked is None and _has_free_slot(pool, evidence):
        limit = max(s.synthetic_timeout, s.stall_batch_factor * longest_batch(evidence, now))
        doubt = Suspicion(pool.probes + 1, now, limit, failures=doubt.failures)
        turn.set(probes=doubt.serial)
        turn.do(AskWork(run.engine_id, doubt.serial, limit))
    turn.set_engine(suspicion=doubt)
    if doubt.asked is not None or evidence.read != now or evidence.stalled is None:
        return False
    if now - evidence.stalled < max(s.stall_limit, stall_limit(evidence, now, s)):
        return False
    _hung(turn, f"{stall_text(evidence, now, s)} and no slot is free to ask it on")
    return True


def answered(turn: Turn, fact: WorkAnswered) -> None:
    """An answer to a request that is not the current one changes nothing."""
    pool, now, run = turn.pool, turn.at.now, turn.pool.engine
    if run is None or run.engine_id != fact.engine_id or not serving(pool):
        return
    doubt, s = run.suspicion, pool.settings
    if doubt is None or doubt.asked is None or doubt.serial != fact.serial:
        return
    waited, outcome = now - doubt.asked, fact.result.outcome
    if outcome is ProbeOutcome.OK:
        turn.set_engine(evidence=vouched(run.evidence, now), suspicion=None)
    elif doubt.void or outcome is ProbeOutcome.NOT_ASKED or waited > doubt.limit + s.loop_lag_limit:
        turn.set_engine(suspicion=Suspicion(failures=doubt.failures))
    elif waited >= TIMED_OUT * doubt.limit:
        _hung(turn, f"{stall_text(run.evidence, now, s)} and a synthetic request had no answer within {waited:.0f} s")
    elif doubt.failures + 1 >= s.health_check_failures:
        what = f"{doubt.failures + 1} synthetic requests in a row failed; the last: {fact.result.detail}"
        _hung(turn, f"{stall_text(run.evidence, now, s)} and {what}")
    else:
        turn.set_engine(suspicion=Suspicion(failures=doubt.failures + 1))


def stall_text(evidence: Evidence, now: float, settings: SupervisionSettings) -> str:
    """The numbers that a verdict rests on."""
    limit = f"the limit is {stall_limit(evidence, now, settings):.0f} s, its longest batch {evidence.longest:.1f} s"
    what = f"{evidence.in_flight} requests in flight"
    if evidence.read is None:
        return f"leased for {now - (evidence.stalled or now):.0f} s without a sign of work"
    if evidence.read != evidence.looked:
        return f"{what} when its counters could last be read, {now - evidence.read:.0f} s ago ({limit})"
    return f"{what}, no counter moved for {now - (evidence.stalled or now):.0f} s ({limit})"


def _hung(turn: Turn, text: str) -> None:
    run = _run(turn.pool)
    turn.note(NoteName.ENGINE_HUNG, detail=text, in_flight=run.evidence.in_flight)
    error = PoolError(
        CrashCause.HUNG, text, turn.at.wall, uptime=turn.at.now - run.started, memory_bytes=run.usage.rss_bytes
    )
    fail(turn, error, grace=turn.pool.settings.stop_grace)


def _has_free_slot(pool: Pool, evidence: Evidence) -> bool:
    """For a request of our own; of an engine that does not say, the leases tell."""
    unleased = len(pool.leases.live) < pool.leases.slots
    if evidence.read is None or evidence.free is None:
        return unleased
    return evidence.free > 0


def _pace(pool: Pool) -> float:
    """From one look at a serving engine to the next, where nothing is late (seconds)."""
    s, asked = pool.settings, pool.spec.liveness
    interval = (asked.interval or s.health_check_interval) * (1 + s.health_jitter)
    return interval + (asked.timeout or s.health_check_timeout) + s.loop_lag_limit


def _run(pool: Pool) -> EngineRun:
    assert pool.engine is not None
    return pool.engine
