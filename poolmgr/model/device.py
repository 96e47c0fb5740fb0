"""GPUs and MIG instances as this host shows them (DEV-1 to DEV-5), and what happens to them.

What the driver does not tell is None, never zero. Bytes, watts, degrees Celsius, seconds on the boot-time clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class DeviceState(StrEnum):
    """STATE-1. `gpu_state` numbers them in this order but for PROBATION, which is 6."""

    AVAILABLE = "AVAILABLE"
    ALLOCATED = "ALLOCATED"
    DEGRADED = "DEGRADED"
    QUARANTINED = "QUARANTINED"
    RESETTING = "RESETTING"
    OFFLINE = "OFFLINE"
    PROBATION = "PROBATION"


class RecoveryAction(StrEnum):
    """What the driver itself says a device needs (STATE-2)."""

    NONE = "NONE"
    RESET = "RESET"
    REBOOT = "REBOOT"
    DRAIN_P2P = "DRAIN_P2P"
    DRAIN_AND_RESET = "DRAIN_AND_RESET"


class LinkKind(StrEnum):
    NVLINK = "NVLINK"
    PCIE = "PCIE"  # below one PCIe root, or over the host bridge
    SYSTEM = "SYSTEM"  # over the interconnect between NUMA nodes


@dataclass(frozen=True, slots=True)
class Link:
    """To one peer. `lanes`: NVLinks that are up, or PCIe lanes. `bytes_per_second`: one way, by the link itself."""

    peer: str
    kind: LinkKind
    lanes: int | None = None
    bytes_per_second: float | None = None


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU, or a MIG instance of one (`parent_device_id`). `device_id` is its UUID: the identity everywhere (DEV-2).

    `index`, `mig_slot` ("1.2": GPU and instance) are for display and input. `mig_mode`: whether a GPU is partitioned.
    Thresholds are the device's own.
    """

    device_id: str
    name: str
    index: int | None = None
    mig_slot: str | None = None
    mig_profile: str | None = None
    parent_device_id: str | None = None
    compute_capability: tuple[int, int] | None = None
    vram_total_bytes: int | None = None
    vram_free_bytes: int | None = None
    pci_bus_id: str | None = None
    numa_node: int | None = None
    links: tuple[Link, ...] = ()
    mig_mode: bool | None = None
    ecc_mode: bool | None = None
    power_limit_watts: float | None = None
    slowdown_celsius: float | None = None
    shutdown_celsius: float | None = None
    memory_bandwidth_bytes: float | None = None  # a second, from bus width and memory clock
    recovery_action: RecoveryAction | None = None
    simulated: bool = False

    @property
    def is_instance(self) -> bool:
        return self.parent_device_id is not None

    @property
    def usable(self) -> bool:
        """Whether work can run on it: a GPU in MIG mode runs none itself (DEV-3)."""
        return self.is_instance or not self.mig_mode

    @property
    def order(self) -> tuple[int, int, str]:
        """Sorts GPUs by index, each before its instances by their slots; what has neither comes last."""
        gpu, _, instance = (self.mig_slot or "").partition(".")
        if gpu.isdecimal() and instance.isdecimal():
            return int(gpu), 1 + int(instance), self.device_id
        return (1 << 30 if self.index is None or self.is_instance else self.index), 0, self.device_id


class Absence(StrEnum):
    """Why no devices are known: four faults that are not one."""

    NO_LIBRARY = "NO_LIBRARY"  # libnvidia-ml is not installed
    NO_DRIVER = "NO_DRIVER"  # the library is there, its kernel module is not
    DRIVER_MISMATCH = "DRIVER_MISMATCH"  # library and kernel module are of different versions
    NO_DEVICES = "NO_DEVICES"  # the driver runs and shows none
    NO_PERMISSION = "NO_PERMISSION"
    STALLED = "STALLED"  # a call of the driver has not come back
    NOT_LOOKED = "NOT_LOOKED"  # no discovery has ended yet
    FAILED = "FAILED"  # any other error of the driver


@dataclass(frozen=True, slots=True)
class Discovery:
    """What the last look showed. `absence` is set exactly where `devices` is empty; `advice` says what to do then.

    `at`: boot-time seconds. `simulated`: the name of the scenario, empty on a real driver (DEV-4).
    """

    devices: tuple[Device, ...] = ()
    at: float = 0.0
    driver_version: str | None = None
    cuda_version: str | None = None
    absence: Absence | None = Absence.NOT_LOOKED
    message: str = "no discovery has ended yet"
    advice: str = ""
    simulated: str = ""


@dataclass(frozen=True, slots=True)
class DeviceProcess:
    """A process that holds memory of a device. `used_bytes` None: the driver does not tell (other namespaces, WDDM)."""

    pid: int
    used_bytes: int | None = None
    graphics: bool = False


class DriverEventKind(StrEnum):
    XID = "XID"
    ECC_SINGLE = "ECC_SINGLE"
    ECC_DOUBLE = "ECC_DOUBLE"
    PSTATE = "PSTATE"
    CLOCK = "CLOCK"
    POWER_SOURCE = "POWER_SOURCE"
    MIG_CONFIG = "MIG_CONFIG"


@dataclass(frozen=True, slots=True)
class DriverEvent:
    """Something that the driver or the kernel log told (TEL-4). `code`: the XID number. `at`: boot-time seconds."""

    kind: DriverEventKind
    device_id: str | None
    at: float
    code: int | None = None
    pid: int | None = None
    source: str = "driver"  # or "kernel-log"
    text: str = ""


@dataclass(frozen=True, slots=True)
class FieldInfo:
    """A column of the ring. `counter`: it only rises, and is told as a difference (TEL-5). `cadence`: seconds."""

    name: str
    unit: str
    counter: bool
    cadence: float


@dataclass(frozen=True, slots=True)
class Sample:
    """One device's latest row. `values` by field name; a value that is unknown is absent. `age`: seconds."""

    device_id: str
    at: float
    age: float
    values: dict[str, float]


@dataclass(frozen=True, slots=True)
class WindowStatistics:
    """TEL-3, over the last `window` seconds. `slope` per second with its standard error; `integral` in unit-seconds."""

    window: float
    count: int
    last: float
    minimum: float
    maximum: float
    mean: float
    standard_deviation: float
    slope: float | None
    slope_error: float | None
    integral: float


@dataclass(frozen=True, slots=True)
class RingInfo:
    """Where readers of this host find the samples without a call (TEL-1)."""

    path: str
    epoch: int
    version: int
    size_bytes: int
    rate_hz: float
    depth_seconds: float
    fields: tuple[FieldInfo, ...]
    device_ids: tuple[str, ...]
    writer_pid: int
    heartbeat_age: float
