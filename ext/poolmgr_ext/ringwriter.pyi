from collections.abc import Iterable, Sequence
from typing import Any

from _typeshed import ReadableBuffer

from poolmgr_ext.ring import Field

def in_rows(fields: Iterable[Field]) -> list[Field]:
    """Fields in the order of the ring: those that are read often, then the others."""

class RingWriter:
    """The one writer of a ring, in a file that it makes and allocates whole."""

    path: str
    fields: tuple[Field, ...]
    device_ids: tuple[str, ...]
    rate_hz: float
    depth_seconds: float
    """What fits into `max_bytes`, at most what was asked for."""

    def __init__(
        self,
        path: str,
        *,
        epoch: int,
        fields: Iterable[Field | tuple[Any, ...]],
        device_ids: Sequence[str],
        rate_hz: float = 10.0,
        depth_seconds: float = 600.0,
        max_bytes: int = 128 << 20,
    ) -> None:
        """OSError where the file exists or does not fit, ValueError for what cannot be a ring."""
    @property
    def bytes(self) -> int: ...
    def append(self, group: int, times: ReadableBuffer, fresh: ReadableBuffer, values: ReadableBuffer) -> None:
        """A row of a group: int64 times (ns) and uint64 masks by device, doubles by device and field."""
    def beat(self, boottime_ns: int) -> None: ...
    def end(self) -> None:
        """Tells readers that nothing will follow."""
