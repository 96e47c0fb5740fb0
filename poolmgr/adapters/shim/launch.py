"""Starting the engine: everything that can be made beforehand is, so that a respawn is clone, setsid and execve.

Natively where `_spawn` is there to do it (ext/shim/spawn.c), else by a fork of this process, which is slower.

What the engine gets from the shim by inheritance was set up once (`prepare`): /dev/null as stdin, the log as stdout
and stderr, the working directory, the umask, an empty signal mask and, because the shim *handles* every signal that it
does not want, default dispositions: execve resets handlers, but would keep SIG_IGN. All else is close-on-exec.
"""

from __future__ import annotations

import ctypes
import os
import signal

from . import linux, wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

_WORK = os.fsencode(wire.WORK)
_UNWANTED = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD)


def prepare() -> int:
    """Makes this process a shim; returns a descriptor that is readable after every signal. Raises OSError."""
    linux.become_subreaper()
    os.umask(0o022)
    wakeup, written = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    for number in _UNWANTED:
        signal.signal(number, _note)
    signal.set_wakeup_fd(written, warn_on_full_buffer=False)
    return wakeup


def _note(number: int, frame: FrameType | None) -> None:
    """The wakeup descriptor tells the loop; nothing is left to do here."""


class Child:
    """A process on its way to execve. `pidfd` belongs to whoever holds this."""

    __slots__ = ("_failure", "_verdict", "pid", "pidfd")

    def __init__(self, pid: int, pidfd: int, *, failure: int = 0, verdict: int | None = None) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self._failure = failure
        self._verdict = verdict

    def exec_errno(self) -> int:
        """Waits for the execve: 0, or its errno once the child is reaped."""
        if self._verdict is not None:
            with open(self._verdict, "rb") as pipe:
                self._failure = int.from_bytes(pipe.read(), "little")
        if self._failure:
            os.waitid(os.P_PID, self.pid, os.WEXITED)
        return self._failure


class Launcher:
    """One engine's execve arguments, ready in C. `leaf` is the cgroup it is born in; None: a plain fork."""

    def __init__(self, argv: list[str], env: dict[str, str], leaf: str | None) -> None:
        self._path = os.fsencode(argv[0])
        self._argv = _c_strings(argv)
        self._envp = _c_strings([f"{name}={value}" for name, value in env.items()])
        self._leaf = leaf

    def begin(self) -> Child:
        """Raises OSError when no process could be made."""
        # Opened each time: the daemon makes a leaf anew for each start.
        leaf = -1 if self._leaf is None else os.open(self._leaf, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if linux.native is not None:
                pid, pidfd, failure = linux.native.spawn(leaf, _WORK, self._path, self._argv, self._envp)
                return Child(pid, pidfd, failure=failure)
            return self._fork(leaf)
        finally:
            if leaf >= 0:
                os.close(leaf)

    def _fork(self, leaf: int) -> Child:
        verdict, told = os.pipe2(os.O_CLOEXEC)
        try:
            pid, pidfd = linux.fork_with_pidfd() if leaf < 0 else linux.clone_into_cgroup(leaf)
        except OSError:
            os.close(verdict)
            os.close(told)
            raise
        if pid == 0:
            self._become_engine(told)
        os.close(told)
        return Child(pid, pidfd, verdict=verdict)

    def _become_engine(self, told: int) -> None:
        """In the child, to the end: execve closes `told`, which says that it went well."""
        try:
            os.setsid()
            # Not in the directory of its records: a program that serves its working directory would show them.
            if linux.libc.chdir(_WORK) == 0:
                linux.libc.execve(self._path, self._argv, self._envp)
            os.write(told, ctypes.get_errno().to_bytes(4, "little"))
        finally:
            os._exit(127)


def _c_strings(values: list[str]) -> ctypes.Array[ctypes.c_char_p]:
    return (ctypes.c_char_p * (len(values) + 1))(*map(os.fsencode, values), None)
