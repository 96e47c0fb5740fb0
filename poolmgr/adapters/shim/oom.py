"""Whether the kernel's out-of-memory killer was at work in the engine's memory cgroup."""

from __future__ import annotations

import os
import time

TYPE_CHECKING = False  # as in `wire`
if TYPE_CHECKING:
    from collections.abc import Iterator

_INITIAL_PID_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO of the kernel
_RECORD_BYTES = 8192
_ABOVE = 300  # thousandths of the memory there is


def counter_file(leaf: str | None) -> str | None:
    """The file that counts OOM kills for the engine: cgroup v2 `memory.events`, else v1 `memory.oom_control`.

    On v2 the nearest cgroup that has the memory controller; on v1 the engine inherits this process's cgroup.
    """
    mounts = _mounts()
    if leaf is not None and "cgroup2" in mounts:
        directory = leaf
        while directory.startswith(mounts["cgroup2"]):
            if os.path.exists(path := os.path.join(directory, "memory.events")):
                return path
            directory = os.path.dirname(directory)
    if "memory" in mounts:
        path = os.path.join(mounts["memory"] + _own_v1_memory_cgroup(), "memory.oom_control")
        return path if os.path.exists(path) else None
    return None


def kills(path: str | None) -> int:
    """The `oom_kill` count; 0 when the host does not tell."""
    if path is None:
        return 0
    try:
        with open(path) as file:
            return next((int(line.split()[1]) for line in file if line.startswith("oom_kill ")), 0)
    except OSError:  # the cgroup is gone, and with it the evidence
        return 0


def score_of_engines() -> str:
    """The oom_score_adj that an engine gets: it is engines that eat the memory, so they go before daemon and shims.

    0 where those are sheltered; else as much above theirs as anybody may ask for, without any right.
    """
    try:
        with open("/proc/self/oom_score_adj") as file:
            own = int(file.read())
    except OSError:
        own = 0
    return "0" if own < 0 else str(min(1000, own + _ABOVE))


def offer(pid: int, score: str) -> None:
    """Gives a process this oom_score_adj."""
    try:
        with open(f"/proc/{pid}/oom_score_adj", "w") as file:
            file.write(score)
    except OSError:  # it has ended already
        return


def names_victim(pid: int, seconds: float) -> bool | None:
    """Whether the kernel's log of the last `seconds` tells that it killed this process; None where it cannot be asked.

    The count is of the whole cgroup, which on v1 the engines of a daemon share: one's death must not explain another's.
    """
    if os.stat("/proc/self/ns/pid").st_ino != _INITIAL_PID_NAMESPACE:
        return None  # the log has the host's pids
    try:
        fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    since, wanted = (time.monotonic() - seconds) * 1e6, b"Killed process %d " % pid
    try:
        return any(wanted in text and stamp >= since for stamp, text in _kernel_log(fd))
    finally:
        os.close(fd)


def _kernel_log(fd: int) -> Iterator[tuple[int, bytes]]:
    """(microseconds since boot, text) of each record that is kept."""
    while True:
        try:
            record = os.read(fd, _RECORD_BYTES)
        except BlockingIOError:
            return
        except BrokenPipeError:  # overwritten while we read: the next one is the oldest that is left
            continue
        head, _, text = record.partition(b";")
        fields = head.split(b",")
        if len(fields) >= 3 and fields[2].isdigit():
            yield int(fields[2]), text


def _mounts() -> dict[str, str]:
    """Mount points: "cgroup2" and, for v1, "memory"."""
    mounts = {}
    with open("/proc/self/mountinfo") as file:
        for line in file:
            fields, kind = (half.split() for half in line.split(" - ", 1))
            if kind[0] == "cgroup2":
                mounts["cgroup2"] = fields[4]
            elif kind[0] == "cgroup" and "memory" in kind[2].split(","):
                mounts["memory"] = fields[4]
    return mounts


def _own_v1_memory_cgroup() -> str:
    with open("/proc/self/cgroup") as file:
        for line in file:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            if "memory" in controllers.split(","):
                return path.rstrip("/")
    return ""
