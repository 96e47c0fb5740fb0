"""Reading the driver: a C loop, our sampler, nvidia-ml-py and nvitop on the same simulated driver; rings, statistics.

Every party reads the same 20 fields of 8 devices by the same 17 calls per device, which the driver counts; rounds are
interleaved. What a party costs is its sweep less the C loop's of the same round.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench import common, telemetry_hang
from poolmgr.adapters.simulator.host import SimulatedHost, environment, library_path
from poolmgr.adapters.simulator.scenario import load

MODEL = "RTXA6000"  # one with a fan and ECC
SCALE_PASSES = 5
BARS = (
    common.at_most("own_us_per_sweep", 2.0),
    common.at_most("own_us_per_second", 200.0),
    common.at_least("pynvml_vs_own", 30.0),
    common.at_most("sweep_vs_c_loop_5us", 1.1),
    common.at_most("cpu_percent_10hz", 0.3),
    common.at_most("cpu_percent_100hz", 1.0),
    common.at_most("ring_read_us_c", 1.0),
    common.at_most("ring_read_us_python", 15.0),
    common.at_most("stats_ondemand_ms_160", 15.0),
    common.at_most("telemetry_private_mb", 20.0),
    common.at_most("us_per_device_64_vs_8", 1.2),
    common.at_most("rpc_p99_ms_during_hang", 50.0),
)


@dataclass(frozen=True, slots=True)
class Effort:
    rounds: int
    paced_seconds: float
    hang_seconds: float


FULL = Effort(rounds=60, paced_seconds=20.0, hang_seconds=30.0)
QUICK = Effort(rounds=15, paced_seconds=4.0, hang_seconds=8.0)


class Bench:
    """`memory`: where rings and the driver's state lie, as in the product; writing back to a disk costs every sweep."""

    def __init__(self, directory: Path, memory: Path, effort: Effort) -> None:
        self.directory, self.memory, self.effort = directory, memory, effort
        self.library = str(library_path())

    def party(self, what: str, host: SimulatedHost | None, *arguments: str) -> Any:
        """What `bench.telemetry_parties` measured, in a process of its own with the driver in its environment."""
        simulated = environment(host.path) if host is not None else {}
        argv = [sys.executable, "-m", "bench.telemetry_parties", what, str(self.memory), "--library", self.library]
        argv += ["--rounds", str(self.effort.rounds), *arguments]
        run = subprocess.run(
            argv, env={**os.environ, **simulated}, cwd=common.ROOT, capture_output=True, text=True, check=False
        )
        if run.returncode != 0:
            raise SystemExit(f"{what}: {run.stderr}")
        return json.loads(run.stdout.splitlines()[-1])

    def host(self, devices: int) -> SimulatedHost:
        host = SimulatedHost(load(f"{devices}x{MODEL}"), self.memory / f"state.{devices}")
        for gpu in range(devices):  # what this model has and does not tell at first: with ECC off nothing is counted
            host.set(gpu, "clock_video", 1200.0)
            host.state.set(gpu, "ecc_current", 1)
        return host

    def compile(self, source: Path, name: str, *flags: str) -> Path:
        program = self.directory / name
        include = ["-I", str(common.ROOT / "ext/include"), "-I", str(common.ROOT / "ext/poolmgr_ext")]
        subprocess.run(["gcc", "-O2", "-Wall", "-Werror", *include, *flags, "-o", program, source], check=True)
        return program


def measure_sweeps(bench: Bench, report: common.Report) -> float:
    """The C loop's microseconds a sweep."""
    loop = bench.compile(common.SOURCES / "telemetry_loop.c", "loop.so", "-shared", "-fPIC")
    found = bench.party("sweeps", bench.host(8), "--program", str(loop))
    base, aside = found["c_loop"], found["second_us_per_sweep"]
    extra = {
        name: common.median([each - limit for each, limit in zip(found[name], base, strict=True)])
        for name in ("own", "pynvml", "nvitop")
    }
    sweep = max(0.05, extra["own"] - aside)  # what cannot be told from nothing is not counted as nothing
    report.figures |= {
        "c_loop_us_per_sweep": common.median(base),
        "own_us_per_sweep": sweep,
        "pynvml_us_per_sweep": extra["pynvml"],
        "nvitop_us_per_sweep": extra["nvitop"],
    }
    whole = max(0.05, extra["own"])
    slow = found["slow"]
    report.ratios |= {
        "pynvml_vs_own": extra["pynvml"] / whole,
        "nvitop_vs_own": extra["nvitop"] / whole,
        "sweep_vs_c_loop_5us": common.median([o / c for o, c in zip(slow["own"], slow["c_loop"], strict=True)]),
    }
    common.print_table(
        "8 devices, 20 fields, 136 calls a sweep",
        ["party", "sweep µs", "above the C loop µs"],
        [
            [name, f"{common.median(found[name]):.1f}", f"{extra.get(name, 0):.2f}"]
            for name in ("c_loop", "own", "pynvml", "nvitop")
        ],
    )
    return common.median(base)


