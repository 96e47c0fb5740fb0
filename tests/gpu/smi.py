"""What `nvidia-smi` says of each GPU, in our units, and where ours differs from it."""

from __future__ import annotations

import csv
import io
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

MIB = 1 << 20
NOT_TOLD = ("n/a", "not supported", "not available", "unknown error", "requested functionality has been deprecated")
SECONDS = 60


@dataclass(frozen=True, slots=True)
class Column:
    """`query`: its name there; `read`: its text as our value; `slack`: how far two readings of one second may be apart,
    and `share` that of the value."""

    query: str
    read: Callable[[str], float | str]
    slack: float = 0.0
    share: float = 0.0


def mebibytes(text: str) -> float:
    return float(text) * MIB


def performance_state(text: str) -> float:
    return float(text.removeprefix("P"))


def enabled(text: str) -> float:
    return float(text == "Enabled")


# Said once, and to the letter.
FACTS = {
    "device_id": Column("uuid", str),
    "name": Column("name", str),
    "pci_bus_id": Column("pci.bus_id", str.upper),
    "index": Column("index", float),
    "driver_version": Column("driver_version", str),
    "compute_capability": Column("compute_cap", str),
    "vram_total_bytes": Column("memory.total", mebibytes, MIB),
    "power_limit_watts": Column("enforced.power.limit", float, 0.01),
    "ecc_mode": Column("ecc.mode.current", enabled),
    "mig_mode": Column("mig.mode.current", enabled),
}
# Of the same second. nvidia-smi shows whole mebibytes, degrees and percent; clocks move by steps of 15 MHz.
VALUES = {
    "memory_used": Column("memory.used", mebibytes, 64 * MIB),
    "memory_free": Column("memory.free", mebibytes, 64 * MIB),
    "temperature": Column("temperature.gpu", float, 2),
    "temperature_memory": Column("temperature.memory", float, 2),
    "power": Column("power.draw", float, 10, 0.1),
    "utilization_gpu": Column("utilization.gpu", float, 10),
    "utilization_memory": Column("utilization.memory", float, 10),
    "clock_sm": Column("clocks.sm", float, 30, 0.05),
    "clock_graphics": Column("clocks.gr", float, 30, 0.05),
    "clock_memory": Column("clocks.mem", float, 30, 0.05),
    "clock_video": Column("clocks.video", float, 30, 0.05),
    "performance_state": Column("pstate", performance_state, 1),
    "fan": Column("fan.speed", float, 5),
    "power_limit": Column("enforced.power.limit", float, 0.01),
    "ecc_corrected_volatile": Column("ecc.errors.corrected.volatile.total", float),
    "ecc_uncorrected_volatile": Column("ecc.errors.uncorrected.volatile.total", float),
    "ecc_corrected_aggregate": Column("ecc.errors.corrected.aggregate.total", float),
    "ecc_uncorrected_aggregate": Column("ecc.errors.uncorrected.aggregate.total", float),
}

Row = dict[str, float | str]


def query() -> list[Row]:
    """A row per GPU by our names; what nvidia-smi says is not there is absent. Raises OSError without nvidia-smi."""
    columns = FACTS | VALUES
    names = ",".join(column.query for column in columns.values())
    done = subprocess.run(
        ["nvidia-smi", f"--query-gpu={names}", "--format=csv,noheader,nounits"],
        capture_output=True, text=True, timeout=SECONDS, check=True,
    )  # fmt: skip
    return [read_row(cells) for cells in csv.reader(io.StringIO(done.stdout), skipinitialspace=True) if cells]


def read_row(cells: list[str]) -> Row:
    row: Row = {}
    for (name, column), cell in zip((FACTS | VALUES).items(), cells, strict=True):
        if cell.strip("[] ").lower() not in NOT_TOLD:
            row[name] = column.read(cell.strip())
    return row


def fact_differences(ours: Mapping[str, object], row: Row) -> Iterator[str]:
    for name, column in FACTS.items():
        mine, theirs = ours.get(name), row.get(name)
        if isinstance(mine, list):
            mine = ".".join(map(str, mine))
        if mine is None or theirs is None:
            if (mine is None) != (theirs is None):
                yield f"{name}: {mine!r} here, {theirs!r} by nvidia-smi"
        elif isinstance(theirs, str):
            if str(mine) != theirs:
                yield f"{name}: {mine!r} here, {theirs!r} by nvidia-smi"
        elif abs(float(mine) - theirs) > column.slack:  # type: ignore[arg-type]
            yield f"{name}: {mine!r} here, {theirs!r} by nvidia-smi"


def value_differences(ours: Mapping[str, list[float]], row: Row) -> Iterator[str]:
    """`ours`: all readings from shortly before nvidia-smi began until shortly after it ended."""
    for name, column in VALUES.items():
        values, theirs = ours.get(name, []), row.get(name)
        if theirs is None or not values:
            if (theirs is None) != (not values):
                yield f"{name}: {'told' if values else 'not told'} here, {theirs!r} by nvidia-smi"
            continue
        assert isinstance(theirs, float)
        slack = column.slack + column.share * abs(theirs)
        if not min(values) - slack <= theirs <= max(values) + slack:
            yield f"{name}: {min(values):g} to {max(values):g} here, {theirs:g} by nvidia-smi"
