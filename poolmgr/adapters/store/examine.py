"""A database that is found: whether it is ours, whole, and of a version that we know, without a change to it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

import apsw

from poolmgr.adapters.store import rows, schema
from poolmgr.adapters.store.faults import DATABASE, DamageError, refused
from poolmgr.adapters.store.rows import Instance

_MACHINE_ID: Final = Path("/etc/machine-id")
_JOURNAL_MAGIC: Final = bytes.fromhex("d9d505f920a163d7")


@dataclass(frozen=True, slots=True)
class Examined:
    """`instance` is None for a database that is new: `version` 0."""

    connection: apsw.Connection
    version: int
    instance: Instance | None


def examine(directory: Path) -> Examined:
    """Opens the database for us alone. Raises EnvironmentFault(STATE_DIR) for one that is not ours to use, DamageError
    for one that is ours and damaged, and apsw.Error for what SQLite could not do; it is closed again then.
    """
    _refuse_journal(directory)
    _require_both(directory)
    if _size(directory / DATABASE) and not _size(directory / f"{DATABASE}-wal"):
        # An ordinary first look would make a WAL beside a database that is about to be refused.
        with _closing(_immutable(directory / DATABASE)) as connection, damage_found():
            _counted(connection, directory)
    connection = connect(directory / DATABASE)
    try:
        # Closing would move what a WAL holds into a database that is about to be refused.
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        with damage_found():
            return _examine(connection, directory)
    except BaseException:
        close(connection)
        raise


def close(connection: apsw.Connection) -> None:
    """Lets go of a database whose closing nobody can be told of: what was acknowledged is in its WAL."""
    with suppress(apsw.Error):
        connection.close()


def connect(path: Path) -> apsw.Connection:
    connection = apsw.Connection(str(path))
    schema.register(connection)
    # Before the first look: the index of the WAL is then kept in memory, and no file is made or touched.
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    return connection


@contextmanager
def damage_found() -> Iterator[None]:
    """What SQLite says of a damaged database as DamageError."""
    try:
        yield
    except (apsw.NotADBError, apsw.CorruptError, apsw.FormatError, apsw.SQLError, apsw.MismatchError) as error:
        raise DamageError(str(error)) from error
    except UnicodeDecodeError as error:
        raise DamageError(f"a text is none: {error}") from error


def host_id() -> str:
    """What stays the same over boots of this host and differs between hosts; empty where the host does not say.

    Hashed, as machine-id(5) asks of whoever stores it.
    """
    try:
        machine = _MACHINE_ID.read_text("ascii", "replace").strip()
    except OSError:
        return ""
    return hashlib.sha256(f"poolmgr:{machine}".encode()).hexdigest() if machine else ""


def _examine(connection: apsw.Connection, directory: Path) -> Examined:
    version, instance = _counted(connection, directory)
    problem = connection.execute("PRAGMA quick_check(1)").get
    if problem != "ok":
        raise DamageError(str(problem))
    if version:
        rows.load(connection, version)
    return Examined(connection, version, instance)


def _counted(connection: apsw.Connection, directory: Path) -> tuple[int, Instance | None]:
    """The version, and the counters where it has them. Raises EnvironmentFault for a database that is not ours."""
    version = schema.version_of(connection)
    if version is None:
        raise refused(directory, f"{DATABASE} is not a database of poolmgr")
    if version > schema.VERSION:
        newer = f"{DATABASE} has version {version}, and this poolmgr knows up to {schema.VERSION}: upgrade it"
        raise refused(directory, newer)
    instance = rows.load_instance(connection, version) if version else None
    host = host_id()
    if instance is not None and instance.host and host and instance.host != host:
        raise refused(directory, f"{DATABASE} was made on another host")
    return version, instance


def _immutable(path: Path) -> apsw.Connection:
    """A database of which nobody has a WAL, read without a lock and without a file beside it."""
    connection = apsw.Connection(
        f"file:{quote(str(path))}?immutable=1", flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
    )
    schema.register(connection)
    return connection


@contextmanager
def _closing(connection: apsw.Connection) -> Iterator[apsw.Connection]:
    try:
        yield connection
    finally:
        close(connection)


def _refuse_journal(directory: Path) -> None:
    """Ours has a WAL from its first table on; a journal that is older than a table is of its making, and empties it."""
    try:
        with (directory / f"{DATABASE}-journal").open("rb") as journal:
            head = journal.read(20)
    except FileNotFoundError:
        return
    if head[:8] == _JOURNAL_MAGIC and int.from_bytes(head[16:20], "big"):
        raise refused(directory, f"another program was stopped while it wrote to {DATABASE}; open it with that program")


def _require_both(directory: Path) -> None:
    """SQLite deletes the WAL of an empty database at the first look."""
    wal = directory / f"{DATABASE}-wal"
    if not _size(directory / DATABASE) and _size(wal):
        raise DamageError(f"it is empty, and {wal.name} is not")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
