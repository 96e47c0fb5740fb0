"""The readable reference search for the best split (SPLIT-3, SPLIT-4): what the native planner has to equal.

Three facts carry it.

1. *Limits.* With an upper bound on a stage's seconds and a lower one on its headroom, a sweep over sets of devices
   (`split_sweep`) decides whether all layers can be placed, and with how few devices. A set stands for all that differ
   in devices that nothing tells apart (`Tables.alike`).
2. *Bounds are found exactly.* A sweep that fails names the nearest value that it refused: nothing between it and the
   bound can succeed, and one that succeeds has a plan with a real value of its own. Between the two the middle is taken
   by the numbers' bit patterns, so there are at most `MAX_PROBES` probes whatever the numbers are.
3. *A sum is found by labels.* For MIN_LATENCY the least sum of each (set, prefix) is enough for the least sum of all,
   since float addition never reverses an order. It is NOT enough for the ties: two sums that differ in the last bit may
   become equal with the next stage. So ties are decided in turn, each by another run under the ceiling of the least
   sum: the number of devices, the headroom, the order device by device, the cuts stage by stage.

Where there are more sets than `split_sweep.EXACT_STATES` (or more labels than `split_latency.EXACT_LABELS`), the best
few of each size are kept, and the answer says that it is not proved, with a bound from relaxations (`split_bounds`). No
clock is read.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace

from poolmgr.core import split_latency
from poolmgr.core.split_bounds import bottleneck_bound, latency_bound
from poolmgr.core.split_costs import Tables, at_context, costs_of, objective_of
from poolmgr.core.split_sweep import Limits, Stages, Sweep, cut, first_order, is_exact, largest
from poolmgr.model.plan import Found, Objective, SplitRequest

MAX_PROBES = 128


def _between(low: float, high: float) -> float:
    """The float whose bit pattern is in the middle: not below `low`, and below `high`. Both at least 0."""
    first, last = struct.unpack("<2q", struct.pack("<2d", low + 0.0, high + 0.0))
    return float(struct.unpack("<d", struct.pack("<q", first + (last - first) // 2))[0])


def _above(low: float, high: float) -> float:
    """The middle that is above `low` and not above `high`, likewise."""
    first, last = struct.unpack("<2q", struct.pack("<2d", low + 0.0, high + 0.0))
    return float(struct.unpack("<d", struct.pack("<q", first + (last - first + 1) // 2))[0])


def _least_seconds(tables: Tables, limits: Limits, stages: Stages) -> tuple[Limits, Stages]:
    """The limits with the exact least bound on a stage's seconds, and a plan for it. `stages`: a plan that fits."""
    low, high = 0.0, costs_of(tables, stages).bottleneck
    for probe in range(MAX_PROBES):
        if low >= high:
            break
        sweep = Sweep(tables, replace(limits, seconds=low if probe % 2 else _between(low, high)))
        if sweep.found:
            stages = sweep.stages
            high = costs_of(tables, stages).bottleneck
        else:
            low = sweep.refused_seconds
    return replace(limits, seconds=high), stages


def _most_evenness(tables: Tables, limits: Limits, stages: Stages) -> tuple[Limits, Stages]:
    """The limits with the exact largest share that every device keeps free, and a plan for it."""
    low, high = costs_of(tables, stages).evenness, 1.0
    for probe in range(MAX_PROBES):
        if low >= high:
            break
        sweep = Sweep(tables, replace(limits, evenness=high if probe % 2 else _above(low, high)))
        if sweep.found:
            stages = sweep.stages
            low = costs_of(tables, stages).evenness
        else:
            high = sweep.refused_evenness
    return replace(limits, evenness=low), stages


def most_headroom(low: int, high: int, attempt: Callable[[int], int | None]) -> int:
    """The most headroom that can be had, from `low`, which can. `attempt` gives a plan's own, None where none has it.

    The one right above `low` comes first: mostly there is no better.
    """
    asked = low + 1
    for _ in range(MAX_PROBES):
        if low >= high:
            break
        found = attempt(asked)
        if found is None:
            high = asked - 1
        else:
            low = max(found, asked)
        asked = (low + high + 1) // 2
    return low


