"""accelerate as a party: its environment, and the process that is asked case by case, in turn with the planner."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Self

from bench.common import ROOT, SOURCES, console
from bench.placement_judge import Plan
from poolmgr.model.plan import SplitRequest, Stage

EXTRA = "bench-accelerate"
INSTALL_SECONDS = 1800.0


@dataclass(frozen=True, slots=True)
class Answer:
    """`seconds`: of each call."""

    seconds: list[float]
    plan: Plan


def interpreter(place: Path) -> Path | None:
    """One that has accelerate: ours, or that of an environment in `place`, which is made at first. None without."""
    if find_spec("accelerate") is not None:
        return Path(sys.executable)
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"][EXTRA]
    python, stamp = place / "bin" / "python", place / "installed"
    if stamp.exists() and stamp.read_text() == "\n".join(wanted):
        return python
    console.print(f"installing {', '.join(wanted)} into {place}; the CPU build takes 1 GB")
    place.parent.mkdir(parents=True, exist_ok=True)
    steps = ([sys.executable, "-m", "venv", "--clear", place], [python, "-m", "pip", "install", "--quiet", *wanted])
    for argv in steps:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
        if done.returncode != 0:
            console.print(f"accelerate is not measured: {done.stderr.strip().splitlines()[-1:]}")
            return None
    stamp.write_text("\n".join(wanted))
    return python


class Accelerate:
    """The process. What it is given: for each layer its weights and cache, for each device what is free less overhead,
    though in use it counts neither caches nor overhead."""

    def __init__(self, python: Path) -> None:
        self._process = subprocess.Popen(
            [python, SOURCES / "placement_helper.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, request: SplitRequest, rounds: int) -> Answer:
        """RuntimeError when it ends instead of answering."""
        assert self._process.stdin is not None and self._process.stdout is not None
        sizes = [layer.resident_bytes + layer.kv_bytes for layer in request.model.layers]
        memory = [max(0, device.vram_free_bytes - device.overhead_bytes) for device in request.devices]
        question = {"layers": sizes, "memory": memory, "rounds": rounds}
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"accelerate ended with {self._process.wait()}")
        answer = json.loads(line)
        return Answer(answer["seconds"], plan_of(answer["devices"]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def plan_of(devices: list[int]) -> Plan:
    """Stages of a device for each layer; empty where some are on none."""
    if -1 in devices:
        return ()
    found, first = [], 0
    for device, run in groupby(devices):
        length = len(list(run))
        found.append(Stage(device, first, first + length - 1))
        first += length
    return tuple(found)
