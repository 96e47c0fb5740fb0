"""The parties of bench.telemetry, each reading the same 20 fields of every device by the same 17 calls per sweep.

Run as a program with the simulated driver in its environment; it prints what it measured as one line of JSON.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import resource
import subprocess
import threading
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pynvml
from nvitop.api import libnvml
from poolmgr_ext.nvml import Library
from poolmgr_ext.ring import Field, RingReader
from poolmgr_ext.ringwriter import RingWriter
from poolmgr_ext.sampler import FIELDS, Sampler

from bench import common
from poolmgr.adapters.simulator.host import LiveHost

READ = (
    "memory_total",
    "memory_free",
    "memory_used",
    "clock_sm",
    "clock_memory",
    "clock_graphics",
    "clock_video",
    "temperature",
    "power",
    "utilization_gpu",
    "utilization_memory",
    "utilization_encoder",
    "utilization_decoder",
    "throttle_reasons",
    "performance_state",
    "power_limit",
    "energy",
    "fan",
    "pcie_replays",
    "ecc_corrected_volatile",
)
CALLS_PER_DEVICE = 17
DEPTH = 6000  # rows: 600 s at 10 Hz
WINDOWS = (1, 10, 60, 600)
Sweep = Callable[[int], None]


class OurSweeps:
    """What the telemetry process does: calls, ring, streaming statistics of all four windows."""

    def __init__(self, library: Library, path: str, rate_hz: float = 10.0) -> None:
        self.sampler = Sampler(library, path, 1, rate_hz=rate_hz, fields=READ, cadences=dict.fromkeys(READ, 0.0))

    def __call__(self, count: int) -> None:
        self.sampler.sweep(count)


class CLoop:
    def __init__(self, program: Path, library: str) -> None:
        self._library = ctypes.CDLL(str(program))
        if self._library.prepare(library.encode()) < 1:
            raise SystemExit("the C loop does not find its driver")

    def __call__(self, count: int) -> None:
        code = self._library.sweep(count)
        if code != 0:
            raise SystemExit(f"a call of the C loop failed: {code}")


class Rings:
    """Ours in numpy: a ring of rows. The statistics are left out, so that it is charged for less than we do."""

    def __init__(self, devices: int) -> None:
        self._rows = np.full((DEPTH, devices, len(READ)), np.nan)
        self._times = np.zeros(DEPTH, dtype=np.int64)
        self._head = 0

    def add(self, values: list[list[float]]) -> None:
        slot = self._head % DEPTH
        self._times[slot] = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self._rows[slot] = values
        self._head += 1


class NvidiaMlPy:
    def __init__(self) -> None:
        pynvml.nvmlInit()
        self._devices = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        self._rings = Rings(len(self._devices))

    def __call__(self, count: int) -> None:
        for _ in range(count):
            self._rings.add([self._read(device) for device in self._devices])

    @staticmethod
    def _read(device: Any) -> list[float]:
        n = pynvml
        memory = n.nvmlDeviceGetMemoryInfo(device, version=n.nvmlMemory_v2)
        load = n.nvmlDeviceGetUtilizationRates(device)
        return [
            memory.total,
            memory.free,
            memory.used,
            n.nvmlDeviceGetClockInfo(device, n.NVML_CLOCK_SM),
            n.nvmlDeviceGetClockInfo(device, n.NVML_CLOCK_MEM),
            n.nvmlDeviceGetClockInfo(device, n.NVML_CLOCK_GRAPHICS),
            n.nvmlDeviceGetClockInfo(device, n.NVML_CLOCK_VIDEO),
            n.nvmlDeviceGetTemperature(device, n.NVML_TEMPERATURE_GPU),
            n.nvmlDeviceGetPowerUsage(device) * 1e-3,
            load.gpu,
            load.memory,
            n.nvmlDeviceGetEncoderUtilization(device)[0],
            n.nvmlDeviceGetDecoderUtilization(device)[0],
            n.nvmlDeviceGetCurrentClocksEventReasons(device),
            n.nvmlDeviceGetPerformanceState(device),
            n.nvmlDeviceGetEnforcedPowerLimit(device) * 1e-3,
            n.nvmlDeviceGetTotalEnergyConsumption(device) * 1e-3,
            n.nvmlDeviceGetFanSpeed(device),
            n.nvmlDeviceGetPcieReplayCounter(device),
            n.nvmlDeviceGetTotalEccErrors(device, n.NVML_MEMORY_ERROR_TYPE_CORRECTED, n.NVML_VOLATILE_ECC),
        ]


class Nvitop:
    """nvitop's layer over nvidia-ml-py, which its Device methods call; those make more calls for the same fields."""

    def __init__(self) -> None:
        libnvml.nvmlInit()
        self._devices = [
            libnvml.nvmlQuery("nvmlDeviceGetHandleByIndex", i) for i in range(libnvml.nvmlQuery("nvmlDeviceGetCount"))
        ]
        self._rings = Rings(len(self._devices))

    def __call__(self, count: int) -> None:
        for _ in range(count):
            self._rings.add([self._read(device) for device in self._devices])

    @staticmethod
    def _read(device: Any) -> list[float]:
        ask, n = libnvml.nvmlQuery, pynvml
        memory = ask("nvmlDeviceGetMemoryInfo", device)
        load = ask("nvmlDeviceGetUtilizationRates", device)
        clocks = [
            ask("nvmlDeviceGetClockInfo", device, clock)
            for clock in (n.NVML_CLOCK_SM, n.NVML_CLOCK_MEM, n.NVML_CLOCK_GRAPHICS, n.NVML_CLOCK_VIDEO)
        ]
        ecc = (n.NVML_MEMORY_ERROR_TYPE_CORRECTED, n.NVML_VOLATILE_ECC)
        return [
            memory.total,
            memory.free,
            memory.used,
            *clocks,
            ask("nvmlDeviceGetTemperature", device, n.NVML_TEMPERATURE_GPU),
            ask("nvmlDeviceGetPowerUsage", device) * 1e-3,
            load.gpu,
            load.memory,
            ask("nvmlDeviceGetEncoderUtilization", device)[0],
            ask("nvmlDeviceGetDecoderUtilization", device)[0],
            ask("nvmlDeviceGetCurrentClocksEventReasons", device),
            ask("nvmlDeviceGetPerformanceState", device),
            ask("nvmlDeviceGetEnforcedPowerLimit", device) * 1e-3,
            ask("nvmlDeviceGetTotalEnergyConsumption", device) * 1e-3,
            ask("nvmlDeviceGetFanSpeed", device),
            ask("nvmlDeviceGetPcieReplayCounter", device),
            ask("nvmlDeviceGetTotalEccErrors", device, *ecc),
        ]


