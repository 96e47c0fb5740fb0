"""A search's finding as the answer that people and engines get."""

from __future__ import annotations

from collections.abc import Sequence

from poolmgr.core.split_costs import Costs, at_context, objective_of
from poolmgr.core.split_render import layered, ratios
from poolmgr.model.plan import Assignment, Found, Objective, PlanRefusal, SplitPlan, SplitRequest, Stage

GIB = 1 << 30
MIB = 1 << 20


def in_gib(size: int) -> str:
    """For people: GiB, small ones in MiB or bytes."""
    if size >= GIB // 10:
        return f"{size / GIB:.1f} GiB"
    return f"{size / MIB:.1f} MiB" if size >= MIB // 10 else f"{size} bytes"


def in_layers(stage: Stage) -> str:
    """For people."""
    first, last = stage.first_layer, stage.last_layer
    return f"layer {first}" if first == last else f"layers {first} to {last}"


def in_milliseconds(seconds: float) -> str:
    """For people."""
    return f"{seconds * 1e3:.3g} ms"


def answer(request: SplitRequest, found: Found, costs: Costs, explanation: Sequence[str]) -> SplitPlan:
    """A plan that fits."""
    stages = found.stages
    counts = [stage.last_layer - stage.first_layer + 1 for stage in stages]
    shares = ratios(counts)
    names = [request.devices[stage.device].device_id for stage in stages]
    return SplitPlan(
        fits=True,
        objective=objective_of(request),
        assignments=tuple(
            _assignment(request, found, stage, ratio) for stage, ratio in zip(stages, shares, strict=True)
        ),
        ratios=shares,
        bottleneck_seconds_per_token=costs.bottleneck,
        latency_seconds_per_token=costs.latency,
        headroom_bytes=dict(zip(names, costs.headroom, strict=True)),
        optimal=found.optimal,
        gap=0.0 if found.optimal else gap(objective_of(request), costs, found.lower_bound),
        context_length=found.context_length or request.model.context_length,
        explanation=tuple(explanation),
        renderings=layered(counts),
    )


def gap(objective: Objective, costs: Costs, lower_bound: float) -> float:
    """By what share a plan may be worse than the best; 0 where nothing bounds it."""
    seconds = {Objective.MIN_LATENCY: costs.latency, Objective.MIN_BOTTLENECK: costs.bottleneck}.get(objective, 0.0)
    return max(0.0, seconds / lower_bound - 1.0) if lower_bound > 0.0 else 0.0


def refused(request: SplitRequest, refusal: PlanRefusal, explanation: Sequence[str]) -> SplitPlan:
    """No plan."""
    return SplitPlan(False, objective_of(request), refusal, explanation=tuple(explanation))


def _assignment(request: SplitRequest, found: Found, stage: Stage, ratio: float) -> Assignment:
    device = request.devices[stage.device]
    layers = at_context(request.model, found.context_length).layers[stage.first_layer : stage.last_layer + 1]
    return Assignment(
        device.device_id,
        stage.first_layer,
        stage.last_layer,
        sum(layer.resident_bytes for layer in layers),
        sum(layer.kv_bytes for layer in layers),
        device.overhead_bytes,
        ratio,
    )
