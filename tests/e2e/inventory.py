"""What a daemon has of its host, seen from outside: the before and after of every test of bad input."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, fields
from pathlib import Path

from poolmgr.adapters.runtimes.cgroup import Hierarchy
from tests.e2e.daemon import Daemon

Rows = Mapping[str, tuple[tuple[object, ...], ...]]


@dataclass(frozen=True)
class Inventory:
    """`processes`: (pid, command line). `rows`: of every table. `leaves`: engines' cgroups. `descriptors`: by kind."""

    processes: frozenset[tuple[int, str]]
    files: frozenset[str]
    rows: Rows
    leaves: frozenset[str]
    descriptors: Mapping[str, int]

    def difference(self, other: Inventory) -> str:
        """What differs, by name; empty when nothing does."""
        parts = [f.name for f in fields(self) if getattr(self, f.name) != getattr(other, f.name)]
        return "\n".join(f"{name}: {getattr(self, name)}\n  is now {getattr(other, name)}" for name in parts)


def inventory(daemon: Daemon, scratch: Path, engine_ids: Collection[str]) -> Inventory:
    """`scratch`: a directory for a copy of the database, which the daemon has to itself. `engine_ids`: of its leaves;
    those of other daemons may lie beside them.
    """
    return Inventory(
        processes=frozenset((p.pid, " ".join(p.cmdline())) for p in daemon.family()),
        files=frozenset(str(path.relative_to(daemon.state)) for path in daemon.state.rglob("*")),
        rows=_rows(daemon.state, scratch),
        leaves=frozenset(id_ for id_ in engine_ids if (place_of_leaves(daemon.pid) / id_).exists()),
        descriptors=_descriptors(daemon.pid),
    )


def _rows(state: Path, scratch: Path) -> Rows:
    for name in ("state.db", "state.db-wal"):
        with suppress(FileNotFoundError):
            shutil.copy(state / name, scratch / name)
    with closing(sqlite3.connect(scratch / "state.db")) as copy:
        tables = [name for (name,) in copy.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        # How many changes there were is no row that is left behind.
        columns = {"instance": "host, epoch"}
        return {
            table: tuple(sorted(copy.execute(f"SELECT {columns.get(table, '*')} FROM {table}"), key=repr))
            for table in tables
        }


def place_of_leaves(pid: int) -> Path:
    hierarchy = Hierarchy.find()
    own = hierarchy.directory_of(pid) if hierarchy else None
    return Path("/nonexistent") if own is None else own / "poolmgr"


def _descriptors(pid: int) -> Mapping[str, int]:
    kinds: Counter[str] = Counter()
    for entry in os.scandir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):
            kinds[os.readlink(entry.path).split(":[")[0]] += 1
    return kinds
