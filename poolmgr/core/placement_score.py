"""Which of several devices that would all do is taken (PLACE-1, SPLIT-1).

Devices are tried in waves: those that nothing is wrong with, then degraded ones beside them, then one on probation
beside these, each in its turn; a later wave is looked at only where the earlier ones hold no answer. Within a wave the
smaller key wins, compared from the left; `why_behind` names its parts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

from poolmgr.core.placement_ask import wanted
from poolmgr.core.split_valid import MAX_BANDWIDTH, MIN_BANDWIDTH
from poolmgr.model.placement import Candidate, PlacementAsk, Preference, SplitMode

# Free memory that differs by less is the same: drivers round, and keep something of each context.
ROOM_STEP_BYTES: Final = 256 * 1024 * 1024
# A device so far below its limit is cool; differences above it do not count.
COOL_CELSIUS: Final = 15.0

Key = tuple[tuple[float, ...], ...]
BANDWIDTH: Final = "its memory is slower"
ROOM: Final = {
    Preference.BIN_PACK: "it would be left with more room (bin-pack)",
    Preference.SPREAD: "it would be left with less room (spread)",
}
TEMPERATURE: Final = "it is nearer to its temperature limit, or its temperature is unknown"
LINKS: Final = "its links suit the ask less"
ORDER: Final = "it comes later in the order of devices"


def key(ask: PlacementAsk, candidate: Candidate, need_bytes: int) -> Key:
    """Smaller is better. Unknown values come after all known ones."""
    bandwidth = bandwidth_of(candidate)
    fast = (1.0, 0.0) if bandwidth is None else (0.0, -bandwidth)
    room = _room(ask, candidate, need_bytes)
    first = (fast, room) if _fastest_first(ask) else (room, fast)
    return (*first, (_heat(candidate),), (_links(ask, candidate),), _order(candidate))


def bandwidth_of(candidate: Candidate) -> float | None:
    """Bytes a second; None where it is unknown or makes no sense."""
    return sensible(candidate.device.memory_bandwidth_bytes)


def sensible(speed: float | None) -> float | None:
    """Bytes a second as the planner takes them; None for what is none."""
    return speed if speed is not None and MIN_BANDWIDTH <= speed <= MAX_BANDWIDTH else None


def why_behind(ask: PlacementAsk, loser: Key, winner: Key) -> str:
    """The first part of the key in which the one is behind the other, in words."""
    room = ROOM[ask.preference]
    first = (BANDWIDTH, room) if _fastest_first(ask) else (room, BANDWIDTH)
    words = (*first, TEMPERATURE, LINKS, ORDER)
    return next((word for word, a, b in zip(words, loser, winner, strict=True) if a != b), ORDER)


def waves(candidates: Sequence[Candidate]) -> Iterator[Sequence[Candidate]]:
    """Each a set to choose from, in the order of `candidates`. At most one of each is on probation."""
    sound = [one for one in candidates if not one.degraded and not one.probation]
    steady = [one for one in candidates if not one.probation]
    if sound:
        yield sound
    if len(steady) > len(sound):
        yield steady
    for trial in candidates:
        if trial.probation:
            yield [one for one in candidates if one is trial or not one.probation]


def usable_at_once(candidates: Sequence[Candidate]) -> int:
    """How many of them one plan may have: of those on probation, one."""
    trials = sum(one.probation for one in candidates)
    return len(candidates) - max(0, trials - 1)


def _fastest_first(ask: PlacementAsk) -> bool:
    """A model goes to the fastest device that it fits on; work of which only the size is known does not."""
    return ask.split is SplitMode.NONE and ask.estimate is not None


def _room(ask: PlacementAsk, candidate: Candidate, need_bytes: int) -> tuple[float, ...]:
    if candidate.memory.free_bytes is None:
        return (1.0, 0.0)
    left = (candidate.memory.free_bytes - need_bytes) // ROOM_STEP_BYTES
    return (0.0, left if ask.preference is Preference.BIN_PACK else -left)


def _heat(candidate: Candidate) -> float:
    """Degrees by which it is warmer than what is called cool."""
    if candidate.celsius is None or candidate.limit_celsius is None:
        return math.inf
    warmer = COOL_CELSIUS - (candidate.limit_celsius - candidate.celsius)
    return max(0.0, warmer) if math.isfinite(warmer) else math.inf


def _links(ask: PlacementAsk, candidate: Candidate) -> float:
    """Several devices want fast links between them; a single one leaves the well linked to whoever needs several."""
    speed = sum(sensible(link.bytes_per_second) or 0.0 for link in candidate.device.links)
    return speed if wanted(ask) == 1 else -speed


def _order(candidate: Candidate) -> tuple[float, ...]:
    gpu, instance, _ = candidate.device.order
    return (gpu, instance)
