"""Device masks: what people write, what it means on this host, and how it is told to whoever starts the work.

    none | auto | all | a list of parts, separated by commas
    part: 0 | GPU0 | 0-3 (GPUs by index) | 1.2 (GPU and MIG instance) | GPU-<uuid> | MIG-<uuid> (a unique beginning
          will do) | 00000000:3B:00.0 | 3b:00.0 (PCI bus id)

Case and blanks around a part do not matter; the order does: it is the order in which CUDA numbers the devices.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from poolmgr.errors import ClientError, InternalError, Number, Reason
from poolmgr.model.device import Device
from poolmgr.model.mask import DeviceRequest, Mask, MaskKind, MaskView

MAX_CHARACTERS: Final = 4096  # as any text of a pool's spec
MAX_LISTED: Final = 12
CDI_KIND: Final = "nvidia.com/gpu"

_INDEX = re.compile(r"(?:gpu)?([0-9]{1,4})")
_RANGE = re.compile(r"(?:gpu)?([0-9]{1,4})\s*-\s*(?:gpu)?([0-9]{1,4})")
_SLOT = re.compile(r"[0-9]{1,4}\.[0-9]{1,4}")
_UUID = re.compile(r"(?:gpu|mig)-[0-9a-z].*")
_PCI = re.compile(r"(?:([0-9a-f]{1,8}):)?([0-9a-f]{1,2}):([0-9a-f]{1,2})\.([0-7])")

Parts = list[tuple[str, Device]]  # each device with the part of the text that named it


def parse(text: str, devices: Sequence[Device], *, partitioned: bool = False) -> Mask:
    """What `text` means where `devices` are there. `partitioned`: a GPU in MIG mode may be meant as a whole (DEV-3).

    Raises ClientError(BAD_MASK) that says which part is wrong and lists what exists.
    """
    if len(text) > MAX_CHARACTERS:
        message = f"the mask has {len(text)} characters, at most {MAX_CHARACTERS} are allowed"
        raise ClientError(Reason.BAD_MASK, message, numbers={"characters": len(text), "limit": MAX_CHARACTERS})
    word = text.strip().casefold()
    if word in ("", "none"):
        return Mask()
    if word == "auto":
        return Mask(MaskKind.AUTO)
    if word == "all":
        return _all(devices)
    found = [(part.strip(), device) for part in text.split(",") for device in _named(part.strip(), devices)]
    _check_distinct(found, devices)
    _check_usable(found, devices, partitioned)
    return Mask(MaskKind.DEVICES, tuple(device.device_id for _, device in found))


def text_of(mask: Mask) -> str:
    """The mask as text that `parse` reads back on any host that has the devices."""
    return ",".join(mask.device_ids) if mask.kind is MaskKind.DEVICES else mask.kind.value.lower()


def cuda_visible_devices(mask: Mask) -> str:
    """For one CUDA process: UUIDs in the mask's order, empty for none. ClientError(BAD_MASK) where CUDA cannot.

    A CUDA process enumerates one MIG instance and nothing beside it (MIG user guide, Device Enumeration).
    """
    _require_chosen(mask)
    instances = mask.instances
    if instances and len(mask.device_ids) > 1:
        message = (
            f"one CUDA process sees one MIG instance and nothing else; the mask has {len(mask.device_ids)} devices, "
            f"{len(instances)} of them instances: give each its own pool"
        )
        numbers: dict[str, Number] = {"devices": len(mask.device_ids), "instances": len(instances)}
        raise ClientError(Reason.BAD_MASK, message, numbers=numbers)
    return ",".join(mask.device_ids)


def docker_device_requests(mask: Mask) -> tuple[DeviceRequest, ...]:
    """`HostConfig.DeviceRequests`; empty for none."""
    _require_chosen(mask)
    return (DeviceRequest(mask.device_ids),) if mask.device_ids else ()


def cdi_names(mask: Mask) -> tuple[str, ...]:
    """Fully qualified names of the Container Device Interface, as `nvidia-ctk cdi generate` makes them by UUID."""
    _require_chosen(mask)
    return tuple(f"{CDI_KIND}={device_id}" for device_id in mask.device_ids)


def view(mask: Mask) -> MaskView:
    """The mask with all its renderings; those of `auto` are empty until placement has chosen."""
    if mask.kind is MaskKind.AUTO:
        return MaskView(mask, text_of(mask), None, "placement chooses the devices when the engine starts", (), ())
    try:
        visible, refusal = cuda_visible_devices(mask), ""
    except ClientError as error:
        return MaskView(mask, text_of(mask), None, error.message, docker_device_requests(mask), cdi_names(mask))
    return MaskView(mask, text_of(mask), visible, refusal, docker_device_requests(mask), cdi_names(mask))


def find(text: str, devices: Sequence[Device]) -> Device | None:
    """The one device that `text` names, in any form that a mask's part may have; None when it names none or several."""
    try:
        named = _named(text.strip(), devices)
    except ClientError:
        return None
    return named[0] if len(named) == 1 else None


def existing(devices: Sequence[Device]) -> str:
    """What there is to name, on one line."""
    if not devices:
        return "this host shows no devices"
    ordered = sorted(devices, key=_order)
    listed = [f"{_short(device)} = {device.device_id} ({device.name})" for device in ordered[:MAX_LISTED]]
    more = f", and {len(devices) - MAX_LISTED} more: `poolmgr devices list`" if len(devices) > MAX_LISTED else ""
    return f"there are {', '.join(listed)}{more}"


