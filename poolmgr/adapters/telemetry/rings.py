"""Where rings lie, and what is read of one."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from array import array
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from poolmgr_ext.calls import TABLE
from poolmgr_ext.ring import RingError, RingReader
from poolmgr_ext.stats import percentiles

from poolmgr.model.device import FieldInfo, RingInfo, Sample, WindowStatistics

_SHARED_MEMORY = Path("/dev/shm")
_PREFIX = "ring."
_NANOSECONDS = 1e9
WINDOWS: Final = (1, 10, 60, 600)  # seconds


class Place:
    """A directory of ours alone, in memory where the host has a tmpfs for it, else in the state directory."""

    def __init__(self, state_dir: Path, shared_memory: Path = _SHARED_MEMORY) -> None:
        name = hashlib.sha256(os.fsencode(state_dir.absolute())).hexdigest()[:8]
        self._choices = (shared_memory / f"poolmgr-{os.geteuid()}-{name}", state_dir / "telemetry")

    def path(self, epoch: int) -> str:
        """For a ring that is to be made. Makes the directory; raises OSError where neither can be had."""
        first, second = self._choices
        try:
            directory = _made(first)
        except OSError:
            directory = _made(second)
        return str(directory / f"{_PREFIX}{epoch}")

    def clear(self, keep: str = "") -> None:
        """Removes all rings but one, those that an earlier daemon of this state directory left among them."""
        for directory in self._choices:
            with suppress(OSError):  # what cannot be removed is tried again with the next
                if _is_ours(directory):
                    _clear(directory, keep)

    def remove(self) -> None:
        """Leaves nothing."""
        self.clear()
        for directory in self._choices:
            with suppress(OSError):
                directory.rmdir()


def _clear(directory: Path, keep: str) -> None:
    for entry in directory.iterdir():
        if entry.name.startswith(_PREFIX) and str(entry) != keep:
            entry.unlink(missing_ok=True)


def _made(directory: Path) -> Path:
    """Raises OSError."""
    with suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    if not _is_ours(directory):
        raise PermissionError(errno.EPERM, "not a directory of ours alone", str(directory))
    return directory


def _is_ours(directory: Path) -> bool:
    """/dev/shm is everybody's: who made the name before us could read along, or have us write elsewhere."""
    found = directory.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) == 0o700


class RingView:
    """What one ring holds, by device and field. What it has no column for, or cannot be read, is told as nothing."""

    def __init__(self, path: str) -> None:
        """Raises RingError."""
        self._reader = RingReader(path)
        self.device_ids = self._reader.device_ids
        self._columns = {name: column for column, name in enumerate(self.device_ids)}
        self._fields = tuple(FieldInfo(f.name, f.unit, f.kind == "counter", f.cadence) for f in self._reader.fields)
        self._names = tuple(field.name for field in self._fields)

    def close(self) -> None:
        self._reader.close()

    def heartbeat(self) -> tuple[int, float]:
        """(sequence, boot-time seconds). Raises RingError."""
        sequence, at = self._reader.heartbeat()
        return sequence, at / _NANOSECONDS

    def call(self) -> str:
        """The driver's call that runs, as the driver names it; empty outside of the driver."""
        try:
            found = self._reader.call()
        except RingError:
            return ""
        return TABLE[found[1]].name if found is not None and found[1] < len(TABLE) else ""

    def latest(self, device_id: str, now: float) -> Sample | None:
        column = self._columns.get(device_id)
        if column is None:
            return None
        try:
            row = self._reader.latest(column)
        except RingError:
            return None
        if row is None:
            return None
        at = row[0] / _NANOSECONDS
        values = {name: value for name, value in zip(self._names, row[1], strict=True) if value is not None}
        return Sample(device_id, at, max(0.0, now - at), values)

    def statistics(self, device_id: str, field: str, window: float) -> WindowStatistics | None:
        if not self._has(device_id, field) or window not in WINDOWS:
            return None
        try:
            found = self._reader.statistics(device_id, field, int(window))
        except RingError:
            return None
        return WindowStatistics(window, *found) if found is not None else None

    def quantiles(self, device_id: str, field: str, window: float) -> Mapping[float, float]:
        values = array("d", (value for _, value in self.history(device_id, field, window)))
        return dict(zip((0.5, 0.95, 0.99), percentiles(values), strict=True)) if values else {}

    def history(self, device_id: str, field: str, seconds: float) -> Sequence[tuple[float, float]]:
        if not self._has(device_id, field):
            return ()
        try:
            points = self._reader.history(device_id, field, seconds)
        except RingError:
            return ()
        return [(at / _NANOSECONDS, value) for at, value in points]

    def info(self, now: float) -> RingInfo | None:
        reader = self._reader
        try:
            age = max(0.0, now - self.heartbeat()[1])
            return RingInfo(
                str(reader.path),
                reader.epoch,
                reader.version,
                reader.bytes,
                reader.rate_hz,
                reader.depth,
                self._fields,
                self.device_ids,
                reader.writer_pid,
                age,
            )
        except RingError:
            return None

    def _has(self, device_id: str, field: str) -> bool:
        return device_id in self._columns and field in self._names
