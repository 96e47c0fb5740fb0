"""Whether an engine that is alive works: a fold over what is seen of it (LIVE-2).

`observe` takes what one look showed into the evidence, and says what that amounts to:

- IDLE: nothing is in flight, or nothing is known to be.
- WORKING: a counter moved within the limit, or it is too early to say.
- SUSPECT: no counter moved for the limit, but something was active, or may have been; or it counts, and for the limit
  it could not be asked. Only a request that it answers, or does not, can tell: `core.hang` sees to that.
- HUNG: no counter moved for the limit, and nothing was active for as long.

The limit is the stall window, or `stall_batch_factor` of the longest measured batch where that is longer. A batch is
measured as the time between two moves of a counter while something is in flight. So that one freak batch does not
blind the watch for ever, a measurement counts for at most `LONGEST_WINDOWS` stall windows and fades by half every
`HALF_LIFE`.

What nobody saw accuses nobody: a look that comes later than `pace` after the last one, as that of a daemon which was
not scheduled or a host which slept, does not count the time between; a look that shows no counter changes nothing of
what the last one showed; and activity that cannot be seen is not idleness.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum

from poolmgr.model.engine import Progress
from poolmgr.model.settings import SupervisionSettings

LONGEST_WINDOWS = 10
HALF_LIFE = 3600.0


class Verdict(StrEnum):
    IDLE = "idle"
    WORKING = "working"
    SUSPECT = "suspect"
    HUNG = "hung"


@dataclass(frozen=True, slots=True)
class Observation:
    """One look. `progress`: None where the engine did not say. `cpu_seconds`, `gpu_busy`: None where the host does not.

    `leased`: somebody holds a lease on it. `pace`: seconds from the last look to this, where nothing was late.
    """

    progress: Progress | None
    cpu_seconds: float | None
    gpu_busy: bool | None
    leased: bool
    pace: float


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of one run, in boot-time seconds.

    `looked`: the last look. `read`: the last one that showed a counter; None: none ever has. `stalled`: since when no
    counter has moved while something was in flight, None while nothing is; of an engine without counters, since when it
    has been leased and has proved nothing. `active`: when it last was, or may have been. `longest`: the longest batch,
    as measured at `measured`.
    """

    looked: float | None = None
    read: float | None = None
    mark: str = ""
    in_flight: int = 0
    free: int | None = None
    stalled: float | None = None
    cpu_seconds: float | None = None
    active: float = 0.0
    longest: float = 0.0
    measured: float = 0.0


@dataclass(frozen=True, slots=True)
class Suspicion:
    """What is being done about a suspicion. `asked`: when the request `serial` was sent, None while none is under way.

    `limit`: seconds that it has. `void`: its failure proves nothing, for the engine worked meanwhile, or nobody looked.
    `failures`: how many were answered in a row, but not as asked for.
    """

    serial: int = 0
    asked: float | None = None
    limit: float = 0.0
    void: bool = False
    failures: int = 0


def observe(
    evidence: Evidence, seen: Observation, now: float, settings: SupervisionSettings
) -> tuple[Evidence, Verdict]:
    evidence = _pass_over_gap(evidence, seen.pace, now)
    if _was_active(evidence, seen, now, settings) is not False:
        evidence = replace(evidence, active=now)
    evidence = _read(evidence, seen, now, settings)
    evidence = replace(evidence, looked=now, cpu_seconds=seen.cpu_seconds)
    return evidence, _verdict(evidence, seen, now, settings)


def late(evidence: Evidence, pace: float, now: float) -> bool:
    """Whether nobody looked for longer than was meant."""
    return evidence.looked is not None and now - evidence.looked > pace


def longest_batch(evidence: Evidence, now: float) -> float:
    """Seconds, faded."""
    return evidence.longest * math.pow(0.5, max(0.0, now - evidence.measured) / HALF_LIFE)


def stall_limit(evidence: Evidence, now: float, settings: SupervisionSettings) -> float:
    """For how many seconds nothing may be done."""
    return max(settings.stall_window, settings.stall_batch_factor * longest_batch(evidence, now))


def vouched(evidence: Evidence, now: float) -> Evidence:
    """It has just answered a request: whatever was held against it begins anew."""
    return replace(
        evidence,
        stalled=None if evidence.stalled is None else now,
        read=None if evidence.read is None else now,
        active=now,
    )


def _pass_over_gap(evidence: Evidence, pace: float, now: float) -> Evidence:
    if evidence.looked is None or not late(evidence, pace, now):
        return evidence
    gap = now - evidence.looked
    return replace(
        evidence,
        stalled=None if evidence.stalled is None else evidence.stalled + gap,
        read=None if evidence.read is None else evidence.read + gap,
        active=evidence.active + gap,
    )


def _was_active(evidence: Evidence, seen: Observation, now: float, settings: SupervisionSettings) -> bool | None:
    """Since the last look; None: cannot be told."""
    computed: bool | None = None
    if evidence.looked is not None and evidence.cpu_seconds is not None and seen.cpu_seconds is not None:
        spent = seen.cpu_seconds - evidence.cpu_seconds
        # Where the sum of a tree has shrunk, a process has gone with what it had used.
        computed = None if spent < 0 else spent > settings.stall_cpu_ratio * (now - evidence.looked)
    if computed or seen.gpu_busy:
        return True
    return None if computed is None or seen.gpu_busy is None else False


def _read(evidence: Evidence, seen: Observation, now: float, settings: SupervisionSettings) -> Evidence:
    """What the counters say, where it has any and could be asked."""
    told = seen.progress
    if told is None or told.mark is None:
        if evidence.read is not None:
            return evidence
        return replace(evidence, stalled=(evidence.stalled or now) if seen.leased else None)
    moved = evidence.read is None or told.mark != evidence.mark
    if moved and evidence.read is not None and evidence.stalled is not None:
        evidence = _measured(evidence, now - evidence.stalled, now, settings)
    stalled = evidence.stalled
    if told.in_flight == 0:
        stalled = None
    elif moved or stalled is None:
        stalled = now
    return replace(
        evidence, read=now, mark=told.mark, in_flight=told.in_flight, free=told.free, stalled=stalled
    )  # fmt: skip


def _measured(evidence: Evidence, took: float, now: float, settings: SupervisionSettings) -> Evidence:
    took = min(took, LONGEST_WINDOWS * settings.stall_window)
    if took < longest_batch(evidence, now):
        return evidence
    return replace(evidence, longest=took, measured=now)


def _verdict(evidence: Evidence, seen: Observation, now: float, settings: SupervisionSettings) -> Verdict:
    if evidence.read is None:
        return _without_counters(evidence, now, settings)
    if evidence.in_flight == 0 and (evidence.read == now or not seen.leased):
        return Verdict.IDLE
    limit = stall_limit(evidence, now, settings)
    if evidence.read < now:  # it could not be asked: that proves nothing, but does not clear it for ever either
        return Verdict.SUSPECT if now - evidence.read >= limit else Verdict.WORKING
    if evidence.stalled is None or now - evidence.stalled < limit:
        return Verdict.WORKING
    return Verdict.HUNG if now - evidence.active >= limit else Verdict.SUSPECT


def _without_counters(evidence: Evidence, now: float, settings: SupervisionSettings) -> Verdict:
    if evidence.stalled is None or not settings.synthetic_interval:
        return Verdict.IDLE
    stale = now - evidence.stalled >= max(settings.synthetic_interval, settings.stall_window)
    return Verdict.SUSPECT if stale else Verdict.WORKING
