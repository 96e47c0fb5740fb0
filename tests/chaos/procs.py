"""What the kernel says of processes. None of it goes through poolmgr, whose own reading of /proc is under test."""

from __future__ import annotations

import fcntl
import os
import select
import struct
import time
from dataclasses import dataclass
from pathlib import Path

NANOSECONDS = 1_000_000_000
ENGINE_VARIABLE = "POOLMGR_ENGINE_ID"
RIG_VARIABLE, POOL_VARIABLE, VERSION_VARIABLE = "CHAOS_RIG", "CHAOS_POOL", "CHAOS_VERSION"

# struct pidfd_info of <linux/pidfd.h>: mask, cgroupid, eleven ids, exit_code; told once the process is reaped (6.15).
_INFO = struct.Struct("QQ11Ii")
_INFO_EXIT = 1 << 3
_GET_INFO = 3 << 30 | _INFO.size << 16 | 0xFF << 8 | 11
_LISTEN = "0A"


def now() -> int:
    """Nanoseconds on the boot-time clock."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def seconds(amount: float) -> int:
    """`amount` seconds as nanoseconds."""
    return int(amount * NANOSECONDS)


@dataclass(frozen=True, slots=True)
class Stat:
    """`start`: clock ticks since boot. `exit_status`: as wait(2) gives it, and true of a zombie only."""

    state: str
    parent: int
    start: int
    exit_status: int


def stat(pid: int) -> Stat | None:
    """None when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text[text.rindex(")") + 2 :].split()
    return Stat(fields[0], int(fields[1]), int(fields[19]), int(fields[49]))


def environment(pid: int) -> dict[str, str]:
    """Empty for a process that has none, as a zombie, and for one that has gone."""
    try:
        raw = Path(f"/proc/{pid}/environ").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return {}
    pairs = (entry.partition(b"=") for entry in raw.split(b"\0") if entry)
    return {name.decode(errors="replace"): value.decode(errors="replace") for name, _, value in pairs}


def cgroup(pid: int) -> str:
    """The path in the unified hierarchy; empty where it has none."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return next((line[3:] for line in lines if line.startswith("0::")), "")


def pids() -> set[int]:
    return {int(name) for name in os.listdir("/proc") if name.isdigit()}


def listening() -> dict[int, int]:
    """The TCP ports that somebody of this network namespace listens on, by socket inode."""
    found = {}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == _LISTEN:
            found[int(fields[9])] = int(fields[1].rpartition(":")[2], 16)
    return found


def ports_of(pid: int, by_inode: dict[int, int]) -> list[int]:
    """Which of these ports the process listens on."""
    found = set()
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            target = os.readlink(f"/proc/{pid}/fd/{name}")
            if target.startswith("socket:["):
                found.add(by_inode.get(int(target[8:-1]), 0))
    except OSError:  # it ends, or closes while we look: the next look tells
        return []
    return sorted(found - {0})


def has_ended(pidfd: int) -> bool:
    """Whether the process is a zombie or gone."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def exit_status(pid: int, start: int, pidfd: int) -> int | None:
    """The status as wait(2) gives it; None while the kernel does not tell, or never will."""
    seen = stat(pid)
    if seen is not None and seen.start == start and seen.state == "Z":
        return seen.exit_status
    buffer = bytearray(_INFO.size)
    _INFO.pack_into(buffer, 0, _INFO_EXIT, *[0] * 13)
    try:
        fcntl.ioctl(pidfd, _GET_INFO, buffer)
    except OSError:
        return None
    mask, *_, status = _INFO.unpack(buffer)
    return int(status) if mask & _INFO_EXIT else None


def describe(status: int | None) -> str:
    """`exit 3`, `signal 9` or `unknown`."""
    if status is None:
        return "unknown"
    return f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}"
