"""The Store on SQLite: one connection, one writer, WAL, `synchronous=FULL`.

SQLite before 3.51.3 can corrupt a WAL that two connections use, and a second daemon on one directory would start every
engine twice: so there is one connection, in `locking_mode=EXCLUSIVE`, behind an instance lock that names its holder.
A database that cannot be ours is refused before a byte of it is written.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, TypeVar

import apsw

from poolmgr.adapters.store import codec, schema
from poolmgr.adapters.store.lock import InstanceLock
from poolmgr.errors import EnvironmentFault, Reason
from poolmgr.model.pool import Origin, PoolRecord
from poolmgr.ports import Workers

T = TypeVar("T")

DATABASE: Final = "state.db"
LOCK: Final = "lock"
KEPT_GENERATIONS: Final = 20

_MACHINE_ID: Final = Path("/etc/machine-id")

_UPSERT_POOL: Final = """
    INSERT INTO pool (pool_id, origin, create_time) VALUES (?, ?, ?)
    ON CONFLICT (pool_id) DO UPDATE SET origin = excluded.origin, create_time = excluded.create_time
"""
_UPSERT_GENERATION: Final = """
    INSERT INTO generation (pool_id, generation, spec) VALUES (?, ?, ?)
    ON CONFLICT (pool_id, generation) DO UPDATE SET spec = excluded.spec
"""
_FORGET_GENERATIONS: Final = """
    DELETE FROM generation WHERE pool_id = ?1 AND generation NOT IN (
        SELECT generation FROM generation WHERE pool_id = ?1 ORDER BY generation DESC LIMIT ?2
    )
"""
_NEWEST: Final = """
    SELECT pool_id, origin, create_time, max(generation), spec
    FROM pool JOIN generation USING (pool_id) GROUP BY pool_id ORDER BY pool_id
"""
_NEXT_EPOCH: Final = """
    INSERT INTO instance (only, host, epoch) VALUES (1, ?, 1)
    ON CONFLICT (only) DO UPDATE SET epoch = epoch + 1 RETURNING epoch
