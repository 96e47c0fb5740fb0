"""XIDs in the kernel's log, where this user may read it: they name the process, which the driver's events do not."""

from __future__ import annotations

import os
import re
import time

from . import wire

TYPE_CHECKING = False  # as in `wire`
if TYPE_CHECKING:
    from collections.abc import Iterator

_INITIAL_PID_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO of the kernel
_RECORD_BYTES = 8192  # CONSOLE_EXT_LOG_MAX of the kernel
RECORDS_AT_ONCE = 256  # before the daemon has its turn
_TEXT_CHARACTERS = 500

# "NVRM: Xid (PCI:0000:3b:00): 79, pid=1234, name=python, GPU has fallen off the bus."; older drivers leave out "PCI:",
# a MIG instance is told as "PCI:0000:3b:00 GPU-I:05", and a process that is not known as pid='<unknown>'.
_XID = re.compile(r"NVRM: Xid \((?:PCI:)?(?P<pci>[0-9a-fA-F:.]+)(?: [^)]*)?\): (?P<code>\d{1,5})(?P<rest>,.*)?")
_PID = re.compile(r"\bpid=(\d+)")


def parse(text: str) -> wire.Message | None:
    """The event that one record's text tells: code, pci, text and, where it is known, pid."""
    found = _XID.search(text)
    if found is None:
        return None
    pid = _PID.search(found["rest"] or "")
    event: wire.Message = {
        "kind": "XID",
        "source": "kernel-log",
        "code": int(found["code"]),
        "pci": found["pci"].lower(),
        "text": text[:_TEXT_CHARACTERS].strip(),
    }
    if pid is not None and int(pid[1]) > 0:
        event["pid"] = int(pid[1])
    return event


class KernelLog:
    """What is written to the log from now on."""

    def __init__(self, path: str = "/dev/kmsg") -> None:
        """Raises OSError where it cannot be read."""
        self.fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            os.lseek(self.fd, 0, os.SEEK_END)
            # In another namespace its process ids are not ours.
            self._pids = os.stat("/proc/self/ns/pid").st_ino == _INITIAL_PID_NAMESPACE
        except OSError:
            os.close(self.fd)
            raise

    def events_of(self, records: int) -> Iterator[wire.Message]:
        """Of the records that are there, at most so many."""
        for _ in range(records):
            try:
                record = os.read(self.fd, _RECORD_BYTES)
            except BlockingIOError:
                return
            except BrokenPipeError:  # overwritten while we read: the next one is the oldest that is left
                continue
            event = self._event(record)
            if event is not None:
                yield event

    def _event(self, record: bytes) -> wire.Message | None:
        """Of "level,sequence,microseconds,flags;text", where continuation lines follow."""
        head, _, text = record.partition(b";")
        event = parse(text.partition(b"\n")[0].decode(errors="replace"))
        fields = head.split(b",")
        if event is None or len(fields) < 3 or not fields[2].isdigit():
            return None
        # The log's clock stands still in suspend, as CLOCK_MONOTONIC does.
        age = max(0.0, time.monotonic() - int(fields[2]) / 1e6)
        event["at"] = time.clock_gettime(time.CLOCK_BOOTTIME) - age
        if not self._pids:
            event.pop("pid", None)
        return event
