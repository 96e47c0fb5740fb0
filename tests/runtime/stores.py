"""Stores that take their time, and stores that break and are mended."""

from __future__ import annotations

import asyncio

from poolmgr.adapters.store.failing import FailingStore, Failure
from poolmgr.model.pool import PoolRecord
from poolmgr.ports import Store


class SlowStore:
    """Passes everything on to `store`; changes of pools wait while it is held."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._go = asyncio.Event()
        self._go.set()

    def hold(self) -> None:
        self._go.clear()

    def let_go(self) -> None:
        self._go.set()

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    async def put_pool(self, record: PoolRecord, state: str = "", keep: int = 0) -> None:
        await self._go.wait()
        await self._store.put_pool(record, state, keep)

    async def put_state(self, pool_id: str, state: str) -> None:
        await self._go.wait()
        await self._store.put_state(pool_id, state)


class BreakableStore:
    """Passes everything on to `store`, and fails by `failure` while it is `broken`."""

    def __init__(self, store: Store, failure: Failure = Failure.DISK_FULL) -> None:
        self._whole = store
        self._failing = FailingStore(store, failure)
        self.broken = False

    def __getattr__(self, name: str) -> object:
        return getattr(self._failing if self.broken else self._whole, name)
