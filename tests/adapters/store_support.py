"""Stores on a disk, and a disk that counts, fails, lies and loses power."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import apsw
import pytest

from poolmgr.adapters.store.faults import DATABASE
from poolmgr.adapters.store.sqlite import SqliteStore, open_store
from poolmgr.errors import EnvironmentFault
from poolmgr.model.lease import EndedLease, Lease, LeaseOutcome
from poolmgr.model.pool import EngineName, Origin, PoolRecord, PoolSpec

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"
WALL = 1e9
BOOT = "boot-1"
NOW = 500.0
SECTOR = 512


class Threads:
    async def run(self, function, *args):
        return await asyncio.to_thread(function, *args)


async def opened(state_dir: Path, wall: float = WALL, boot: str = BOOT, now: float = NOW) -> SqliteStore:
    return await open_store(state_dir, Threads(), lambda: wall, boot_id=boot, now=lambda: now)


async def refusal(state_dir: Path) -> EnvironmentFault:
    with pytest.raises(EnvironmentFault) as refused:
        (await opened(state_dir)).close()
    return refused.value


def record(generation: int = 1, pool_id: str = "chat") -> PoolRecord:
    return PoolRecord(pool_id, PoolSpec(EngineName.COMMAND), generation, Origin.API, 1.0)


def lease(name: str, fence: int = 1) -> Lease:
    return Lease(f"id-{name}", f"token-{name}", "holder", 15.0, 1, fence, "http://127.0.0.1:8080", 1234.5, "request")


def end(name: str, outcome: LeaseOutcome = LeaseOutcome.RELEASED) -> EndedLease:
    return EndedLease(f"id-{name}", f"token-{name}", outcome)


async def newest(store: SqliteStore) -> list[tuple[str, int]]:
    return [(pool.pool_id, pool.generations[-1].generation) for pool in await store.load()]


@contextmanager
def raw(state_dir: Path) -> Iterator[apsw.Connection]:
    """The database as any other program sees it; closing leaves an existing WAL where it is."""
    connection = apsw.Connection(str(state_dir / DATABASE))
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    yield connection
    connection.close()


def snapshot(state_dir: Path) -> dict[str, tuple[bytes, int, int]]:
    """Every name in the directory with its bytes, its time of change, and its inode; and the directory's own time."""
    found = {".": (b"", state_dir.stat().st_mtime_ns, state_dir.stat().st_ino)}
    for path in state_dir.iterdir():
        found[path.name] = (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino)
    return found


@dataclass
class Disk:
    """What SQLite's files go through. Without `buffered` it only counts, and fails where `fail` says.

    With it, unsynced writes stay here and reach no file: `cut` loses a random part of them and tears others at a
    sector; `honest` False is a disk whose sync does nothing. `calls` are (what, file name) in order.
    """

    buffered: bool = False
    honest: bool = True
    seed: int = 0
    fail: Callable[[str, str, int], apsw.Error | None] = lambda what, name, number: None
    calls: list[tuple[str, str]] = field(default_factory=list)
    files: dict[str, bytearray] = field(default_factory=dict)
    unsynced: dict[str, list[tuple[int, bytes]]] = field(default_factory=dict)

    def called(self, what: str, name: str) -> None:
        self.calls.append((what, Path(name).name))
        error = self.fail(what, Path(name).name, len(self.calls))
        if error is not None:
            raise error

    def cut(self) -> None:
        """The power fails: of every file that part of its unsynced writes which had reached the disk is there."""
        chance = random.Random(self.seed)
        for name, writes in self.unsynced.items():
            content = bytearray(Path(name).read_bytes())
            for offset, data in writes:
                if offset < 0:  # a truncation, to this size
                    if chance.random() < 0.5:
                        del content[int.from_bytes(data, "big") :]
                    continue
                for start in range(0, len(data), SECTOR):
                    if chance.random() < 0.5:
                        _put(content, offset + start, data[start : start + SECTOR])
            Path(name).write_bytes(content)
        self.forget()

    def forget(self) -> None:
        self.unsynced.clear()
        self.files.clear()


def _put(content: bytearray, offset: int, data: bytes) -> None:
    if len(content) < offset:
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(data)] = data


def disk_error(kind: type[apsw.Error], code: int, text: str) -> apsw.Error:
    error = kind(text)
    error.extendedresult = code
    return error


def full(text: str = "no space left on device") -> apsw.Error:
    return disk_error(apsw.FullError, apsw.SQLITE_FULL, text)


def io_error(code: int = apsw.SQLITE_IOERR_WRITE) -> apsw.Error:
    return disk_error(apsw.IOError, code, "input/output error")


USUAL = apsw.vfs_details()[0]["zName"]


class File(apsw.VFSFile):
    def __init__(self, disk: Disk, filename, flags):
        self.disk = disk
        self.name = filename.filename() if isinstance(filename, apsw.URIFilename) else str(filename)
        super().__init__(USUAL, filename, flags)
        if disk.buffered and self.name not in disk.files:
            disk.files[self.name] = bytearray(Path(self.name).read_bytes())
            disk.unsynced[self.name] = []

    def xRead(self, amount, offset):
        self.disk.called("read", self.name)
        if not self.disk.buffered:
            return super().xRead(amount, offset)
        return bytes(self.disk.files[self.name][offset : offset + amount])

    def xWrite(self, data, offset):
        self.disk.called("write", self.name)
        if not self.disk.buffered:
            super().xWrite(data, offset)
            return
        _put(self.disk.files[self.name], offset, bytes(data))
        self.disk.unsynced[self.name].append((offset, bytes(data)))

    def xTruncate(self, size):
        self.disk.called("truncate", self.name)
        if not self.disk.buffered:
            super().xTruncate(size)
            return
        del self.disk.files[self.name][size:]
        self.disk.unsynced[self.name].append((-1, size.to_bytes(8, "big")))

    def xSync(self, flags):
        self.disk.called("sync", self.name)
        super().xSync(flags)
        if self.disk.buffered and self.disk.honest:
            Path(self.name).write_bytes(self.disk.files[self.name])
            self.disk.unsynced[self.name] = []

    def xFileSize(self):
        return len(self.disk.files[self.name]) if self.disk.buffered else super().xFileSize()


class Files(apsw.VFS):
    def __init__(self, disk: Disk):
        self.disk = disk
        super().__init__("disk", USUAL, makedefault=True)

    def xOpen(self, name, flags):
        return File(self.disk, name, flags)

    def xDelete(self, name, syncdir):
        self.disk.called("delete", name)
        self.disk.files.pop(name, None)
        self.disk.unsynced.pop(name, None)
        super().xDelete(name, syncdir)


@contextmanager
def on(disk: Disk) -> Iterator[Disk]:
    """Every database that is opened inside lies on `disk`."""
    vfs, usual = Files(disk), sys.unraisablehook
    # What SQLite expects to fail, and goes on without, has no caller that it could be raised to.
    sys.unraisablehook = lambda given: None if isinstance(given.exc_value, apsw.Error) else usual(given)
    try:
        yield disk
    finally:
        sys.unraisablehook = usual
        apsw.set_default_vfs(USUAL)
        vfs.unregister()