def _order(device: Device) -> tuple[int, int, str]:
    return device.order


def _short(device: Device) -> str:
    if device.is_instance:
        return device.mig_slot or "?"
    return "?" if device.index is None else str(device.index)


def _all(devices: Sequence[Device]) -> Mask:
    usable = [device for device in sorted(devices, key=_order) if device.usable]
    if not usable:
        raise _bad("all", "names nothing that can be used", devices)
    return Mask(MaskKind.DEVICES, tuple(device.device_id for device in usable))


def _named(part: str, devices: Sequence[Device]) -> Sequence[Device]:
    word = part.casefold()
    if not word:
        raise _bad(part, "is an empty part of the mask", devices)
    if word in ("none", "all", "auto"):
        raise _bad(part, "stands alone or not at all", devices)
    gpus = [device for device in devices if not device.is_instance]
    if match := _RANGE.fullmatch(word):
        return _in_range(part, int(match[1]), int(match[2]), gpus, devices)
    return [_single(part, _candidates(word, gpus, devices), devices)]


def _candidates(word: str, gpus: Sequence[Device], devices: Sequence[Device]) -> Sequence[Device] | None:
    """Those that fit; None where the text has none of the forms."""
    if match := _INDEX.fullmatch(word):
        return [gpu for gpu in gpus if gpu.index == int(match[1])]
    if _SLOT.fullmatch(word):
        gpu, instance = (int(number) for number in word.split("."))
        return [device for device in devices if device.is_instance and device.mig_slot == f"{gpu}.{instance}"]
    if _PCI.fullmatch(word):
        wanted = _bus(word)
        return [gpu for gpu in gpus if _same_bus(_bus((gpu.pci_bus_id or "").casefold()), wanted)]
    if _UUID.fullmatch(word):
        exact = [device for device in devices if device.device_id.casefold() == word]
        return exact or [device for device in devices if device.device_id.casefold().startswith(word)]
    return None


def _single(part: str, found: Sequence[Device] | None, devices: Sequence[Device]) -> Device:
    if found is None:
        forms = "an index, GPU0, 0-3, 1.2, GPU-<uuid>, MIG-<uuid>, a PCI bus id, all, none or auto"
        raise _bad(part, f"is none of {forms}", devices)
    if not found:
        raise _bad(part, "names no device", devices)
    if len(found) > 1:
        raise _bad(part, f"names {len(found)} devices: {', '.join(d.device_id for d in found[:3])}", devices)
    return found[0]


def _in_range(part: str, first: int, last: int, gpus: Sequence[Device], devices: Sequence[Device]) -> Sequence[Device]:
    if first > last:
        raise _bad(part, f"is a range that ends before it begins: write {last}-{first}", devices)
    by_index = {gpu.index: gpu for gpu in gpus if gpu.index is not None}
    missing = next((index for index in range(first, last + 1) if index not in by_index), None)
    if missing is not None:
        raise _bad(part, f"names no device {missing}", devices)
    return [by_index[index] for index in range(first, last + 1)]


def _bus(text: str) -> tuple[int | None, int, int, int] | None:
    """(domain, bus, device, function); the domain None where it was left out."""
    match = _PCI.fullmatch(text)
    if match is None:
        return None
    domain = None if match[1] is None else int(match[1], 16)
    return domain, int(match[2], 16), int(match[3], 16), int(match[4])


def _same_bus(one: tuple[int | None, int, int, int] | None, wanted: tuple[int | None, int, int, int] | None) -> bool:
    if one is None or wanted is None:
        return False
    return one[1:] == wanted[1:] and (wanted[0] is None or one[0] == wanted[0])


def _check_distinct(found: Parts, devices: Sequence[Device]) -> None:
    seen: dict[str, str] = {}
    for part, device in found:
        if device.device_id in seen:
            raise _bad(part, f"names {device.device_id} again, which {_quoted(seen[device.device_id])} did", devices)
        seen[device.device_id] = part
    for part, device in found:
        whole = seen.get(device.parent_device_id or "")
        if whole is not None:
            raise _bad(part, f"is a slice of the GPU that {_quoted(whole)} names: name one of the two", devices)


def _check_usable(found: Parts, devices: Sequence[Device], partitioned: bool) -> None:
    for part, device in found:
        if device.usable:
            continue
        slices = [d for d in sorted(devices, key=_order) if d.parent_device_id == device.device_id]
        if not slices:
            raise _bad(part, "is in MIG mode without instances and runs no work: make instances or end MIG", devices)
        if not partitioned:
            names = ", ".join(_short(d) for d in slices)
            raise _bad(part, f"is a GPU in MIG mode, which runs no work itself: name its instances ({names})", devices)


def _require_chosen(mask: Mask) -> None:
    if mask.kind is MaskKind.AUTO:
        raise InternalError("the mask `auto` is rendered before placement has chosen")


def _quoted(part: str) -> str:
    return repr(part[:60])


def _bad(part: str, why: str, devices: Sequence[Device]) -> ClientError:
    numbers: Mapping[str, Number] = {"part": part[:60], "devices": len(devices)}
    return ClientError(Reason.BAD_MASK, f"mask: {_quoted(part)} {why}; {existing(devices)}", numbers=numbers)
