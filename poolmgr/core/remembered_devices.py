"""What is known of devices over the end of a daemon: quarantines, probations, cordons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from poolmgr.core import cordons
from poolmgr.core.device_states import Record
from poolmgr.model.device import Device, DeviceState
from poolmgr.model.device_health import Cordon

PROVED_STEP: Final = 60.0  # seconds: what is proved is written down that often, not with each look at the claims


@dataclass(frozen=True, slots=True)
class Remembered:
    """What outlives a daemon of one device. Times in Unix seconds; see Record."""

    health: DeviceState = DeviceState.AVAILABLE
    reason: str = ""
    since: float = 0.0
    until: float | None = None
    length: float = 0.0
    proved: float = 0.0
    cordon: Cordon | None = None


def first_seen(device: Device, told: Remembered | None, offset: float, now: float) -> Record:
    if told is None:
        return Record(device, since=now)
    until = None if told.until is None else told.until - offset
    since = told.since - offset if told.since else now  # nothing is kept of how long it has been healthy
    record = Record(device, told.health, told.reason, since, until, told.length, told.proved)
    return cordons.ordered(record, told.cordon, now + offset)


def to_remember(
    records: Mapping[str, Record], remembered: Mapping[str, Remembered], offset: float
) -> Mapping[str, Remembered]:
    """What the next daemon has to know, also of `remembered` devices that this one has not seen. Nothing of a healthy
    device. `offset`: Unix time minus boot time.
    """
    kept = dict(remembered)
    for device_id, record in records.items():
        memory = _memory(record, offset)
        if memory != Remembered():
            kept[device_id] = memory
    return kept


def _memory(record: Record, offset: float) -> Remembered:
    cordon = record.cordon or record.planned
    if record.health is DeviceState.AVAILABLE:
        return Remembered(cordon=cordon)
    until = None if record.until is None else record.until + offset
    proved = record.proved - record.proved % PROVED_STEP
    return Remembered(record.health, record.reason, record.since + offset, until, record.length, proved, cordon)
