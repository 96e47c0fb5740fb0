"""Hosts, models and a planner that looks at every plan, for the tests of placement."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, permutations

from poolmgr.core.memory import entry
from poolmgr.core.split_costs import evaluate, key_of, objective_of
from poolmgr.model.device import Link, LinkKind
from poolmgr.model.device_health import Inadmissible, Inadmission
from poolmgr.model.memory import MemoryEstimate, Reserved
from poolmgr.model.placement import Candidate, IdlePool
from poolmgr.model.plan import (
    Assignment,
    LayerProfile,
    ModelProfile,
    PlanRefusal,
    Refusal,
    SplitPlan,
    SplitRequest,
    Stage,
)
from poolmgr.testing.devices import GIB, a_gpu, an_instance

GPU = [a_gpu(number).device_id for number in range(16)]


def gpu(
    number: int,
    free_gib: float | None = 80,
    *,
    total_gib: int = 80,
    bandwidth: float | None = 2039e9,
    reserved: tuple[Reserved, ...] = (),
    node: int | None = 0,
    links: dict[int, LinkKind] | None = None,
    **more,
) -> Candidate:
    """GPU `number` with so much reported free. `more`: fields of the candidate."""
    joined = tuple(Link(GPU[other], kind) for other, kind in (links or {}).items())
    device = replace(a_gpu(number, vram_gib=total_gib), memory_bandwidth_bytes=bandwidth, numa_node=node, links=joined)
    free = None if free_gib is None else int(free_gib * GIB)
    memory = entry(device.device_id, total_gib * GIB, free, reserved)
    return Candidate(device, memory, **more)


def mig(number: int, slot: int, free_gib: float = 10, profile: str = "1g.10gb", **more) -> Candidate:
    device = replace(an_instance(a_gpu(number), slot, profile, 10), memory_bandwidth_bytes=250e9)
    return Candidate(device, entry(device.device_id, 10 * GIB, int(free_gib * GIB), ()), **more)


def quarantined(candidate: Candidate) -> Candidate:
    reason = Inadmission(Inadmissible.QUARANTINED, f"device {candidate.device.device_id} is quarantined: XID 79", 99.0)
    return replace(candidate, refusal=reason)


def model(layers: int = 4, gib_per_layer: float = 10, overhead_gib: float = 1, **more) -> MemoryEstimate:
    """So many equal layers, a tenth of each cache."""
    size = int(gib_per_layer * GIB)
    layer = LayerProfile(size - size // 10, size - size // 10, size // 10)
    return MemoryEstimate(ModelProfile((layer,) * layers, **more), int(overhead_gib * GIB), activation_bytes=16384)


def idle(name: str, cost: float, busy: bool = False, **gib: float) -> IdlePool:
    """`gib`: what its stop frees, by `gpu0`, `gpu1`, …"""
    frees = {GPU[int(gpu_name[3:])]: int(size * GIB) for gpu_name, size in gib.items()}
    return IdlePool(name, frees, busy, reload_seconds=cost, uses_per_hour=1.0)


def every_plan(request: SplitRequest) -> SplitPlan:
    """The best of all plans, by looking at each."""
    objective = objective_of(request)
    layers, devices = len(request.model.layers), len(request.devices)
    most = min(request.max_devices or devices, devices, layers)
    best = None
    for used in range(1, most + 1):
        for order in permutations(range(devices), used):
            for cuts in combinations(range(1, layers), used - 1):
                edges = (0, *cuts, layers)
                stages = [Stage(device, edges[i], edges[i + 1] - 1) for i, device in enumerate(order)]
                costs = evaluate(request, stages)
                if costs.fits:
                    key = key_of(objective, costs, stages, request.model.context_length)
                    best = min(best, (key, stages, costs)) if best else (key, stages, costs)
    if best is None:
        free = sum(device.vram_free_bytes for device in request.devices)
        need = sum(layer.resident_bytes + layer.kv_bytes for layer in request.model.layers)
        missing = max(1, need - free)
        return SplitPlan(False, objective, PlanRefusal(Refusal.DOES_NOT_FIT, missing, "no split of it fits"))
    return _plan(request, objective, best[1], best[2])


def _plan(request, objective, stages, costs) -> SplitPlan:
    layers = request.model.layers
    assignments = []
    for stage in stages:
        own = layers[stage.first_layer : stage.last_layer + 1]
        device = request.devices[stage.device]
        weights, cache = sum(layer.resident_bytes for layer in own), sum(layer.kv_bytes for layer in own)
        share = len(own) / len(layers)
        assignments.append(
            Assignment(
                device.device_id, stage.first_layer, stage.last_layer, weights, cache, device.overhead_bytes, share
            )
        )
    return SplitPlan(
        True,
        objective,
        assignments=tuple(assignments),
        ratios=tuple(each.ratio for each in assignments),
        bottleneck_seconds_per_token=costs.bottleneck,
        latency_seconds_per_token=costs.latency,
        headroom_bytes={each.device_id: left for each, left in zip(assignments, costs.headroom, strict=True)},
        optimal=True,
        context_length=request.model.context_length,
        explanation=("every plan was looked at",),
    )


def fate_of(plan, number: int | str) -> str:
    name = GPU[number] if isinstance(number, int) else number
    (reason,) = [one.reason for one in plan.fates if one.device_id == name]
    return reason


def numbers(plan) -> list[int]:
    """Of the chosen GPUs, in their order."""
    return [GPU.index(name) for name in plan.device_ids]
