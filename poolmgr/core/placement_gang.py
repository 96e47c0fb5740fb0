"""So many bytes on each of so many devices: one for a model that is not split, several for work whose insides nobody
knows. All of them or none (PLACE-2)."""

from __future__ import annotations

from collections.abc import Sequence

from poolmgr.core.memory import room
from poolmgr.core.placement_fates import (
    Choice,
    Lost,
    Refused,
    Why,
    fate,
    held_back,
    in_gib,
    ledger_numbers,
    memory_unknown,
    refusal,
    taken,
    too_small,
)
from poolmgr.core.placement_groups import Group, Wish, best, crosses_sockets
from poolmgr.core.placement_score import key, usable_at_once, waves, why_behind
from poolmgr.model.placement import Candidate, Fate, PlacementAsk


def gang(ask: PlacementAsk, admitted: Sequence[Candidate], count: int, need_bytes: int) -> Choice | Lost:
    """`need_bytes` on each of `count` of the admitted devices; 0 bytes is all the same to the ledger."""
    members = [one for one in admitted if not _stands_alone(ask, one, count)]
    apart = tuple(
        fate(one, Why.MIG_ALONE, "a process sees one MIG instance and nothing beside it")
        for one in admitted
        if _stands_alone(ask, one, count)
    )
    fitting = [one for one in members if _fits(one, need_bytes)]
    group = _all(fitting, count) if ask.exact else _some(ask, fitting, count, need_bytes)
    if group is None:
        return _lost(ask, members, count, need_bytes, apart)
    chosen = {one.device.device_id: need_bytes for one in group.members}
    fates = _fates(ask, members, group, need_bytes)
    return Choice(tuple(chosen), chosen, (*fates, *apart), None, _notes(group))


def _stands_alone(ask: PlacementAsk, candidate: Candidate, count: int) -> bool:
    """Who asks for several instances by their profile has a process for each of them."""
    return count > 1 and candidate.device.is_instance and not ask.mig_profile


def _fits(candidate: Candidate, need_bytes: int) -> bool:
    free = candidate.memory.free_bytes
    return need_bytes == 0 or (free is not None and need_bytes <= free)


def _all(fitting: Sequence[Candidate], count: int) -> Group | None:
    """The devices that the mask names, in its order; whether they may go together has been looked at."""
    if len(fitting) < count:
        return None
    return Group(tuple(fitting), "the mask names them", crosses_sockets(fitting))


def _room(candidate: Candidate) -> int:
    return room(candidate.memory) or 0


def _some(ask: PlacementAsk, fitting: Sequence[Candidate], count: int, need_bytes: int) -> Group | None:
    for ranked in waves(sorted(fitting, key=lambda one: (key(ask, one, need_bytes), one.device.device_id))):
        if count == 1:
            return Group((ranked[0],), "the best single device")
        found = best(Wish(count, ask.allow_cross_numa, ask.prefer_nvlink, ask.preference), ranked)
        if found is not None:
            return found
    return None


def _notes(group: Group) -> tuple[str, ...]:
    notes = [f"chosen: {group.why}"]
    if group.crosses:
        notes.append("the devices are of several sockets, which the ask allows")
    if not group.exhaustive:
        notes.append("not all sets of linked devices were looked at: there are too many")
    return tuple(notes)


def _fates(ask: PlacementAsk, members: Sequence[Candidate], group: Group, need_bytes: int) -> Sequence[Fate]:
    chosen = {one.device.device_id for one in group.members}
    return [
        taken(one, need_bytes) if one.device.device_id in chosen else _passed_over(ask, one, group, need_bytes)
        for one in members
    ]


