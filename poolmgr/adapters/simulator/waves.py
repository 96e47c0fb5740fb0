"""Waveforms of a scenario: what a value of a device does over time."""

from __future__ import annotations

import csv
import io
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from poolmgr.adapters.simulator.reading import Table

KINDS = ("constant", "ramp", "step", "noise", "sine", "replay", "absent")

# Which series a scenario may drive, the range that the driver would tell, and how often the driver renews the value, in
# seconds: utilisation every sixth of a second, power and temperature some ten times a second; what is read from
# registers (clocks, memory) is always new. From users' reports.
SERIES: dict[str, tuple[float, float, float]] = {
    "temperature": (0, 150, 0.1),
    "memory_temperature": (0, 150, 0.1),
    "power": (0, 5000, 0.1),
    "utilization": (0, 100, 1 / 6),
    "memory_utilization": (0, 100, 1 / 6),
    "encoder": (0, 100, 1 / 6),
    "decoder": (0, 100, 1 / 6),
    "jpeg": (0, 100, 1 / 6),
    "ofa": (0, 100, 1 / 6),
    "clock_graphics": (0, 10000, 0),
    "clock_sm": (0, 10000, 0),
    "clock_memory": (0, 30000, 0),
    "clock_video": (0, 10000, 0),
    "fan": (0, 100, 0.1),
    "pcie_tx": (0, 4e9, 0.02),
    "pcie_rx": (0, 4e9, 0.02),
    "nvlink_tx": (0, 4e12, 0),
    "nvlink_rx": (0, 4e12, 0),
    "memory_used": (0, 1e15, 0),
    "bar1_used": (0, 1e15, 0),
}


@dataclass(frozen=True, slots=True)
class Wave:
    """`a`, `b`, `period` (seconds) as `kind` has them (ext/simnvml/state.h); `noise` is added, evenly to both sides."""

    kind: str = "constant"
    a: float = 0.0
    b: float = 0.0
    period: float = 0.0
    noise: float = 0.0
    repeat: bool = False
    points: tuple[tuple[float, float], ...] = ()


def constant(value: float, noise: float = 0.0) -> Wave:
    return Wave(a=value, noise=noise)


def read_wave(table: Table, name: str, folder: Path) -> Wave:
    """A number is a constant, `false` a value that is not told, a table a waveform. ClientError INVALID_SCENARIO."""
    value = table.raw(name)
    if value is False:
        return Wave("absent")
    if isinstance(value, bool) or not isinstance(value, int | float | dict | str):
        raise table.wrong(name, f"has to be a number, a waveform or false, not {value!r}")
    low, high, _ = SERIES[name]
    if isinstance(value, str):
        return constant(table.size(name))
    if not isinstance(value, dict):
        return constant(table.number(name, low=low, high=high))
    inner = Table(table.document, (*table.path, name), value)
    wave = _read_kind(inner, inner.choice("wave", KINDS), low, high, folder)
    inner.done()
    return wave


def _read_kind(inner: Table, kind: str, low: float, high: float, folder: Path) -> Wave:
    def value(key: str, default: float | None = None) -> float:
        return inner.number(key, default, low=low, high=high)

    def seconds(key: str) -> float:
        return inner.number(key, low=1e-3, high=1e7)

    noise = inner.number("noise", 0.0, low=0, high=high)
    match kind:
        case "ramp":
            return Wave("ramp", value("from"), value("to"), seconds("seconds"), noise)
        case "step":
            return Wave("step", value("from"), value("to"), seconds("seconds"), noise, inner.flag("repeat", False))
        case "noise":
            return Wave("noise", value("value"), inner.number("spread", low=0, high=high))
        case "sine":
            return Wave("sine", value("value"), inner.number("spread", low=0, high=high), seconds("seconds"), noise)
        case "replay":
            return _read_replay(inner, noise, folder)
        case _:
            return Wave(kind, value("value") if kind == "constant" else 0.0, noise=noise)


def _read_replay(inner: Table, noise: float, folder: Path) -> Wave:
    """`points` as [[seconds, value], …], or a `column` of a CSV `file` whose first column is seconds."""
    if "points" in inner.values:
        points = _points(inner, "points", inner.raw("points"))
    else:
        file, column = inner.text("file"), inner.text("column")
        points = _points(inner, "file", _column(inner, folder / file, column))
    period = inner.number("period", 0.0, low=0, high=1e7) if inner.flag("repeat", True) else 0.0
    return Wave("replay", period=period or (points[-1][0] if inner.values.get("repeat", True) else 0.0), noise=noise,
                points=points)  # fmt: skip


def _points(inner: Table, key: str, rows: Any) -> tuple[tuple[float, float], ...]:
    if not isinstance(rows, list) or len(rows) < 2 or not all(_is_point(row) for row in rows):
        raise inner.wrong(key, "has to be two or more pairs of numbers: seconds and value")
    points = tuple((float(at), float(value)) for at, value in rows)
    if any(later[0] <= earlier[0] for earlier, later in itertools.pairwise(points)):
        raise inner.wrong(key, "has to rise in its seconds")
    return points


def _is_point(row: Any) -> bool:
    return isinstance(row, list | tuple) and len(row) == 2 and all(isinstance(v, int | float) for v in row)


def _column(inner: Table, file: Path, column: str) -> list[tuple[float, float]]:
    try:
        rows = list(csv.DictReader(io.StringIO(file.read_text())))
        first = next(iter(rows[0]))
        return [(float(row[first]), float(row[column])) for row in rows if row[column] not in ("", None)]
    except OSError as error:
        raise inner.wrong("file", f"cannot be read: {error.strerror}") from error
    except (KeyError, IndexError, StopIteration) as error:
        raise inner.wrong("column", f"{file.name} has no column {column!r}") from error
    except ValueError as error:
        raise inner.wrong("file", f"{file.name} is no table of numbers: {error}") from error
