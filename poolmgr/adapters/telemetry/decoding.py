"""What the telemetry process says, as values. Raises ValueError for what makes no sense: `sense` makes it Nonsense."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from poolmgr.model.device import (
    Absence,
    Device,
    DeviceProcess,
    Discovery,
    DriverEvent,
    DriverEventKind,
    Link,
    LinkKind,
    RecoveryAction,
)

T = TypeVar("T")

MAX_DEVICES: Final = 1024  # 64 GPUs, cut in seven, and then some
_SLACK_SECONDS: Final = 5.0

_ADVICE: Final[dict[Absence, str]] = {
    Absence.NO_LIBRARY: "install NVIDIA's driver, or name its libnvidia-ml in telemetry.library",
    Absence.NO_DRIVER: "load the kernel module (modprobe nvidia), and see dmesg where that fails",
    Absence.DRIVER_MISMATCH: "the driver was updated while it ran: reboot, or reload its kernel modules",
    Absence.NO_DEVICES: "see lspci and dmesg for whether the host has GPUs and why the driver shows none",
    Absence.NO_PERMISSION: "let the daemon's user read and write /dev/nvidiactl and /dev/nvidia*",
    Absence.STALLED: "see dmesg for XIDs; a driver that does not come back needs a reboot",
    Absence.FAILED: "see dmesg for what the driver says",
}
_REASONS: Final = (Absence.NO_LIBRARY, Absence.NO_DRIVER, Absence.DRIVER_MISMATCH, Absence.NO_PERMISSION)


class Nonsense(Exception):
    """A process that says such a thing is not believed in anything."""


@contextmanager
def sense() -> Iterator[None]:
    """Raises Nonsense for what cannot be read inside."""
    try:
        yield
    except (ValueError, TypeError, KeyError) as error:
        raise Nonsense(f"the telemetry process says what makes no sense: {error!s:.200}") from error


def discovery(answer: Mapping[str, Any], at: float, simulated: str) -> Discovery:
    """`at`: boot-time seconds of the answer."""
    if "error" in answer:
        error = _mapping(answer["error"])
        reason = error.get("reason")
        absence = Absence(reason) if reason in _REASONS else Absence.FAILED
        return absent(absence, str(error.get("message")), at, simulated)
    if answer.get("simulated") and not simulated:
        message = "the library is the simulated driver, which only --simulate may use"
        return absent(Absence.FAILED, message, at, simulated)
    raw = answer.get("devices")
    if not isinstance(raw, list) or len(raw) > MAX_DEVICES:
        raise ValueError("a discovery without a list of devices")
    devices = tuple(_device(_mapping(entry), bool(simulated)) for entry in raw)
    if len({device.device_id for device in devices}) < len(devices):
        raise ValueError("a discovery with one device twice")
    if not devices:
        silent = answer.get("unreadable")
        message = f"the driver has devices and cannot read them: {silent}" if silent else "the driver shows no devices"
        return absent(Absence.FAILED if silent else Absence.NO_DEVICES, message, at, simulated)
    driver, cuda = (_optional(answer.get(key), _text) for key in ("driver_version", "cuda_version"))
    return Discovery(devices, at, driver, cuda, absence=None, message="", simulated=simulated)


def absent(absence: Absence, message: str, at: float, simulated: str) -> Discovery:
    advice = _ADVICE.get(absence, "")
    if simulated and advice:
        advice = f"the scenario {simulated!r} plays this"
    return Discovery((), at, absence=absence, message=message, advice=advice, simulated=simulated)


def processes(answer: Mapping[str, Any]) -> dict[str, tuple[DeviceProcess, ...]]:
    return {name: tuple(map(_process, _sequence(held))) for name, held in _of_each(answer).items()}


def free_memory(answer: Mapping[str, Any]) -> dict[str, int]:
    return {name: _count(free) for name, free in _of_each(answer).items()}


def event(message: Mapping[str, Any], devices: Sequence[Device], now: float) -> DriverEvent:
    """The kernel's log names a device by its PCI address, which `devices` know."""
    at = _number(message.get("at", now))
    return DriverEvent(
        DriverEventKind(_text(message.get("kind"))),
        _event_device(message, devices),
        at if now - _SLACK_SECONDS < at <= now + _SLACK_SECONDS else now,
        _optional(message.get("code"), _count),
        _optional(message.get("pid"), _count),
        _text(message.get("source", "driver")),
        _text(message.get("text") or ""),
    )


