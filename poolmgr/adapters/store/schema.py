"""The tables, and how a database of an earlier version becomes one of this version.

`MIGRATIONS[n]` leads from version n to n + 1; version 0 is an empty file. A migration that was released is never
edited: another one follows it.
"""

from __future__ import annotations

from typing import Final

import apsw

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
)
VERSION: Final = len(MIGRATIONS)


def version_of(database: apsw.Connection) -> int | None:
    """0 for an empty database, None for one that is not poolmgr's. Reads only."""
    tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not tables:
        return 0
    if "schema_version" not in tables:
        return None
    version: int | None = database.execute("SELECT max(version) FROM schema_version").get
    return version


def migrate(database: apsw.Connection, version: int, wall: float) -> None:
    """Runs what lies between `version` and VERSION, inside the caller's transaction. `wall` in Unix seconds."""
    for number, statements in enumerate(MIGRATIONS[version:], start=version + 1):
        database.execute(statements)
        database.execute("INSERT INTO schema_version (version, applied_at) VALUES (?, ?)", (number, wall))
