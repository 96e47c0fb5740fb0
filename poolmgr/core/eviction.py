"""Which idle pools to stop so that something fits (PLACE-5): the cheapest set, never a busy pool.

A pool's cost is what its stop will be paid for with: the seconds of loading it again, times how often in an hour it has
been used of late. Of sets that cost the same the smallest is taken, then the first by pool id.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

from poolmgr.model.placement import IdlePool

MAX_EXACT: Final = 12  # pools of which every set is looked at: 4,096 sets
MAX_POOLS: Final = 256  # beyond these, the dearest are left alone
MAX_PLANS: Final = 64  # sets that are looked at closely where that takes a planner: milliseconds each

Helps = Callable[[Sequence[IdlePool]], bool]


@dataclass(frozen=True, slots=True)
class Room:
    """Whether something fits once these pools have stopped; more of them never hurt.

    `may_fit` is quick, and False only where it does not fit. `most` sets at most are asked about by `fits`.
    """

    fits: Helps
    may_fit: Helps
    most: int = 1 << MAX_EXACT


@dataclass(frozen=True, slots=True)
class Eviction:
    """`cost` in seconds of loading per hour. `cheapest`: proved; else one that no pool can be left out of."""

    pools: tuple[IdlePool, ...]
    cost: float
    cheapest: bool


def cost(pools: Sequence[IdlePool]) -> float:
    """Seconds of loading per hour."""
    return math.fsum(one.reload_seconds * one.uses_per_hour for one in pools)


def cheapest(idle: Sequence[IdlePool], devices: Collection[str], room: Room) -> Eviction | None:
    """None where even the stop of all that may be stopped does not help.

    `devices`: only what is freed on these counts.
    """
    useful = sorted((one for one in idle if not one.busy and _freed(one, devices)), key=lambda one: one.pool_id)
    if len(useful) > MAX_POOLS:
        useful = sorted(sorted(useful, key=lambda one: cost([one]))[:MAX_POOLS], key=lambda one: one.pool_id)
    if not useful or not room.fits(useful):
        return None
    found = _first(useful, room) if len(useful) <= MAX_EXACT else None
    if found is not None:
        return Eviction(found, cost(found), True)
    found = _trimmed(useful, devices, room)
    return Eviction(found, cost(found), False)


def _first(pools: Sequence[IdlePool], room: Room) -> tuple[IdlePool, ...] | None:
    """The cheapest set that helps; None where it is beyond the first `room.most` that may."""
    left = room.most
    for each in _by_cost(pools):
        if not room.may_fit(each):
            continue
        if left == 0:
            return None
        left -= 1
        if room.fits(each):
            return each
    return None


def _by_cost(pools: Sequence[IdlePool]) -> Sequence[tuple[IdlePool, ...]]:
    """Every set of at least one; those of one cost and size in the order of their pool ids."""
    sets = [each for size in range(1, len(pools) + 1) for each in combinations(pools, size)]
    return sorted(sets, key=lambda each: (cost(each), len(each)))


def _trimmed(pools: Sequence[IdlePool], devices: Collection[str], room: Room) -> tuple[IdlePool, ...]:
    """All of them but those that can be left out, looked at in turn, the dearest per byte first."""
    chosen = list(pools)
    for one in sorted(pools, key=lambda one: (-cost([one]) / _freed(one, devices), one.pool_id)):
        without = [other for other in chosen if other is not one]
        if room.may_fit(without) and room.fits(without):
            chosen = without
    return tuple(chosen)


def _freed(pool: IdlePool, devices: Collection[str]) -> int:
    return sum(size for device_id, size in pool.frees.items() if device_id in devices)
