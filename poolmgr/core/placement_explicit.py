"""A model over several devices by ratios that somebody gave (SplitMode.EXPLICIT).

Which layers a ratio means is llama.cpp's rule (`--tensor-split`): layer i of n goes to the first device whose share,
added to those before it, is beyond i / n of all. It is applied here, without rounding, and the engine is told whole
layers, so that no rounding of its own decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import accumulate, pairwise
from math import ceil

from poolmgr.core.memory import room
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
from poolmgr.core.placement_groups import Wish, best, by_node, sockets
from poolmgr.core.placement_request import Domain, request
from poolmgr.core.placement_score import key, usable_at_once, waves
from poolmgr.core.split import evaluate
from poolmgr.core.split_answer import answer
from poolmgr.model.memory import MemoryEstimate
from poolmgr.model.placement import Candidate, Fate, PlacementAsk
from poolmgr.model.plan import Found, Stage


def by_ratios(ask: PlacementAsk, estimate: MemoryEstimate, admitted: Sequence[Candidate]) -> Choice | Lost:
    """As many devices as there are ratios; `device_ids` stand in their order, those that get no layer last."""
    stages = stages_of(ask.ratios, len(estimate.model.layers))
    needs = _needs(estimate, stages, len(ask.ratios))
    members = [one for one in admitted if not one.device.is_instance or len(needs) == 1]
    known = [one for one in members if one.memory.free_bytes is not None]
    chosen = _named(known, needs) if ask.exact else _picked(ask, known, needs)
    if chosen is None:
        return _lost(ask, admitted, members, known, needs)
    names = ids(chosen)
    asked = request(ask, estimate, Domain(tuple(chosen), 0))
    plan = answer(
        asked, Found(stages, optimal=False), evaluate(asked, stages), ("split by the ratios that were given",)
    )
    fates = tuple(_fate(one, names, needs) for one in admitted)
    used = tuple(names[stage.device] for stage in stages)
    in_order = (*used, *(name for name in names if name not in used))  # engines are told of the stages only
    return Choice(in_order, dict(zip(names, needs, strict=True)), fates, plan)


def stages_of(ratios: Sequence[float], layers: int) -> tuple[Stage, ...]:
    """`device` is the ratio's place. Ratios too small for a layer have no stage."""
    shares = [Fraction(ratio) for ratio in ratios]
    total = sum(shares)
    ends = [ceil(end * layers / total) for end in accumulate(shares)]
    runs = enumerate(pairwise((0, *ends)))
    return tuple(Stage(place, first, end - 1) for place, (first, end) in runs if end > first)


def in_ratio_order(ratios: Sequence[float], layers: int, device_ids: Sequence[str]) -> tuple[str, ...]:
    """A choice's devices, as the ratios have them: asked for again like that, each has the layers that it had."""
    with_layers = [stage.device for stage in stages_of(ratios, layers)]
    without = [place for place in range(len(ratios)) if place not in with_layers]
    by_place = dict(zip((*with_layers, *without), device_ids, strict=True))
    return tuple(by_place[place] for place in range(len(ratios)))


def _needs(estimate: MemoryEstimate, stages: Sequence[Stage], count: int) -> Sequence[int]:
    """Bytes by ratio. A device without layers is seen by the engine, and has its overhead."""
    needs = [estimate.overhead_bytes] * count
    for stage in stages:
        for layer in estimate.model.layers[stage.first_layer : stage.last_layer + 1]:
            needs[stage.device] += layer.resident_bytes + layer.kv_bytes
    return needs


def _free(candidate: Candidate) -> int:
    return candidate.memory.free_bytes or 0


def _room(candidate: Candidate) -> int:
    return room(candidate.memory) or 0


def _named(known: Sequence[Candidate], needs: Sequence[int]) -> Sequence[Candidate] | None:
    """The mask's devices as they stand in it; whether they may go together has been looked at."""
    if len(known) < len(needs):
        return None
    return known if all(need <= _free(one) for one, need in zip(known, needs, strict=True)) else None


def _picked(ask: PlacementAsk, known: Sequence[Candidate], needs: Sequence[int]) -> Sequence[Candidate] | None:
    largest = max(needs)
    for ranked in waves(sorted(known, key=lambda one: (key(ask, one, largest), one.device.device_id))):
        for members in _sets(ask, ranked, needs):
            found = match(ask, members, needs)
            if found is not None:
                return found
    return None


