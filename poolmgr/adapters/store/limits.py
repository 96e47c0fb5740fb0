"""The named limits and rules that every Store keeps, on a disk and in memory alike."""

from __future__ import annotations

from typing import Final

from poolmgr.model.lease import TTL_MAX

KEPT_GENERATIONS: Final = 20
KEPT_ENDED: Final = 1024
UNKNOWN_SECONDS: Final = TTL_MAX + 60.0  # the longest life of a lease that nobody renews, and its grace
MAX_EPOCH: Final = 2**24 - 1  # revisions are `epoch << 40 | n` in 64 bits

# A block is one millisecond of the wall clock: even when every copy of the high-water mark is lost, numbers that begin
# at the clock are above all that were handed out, unless a host granted a million leases in each millisecond. Counted
# from 1970 they fit into 63 bits until the year 2248.
FENCE_BITS: Final = 20
FENCE_BLOCK: Final = 1 << FENCE_BITS

_EPOCH_ZERO: Final = 1_704_067_200  # 2024-01-01 UTC
_LAST_MILLISECOND: Final = (1 << (63 - FENCE_BITS)) - (1 << 40)  # room for 2**40 more blocks; the year 2213


def first_epoch(wall: float) -> int:
    """Where epochs begin when no copy of the last one is left: the minutes since 2024 in `wall`, Unix seconds.

    Above every epoch that was used before, unless state was opened more than once a minute ever since.
    """
    return min(max(1, int(wall - _EPOCH_ZERO) // 60), MAX_EPOCH // 2)


def next_fences(mark: int, wall: float) -> range:
    """The next block of fencing numbers: at or above `mark`, the first number not yet handed out, and the clock."""
    milliseconds = min(max(0, int(wall * 1000)), _LAST_MILLISECOND)
    start = max(mark, milliseconds << FENCE_BITS)
    return range(start, start + FENCE_BLOCK)


def is_unknown(since: float | None, now: float) -> bool:
    """Whether leases may still be out of which the record, lost at `since`, told nobody (boot-time seconds)."""
    return since is not None and now - since < UNKNOWN_SECONDS
