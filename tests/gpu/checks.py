"""What has to hold of any driver, as lists of what does not. Nothing here asks a driver."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from poolmgr_ext.calls import TABLE
from poolmgr_ext.sampler import FIELDS

from tests.gpu.sampling import RATE_HZ, Points

UUID = re.compile(r"(GPU|MIG)-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
PCI = re.compile(r"[0-9A-F]{8}:[0-9A-F]{2}:[0-9A-F]{2}\.[0-7]")
DRIVER_VERSION = re.compile(r"\d{3}\.\d{2,3}(\.\d{2,3})?")
CUDA_VERSION = re.compile(r"\d{2}\.\d")
CAPABILITIES = range(3, 13)  # majors, Kepler to Blackwell
MEMORY_SLACK = 32 << 20  # bytes that may come or go between two calls, and what a driver rounds
POWER_SLACK = 1.5  # spikes over the limit
ENERGY_SLACK = 0.25  # counter and power meter are different ones, renewed at different times
MISSED = 0.2  # of the readings of a field

# The least and the most that any device tells of a gauge; counters only have to rise.
BOUNDS: dict[str, tuple[float, float]] = {
    "temperature": (1, 130), "temperature_memory": (1, 130), "power": (0.1, 3000), "power_limit": (1, 3000),
    "utilization_gpu": (0, 100), "utilization_memory": (0, 100), "utilization_encoder": (0, 100),
    "utilization_decoder": (0, 100), "clock_sm": (0, 5000), "clock_graphics": (0, 5000), "clock_video": (0, 5000),
    "clock_memory": (0, 20000), "performance_state": (0, 15), "throttle_reasons": (0, 2**16 - 1), "fan": (0, 120),
    "memory_total": (1 << 28, 1 << 42), "memory_used": (0, 1 << 42), "memory_free": (0, 1 << 42),
    "processes": (0, 10_000), "pcie_tx": (0, 300e9), "pcie_rx": (0, 300e9), "retired_pages_pending": (0, 1),
    "remapped_rows_pending": (0, 1), "remapped_rows_failed": (0, 1),
}  # fmt: skip


def identity_faults(found: Mapping[str, Any]) -> Iterator[str]:
    """Of what `Library.discover` tells."""
    if not DRIVER_VERSION.fullmatch(found.get("driver_version", "")):
        yield f"driver version {found.get('driver_version')!r}"
    if not CUDA_VERSION.fullmatch(found.get("cuda_version", "")):
        yield f"CUDA version {found.get('cuda_version')!r}"
    devices = found["devices"]
    ids = [device["device_id"] for device in devices]
    if len(set(ids)) != len(ids) or not ids:
        yield f"ids {ids}"
    gpus = [device for device in devices if "parent_device_id" not in device]
    if [device["index"] for device in gpus] != list(range(len(gpus))):
        yield f"indices {[device['index'] for device in gpus]}"
    buses = [device["pci_bus_id"] for device in gpus]
    if len(set(buses)) != len(buses):
        yield f"bus ids {buses}"
    for device in devices:
        yield from (f"{device['device_id']}: {fault}" for fault in _device_faults(device, ids))


def _device_faults(device: Mapping[str, Any], ids: Sequence[str]) -> Iterator[str]:
    kind = "MIG" if "parent_device_id" in device else "GPU"
    match = UUID.fullmatch(device["device_id"])
    if match is None or match[1] != kind:
        yield f"is no id of a {kind}"
    if kind == "MIG" and (device["parent_device_id"] not in ids or not re.fullmatch(r"\d+\.\d+", device["mig_slot"])):
        yield f"parent {device['parent_device_id']}, slot {device['mig_slot']}"
    if not PCI.fullmatch(device.get("pci_bus_id", "")):
        yield f"PCI bus id {device.get('pci_bus_id')!r}"
    if device["name"] in ("", device["device_id"]):
        yield f"name {device['name']!r}"
    if device.get("compute_capability", [0])[0] not in CAPABILITIES:
        yield f"compute capability {device.get('compute_capability')}"
    if not 0 <= device.get("vram_free_bytes", -1) <= device.get("vram_total_bytes", -2):
        yield f"memory {device.get('vram_free_bytes')} of {device.get('vram_total_bytes')}"
    for peer in {link["peer"] for link in device.get("links", ())} - set(ids):
        yield f"a link to {peer}"


def memory_faults(total: int, free: int, used: int, reserved: int) -> Iterator[str]:
    if abs(total - free - used - reserved) > MEMORY_SLACK:
        yield f"{total} is not {free} free, {used} used and {reserved} reserved"


def field_faults(history: Mapping[str, Points]) -> Iterator[str]:
    """Of one device: values out of bounds, counters that go back, times that do."""
    kinds = {field.name: field.kind for field in FIELDS}
    for name, points in history.items():
        values = [value for _, value in points]
        times = [at for at, _ in points]
        if any(later <= earlier for earlier, later in itertools.pairwise(times)):
            yield f"{name}: time goes back"
        if kinds[name] == "counter":
            back = any(later < earlier for earlier, later in itertools.pairwise(values))
            if back or min(values, default=0) < 0:
                yield f"{name} goes back: {values[:10]}"
            continue
        low, high = BOUNDS[name]
        if values and not (low <= min(values) and max(values) <= high):
            yield f"{name} from {min(values)} to {max(values)}, outside of {low} to {high}"


def freshness_faults(history: Mapping[str, Points], unsupported: set[str], sweeps: int) -> Iterator[str]:
    """Each field is read at its cadence, or never and known to be unsupported (TEL-2)."""
    cadences = {field.name: field.cadence for field in FIELDS}
    for call in TABLE:
        names = [field.name for field in call.fields]
        read = {name: len(history[name]) for name in names}
        if not any(read.values()):
            yield from (f"{name} was never read and is asked on" for name in names if name not in unsupported)
        for name in names:
            wanted = sweeps // max(1, round(cadences[name] * RATE_HZ))
            if name in unsupported and read[name]:
                yield f"{name} is unsupported and was read {read[name]} times"
            elif read[name] and read[name] < wanted * (1 - MISSED) - 1:
                yield f"{name} was read {read[name]} times in {sweeps} sweeps, {wanted} were due"


def energy_faults(energy: Points, power: Points) -> Iterator[str]:
    """Between the first and the last reading it has to rise by what the power was."""
    if len(energy) < 2 or not power:
        return
    (begin, first), (end, last) = energy[0], energy[-1]
    seconds = (end - begin) / 1e9
    watts = [value for _, value in power]
    low, high = min(watts) * seconds * (1 - ENERGY_SLACK), max(watts) * seconds * (1 + ENERGY_SLACK)
    if not low <= last - first <= high:
        yield f"{last - first:.1f} J in {seconds:.1f} s at {min(watts):.0f} to {max(watts):.0f} W"


def told_by_both(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[str]:
    """Two readers of one driver: absent in both or the same in both."""
    for name in sorted(ours.keys() | theirs.keys()):
        one, other = ours.get(name), theirs.get(name)
        if one is None or other is None:
            same = one is other
        elif isinstance(one, float):
            same = abs(one - other) <= 1e-6 * abs(one)
        else:
            same = one == other
        if not same:
            yield f"{name}: {one!r} here, {other!r} by nvidia-ml-py"
