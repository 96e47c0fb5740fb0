"""What could be stopped to make room, and what that would cost (PLACE-5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from poolmgr.core.state import Pool, leased
from poolmgr.model.claim import Claim
from poolmgr.model.placement import IdlePool
from poolmgr.model.pool import PoolState
from poolmgr.ports import Clock

HALF_LIFE: Final = 3600.0  # seconds after which a use counts half
DEFAULT_LOAD: Final = 60.0  # seconds, of an engine whose own load nobody has timed: it was adopted


class Uses:
    """How often each pool was leased of late: a count that halves every hour, so a rate per hour and a half."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._counts: dict[str, tuple[float, float]] = {}

    def count(self, pool_id: str) -> None:
        self._counts[pool_id] = (self.of(pool_id) + 1.0, self._clock.now())

    def of(self, pool_id: str) -> float:
        count, at = self._counts.get(pool_id, (0.0, 0.0))
        return count * 0.5 ** ((self._clock.now() - at) / HALF_LIFE) if count else 0.0

    def forget(self, pool_id: str) -> None:
        self._counts.pop(pool_id, None)


def idle_pools(pools: Sequence[Pool], claims: Sequence[Claim], uses: Uses) -> Sequence[IdlePool]:
    """Those that run on devices. `claims`: who holds what; an engine of which nothing was measured frees nothing."""
    found = []
    for pool in pools:
        run = pool.engine
        if run is None or pool.registered is not None:
            continue
        held = {c.device_id: c.measured_bytes for c in claims if c.engine_id == run.engine_id and c.measured_bytes}
        serving = pool.state is PoolState.READY and pool.reload is None
        busy = not serving or leased(pool) > 0 or bool(pool.leases.waiters)
        load = DEFAULT_LOAD if run.adopted or run.ready_at is None else run.ready_at - run.started
        if held:
            found.append(IdlePool(pool.pool_id, held, busy, load, uses.of(pool.pool_id)))
    return found
