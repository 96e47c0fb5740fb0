"""The cheapest change that would help (SPLIT-5): found by planning again, never guessed.

More memory on one device never makes a plan worse, and neither does a smaller context, so that the least of either is
found by halving. The number of plans is limited (`Budget`): an explanation costs a small multiple of its plan.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from poolmgr.core.split_answer import GIB, MIB, in_milliseconds
from poolmgr.core.split_costs import Costs, Tables, at_context, evaluate, objective_of
from poolmgr.model.plan import Found, Objective, SplitRequest

Search = Callable[[SplitRequest], Found]

STEP = 256 * MIB  # memory is not to be had in smaller pieces
WORTH = 0.01  # what is called better: by so much of the objective
MAX_PLANS = 64
MAX_PLANS_OF_MANY = 8
MOST_BYTES = 1 << 54
MANY_STATES = 1 << 8  # sets of devices from which on a plan may take milliseconds


@dataclass(slots=True)
class Budget:
    """How often it may be planned again."""

    search: Search
    left: int

    @classmethod
    def of(cls, request: SplitRequest, search: Search) -> Budget:
        """None where adding memory could leave the numbers that searches count with."""
        tables = Tables(request)
        if max(tables.need[-1], sum(device.vram_free_bytes for device in request.devices)) > MOST_BYTES:
            return cls(search, 0)
        return cls(search, MAX_PLANS_OF_MANY if tables.states() > MANY_STATES else MAX_PLANS)

    def value(self, request: SplitRequest) -> float | None:
        """What the best plan comes to, smaller is better; None where there is none."""
        self.left -= 1
        found = self.search(request)
        costs = evaluate(request, found.stages, found.context_length)
        if not costs.fits:
            return None
        return value_of(objective_of(request), found, costs)


def value_of(objective: Objective, found: Found, costs: Costs) -> float:
    """What a plan comes to by its objective, smaller is better."""
    match objective:
        case Objective.MIN_LATENCY:
            return costs.latency
        case Objective.MIN_BOTTLENECK:
            return costs.bottleneck
        case Objective.BALANCED:
            return -costs.evenness
        case Objective.MAX_CONTEXT:
            return -float(found.context_length)


@dataclass(frozen=True, slots=True)
class MoreMemory:
    """On one device. `value`: of the plan that there is then."""

    device_id: str
    extra: int
    value: float

    def __str__(self) -> str:
        enough = math.ceil(100 * self.extra / GIB) / 100  # rounded up: less would not do
        return f"{enough:.2f} GiB more on {self.device_id}"


def worded(objective: Objective, value: float) -> str:
    """A plan's value for people."""
    match objective:
        case Objective.MIN_LATENCY:
            return f"{in_milliseconds(value)} per token"
        case Objective.MIN_BOTTLENECK:
            return f"a slowest stage of {in_milliseconds(value)}"
        case Objective.BALANCED:
            return f"{-value:.1%} of each device free"
        case Objective.MAX_CONTEXT:
            return f"a context of {-value:.0f} tokens"


def with_memory(request: SplitRequest, device: int, extra: int) -> SplitRequest:
    """The same with more on one device."""
    devices = list(request.devices)
    devices[device] = replace(devices[device], vram_free_bytes=devices[device].vram_free_bytes + extra)
    return replace(request, devices=tuple(devices))


def least_memory(request: SplitRequest, budget: Budget, value: float | None, step: int = STEP) -> MoreMemory | None:
    """The least further memory on one device with which there is a plan, or a better one than `value`.

    None where no such memory helps, or where the budget does not reach.
    """
    best: MoreMemory | None = None
    tables = Tables(request)
    for device in tables.usable(0):
        most = -(-(tables.need[-1] + request.devices[device].overhead_bytes) // step)
        steps = min(most, best.extra // step - 1) if best else most
        best = _least_on(request, budget, device, steps, step, value) or best
    return best


def _least_on(
    request: SplitRequest, budget: Budget, device: int, steps: int, step: int, value: float | None
) -> MoreMemory | None:
    found: MoreMemory | None = None
    low, high = 1, steps
    asked = steps
    while low <= high and budget.left > 0:
        better = budget.value(with_memory(request, device, asked * step))
        if better is not None and (value is None or is_worth(value, better)):
            found = MoreMemory(request.devices[device].device_id, asked * step, better)
            high = asked - 1
        elif asked == steps:
            return None
        else:
            low = asked + 1
        asked = (low + high) // 2
    return found


def is_worth(value: float, better: float) -> bool:
    """Whether that is better by enough to be told."""
    return value - better > WORTH * abs(value)


def most_context(request: SplitRequest, search: Search) -> int:
    """The largest context below the one asked for with which there is a plan; 0 for none, or where none is known."""
    asked = request.model.context_length
    if asked <= 1:
        return 0
    model = replace(request.model, context_limit=asked - 1)
    found = search(replace(request, model=model, objective=Objective.MAX_CONTEXT))
    return found.context_length if found.stages else 0


def half_context(request: SplitRequest, budget: Budget, value: float) -> tuple[int, float] | None:
    """(half the context, what the plan comes to then) where that is better."""
    asked = request.model.context_length
    if asked <= 1 or objective_of(request) is Objective.MAX_CONTEXT or budget.left <= 0:
        return None
    better = budget.value(replace(request, model=at_context(request.model, asked // 2)))
    return (asked // 2, better) if better is not None and is_worth(value, better) else None


def unlimited(request: SplitRequest) -> SplitRequest:
    """The same on devices that have room for everything."""
    need = Tables(request).need[-1]
    devices = tuple(
        replace(device, vram_free_bytes=max(device.vram_free_bytes, need + device.overhead_bytes) + GIB)
        for device in request.devices
    )
    return replace(request, devices=devices)