def _sets(ask: PlacementAsk, ranked: Sequence[Candidate], needs: Sequence[int]) -> Iterator[Sequence[Candidate]]:
    """First a group as for any gang, of devices that could each take the largest share; then whatever is near."""
    roomy = [one for one in ranked if max(needs) <= _free(one)]
    wish = Wish(len(needs), ask.allow_cross_numa, ask.prefer_nvlink, ask.preference)
    group = best(wish, roomy) if len(needs) > 1 else None
    if group is not None and not group.crosses:
        yield group.members
    yield from by_node(ranked).values()
    yield from sockets(ranked)
    if ask.allow_cross_numa:
        yield ranked


def match(ask: PlacementAsk, members: Sequence[Candidate], needs: Sequence[int]) -> Sequence[Candidate] | None:
    """A device for each need, or None where there is no such set.

    The largest need chooses first. Whatever it takes, the rest could take as well, so that no choice of it spoils
    another's: None is the truth.
    """
    left, chosen = list(members), dict[int, Candidate]()
    for place in sorted(range(len(needs)), key=lambda i: -needs[i]):
        able = [one for one in left if needs[place] <= _free(one)]
        if not able:
            return None
        chosen[place] = min(able, key=lambda one: (key(ask, one, needs[place]), one.device.device_id))
        left.remove(chosen[place])
    return [chosen[place] for place in range(len(needs))]


def _fate(candidate: Candidate, chosen: Sequence[str], needs: Sequence[int]) -> Fate:
    """Where there is an answer."""
    name = candidate.device.device_id
    if name in chosen:
        return taken(candidate, needs[chosen.index(name)])
    if candidate.device.is_instance:
        return fate(candidate, Why.MIG_ALONE, "a process sees one MIG instance and nothing beside it")
    if candidate.memory.free_bytes is None:
        return memory_unknown(candidate, max(needs))
    if _free(candidate) < min(needs):
        return too_small(candidate, min(needs))
    if candidate.degraded or candidate.probation:
        state = "on probation" if candidate.probation else "degraded"
        return fate(candidate, Why.LAST_RESORT, f"it is {state}, and what is chosen fits without it")
    message = "it would do for some share; the set that is chosen is better"
    return fate(candidate, Why.OUTSCORED, message, ledger_numbers(candidate.memory))


def _lost(
    ask: PlacementAsk,
    admitted: Sequence[Candidate],
    members: Sequence[Candidate],
    known: Sequence[Candidate],
    needs: Sequence[int],
) -> Lost:
    fates = tuple(_left_over(one, needs) for one in admitted)
    count = len(needs)
    numbers = {"devices": len(members), "asked": count}
    if usable_at_once(members) < count:
        message = f"there are {count} ratios, and {usable_at_once(members)} devices can be had together"
        return Lost(refusal(Refused.NOT_ENOUGH_DEVICES, f"{message}: give as many ratios", numbers), 0, fates)
    if usable_at_once(known) < count:
        message = f"of {len(members) - len(known)} devices the driver does not tell the free memory"
        return Lost(refusal(Refused.MEMORY_UNKNOWN, message, numbers), 0, fates)
    missing = _missing(ask, known, needs)
    if not missing:
        message = "these ratios fit only over devices of several sockets: allow that, or give others"
        return Lost(refusal(Refused.NUMA_SPLIT, message, numbers), 0, fates)
    message = (
        f"these ratios need {', '.join(in_gib(need) for need in needs)}; {in_gib(missing)} are missing: other "
        "ratios or SPLIT_AUTO may fit"
    )
    return Lost(refusal(Refused.DOES_NOT_FIT, message, {**numbers, "missing_bytes": missing}), missing, fates)


def _left_over(candidate: Candidate, needs: Sequence[int]) -> Fate:
    """Where there is none."""
    if candidate.device.is_instance and len(needs) > 1:
        return fate(candidate, Why.MIG_ALONE, "a process sees one MIG instance and nothing beside it")
    if candidate.memory.free_bytes is None:
        return memory_unknown(candidate, max(needs))
    if _free(candidate) < max(needs):
        return too_small(candidate, max(needs))
    return held_back(candidate)


def _missing(ask: PlacementAsk, known: Sequence[Candidate], needs: Sequence[int]) -> int:
    """With so much more memory, where it is needed, the ratios would fit: each to its device where the mask names them,
    else the largest to the roomiest."""
    if ask.exact:
        return sum(max(0, need - _room(one)) for need, one in zip(needs, known, strict=True))
    trial = max((one for one in known if one.probation), key=_room, default=None)
    roomy = sorted((_room(one) for one in known if not one.probation or one is trial), reverse=True)
    return sum(max(0, need - free) for need, free in zip(sorted(needs, reverse=True), roomy, strict=False))
