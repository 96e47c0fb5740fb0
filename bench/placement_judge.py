"""Who is right: the cost of a plan, written a second time, and the best cost that there is, found in three ways.

A plan is a sequence of stages (device, first layer, last layer). `poolmgr.core.split` states what it costs; this module
imports neither that one nor a planner. The best is found by

- brute force, which tries every plan (up to five devices and ten layers), and knows every tie-break;
- subsets, the best way to lay the first j layers over exactly this set of devices (numpy), for larger cases;
- HiGHS, a mixed-integer solver of other people, in `bench.placement_solver`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import inf, isclose

import numpy as np

from poolmgr.model.plan import LayerProfile, Objective, SplitRequest, Stage

Plan = tuple[Stage, ...]
MAX_BRUTE_DEVICES, MAX_BRUTE_LAYERS = 5, 10
MAX_SUBSET_DEVICES, MAX_LINKED_DEVICES = 16, 8  # sixteen take a quarter of a minute
TOLERANCE = 1e-9  # the solver's arithmetic is not exact; a plan's cost is compared in float64


@dataclass(frozen=True, slots=True)
class Proof:
    """`value`: of the objective, smaller is better; infinite where nothing fits. `key`: with its ties, where known."""

    by: str
    value: float
    key: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Cost:
    """Of a plan at one context. Seconds a token; `headroom`: bytes that stay free, by stage."""

    slowest: float
    whole: float
    headroom: tuple[int, ...]
    least_share: float  # of a device's free memory that stays free

    @property
    def fits(self) -> bool:
        return min(self.headroom) >= 0


class Question:
    """A request with what is looked up often: sums up to each layer, and what a hop takes. `context` 0: as asked."""

    def __init__(self, request: SplitRequest, context: int = 0) -> None:
        self.request = request
        self.objective = objective_of(request)
        cache = [cache_at(layer, request.model.context_length, context) for layer in request.model.layers]
        layers = request.model.layers
        self.held = [0, *accumulate(layer.resident_bytes + kv for layer, kv in zip(layers, cache, strict=True))]
        self.read = [0, *accumulate(layer.active_bytes + kv for layer, kv in zip(layers, cache, strict=True))]
        self.count = len(layers)
        self.most = request.max_devices or len(request.devices)
        self.links = {
            pair: link.latency_seconds + request.activation_bytes / link.bandwidth_bytes_per_second
            for link in request.links
            for pair in ((link.device_a, link.device_b), (link.device_b, link.device_a))
        }

    def hop(self, before: int | None, device: int) -> float:
        """Seconds by which a stage's input comes; the first one's from the host."""
        if before is None:
            return self.request.default_hop_seconds
        ids = [self.request.devices[place].device_id for place in (before, device)]
        return self.links.get((ids[0], ids[1]), self.request.default_hop_seconds)

    def seconds(self, device: int, first: int, last: int, before: int | None) -> float:
        speed = self.request.devices[device].memory_bandwidth_bytes_per_second
        return (self.read[last + 1] - self.read[first]) / speed + self.hop(before, device)

    def headroom(self, device: int, first: int, last: int) -> int:
        profile = self.request.devices[device]
        return profile.vram_free_bytes - profile.overhead_bytes - (self.held[last + 1] - self.held[first])

    def cost(self, plan: Plan) -> Cost:
        befores = [None, *(stage.device for stage in plan[:-1])]
        each = [self.seconds(s.device, s.first_layer, s.last_layer, b) for s, b in zip(plan, befores, strict=True)]
        room = tuple(self.headroom(s.device, s.first_layer, s.last_layer) for s in plan)
        free = [self.request.devices[stage.device].vram_free_bytes for stage in plan]
        share = min(left / whole if whole else 0.0 for left, whole in zip(room, free, strict=True))
        total = 0.0
        for seconds in each:
            total += seconds
        return Cost(max(each), total, room, share)

    def key(self, plan: Plan, context: int) -> tuple[float, ...]:
        """Smaller is better: the objective and its ties, then device order, then the larger earlier stages."""
        cost = self.cost(plan)
        room, used = -min(cost.headroom), len(plan)
        first: tuple[float, ...] = {
            Objective.MIN_BOTTLENECK: (cost.slowest, used, room),
            Objective.MIN_LATENCY: (cost.whole, used, room),
            Objective.MAX_CONTEXT: (-context, room, used),
            Objective.BALANCED: (-cost.least_share, used, room),
        }[self.objective]
        order = tuple(stage.device for stage in plan)
        return (*first, *order, *(-stage.last_layer for stage in plan))


def cache_at(layer: LayerProfile, made_for: int, context: int) -> int:
    """Bytes of one layer's cache at another context than it was given for; what has a window does not grow past it."""
    if not context or not made_for:
        return layer.kv_bytes
    window = layer.kv_window or max(made_for, context)
    return -(-layer.kv_bytes * min(context, window) // min(made_for, window))


def objective_of(request: SplitRequest) -> Objective:
    """What is asked for; by default what serves one stream, or several."""
    one = request.model.slots <= 1
    return request.objective or (Objective.MIN_LATENCY if one else Objective.MIN_BOTTLENECK)


def largest_context(request: SplitRequest) -> int:
    """Where MAX_CONTEXT ends; 0 where the context is not known and stays what it is."""
    return request.model.context_length and (request.model.context_limit or request.model.context_length)


def flaws(request: SplitRequest, plan: Plan) -> list[str]:
    """Why it is no plan at all, whatever it costs."""
    found = []
    used = [stage.device for stage in plan]
    if len(set(used)) != len(used):
        found.append("a device twice")
    if request.max_devices and len(used) > request.max_devices:
        found.append("too many devices")
    if any(not 0 <= device < len(request.devices) for device in used):
        found.append("an unknown device")
    if any(stage.first_layer > stage.last_layer for stage in plan):
        found.append("an empty stage")
    starts, ends = [stage.first_layer for stage in plan], [stage.last_layer + 1 for stage in plan]
    if [0, *ends] != [*starts, len(request.model.layers)]:
        found.append("not every layer once, in order")
    return found


def value_of(request: SplitRequest, plan: Plan, context: int) -> float:
    """Its objective, smaller is better; infinite where it is no plan or does not fit."""
    if not plan or flaws(request, plan):
        return inf
    question = Question(request, context if request.objective is Objective.MAX_CONTEXT else 0)
    return question.key(plan, context)[0] if question.cost(plan).fits else inf


def ratio(request: SplitRequest, value: float, best: float) -> float:
    """How many times worse than the best: 1 is as good, infinite for no plan where there is one. Of contexts and shares
    that stay free, where more is better, the inverse."""
    if value == best:
        return 1.0
    if value == inf:
        return inf
    worse, better = (value, best) if is_of_time(request) else (-best, -value)
    return worse / better if better > 0 else inf


def is_of_time(request: SplitRequest) -> bool:
    return objective_of(request) in (Objective.MIN_BOTTLENECK, Objective.MIN_LATENCY)


# Brute force.


def plans(question: Question) -> Iterator[Plan]:
    """Every one that fits."""

    def rest(done: Plan, first: int) -> Iterator[Plan]:
        if first == question.count:
            yield done
            return
        if len(done) == question.most:
            return
        used = {stage.device for stage in done}
        for device in range(len(question.request.devices)):
            if device in used:
                continue
            for last in range(first, question.count):
                if question.headroom(device, first, last) < 0:
                    break
                yield from rest((*done, Stage(device, first, last)), last + 1)

    return rest((), 0)


def brute(request: SplitRequest) -> Proof:
    context = 0
    if request.objective is Objective.MAX_CONTEXT and largest_context(request):
        context = bisected_context(request, lambda question: any(True for _ in plans(question)))
        if not context:
            return Proof("brute", inf)
    question = Question(request, context)
    shown = context or request.model.context_length
    keys = [question.key(plan, shown) for plan in plans(question)]
    return Proof("brute", min(keys)[0], min(keys)) if keys else Proof("brute", inf)


def bisected_context(request: SplitRequest, fits: Callable[[Question], bool]) -> int:
    """The largest that fits, 0 for none: caches grow with the context, so what fits once fits for every shorter one."""
    low, high = 0, largest_context(request)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(Question(request, middle)) else (low, middle - 1)
    return low


# Subsets. `table[first, end]`: of a stage of layers first..end-1 on one device; infinite where it does not fit.


def tables(question: Question) -> list[np.ndarray]:
    """By device. Seconds without the hop, or for BALANCED less its share that stays free."""
    held, read = np.array(question.held), np.array(question.read)
    found = []
    for profile in question.request.devices:
        room = profile.vram_free_bytes - profile.overhead_bytes - (held[None, :] - held[:, None])
        if question.objective is Objective.BALANCED:
            table = -(room / (profile.vram_free_bytes or 1))
        elif question.objective is Objective.MAX_CONTEXT:
            table = np.zeros(room.shape)
        else:
            table = (read[None, :] - read[:, None]) / profile.memory_bandwidth_bytes_per_second
        ends = np.arange(question.count + 1)
        found.append(np.where((room >= 0) & (ends[None, :] > ends[:, None]), table, inf))
    return found


def subsets(question: Question) -> float:
    """The best value; infinite where nothing fits. Adds in the order of the stages, so it rounds as a plan does."""
    together = np.add if question.objective is Objective.MIN_LATENCY else np.maximum
    of_time = question.objective in (Objective.MIN_LATENCY, Objective.MIN_BOTTLENECK)
    stages, number = tables(question), len(question.request.devices)
    start = np.full(question.count + 1, inf)
    start[0] = 0.0 if of_time else -inf
    # By the set and, where hops differ, its last device: the best for each number of layers.
    best: dict[tuple[int, int | None], np.ndarray] = {(0, None): start}
    answer = inf
    for used in range(min(number, question.most)):
        grown: dict[tuple[int, int | None], np.ndarray] = {}
        for (members, last), reached in best.items():
            for device in range(number):
                if members >> device & 1:
                    continue
                stage = stages[device] + (question.hop(last if used else None, device) if of_time else 0.0)
                each = together(reached[:, None], stage).min(axis=0)
                place = (members | 1 << device, device if question.links else None)
                grown[place] = np.minimum(grown[place], each) if place in grown else each
        best = {place: reached for place, reached in grown.items() if np.isfinite(reached).any()}
        answer = min([answer, *(float(reached[-1]) for reached in best.values())])
    return answer


def by_subsets(request: SplitRequest) -> Proof:
    if request.objective is not Objective.MAX_CONTEXT or not largest_context(request):
        question = Question(request)
        if request.objective is Objective.MAX_CONTEXT:
            fits = subsets(question) < inf
            return Proof("subsets", -request.model.context_length if fits else inf)
        return Proof("subsets", subsets(question))
    context = bisected_context(request, lambda question: subsets(question) < inf)
    return Proof("subsets", -context if context else inf)


def prove(request: SplitRequest) -> Proof | None:
    """The best there is, by whoever can tell; None where the case is too large for both."""
    number = len(request.devices)
    if number <= MAX_BRUTE_DEVICES and len(request.model.layers) <= MAX_BRUTE_LAYERS:
        return brute(request)
    if number <= (MAX_LINKED_DEVICES if request.links else MAX_SUBSET_DEVICES):
        return by_subsets(request)
    return None


# Verdicts.


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of one planner on one case. `ratio`: to the best there is. `tie_missed`: as good, yet not the plan that the ties
    name; None where nobody knows which that is."""

    case: str
    by: str
    ratio: float
    fits: bool
    tie_missed: bool | None = None


def verdict(case: str, request: SplitRequest, proof: Proof, plan: Plan, context: int) -> Verdict:
    """`context`: for which it was found. A plan where nothing fits is as wrong as none where something does."""
    value = value_of(request, plan, context)
    if proof.value == inf:
        return Verdict(case, proof.by, inf if plan else 1.0, False)
    worse = ratio(request, value, proof.value)
    if worse < 1.0 - TOLERANCE:
        raise AssertionError(f"{case}: the plan costs {value}, the judge's best {proof.value}: the judge is wrong")
    missed = None
    if proof.key is not None and isclose(worse, 1.0, rel_tol=TOLERANCE):
        at = context if request.objective is Objective.MAX_CONTEXT and largest_context(request) else 0
        missed = not same_key(Question(request, at).key(plan, at or request.model.context_length), proof.key)
    return Verdict(case, proof.by, worse, value < inf, missed)


def same_key(one: Sequence[float], other: Sequence[float]) -> bool:
    """Float sums of the same stages in another order differ in their last digit, which no planner is blamed for."""
    return len(one) == len(other) and all(isclose(a, b, rel_tol=1e-12) for a, b in zip(one, other, strict=True))
