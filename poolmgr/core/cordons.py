"""What operators take out of work: at once or in a window of time, with or without what runs (STATE-1).

A device has one cordon: in force, or planned. A later word of an operator replaces an earlier one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from poolmgr.core.device_states import Record
from poolmgr.model.device_health import Cordon

# Seconds: a time that went through the boot-time clock and back may be this much too early.
ROUNDING: Final = 1e-3


def ordered(record: Record, cordon: Cordon | None, wall: float) -> Record:
    """The device after an operator's word; None ends what is in force and what is planned."""
    if cordon is not None and cordon.starts is not None and cordon.starts > wall:
        return replace(record, cordon=None, planned=cordon)
    return replace(record, cordon=cordon, planned=None)


def same(one: Cordon | None, other: Cordon | None) -> bool:
    """Whatever the time at which it was said: the first one's counts."""
    if one is None or other is None:
        return one is other
    return replace(one, at=0.0) == replace(other, at=0.0)


def due(record: Record) -> float | None:
    """When time alone changes it, in Unix seconds."""
    if record.planned is not None:
        return record.planned.starts
    return record.cordon.ends if record.cordon is not None else None


def timed(record: Record, wall: float) -> Record:
    """Begins and ends what is due; a window that nobody saw begin or end leaves nothing behind."""
    wall += ROUNDING
    planned, cordon = record.planned, record.cordon
    if planned is not None and (planned.starts or 0.0) <= wall:
        planned, cordon = None, planned
    if cordon is not None and cordon.ends is not None and cordon.ends <= wall:
        cordon = None
    return replace(record, planned=planned, cordon=cordon)
