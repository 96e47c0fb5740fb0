"""Devices as their API shows them: state, why, and whether they take work (STATE-1 to STATE-3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from poolmgr.model.device import Absence, Device, DeviceState

# The metric `gpu_state`.
STATE_NUMBERS: Final[Mapping[DeviceState, int]] = {
    DeviceState.AVAILABLE: 0,
    DeviceState.ALLOCATED: 1,
    DeviceState.DEGRADED: 2,
    DeviceState.QUARANTINED: 3,
    DeviceState.RESETTING: 4,
    DeviceState.OFFLINE: 5,
    DeviceState.PROBATION: 6,
}


@dataclass(frozen=True, slots=True)
class DeviceSettings:
    """Seconds, but for `quarantine_share`: how much of the host's GPUs may be quarantined automatically (STATE-3)."""

    quarantine: float = 3600.0
    quarantine_max: float = 86_400.0
    probation: float = 3600.0  # of healthy work
    degraded: float = 3600.0
    quarantine_share: float = 0.5
    processes_interval: float = 2.0
    processes_timeout: float = 2.0


class Severity(StrEnum):
    """What an event means for its device."""

    HARMLESS = "HARMLESS"  # the work's fault, or none
    STRAIN = "STRAIN"  # it works, and something is wrong with it
    FAULT = "FAULT"  # it is not to be trusted with work


@dataclass(frozen=True, slots=True)
class Verdict:
    """`meaning`: of the event, in words."""

    severity: Severity
    meaning: str = ""


class Inadmissible(StrEnum):
    """Why a device takes no new work now."""

    OFFLINE = "OFFLINE"
    RECOVERY_ACTION = "RECOVERY_ACTION"  # the driver itself asks for something first (STATE-2)
    QUARANTINED = "QUARANTINED"
    CORDONED = "CORDONED"
    PROBATION_BUSY = "PROBATION_BUSY"  # it has its one trial workload
    PARTITIONED = "PARTITIONED"  # its MIG instances take the work, if it has any (DEV-3)


@dataclass(frozen=True, slots=True)
class Inadmission:
    """`until`: boot-time seconds when it may be over by itself; None when nobody knows."""

    reason: Inadmissible
    message: str
    until: float | None = None


@dataclass(frozen=True, slots=True)
class Cordon:
    """An operator wants no new work on a device. Unix seconds; `at`: when it was said.

    `starts` None: at once. `ends` None: until it is lifted. `drain`: what runs on it is to go elsewhere too.
    """

    reason: str
    at: float
    starts: float | None = None
    ends: float | None = None
    drain: bool = False


@dataclass(frozen=True, slots=True)
class DeviceView:
    """A device as it is shown. `since` and `until` in Unix seconds: of the state, and when it may end by itself.

    `cordon`: in force, or planned. `claims`: how many hold it. `refusal`: why it takes no new work, None when it does.
    """

    device: Device
    state: DeviceState
    state_reason: str
    since: float
    until: float | None = None
    cordon: Cordon | None = None
    claims: int = 0
    refusal: Inadmissible | None = None


class DeviceNoteName(StrEnum):
    """Things worth a log line and, some of them, an alert. Stable."""

    FOUND = "device_found"
    MISSING = "device_missing"
    RETURNED = "device_returned"
    TRANSITION = "device_transition"
    DRIVER_EVENT = "driver_event"
    QUARANTINED = "device_quarantined"
    DISRUPTION_BUDGET = "disruption_budget"
    CORDONED = "device_cordoned"
    UNCORDONED = "device_uncordoned"
    CORDON_PLANNED = "device_cordon_planned"
    MASK_VIOLATION = "mask_violation"
    STALLED = "telemetry_stalled"
    FLOWS = "telemetry_flows"
    NO_DEVICES = "devices_absent"
    NOT_STORED = "device_memory_not_stored"
    MEMORY_MISS = "memory_miss"


@dataclass(frozen=True, slots=True)
class DeviceNote:
    """An event with its evidence. `device_id` empty: of no single device."""

    name: DeviceNoteName
    device_id: str = ""
    fields: Mapping[str, str | int | float | bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DriverStatus:
    """How the daemon stands with the driver. None is unknown; ages and `stalled_seconds` in seconds.

    `absence`: why no devices are known, with `message` and `advice`. `simulated`: name of the scenario. `ring_depth`:
    seconds. `stalled_seconds` None: it answers. `stalls`: since the daemon's start.
    """

    devices: int = 0
    driver_version: str | None = None
    cuda_version: str | None = None
    absence: Absence | None = None
    message: str = ""
    advice: str = ""
    simulated: str = ""
    discovery_age: float | None = None
    ring_depth: float | None = None
    ring_bytes: int | None = None
    ring_rate_hz: float | None = None
    heartbeat_age: float | None = None
    stalled_seconds: float | None = None
    stalls: int = 0
