from os import PathLike
from types import TracebackType
from typing import Literal, NamedTuple, Self

from poolmgr_ext.stats import Statistics

UNREADABLE: Literal["UNREADABLE"]
WRONG_VERSION: Literal["WRONG_VERSION"]
NOT_A_RING: Literal["NOT_A_RING"]
TORN: Literal["TORN"]
GONE: Literal["GONE"]

class RingError(Exception):
    """A ring that cannot be read. `reason` is one of the constants above."""

    reason: str
    message: str
    def __init__(self, reason: str, message: str) -> None: ...

class Field(NamedTuple):
    """A column. `kind`: "gauge" or "counter"; `cadence`: seconds; `counter_bits`: where it wraps, 0 for a gauge."""

    name: str
    unit: str
    kind: str
    cadence: float
    counter_bits: int = 64

class Quantiles(NamedTuple):
    """Of every sample of a window: nearest-rank percentiles; Theil and Sen's slope a second, None below two blocks."""

    count: int  # type: ignore[assignment]  # hides tuple.count
    p50: float
    p95: float
    p99: float
    robust_slope: float | None

class RingReader:
    """One process's view of a ring. Columns are numbers or device ids, fields numbers or names.

    Every method raises RingError: TORN when bounded attempts all met the writer, GONE for a file that was cut and for
    a closed reader; IndexError, KeyError or ValueError for a column, field or window that there is not.
    """

    path: str
    fields: tuple[Field, ...]
    device_ids: tuple[str, ...]
    def __init__(self, path: str | PathLike[str]) -> None:
        """RingError UNREADABLE, WRONG_VERSION, NOT_A_RING, or GONE where there is no such file."""
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    @property
    def version(self) -> int: ...
    @property
    def epoch(self) -> int: ...
    @property
    def writer_pid(self) -> int: ...
    @property
    def writer_start(self) -> int:
        """Clock ticks after boot: with the pid, the identity of the writer."""
    @property
    def created_ns(self) -> int: ...
    @property
    def rate_hz(self) -> float: ...
    @property
    def depth(self) -> float:
        """Seconds that are kept; less than `depth_asked` where the ring would have been too large."""
    @property
    def depth_asked(self) -> float: ...
    @property
    def bytes(self) -> int: ...
    @property
    def ended(self) -> bool:
        """Whether the writer has closed it: nothing will follow."""
    @property
    def retries(self) -> int:
        """How often this reader met the writer and read again."""
    def heartbeat(self) -> tuple[int, int]:
        """A number that rises with every batch of driver calls, and its boot time in nanoseconds."""
    def call(self) -> tuple[int, int] | None:
        """(column, number in sampler.CALL_NAMES) of the driver call that runs, or None."""
    def latest(self, column: int | str) -> tuple[int, list[float | None]] | None:
        """Boot time (ns) of the newest row and the device's values in the order of `fields`; None before the first."""
    def statistics(self, column: int | str, field: int | str, window_seconds: int) -> Statistics | None:
        """Of the last 1, 10, 60 or 600 whole seconds, made once a second; None where they have no sample."""
    def processes(self, column: int | str) -> list[tuple[int, int | None]]:
        """Pid and bytes of the device's processes, at most 128; bytes None where the driver does not tell."""
    def history(self, column: int | str, field: int | str, seconds: float) -> list[tuple[int, float]]:
        """(boot time in ns, value) of every reading of the last `seconds` before the newest, oldest first."""
    def increase(self, column: int | str, field: int | str, seconds: float) -> float | None:
        """How far a counter came in the last `seconds` (TEL-5); None below two samples. ValueError for a gauge."""
    def quantiles(self, window_seconds: float) -> list[list[Quantiles | None]]:
        """By column and field, over every sample of the window; counters are unwrapped first."""