def timed(sweep: Sweep, count: int) -> float:
    """Microseconds of CPU time a sweep: nobody here waits, and what else the machine runs is not charged."""
    begin = time.thread_time_ns()
    sweep(count)
    return (time.thread_time_ns() - begin) / count / 1e3


def check_calls(host: LiveHost, sweep: Sweep, devices: int, who: str) -> None:
    """Every party does the same number: who does fewer is not faster."""
    before = sum(host.calls().values())
    sweep(10)
    made = sum(host.calls().values()) - before
    if made != 10 * CALLS_PER_DEVICE * devices:
        raise SystemExit(
            f"{who} made {made} calls in 10 sweeps of {devices} devices, not {CALLS_PER_DEVICE} per device"
        )


def interleaved(parties: dict[str, tuple[Sweep, int]], rounds: int) -> dict[str, list[float]]:
    """Microseconds a sweep by party and round; who goes first alternates."""
    found: dict[str, list[float]] = {name: [] for name in parties}
    order = list(parties)
    for _ in range(rounds):
        order.append(order.pop(0))
        for name in order:
            sweep, count = parties[name]
            found[name].append(timed(sweep, count))
    return found


def run_sweeps(host: LiveHost, directory: Path, loop: Path, library: str, rounds: int) -> dict[str, Any]:
    ours_library = Library(library)
    devices = len(ours_library.discover()["devices"])
    ours = OurSweeps(ours_library, str(directory / "ring.sweeps"))
    parties: dict[str, tuple[Sweep, int]] = {
        "c_loop": (CLoop(loop, library), 2000),
        "own": (ours, 2000),
        "pynvml": (NvidiaMlPy(), 20),
        "nvitop": (Nvitop(), 10),
    }
    for name, (sweep, _) in parties.items():
        check_calls(host, sweep, devices, name)
    ours.sampler.sweep(1)
    before = ours.sampler.tallies
    found: dict[str, Any] = interleaved(parties, rounds)
    after = ours.sampler.tallies
    spent = (after["second_ns"] - before["second_ns"]) / 1e3
    found["second_us_per_sweep"] = spent / (after["sweeps"] - before["sweeps"])
    host.call_cost(5.0)
    slow = {name: (parties[name][0], 20) for name in ("c_loop", "own")}
    found["slow"] = interleaved(slow, rounds * 2)
    host.call_cost(0.0)
    return found


