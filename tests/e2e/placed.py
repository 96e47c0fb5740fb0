"""Engines that take memory by the plan that they are told, on a simulated driver: stand-ins for llama-server.

A real llama-server computes on real GPUs only. This one takes llama-server's flags, holds of each device that it is
shown what its layers there would take, and serves as the scripted engine does. Its model is a real header without
weights, of a size that a test wants.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from poolmgr.adapters.simulator.host import library_path
from poolmgr.testing.shapes import Shape, write_shape
from poolmgr.v1 import placement_pb2
from poolmgr.v1 import pool_pb2 as pb
from tests.e2e.engines import SCRIPT
from tests.e2e.gpus import GpuDaemon

CONTEXT = 1024
STAND_IN = """#!{python} -IS
import os, sys

TOLD = {{"--tensor-split": "", "--split-mode": "", "--main-gpu": "", "--n-gpu-layers": ""}}
left, words = [], iter(sys.argv[1:])
for word in words:
    if word in TOLD:
        TOLD[word] = next(words)
    else:
        left.append(word)
counts = [int(part) for part in TOLD["--tensor-split"].split(",") if part] or [int(os.environ["LAYERS"])]
layer, beside = int(os.environ["LAYER_BYTES"]), int(os.environ["BESIDE_BYTES"])
held = ",".join(str(count * layer + beside) for count in counts)
told = ["--gpu-library", {library!r}, "--gpu-state", {state!r}, "--gpu-memory", held]
os.execv({python!r}, [{python!r}, "-I", "-S", {script!r}, *left, *told])
"""


def a_model(directory: Path, name: str, layers: int) -> Path:
    """A Llama of 420 MiB a layer, in a file without weights."""
    path = directory / f"{name}.gguf"
    write_shape(path, Shape(layers=layers, width=4096, heads=32, kv_heads=32, head=128, ffn=12800, vocab=512))
    return path


def stand_in(daemon: GpuDaemon, directory: Path) -> str:
    """The path of its executable; of one daemon's GPUs."""
    path = directory / "llama-server"
    if not path.exists():
        words = {"python": sys.executable, "library": str(library_path()), "state": str(daemon.host.path)}
        path.write_text(STAND_IN.format(script=SCRIPT, **words))
        path.chmod(0o755)
    return str(path)


def pool(
    daemon: GpuDaemon,
    directory: Path,
    layers: int,
    mode: pb.SplitMode = pb.SPLIT_NONE,
    mask: str = "auto",
    takes: float = 1.0,
    args: tuple[str, ...] = (),
) -> pb.PoolSpec:
    """Of a model of so many layers. `takes`: how much more than it was thought to the engine takes of everything."""
    model = a_model(directory, f"of-{layers}", layers)
    with daemon.client() as client:
        estimate = client.estimate_memory(
            placement_pb2.EstimateMemoryRequest(model_path=str(model), context_length=CONTEXT)
        )
    whole = sum(one.resident_bytes + one.kv_bytes for one in estimate.model.layers)
    count = len(estimate.model.layers)
    return pb.PoolSpec(
        engine=pb.ENGINE_LLAMACPP,
        command=stand_in(daemon, directory),
        args=args,
        model=pb.Model(path=str(model), context_length=CONTEXT),
        device_mask=mask,
        split=pb.Split(mode=mode),
        env={
            "LAYERS": str(count),
            "LAYER_BYTES": str(int(takes * whole / count)),
            "BESIDE_BYTES": str(int(takes * estimate.overhead_bytes)),
        },
        supervision=pb.Supervision(backoff_floor_ms=50, backoff_initial_ms=50),
    )


class Stranger:
    """A process that nobody announced, which holds memory of one GPU."""

    def __init__(self, daemon: GpuDaemon, gpu: int, size: int) -> None:
        flags = ["--gpu-library", str(library_path()), "--gpu-state", str(daemon.host.path), "--gpu-memory", str(size)]
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", SCRIPT, *flags],
            env={"CUDA_VISIBLE_DEVICES": daemon.host.uuid(gpu)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("holds "):
                return
        raise AssertionError("the stranger took nothing")

    def leave(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def __enter__(self) -> Stranger:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()
