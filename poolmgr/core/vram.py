"""Whether the memory of a GPU has come back after an engine ended on it (PROC-4).

A driver frees a dead process's memory some time after its end, and now and then never. Whose memory it is is told by
the driver's list of processes; what no process on it accounts for is compared with what was so before the start.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from poolmgr.model.device import DeviceProcess

# Drivers round, and keep something of each context for a moment; a model's memory is far more than this.
TOLERANCE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class DeviceUse:
    """What a driver shows of one device at one time. None: it does not tell."""

    total_bytes: int | None
    free_bytes: int | None
    processes: Sequence[DeviceProcess] | None


@dataclass(frozen=True, slots=True)
class Held:
    """Memory that has not come back. `pids`: of processes that should be gone, empty where no process is shown."""

    pids: tuple[int, ...]
    used_bytes: int | None

    def __str__(self) -> str:
        used = "an unknown amount" if self.used_bytes is None else f"{self.used_bytes} bytes"
        if self.pids:
            return f"{used} held by process {', '.join(map(str, self.pids))}, which should be gone"
        return f"{used} more in use than before the start, by no process that the driver shows"


def unaccounted(use: DeviceUse) -> int | None:
    """Bytes in use that no process on the list accounts for; None where that cannot be told."""
    if use.total_bytes is None or use.free_bytes is None or use.processes is None:
        return None
    used = [process.used_bytes for process in use.processes]
    if any(one is None for one in used):
        return None
    return use.total_bytes - use.free_bytes - sum(one for one in used if one is not None)


def held(before: DeviceUse | None, now: DeviceUse, ours: Collection[int]) -> Held | None:
    """What is still held of a device on which an engine has ended; None when nothing is.

    `before`: as it was when the engine was started. `ours`: pids that were the engine's, or are nobody's any more.
    """
    left = [process for process in now.processes or () if process.pid in ours]
    if left:
        sizes = [process.used_bytes for process in left if process.used_bytes is not None]
        return Held(tuple(process.pid for process in left), sum(sizes) if len(sizes) == len(left) else None)
    then, today = unaccounted(before) if before else None, unaccounted(now)
    if then is None or today is None or today - then <= TOLERANCE_BYTES:
        return None
    return Held((), today - then)