def _with_most_headroom(tables: Tables, limits: Limits, stages: Stages) -> tuple[Limits, Stages]:
    """The limits with the most headroom that so many devices can leave, and a plan for it."""

    def attempt(headroom: int) -> int | None:
        nonlocal stages
        sweep = Sweep(tables, replace(limits, headroom=headroom))
        stages = sweep.stages or stages
        return min(costs_of(tables, stages).headroom) if sweep.found else None

    low = min(costs_of(tables, stages).headroom)
    return replace(limits, headroom=most_headroom(low, max(tables.room), attempt)), stages


def _first(tables: Tables, limits: Limits, stages: Stages) -> Stages:
    """As many devices as `stages` has, in their first order, with the longest first stages."""
    known = tuple(stage.device for stage in stages)
    limits = replace(limits, devices=len(known))
    return cut(tables, limits, first_order(tables, limits, known))


def _best_under(tables: Tables, limits: Limits, stages: Stages) -> Stages:
    """Fewest devices, then most headroom, then the first order, then the longest first stages."""
    stages = _fewer(tables, limits, stages)
    limits, stages = _with_most_headroom(tables, replace(limits, devices=len(stages)), stages)
    return _first(tables, limits, stages)


def _fewer(tables: Tables, limits: Limits, stages: Stages) -> Stages:
    """A plan of the fewest devices; `stages` where a beam finds none."""
    found = Sweep(tables, limits).stages
    return found if found and len(found) <= len(stages) else stages


def _bottleneck(tables: Tables) -> Found:
    limits, exact = Limits(tables.most_devices), is_exact(tables)
    stages = Sweep(tables, limits).stages
    if not stages:
        return Found(optimal=exact)
    stages = _best_under(tables, *_least_seconds(tables, limits, stages))
    found = costs_of(tables, stages).bottleneck
    return Found(stages, optimal=exact, lower_bound=found if exact else min(bottleneck_bound(tables), found))


def _latency(tables: Tables) -> Found:
    exact = split_latency.is_exact(tables)
    stages = split_latency.best(tables, most_headroom)
    if not stages:
        # Memory alone decides whether there is a plan, and that is cheaper to prove than which is the best.
        stages = Sweep(tables, Limits(tables.most_devices)).stages
        exact = exact or (not stages and is_exact(tables))
    found = costs_of(tables, stages).latency
    return Found(stages, optimal=exact, lower_bound=found if exact else min(latency_bound(tables), found))


def _balanced(tables: Tables) -> Found:
    limits, exact = Limits(tables.most_devices), is_exact(tables)
    stages = Sweep(tables, limits).stages
    if not stages:
        return Found(optimal=exact)
    return Found(_best_under(tables, *_most_evenness(tables, limits, stages)), optimal=exact)


def _context(request: SplitRequest) -> Found:
    """The largest context at which it fits, then the most headroom, then the fewest devices that leave it."""
    model = request.model
    most = (model.context_limit or model.context_length) if model.context_length else 0

    def tables_at(context: int) -> Tables:
        return Tables(replace(request, model=at_context(model, context)))

    def fits(context: int) -> bool:
        tables = tables_at(context)
        return Sweep(tables, Limits(tables.most_devices)).found

    context = largest(lambda tokens: tokens == 0 or fits(tokens), most)
    tables = tables_at(context)
    limits = Limits(tables.most_devices)
    stages = Sweep(tables, limits).stages
    if not stages or (most and not context):
        return Found(optimal=is_exact(tables))
    limits, stages = _with_most_headroom(tables, limits, stages)
    stages = _first(tables, limits, _fewer(tables, limits, stages))
    return Found(stages, optimal=is_exact(tables), context_length=context)


def search(request: SplitRequest) -> Found:
    """The best split of a request that is valid and has devices."""
    objective = objective_of(request)
    if objective is Objective.MAX_CONTEXT:
        return _context(request)
    by_objective = {
        Objective.MIN_BOTTLENECK: _bottleneck,
        Objective.MIN_LATENCY: _latency,
        Objective.BALANCED: _balanced,
    }
    return replace(by_objective[objective](Tables(request)), context_length=request.model.context_length)
