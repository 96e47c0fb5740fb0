"""What /proc says of a process. proc(5) numbers the fields of `stat` from 1; so does this."""

from __future__ import annotations

import os

STATE, PARENT, START_TICKS, EXIT_STATUS = 3, 4, 22, 52


def stat_field(pid: int, number: int) -> str | None:
    """Field `number` (3 or more) of /proc/<pid>/stat; None when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # Field 2 is the name in parentheses, and may itself hold blanks and parentheses.
    return text[text.rindex(b")") + 2 :].split()[number - 3].decode()


def start_ticks(pid: int) -> int | None:
    field = stat_field(pid, START_TICKS)
    return None if field is None else int(field)


def boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def children(pid: int) -> list[int]:
    """The children of a single-threaded process, zombies too."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [int(word) for word in file.read().split()]
    except FileNotFoundError:  # a kernel without CONFIG_PROC_CHILDREN
        return [child for child in all_pids() if stat_field(child, PARENT) == str(pid)]


def pidfd_inode(pidfd: int, other_anonymous_fd: int) -> int | None:
    """The inode that names the process for as long as the host is up; None before Linux 6.9.

    Before that a pidfd lay on the file system of all anonymous files, where one inode serves everything.
    """
    status = os.fstat(pidfd)
    return status.st_ino if status.st_dev != os.fstat(other_anonymous_fd).st_dev else None
