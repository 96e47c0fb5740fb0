"""Which devices something may use, and how that is told to those who start it (MASK-1, MASK-2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

INSTANCE_PREFIX: Final = "MIG-"  # of a MIG instance's UUID, as the driver forms it


class MaskKind(StrEnum):
    NONE = "NONE"
    AUTO = "AUTO"  # placement chooses, at the start
    DEVICES = "DEVICES"


@dataclass(frozen=True, slots=True)
class Mask:
    """`device_ids`: UUIDs in the order in which they were asked for, at least one where the kind is DEVICES."""

    kind: MaskKind = MaskKind.NONE
    device_ids: tuple[str, ...] = ()

    @property
    def instances(self) -> tuple[str, ...]:
        """The MIG instances among them."""
        return tuple(name for name in self.device_ids if name.startswith(INSTANCE_PREFIX))


@dataclass(frozen=True, slots=True)
class DeviceRequest:
    """One entry of `HostConfig.DeviceRequests` of the Docker API."""

    device_ids: tuple[str, ...]
    driver: str = "nvidia"
    capabilities: tuple[tuple[str, ...], ...] = (("gpu",),)

    def as_json(self) -> Mapping[str, object]:
        """As the Docker API takes it."""
        return {
            "Driver": self.driver,
            "DeviceIDs": list(self.device_ids),
            "Capabilities": [list(all_of) for all_of in self.capabilities],
        }


@dataclass(frozen=True, slots=True)
class MaskView:
    """A mask with its renderings. `cuda_visible_devices` None: no CUDA process can have it, `cuda_refusal` says why."""

    mask: Mask
    text: str
    cuda_visible_devices: str | None
    cuda_refusal: str
    docker: tuple[DeviceRequest, ...]
    cdi_names: tuple[str, ...]