def run_paced(directory: Path, library: str, rate_hz: float, seconds: float) -> dict[str, float]:
    """CPU time of the sampling thread at its own pace."""
    opened = Library(library)
    opened.discover()
    sampler = OurSweeps(opened, str(directory / f"ring.paced.{rate_hz:g}"), rate_hz).sampler
    used: list[float] = []

    def body() -> None:
        before = resource.getrusage(resource.RUSAGE_THREAD)
        sampler.run()
        after = resource.getrusage(resource.RUSAGE_THREAD)
        used.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join(seconds)
    sampler.stop()
    thread.join()
    tallies = sampler.tallies
    per_second = tallies["second_ns"] / 1e3 / max(1, tallies["seconds"])
    return {"cpu_seconds": used[0], "sweeps": tallies["sweeps"], "seconds": seconds, "us_per_second": per_second}


def run_reads(directory: Path, reader_program: Path, rounds: int) -> dict[str, float]:
    """Reading a full ring of 8 devices: its newest row, from C and Python, and everything of four windows."""
    path = str(directory / "ring.reads")
    fields = [Field(f.name, f.unit, f.kind, 0.1, f.counter_bits) for f in FIELDS if f.name in READ]
    writer = RingWriter(path, epoch=1, fields=fields, device_ids=[f"GPU-{i}" for i in range(8)], depth_seconds=600.0)
    noise = np.random.default_rng(1)
    fresh = array("Q", [2**64 - 1] * 8)
    for row in range(6000):
        values = np.round(noise.normal(50.0, 10.0, (8, len(fields))), 2)
        writer.append(0, array("q", [row * 10**8 + i for i in range(8)]), fresh, values)
    reader = RingReader(path)
    latest = common.median([timed_reads(reader, 5000) for _ in range(rounds)])
    demanded = []
    for _ in range(max(5, rounds // 2)):
        begin = time.perf_counter_ns()
        found = [reader.quantiles(window) for window in WINDOWS]
        demanded.append((time.perf_counter_ns() - begin) / 1e6)
    assert all(each is not None for window in found for column in window for each in column)
    told = subprocess.run([reader_program, path, "time", "2000000"], capture_output=True, text=True, check=True)
    return {"c_us": float(told.stdout.split()[1]) / 1e3, "python_us": latest, "ondemand_ms": common.median(demanded)}


def timed_reads(reader: RingReader, count: int) -> float:
    begin = time.perf_counter_ns()
    for i in range(count):
        reader.latest(i % 8)
    return (time.perf_counter_ns() - begin) / count / 1e3


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("sweeps", "scale", "paced", "reads"))
    parser.add_argument("directory", type=Path)
    parser.add_argument("--library", default="")
    parser.add_argument("--program", type=Path)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--rate", type=float, default=10.0)
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    if options.what == "reads":
        print(json.dumps(run_reads(options.directory, options.program, options.rounds)))
        return
    if options.what == "paced":
        print(json.dumps(run_paced(options.directory, options.library, options.rate, options.seconds)))
        return
    host = LiveHost(os.environ["POOLMGR_SIM_STATE"])
    if options.what == "sweeps":
        print(json.dumps(run_sweeps(host, options.directory, options.program, options.library, options.rounds)))
        return
    opened = Library(options.library)
    devices = len(opened.discover()["devices"])
    ours = OurSweeps(opened, str(options.directory / f"ring.scale.{devices}.{os.getpid()}"))
    ours(200)
    print(json.dumps([timed(ours, 500) / devices for _ in range(options.rounds)]))


if __name__ == "__main__":
    main()
