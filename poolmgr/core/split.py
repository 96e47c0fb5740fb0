"""Plans of splits: the cost model, what a request has to be, and the answer with its reasons.

The cost model. Layer i has weights (`resident_bytes`), of them those read per token (`active_bytes`), and a cache
(`kv_bytes`). A plan is a sequence of stages, each a run of layers on a device of its own; together they cover all
layers in order. The order of devices is free, and devices may stay unused.

- A stage takes (Σ active + Σ cache) / bandwidth + hop seconds per token. Every used device pays one hop, the one by
  which its input comes: the first stage `default_hop_seconds`, a later one the link from the stage before it (latency +
  activation bytes / bandwidth), or `default_hop_seconds` where no link of the two is given.
- It fits when Σ weights + Σ cache + the device's overhead is at most its free memory. What is left is its headroom.
- *bottleneck*: the slowest stage. *latency*: the sum of the stages from the first on. Bytes are added exactly, seconds
  in float64 (`poolmgr.core.split_costs` says by which operations).
- At another context c a layer's cache is ⌈cache × min(c, window) / min(context, window)⌉.

Objectives, compared in this order, smaller first; the order of devices is that of their places in the request:

    MIN_BOTTLENECK  bottleneck, devices, −smallest headroom, order of devices
    MIN_LATENCY     latency, devices, −smallest headroom, order of devices
    MAX_CONTEXT     −context, −smallest headroom, devices, order of devices
    BALANCED        −smallest headroom / free memory of its device, devices, −smallest headroom, order of devices

The last tie in each: earlier stages are as long as they can be. `split_search` searches by these.
"""

from __future__ import annotations

from poolmgr.core.split_answer import answer, in_gib, refused
from poolmgr.core.split_changes import Search
from poolmgr.core.split_costs import Costs, at_context, evaluate, key_of, objective_of
from poolmgr.core.split_equal import ENGINES, plan_equal
from poolmgr.core.split_explain import why, why_not
from poolmgr.core.split_missing import missing_bytes
from poolmgr.core.split_valid import validate
from poolmgr.model.plan import Found, PlanRefusal, Refusal, SplitPlan, SplitRequest

__all__ = ["Costs", "Search", "at_context", "evaluate", "key_of", "objective_of", "plan", "validate"]


def plan(request: SplitRequest, search: Search) -> SplitPlan:
    """The best split by `search`, or why there is none; with its reasons and how engines are told.

    `search` is asked again for the explanation, a limited number of times (`split_changes`). Raises
    ClientError(INVALID_ARGUMENT) for a request that means nothing.
    """
    validate(request)
    if not request.devices:
        refusal = PlanRefusal(Refusal.NO_DEVICES, 0, "there are no devices to plan for")
        return refused(request, refusal, (refusal.message,))
    if request.engine in ENGINES:
        return plan_equal(request, search)
    found = search(request)
    costs = evaluate(request, found.stages, found.context_length)
    if not costs.fits:
        return _does_not_fit(request, found, costs, search)
    return answer(request, found, costs, why(request, found, costs, search))


def _does_not_fit(request: SplitRequest, found: Found, costs: Costs, search: Search) -> SplitPlan:
    """`missing_bytes` of the nearest plan; or of the one that is given, where a search knows of no other."""
    if found.stages:
        missing, least = sum(max(0, -left) for left in costs.headroom), False
    else:
        missing, least = missing_bytes(request)
    needs = sum(layer.resident_bytes + layer.kv_bytes for layer in request.model.layers)
    room = sum(max(0, device.vram_free_bytes - device.overhead_bytes) for device in request.devices)
    message = (
        f"no split fits: weights and cache take {in_gib(needs)}, {len(request.devices)} devices have {in_gib(room)} "
        f"beside their overhead; {'' if least else 'at most '}{in_gib(missing)} more would do where the nearest plan "
        "lacks them"
    )
    refusal = PlanRefusal(Refusal.DOES_NOT_FIT, missing, message)
    return refused(request, refusal, why_not(request, missing, search))
