"""The Store without a disk. What must survive a restart lies in a `Medium`, which the next store is opened on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace

from poolmgr.adapters.store.limits import KEPT_ENDED, KEPT_GENERATIONS, is_unknown, next_fences
from poolmgr.errors import EnvironmentFault, Reason
from poolmgr.model.lease import EndedLease, KeptLeases, Lease
from poolmgr.model.pool import Generation, PoolRecord, StoredPool


@dataclass(slots=True)
class LeaseRecords:
    """What was recorded of leases in the boot named `boot`.

    `unknown_since`: when it was found that earlier records are lost (boot-time seconds), None when none are.
    """

    boot: str
    unknown_since: float | None = None
    live: dict[str, tuple[str, Lease]] = field(default_factory=dict)
    ended: deque[EndedLease] = field(default_factory=lambda: deque(maxlen=KEPT_ENDED))


@dataclass(slots=True)
class Medium:
    """What a disk would keep, and the `boot` it is used in: another name voids the leases.

    `leases` is None when nobody has recorded any yet, or when a test lost them.
    """

    epoch: int = 0
    pools: dict[str, StoredPool] = field(default_factory=dict)
    fences: int = 1
    boot: str = "boot"
    leases: LeaseRecords | None = None


class MemoryStore:
    """Keeps the contract of `Store`. `wall` in Unix seconds, `now` in seconds on the boot-time clock.

    By default both stand at zero, so that nothing differs from one run to the next.
    """

    warnings: Sequence[str] = ()

    def __init__(
        self,
        medium: Medium | None = None,
        wall: Callable[[], float] = lambda: 0.0,
        now: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._medium = medium if medium is not None else Medium()
        self._wall = wall
        self._medium.epoch += 1
        self._epoch = self._medium.epoch
        self._open = True
        kept = self._medium.leases or LeaseRecords(self._medium.boot, unknown_since=now())
        if kept.boot != self._medium.boot:
            kept = LeaseRecords(self._medium.boot)
        self._medium.leases = self._leases = kept
        self._kept = KeptLeases(not is_unknown(kept.unknown_since, now()), tuple(kept.live.values()), tuple(kept.ended))
        self._gathered: list[tuple[Sequence[tuple[str, Lease]], Sequence[EndedLease]]] = []
        self._batches = 0

    @property
    def epoch(self) -> int:
        return self._epoch

    async def load(self) -> Sequence[StoredPool]:
        pools = self._opened().pools
        return [pools[pool_id] for pool_id in sorted(pools)]

    async def put_pool(self, record: PoolRecord, state: str = "", keep: int = 0) -> None:
        pools = self._opened().pools
        kept = pools.get(record.pool_id)
        generations = {} if kept is None else {g.generation: g for g in kept.generations}
        before = generations.get(record.generation)
        if before is None or before.spec != record.spec:
            generations[record.generation] = Generation(record.generation, record.spec, self._wall())
        numbers = sorted(generations)
        newest = tuple(generations[n] for n in numbers if n == keep or n in numbers[-KEPT_GENERATIONS:])
        kept_state = "" if kept is None else kept.state
        pools[record.pool_id] = StoredPool(
            record.pool_id, record.origin, record.create_time, newest, state or kept_state
        )

    async def put_state(self, pool_id: str, state: str) -> None:
        pools = self._opened().pools
        if pool_id in pools:
            pools[pool_id] = replace(pools[pool_id], state=state)

    async def delete_pool(self, pool_id: str) -> None:
        self._opened().pools.pop(pool_id, None)

    async def reserve_fences(self) -> range:
        medium = self._opened()
        block = next_fences(medium.fences, self._wall())
        medium.fences = block.stop
        return block

    def kept_leases(self) -> KeptLeases:
        return self._kept

    def vouch_for_leases(self) -> None:
        self._leases.unknown_since = None

    def record(self, granted: Sequence[tuple[str, Lease]], ended: Sequence[EndedLease]) -> None:
        self._gathered.append((tuple(granted), tuple(ended)))
        if not self._batches:
            self._write()

    def batch(self) -> AbstractContextManager[None]:
        return self._batch()

    def close(self) -> None:
        self._open = False

    @contextmanager
    def _batch(self) -> Iterator[None]:
        self._batches += 1
        try:
            yield
        finally:
            self._batches -= 1
            if not self._batches:
                self._write()

    def _write(self) -> None:
        gathered, self._gathered = self._gathered, []
        if not gathered:
            return
        self._opened()
        for granted, ended in gathered:
            for pool_id, lease in granted:
                self._leases.live[lease.lease_id] = (pool_id, lease)
            for end in ended:
                self._leases.live.pop(end.lease_id, None)
                self._leases.ended.append(end)

    def _opened(self) -> Medium:
        if not self._open:
            raise EnvironmentFault(Reason.STORE_UNAVAILABLE, "the store is closed")
        return self._medium
