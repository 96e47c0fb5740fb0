from typing import NamedTuple

from _typeshed import ReadableBuffer

class Statistics(NamedTuple):
    """Of one window (TEL-3). Slopes per second, None below two (their error: three) samples; integral: unit-seconds."""

    count: int  # type: ignore[assignment]  # hides tuple.count
    last: float
    minimum: float
    maximum: float
    mean: float
    standard_deviation: float
    """Of the samples themselves: zero for one."""
    slope: float | None
    slope_error: float | None
    integral: float

def counter_difference(before: float, now: float, bits: int) -> float:
    """How far a counter came (TEL-5): over a wrap of 32 bits, or since a reset."""

def percentiles(values: ReadableBuffer) -> tuple[float, float, float]:
    """p50, p95, p99 by nearest rank of a buffer of doubles. ValueError for none."""

def theil_sen(times: ReadableBuffer, values: ReadableBuffer, begin: float, width: float) -> float | None:
    """Median slope of all pairs of at most 60 block means, `width` seconds each from `begin`; None below two blocks."""

class Windows:
    """Streaming statistics of one series over the last 1, 10, 60 and 600 whole seconds."""

    def __init__(self, *, longest_gap: float = 3.0) -> None:
        """`longest_gap`: seconds; between samples further apart nothing is added to the integral."""
    def add(self, boottime_ns: int, value: float) -> None:
        """ValueError where the time does not rise or the value is NaN."""
    def close_to(self, second: int) -> None:
        """Ends every second before `second`."""
    def statistics(self, window_seconds: int) -> Statistics | None:
        """Of the last whole seconds, None where they have no sample. ValueError for a window that is not kept."""
