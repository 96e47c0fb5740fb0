"""What the host could not do for an engine, as callers of the runtime hear of it."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from poolmgr.errors import EnvironmentFault, Reason


def fault(reason: Reason, what: str, path: str, error: OSError) -> EnvironmentFault:
    """`what: why`, with `errno` and `path`."""
    message = f"{what}: {error.strerror or error}"
    return EnvironmentFault(reason, message, numbers={"errno": error.errno or 0, "path": path})


@contextmanager
def state_faults(path: Path) -> Iterator[None]:
    """Turns OSError into EnvironmentFault(STATE_DIR), naming the file that it is about or else `path`."""
    try:
        yield
    except OSError as error:
        name = error.filename if isinstance(error.filename, str) else str(path)
        raise fault(Reason.STATE_DIR, name, name, error) from error


def probe_host(directory: Path) -> None:
    """Does once what every start of an engine needs: a durable file and a process. Blocking.

    Raises EnvironmentFault(HOST_FAULT) with `errno` and `path`.
    """
    try:
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(b"poolmgr")
            file.flush()
            os.fsync(file.fileno())
        pid = os.posix_spawn(sys.executable, [sys.executable, "-I", "-S", "-c", ""], {})
        os.waitid(os.P_PID, pid, os.WEXITED)
    except OSError as error:
        raise fault(Reason.HOST_FAULT, "the host cannot start an engine", str(directory), error) from error