def _passed_over(ask: PlacementAsk, candidate: Candidate, group: Group, need_bytes: int) -> Fate:
    if not _fits(candidate, need_bytes):
        return _no_room(candidate, need_bytes)
    numbers = {"need_bytes": need_bytes, **ledger_numbers(candidate.memory)}
    rivals = group.members
    if candidate.probation and any(one.probation for one in rivals):
        return fate(candidate, Why.ONE_TRIAL, "another device of this plan has its trial already", numbers)
    if candidate.probation or (candidate.degraded and not any(one.degraded or one.probation for one in rivals)):
        state = "on probation" if candidate.probation else "degraded"
        return fate(candidate, Why.LAST_RESORT, f"it is {state}, and what is chosen fits without it", numbers)
    if len(rivals) > 1:
        message = f"it would do; the set that is chosen is better: {group.why}"
        return fate(candidate, Why.OUTSCORED, message, numbers)
    why = why_behind(ask, key(ask, candidate, need_bytes), key(ask, rivals[0], need_bytes))
    message = f"it would do; behind {rivals[0].device.device_id}: {why}"
    return fate(candidate, Why.OUTSCORED, message, numbers)


def _no_room(candidate: Candidate, need_bytes: int) -> Fate:
    if candidate.memory.free_bytes is None:
        return memory_unknown(candidate, need_bytes)
    return too_small(candidate, need_bytes)


def _lost(
    ask: PlacementAsk, members: Sequence[Candidate], count: int, need_bytes: int, apart: tuple[Fate, ...]
) -> Lost:
    """Why there is no set: too few devices, too few whose memory is known, too few with room, or none together."""
    fates = (*(_left_over(one, need_bytes) for one in members), *apart)
    known = [one for one in members if need_bytes == 0 or one.memory.free_bytes is not None]
    numbers = {"devices": len(members), "asked": count, "need_bytes": need_bytes}
    if usable_at_once(members) < count:
        return Lost(refusal(Refused.NOT_ENOUGH_DEVICES, _too_few(members, count, apart), numbers), 0, fates)
    if usable_at_once(known) < count:
        message = (
            f"of {len(members) - len(known)} devices the driver does not tell the free memory, and {count} are needed"
        )
        return Lost(refusal(Refused.MEMORY_UNKNOWN, message, numbers), 0, fates)
    if usable_at_once([one for one in known if _fits(one, need_bytes)]) < count:
        return _too_little(known, count, need_bytes, fates)
    message = f"{count} devices would do only from several sockets: allow that, or ask for fewer"
    return Lost(refusal(Refused.NUMA_SPLIT, message, numbers), 0, fates)


def _left_over(candidate: Candidate, need_bytes: int) -> Fate:
    if not _fits(candidate, need_bytes):
        return _no_room(candidate, need_bytes)
    return held_back(candidate)


def _too_few(members: Sequence[Candidate], count: int, apart: tuple[Fate, ...]) -> str:
    message = f"{count} devices are asked for, {usable_at_once(members)} can be had together"
    if usable_at_once(members) < len(members):
        message += "; of those on probation one may have its trial at a time"
    if apart:
        message += "; a MIG instance can be had only alone, or by its profile"
    return f"{message}: ask for fewer, or see below what keeps the others out"


def _too_little(known: Sequence[Candidate], count: int, need_bytes: int, fates: tuple[Fate, ...]) -> Lost:
    """`missing_bytes`: over the devices that are nearest to having room."""
    short = sorted(known, key=lambda one: (-_room(one), one.device.device_id))
    trial = next((one for one in short if one.probation), None)
    nearest = [one for one in short if not one.probation or one is trial][:count]
    missing = sum(max(0, need_bytes - _room(one)) for one in nearest)
    tightest = nearest[-1]
    numbers = {"missing_bytes": missing, "need_bytes": need_bytes, "asked": count, **ledger_numbers(tightest.memory)}
    on = "a device" if count == 1 else f"each of {count} devices"
    message = (
        f"{in_gib(need_bytes)} are needed on {on}; {in_gib(missing)} are missing. {tightest.device.device_id} "
        f"{too_small(tightest, need_bytes).message}. A smaller context, fewer slots, a split over several devices or "
        "stopping something would help"
    )
    return Lost(refusal(Refused.DOES_NOT_FIT, message, numbers), missing, fates)
