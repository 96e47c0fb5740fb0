from collections.abc import Iterable, Mapping
from typing import TypedDict

from poolmgr_ext.calls import FIELDS as FIELDS
from poolmgr_ext.nvml import Library

CALL_NAMES: tuple[str, ...]
"""What `RingReader.call` numbers."""

class _Tallies(TypedDict):
    sweeps: int
    skipped: int
    calls: int
    seconds: int
    second_ns: int

class Sampler:
    """The loop that reads the driver into a new ring. It never holds the GIL."""

    device_ids: tuple[str, ...]
    depth_seconds: float
    ring_bytes: int
    tallies: _Tallies
    """`skipped`: sweeps that were due while another one ran; `second_ns`: time that went into statistics."""

    def __init__(
        self,
        library: Library,
        ring_path: str,
        epoch: int,
        *,
        rate_hz: float = 10.0,
        depth_seconds: float = 600.0,
        max_bytes: int = 128 << 20,
        device_ids: Iterable[str] | None = None,
        fields: Iterable[str] | None = None,
        cadences: Mapping[str, float] | None = None,
    ) -> None:
        """Makes the ring, for the devices of the library's last discovery and every field unless some are named.

        `cadences`: seconds by field, instead of those of `FIELDS`; 0 is every sweep. Raises NvmlError NO_SUCH_DEVICE,
        KeyError for a field that there is not, OSError where the file exists or has no room, ValueError for a ring
        that cannot be.
        """
    def run(self) -> None:
        """Blocks without the GIL until `stop`, which it follows within one period. The ring is ended then."""
    def stop(self) -> None:
        """From any thread; also before `run`."""
    def sweep(self, count: int) -> None:
        """So many sweeps at once, in the calling thread and without the GIL."""
    def rediscovered(self) -> None:
        """After a discovery: takes over its handles, and asks everything again that was not supported."""
    def unsupported(self, column: str) -> list[str]:
        """Names of the fields of a device that are not asked any more."""
