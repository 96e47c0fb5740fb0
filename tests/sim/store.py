"""The Store port over the simulated disk: group commits that take time, and everything that a disk can do wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING

from poolmgr.errors import EnvironmentFault, Reason
from poolmgr.model.lease import EndedLease, KeptLeases, Lease
from poolmgr.model.pool import Generation, PoolRecord, StoredPool
from tests.sim.disk import FENCES_AT_ONCE, KEPT_GENERATIONS, UNKNOWN_SECONDS, Disk
from tests.sim.gate import Gate, port

if TYPE_CHECKING:
    from tests.sim.world import World

Change = Callable[[dict[str, StoredPool]], None]


def unavailable(why: str) -> EnvironmentFault:
    return EnvironmentFault(Reason.STORE_UNAVAILABLE, why)


class SimStore:
    """Opened by one daemon. Its handle is dead after a failed fsync."""

    def __init__(self, world: World, gate: Gate) -> None:
        self._world = world
        self.gate = gate
        self._disk: Disk = world.disk
        self._disk.epoch += 1
        self.epoch = self._disk.epoch
        self.warnings: tuple[str, ...] = ()
        self._waiting: list[tuple[Change, asyncio.Future]] = []
        self._committing: list[tuple[Change, asyncio.Future]] = []
        self._handle_dead = False
        self._batch: tuple[list, list] | None = None
        self._kept = self._found_leases()

    @port("store.load")
    async def load(self) -> Sequence[StoredPool]:
        await self._world.sleep(self._world.latency(0.003))
        return [pool for _, pool in sorted(self._disk.pools.items())]

    @port("store.put_pool")
    async def put_pool(self, record: PoolRecord, state: str = "", keep: int = 0) -> None:
        await self._commit(lambda pools: _put(pools, record, state, keep))

    @port("store.put_state")
    async def put_state(self, pool_id: str, state: str) -> None:
        await self._commit(lambda pools: _put_state(pools, pool_id, state))

    @port("store.delete_pool")
    async def delete_pool(self, pool_id: str) -> None:
        await self._commit(lambda pools: pools.pop(pool_id, None))

    @port("store.reserve_fences")
    async def reserve_fences(self) -> range:
        await self._commit(lambda pools: None)
        first = self._disk.fence
        self._disk.fence += FENCES_AT_ONCE
        return range(first, self._disk.fence)

    @port("store.kept_leases")
    def kept_leases(self) -> KeptLeases:
        return self._kept

    def _found_leases(self) -> KeptLeases:
        disk, kernel = self._disk, self._world.kernel
        if disk.leases_boot != kernel.boot_id:
            return KeptLeases(known=True)
        known = kernel.boot_time() - disk.leases_unknown >= UNKNOWN_SECONDS
        return KeptLeases(known, tuple(disk.leases.values()), tuple(disk.ended.values()))

    @port("store.vouch_for_leases")
    def vouch_for_leases(self) -> None:
        self._disk.leases_unknown = -inf

    @port("store.record")
    def record(self, granted: Sequence[tuple[str, Lease]], ended: Sequence[EndedLease]) -> None:
        if self._batch is not None:
            self._batch[0].extend(granted)
            self._batch[1].extend(ended)
            return
        self._record(list(granted), list(ended))

    def _record(self, granted: list[tuple[str, Lease]], ended: list[EndedLease]) -> None:
        if self._disk.full or self._disk.failing or self._handle_dead:
            raise unavailable("the log of leases cannot be written")
        self._disk.record_leases(self._world.kernel.boot_id, granted, ended)
        self._world.oracle.recorded(granted, ended)

    @contextmanager
    def batch(self) -> Iterator[None]:
        outer, self._batch = self._batch, ([], []) if self._batch is None else self._batch
        try:
            yield
        finally:
            gathered, self._batch = self._batch, outer
        if outer is None and gathered is not None and (gathered[0] or gathered[1]):
            number = self.gate.enter("store.record")
            self._record(*gathered)
            self.gate.leave(number)

    def close(self) -> None:
        self._handle_dead = True

    # Commits.

    async def _commit(self, change: Change) -> None:
        if self._handle_dead:
            raise unavailable("the database's handle is dead")
        done = asyncio.get_running_loop().create_future()
        self._waiting.append((change, done))
        if not self._committing:
            self._begin()
        await done

    def _begin(self) -> None:
        self._committing, self._waiting = self._waiting, []
        self._world.timeline.after(self._world.latency(0.008), self._finish)

    def _finish(self) -> None:
        if self.gate.dead:
            return
        disk, error = self._disk, None
        if disk.failing:
            error, self._handle_dead = unavailable("fsync failed"), True
        elif disk.full:
            error = unavailable("no space left on device")
        else:
            self._write()
            disk.durable = dict(disk.pools)
        done, self._committing = self._committing, []
        for _, future in done:
            self._world.deliver(_settle, future, error)
        if self._handle_dead:
            done, self._waiting = self._waiting, []
            for _, future in done:
                self._world.deliver(_settle, future, error)
        elif self._waiting:
            self._begin()

    def _write(self) -> None:
        pools = dict(self._disk.pools)
        for change, _ in self._committing:
            change(pools)
        self._disk.pools = pools

    def process_died(self) -> None:
        """A commit that was under way has reached the file, or it has not."""
        disk = self._disk
        if self._committing and not disk.full and not disk.failing and self._world.chance(0.5):
            self._write()
        self._committing, self._waiting = [], []


def _settle(future: asyncio.Future, error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(unavailable(str(error)))


def _put(pools: dict[str, StoredPool], record: PoolRecord, state: str, keep: int) -> None:
    before = pools.get(record.pool_id)
    new = Generation(record.generation, record.spec, record.create_time)
    if before is None:
        pools[record.pool_id] = StoredPool(record.pool_id, record.origin, record.create_time, (new,), state)
        return
    kept = tuple(g for g in before.generations if g.generation != record.generation)
    newest = (*kept, new)[-KEPT_GENERATIONS:]
    kept = (*(g for g in kept if g.generation == keep and g not in newest), *newest)
    pools[record.pool_id] = replace(before, generations=kept, state=state or before.state)


def _put_state(pools: dict[str, StoredPool], pool_id: str, state: str) -> None:
    if pool_id in pools:
        pools[pool_id] = replace(pools[pool_id], state=state)
