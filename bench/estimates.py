"""Estimates of memory beside what a real llama.cpp reserves, on models of random shapes (MEM-1).

``python -m bench.estimates [--seed N]``. The engine is the one that the xllamacpp wheel carries, with the parameters of
the daemon's launcher and the CPU as its backend: that is what can be measured without a GPU. Its buffer lines are in
MiB with two decimals. Weights are holes in the files: what is reserved does not depend on them. Repacking is off: the
CPU backend would count the weights of some types twice, as the mapped file and as a copy of it in another layout, which
no GPU does.

Weights and caches have no constants to fit. The compute buffer has one: by how much the engine's differs from its graph
run through its allocator, fitted on 6 shapes and scored on 12 others. It is 1 for the llama.cpp whose graphs were read.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import select
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from poolmgr.adapters.engines.llamacpp import LAUNCHER
from poolmgr.adapters.modelfiles import ModelFileReader
from poolmgr.core.estimate import LlamaCppBuffers, llamacpp_buffers
from poolmgr.core.llamacpp_graph import Backend
from poolmgr.model.memory import MemoryQuestion
from poolmgr.testing.shapes import Shape, random_shape, write_shape

MIB = 1 << 20
FITTED, SCORED = 6, 12
FIT_SEED = 20_250_101  # any; those that are scored come from another
LOAD_SECONDS = 60.0
MAX_LOG_BYTES = 4 << 20
CONTEXTS = (512, 1024, 2048, 4096, 8192)
SLOTS = (1, 1, 2, 4)
CACHES = ("f16", "f16", "q8_0", "q4_0", "f32")
LINE = re.compile(rb" (?P<part>model|KV|compute) buffer size = +(?P<mib>\d+\.\d\d) MiB")
DONE = b"sched_reserve: reserve took"
ENGINE = """
import importlib.util, sys, xllamacpp
spec = importlib.util.spec_from_file_location("launcher", sys.argv[1])
launcher = importlib.util.module_from_spec(spec)
spec.loader.exec_module(launcher)
params = launcher.parameters(launcher.parse(sys.argv[2:]))
params.no_extra_bufts = True
xllamacpp.Server(params)
"""


@dataclass(frozen=True, slots=True)
class Case:
    """A shape and how it is loaded. `context`: tokens per slot."""

    shape: Shape
    context: int
    slots: int
    cache: str


@dataclass(frozen=True, slots=True)
class Row:
    """One case: what the engine printed and what was predicted, in bytes."""

    case: Case
    measured: Mapping[str, float]
    predicted: Mapping[str, float]

    def error(self, part: str = "") -> float:
        """Relative, of one part or of all together."""
        parts = (part,) if part else ("model", "kv", "compute")
        measured = sum(self.measured[name] for name in parts)
        predicted = sum(self.predicted[name] for name in parts)
        return abs(predicted - measured) / measured if measured else float(predicted > 0)


def measure(path: str | Path, context: int, slots: int, cache_type: str) -> dict[str, float]:
    """Bytes of the engine's own "model", "kv" and "compute" buffers. `context`: tokens per slot.

    RuntimeError with the end of the engine's log where it did not get so far within a minute.
    """
    log = _log(str(path), context * slots, slots, cache_type)
    found = {"model": 0.0, "kv": 0.0, "compute": 0.0}
    for match in LINE.finditer(log):
        found[match["part"].decode().lower()] += float(match["mib"]) * MIB
    if DONE not in log or not found["compute"]:
        raise RuntimeError(log[-2000:].decode(errors="replace"))
    return found


def predict(path: str | Path, context: int, slots: int, cache_type: str, factor: float = 1.0) -> dict[str, float]:
    """The same by the product's own reader and estimator. `factor`: of the compute buffer."""
    question = MemoryQuestion(str(path), context, slots, cache_type)
    buffers: LlamaCppBuffers = llamacpp_buffers(ModelFileReader().read(str(path)), question, Backend.CPU)
    return {"model": buffers.model, "kv": buffers.kv, "compute": buffers.compute * factor}


def cases(seed: int, count: int) -> Sequence[Case]:
    rng = random.Random(seed)
    return [Case(random_shape(rng), rng.choice(CONTEXTS), rng.choice(SLOTS), rng.choice(CACHES)) for _ in range(count)]


def rows(seed: int, count: int, factor: float = 1.0) -> Sequence[Row]:
    """Every case from the seed; one that the engine refuses is an error and not left out."""
    found = []
    with tempfile.TemporaryDirectory(prefix="shapes-") as directory:
        for case in cases(seed, count):
            (path,) = write_shape(Path(directory, "model.gguf"), case.shape)
            asked = (path, case.context, case.slots, case.cache)
            found.append(Row(case, measure(*asked), predict(*asked, factor)))
    return found


def fit(seed: int = FIT_SEED, count: int = FITTED) -> float:
    """The factor of the compute buffer: measured to predicted, its median."""
    return statistics.median(row.measured["compute"] / row.predicted["compute"] for row in rows(seed, count))


def score(seed: int) -> tuple[float, float, Sequence[Row]]:
    """Median and worst relative error of weights, caches and compute buffer together over 12 shapes, and the rows."""
    scored = rows(seed, SCORED, fit())
    errors = [row.error() for row in scored]
    return statistics.median(errors), max(errors), scored


def _log(path: str, context: int, slots: int, cache: str) -> bytes:
    """What the engine prints until its buffers are reserved; then it is killed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-I", "-c", ENGINE, LAUNCHER, "--model", path, "--port", str(port), "--verbosity", "4"]
    command += ["--ctx-size", str(context), "--parallel", str(slots)]
    command += ["--cache-type-k", cache, "--cache-type-v", cache]
    deadline, log = time.monotonic() + LOAD_SECONDS, b""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as engine:
        assert engine.stdout is not None
        try:
            while DONE not in log and len(log) < MAX_LOG_BYTES:
                ready, _, _ = select.select([engine.stdout], [], [], max(0.0, deadline - time.monotonic()))
                chunk = os.read(engine.stdout.fileno(), 1 << 16) if ready else b""
                if not chunk:
                    break
                log += chunk
        finally:
            engine.kill()
    return log


def show(scored: Sequence[Row]) -> str:
    lines = [f"{'shape':34} {'asked':18} {'measured MiB':>24} {'error':>7} {'weights':>8} {'KV':>6} {'compute':>8}"]
    for row in scored:
        case, shape = row.case, row.case.shape
        experts = f" {shape.experts_used}/{shape.experts}" if shape.experts else ""
        name = f"{shape.family} {shape.layers}x{shape.width} {shape.type}{experts}"
        sizes = "+".join(f"{size / MIB:.1f}" for size in row.measured.values())
        errors = f"{row.error():7.2%} {row.error('model'):8.2%} {row.error('kv'):6.2%} {row.error('compute'):8.2%}"
        lines.append(f"{name:34} {case.slots}x{case.context} {case.cache:10} {sizes:>24} {errors}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    seed = parser.parse_args().seed
    median, worst, scored = score(seed)
    print(show(scored))
    print(f"seed {seed}: estimate_median_error {median:.2%}, estimate_worst_error {worst:.2%}; compute x {fit():.4f}")


if __name__ == "__main__":
    main()
