"""A Store that fails on order: what its users do on a full disk or a dead handle is tried with it."""

from __future__ import annotations

from collections.abc import Coroutine, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from enum import StrEnum
from typing import Any, Final, TypeVar

from poolmgr.errors import EnvironmentFault, Reason
from poolmgr.model.lease import EndedLease, KeptLeases, Lease
from poolmgr.model.pool import PoolRecord, StoredPool
from poolmgr.ports import Store

T = TypeVar("T")


class Failure(StrEnum):
    """DISK_FULL refuses a change, and the next one may succeed. DEAD_HANDLE refuses every change from then on. In both,
    leases are recorded. RECORDING refuses to record leases, and changes go on.
    """

    DISK_FULL = "DISK_FULL"
    DEAD_HANDLE = "DEAD_HANDLE"
    RECORDING = "RECORDING"


_MESSAGES: Final = {
    Failure.DISK_FULL: "the disk is full, and nothing was changed",
    Failure.DEAD_HANDLE: "no more changes are taken until a restart",
    Failure.RECORDING: "leases cannot be recorded",
}


class FailingStore:
    """Passes everything on to `store` but what fails. Reads never do.

    `at`: the change (or, for RECORDING, the write of records) that fails, counted from 1; None is every one. `written`:
    what is refused is done underneath all the same, as a failed fsync may leave it. `count` is how many there were.
    """

    def __init__(self, store: Store, failure: Failure, at: int | None = None, *, written: bool = False) -> None:
        self.count = 0
        self._store = store
        self._failure: Failure | None = failure
        self._at = at
        self._written = written
        self._gathered: list[tuple[Sequence[tuple[str, Lease]], Sequence[EndedLease]]] = []
        self._batches = 0

    def heal(self) -> None:
        """From now on nothing fails."""
        self._failure = None

    @property
    def epoch(self) -> int:
        return self._store.epoch

    @property
    def warnings(self) -> Sequence[str]:
        return self._store.warnings

    async def load(self) -> Sequence[StoredPool]:
        return await self._store.load()

    async def put_pool(self, record: PoolRecord, state: str = "", keep: int = 0) -> None:
        await self._change(self._store.put_pool(record, state, keep))

    async def put_state(self, pool_id: str, state: str) -> None:
        await self._change(self._store.put_state(pool_id, state))

    async def delete_pool(self, pool_id: str) -> None:
        await self._change(self._store.delete_pool(pool_id))

    async def reserve_fences(self) -> range:
        return await self._change(self._store.reserve_fences())

    def kept_leases(self) -> KeptLeases:
        return self._store.kept_leases()

    def vouch_for_leases(self) -> None:
        self._store.vouch_for_leases()

    def record(self, granted: Sequence[tuple[str, Lease]], ended: Sequence[EndedLease]) -> None:
        self._gathered.append((granted, ended))
        if not self._batches:
            self._write()

    def batch(self) -> AbstractContextManager[None]:
        return self._batch()

    def close(self) -> None:
        self._store.close()

    @contextmanager
    def _batch(self) -> Iterator[None]:
        self._batches += 1
        try:
            yield
        finally:
            self._batches -= 1
            if not self._batches:
                self._write()

    async def _change(self, change: Coroutine[Any, Any, T]) -> T:
        if not self._fails(Failure.DISK_FULL, Failure.DEAD_HANDLE):
            return await change
        if self._written:
            await change
        change.close()
        raise self._fault()

    def _write(self) -> None:
        gathered, self._gathered = self._gathered, []
        if not gathered:
            return
        fails = self._fails(Failure.RECORDING)
        if not fails or self._written:
            with self._store.batch():
                for granted, ended in gathered:
                    self._store.record(granted, ended)
        if fails:
            raise self._fault()

    def _fails(self, *failures: Failure) -> bool:
        if self._failure not in failures:
            return False
        self.count += 1
        if self._at is None:
            return True
        return self.count == self._at or (self._failure is Failure.DEAD_HANDLE and self.count > self._at)

    def _fault(self) -> EnvironmentFault:
        assert self._failure is not None
        return EnvironmentFault(Reason.STORE_UNAVAILABLE, _MESSAGES[self._failure])
