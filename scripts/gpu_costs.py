"""What each driver call costs, and how often each field has something new: for the cadences of `sampler.FIELDS`.

    python scripts/gpu_costs.py [--library libnvidia-ml.so.1] [--calls 500] [--seconds 10] [--device ID] [--output FILE]

Prints JSON. Costs are those of the sampler's own calls, one at a time, less what an idle sweep takes. A field's period
is the 10th percentile of the times between two changes while it was read at 100 Hz: the driver renews it at least that
often (a value that is renewed and stays the same is not seen), so run it under load too.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from poolmgr_ext.calls import TABLE
from poolmgr_ext.nvml import Library, NvmlError
from poolmgr_ext.ring import Field, RingReader
from poolmgr_ext.sampler import Sampler

RATE_HZ = 100.0
NEVER = 1e6  # seconds: a cadence that is not due again
STRIKES = 3  # after which the sampler no longer asks for what is not supported
LEAST_CALLS = 20
CALL_BUDGET_SECONDS = 2.0  # for one call's cost, however slow it is
CHEAP_US = 1000.0  # what may be read at 100 Hz together with all others
BUSY = 0.5  # of the time, for the others
LEAST_CHANGES = 20  # below this nothing is said of a period
EARLY = 0.8  # of a period: reading more often than that returns the old value
EXPENSIVE = 0.01  # of the driver's time, for one call of one device
QUESTIONS = 20
Points = Sequence[tuple[int, float]]


class Bench:
    """One device of a library."""

    def __init__(self, library: Library, device_id: str, folder: Path) -> None:
        self.library, self.device_id, self.folder = library, device_id, folder
        self._rings = itertools.count()

    def sampler(self, fields: Sequence[str], cadence: float, rate_hz: float, depth: float) -> tuple[Sampler, Path]:
        ring = self.folder / f"ring.{next(self._rings)}"
        sampler = Sampler(
            self.library, str(ring), 1, rate_hz=rate_hz, depth_seconds=depth, device_ids=[self.device_id],
            fields=fields, cadences=dict.fromkeys(fields, cadence),
        )  # fmt: skip
        return sampler, ring

    def sweeps_us(self, fields: Sequence[str], cadence: float, count: int) -> list[float]:
        """Microseconds of each; none where the device does not support the call."""
        sampler, ring = self.sampler(fields, cadence, 10.0, 1.0)
        sampler.sweep(STRIKES)
        found: list[float] = []
        if not sampler.unsupported(self.device_id):
            found = timed_us(lambda: sampler.sweep(1), count)
        ring.unlink()
        return found

    def history(self, fields: Sequence[str], rate_hz: float, seconds: float) -> dict[str, Points]:
        """Every reading of `seconds` at that rate."""
        sampler, ring = self.sampler(fields, 0.0, rate_hz, seconds + 1.0)
        thread = threading.Thread(target=sampler.run)
        thread.start()
        thread.join(seconds)  # it ends only when it is told to
        sampler.stop()
        thread.join()
        with RingReader(ring) as reader:
            found = {name: reader.history(0, name, seconds + 1.0) for name in fields}
        ring.unlink()
        return found


def timed_us(call: Callable[[], object], count: int) -> list[float]:
    """At most `count`, as many as the budget allows, and at least a few."""
    taken: list[float] = []
    until = time.perf_counter() + CALL_BUDGET_SECONDS
    while len(taken) < count and (len(taken) < LEAST_CALLS or time.perf_counter() < until):
        begin = time.perf_counter_ns()
        call()
        taken.append((time.perf_counter_ns() - begin) / 1000)
    return taken


def summary(taken: Sequence[float], less: float = 0.0) -> dict[str, float]:
    """Microseconds: median, 99th percentile by nearest rank, most."""
    ranked = sorted(max(0.0, each - less) for each in taken)
    p99 = ranked[min(len(ranked) - 1, -(-len(ranked) * 99 // 100) - 1)]
    return {
        "count": len(ranked),
        "median_us": round(statistics.median(ranked), 2),
        "p99_us": round(p99, 2),
        "most_us": round(ranked[-1], 2),
    }


def call_costs(bench: Bench, count: int, idle_us: float) -> dict[str, dict[str, Any]]:
    """By the names of the table. `share`: of the driver's time, at the cadence that the field has."""
    found: dict[str, dict[str, Any]] = {}
    for call in TABLE:
        taken = bench.sweeps_us([field.name for field in call.fields], 0.0, count)
        found[call.name] = {"supported": bool(taken), "heavy": call.heavy}
        if taken:
            costs = summary(taken, idle_us)
            share = costs["median_us"] * 1e-6 / min(field.cadence for field in call.fields)
            found[call.name] |= costs | {"share": round(share, 6)}
    return found


