"""Where work may go (PLACE-1 to PLACE-5): filters, then what fits, then the best of it; with a reason for every device.

`place` looks at nothing but its arguments, so that an imagined host gets the same answer as a real one (PLACE-3). It
never raises for what does not fit: that is an answer, with what would help.

- SplitMode.NONE, no count: the best single device. A count: by the planner over at most so many where the model is
  known, else so many bytes on each.
- AUTO: by the planner over all that the mask allows; a single device is taken where the objective says so.
- EXPLICIT: by the ratios.
- `exact`: all devices of the mask, or none. A model is split over them by the planner, or by the ratios; those that get
  no layer stand last and have the engine's overhead.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from poolmgr.core.eviction import MAX_PLANS, Eviction, Room, cheapest
from poolmgr.core.memory import after_stop
from poolmgr.core.placement_ask import validate, wanted
from poolmgr.core.placement_explicit import by_ratios
from poolmgr.core.placement_fates import Choice, Lost, Refused, Why, held_back, listed, refusal
from poolmgr.core.placement_filters import Sifted, sift
from poolmgr.core.placement_gang import gang
from poolmgr.core.placement_groups import crosses_sockets
from poolmgr.core.placement_score import usable_at_once
from poolmgr.core.placement_split import Split, feasibility, planned
from poolmgr.model.placement import Candidate, Fate, IdlePool, PlacementAsk, PlacementPlan, SplitMode
from poolmgr.model.plan import Objective

# No stop of a pool changes these.
NO_STOP_HELPS: Final = frozenset(
    {
        Refused.NO_DEVICES,
        Refused.MASK_EMPTY,
        Refused.NONE_ADMISSIBLE,
        Refused.NOT_ENOUGH_DEVICES,
        Refused.MEMORY_UNKNOWN,
    }
)


def place(
    ask: PlacementAsk, candidates: Sequence[Candidate], split: Split, idle: Sequence[IdlePool] = ()
) -> PlacementPlan:
    """`split`: `core.split.plan` with a search. `idle`: pools that `ask.evict` may name, though never a busy one.

    Raises ClientError(INVALID_ARGUMENT) for an ask that contradicts itself, and what `split` raises.
    """
    validate(ask, candidates, idle)
    sifted = sift(ask, candidates)
    plan = _placed(ask, candidates, sifted, split)
    if plan.refusal is None or not ask.evict or plan.refusal.reason in NO_STOP_HELPS:
        return plan
    return _with_evictions(ask, candidates, sifted, split, idle, plan)


def _placed(ask: PlacementAsk, candidates: Sequence[Candidate], sifted: Sifted, split: Split) -> PlacementPlan:
    refused = _nothing_to_choose(ask, candidates, sifted) or _not_all(ask, sifted)
    if refused is not None:
        return _refused(Lost(refused, 0, tuple(held_back(one) for one in sifted.admitted)), sifted)
    outcome = _laid_out(ask, sifted.admitted, split)
    if isinstance(outcome, Lost):
        return _refused(outcome, sifted)
    fates = (*outcome.fates, *sifted.fates)
    summary = f"on {listed(outcome.device_ids)}"
    notes = (*outcome.notes, *(outcome.split.explanation if outcome.split else ()))
    return PlacementPlan(
        outcome.device_ids,
        outcome.bytes_by_device,
        outcome.split,
        fates=fates,
        explanation=(summary, *notes, *_lines(fates)),
    )


def _laid_out(ask: PlacementAsk, admitted: Sequence[Candidate], split: Split) -> Choice | Lost:
    count = wanted(ask)
    if ask.estimate is None:
        return gang(ask, admitted, count, ask.bytes_per_device)
    if ask.split is SplitMode.EXPLICIT:
        return by_ratios(ask, ask.estimate, admitted)
    if _takes_a_plan(ask):
        return planned(ask, ask.estimate, admitted, split)
    return gang(ask, admitted, count, ask.estimate.one_device_bytes)


def _takes_a_plan(ask: PlacementAsk) -> bool:
    if ask.estimate is None or ask.split is SplitMode.EXPLICIT:
        return False
    return ask.split is SplitMode.AUTO or wanted(ask) != 1


# Refusals.


def _nothing_to_choose(ask: PlacementAsk, candidates: Sequence[Candidate], sifted: Sifted) -> Fate | None:
    if not candidates:
        return refusal(Refused.NO_DEVICES, "there are no devices: `poolmgr status` tells why", {"devices": 0})
    if not sifted.in_mask:
        named = listed(ask.mask or ())
        message = f"of the mask ({named or 'empty'}) nothing is there: there are {listed(_ids(candidates))}"
        return refusal(Refused.MASK_EMPTY, message, {"named": len(ask.mask or ()), "devices": len(candidates)})
    if not sifted.admitted:
        kept_out = [one for one in sifted.fates if one.reason != Why.NOT_IN_MASK]
        message = f"no device takes this: {listed(f'{one.device_id}: {one.message}' for one in kept_out)}"
        return refusal(Refused.NONE_ADMISSIBLE, message, {"devices": len(candidates), **_by_reason(kept_out)})
    return None


def _not_all(ask: PlacementAsk, sifted: Sifted) -> Fate | None:
    """All of the mask or nothing: a device that is out, several on trial, a MIG instance among others, two sockets."""
    if not ask.exact or ask.mask is None:
        return None
    numbers = {"asked": len(ask.mask), "devices": len(sifted.admitted)}
    out = [one for one in sifted.fates if one.reason != Why.NOT_IN_MASK]
    if out:
        why = listed(f"{one.device_id}: {one.message}" for one in out)
        message = f"all devices of the mask are asked for, and {len(out)} of {len(ask.mask)} cannot be had: {why}"
        return refusal(Refused.NOT_ENOUGH_DEVICES, message, {**numbers, **_by_reason(out)})
    if usable_at_once(sifted.admitted) < len(ask.mask):
        message = "several devices of the mask are on probation, and one may have its trial at a time"
        return refusal(Refused.NOT_ENOUGH_DEVICES, message, numbers)
    if len(ask.mask) > 1 and not ask.mig_profile and any(one.device.is_instance for one in sifted.admitted):
        message = "the mask names a MIG instance beside others, and a process sees one and nothing beside it"
        return refusal(Refused.NOT_ENOUGH_DEVICES, message, numbers)
    if not ask.allow_cross_numa and crosses_sockets(sifted.admitted):
        message = "the devices of the mask are of several sockets, which the ask does not allow"
        return refusal(Refused.NUMA_SPLIT, message, numbers)
    return None


def _by_reason(fates: Sequence[Fate]) -> Mapping[str, int]:
    return {reason.lower(): count for reason, count in sorted(Counter(one.reason for one in fates).items())}


def _refused(lost: Lost, sifted: Sifted) -> PlacementPlan:
    fates = (*lost.fates, *sifted.fates)
    explanation = (f"{lost.refusal.reason}: {lost.refusal.message}", *lost.notes, *_lines(fates))
    return PlacementPlan(
        refusal=lost.refusal, missing_bytes=lost.missing_bytes, fates=fates, explanation=explanation
    )  # fmt: skip


def _lines(fates: Sequence[Fate]) -> tuple[str, ...]:
    return tuple(f"{one.device_id}: {one.reason}: {one.message}" for one in fates)


def _ids(candidates: Sequence[Candidate]) -> Sequence[str]:
    return [one.device.device_id for one in candidates]


# Evictions.


def _with_evictions(
    ask: PlacementAsk,
    candidates: Sequence[Candidate],
    sifted: Sifted,
    split: Split,
    idle: Sequence[IdlePool],
    plan: PlacementPlan,
) -> PlacementPlan:
    def after(pools: Sequence[IdlePool]) -> Sifted:
        return replace(sifted, admitted=tuple(_after(one, pools) for one in sifted.admitted))

    def fits(pools: Sequence[IdlePool]) -> bool:
        return _placed(ask, candidates, after(pools), feasibility(split)).refusal is None

    def may_fit(pools: Sequence[IdlePool]) -> bool:
        return _has_the_bytes(ask, after(pools).admitted)

    room = Room(fits, may_fit, MAX_PLANS) if _takes_a_plan(ask) else Room(fits, may_fit)
    found = cheapest(idle, frozenset(_ids(sifted.admitted)), room)
    if found is None:
        note = "no stop of idle pools would make room"
        return replace(plan, explanation=(*plan.explanation, note))
    evictions = tuple(one.pool_id for one in found.pools)
    return replace(plan, evictions=evictions, explanation=(*plan.explanation, _told(found)))


def _has_the_bytes(ask: PlacementAsk, admitted: Sequence[Candidate]) -> bool:
    """Whether all devices together have room for the layers: without that no plan fits."""
    if ask.estimate is None:
        return True
    need = ask.estimate.weight_bytes
    if ask.objective is not Objective.MAX_CONTEXT:  # which would do with a smaller cache
        need += ask.estimate.kv_bytes
    return need <= sum(max(0, (one.memory.free_bytes or 0) - ask.estimate.overhead_bytes) for one in admitted)


def _after(candidate: Candidate, stopped: Sequence[IdlePool]) -> Candidate:
    freed = sum(pool.frees.get(candidate.device.device_id, 0) for pool in stopped)
    return replace(candidate, memory=after_stop(candidate.memory, freed))


def _told(found: Eviction) -> str:
    named = listed(one.pool_id for one in found.pools)
    proof = "the cheapest stop" if found.cheapest else "a cheap stop, not proved the cheapest: there are too many sets"
    return f"it would fit once {named} stops: {proof}, {found.cost:.1f} seconds of loading per hour"
