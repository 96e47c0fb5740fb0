"""What holds of every place on every host, real or imagined."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poolmgr.core import split
from poolmgr.core.placement import place
from poolmgr.core.split_search import search
from poolmgr.model.device import Link, LinkKind
from poolmgr.model.memory import Reserved
from poolmgr.model.placement import PlacementAsk, Preference, SplitMode
from poolmgr.model.plan import Objective, Stage
from tests.core.placing import GIB, GPU, every_plan, gpu, idle, mig, model, quarantined

pytestmark = pytest.mark.behaviour("PLACE-1")

LINKS = [None, *LinkKind]


@st.composite
def hosts(draw, most=4):
    """A few devices in any state, with any links between them."""
    count = draw(st.integers(0, most))
    devices = []
    for number in range(count):
        free = draw(st.one_of(st.none(), st.integers(0, 80), st.sampled_from([11, 20, 21, 31, 41])))
        held = draw(st.integers(0, 20))
        one = gpu(
            number,
            free,
            bandwidth=draw(st.sampled_from([None, 320e9, 1e12, 2039e9])),
            reserved=(Reserved("pool", held * GIB, draw(st.integers(0, held)) * GIB),) if held else (),
            node=draw(st.sampled_from([None, 0, 1])),
            degraded=draw(st.booleans()),
            probation=draw(st.sampled_from([False, False, True])),
            state_known=draw(st.sampled_from([True, True, True, False])),
            celsius=draw(st.sampled_from([None, 40.0, 85.0])),
            limit_celsius=90.0,
        )
        devices.append(quarantined(one) if draw(st.integers(0, 6)) == 0 else one)
    for a, b in combinations(range(count), 2):
        kind = draw(st.sampled_from(LINKS))
        if kind is not None:
            device = devices[a].device
            linked = replace(device, links=(*device.links, Link(GPU[b], kind)))
            devices[a] = replace(devices[a], device=linked)
    if draw(st.booleans()):
        devices.append(mig(9, 0, draw(st.integers(0, 10))))
    return devices


@st.composite
def asks(draw):
    known = draw(st.booleans())
    split = draw(st.sampled_from(SplitMode))
    mask = draw(st.one_of(st.none(), st.lists(st.sampled_from(GPU[:5]), unique=True, max_size=4).map(tuple)))
    exact = mask is not None and draw(st.booleans())
    count = 0 if exact else draw(st.integers(0, 3))
    shares = (len(mask) if exact else count) or 1
    ratios = tuple(draw(st.lists(st.sampled_from([0.0, 1.0, 3.0]), min_size=shares, max_size=shares)))
    if split is SplitMode.EXPLICIT and not (any(ratios) and (mask or not exact)):
        split = SplitMode.NONE
    return PlacementAsk(
        estimate=model(draw(st.integers(1, 4))) if known else None,
        bytes_per_device=draw(st.integers(0, 40)) * GIB,
        device_count=count,
        mask=mask,
        exact=exact,
        split=split,
        ratios=ratios if split is SplitMode.EXPLICIT else (),
        objective=draw(st.sampled_from([None, *Objective])),
        preference=draw(st.sampled_from(Preference)),
        min_compute_capability=draw(st.sampled_from([None, None, (8, 0), (9, 0)])),
        allow_mig=draw(st.booleans()),
        allow_cross_numa=draw(st.booleans()),
        prefer_nvlink=draw(st.booleans()),
    )


def shown_free(candidate):
    """What the driver reports as free, less all that is promised and not yet seen: from the raw numbers."""
    memory = candidate.memory
    if memory.total_bytes is None or memory.used_bytes is None:
        return None
    promised = memory.reserved_bytes - memory.measured_bytes  # one reservation: no other makes up for it
    return min(memory.total_bytes - memory.used_bytes - promised, memory.total_bytes - memory.reserved_bytes)


@settings(max_examples=120, deadline=None)
@given(asks(), hosts())
def test_nothing_is_promised_that_is_not_there_and_nobody_gets_a_device_that_is_not_sound(ask, host):
    plan = place(ask, host, every_plan)
    by_id = {one.device.device_id: one for one in host}
    assert (plan.refusal is None) == bool(plan.device_ids)
    assert set(plan.bytes_by_device) == set(plan.device_ids) and len(set(plan.device_ids)) == len(plan.device_ids)
    for name, size in plan.bytes_by_device.items():
        one, free = by_id[name], shown_free(by_id[name])
        assert size == 0 or (free is not None and size <= free)
        assert one.state_known and one.refusal is None
        assert ask.mask is None or name in ask.mask
        assert not one.device.is_instance or (ask.allow_mig and len(plan.device_ids) == 1)
        assert ask.min_compute_capability is None or one.device.compute_capability >= ask.min_compute_capability
    assert sum(by_id[name].probation for name in plan.device_ids) <= 1


@settings(max_examples=120, deadline=None)
@given(asks(), hosts())
def test_every_device_has_one_fate_and_it_is_told_in_the_explanation(ask, host):
    plan = place(ask, host, every_plan)
    named = [one.device.device_id for one in host]
    absent = [name for name in ask.mask or () if name not in named] if host else []
    assert sorted(one.device_id for one in plan.fates) == sorted([*named, *(absent if host else ask.mask or ())])
    assert {one.device_id for one in plan.fates if one.reason == "CHOSEN"} == set(plan.device_ids)
    assert all(one.message for one in plan.fates)
    for one in plan.fates:
        assert f"{one.device_id}: {one.reason}: {one.message}" in plan.explanation
    if plan.refusal is not None:
        assert plan.refusal.message and plan.refusal.reason
        assert (plan.missing_bytes > 0) == (plan.refusal.reason == "DOES_NOT_FIT")
        assert plan.refusal.numbers.get("missing_bytes", 0) == plan.missing_bytes


@settings(max_examples=80, deadline=None)
@given(asks(), hosts(), st.randoms(use_true_random=False))
def test_the_order_in_which_devices_are_told_of_changes_nothing(ask, host, rng):
    shuffled = list(host)
    rng.shuffle(shuffled)
    one, other = place(ask, host, every_plan), place(ask, shuffled, every_plan)
    assert one == place(ask, host, every_plan)
    assert (one.device_ids, one.bytes_by_device) == (other.device_ids, other.bytes_by_device)
    assert (one.refusal and one.refusal.reason) == (other.refusal and other.refusal.reason)
    assert {fate.device_id: fate.reason for fate in one.fates} == {fate.device_id: fate.reason for fate in other.fates}


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 3), st.integers(0, 40), hosts(), st.booleans())
def test_a_gang_is_refused_only_where_no_set_would_do(count, need_gib, host, cross):
    """Against every set of so many devices. One that stays within a node always may be had."""
    ask = PlacementAsk(bytes_per_device=need_gib * GIB, device_count=count, allow_cross_numa=cross)
    plan = place(ask, host, every_plan)
    good = [
        one for one in host if one.state_known and one.refusal is None and (count == 1 or not one.device.is_instance)
    ]
    good = [one for one in good if not need_gib or (shown_free(one) is not None and need_gib * GIB <= shown_free(one))]
    sets = [each for each in combinations(good, count) if sum(one.probation for one in each) <= 1]
    at_home = [each for each in sets if len({one.device.numa_node for one in each}) == 1]
    if at_home:
        assert plan.refusal is None and len(plan.device_ids) == count
    if sets and cross:
        assert plan.refusal is None
    if not sets:
        assert plan.refusal is not None
    sound = [each for each in (sets if cross else at_home) if not any(one.probation or one.degraded for one in each)]
    if sound:
        by_id = {one.device.device_id: one for one in host}
        assert not any(by_id[name].probation or by_id[name].degraded for name in plan.device_ids)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 40), hosts())
def test_what_is_missing_is_what_is_missing(need_gib, host):
    """With so much more on the right device it fits, with a byte less on any it does not."""
    ask = PlacementAsk(bytes_per_device=need_gib * GIB)
    plan = place(ask, host, every_plan)
    if plan.refusal is None or plan.refusal.reason != "DOES_NOT_FIT":
        return
    usable = [one for one in host if one.state_known and one.refusal is None and one.memory.free_bytes is not None]
    shortfalls = [need_gib * GIB - shown_free(one) for one in usable]
    assert plan.missing_bytes == min(shortfalls) > 0


@settings(max_examples=80, deadline=None)
@given(st.lists(st.sampled_from([1.0, 2.0, 5.0]), min_size=1, max_size=3), hosts())
def test_ratios_are_refused_only_where_no_devices_would_do_and_what_is_missing_is_the_least(ratios, host):
    """Against every way to give devices to ratios."""
    ask = PlacementAsk(estimate=model(4), split=SplitMode.EXPLICIT, ratios=tuple(ratios))
    plan = place(ask, host, every_plan)
    needs = [GIB * (1 + 10 * sum(stage.device == n for stage in layers_of(ratios))) for n in range(len(ratios))]
    good = [one for one in host if one.state_known and one.refusal is None and shown_free(one) is not None]
    good = [one for one in good if len(ratios) == 1 or not one.device.is_instance]
    ways = [way for way in permutations(good, len(ratios)) if sum(one.probation for one in way) <= 1]
    short = [sum(max(0, need - shown_free(one)) for need, one in zip(needs, way, strict=True)) for way in ways]
    assert (plan.refusal is None) == (0 in short)
    if short:
        assert plan.missing_bytes == min(short)


def layers_of(ratios):
    """Each of four layers with the ratio's place that it falls on, by llama.cpp's words."""
    for layer in range(4):
        before = [sum(ratios[: n + 1]) / sum(ratios) for n in range(len(ratios))]
        yield Stage(next(n for n, end in enumerate(before) if end > layer / 4), layer, layer)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), hosts(), st.sampled_from([None, *Objective]))
def test_a_model_is_refused_only_where_no_plan_over_admitted_devices_fits(layers, host, objective):
    ask = PlacementAsk(estimate=model(layers), split=SplitMode.AUTO, objective=objective)
    plan = place(ask, host, every_plan)
    good = [one for one in host if one.state_known and one.refusal is None and shown_free(one) is not None]
    gpus = [one for one in good if not one.device.is_instance]
    trials = [one for one in gpus if one.probation] or [None]

    def layers_on(one):
        return max(0, (shown_free(one) - GIB) // (10 * GIB))

    most = max(
        (sum(layers_on(one) for one in gpus if not one.probation or one is trial) for trial in trials), default=0
    )
    whole = any(layers_on(one) >= layers for one in good)
    assert (plan.refusal is None) == (most >= layers or whole)


@settings(max_examples=60, deadline=None)
@given(asks(), hosts(), st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3), st.integers(1, 60)), max_size=4))
def test_once_the_named_pools_have_stopped_it_fits(ask, host, drawn):
    pools = [idle(f"p{n}", cost, busy=cost == 0, **{f"gpu{on}": size}) for n, (cost, on, size) in enumerate(drawn)]
    plan = place(replace(ask, evict=True), host, every_plan, pools)
    assert plan.evictions == () or plan.refusal is not None
    assert not {pool.pool_id for pool in pools if pool.busy} & set(plan.evictions)
    assert place(ask, host, every_plan).refusal == plan.refusal
    if plan.evictions:
        after = [freed(one, [pool for pool in pools if pool.pool_id in plan.evictions]) for one in host]
        assert place(ask, after, every_plan).refusal is None


def freed(candidate, stopped):
    """As the driver will show it: less in use, and never more free than there is."""
    memory, size = candidate.memory, sum(pool.frees.get(candidate.device.device_id, 0) for pool in stopped)
    if memory.free_bytes is None:
        return candidate
    left = shown_free(candidate) + size
    return replace(candidate, memory=replace(memory, free_bytes=max(0, min(left, memory.total_bytes))))


@settings(max_examples=60, deadline=None)
@given(asks(), hosts(most=3))
def test_the_reference_planner_places_as_one_that_looks_at_every_plan(ask, host):
    plan = place(ask, host, lambda request: split.plan(request, search))
    told = place(ask, host, every_plan)
    assert (plan.device_ids, plan.bytes_by_device) == (told.device_ids, told.bytes_by_device)
    assert (plan.refusal and plan.refusal.reason) == (told.refusal and told.refusal.reason)
