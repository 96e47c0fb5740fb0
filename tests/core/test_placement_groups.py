"""Several devices at once: all or none, and which of them belong together."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolmgr.core import placement_groups
from poolmgr.core.placement import place
from poolmgr.core.placement_groups import clique
from poolmgr.model.device import LinkKind
from poolmgr.model.placement import PlacementAsk, Preference
from tests.core.placing import GIB, GPU, every_plan, fate_of, gpu, mig, numbers, quarantined

pytestmark = pytest.mark.behaviour("PLACE-2")

NVLINK, PCIE, SYSTEM = LinkKind.NVLINK, LinkKind.PCIE, LinkKind.SYSTEM


def job(count, **more):
    return PlacementAsk(bytes_per_device=20 * GIB, device_count=count, **more)


def placed(ask, *candidates):
    return place(ask, candidates, every_plan)


def chosen(ask, *candidates):
    plan = placed(ask, *candidates)
    assert plan.refusal is None, plan.refusal
    return sorted(numbers(plan))


def told_of_sockets(plan):
    return any("several sockets" in line for line in plan.explanation)


def paired(number, other, node=0, **more):
    """One of two with an NVLink between them."""
    return gpu(number, node=node, links={other: NVLINK}, **more)


def test_all_devices_have_the_same_bytes_and_a_fate():
    plan = placed(job(2), gpu(0), gpu(1, 5), gpu(2))
    assert plan.bytes_by_device == {GPU[0]: 20 * GIB, GPU[2]: 20 * GIB}
    assert [fate_of(plan, n) for n in range(3)] == ["CHOSEN", "DOES_NOT_FIT", "CHOSEN"]


def test_it_is_all_or_none():
    plan = placed(job(2), gpu(0), gpu(1, 5))
    assert (plan.refusal.reason, plan.missing_bytes, plan.device_ids) == ("DOES_NOT_FIT", 15 * GIB, ())
    assert fate_of(plan, 0) == "HELD_BACK"
    plan = placed(job(3), gpu(0), gpu(1))
    assert (plan.refusal.reason, plan.refusal.numbers["asked"]) == ("NOT_ENOUGH_DEVICES", 3)
    plan = placed(job(2), gpu(0), gpu(1, None))
    assert (plan.refusal.reason, fate_of(plan, 1)) == ("MEMORY_UNKNOWN", "MEMORY_UNKNOWN")
    plan = placed(job(2), gpu(0), gpu(1, 5), gpu(2, None))
    assert plan.refusal.reason == "DOES_NOT_FIT"


def test_what_is_missing_is_counted_on_the_devices_that_are_nearest_to_it():
    plan = placed(job(3), gpu(0, 30), gpu(1, 5), gpu(2, 15), gpu(3, 10))
    assert plan.missing_bytes == 5 * GIB + 10 * GIB


def test_one_node_is_preferred_to_two():
    assert chosen(job(2), gpu(0, node=0), gpu(1, node=1), gpu(2, node=1)) == [1, 2]


def test_the_smallest_node_that_has_enough_is_filled_and_spread_takes_the_largest():
    devices = [gpu(n, node=0 if n < 4 else 1) for n in range(6)]
    assert chosen(job(2), *devices) == [4, 5]
    assert chosen(job(2, preference=Preference.SPREAD), *devices) == [0, 1]


def test_an_nvlink_group_is_preferred_within_a_node_and_over_another_node():
    devices = [gpu(0), paired(1, 3), gpu(2), paired(3, 1)]
    assert chosen(job(2), *devices) == [1, 3]
    assert chosen(job(2, prefer_nvlink=False), *devices) == [0, 1]
    assert chosen(job(2), gpu(0, node=1), gpu(1, node=1), paired(2, 3), paired(3, 2), gpu(4)) == [2, 3]


def test_a_link_that_one_end_shows_is_a_link():
    assert chosen(job(2), gpu(0), paired(1, 2), gpu(2)) == [1, 2]


def test_a_group_of_nvlinks_is_one_in_which_each_is_linked_to_each():
    chain = [gpu(0), gpu(1, links={2: NVLINK}), gpu(2, links={3: NVLINK}), gpu(3)]
    assert chosen(job(3), *chain) == [0, 1, 2]
    ring = [gpu(0), gpu(1, links={2: NVLINK, 3: NVLINK}), gpu(2, links={3: NVLINK}), gpu(3)]
    assert chosen(job(3), *ring) == [1, 2, 3]


def test_the_same_socket_comes_before_another_and_needs_no_leave():
    near = [gpu(0, node=0, links={1: SYSTEM, 2: SYSTEM}), gpu(1, node=1, links={2: PCIE}), gpu(2, node=2)]
    assert chosen(job(2), *near) == [1, 2]
    assert chosen(job(2, allow_cross_numa=False), *near) == [1, 2]


def test_sockets_are_crossed_only_with_leave():
    apart = [gpu(0, node=0, links={1: SYSTEM}), gpu(1, node=1)]
    plan = placed(job(2), *apart)
    assert sorted(numbers(plan)) == [0, 1]
    assert told_of_sockets(plan)
    assert not told_of_sockets(placed(job(2), gpu(0), gpu(1)))
    plan = placed(job(2, allow_cross_numa=False), *apart)
    assert (plan.refusal.reason, fate_of(plan, 0)) == ("NUMA_SPLIT", "HELD_BACK")
    assert "several sockets" in plan.refusal.message


def test_an_nvlink_across_sockets_needs_leave_and_is_preferred_then():
    apart = [gpu(0, node=0), paired(1, 2, node=1), paired(2, 1, node=2)]
    plan = placed(job(2), *apart)
    assert sorted(numbers(plan)) == [1, 2] and told_of_sockets(plan)
    assert placed(job(2, allow_cross_numa=False), *apart).refusal.reason == "NUMA_SPLIT"


def test_a_search_that_was_cut_short_is_told_of(monkeypatch):
    ring = [gpu(0), gpu(1, links={2: NVLINK, 3: NVLINK}), gpu(2, links={3: NVLINK}), gpu(3)]
    assert not any("not all sets" in line for line in placed(job(3), *ring).explanation)
    monkeypatch.setattr(placement_groups, "MAX_STEPS", 4)
    plan = placed(job(3), *ring)
    assert sorted(numbers(plan)) == [0, 1, 2] and any("not all sets" in line for line in plan.explanation)


def test_across_sockets_as_few_nodes_as_possible_are_taken():
    devices = [gpu(0, node=0), gpu(1, node=1), gpu(2, node=2), gpu(3, node=2)]
    assert chosen(job(3), *devices) == [0, 2, 3]


def test_devices_of_unknown_node_are_one_node_and_apart_from_the_known():
    assert chosen(job(2, allow_cross_numa=False), gpu(0, node=None), gpu(1, node=None)) == [0, 1]
    assert placed(job(2, allow_cross_numa=False), gpu(0, node=None), gpu(1)).refusal.reason == "NUMA_SPLIT"


def test_sound_devices_across_sockets_come_before_a_degraded_one_near_by():
    assert chosen(job(2), gpu(0, node=0), gpu(1, node=0, degraded=True), gpu(2, node=1)) == [0, 2]
    assert chosen(job(2, allow_cross_numa=False), gpu(0), gpu(1, degraded=True), gpu(2, node=1)) == [0, 1]


@pytest.mark.behaviour("PLACE-4")
def test_at_most_one_device_of_a_plan_is_on_probation():
    trials = [gpu(1, probation=True), gpu(2, probation=True)]
    plan = placed(job(2), gpu(0), *trials)
    assert (sorted(numbers(plan)), fate_of(plan, 2)) == ([0, 1], "ONE_TRIAL")
    plan = placed(job(2), *trials)
    assert plan.refusal.reason == "NOT_ENOUGH_DEVICES" and "one may have its trial" in plan.refusal.message
    plan = placed(job(2), gpu(0, 5), *trials)
    assert (plan.refusal.reason, plan.missing_bytes) == ("DOES_NOT_FIT", 15 * GIB)
    plan = placed(job(3), gpu(0), gpu(3), *trials, gpu(4))
    assert (sorted(numbers(plan)), fate_of(plan, 1)) == ([0, 3, 4], "LAST_RESORT")


def test_a_mig_instance_is_never_one_of_several_unless_asked_for_by_profile():
    instances = [mig(7, 0), mig(7, 1)]
    ask = PlacementAsk(bytes_per_device=GIB, device_count=2)
    plan = placed(ask, gpu(0), *instances)
    assert (plan.refusal.reason, fate_of(plan, instances[0].device.device_id)) == ("NOT_ENOUGH_DEVICES", "MIG_ALONE")
    assert "alone" in plan.refusal.message
    assert sorted(numbers(placed(ask, gpu(0), gpu(1), *instances))) == [0, 1]
    plan = placed(replace(ask, mig_profile="1g.10gb"), *instances)
    assert set(plan.device_ids) == {one.device.device_id for one in instances}


# All of a mask.


def named(*which, **more):
    return PlacementAsk(bytes_per_device=20 * GIB, mask=tuple(GPU[n] for n in which), exact=True, **more)


def test_a_mask_is_taken_whole_in_its_order_or_not_at_all():
    plan = placed(named(2, 0), gpu(0), gpu(1), gpu(2))
    assert (numbers(plan), fate_of(plan, 1)) == ([2, 0], "NOT_IN_MASK")
    assert plan.bytes_by_device == {GPU[2]: 20 * GIB, GPU[0]: 20 * GIB}
    plan = placed(named(2, 0), gpu(0, 7), gpu(1), gpu(2))
    assert (plan.refusal.reason, plan.missing_bytes) == ("DOES_NOT_FIT", 13 * GIB)
    plan = placed(named(2, 0), gpu(0, None), gpu(2))
    assert plan.refusal.reason == "MEMORY_UNKNOWN"


def test_of_a_mask_with_a_device_that_is_out_nothing_is_taken_and_the_device_is_named():
    plan = placed(named(0, 1), gpu(0), quarantined(gpu(1)))
    assert (plan.refusal.reason, fate_of(plan, 0), fate_of(plan, 1)) == (
        "NOT_ENOUGH_DEVICES",
        "HELD_BACK",
        "QUARANTINED",
    )
    assert GPU[1] in plan.refusal.message and "XID 79" in plan.refusal.message
    plan = placed(named(0, 5), gpu(0))
    assert (plan.refusal.reason, fate_of(plan, 5)) == ("NOT_ENOUGH_DEVICES", "ABSENT")


def test_a_degraded_device_that_the_mask_names_is_taken():
    assert chosen(named(0, 1), gpu(0, degraded=True), gpu(1), gpu(2)) == [0, 1]


@pytest.mark.behaviour("PLACE-4")
def test_a_mask_may_name_one_device_on_probation_and_not_two():
    assert chosen(named(0, 1), gpu(0, probation=True), gpu(1)) == [0, 1]
    plan = placed(named(0, 1), gpu(0, probation=True), gpu(1, probation=True))
    assert (plan.refusal.reason, "trial" in plan.refusal.message) == ("NOT_ENOUGH_DEVICES", True)


def test_a_mask_over_several_sockets_needs_leave():
    assert chosen(named(0, 1), gpu(0, node=0), gpu(1, node=1)) == [0, 1]
    plan = placed(named(0, 1, allow_cross_numa=False), gpu(0, node=0), gpu(1, node=1))
    assert plan.refusal.reason == "NUMA_SPLIT"
    assert chosen(named(0, 1, allow_cross_numa=False), gpu(0, node=0, links={1: PCIE}), gpu(1, node=1)) == [0, 1]


def test_a_mask_with_an_instance_beside_another_device_is_refused():
    one, other = mig(7, 0), mig(7, 1)
    both = (one.device.device_id, other.device.device_id)
    ask = PlacementAsk(bytes_per_device=GIB, mask=both, exact=True)
    plan = placed(ask, one, other)
    assert (plan.refusal.reason, "MIG instance" in plan.refusal.message) == ("NOT_ENOUGH_DEVICES", True)
    assert placed(replace(ask, mig_profile="1g.10gb"), one, other).device_ids == both
    assert placed(replace(ask, mask=both[:1]), one, other).device_ids == both[:1]


# The search.


@given(st.integers(0, 7), st.data())
def test_the_first_set_of_mutually_joined_devices_is_found_where_there_is_one(size, data):
    pairs = list(combinations(range(size), 2))
    joined = data.draw(st.sets(st.sampled_from(pairs))) if pairs else set()
    count = data.draw(st.integers(1, 8))
    ranked = [gpu(n) for n in range(size)]

    def linked(one, other):
        places = sorted(GPU.index(each.device.device_id) for each in (one, other))
        return tuple(places) in joined

    found, whole = clique(ranked, linked, count)
    every = [each for each in combinations(range(size), count) if set(combinations(each, 2)) <= joined]
    assert whole
    assert tuple(GPU.index(one.device.device_id) for one in found) == (every[0] if every else ())


def test_a_search_that_would_take_too_long_is_cut_and_says_so():
    looks = 0

    def linked(one, other):
        nonlocal looks
        looks += 1
        return one % 8 != other % 8

    assert clique(range(64), linked, 9) == ((), False)
    assert looks <= placement_groups.MAX_STEPS * 9
