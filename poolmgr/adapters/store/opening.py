"""How a state directory is taken over: looked at without a change, refused or mended, and counted once more."""

from __future__ import annotations

import ctypes
import os
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import apsw

from poolmgr.adapters.store import epoch, leaselog, repair, rows, schema
from poolmgr.adapters.store.epoch import Counted
from poolmgr.adapters.store.examine import Examined, close, examine, host_id
from poolmgr.adapters.store.faults import DATABASE, DamageError, directory_faults, refused, sqlite_faults
from poolmgr.adapters.store.leaselog import Found, LeaseLog
from poolmgr.adapters.store.limits import first_epoch
from poolmgr.adapters.store.lock import LOCK, InstanceLock
from poolmgr.adapters.store.rows import Instance
from poolmgr.model.lease import KeptLeases

_OURS: Final = (".", DATABASE, f"{DATABASE}-wal", epoch.EPOCH, LOCK, *leaselog.FILES)

_WAL_HEADER: Final = 32  # bytes, of which the first four say that it is one


@dataclass(frozen=True, slots=True)
class Opened:
    """A state directory that is ours until `undo` is closed."""

    directory: Path
    connection: apsw.Connection
    log: LeaseLog
    kept: KeptLeases
    epoch: int
    changes: int
    warnings: tuple[str, ...]
    undo: ExitStack


def open_state(directory: Path, wall: float, boot_id: str, now: float) -> Opened:
    """`wall` in Unix seconds, `now` in boot-time seconds. Raises what `sqlite.open_store` says."""
    with ExitStack() as undo, directory_faults(directory), sqlite_faults(directory):
        _own_directory(directory)
        lock = InstanceLock(directory)
        undo.callback(lock.release)
        found, copy = leaselog.read(directory, boot_id, now), epoch.read(directory)
        warnings: list[str] = []
        examined = _take_over(directory, wall, warnings)
        connection = examined.connection
        undo.callback(_close, connection, directory)
        before = examined.instance
        if not warnings:
            warnings += _losses(before, found, copy)
        warnings += _lost_leases(before, found)
        instance = _next(before, found, copy, wall)
        _begin(examined, instance, wall)
        log = LeaseLog.begin(directory, found, boot_id, instance.epoch, instance.changes)
        undo.callback(log.close)
        warnings += _leave_copies(directory, lock, instance)
        return Opened(
            directory, connection, log, found.kept, instance.epoch, instance.changes, tuple(warnings), undo.pop_all()
        )


def _own_directory(directory: Path) -> None:
    if not directory.exists():
        directory.mkdir(mode=0o700, parents=True)
        epoch.sync_directory(directory.parent)
    for name in _OURS:
        path = directory / name
        if not path.exists():
            continue
        owner = path.stat().st_uid
        if owner != os.geteuid():
            raise refused(directory, f"{path} belongs to uid {owner}, and this daemon runs as {os.geteuid()}")
        if name != "." and not path.is_file():
            raise refused(directory, f"{path} is not a file")
    if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
        raise refused(directory, "this daemon may not write to it")


def _take_over(directory: Path, wall: float, warnings: list[str]) -> Examined:
    finished = repair.finish_replacement(directory, wall)
    if finished:
        warnings.append(finished)
    try:
        return examine(directory)
    except DamageError as damage:
        warnings.append(repair.replace_damaged(directory, str(damage), wall))
    try:
        return examine(directory)
    except DamageError as damage:
        # What was written a moment ago reads back otherwise: the disk or the memory is at fault, not the file.
        raise refused(directory, f"a new {DATABASE} is damaged at once: {damage}") from damage


def _losses(before: Instance | None, found: Found, copy: Counted | None) -> list[str]:
    """What the copies of the counters tell of a database that looks whole."""
    counted = max(found.epoch, 0 if copy is None else copy.epoch)
    if before is None:
        return [f"{DATABASE} was missing or empty, and this directory has been used before: its pools are lost"] * (
            counted > 0
        )
    if before.epoch < counted or before.changes < found.changes:
        return [
            f"{DATABASE} is whole, but older than the last change that was acknowledged: it is a copy, or its WAL was "
            f"lost or damaged. Changes to pools are missing"
        ]
    return []


def _lost_leases(before: Instance | None, found: Found) -> list[str]:
    if not found.lost or before is None or not before.changes:  # without a change there was never a pool to lease
        return []
    names = ", ".join(leaselog.FILES)
    return [f"the records of leases ({names}) are missing or damaged: leases may be out that nobody knows of"]


def _next(before: Instance | None, found: Found, copy: Counted | None, wall: float) -> Instance:
    """The counters of this opening: above every copy that can be read."""
    base = before or Instance(host_id())
    last = max(base.epoch, found.epoch, 0 if copy is None else copy.epoch)
    fences = max(base.fences, found.next_fence, 1 if copy is None else copy.fences)
    return replace(base, host=base.host or host_id(), epoch=last + 1 if last else first_epoch(wall), fences=fences)


def _begin(examined: Examined, instance: Instance, wall: float) -> None:
    """Migrates and counts this opening, in one transaction: a crash leaves the old version or the new one."""
    connection = examined.connection
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0)
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "wal_autocheckpoint = 0"):
        connection.execute(f"PRAGMA {pragma}")
    # The WAL keeps its room on the disk when it is closed, so that a daemon can start on a disk that is full: `_close`.
    persist = ctypes.c_int(1)
    connection.file_control("main", apsw.SQLITE_FCNTL_PERSIST_WAL, ctypes.addressof(persist))
    connection.transaction_mode = "IMMEDIATE"
    with suppress(apsw.FullError):
        connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
    with connection:
        schema.migrate(connection, examined.version, wall)
        rows.put_instance(connection, instance)
    with suppress(apsw.FullError):
        connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)


def _close(connection: apsw.Connection, directory: Path) -> None:
    """No error: what was acknowledged is in the WAL, where it could not be moved.

    When all of it was, the WAL's header is wiped. SQLite would still take what it holds for news, also beside another
    database that somebody put in this one's place.
    """
    moved = False
    with suppress(apsw.Error):
        if not connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, -1):
            pages, done = connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            moved = pages == done
    close(connection)
    if moved:
        with suppress(OSError), (directory / f"{DATABASE}-wal").open("r+b") as wal:
            wal.write(bytes(_WAL_HEADER))


def _leave_copies(directory: Path, lock: InstanceLock, instance: Instance) -> list[str]:
    """The epoch is durable in the database by now: a copy that cannot be written keeps nobody from working."""
    with suppress(OSError):
        lock.sign()
        repair.remove_leftover(directory)
    try:
        epoch.write(directory, Counted(instance.epoch, instance.fences))
    except OSError as error:
        return [f"the copy of the epoch could not be written to {directory / epoch.EPOCH}: {error.strerror}"]
    return []
