"""The Store without a disk. What must survive a restart lies in a `Medium`, which the next store is opened on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from poolmgr.errors import EnvironmentFault, Reason
from poolmgr.model.pool import PoolRecord


@dataclass(slots=True)
class Medium:
    """What a disk would keep."""

    epoch: int = 0
    pools: dict[str, PoolRecord] = field(default_factory=dict)


class MemoryStore:
    """Keeps the contract of `Store`; only the newest generation, which is all that the port shows."""

    def __init__(self, medium: Medium | None = None) -> None:
        self._medium = medium if medium is not None else Medium()
        self._medium.epoch += 1
        self._epoch = self._medium.epoch
        self._open = True

    @property
    def epoch(self) -> int:
        return self._epoch

    async def load(self) -> Sequence[PoolRecord]:
        pools = self._pools()
        return [pools[pool_id] for pool_id in sorted(pools)]

    async def put_pool(self, record: PoolRecord) -> None:
        pools = self._pools()
        kept = pools.get(record.pool_id)
        if kept is None or record.generation >= kept.generation:
            pools[record.pool_id] = record

    async def delete_pool(self, pool_id: str) -> None:
        self._pools().pop(pool_id, None)

    def close(self) -> None:
        self._open = False

    def _pools(self) -> dict[str, PoolRecord]:
        if not self._open:
            raise EnvironmentFault(Reason.STORE_UNAVAILABLE, "the store is closed")
        return self._medium.pools
