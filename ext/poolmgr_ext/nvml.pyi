from os import PathLike
from typing import Any, Literal

NO_LIBRARY: Literal["NO_LIBRARY"]
NO_DRIVER: Literal["NO_DRIVER"]
DRIVER_MISMATCH: Literal["DRIVER_MISMATCH"]
NO_PERMISSION: Literal["NO_PERMISSION"]
GPU_LOST: Literal["GPU_LOST"]
NOT_SUPPORTED: Literal["NOT_SUPPORTED"]
TIMEOUT: Literal["TIMEOUT"]
NO_SUCH_DEVICE: Literal["NO_SUCH_DEVICE"]
FAILED: Literal["FAILED"]

ERRORS: dict[int, str]
"""NVML's return codes by name."""

class NvmlError(Exception):
    """A call that failed. `reason` is one of the constants above: what it means for whoever asked."""

    code: int
    name: str
    call: str
    detail: str
    reason: str
    def __init__(self, code: int, call: str, detail: str = "") -> None: ...

class Library:
    """The driver's library, initialised. All methods may block for as long as the driver does; none holds the GIL then.

    Methods may be called from several threads at a time, but for `close`. Every one raises NvmlError.
    """

    path: str
    simulated: bool
    """Whether it is poolmgr's simulated driver."""

    def __init__(self, path: str | PathLike[str]) -> None:
        """NvmlError with reason NO_LIBRARY, NO_DRIVER, DRIVER_MISMATCH, NO_PERMISSION or FAILED."""
    def close(self) -> None:
        """Only when no other thread is in the library."""
    def discover(self) -> dict[str, Any]:
        """Plain values: `driver_version`, `nvml_version`, `cuda_version` ("12.4"), `simulated`, `devices`,
        `unreadable`.

        A device has the keys of `poolmgr.model.device.Device` that the driver tells, no others: `compute_capability`
        is a list of two, `links` a list of {"peer", "kind", "lanes", "bytes_per_second"}. `unreadable` has
        {"index", "code"} of GPUs that would not say who they are. No devices: an empty list.
        """
    def memory(self, device_id: str) -> dict[str, int]:
        """Bytes: `total`, `free`, `used`. NO_SUCH_DEVICE before a discovery has shown the device."""
    def processes(self, device_id: str) -> list[dict[str, Any]]:
        """{"pid", "used_bytes" (None: not told), "kind" ("compute", "mps" or "graphics")}, each pid once."""
    def listen(self) -> list[str]:
        """Asks for the events of the GPUs that the last discovery showed; ids of those that have no events."""
    def wait_event(self, timeout_ms: int) -> dict[str, Any] | None:
        """The next event, or None after `timeout_ms`. Listens first where nobody has.

        "kind" is a DriverEventKind or "OTHER", "type" the driver's bit, "at_ns" boot time, "device_id" the GPU (None
        where it no longer tells); "code" of an XID; "gpu_instance" and "compute_instance" where one is concerned.
        """
