"""The Store on SQLite and a lease log: one connection, one writer, WAL, `synchronous=FULL`.

SQLite before 3.51.3 can corrupt a WAL that two connections use, and a second daemon on one directory would start every
engine twice: so there is one connection, in `locking_mode=EXCLUSIVE`, behind an instance lock that names its holder.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

import apsw

from poolmgr.adapters import codec
from poolmgr.adapters.store import rows
from poolmgr.adapters.store.database import Database, Job
from poolmgr.adapters.store.faults import again, closed
from poolmgr.adapters.store.opening import Opened, open_state
from poolmgr.errors import EnvironmentFault, InternalError
from poolmgr.model.lease import EndedLease, KeptLeases, Lease
from poolmgr.model.pool import PoolRecord, StoredPool
from poolmgr.ports import Workers

_Queued = tuple[Job, asyncio.Future[Any]]

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


def boot_time() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


async def open_store(
    state_dir: Path,
    workers: Workers,
    wall: Callable[[], float],
    *,
    boot_id: str | None = None,
    now: Callable[[], float] = boot_time,
) -> SqliteStore:
    """Opens or makes the store in `state_dir`; its epoch is durable on return.

    `wall` gives Unix seconds, `now` seconds on the boot-time clock; `boot_id` is this host's own unless it is given.
    A damaged database is put aside, and `warnings` says so. Raises EnvironmentFault: STATE_IN_USE (with `pid` where
    known) while another daemon has it; STATE_DIR, with nothing changed, when it cannot be used as it stands: no access,
    another owner, another host, a newer version, another program's; STORE_UNAVAILABLE with `sqlite_code` for what
    SQLite could not do, and for a full disk.
    """
    opened = await workers.run(_open, state_dir, wall(), boot_id, now())
    return SqliteStore(opened, workers, wall)


def _open(state_dir: Path, wall: float, boot_id: str | None, now: float) -> Opened:
    return open_state(state_dir, wall, _boot_id() if boot_id is None else boot_id, now)


def _boot_id() -> str:
    """Empty where the host does not say: then nobody can tell whether leases are of this boot."""
    try:
        return _BOOT_ID.read_text("ascii").strip()
    except OSError:
        return ""


class SqliteStore:
    """The `Store` port; `open_store` makes it. Used on one event loop.

    Changes gather in a queue, and one hop to a worker thread writes all that have gathered in one transaction; what
    comes meanwhile goes into the next. The queue has no limit of its own: whoever put something there waits for it.
    """

    def __init__(self, opened: Opened, workers: Workers, wall: Callable[[], float]) -> None:
        self._opened = opened
        self._database = Database(opened)
        self._workers = workers
        self._wall = wall
        self._log = opened.log
        self._gathered: list[_Queued] = []
        self._writer: asyncio.Task[None] | None = None

    @property
    def epoch(self) -> int:
        return self._opened.epoch

    @property
    def warnings(self) -> Sequence[str]:
        return self._opened.warnings

    async def load(self) -> Sequence[StoredPool]:
        found: list[StoredPool] = await self._queue(Job(rows.load, changes=False))
        return found

    async def put_pool(self, record: PoolRecord, state: str = "", keep: int = 0) -> None:
        if record.generation < 1:
            raise InternalError(f"generation {record.generation} of pool {record.pool_id}: they begin at 1")
        spec, now = codec.encode(record.spec), self._wall()
        state.encode()  # a text that is none fails here, and not with all that gathered beside it

        def put(connection: apsw.Connection) -> None:
            row = (record.pool_id, record.origin.value, record.create_time, state)
            connection.execute(rows.UPSERT_POOL, row)
            connection.execute(rows.UPSERT_GENERATION, (record.pool_id, record.generation, now, spec))
            connection.execute(rows.FORGET_GENERATIONS, (record.pool_id, keep))

        await self._queue(Job(put))

    async def put_state(self, pool_id: str, state: str) -> None:
        state.encode()
        await self._queue(Job(lambda connection: connection.execute(rows.PUT_STATE, (pool_id, state))))

    async def delete_pool(self, pool_id: str) -> None:
        await self._queue(Job(lambda connection: connection.execute(rows.DELETE_POOL, (pool_id,))))

    async def reserve_fences(self) -> range:
        now = self._wall()
        block: range = await self._queue(Job(lambda connection: rows.reserve_fences(connection, now)))
        return block

    def kept_leases(self) -> KeptLeases:
        return self._opened.kept

    def vouch_for_leases(self) -> None:
        self._log.vouch()

    def record(self, granted: Sequence[tuple[str, Lease]], ended: Sequence[EndedLease]) -> None:
        self._log.record(granted, ended)

    def batch(self) -> AbstractContextManager[None]:
        return self._log

    def close(self) -> None:
        """Waits for what is being written; what is still queued is refused. Closing again does nothing."""
        self._database.close()

    async def _queue(self, job: Job) -> Any:
        """Waits until the job is done. A caller that is cancelled leaves it in its place in the order."""
        result: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._gathered.append((job, result))
        if self._writer is None:
            self._writer = asyncio.ensure_future(self._write())
        return await result

    async def _write(self) -> None:
        try:
            while self._gathered:
                batch, self._gathered = self._gathered, []
                await self._write_together(batch)
        finally:
            self._writer = None
            _deliver(self._gathered, [closed(self._opened.directory)] * len(self._gathered))
            self._gathered = []

    async def _write_together(self, batch: Sequence[_Queued]) -> None:
        hop = self._workers.run(self._database.run, [job for job, _ in batch])
        (outcome,) = await asyncio.gather(hop, return_exceptions=True)
        if isinstance(outcome, asyncio.CancelledError | RuntimeError):  # the threads have been shut down
            _deliver(batch, [closed(self._opened.directory)] * len(batch))
        elif isinstance(outcome, BaseException):
            _deliver(batch, [outcome] * len(batch))
        else:
            self._log.note_changes(outcome.changes)
            _deliver(batch, outcome.results)


def _deliver(batch: Sequence[_Queued], results: Sequence[Any]) -> None:
    for (_, waiting), result in zip(batch, results, strict=True):
        if waiting.done():  # its caller was cancelled
            continue
        if isinstance(result, EnvironmentFault):
            waiting.set_exception(again(result))
        elif isinstance(result, BaseException):
            waiting.set_exception(result)
        else:
            waiting.set_result(result)
