"""The file `epoch`: a second copy of what must never be counted twice, for the day when the database is lost."""

from __future__ import annotations

import errno
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from poolmgr.adapters.store.limits import MAX_EPOCH

EPOCH: Final = "epoch"
_NEW: Final = "epoch.new"
_WORD: Final = "poolmgr"


@dataclass(frozen=True, slots=True)
class Counted:
    """How far one copy has counted: the last epoch, and the first fencing number not yet handed out."""

    epoch: int
    fences: int


def read(directory: Path) -> Counted | None:
    """None when there is no copy that can be read. Raises OSError for what the host refuses."""
    try:
        text = (directory / EPOCH).read_bytes()
    except FileNotFoundError:
        return None
    match text.split():
        case [word, epoch, fences, crc] if word == _WORD.encode() and _is_number(epoch) and _is_number(fences):
            counted = Counted(int(epoch), int(fences))
            if counted.epoch <= MAX_EPOCH and crc == _crc(counted):
                return counted
    return None


def write(directory: Path, counted: Counted) -> None:
    """Durable on return, and never half there. Raises OSError; the copy that was there stays then."""
    fd = os.open(directory / _NEW, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        text = f"{_WORD} {counted.epoch} {counted.fences} {_crc(counted).decode()}\n".encode()
        if os.write(fd, text) != len(text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory / _NEW))
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(directory / _NEW, directory / EPOCH)
    sync_directory(directory)


def sync_directory(directory: Path) -> None:
    """Makes durable which names the directory has. Raises OSError."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _is_number(text: bytes) -> bool:
    return text.isdigit() and len(text) <= 20


def _crc(counted: Counted) -> bytes:
    return f"{zlib.crc32(f'{_WORD} {counted.epoch} {counted.fences}'.encode()):08x}".encode()
