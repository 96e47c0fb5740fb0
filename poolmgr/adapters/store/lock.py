"""One daemon per state directory: a lock on the file `lock` in it, which also names its holder."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from poolmgr.errors import EnvironmentFault, Reason

_PID_DIGITS = 20


class InstanceLock:
    """Held from construction to `release`, and released by the kernel when the process dies.

    The file stays when the lock is gone: removing it would let two daemons lock two files of one name.
    Raises EnvironmentFault(STATE_IN_USE) with `pid`, where the holder left it, and OSError when the file cannot be
    written.
    """

    def __init__(self, path: Path) -> None:
        # Not inherited, as os.open has it: an engine that outlives the daemon must not go on holding the lock.
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, str(os.getpid()).encode(), 0)
        except BlockingIOError as error:
            fault = self._in_use(path.parent)
            os.close(self._fd)
            raise fault from error
        except OSError:
            os.close(self._fd)
            raise

    def release(self) -> None:
        os.close(self._fd)

    def _in_use(self, directory: Path) -> EnvironmentFault:
        text = os.pread(self._fd, _PID_DIGITS, 0).decode("ascii", "replace")
        holder = f"the daemon with pid {text}" if text.isdecimal() else "another daemon"
        return EnvironmentFault(
            Reason.STATE_IN_USE,
            f"{directory} is in use by {holder}; stop it, or give this daemon another directory (state.dir)",
            numbers={"directory": str(directory)} | ({"pid": int(text)} if text.isdecimal() else {}),
        )
