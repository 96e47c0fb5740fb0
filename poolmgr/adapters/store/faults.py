"""What goes wrong with a state directory, in words, as the errors of poolmgr."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import apsw

from poolmgr.errors import EnvironmentFault, Reason

DATABASE: Final = "state.db"

_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)
_DENIED: Final = (apsw.CantOpenError, apsw.ReadOnlyError, apsw.PermissionsError, apsw.AuthError)


class DamageError(Exception):
    """The database is ours and not as we left it. The text says what is wrong with it; never leaves the package."""


def refused(directory: Path, problem: str) -> EnvironmentFault:
    """A directory that this daemon must not or cannot use. Nothing in it was changed."""
    return EnvironmentFault(
        Reason.STATE_DIR,
        f"the state directory {directory} cannot be used: {problem}. Nothing was changed. Name another directory "
        f"(state.dir), or mend this one; without its {DATABASE} the daemon begins anew",
        numbers={"directory": str(directory)},
    )


def unavailable(directory: Path, error: apsw.Error, consequence: str = "") -> EnvironmentFault:
    return EnvironmentFault(
        Reason.STORE_UNAVAILABLE,
        f"{directory / DATABASE}: {consequence}{error}",
        numbers={"sqlite_code": sqlite_code(error), "directory": str(directory)},
    )


def closed(directory: Path) -> EnvironmentFault:
    return EnvironmentFault(
        Reason.STORE_UNAVAILABLE, f"{directory / DATABASE}: the store is closed", numbers={"directory": str(directory)}
    )


def broken(directory: Path, problem: str) -> EnvironmentFault:
    """The database was whole when it was opened."""
    return EnvironmentFault(
        Reason.STORE_UNAVAILABLE,
        f"{directory / DATABASE} was damaged while it was in use: {problem}. Restart the daemon: it puts that aside",
        numbers={"directory": str(directory)},
    )


def again(fault: EnvironmentFault) -> EnvironmentFault:
    """The same fault for one more caller: a raised exception carries the traceback of whom it was raised to."""
    return EnvironmentFault(fault.reason, fault.message, numbers=fault.numbers, retry_after=fault.retry_after)


def sqlite_code(error: apsw.Error) -> int:
    """The extended result code."""
    code: int = getattr(error, "extendedresult", apsw.SQLITE_ERROR)
    return code


def is_full(error: apsw.Error, system_errno: int) -> bool:
    """Whether there was no room for a write. A failed fsync is another matter, whatever its errno: see `is_fatal`."""
    if isinstance(error, apsw.FullError):
        return True
    return sqlite_code(error) == apsw.SQLITE_IOERR_WRITE and system_errno in _NO_ROOM


def is_fatal(error: apsw.Error, system_errno: int) -> bool:
    """Whether the handle can no longer be trusted: what failed may be on the disk or not, and a later fsync lies."""
    return isinstance(error, apsw.IOError | apsw.CorruptError) and not is_full(error, system_errno)


@contextmanager
def directory_faults(directory: Path) -> Iterator[None]:
    """OSError as STATE_DIR; a full disk, which mends itself, as STORE_UNAVAILABLE."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise EnvironmentFault(
                Reason.STORE_UNAVAILABLE,
                f"the disk that holds {directory} is full; make room and try again",
                numbers={"errno": error.errno or 0, "directory": str(directory)},
            ) from error
        raise refused(directory, f"{error.strerror}: {error.filename or directory}") from error


@contextmanager
def sqlite_faults(directory: Path) -> Iterator[None]:
    """What SQLite raises while state is opened or closed."""
    try:
        yield
    except apsw.BusyError as error:
        raise EnvironmentFault(
            Reason.STATE_IN_USE,
            f"another program has {directory / DATABASE} open; close it and try again",
            numbers={"directory": str(directory)},
        ) from error
    except _DENIED as error:
        raise refused(directory, f"{DATABASE}: {error}") from error
    except apsw.FullError as error:
        raise unavailable(directory, error, "the disk is full, make room and try again: ") from error
    except apsw.Error as error:
        raise unavailable(directory, error) from error
