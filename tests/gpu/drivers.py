"""The drivers that the suite runs on: the simulated one, and a real one where this host has it."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from poolmgr.adapters.simulator.host import SimulatedHost, environment, library_path
from poolmgr.adapters.simulator.scenario import load

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
REAL_LIBRARY = "libnvidia-ml.so.1"
PROBE_SECONDS = 60
REHEARSAL = (
    "POOLMGR_GPU_REHEARSAL"  # set: a simulated driver that is found as libnvidia-ml.so.1 is taken for a real one
)
PATIENCE = 3.0 if os.environ.get(REHEARSAL) else 20.0  # seconds that a driver may take to give memory back
FIRST_PID_NAMESPACE = "pid:[4026531836]"  # PROC_PID_INIT_INO of the kernel
SPEED = 10.0  # of sampling where nothing is real
SCENARIO = """
name = "conformance"
[[gpu]]
model = "H200"
count = 2
temperature = { wave = "noise", value = 55, spread = 2 }
power = { wave = "noise", value = 400, spread = 10 }
utilization = { wave = "step", from = 0, to = 98, seconds = 0.3, repeat = true }
memory_used = "3GiB"
clock_sm = { wave = "ramp", from = 345, to = 1980, seconds = 30 }
pcie_tx = 1500
[[gpu]]
model = "A100-40GB"
mig = ["3g.20gb", "1g.5gb"]
[[gpu]]
model = "RTX4090"
fan = 41
"""


@dataclass(frozen=True, slots=True)
class DriverUnderTest:
    """`library`: what dlopen gets. `environment`: what programs need to find it. `speed`: how many times faster than
    the daemon it is sampled; a real one is sampled as the daemon does. `host`: None on a real one."""

    name: str
    library: str
    environment: Mapping[str, str] = field(default_factory=dict)
    scenario: str = ""
    speed: float = 1.0
    host: SimulatedHost | None = None

    @property
    def tells_our_pids(self) -> bool:
        """A driver knows processes by the numbers of the first namespace; in a container ours are others."""
        return self.host is not None or os.readlink("/proc/self/ns/pid") == FIRST_PID_NAMESPACE

    def hold(self, visible: str | None = None) -> Holder:
        """A process with a CUDA context on each device of CUDA_VISIBLE_DEVICES; None: on all."""
        variables = {**os.environ, **self.environment}
        variables.pop("CUDA_VISIBLE_DEVICES", None)
        if visible is not None:
            variables["CUDA_VISIBLE_DEVICES"] = visible
        return Holder(variables)


class Holder:
    """A program that holds GPU memory (cuda.py). `told`: its first line."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", HERE / "cuda.py"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(variables),
        )  # fmt: skip
        self.told = self._line()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def refusal(self) -> str:
        """Why CUDA cannot be used; empty where it can."""
        return str(self.told.get("error", ""))

    @property
    def uuids(self) -> list[str]:
        """In CUDA's order, without `GPU-` or `MIG-`."""
        return [device["uuid"] for device in self.told.get("devices", [])]

    def ask(self, line: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self._line()
        assert "error" not in answer, answer["error"]
        return answer

    def _line(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"{self.process.args} ended with {self.process.wait()}"
        return dict(json.loads(line))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Holder:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()


def simulated(folder: Path, scenario: str = SCENARIO) -> DriverUnderTest:
    """Makes its state, and a directory in which programs find it and CUDA over it."""
    host = SimulatedHost(load(scenario), folder / "state")
    variables = environment(host.path)
    links = Path(variables["LD_LIBRARY_PATH"].split(":")[0])
    build_cuda(links / "libcuda.so.1")
    return DriverUnderTest("simulated", str(library_path()), variables, host.scenario.name, SPEED, host)


def build_cuda(path: Path) -> None:
    include = ROOT / "ext" / "include"
    command = ["gcc", "-shared", "-fPIC", "-O1", "-I", include, "-o", path, HERE / "simcuda.c", "-ldl"]
    subprocess.run(command, check=True)


def real() -> DriverUnderTest:
    if os.environ.get(REHEARSAL):
        names = ("POOLMGR_SIM_STATE", "LD_LIBRARY_PATH")
        return DriverUnderTest("real", REAL_LIBRARY, {name: os.environ[name] for name in names}, "rehearsal", SPEED)
    return DriverUnderTest("real", REAL_LIBRARY)


@cache
def why_no_real_driver() -> str:
    """Empty where there is one. Asked in a process of its own, because a driver can hang."""
    program = (
        "import sys; from poolmgr_ext.nvml import Library; library = Library(sys.argv[1]);"
        "print(library.simulated, len(library.discover()['devices']))"
    )
    variables = {**os.environ, "PYTHONPATH": str(ROOT / "ext")}
    try:
        done = subprocess.run(
            [sys.executable, "-c", program, REAL_LIBRARY],
            env=variables, capture_output=True, text=True, timeout=PROBE_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"the driver has not answered in {PROBE_SECONDS} s"
    if done.returncode != 0:
        return done.stderr.strip().rpartition("\n")[2].rpartition("NvmlError: ")[2]
    is_simulated, count = done.stdout.split()
    if is_simulated == "True" and not os.environ.get(REHEARSAL):
        return f"{REAL_LIBRARY} is the simulated driver"
    return "" if int(count) else "the driver shows no GPU"


def load_for_peer(driver: DriverUnderTest) -> ctypes.CDLL:
    return ctypes.CDLL(driver.library)
