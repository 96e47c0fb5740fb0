"""The pools of a rig: two real llama.cpp servers and six scripted engines that are under load, and others on demand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from poolmgr.v1 import pool_pb2 as pb
from tests.chaos.procs import POOL_VARIABLE, RIG_VARIABLE, VERSION_VARIABLE
from tests.e2e.engines import scripted

LLAMA_POOLS, SCRIPTED_POOLS = 2, 6
LLAMA_SLOTS, SCRIPTED_SLOTS = 2, 3
CONTEXT = 256
BRISK_HEALTH = {"health_check_interval_ms": 1000}


@dataclass(frozen=True, slots=True)
class PoolPlan:
    pool_id: str
    spec: pb.PoolSpec

    @property
    def slots(self) -> int:
        return max(1, self.spec.slots)


def mark(rig: str, pool_id: str, spec: pb.PoolSpec, version: int = 1) -> PoolPlan:
    """The pool whose engines an outsider can tell: by their own environment."""
    spec.env[RIG_VARIABLE], spec.env[POOL_VARIABLE], spec.env[VERSION_VARIABLE] = rig, pool_id, str(version)
    return PoolPlan(pool_id, spec)


def scripted_pool(
    rig: str, pool_id: str, *flags: object, slots: int = SCRIPTED_SLOTS, version: int = 1, **fields: object
) -> PoolPlan:
    fields = {"preload": True, "supervision": BRISK_HEALTH, **fields}
    return mark(rig, pool_id, scripted("--parallel", slots, *flags, slots=slots, **fields), version)  # type: ignore[arg-type]


def llama_pool(rig: str, pool_id: str, model: Path) -> PoolPlan:
    described = pb.Model(path=str(model), context_length=CONTEXT)
    spec = pb.PoolSpec(
        engine=pb.ENGINE_LLAMACPP,
        model=described,
        slots=LLAMA_SLOTS,
        device_mask="none",
        preload=True,
        # Else each takes as many threads as there are cores.
        args=["--threads", "1"],
    )
    return mark(rig, pool_id, spec)


def steady(rig: str, model: Path, *, llamas: int = LLAMA_POOLS, scripted: int = SCRIPTED_POOLS) -> list[PoolPlan]:
    """The pools under load."""
    real = [llama_pool(rig, f"llama-{n}", model) for n in range(llamas)]
    return real + [scripted_pool(rig, f"load-{n}") for n in range(scripted)]
