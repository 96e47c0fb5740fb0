"""Records what the GPUs do, for the simulated driver to replay (docs/simulator.md).

    python scripts/record_trace.py DIRECTORY [--seconds 60] [--library libnvidia-ml.so.1] [--rate 10]

Writes a `gpu<index>.csv` per GPU and `scenario.toml`, which `poolmgr sim run` and `poolmgr serve --simulate` take. The
first column is seconds; the others are the simulator's series in its units. A cell is empty where the value is what it
was: a replay holds it until the next one.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from poolmgr_ext.calls import FIELDS
from poolmgr_ext.nvml import Library, NvmlError
from poolmgr_ext.ring import RingReader
from poolmgr_ext.sampler import Sampler

MAX_SECONDS = 3600.0
SECONDS_COLUMN = "seconds"
# The simulator's series by the field of the ring, and what the field's unit is of the series' own.
SERIES: Mapping[str, tuple[str, float]] = {
    "temperature": ("temperature", 1),
    "temperature_memory": ("memory_temperature", 1),
    "power": ("power", 1),
    "utilization_gpu": ("utilization", 1),
    "utilization_memory": ("memory_utilization", 1),
    "utilization_encoder": ("encoder", 1),
    "utilization_decoder": ("decoder", 1),
    "clock_graphics": ("clock_graphics", 1),
    "clock_sm": ("clock_sm", 1),
    "clock_memory": ("clock_memory", 1),
    "clock_video": ("clock_video", 1),
    "fan": ("fan", 1),
    "pcie_tx": ("pcie_tx", 1e-3),
    "pcie_rx": ("pcie_rx", 1e-3),
    "memory_used": ("memory_used", 1),
}
Points = Sequence[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Trace:
    """`columns`: (boot time in ns, value) by series. `begin_ns`: second 0. `device`: as discovery tells it."""

    device: Mapping[str, Any]
    begin_ns: int
    end_ns: int
    columns: Mapping[str, Points]


def record(library: Library, seconds: float, rate_hz: float, until: threading.Event | None = None) -> list[Trace]:
    """Of every GPU that is not cut into instances, for `seconds` or until the event is set."""
    devices = {d["device_id"]: d for d in library.discover()["devices"] if "index" in d and not d.get("mig_mode")}
    cadences = {field.name: max(1 / rate_hz, min(field.cadence, 1.0)) for field in FIELDS if field.name in SERIES}
    with TemporaryDirectory(prefix="poolmgr-trace-") as folder:
        ring = Path(folder) / "ring"
        sampler = Sampler(
            library, str(ring), 1, rate_hz=rate_hz, depth_seconds=seconds + 5.0, device_ids=list(devices),
            fields=list(cadences), cadences=cadences,
        )  # fmt: skip
        thread = threading.Thread(target=sampler.run)
        thread.start()
        (until or threading.Event()).wait(seconds)
        sampler.stop()
        thread.join()
        with RingReader(ring) as reader:
            return [_trace(reader, device) for device in devices.values()]


def _trace(reader: RingReader, device: Mapping[str, Any]) -> Trace:
    columns: dict[str, Points] = {}
    for field, (series, factor) in SERIES.items():
        points = reader.history(device["device_id"], field, reader.depth)
        if points:
            columns[series] = [(at, value * factor) for at, value in points]
    times = [at for points in columns.values() for at, _ in points]
    return Trace(device, min(times, default=0), max(times, default=0), columns)


def thinned(points: Points) -> Points:
    """Without what repeats the value before it; the first and the last stay, for the last ends the replay."""
    kept = [points[0], *(later for earlier, later in itertools.pairwise(points) if earlier[1] != later[1])]
    return kept if kept[-1] is points[-1] else [*kept, points[-1]]


def rows(trace: Trace) -> list[dict[str, str]]:
    """A row per moment. Every column has a cell in the first row and in the last, so that all replay in one period."""
    by_time: dict[int, dict[str, str]] = {trace.begin_ns: {}, trace.end_ns: {}}
    for series, points in trace.columns.items():
        for at, value in thinned([(trace.begin_ns, points[0][1]), *points[1:], (trace.end_ns, points[-1][1])]):
            by_time.setdefault(at, {})[series] = f"{value:.10g}"
    return [{SECONDS_COLUMN: f"{(at - trace.begin_ns) / 1e9:.6f}"} | cells for at, cells in sorted(by_time.items())]


def write_csv(trace: Trace, path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [SECONDS_COLUMN, *trace.columns], restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows(trace))


def scenario(traces: Sequence[Trace], files: Sequence[str], driver: str, cuda: str) -> str:
    """TOML. A GPU that the catalogue does not know has to be given a model by hand: `sim check` says so."""
    text = [f'driver = "{driver}"', f'cuda = "{cuda}"']
    for trace, file in zip(traces, files, strict=True):
        text += ["", "[[gpu]]", f'model = "{trace.device["name"]}"']
        text += [f'{series} = {{ wave = "replay", file = "{file}", column = "{series}" }}' for series in trace.columns]
        # Series that were never told stay so: else the model's idle values would show.
        text += [f"{series} = false" for series, _ in SERIES.values() if series not in trace.columns]
    return "\n".join(text) + "\n"


def save(library: Library, traces: Sequence[Trace], folder: Path) -> Path:
    """Returns the scenario's path. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [f"gpu{trace.device['index']}.csv" for trace in traces]
    for trace, file in zip(traces, files, strict=True):
        write_csv(trace, folder / file)
    shown = library.discover()
    path = folder / "scenario.toml"
    path.write_text(scenario(traces, files, shown["driver_version"], shown["cuda_version"]))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=10.0, help="per second, at most; slow fields once a second")
    parser.add_argument("--library", default="libnvidia-ml.so.1", help="what dlopen gets")
    given = parser.parse_args()
    if not 0 < given.seconds <= MAX_SECONDS:
        raise SystemExit(f"--seconds has to be within 0 and {MAX_SECONDS:g}")
    try:
        library = Library(given.library)
        path = save(library, record(library, given.seconds, given.rate), given.directory)
    except NvmlError as error:
        raise SystemExit(f"no driver: {error}") from error
    print(path)
    library.close()


if __name__ == "__main__":
    main()