def measure_pace(bench: Bench, report: common.Report, limit_us: float) -> None:
    """CPU time at 10 and 100 Hz less what the calls themselves take."""
    for rate in (10, 100):
        options = ("--rate", str(rate), "--seconds", str(bench.effort.paced_seconds))
        found = bench.party("paced", bench.host(8), *options)
        own = found["cpu_seconds"] - found["sweeps"] * limit_us * 1e-6
        if rate == 10:  # at the product's pace, where caches are cold
            report.figures["own_us_per_second"] = found["us_per_second"]
        report.figures[f"cpu_percent_{rate}hz"] = 100 * own / found["seconds"]
        report.figures[f"cpu_percent_{rate}hz_with_driver"] = 100 * found["cpu_seconds"] / found["seconds"]


def measure_reads(bench: Bench, report: common.Report) -> None:
    reader = bench.compile(common.ROOT / "docs/ring_reader.c", "ring_reader", "-std=c11")
    found = bench.party("reads", None, "--program", str(reader))
    report.figures |= {
        "ring_read_us_c": found["c_us"],
        "ring_read_us_python": found["python_us"],
        "stats_ondemand_ms_160": found["ondemand_ms"],
    }


def measure_scale(bench: Bench, report: common.Report) -> None:
    """In passes over all sizes, so that what else the machine does meets each."""
    sizes = (8, 16, 32, 64)
    found: dict[int, list[float]] = {devices: [] for devices in sizes}
    for _ in range(SCALE_PASSES):
        for devices in sizes:
            found[devices] += bench.party("scale", bench.host(devices))
    report.figures |= {f"us_per_device_{devices}": common.median(each) for devices, each in found.items()}
    report.ratios["us_per_device_64_vs_8"] = report.figures["us_per_device_64"] / report.figures["us_per_device_8"]


def measure_memory(bench: Bench, report: common.Report) -> None:
    """Private memory of the reader alone, the ring apart: the telemetry process has its socket and JSON beside it."""
    host, ring = bench.host(8), bench.memory / "ring.memory"
    program = [sys.executable, "-I", "-S", str(common.SOURCES / "telemetry_helper.py")]
    argv = [*program, bench.library, str(ring), str(common.ROOT / "ext")]
    with subprocess.Popen(argv, env=environment(host.path), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdin is not None
        child.stdout.readline()
        time.sleep(3.0)
        report.figures["telemetry_private_mb"] = private_without(child.pid, ring)
        report.figures["ring_mb"] = ring.stat().st_size / 1e6
        child.stdin.close()


def private_without(pid: int, file: Path) -> float:
    """Private memory in MB of all mappings but those of one file, which only one process maps here."""
    total, counts = 0, True
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name, _, value = line.partition(":")
        if " " in name:  # the first line of a mapping
            counts = not line.endswith(str(file))
        elif counts and name in ("Private_Clean", "Private_Dirty"):
            total += int(value.split()[0])
    return total * 1.024 / 1000


def measure_hang(bench: Bench, report: common.Report) -> None:
    """RPCs of a daemon whose driver hangs; what that daemon keeps lies on disk, as in the product."""
    directory = bench.directory / "hang"
    directory.mkdir()
    figure = telemetry_hang.rpc_p99_ms_during_hang(directory, bench.effort.hang_seconds)
    report.figures["rpc_p99_ms_during_hang"] = figure


def run(directory: Path, effort: Effort) -> common.Report:
    report = common.Report("telemetry", BARS)
    with TemporaryDirectory(prefix="poolmgr-bench-", dir="/dev/shm") as memory:
        bench = Bench(directory, Path(memory), effort)
        limit = measure_sweeps(bench, report)
        measure_pace(bench, report, limit)
        measure_reads(bench, report)
        measure_scale(bench, report)
        measure_memory(bench, report)
        measure_hang(bench, report)
    return report


def main() -> None:
    options = common.arguments(__doc__ or "")
    with common.state_directory(options.directory, "telemetry") as directory:
        run(directory, QUICK if options.quick else FULL).print(options.json)


if __name__ == "__main__":
    main()