def change_period(points: Points) -> tuple[int, float | None]:
    """How often the value changed, and the 10th percentile of the seconds between two changes; None below a few."""
    changed = [later[0] for earlier, later in itertools.pairwise(points) if later[1] != earlier[1]]
    gaps = sorted((later - earlier) / 1e9 for earlier, later in itertools.pairwise(changed))
    if len(gaps) < LEAST_CHANGES:
        return len(changed), None
    return len(changed), gaps[len(gaps) // 10]


def verdict(field: Field, period: float | None, read_every: float) -> str:
    """`at_every_reading`: it changed as fast as it was read, so that nothing says how fast the driver renews it."""
    if period is None:
        return "changed_too_seldom"
    if period < 1.5 * read_every:
        return "at_every_reading"
    return "too_fast" if field.cadence < EARLY * period else "right"


def field_periods(bench: Bench, costs: Mapping[str, Mapping[str, Any]], seconds: float) -> dict[str, dict[str, Any]]:
    """Of every field that is supported: all cheap ones in one run, each of the others in its own."""
    runs: list[tuple[float, list[Field]]] = [(RATE_HZ, [])]
    for call in TABLE:
        cost = costs[call.name]
        if cost["supported"] and cost["median_us"] <= CHEAP_US:
            runs[0][1].extend(call.fields)
        elif cost["supported"]:
            runs.append((min(RATE_HZ, BUSY * 1e6 / cost["median_us"]), list(call.fields)))
    found: dict[str, dict[str, Any]] = {}
    for rate_hz, fields in runs:
        if not fields:
            continue
        history = bench.history([field.name for field in fields], rate_hz, seconds)
        for field in fields:
            changes, period = change_period(history[field.name])
            found[field.name] = {
                "cadence_ms": round(field.cadence * 1000, 1),
                "period_ms": None if period is None else round(period * 1000, 1),
                "changes": changes,
                "readings": len(history[field.name]),
                "rate_hz": round(rate_hz, 1),
                "verdict": verdict(field, period, 1 / rate_hz),
            }
    return found


def question_costs(library: Library, device_id: str) -> dict[str, dict[str, Any]]:
    """Of what the telemetry process is asked besides."""
    asked: dict[str, Callable[[], object]] = {
        "discover": library.discover,
        "memory": lambda: library.memory(device_id),
        "processes": lambda: library.processes(device_id),
    }
    found: dict[str, dict[str, Any]] = {}
    for name, ask in asked.items():
        try:
            found[name] = summary(timed_us(ask, QUESTIONS))
        except NvmlError as error:
            found[name] = {"refused": str(error)}
    return found


def measure(library: Library, device_id: str | None, calls: int, seconds: float) -> dict[str, Any]:
    """Raises NvmlError; SystemExit where the driver shows no such device."""
    shown = library.discover()
    devices = {each["device_id"]: each["name"] for each in shown["devices"]}
    chosen = device_id or next(iter(devices), "")
    if chosen not in devices:
        raise SystemExit(f"the driver shows no device {chosen or 'at all'}; there are {', '.join(devices) or 'none'}")
    with tempfile.TemporaryDirectory(prefix="poolmgr-costs-") as folder:
        bench = Bench(library, chosen, Path(folder))
        idle = statistics.median(bench.sweeps_us(["memory_used"], NEVER, calls))
        costs = call_costs(bench, calls, idle)
        fields = field_periods(bench, costs, seconds)
    supported = {name: cost for name, cost in costs.items() if cost["supported"]}
    return {
        "device": {"device_id": chosen, "name": devices[chosen]},
        "driver_version": shown.get("driver_version"),
        "simulated": library.simulated,
        "idle_sweep_us": round(idle, 2),
        "calls": costs,
        "questions": question_costs(library, chosen),
        "fields": fields,
        "share": round(sum(cost["share"] for cost in supported.values()), 6),
        "too_expensive": [name for name, cost in supported.items() if cost["share"] > EXPENSIVE],
        "heavy_and_not_marked": [n for n, c in supported.items() if c["median_us"] > CHEAP_US and not c["heavy"]],
        "too_fast": [name for name, field in fields.items() if field["verdict"] == "too_fast"],
    }


def shown(measured: Mapping[str, Any]) -> str:
    """JSON with a line per call, question and field, for people."""
    parts = []
    for key, value in measured.items():
        text = json.dumps(value)
        if isinstance(value, dict) and value and all(isinstance(each, dict) for each in value.values()):
            lines = (f"  {json.dumps(name)}: {json.dumps(each)}" for name, each in value.items())
            text = "{\n" + ",\n".join(lines) + "\n }"
        parts.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--library", default="libnvidia-ml.so.1", help="what dlopen gets")
    parser.add_argument("--calls", type=int, default=500, help="of each kind")
    parser.add_argument("--seconds", type=float, default=10.0, help="of reading at 100 Hz, once for all cheap fields")
    parser.add_argument("--device", help="an id; else the first")
    parser.add_argument("--output", type=Path, help="a file for the JSON, besides standard output")
    given = parser.parse_args()
    try:
        library = Library(given.library)
        text = shown(measure(library, given.device, given.calls, given.seconds))
    except NvmlError as error:
        raise SystemExit(f"no driver: {error}") from error
    print(text)
    if given.output:
        given.output.write_text(text + "\n")
    library.close()


if __name__ == "__main__":
    main()
