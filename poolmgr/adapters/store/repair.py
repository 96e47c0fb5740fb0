"""What is done with a damaged database: it is put aside for people, and what can be read of it goes into a new one.

Nothing that was put aside is ever deleted, and there is no limit to it: each is one incident, and an operator's to look
at. The new database is whole and on the disk before the damaged one gets its other name, so that a crash in between
loses nothing.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

import apsw

from poolmgr.adapters.store import rows, schema
from poolmgr.adapters.store.epoch import sync_directory
from poolmgr.adapters.store.examine import close, connect, damage_found, host_id
from poolmgr.adapters.store.faults import DATABASE, DamageError
from poolmgr.adapters.store.rows import Instance
from poolmgr.model.pool import StoredPool

_NEW: Final = f"{DATABASE}.new"
_COMPANIONS: Final = ("", "-wal", "-shm", "-journal")


def replace_damaged(directory: Path, problem: str, wall: float) -> str:
    """Returns what to tell an operator. `wall` in Unix seconds. Raises OSError and apsw.Error."""
    instance, pools, lost = _salvage(directory)
    _build(directory, instance, pools, wall)
    kept = _put_aside(directory, wall)
    _install(directory)
    more = f"; {lost} or more could not be read" if lost else ""
    return (
        f"{DATABASE} was damaged ({problem}) and is kept as {kept}; {len(pools)} pools were taken over from it{more}. "
        f"Pools that are missing have to be made again"
    )


def finish_replacement(directory: Path, wall: float) -> str:
    """Ends what a crash cut short; empty when there is nothing to end. Raises OSError."""
    if (directory / DATABASE).exists() or not (directory / _NEW).exists():
        return ""
    _put_aside(directory, wall)
    _install(directory)
    return f"{DATABASE} was damaged and is kept beside it; what could be read was taken over from it"


def remove_leftover(directory: Path) -> None:
    """Of a replacement that did not come to its end, while the damaged one was still there."""
    for companion in _COMPANIONS:
        (directory / f"{_NEW}{companion}").unlink(missing_ok=True)


def _salvage(directory: Path) -> tuple[Instance, list[StoredPool], int]:
    instance = Instance(host_id())
    if not (directory / DATABASE).exists() or not (directory / DATABASE).stat().st_size:
        return instance, [], 0  # looking at an empty one would cost its WAL
    connection = connect(directory / DATABASE)
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    try:
        version = schema.VERSION
        with suppress(DamageError), damage_found():
            version = schema.version_of(connection) or version
        with suppress(DamageError), damage_found():
            instance = rows.load_instance(connection, version)
        return instance, *rows.salvage(connection, version)
    finally:
        close(connection)


def _build(directory: Path, instance: Instance, pools: list[StoredPool], wall: float) -> None:
    remove_leftover(directory)
    connection = connect(directory / _NEW)
    try:
        connection.execute("PRAGMA synchronous = FULL")
        with connection:
            schema.migrate(connection, 0, wall)
            rows.put_instance(connection, instance)
            rows.write(connection, pools)
    finally:
        connection.close()
    sync_directory(directory)


def _put_aside(directory: Path, wall: float) -> str:
    seconds = int(wall)
    while any((directory / f"{DATABASE}.damaged-{seconds}{companion}").exists() for companion in _COMPANIONS):
        seconds += 1
    kept = f"{DATABASE}.damaged-{seconds}"
    for companion in _COMPANIONS:
        if (directory / f"{DATABASE}{companion}").exists():
            os.rename(directory / f"{DATABASE}{companion}", directory / f"{kept}{companion}")
    sync_directory(directory)
    return kept


def _install(directory: Path) -> None:
    os.rename(directory / _NEW, directory / DATABASE)
    sync_directory(directory)
