"""A model over several devices by the planner: which devices it may choose from, and what becomes of its plan.

The planner knows nothing of states, sockets and MIG; here they become sets of devices, each of which may hold one
engine. What a plan costs is `poolmgr.core.split`'s to say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from poolmgr.core.placement_ask import EQUAL_SHARDS
from poolmgr.core.placement_fates import (
    Choice,
    Lost,
    Refused,
    Why,
    fate,
    held_back,
    ids,
    in_gib,
    ledger_numbers,
    memory_unknown,
    refusal,
    taken,
    too_small,
)
from poolmgr.core.placement_groups import by_node, crosses_sockets, sockets
from poolmgr.core.placement_request import Domain, request
from poolmgr.core.placement_score import bandwidth_of, key, waves
from poolmgr.core.split import at_context, objective_of
from poolmgr.core.split_missing import missing_bytes
from poolmgr.errors import InternalError
from poolmgr.model.memory import MemoryEstimate
from poolmgr.model.placement import Candidate, Fate, PlacementAsk
from poolmgr.model.plan import MAX_DEVICES, Objective, PlanRefusal, Refusal, SplitPlan, SplitRequest

Split = Callable[[SplitRequest], SplitPlan]


def planned(ask: PlacementAsk, estimate: MemoryEstimate, admitted: Sequence[Candidate], split: Split) -> Choice | Lost:
    """By the planner, over the admitted devices whose memory is known."""
    known = [one for one in admitted if one.memory.free_bytes is not None]
    unknown = [memory_unknown(one, estimate.one_device_bytes) for one in admitted if one.memory.free_bytes is None]
    if not known or (ask.exact and unknown):
        message = f"of {len(unknown)} devices the driver does not tell the free memory"
        fates = (*(held_back(one) for one in known), *unknown)
        return Lost(refusal(Refused.MEMORY_UNKNOWN, message, {"devices": len(unknown)}), 0, fates)
    refused: list[SplitPlan] = []
    all_ranked = sorted(known, key=lambda one: (key(ask, one, 0), one.device.device_id))
    for ranked in [all_ranked] if ask.exact else waves(all_ranked):
        for domains in _tiers(ask, ranked):
            plans = [(split(request(ask, estimate, each)), each) for each in domains]
            refused += [plan for plan, _ in plans if not plan.fits]
            fitting = [(_plan_key(plan), place, plan) for place, (plan, _) in enumerate(plans) if plan.fits]
            if fitting:
                return _chosen(ask, estimate, known, min(fitting, key=lambda row: row[:2])[2], tuple(unknown))
    return _nothing_fits(ask, estimate, known, refused, split, tuple(unknown))


def feasibility(split: Split) -> Split:
    """Says only whether there is a plan, without looking for the best one, wherever that can be told."""

    def whether(asked: SplitRequest) -> SplitPlan:
        objective = objective_of(asked)
        if asked.engine in EQUAL_SHARDS or not asked.devices:
            return split(asked)
        # The largest context that fits may be any.
        model = at_context(asked.model, 1) if objective is Objective.MAX_CONTEXT else asked.model
        missing, least = missing_bytes(replace(asked, model=model))
        if missing and not least:
            return split(asked)
        lacking = PlanRefusal(Refusal.DOES_NOT_FIT, missing, "no split fits") if missing else None
        return SplitPlan(not missing, objective, lacking)

    return whether


def unused(candidate: Candidate, chosen: Sequence[str]) -> Fate:
    """Of one that the planner, or who gave the ratios, had a choice of."""
    if candidate.degraded or candidate.probation:
        state = "on probation" if candidate.probation else "degraded"
        return fate(candidate, Why.LAST_RESORT, f"it is {state}, and a plan without it fits")
    return fate(candidate, Why.UNUSED, "the plan is at least as good without it", ledger_numbers(candidate.memory))


def _tiers(ask: PlacementAsk, ranked: Sequence[Candidate]) -> Iterator[Sequence[Domain]]:
    """Sets to plan over; a later tier only where no plan of an earlier one fits.

    A process sees one MIG instance and nothing beside it, so that instances stand alone.
    """
    most = len(ranked) if ask.exact else ask.device_count
    gpus = [one for one in ranked if not one.device.is_instance]
    instances = [one for one in ranked if one.device.is_instance]
    alone = [Domain(tuple(instances[:MAX_DEVICES]), 1)] if instances else []
    if ask.allow_cross_numa or ask.exact:
        yield [*([Domain(tuple(gpus[:MAX_DEVICES]), most)] if gpus else []), *alone]
        return
    nodes = by_node(gpus).values()
    yield [*(Domain(tuple(members[:MAX_DEVICES]), most) for members in nodes), *alone]
    of_one_socket = sockets(gpus)
    if len(of_one_socket) < len(nodes):
        yield [Domain(tuple(members[:MAX_DEVICES]), most) for members in of_one_socket]


def _plan_key(plan: SplitPlan) -> tuple[float, ...]:
    """Compares plans of different sets by their objective (SPLIT-3); the first set wins what is left."""
    headroom = min(plan.headroom_bytes.values(), default=0)
    used = len(plan.assignments)
    match plan.objective:
        case Objective.MIN_BOTTLENECK:
            return plan.bottleneck_seconds_per_token, used, -headroom
        case Objective.MIN_LATENCY:
            return plan.latency_seconds_per_token, used, -headroom
        case Objective.MAX_CONTEXT:
            return -plan.context_length, -headroom, used
        case Objective.BALANCED:
            return -_evenness(plan), used, -headroom


def _evenness(plan: SplitPlan) -> float:
    """The smallest share of a device's free memory that stays free."""
    shares = [1.0]
    for each in plan.assignments:
        left = plan.headroom_bytes[each.device_id]
        free = left + each.weight_bytes + each.kv_bytes + each.overhead_bytes
        shares.append(left / free if free else 1.0)
    return min(shares)