"""


async def open_store(state_dir: Path, workers: Workers, wall: Callable[[], float]) -> SqliteStore:
    """Opens or makes the store in `state_dir`; its epoch is durable on return. `wall` gives Unix seconds.

    Raises EnvironmentFault: STATE_IN_USE (with `pid` where known) while another daemon has it; STATE_DIR, with nothing
    changed, when it cannot be used as it stands: no access, another owner, another host, a newer version, not a
    database, damaged; STORE_UNAVAILABLE with `sqlite_code` for what SQLite could not do.
    """
    database = await workers.run(_Database.open, state_dir, wall())
    return SqliteStore(database, workers)


class SqliteStore:
    """The `Store` port; `open_store` makes it. Changes are written one after the other, in the order of the calls."""

    def __init__(self, database: _Database, workers: Workers) -> None:
        self._database = database
        self._workers = workers
        self._turn = asyncio.Lock()

    @property
    def epoch(self) -> int:
        return self._database.epoch

    async def load(self) -> Sequence[PoolRecord]:
        return await self._queue(self._database.load)

    async def put_pool(self, record: PoolRecord) -> None:
        await self._queue(self._database.put, record)

    async def delete_pool(self, pool_id: str) -> None:
        await self._queue(self._database.delete, pool_id)

    def close(self) -> None:
        """Waits for the change that is being written; those still queued are refused. Closing again does nothing."""
        self._database.close()

    async def _queue(self, function: Callable[..., T], *args: object) -> T:
        # Shielded: a caller that is cancelled leaves its change in its place in the order, and the connection to the
        # thread that uses it. The task is held by what it waits for, the lock's queue or the executor, and its outcome
        # is looked at by `shield` where no caller is left; a disk that failed it refuses the next change too.
        return await asyncio.shield(asyncio.ensure_future(self._in_turn(function, *args)))

    async def _in_turn(self, function: Callable[..., T], *args: object) -> T:
        async with self._turn:  # asyncio's lock is fair: first come, first written
            return await self._workers.run(function, *args)


class _Database:
    """The blocking half. Its methods run on any thread, one at a time."""

    def __init__(self, directory: Path, connection: apsw.Connection, epoch: int, undo: ExitStack) -> None:
        self.epoch = epoch
        self._directory = directory
        self._connection = connection
        self._undo = undo
        self._mutex = threading.Lock()
        self._refusal: EnvironmentFault | None = None

    @classmethod
    def open(cls, directory: Path, wall: float) -> _Database:
        with ExitStack() as undo:
            with _directory_faults(directory):
                _own_directory(directory)
                undo.callback(InstanceLock(directory / LOCK).release)
            with _sqlite_faults(directory):
                connection = apsw.Connection(str(directory / DATABASE))
                undo.callback(connection.close)
                host = _host_id()
                version = _check(connection, directory, host)
                epoch = _begin_epoch(connection, version, host, wall)
            return cls(directory, connection, epoch, undo.pop_all())

    def load(self) -> list[PoolRecord]:
        with self._mutex, _sqlite_faults(self._directory):
            rows = list(self._connection.execute(_NEWEST))
        return [_record(self._directory, *row) for row in rows]

    def put(self, record: PoolRecord) -> None:
        spec = codec.encode(record.spec)
        with self._change() as connection:
            connection.execute(_UPSERT_POOL, (record.pool_id, record.origin.value, record.create_time))
            connection.execute(_UPSERT_GENERATION, (record.pool_id, record.generation, spec))
            connection.execute(_FORGET_GENERATIONS, (record.pool_id, KEPT_GENERATIONS))

    def delete(self, pool_id: str) -> None:
        with self._change() as connection:
            connection.execute("DELETE FROM pool WHERE pool_id = ?", (pool_id,))

    def close(self) -> None:
        with self._mutex, _sqlite_faults(self._directory):
            self._undo.close()

    @contextmanager
    def _change(self) -> Iterator[apsw.Connection]:
        """One transaction, durable when the block is left without an error."""
        with self._mutex, _sqlite_faults(self._directory):
            if self._refusal is not None:
                raise self._refusal
            try:
                with self._connection:
                    yield self._connection
            except apsw.IOError as error:
                # After a failed fsync the kernel may call lost pages clean, so the next fsync would lie.
                self._refusal = _unavailable(self._directory, error, "no more changes are taken until a restart: ")
                raise


def _own_directory(directory: Path) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in (directory, directory / DATABASE):
        if path.exists() and path.stat().st_uid != os.geteuid():
            owner = path.stat().st_uid
            raise _state_dir(directory, f"{path} belongs to uid {owner}, and this daemon runs as {os.geteuid()}")


def _check(connection: apsw.Connection, directory: Path, host: str) -> int:
    """The version of the database, when it is ours to write to; else raises EnvironmentFault(STATE_DIR)."""
    # Closing would move what a WAL holds into a database that is about to be refused.
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, int((directory / f"{DATABASE}-wal").exists()))
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    damage = connection.execute("PRAGMA quick_check(1)").get
    if damage != "ok":
        raise _state_dir(directory, f"{DATABASE} is damaged: {damage}")
    version = schema.version_of(connection)
    if version is None:
        raise _state_dir(directory, f"{DATABASE} is not a database of poolmgr")
    if version > schema.VERSION:
        raise _state_dir(
            directory, f"{DATABASE} has version {version}, and this poolmgr knows up to {schema.VERSION}: upgrade it"
        )
    made_on = connection.execute("SELECT host FROM instance").get if version else None
    if made_on and host and made_on != host:
        raise _state_dir(directory, f"{DATABASE} was made on another host")
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0)
    return version


def _begin_epoch(connection: apsw.Connection, version: int, host: str, wall: float) -> int:
    """Migrates and counts this opening, in one transaction: a crash leaves the old version or the new one."""
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}")
    connection.transaction_mode = "IMMEDIATE"
    with connection:
        schema.migrate(connection, version, wall)
        epoch: int = connection.execute(_NEXT_EPOCH, (host,)).get
    return epoch


def _record(directory: Path, pool_id: str, origin: str, create_time: float, generation: int, spec: str) -> PoolRecord:
    try:
        return PoolRecord(pool_id, codec.decode(spec), generation, Origin(origin), create_time)
    except ValueError as error:
        raise _state_dir(directory, f"generation {generation} of pool {pool_id} cannot be read: {error}") from error


def _host_id() -> str:
    """What stays the same over boots of this host and differs between hosts; empty where the host does not say.

    Hashed, as machine-id(5) asks of whoever stores it.
    """
    try:
        machine = _MACHINE_ID.read_text("ascii", "replace").strip()
    except OSError:
        return ""
    return hashlib.sha256(f"poolmgr:{machine}".encode()).hexdigest() if machine else ""


@contextmanager
def _directory_faults(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _state_dir(directory, f"{error.strerror}: {error.filename}") from error


@contextmanager
def _sqlite_faults(directory: Path) -> Iterator[None]:
    try:
        yield
    except (apsw.NotADBError, apsw.CorruptError) as error:
        raise _state_dir(directory, f"{DATABASE} is damaged or no database: {error}") from error
    except apsw.BusyError as error:
        raise EnvironmentFault(
            Reason.STATE_IN_USE, f"another program has {directory / DATABASE} open; close it and try again"
        ) from error
    except apsw.Error as error:
        raise _unavailable(directory, error) from error


def _unavailable(directory: Path, error: apsw.Error, consequence: str = "") -> EnvironmentFault:
    code: int = getattr(error, "extendedresult", apsw.SQLITE_ERROR)
    return EnvironmentFault(
        Reason.STORE_UNAVAILABLE,
        f"{directory / DATABASE}: {consequence}{error}",
        numbers={"sqlite_code": code, "directory": str(directory)},
    )


def _state_dir(directory: Path, problem: str) -> EnvironmentFault:
    return EnvironmentFault(
        Reason.STATE_DIR,
        f"the state directory {directory} cannot be used: {problem}. Nothing was changed. Name another directory "
        f"(state.dir), or mend this one; without its {DATABASE} the daemon begins anew",
        numbers={"directory": str(directory)},
    )
