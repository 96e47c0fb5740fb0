"""The tables, and how a database of an earlier version becomes one of this version.

`MIGRATIONS[n]` leads from version n to n + 1; version 0 is an empty file. A migration that was released is never
edited: another one follows it.

SQLite finds a damaged page by its structure only, so every row that is read back carries a checksum of its own, made by
the SQL function `checksum`.
"""

from __future__ import annotations

import zlib
from typing import Final

import apsw

from poolmgr.adapters.store.faults import DamageError

APPLICATION_ID: Final = 0x706F6F6C  # "pool", in the header of every database since version 2

MIGRATIONS: Final[tuple[str, ...]] = (
    """
    CREATE TABLE schema_version (version INTEGER PRIMARY KEY, applied_at REAL NOT NULL) STRICT;
    CREATE TABLE instance (
        only INTEGER PRIMARY KEY CHECK (only = 1),
        host TEXT NOT NULL,
        epoch INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE pool (
        pool_id TEXT PRIMARY KEY,
        origin TEXT NOT NULL,
        create_time REAL NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE generation (
        pool_id TEXT NOT NULL REFERENCES pool (pool_id) ON DELETE CASCADE,
        generation INTEGER NOT NULL CHECK (generation >= 1),
        spec TEXT NOT NULL,
        PRIMARY KEY (pool_id, generation)
    ) STRICT, WITHOUT ROWID;
    """,
    # Version 1 drew fencing numbers from `epoch << 40`, so they begin above its last epoch. It did not say when a
    # generation was made, only when its pool was. `changes` counts transactions.
    """
    PRAGMA application_id = 0x706F6F6C;
    ALTER TABLE instance ADD COLUMN fences INTEGER NOT NULL DEFAULT 1;
    ALTER TABLE instance ADD COLUMN changes INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE instance ADD COLUMN checksum INTEGER NOT NULL DEFAULT 0;
    UPDATE instance SET fences = (epoch + 1) << 40;
    UPDATE instance SET checksum = checksum(host, epoch, fences, changes);
    ALTER TABLE pool ADD COLUMN state TEXT NOT NULL DEFAULT '';
    ALTER TABLE pool ADD COLUMN checksum INTEGER NOT NULL DEFAULT 0;
    UPDATE pool SET checksum = checksum(pool_id, origin, create_time, state);
    ALTER TABLE generation ADD COLUMN create_time REAL NOT NULL DEFAULT 0;
    ALTER TABLE generation ADD COLUMN checksum INTEGER NOT NULL DEFAULT 0;
    UPDATE generation SET create_time = (SELECT create_time FROM pool WHERE pool.pool_id = generation.pool_id);
    UPDATE generation SET checksum = checksum(pool_id, generation, create_time, spec);
    """,
)
VERSION: Final = len(MIGRATIONS)


def checksum(*columns: object) -> int:
    """CRC-32 over the columns of one row, each with its type: a flipped bit in any of them is found."""
    return zlib.crc32(repr(columns).encode())


def register(database: apsw.Connection) -> None:
    database.create_scalar_function("checksum", checksum, deterministic=True)


def version_of(database: apsw.Connection) -> int | None:
    """0 for an empty database, None for one that is not poolmgr's. Reads only. Raises DamageError."""
    tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    marked = database.pragma("application_id") == APPLICATION_ID
    if "schema_version" not in tables:
        if marked:
            raise DamageError("it has no table schema_version")
        return None if tables else 0
    versions = [version for (version,) in database.execute("SELECT version FROM schema_version ORDER BY version")]
    if versions and versions[-1] > VERSION:
        return int(versions[-1])  # also with gaps: whether that is damage, a later version may know
    if not versions or versions != list(range(1, len(versions) + 1)):
        raise DamageError(f"its versions are {versions}")
    return len(versions)


def migrate(database: apsw.Connection, version: int, wall: float) -> None:
    """Runs what lies between `version` and VERSION, inside the caller's transaction. `wall` in Unix seconds."""
    for number, statements in enumerate(MIGRATIONS[version:], start=version + 1):
        database.execute(statements)
        database.execute("INSERT INTO schema_version (version, applied_at) VALUES (?, ?)", (number, wall))
