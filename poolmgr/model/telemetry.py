"""Samples as they are answered: never without their age (TEL-7)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from poolmgr.model.device import FieldInfo, WindowStatistics

WINDOWS: Final = (1.0, 10.0, 60.0, 600.0)  # seconds, of TEL-3
MAX_POINTS: Final = 240  # of one series in an answer
STALE_AFTER: Final = 2.0  # seconds: a stall is seen within as many (DEV-5)


@dataclass(frozen=True, slots=True)
class TelemetryAsk:
    """`fields` and `windows` empty: all. `history`: seconds of points, 0 for none."""

    fields: tuple[str, ...] = ()
    windows: tuple[float, ...] = ()
    quantiles: bool = False
    history: float = 0.0


@dataclass(frozen=True, slots=True)
class FieldReading:
    """`value` None: unknown now. `quantiles`: by window, then by 0.5, 0.95 and 0.99. `points`: (age in seconds, value),
    oldest first; where there were more than MAX_POINTS, each is the mean of its neighbours.
    """

    info: FieldInfo
    value: float | None = None
    statistics: tuple[WindowStatistics, ...] = ()
    quantiles: Mapping[float, Mapping[float, float]] = field(default_factory=dict)
    points: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, slots=True)
class DeviceReading:
    """Of one device. `at` (Unix seconds) and `age` (seconds) of its latest row; None where there is none yet."""

    device_id: str
    index: int | None
    at: float | None
    age: float | None
    fields: tuple[FieldReading, ...]

    @property
    def stale(self) -> bool:
        return self.age is None or self.age > STALE_AFTER
