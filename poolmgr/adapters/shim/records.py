"""Small JSON files that are always whole: written beside, then renamed over the old one."""

from __future__ import annotations

import os

from . import wire


def write(path: str, record: wire.Message, *, durable: bool) -> None:
    """Replaces a record; `durable`: it outlasts a power cut before this returns. Raises OSError."""
    temporary = path + ".new"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(wire.encode(record))
        file.flush()
        if durable:
            os.fsync(fd)
    os.rename(temporary, path)
    if durable:
        _sync(os.path.dirname(path) or ".")


def make_durable(path: str) -> None:
    """What `write` left to be done later. Raises OSError."""
    _sync(path)
    _sync(os.path.dirname(path) or ".")


def read(path: str) -> wire.Message | None:
    """None when there is none. Raises OSError, and ValueError for one that is damaged."""
    try:
        with open(path, "rb") as file:
            return wire.decode(file.read())
    except FileNotFoundError:
        return None


def _sync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
