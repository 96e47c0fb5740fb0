"""Devices of an imagined host: protobuf -> model (PLACE-3)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Final

from poolmgr.convert.common import count_from, enum_from, invalid
from poolmgr.convert.device import LINKS, REFUSALS, STATES
from poolmgr.model.device import Device, DeviceState, Link
from poolmgr.model.device_health import Inadmissible, Inadmission
from poolmgr.model.memory import LedgerEntry
from poolmgr.model.placement import Candidate
from poolmgr.v1 import device_pb2
from poolmgr.v1 import placement_pb2 as pb

MAX_LINKS: Final = 64
MAX_BYTES: Final = 2**62
# As of a host of today; an imagined one may be colder, and none is hotter.
MAX_CELSIUS: Final = 1000.0

_CAPABILITY: Final = re.compile(r"(\d{1,3})\.(\d{1,3})")
_STATES: Final = {
    device_pb2.Device.STATE_UNSPECIFIED: DeviceState.AVAILABLE,
    **{value: member for member, value in STATES.items()},
}
_REFUSALS: Final = {value: member for member, value in REFUSALS.items()}
_LINKS: Final = {value: member for member, value in LINKS.items()}
# A state that lets no work onto a device, where the request does not say why.
_CLOSED: Final[Mapping[DeviceState, Inadmissible]] = {
    DeviceState.QUARANTINED: Inadmissible.QUARANTINED,
    DeviceState.RESETTING: Inadmissible.RECOVERY_ACTION,
    DeviceState.OFFLINE: Inadmissible.OFFLINE,
}


def capability_from(text: str, path: str) -> tuple[int, int] | None:
    """ "8.0" as (8, 0); None where nothing is said. INVALID_ARGUMENT for anything else."""
    if not text:
        return None
    match = _CAPABILITY.fullmatch(text)
    if match is None:
        raise invalid(path, f"must be like 8.0, not {text[:80]!r}")
    return int(match[1]), int(match[2])


def candidate_from_proto(message: pb.CandidateDevice, path: str) -> Candidate:
    """Raises ClientError(INVALID_ARGUMENT) with the path of the field."""
    device = _device_from(message.device, f"{path}.device")
    state = enum_from(_STATES, message.device.state, f"{path}.device.state")
    celsius = message.temperature_celsius if message.HasField("temperature_celsius") else None
    return Candidate(
        device=device,
        memory=_memory_of(device),
        refusal=_refusal_of(message.device, device, state, f"{path}.device"),
        degraded=state is DeviceState.DEGRADED,
        probation=state is DeviceState.PROBATION,
        state_known=not message.state_unknown,
        celsius=None if celsius is None else _number(celsius, -MAX_CELSIUS, MAX_CELSIUS, f"{path}.temperature_celsius"),
        limit_celsius=device.slowdown_celsius,
    )


def _device_from(message: device_pb2.Device, path: str) -> Device:
    if not message.device_id:
        raise invalid(f"{path}.device_id", "is missing")
    if not message.HasField("vram_total_bytes"):
        raise invalid(f"{path}.vram_total_bytes", "is missing")
    total = count_from(message.vram_total_bytes, 0, MAX_BYTES, f"{path}.vram_total_bytes")
    count_from(len(message.links), 0, MAX_LINKS, f"{path}.links: their number")
    return Device(
        device_id=message.device_id,
        name=message.name,
        index=message.index if message.HasField("index") else None,
        mig_slot=message.mig_slot or None,
        mig_profile=message.mig_profile or None,
        parent_device_id=message.parent_device_id or None,
        compute_capability=capability_from(message.compute_capability, f"{path}.compute_capability"),
        vram_total_bytes=total,
        vram_free_bytes=_free_from(message, total, path),
        pci_bus_id=message.pci_bus_id or None,
        numa_node=message.numa_node if message.HasField("numa_node") else None,
        links=tuple(_link_from(link, f"{path}.links[{number}]") for number, link in enumerate(message.links)),
        mig_mode=message.mig_mode if message.HasField("mig_mode") else None,
        slowdown_celsius=_optional(message, "slowdown_celsius", MAX_CELSIUS, path),
        memory_bandwidth_bytes=_optional(message, "memory_bandwidth_bytes_per_second", math.inf, path),
        simulated=True,
    )


def _free_from(message: device_pb2.Device, total: int, path: str) -> int:
    """All of it where nothing is said: on an imagined host nobody else is."""
    if not message.HasField("vram_free_bytes"):
        return total
    return count_from(message.vram_free_bytes, 0, total, f"{path}.vram_free_bytes")


def _memory_of(device: Device) -> LedgerEntry:
    """What is not free is somebody's whom we do not know."""
    total, free = device.vram_total_bytes or 0, device.vram_free_bytes or 0
    return LedgerEntry(device.device_id, total, total - free, 0, 0, total - free, free)


def _refusal_of(message: device_pb2.Device, device: Device, state: DeviceState, path: str) -> Inadmission | None:
    why = _CLOSED.get(state)
    if not device.usable:
        why = Inadmissible.PARTITIONED
    if message.HasField("cordon"):
        why = Inadmissible.CORDONED
    if message.inadmissible:
        why = enum_from(_REFUSALS, message.inadmissible, f"{path}.inadmissible")
    if why is None:
        return None
    return Inadmission(why, f"device {device.device_id} is {why.value.lower().replace('_', ' ')}, as the request says")


def _link_from(link: device_pb2.Device.Link, path: str) -> Link:
    return Link(
        peer=link.peer_device_id,
        kind=enum_from(_LINKS, link.kind, f"{path}.kind"),
        lanes=link.lanes if link.HasField("lanes") else None,
        bytes_per_second=(
            _number(link.bytes_per_second, 0, math.inf, f"{path}.bytes_per_second")
            if link.HasField("bytes_per_second")
            else None
        ),
    )


def _optional(message: device_pb2.Device, name: str, most: float, path: str) -> float | None:
    given = {field.name: value for field, value in message.ListFields()}
    return _number(given[name], 0, most, f"{path}.{name}") if name in given else None


def _number(value: float, least: float, most: float, path: str) -> float:
    if not math.isfinite(value) or not least <= value <= most:
        raise invalid(path, f"must be {least:g} to {most:g}, not {value}", value=str(value))
    return value
