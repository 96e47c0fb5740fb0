"""One daemon per state directory: a lock on the directory itself, and a file `lock` in it that names the holder."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Final

from poolmgr.errors import EnvironmentFault, Reason

LOCK: Final = "lock"

_PID_DIGITS: Final = 20


class InstanceLock:
    """Held from construction to `release`, and released by the kernel when the process dies.

    It is the directory that is locked, so that one which turns out not to be ours was not changed by looking.
    Raises EnvironmentFault(STATE_IN_USE) with `pid`, where the holder left it, and OSError when the directory cannot
    be opened.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        # Not inherited, as os.open has it: an engine that outlives the daemon must not go on holding the lock.
        self._fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._fd)
            raise self._in_use() from error
        except OSError:
            os.close(self._fd)
            raise

    def sign(self) -> None:
        """Leaves our pid for whoever comes next. Raises OSError."""
        fd = os.open(LOCK, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600, dir_fd=self._fd)
        try:
            os.pwrite(fd, f"{os.getpid():<{_PID_DIGITS}}".encode(), 0)  # in place: needs no room on a full disk
        finally:
            os.close(fd)

    def release(self) -> None:
        os.close(self._fd)

    def _in_use(self) -> EnvironmentFault:
        try:
            text = (self._directory / LOCK).read_text("ascii", "replace").strip()
        except OSError:
            text = ""
        holder = f"the daemon with pid {text}" if text.isdecimal() else "another daemon"
        return EnvironmentFault(
            Reason.STATE_IN_USE,
            f"{self._directory} is in use by {holder}; stop it, or give this daemon another directory (state.dir)",
            numbers={"directory": str(self._directory)} | ({"pid": int(text)} if text.isdecimal() else {}),
        )
