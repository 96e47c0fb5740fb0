"""The system calls that the standard library lacks, by ctypes."""

from __future__ import annotations

import ctypes
import errno
import os
import signal

_SYS_CLONE3 = 435
_CLONE_PIDFD = 0x1000
_CLONE_INTO_CGROUP = 0x2_0000_0000
_PR_SET_CHILD_SUBREAPER = 36
_FALLOC_FL_COLLAPSE_RANGE = 0x08

# PyDLL keeps the GIL during a call: the child of clone3 must wake up holding it, as its parent does.
libc = ctypes.PyDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class _CloneArgs(ctypes.Structure):
    """struct clone_args of <linux/sched.h>, the version with `cgroup` (Linux 5.7)."""

    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            "flags",
            "pidfd",
            "child_tid",
            "parent_tid",
            "exit_signal",
            "stack",
            "stack_size",
            "tls",
            "set_tid",
            "set_tid_size",
            "cgroup",
        )
    )


def last_error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


def clone_into_cgroup(cgroup_fd: int) -> tuple[int, int]:
    """fork() whose child is born in a cgroup v2: (pid, pidfd) in the parent, (0, -1) in the child.

    No at-fork handler runs, so only a single-threaded process may call it. Raises OSError.
    """
    pidfd = ctypes.c_int(-1)
    arguments = _CloneArgs(
        flags=_CLONE_PIDFD | _CLONE_INTO_CGROUP,
        pidfd=ctypes.addressof(pidfd),
        exit_signal=signal.SIGCHLD,
        cgroup=cgroup_fd,
    )
    pid = libc.syscall(ctypes.c_long(_SYS_CLONE3), ctypes.byref(arguments), ctypes.c_size_t(ctypes.sizeof(arguments)))
    if pid < 0:
        raise last_error()
    return pid, pidfd.value if pid else -1


def fork_with_pidfd() -> tuple[int, int]:
    """fork(): (pid, pidfd) in the parent, (0, -1) in the child. Raises OSError."""
    pid = os.fork()
    if pid == 0:
        return 0, -1
    try:
        return pid, os.pidfd_open(pid)
    except OSError:
        # Not reaped yet, so the pid is nobody else's.
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED)
        raise


def has_clone3() -> bool:
    """Whether the kernel and its seccomp filter let clone3 through: they refuse a null argument as invalid."""
    libc.syscall(ctypes.c_long(_SYS_CLONE3), ctypes.c_void_p(None), ctypes.c_size_t(0))
    return ctypes.get_errno() == errno.EINVAL


def become_subreaper() -> None:
    """Orphans of this process's descendants become its children (Linux 3.4). Raises OSError."""
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise last_error()


def collapse_range(fd: int, length: int) -> bool:
    """Cuts `length` bytes, a multiple of the block size, off the head of a file; False where it cannot be done."""
    return bool(libc.fallocate(fd, _FALLOC_FL_COLLAPSE_RANGE, 0, length) == 0)


class _Native:
    """`poolmgr_spawn` of ext/shim/spawn.c."""

    def __init__(self, path: str) -> None:
        self._spawn = ctypes.PyDLL(path).poolmgr_spawn
        self._spawn.restype = ctypes.c_long

    def spawn(
        self,
        cgroup_fd: int,
        work: bytes,
        path: bytes,
        argv: ctypes.Array[ctypes.c_char_p],
        envp: ctypes.Array[ctypes.c_char_p],
    ) -> tuple[int, int, int]:
        """(pid, pidfd, the errno of a chdir or execve that failed). `cgroup_fd` -1: no cgroup. Raises OSError."""
        pidfd, failure = ctypes.c_int(-1), ctypes.c_int(0)
        pid: int = self._spawn(cgroup_fd, work, path, argv, envp, ctypes.byref(pidfd), ctypes.byref(failure))
        if pid < 0:
            raise OSError(-pid, os.strerror(-pid))
        return pid, pidfd.value, failure.value


def _find_native() -> _Native | None:
    """None where it was not built, or where clone3 is not to be had: then the shim forks."""
    here = os.path.dirname(os.path.abspath(__file__))
    names = (name for name in os.listdir(here) if name.startswith("_spawn.") and name.endswith(".so"))
    name = next(names, None)
    return None if name is None or not has_clone3() else _Native(os.path.join(here, name))


native = _find_native()