def _chosen(
    ask: PlacementAsk, estimate: MemoryEstimate, known: Sequence[Candidate], plan: SplitPlan, unknown: tuple[Fate, ...]
) -> Choice | Lost:
    by_id = {one.device.device_id: one for one in known}
    need = {each.device_id: each.weight_bytes + each.kv_bytes + each.overhead_bytes for each in plan.assignments}
    free = {one.device.device_id: one.memory.free_bytes or 0 for one in known}
    if any(size > free.get(name, -1) for name, size in need.items()):
        raise InternalError("the planner gave a device more than it has free")
    if ask.exact:  # the engine sees the ones that get no layer, too, and takes its overhead there
        need |= {one: estimate.overhead_bytes for one in by_id if one not in need}
        tight = [one for one in known if free[one.device.device_id] < need[one.device.device_id]]
        if tight:
            return _no_room_for_overhead(estimate, known, tight)
    fates = [
        taken(by_id[one.device.device_id], need[one.device.device_id])
        if one.device.device_id in need
        else unused(one, tuple(need))
        for one in known
    ]
    return Choice(tuple(need), need, (*fates, *unknown), plan, _notes(known, plan))


def _notes(known: Sequence[Candidate], plan: SplitPlan) -> tuple[str, ...]:
    used = [one for one in known if one.device.device_id in {each.device_id for each in plan.assignments}]
    unsaid = [one for one in known if bandwidth_of(one) is None]
    notes = []
    if unsaid:
        notes.append(f"the memory bandwidth of {', '.join(ids(unsaid))} is unknown and taken for the slowest known one")
    if crosses_sockets(used):
        notes.append("the plan crosses sockets: the ask allows it, and its links are counted in")
    return tuple(notes)


def _no_room_for_overhead(estimate: MemoryEstimate, known: Sequence[Candidate], tight: Sequence[Candidate]) -> Lost:
    missing = sum(estimate.overhead_bytes - (one.memory.free_bytes or 0) for one in tight)
    message = (
        f"the mask names {', '.join(ids(tight))}, on which not even the engine's overhead of "
        f"{in_gib(estimate.overhead_bytes)} fits: leave it out of the mask"
    )
    fates = tuple(too_small(one, estimate.overhead_bytes) if one in tight else held_back(one) for one in known)
    return Lost(refusal(Refused.DOES_NOT_FIT, message, {"missing_bytes": missing}), missing, fates)


def _nothing_fits(
    ask: PlacementAsk,
    estimate: MemoryEstimate,
    known: Sequence[Candidate],
    refused: Sequence[SplitPlan],
    split: Split,
    unknown: tuple[Fate, ...],
) -> Lost:
    fates = (*(too_small(one, estimate.one_device_bytes) for one in known), *unknown)
    gpus = tuple(one for one in known if not one.device.is_instance and not one.probation)[:MAX_DEVICES]
    if not ask.allow_cross_numa and crosses_sockets(gpus):
        across = split(request(ask, estimate, Domain(gpus, ask.device_count)))
        if across.fits:
            message = "it fits only over devices of several sockets: allow that, or free memory within one"
            return Lost(refusal(Refused.NUMA_SPLIT, message, {"devices": len(across.assignments)}), 0, fates)
    plan = min(refused, key=lambda one: _missing(one) or float("inf"))
    told = plan.refusal
    if told is None:
        raise InternalError("a plan that does not fit says no reason")
    numbers = {"missing_bytes": told.missing_bytes, "model_bytes": estimate.one_device_bytes, "devices": len(known)}
    message = f"{told.message}; free: {', '.join(_free(one) for one in known)}"
    return Lost(refusal(told.reason, message, numbers), told.missing_bytes, fates, plan.explanation)


def _missing(plan: SplitPlan) -> int:
    return plan.refusal.missing_bytes if plan.refusal is not None else 0


def _free(candidate: Candidate) -> str:
    return f"{candidate.device.device_id} {in_gib(candidate.memory.free_bytes)}"
