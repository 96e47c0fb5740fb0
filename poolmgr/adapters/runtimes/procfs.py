"""Who a process is and what it uses, by /proc and pidfds."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import struct
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from poolmgr.adapters.shim import procfs as proc
from poolmgr.adapters.shim import wire
from poolmgr.model.engine import ExitRecord, ProcessIdentity

# struct pidfd_info of <linux/pidfd.h>: mask, cgroupid, eleven ids, exit_code.
_PIDFD_INFO = struct.Struct("QQ11Ii")
_PIDFD_INFO_EXIT = 1 << 3
_PIDFD_GET_INFO = 3 << 30 | _PIDFD_INFO.size << 16 | 0xFF << 8 | 11

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_CPU_TIMES = (14, 15, 16, 17)  # utime, stime, cutime, cstime of proc(5)

# Fields of /proc/<pid>/stat, as proc_pid_stat(5) numbers them, and PF_KTHREAD of <linux/sched.h>.
_FLAGS, _ENV_START = 9, 50
_KERNEL_THREAD = 0x00200000
EXEC_LOOKS, EXEC_LOOK_SECONDS = 200, 0.001


def carries_engine_id(pid: int, engine_id: str) -> bool | None:
    """Whether the environment that the process was given names the engine; None: no such process or not ours to see.

    Raises OSError for what says nothing of the process, as EMFILE: taken for an answer it would hide one that lives.
    """
    environment = _environment(pid)
    if environment is None:
        return None
    return f"{wire.ENGINE_ID_VARIABLE}={engine_id}".encode() in environment.split(b"\0")


def _environment(pid: int) -> bytes | None:
    """None: no such process or not ours to see. Raises OSError.

    An exec that has begun, and has closed what tells of its success, shows no environment until the kernel has laid it
    out: microseconds, and milliseconds on a busy host. Such a process would look like somebody else's.
    """
    for _ in range(EXEC_LOOKS):
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            return None
        if environment or not _in_exec(pid):
            return environment
        time.sleep(EXEC_LOOK_SECONDS)
    return b""


def _in_exec(pid: int) -> bool:
    flags, begins = proc.stat_field(pid, _FLAGS), proc.stat_field(pid, _ENV_START)
    if flags is None or begins is None or proc.stat_field(pid, proc.STATE) in ("Z", "X"):
        return False
    return int(begins) == 0 and not int(flags) & _KERNEL_THREAD


def marked_pids(engine_id: str) -> list[int]:
    """Live processes whose environment names the engine: the tree, where no cgroup holds it together."""
    return [pid for pid in proc.all_pids() if carries_engine_id(pid, engine_id)]


def marks_of(pid: int) -> Mapping[str, str]:
    """What the environment that the process was given says of its engine (`wire.MARKS`); empty where it is not ours."""
    pairs = (item.decode(errors="replace").partition("=") for item in (_environment(pid) or b"").split(b"\0"))
    return {name: value for name, _, value in pairs if name in wire.MARKS}


def open_pidfd(identity: ProcessIdentity) -> int | None:
    """A pidfd of exactly this process, zombie or not; None when it has gone."""
    try:
        pidfd = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return None
    # Asked after the open: what the pidfd holds had this start time, whoever gets the pid later.
    if proc.start_ticks(identity.pid) == identity.start_ticks and _same_inode(pidfd, identity):
        return pidfd
    os.close(pidfd)
    return None


def _same_inode(pidfd: int, identity: ProcessIdentity) -> bool:
    if identity.pidfd_inode is None:
        return True
    with select.epoll() as other:
        return proc.pidfd_inode(pidfd, other.fileno()) == identity.pidfd_inode


def is_zombie(identity: ProcessIdentity) -> bool:
    state = proc.stat_field(identity.pid, proc.STATE)
    return state in ("Z", "X") and proc.start_ticks(identity.pid) == identity.start_ticks


def open_marked(engine_id: str, *, kill: bool) -> dict[int, int]:
    """A pidfd for every process whose environment names the engine, by pid; with `kill`, each has been sent SIGKILL.

    The mark is looked at again once the pidfd is open: the pid may have become another's. Raises OSError.
    """
    found: dict[int, int] = {}
    try:
        for pid in marked_pids(engine_id):
            with suppress(ProcessLookupError):
                found[pid] = os.pidfd_open(pid)
                if not carries_engine_id(pid, engine_id):
                    os.close(found.pop(pid))
                elif kill:
                    signal.pidfd_send_signal(found[pid], signal.SIGKILL)
    except OSError:
        for pidfd in found.values():
            os.close(pidfd)
        raise
    return found


def has_ended(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def cause_by_wait(pidfd: int) -> ExitRecord | None:
    """For a child of ours: an orphan that a sub-reaping daemon inherited. Reaps it."""
    try:
        found = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        return None
    if found is None:
        return None
    exited = found.si_code == os.CLD_EXITED
    code, number = (found.si_status, None) if exited else (None, found.si_status)
    return ExitRecord(exit_code=code, signal=number, source="waitid")


def cause_of_zombie(identity: ProcessIdentity) -> ExitRecord | None:
    """Field 52 of /proc/<pid>/stat, while nobody has reaped it. The kernel shows strangers 0: those are not asked."""
    if not is_zombie(identity):
        return None
    with suppress(FileNotFoundError):
        if os.geteuid() not in (0, os.stat(f"/proc/{identity.pid}").st_uid):
            return None
    status = proc.stat_field(identity.pid, proc.EXIT_STATUS)
    return None if status is None else _from_status(int(status), "zombie")


def cause_by_pidfd(pidfd: int) -> ExitRecord | None:
    """PIDFD_GET_INFO, which tells the exit status once the process is reaped (Linux 6.15)."""
    buffer = bytearray(_PIDFD_INFO.size)
    _PIDFD_INFO.pack_into(buffer, 0, _PIDFD_INFO_EXIT, *[0] * 13)
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, buffer)
    except OSError:
        return None
    mask, *_, status = _PIDFD_INFO.unpack(buffer)
    return _from_status(status, "pidfd_info") if mask & _PIDFD_INFO_EXIT else None


def _from_status(status: int, source: str) -> ExitRecord:
    if os.WIFSIGNALED(status):
        return ExitRecord(signal=os.WTERMSIG(status), source=source)
    return ExitRecord(exit_code=os.WEXITSTATUS(status), source=source)


def resident_bytes(pids: Iterable[int]) -> int | None:
    """The sum of their resident sets; None when none could be read."""
    return _sum(pids, lambda pid: int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE)


def read_bytes(pids: Iterable[int]) -> int | None:
    """The sum of what they have read, page cache included (`rchar`); None when none could be read."""
    return _sum(pids, lambda pid: int(Path(f"/proc/{pid}/io").read_text().split()[1]))


def cpu_seconds(pids: Iterable[int]) -> float | None:
    """What they and the children that they have reaped have computed, user and system; None when none could be read."""
    ticks = _sum(pids, lambda pid: sum(int(proc.stat_field(pid, number) or 0) for number in _CPU_TIMES))
    return None if ticks is None else ticks / _TICKS_PER_SECOND


def _sum(pids: Iterable[int], read: Callable[[int], int]) -> int | None:
    found = []
    for pid in pids:
        with suppress(OSError):
            found.append(read(pid))
    return sum(found) if found else None


def holds_socket(pid: int, inodes: Collection[int]) -> bool | None:
    """Whether one of the sockets is open in the process; None when it has no descriptors or shows us none.

    A process that ends loses its descriptors before its sockets stop to listen: then nobody seems to hold them.
    """
    wanted, directory = {f"socket:[{inode}]" for inode in inodes}, f"/proc/{pid}/fd"
    with suppress(OSError):
        for name in os.listdir(directory):
            with suppress(FileNotFoundError):
                if os.readlink(f"{directory}/{name}") in wanted:
                    return True
        if os.listdir(directory):  # it had them all along, so what was not seen is not there
            return False
    return None
