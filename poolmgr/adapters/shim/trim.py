"""Bounding the engine's log under its feet: the writer keeps its descriptor and no line is lost where the file system
can cut a file's head off (ext4, XFS)."""

from __future__ import annotations

import os
from collections.abc import Iterator

from . import linux, wire

_CHUNK = 256 * 1024
_NOTICE = b"poolmgr: log truncated here; lines written in that moment may be lost\n"


def trim(limit: int) -> Iterator[None]:
    """Moves the older part of the log to `log.1`, leaving `limit` / 2 bytes; a piece of work per step.

    `log.1` is as long as what was cut, so a reader of the log knows how far everything moved; of a head longer than
    `limit` the first part is a hole. The head is cut before the rename: who sees the new `log.1` sees the cut done.
    Raises OSError.
    """
    temporary = wire.OLD_LOG + ".new"
    log = os.open("/proc/self/fd/1", os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
    old = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        block = os.fstatvfs(log).f_bsize
        head = (os.fstat(log).st_size - limit // 2) // block * block
        if head <= 0:
            return
        yield from _copy(log, old, max(0, head - limit), head)
        if not linux.collapse_range(log, head):
            yield from _copy(log, old, head, None)
            os.ftruncate(log, 0)
            os.write(log, _NOTICE)
        os.rename(temporary, wire.OLD_LOG)
    finally:
        os.close(old)
        os.close(log)


def _copy(log: int, old: int, start: int, end: int | None) -> Iterator[None]:
    """Copies [start, end) to the same place; `end` None: to the end of the file, wherever it is by then."""
    if end is not None:
        os.ftruncate(old, end)
    while end is None or start < end:
        data = os.pread(log, _CHUNK if end is None else min(_CHUNK, end - start), start)
        if not data:
            return
        try:
            os.pwrite(old, data, start)
        except OSError:
            # A full disk: then the log must shrink all the more, and what could not be copied stays a hole.
            return
        start += len(data)
        yield
