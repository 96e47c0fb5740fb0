"""Following an engine's log by inotify, across the shim's cuts."""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
from collections.abc import AsyncGenerator, Iterator
from contextlib import suppress
from pathlib import Path

from poolmgr.adapters.runtimes.enginedir import TAIL_BYTES, EngineDirectory
from poolmgr.adapters.shim import wire

_IN_MODIFY, _IN_MOVED_TO, _IN_CREATE, _IN_IGNORED = 0x2, 0x80, 0x100, 0x8000
_IN_CLOEXEC, _IN_NONBLOCK = os.O_CLOEXEC, os.O_NONBLOCK
_EVENT = struct.Struct("iIII")
_BATCH_BYTES = 64 * 1024

_libc = ctypes.CDLL(None, use_errno=True)


async def follow(directory: EngineDirectory, lines: int) -> AsyncGenerator[tuple[str, ...], None]:
    """The last `lines` lines, then new ones in batches of at most 64 KiB, until the directory is removed.

    Raises OSError when the host has no inotify instance to give.
    """
    changes = _Changes(directory.path)
    try:
        log = _Log(directory, lines)
        yield log.first
        while True:
            batch = log.read()
            if batch is None:
                if not await changes.next(log):
                    return
            elif batch:
                yield batch
    finally:
        changes.close()


class _Log:
    """A reader at a place in the log. `first`: what it passed over to get there."""

    def __init__(self, directory: EngineDirectory, lines: int) -> None:
        self._path = directory.log
        self._old = directory.path / wire.OLD_LOG
        self._rest = b""
        self._offset = 0
        with suppress(FileNotFoundError):
            self._offset = max(0, self._path.stat().st_size - TAIL_BYTES)
        skipped_into_a_line = self._offset > 0
        found = self.read() or ()
        if skipped_into_a_line and len(found) > 1:
            found = found[1:]
        self.first = found[-lines:] if lines > 0 else ()

    def read(self) -> tuple[str, ...] | None:
        """The next whole lines, none if the next one is not whole yet; None at the end."""
        data = b""
        with suppress(FileNotFoundError), self._path.open("rb") as file:
            data = os.pread(file.fileno(), _BATCH_BYTES, self._offset)
        if not data:
            return None
        self._offset += len(data)
        whole, newline, self._rest = (self._rest + data).rpartition(b"\n")
        if not newline and len(self._rest) > _BATCH_BYTES:
            whole, newline, self._rest = self._rest, b"\n", b""
        return tuple(whole.decode(errors="replace").split("\n")) if newline else ()

    def was_cut(self) -> None:
        """The shim moved the head to `log.1`, which is as long as what is missing now."""
        with suppress(FileNotFoundError):
            self._offset = max(0, self._offset - self._old.stat().st_size)


class _Changes:
    """inotify(7) on the engine's directory."""

    def __init__(self, directory: Path) -> None:
        self._fd: int = _libc.inotify_init1(_IN_CLOEXEC | _IN_NONBLOCK)
        if self._fd < 0:
            raise _error()
        mask = _IN_MODIFY | _IN_MOVED_TO | _IN_CREATE
        if _libc.inotify_add_watch(self._fd, os.fsencode(directory), ctypes.c_uint32(mask)) < 0:
            error = _error()
            os.close(self._fd)
            raise error
        self._loop = asyncio.get_running_loop()
        self._ready = asyncio.Event()
        self._loop.add_reader(self._fd, self._ready.set)

    async def next(self, log: _Log) -> bool:
        """Waits until the log may have changed; False once the directory is gone."""
        await self._ready.wait()
        self._ready.clear()
        alive = True
        for mask, name in self._drain():
            if mask & _IN_IGNORED:
                alive = False
            elif mask & _IN_MOVED_TO and name == wire.OLD_LOG.encode():
                log.was_cut()
        return alive

    def _drain(self) -> Iterator[tuple[int, bytes]]:
        with suppress(BlockingIOError):
            data = os.read(self._fd, 64 * 1024)
            while data:
                _, mask, _, length = _EVENT.unpack_from(data)
                yield mask, data[_EVENT.size : _EVENT.size + length].rstrip(b"\0")
                data = data[_EVENT.size + length :]

    def close(self) -> None:
        self._loop.remove_reader(self._fd)
        os.close(self._fd)


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
