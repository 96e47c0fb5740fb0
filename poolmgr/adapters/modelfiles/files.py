"""Opening what somebody named as a model: only regular files, and errors as ours."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader

from poolmgr.adapters.modelfiles.bounds import invalid, limited, missing


@contextmanager
def opened(path: str) -> Iterator[tuple[BufferedReader, int]]:
    """The file and its size. ClientError MODEL_NOT_FOUND for what cannot be read, MODEL_INVALID for no regular file."""
    if "\0" in path:
        invalid(path.replace("\0", "\\0"), "has a NUL byte in its name")
    try:
        # Looked at before it is opened: opening a FIFO would wait for its writer.
        if not stat.S_ISREG(os.stat(path).st_mode):
            invalid(path, "is not a regular file")
        with open(path, "rb") as file:
            yield file, os.fstat(file.fileno()).st_size
    except OSError as error:
        missing(path, error)


def whole(path: str, what: str, limit: int) -> bytes:
    """A small file's bytes, at most `limit`. Raises as `opened`."""
    with opened(path) as (file, size):
        limited(path, f"the size of its {what}", size, limit)
        return file.read(limit)
