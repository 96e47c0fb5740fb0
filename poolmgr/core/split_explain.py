"""Why a plan is as it is (SPLIT-5): sentences for people, each from numbers or from planning again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from poolmgr.core.split_answer import MIB, gap, in_gib, in_layers, in_milliseconds
from poolmgr.core.split_changes import (
    Budget,
    Search,
    half_context,
    is_worth,
    least_memory,
    most_context,
    unlimited,
    value_of,
    worded,
)
from poolmgr.core.split_costs import Costs, Tables, at_context, objective_of
from poolmgr.model.plan import Found, Objective, SplitRequest

MODEL = (
    "a stage takes (active + cache bytes) / bandwidth + one hop; it fits when weights + cache + overhead are at most "
    "the free memory"
)


def why(request: SplitRequest, found: Found, costs: Costs, search: Search) -> tuple[str, ...]:
    """Of a plan that fits: each device, what limits, what would help, whether it is proved, and the cost model."""
    shown = replace(request, model=at_context(request.model, found.context_length))
    return (
        *_used(shown, found, costs),
        *_unused(shown, found),
        *_limits(request, found, costs, search),
        _proof(request, found, costs),
        MODEL,
    )


def why_not(request: SplitRequest, missing: int, search: Search) -> tuple[str, ...]:
    """Of a request that nothing fits: the numbers, each device, and what would make it fit."""
    tables = Tables(request)
    largest = max(tables.need[i + 1] - tables.need[i] for i in range(tables.layers))
    return (
        f"weights and cache take {in_gib(tables.need[-1])}, the largest layer {in_gib(largest)}; {in_gib(missing)} are "
        "missing in the nearest plan",
        *(_room(tables, place, largest) for place in range(len(request.devices))),
        *_remedies(request, search),
        MODEL,
    )


def _used(request: SplitRequest, found: Found, costs: Costs) -> Iterator[str]:
    for stage, seconds, headroom in zip(found.stages, costs.seconds, costs.headroom, strict=True):
        yield (
            f"{request.devices[stage.device].device_id} is in: {in_layers(stage)}, "
            f"{in_milliseconds(seconds)} per token, {in_gib(headroom)} left"
        )


def _unused(request: SplitRequest, found: Found) -> Iterator[str]:
    tables = Tables(request)
    used = {stage.device for stage in found.stages}
    smallest = min(tables.need[i + 1] - tables.need[i] for i in range(tables.layers))
    for place, device in enumerate(request.devices):
        if place in used:
            continue
        if tables.room[place] < smallest:
            reason = f"{in_gib(max(tables.room[place], 0))} beside its overhead are less than any layer takes"
        elif len(used) == tables.most_devices:
            reason = f"{len(used)} devices are the most that the request and the layers allow"
        elif found.optimal:
            reason = "no plan with it is better"
        else:
            reason = "no plan with it was found to be better"
        yield f"{device.device_id} is out: {reason}"


def _limits(request: SplitRequest, found: Found, costs: Costs, search: Search) -> Iterator[str]:
    """What limits the plan, and the cheapest change that would make it better by at least a hundredth."""
    objective, budget = objective_of(request), Budget.of(request, search)
    value = value_of(objective, found, costs)
    yield f"the plan comes to {worded(objective, value)}"
    if objective is Objective.MIN_BOTTLENECK:
        slowest = request.devices[found.stages[costs.seconds.index(costs.bottleneck)].device].device_id
        yield f"the slowest stage is on {slowest}"
    if budget.left <= 0:
        return
    if objective in (Objective.MIN_BOTTLENECK, Objective.MIN_LATENCY):
        free = budget.value(unlimited(request))
        if free is None or not is_worth(value, free):
            yield "bandwidth and hops limit it: with any amount of memory it would be no better by a hundredth"
            return
        yield f"memory limits it: with room for everything everywhere it would be {worded(objective, free)}"
    more = least_memory(request, budget, value)
    if more is not None:
        yield f"{more} would give {worded(objective, more.value)}"
    half = half_context(request, budget, value)
    if half is not None:
        instead = f"a context of {half[0]} instead of {request.model.context_length}"
        yield f"{instead} would give {worded(objective, half[1])}"


def _proof(request: SplitRequest, found: Found, costs: Costs) -> str:
    if found.optimal:
        return "it is the best plan, proved"
    share = gap(objective_of(request), costs, found.lower_bound)
    return f"it is not proved to be the best: at most {share:.1%} worse" if share else "it is not proved to be the best"


def _room(tables: Tables, place: int, largest: int) -> str:
    device = tables.devices[place]
    text = f"{device.device_id}: {in_gib(device.vram_free_bytes)} free, {in_gib(device.overhead_bytes)} overhead"
    return f"{text}, less than the largest layer takes" if tables.room[place] < largest else text


def _remedies(request: SplitRequest, search: Search) -> Iterator[str]:
    more = least_memory(request, Budget.of(request, search), None, MIB)
    if more is not None:
        yield f"{more} would make it fit"
    context = most_context(request, search)
    if context:
        yield f"a context of {context} instead of {request.model.context_length} would fit"
    if 0 < request.max_devices < len(request.devices):
        count = len(search(replace(request, max_devices=0)).stages)
        if count:
            yield f"{count} devices instead of at most {request.max_devices} would fit"