def _event_device(message: Mapping[str, Any], devices: Sequence[Device]) -> str | None:
    if message.get("device_id"):
        return _text(message["device_id"])
    if message.get("pci"):
        wanted = _pci(_text(message["pci"]))
        found = (device for device in devices if not device.is_instance and device.pci_bus_id)
        return next((device.device_id for device in found if _pci(str(device.pci_bus_id)) == wanted), None)
    return None


def _pci(address: str) -> tuple[int, ...]:
    """(domain, bus, device) of "00000000:3B:00.0" and "0000:3b:00" alike; empty for what is no address."""
    try:
        return tuple(int(part, 16) for part in address.partition(".")[0].split(":"))
    except ValueError:
        return ()


def _device(raw: Mapping[str, Any], simulated: bool) -> Device:
    known = {name: convert(raw[name]) for name, convert in _FIELDS.items() if raw.get(name) is not None}
    if not known.get("device_id") or "name" not in known:
        raise ValueError("a device without an id or a name")
    return Device(**known, simulated=simulated)


def _link(raw: object) -> Link:
    entry = _mapping(raw)
    lanes, speed = _optional(entry.get("lanes"), _count), _optional(entry.get("bytes_per_second"), _number)
    return Link(_text(entry.get("peer")), LinkKind(_text(entry.get("kind"))), lanes, speed)


def _process(raw: object) -> DeviceProcess:
    entry = _mapping(raw)
    graphics = str(entry.get("kind", "")).lower().startswith("graphics")
    return DeviceProcess(_count(entry.get("pid")), _optional(entry.get("used_bytes"), _count), graphics)


def _of_each(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    if "error" in answer:  # of all of them: none is answered for
        return {}
    return _mapping(answer.get("devices"))


def _mapping(raw: object) -> Mapping[str, Any]:
    if not isinstance(raw, dict):
        raise ValueError(f"{raw!r:.80} is no object")
    return raw


def _sequence(raw: object) -> Sequence[object]:
    if not isinstance(raw, list):
        raise ValueError(f"{raw!r:.80} is no list")
    return raw


def _optional(raw: object, convert: Callable[[object], T]) -> T | None:
    return None if raw is None else convert(raw)


def _text(raw: object) -> str:
    if not isinstance(raw, str):
        raise ValueError(f"{raw!r:.80} is no text")
    return raw


def _count(raw: object) -> int:
    if not isinstance(raw, int) or isinstance(raw, bool) or raw < 0:
        raise ValueError(f"{raw!r:.80} is no count")
    return raw


def _flag(raw: object) -> bool:
    if not isinstance(raw, bool):
        raise ValueError(f"{raw!r:.80} is neither true nor false")
    return raw


def _number(raw: object) -> float:
    if isinstance(raw, bool) or not isinstance(raw, int | float) or not math.isfinite(raw):
        raise ValueError(f"{raw!r:.80} is no number")
    return float(raw)


def _capability(raw: object) -> tuple[int, int]:
    major, minor = map(_count, _sequence(raw))
    return major, minor


_FIELDS: Final[dict[str, Callable[[Any], Any]]] = {
    "device_id": _text,
    "name": _text,
    "index": _count,
    "mig_slot": _text,
    "mig_profile": _text,
    "parent_device_id": _text,
    "compute_capability": _capability,
    "vram_total_bytes": _count,
    "vram_free_bytes": _count,
    "pci_bus_id": _text,
    "numa_node": _count,
    "links": lambda raw: tuple(map(_link, _sequence(raw))),
    "mig_mode": _flag,
    "ecc_mode": _flag,
    "power_limit_watts": _number,
    "slowdown_celsius": _number,
    "shutdown_celsius": _number,
    "memory_bandwidth_bytes": _number,
    "recovery_action": RecoveryAction,
}
