"""A model over several devices: which of them the planner may choose from, and what becomes of its plan."""

from __future__ import annotations

from dataclasses import replace

import pytest

from poolmgr.core.memory import entry
from poolmgr.core.placement import place
from poolmgr.core.placement_explicit import stages_of
from poolmgr.core.placement_request import LATENCY_SECONDS
from poolmgr.errors import InternalError
from poolmgr.model.device import Link, LinkKind
from poolmgr.model.names import EngineName
from poolmgr.model.placement import PlacementAsk, SplitMode
from poolmgr.model.plan import Objective, PlanRefusal, Refusal, SplitPlan, Stage
from tests.core.placing import GIB, GPU, every_plan, fate_of, gpu, mig, model, numbers, quarantined

pytestmark = pytest.mark.behaviour("SPLIT-1")

AUTO = PlacementAsk(estimate=model(4), split=SplitMode.AUTO)  # 40 GiB in layers of 10, and 1 on each device
NVLINK, PCIE, SYSTEM = LinkKind.NVLINK, LinkKind.PCIE, LinkKind.SYSTEM


class Planner:
    """Looks at every plan, and remembers what it was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, request):
        self.asked.append(request)
        return every_plan(request)


def placed(ask, *candidates):
    return place(ask, candidates, every_plan)


def chosen(ask, *candidates):
    plan = placed(ask, *candidates)
    assert plan.refusal is None, plan.refusal
    return numbers(plan)


def test_one_device_is_used_where_the_objective_gains_nothing_by_more():
    assert chosen(AUTO, gpu(0), gpu(1)) == [0]
    assert sorted(chosen(replace(AUTO, objective=Objective.MIN_BOTTLENECK), gpu(0), gpu(1))) == [0, 1]


def test_the_shares_are_reserved_with_the_overhead_of_each_device():
    plan = placed(AUTO, gpu(0, 31), gpu(1, 11))
    assert plan.bytes_by_device == {GPU[0]: 31 * GIB, GPU[1]: 11 * GIB}
    assert plan.device_ids == tuple(each.device_id for each in plan.split.assignments)
    assert [fate_of(plan, n) for n in (0, 1)] == ["CHOSEN", "CHOSEN"]
    assert "every plan was looked at" in plan.explanation


def test_one_byte_less_and_nothing_is_planned():
    short = gpu(1, 11)
    short = replace(short, memory=entry(GPU[1], 80 * GIB, 11 * GIB - 1, ()))
    plan = placed(AUTO, gpu(0, 31), short)
    assert (plan.refusal.reason, plan.missing_bytes > 0) == ("DOES_NOT_FIT", True)
    assert [fate_of(plan, n) for n in (0, 1)] == ["DOES_NOT_FIT", "DOES_NOT_FIT"]
    assert "31.0 GiB" in plan.refusal.message


def test_a_device_that_the_plan_does_not_need_is_told_so():
    plan = placed(AUTO, gpu(0), gpu(1, bandwidth=1e9))
    assert (numbers(plan), fate_of(plan, 1)) == ([0], "UNUSED")


@pytest.mark.behaviour("PLACE-4")
def test_only_admitted_devices_of_known_memory_reach_the_planner():
    planner = Planner()
    out = [gpu(1, None), quarantined(gpu(2)), gpu(3, state_known=False), gpu(4)]
    plan = place(replace(AUTO, mask=(GPU[0], GPU[1], GPU[2], GPU[3])), [gpu(0), *out], planner)
    assert [[device.device_id for device in request.devices] for request in planner.asked] == [[GPU[0]]]
    assert (numbers(plan), fate_of(plan, 1)) == ([0], "MEMORY_UNKNOWN")
    plan = placed(AUTO, gpu(0, None))
    assert (plan.refusal.reason, fate_of(plan, 0)) == ("MEMORY_UNKNOWN", "MEMORY_UNKNOWN")


@pytest.mark.behaviour("PLACE-4")
def test_degraded_devices_are_planned_with_only_where_sound_ones_do_not_suffice_and_one_on_probation_last():
    small, worn, trial, other = gpu(0, 21), gpu(1, 40, degraded=True), gpu(2, probation=True), gpu(3, probation=True)
    assert chosen(AUTO, gpu(0), worn, trial) == [0]
    assert sorted(chosen(AUTO, small, worn, trial, other)) == [0, 1]
    plan = placed(AUTO, gpu(0, 21), gpu(2, 25, probation=True), gpu(3, 25, probation=True))
    assert sorted(numbers(plan)) == [0, 2] and fate_of(plan, 3) == "LAST_RESORT"
    plan = placed(AUTO, gpu(2, 25, probation=True), gpu(3, 25, probation=True))
    assert plan.refusal.reason == "DOES_NOT_FIT"


def test_the_number_of_devices_is_a_limit():
    three = [gpu(n, 21) for n in range(3)]
    assert len(chosen(AUTO, *three)) == 2
    many = replace(AUTO, estimate=model(6))
    assert len(chosen(many, *three)) == 3
    assert placed(replace(many, device_count=2), *three).refusal.reason == "DOES_NOT_FIT"
    assert sorted(chosen(PlacementAsk(estimate=model(4), device_count=2), *three)) == [0, 1]


def test_a_model_of_unknown_insides_is_not_planned():
    ask = PlacementAsk(bytes_per_device=GIB, split=SplitMode.AUTO, device_count=2)
    assert sorted(chosen(ask, gpu(0), gpu(1))) == [0, 1]
    assert chosen(replace(ask, device_count=0), gpu(0), gpu(1)) == [0]


def test_the_planner_is_asked_with_the_ledgers_free_memory_the_overhead_and_the_objective():
    planner = Planner()
    ask = replace(AUTO, objective=Objective.BALANCED, engine=EngineName.COMMAND, device_count=2)
    place(ask, [gpu(0, 50), gpu(1, 60, bandwidth=1e12)], planner)
    (request,) = planner.asked
    assert [(d.vram_free_bytes, d.overhead_bytes) for d in request.devices] == [(50 * GIB, GIB), (60 * GIB, GIB)]
    assert [d.memory_bandwidth_bytes_per_second for d in request.devices] == [2039e9, 1e12]
    assert (request.objective, request.engine, request.max_devices) == (Objective.BALANCED, EngineName.COMMAND, 2)
    assert request.activation_bytes == 16384
    assert request.default_hop_seconds == pytest.approx(15e-6 + 16384 / 7.9e9)


def test_links_are_told_once_a_pair_by_what_the_slower_end_says():
    def linked(number, *links):
        one = gpu(number)
        return replace(one, device=replace(one.device, links=links))

    planner = Planner()
    devices = [
        linked(0, Link(GPU[1], NVLINK, 4, 100e9), Link(GPU[2], PCIE, 16, None), Link(GPU[9], NVLINK, 4, 1.0)),
        linked(1, Link(GPU[0], NVLINK, 4, 50e9), Link(GPU[2], SYSTEM)),
        linked(2, Link(GPU[3], NVLINK, 2)),
        linked(3),
    ]
    place(replace(AUTO, device_count=2), devices, planner)
    found = {(link.device_a, link.device_b): link for link in planner.asked[0].links}
    assert set(found) == {(GPU[0], GPU[1]), (GPU[0], GPU[2]), (GPU[1], GPU[2]), (GPU[2], GPU[3])}
    assert found[GPU[0], GPU[1]].bandwidth_bytes_per_second == 50e9
    assert found[GPU[2], GPU[3]].bandwidth_bytes_per_second == 50e9  # two lanes
    assert found[GPU[0], GPU[2]].bandwidth_bytes_per_second == 7.9e9
    latencies = [found[GPU[a], GPU[b]].latency_seconds for a, b in ((0, 1), (0, 2), (1, 2))]
    assert latencies == [LATENCY_SECONDS[kind] for kind in (NVLINK, PCIE, SYSTEM)] == sorted(latencies)


def test_unknown_speed_is_taken_for_the_slowest_known_and_said_so():
    planner = Planner()
    plan = place(AUTO, [gpu(0, bandwidth=2e12), gpu(1, bandwidth=None), gpu(2, bandwidth=1e12)], planner)
    assert {d.device_id: d.memory_bandwidth_bytes_per_second for d in planner.asked[0].devices}[GPU[1]] == 1e12
    assert any("bandwidth" in line and GPU[1] in line for line in plan.explanation)
    place(AUTO, [gpu(0, bandwidth=None)], planner)
    assert planner.asked[-1].devices[0].memory_bandwidth_bytes_per_second > 0


# Where devices are.


@pytest.mark.behaviour("PLACE-2")
def test_without_leave_a_plan_stays_within_a_node_then_within_a_socket():
    ask = replace(AUTO, allow_cross_numa=False)
    devices = [gpu(0, 21, node=0), gpu(1, 21, node=1), gpu(2, 21, node=1)]
    assert sorted(chosen(ask, *devices)) == [1, 2]
    joined = [gpu(0, 21, node=0, links={1: PCIE}), gpu(1, 21, node=1)]
    assert sorted(chosen(ask, *joined)) == [0, 1]
    plan = placed(ask, gpu(0, 21, node=0), gpu(1, 21, node=1))
    assert plan.refusal.reason == "NUMA_SPLIT" and "several sockets" in plan.refusal.message
    plan = placed(AUTO, gpu(0, 21, node=0), gpu(1, 21, node=1))
    assert plan.refusal is None and any("crosses sockets" in line for line in plan.explanation)
    assert placed(ask, gpu(0, 11, node=0), gpu(1, 11, node=1)).refusal.reason == "DOES_NOT_FIT"


@pytest.mark.behaviour("PLACE-2")
@pytest.mark.parametrize(
    ("objective", "best"),
    [(Objective.MIN_LATENCY, 1), (Objective.MIN_BOTTLENECK, 1), (Objective.BALANCED, 2), (Objective.MAX_CONTEXT, 2)],
)
def test_of_plans_in_different_nodes_the_objective_decides(objective, best):
    devices = [gpu(0, 60, node=0), gpu(1, 60, node=1, bandwidth=3e12), gpu(2, 70, node=2, bandwidth=1e12)]
    assert chosen(replace(AUTO, allow_cross_numa=False, objective=objective), *devices) == [best]


@pytest.mark.behaviour("PLACE-2")
def test_balanced_means_the_share_of_a_devices_memory_that_is_left():
    """15 of 36 GiB on each of two rather than 19 of 60 on one."""
    ask = replace(AUTO, allow_cross_numa=False, objective=Objective.BALANCED)
    assert sorted(chosen(ask, gpu(0, 36, node=0), gpu(1, 36, node=0), gpu(2, 60, node=1))) == [0, 1]


@pytest.mark.behaviour("PLACE-2")
def test_of_equal_plans_the_one_on_fewer_devices_wins_then_the_one_with_more_room():
    ask = replace(AUTO, allow_cross_numa=False, objective=Objective.MAX_CONTEXT)
    assert chosen(ask, gpu(0, 26, node=0), gpu(1, 26, node=0), gpu(2, 46, node=1)) == [2]
    assert sorted(chosen(ask, gpu(0, 27, node=0), gpu(1, 27, node=0), gpu(2, 46, node=1))) == [0, 1]
    ask = replace(AUTO, allow_cross_numa=False)
    assert chosen(ask, gpu(0, 50, node=0), gpu(1, 60, node=1)) == [1]


def test_a_mig_instance_holds_a_whole_model_or_nothing_of_it():
    planner = Planner()
    small = replace(AUTO, estimate=model(4, 2))
    instances = [mig(7, 0), mig(7, 1)]
    plan = place(small, instances, planner)
    assert plan.device_ids == (instances[0].device.device_id,)
    assert [request.max_devices for request in planner.asked] == [1]
    plan = placed(replace(AUTO, estimate=model(6, 2)), *instances)
    assert plan.refusal.reason == "DOES_NOT_FIT"
    mixed = placed(replace(AUTO, estimate=model(6, 2)), gpu(0, 9), *instances)
    assert mixed.refusal.reason == "DOES_NOT_FIT"
    assert numbers(placed(small, gpu(0), *instances)) == [0]


# All of a mask.


def test_a_model_is_planned_over_all_devices_that_are_named_and_the_idle_ones_have_the_overhead():
    ask = replace(AUTO, mask=(GPU[1], GPU[0]), exact=True)
    plan = placed(ask, gpu(0), gpu(1, 70, bandwidth=1e9), gpu(2))
    assert numbers(plan) == [0, 1]
    assert plan.bytes_by_device == {GPU[0]: 41 * GIB, GPU[1]: GIB}
    assert [each.device_id for each in plan.split.assignments] == [GPU[0]]
    assert placed(replace(ask, split=SplitMode.NONE), gpu(0), gpu(1)).refusal is None
    assert sorted(chosen(ask, gpu(0, 25), gpu(1, 25))) == [0, 1]


def test_an_idle_device_of_the_mask_has_to_have_room_for_the_overhead():
    ask = replace(AUTO, mask=(GPU[1], GPU[0]), exact=True)
    exact = gpu(1, 1)
    assert numbers(placed(ask, gpu(0), exact)) == [0, 1]
    short = replace(exact, memory=entry(GPU[1], 80 * GIB, GIB - 1, ()))
    plan = placed(ask, gpu(0), short)
    assert (plan.refusal.reason, plan.missing_bytes) == ("DOES_NOT_FIT", 1)
    assert [fate_of(plan, n) for n in (0, 1)] == ["HELD_BACK", "DOES_NOT_FIT"]


def test_of_a_mask_with_unknown_memory_nothing_is_planned():
    ask = replace(AUTO, mask=(GPU[1], GPU[0]), exact=True)
    plan = placed(ask, gpu(0), gpu(1, None))
    assert plan.refusal.reason == "MEMORY_UNKNOWN"
    assert [fate_of(plan, n) for n in (0, 1)] == ["HELD_BACK", "MEMORY_UNKNOWN"]


# What the planner says.


def test_a_refusal_of_the_planner_is_handed_on_with_its_reason():
    def refuses(request):
        told = PlanRefusal(Refusal.NOT_DIVISIBLE, 0, "28 heads over 3 devices")
        return SplitPlan(False, Objective.MIN_LATENCY, told, explanation=("two would do",))

    plan = place(AUTO, [gpu(0)], refuses)
    assert (plan.refusal.reason, plan.missing_bytes) == ("NOT_DIVISIBLE", 0)
    assert "28 heads" in plan.refusal.message and "two would do" in plan.explanation


def test_of_several_refusals_the_nearest_is_told():
    ask = replace(AUTO, allow_cross_numa=False)
    plan = placed(ask, gpu(0, 15, node=0), gpu(1, 25, node=1))
    assert plan.missing_bytes == 15 * GIB


@pytest.mark.behaviour("MEM-2")
def test_a_planner_that_gives_a_device_more_than_it_has_is_not_believed():
    def lies(request):
        honest = every_plan(
            replace(request, devices=tuple(replace(d, vram_free_bytes=99 * GIB) for d in request.devices))
        )
        assert honest.fits
        return honest

    with pytest.raises(InternalError, match="more than it has"):
        place(AUTO, [gpu(0, 20)], lies)


# By ratios.


def explicit(*ratios, **more):
    return PlacementAsk(estimate=model(4), split=SplitMode.EXPLICIT, ratios=ratios, **more)


@pytest.mark.parametrize(
    ("ratios", "layers", "ends"),
    [
        ((1, 1), 4, [(0, 0, 1), (1, 2, 3)]),
        ((3, 1), 4, [(0, 0, 2), (1, 3, 3)]),
        ((1, 2), 4, [(0, 0, 1), (1, 2, 3)]),
        ((0, 1), 4, [(1, 0, 3)]),
        ((1, 0, 1), 5, [(0, 0, 2), (2, 3, 4)]),
        ((1,), 3, [(0, 0, 2)]),
        ((1e-9, 1), 2, [(0, 0, 0), (1, 1, 1)]),
        ((1e-300, 1e300), 2, [(0, 0, 0), (1, 1, 1)]),
        ((0.1,) * 10, 10, [(i, i, i) for i in range(10)]),
    ],
)
def test_ratios_mean_layers_as_llama_cpp_means_them(ratios, layers, ends):
    assert stages_of(ratios, layers) == tuple(Stage(*each) for each in ends)


def test_ratios_stand_for_the_masks_devices_in_its_order():
    ask = explicit(3, 1, mask=(GPU[1], GPU[0]), exact=True)
    plan = placed(ask, gpu(0), gpu(1), gpu(2))
    assert numbers(plan) == [1, 0]
    assert plan.bytes_by_device == {GPU[1]: 31 * GIB, GPU[0]: 11 * GIB}
    assert [(each.device_id, each.first_layer) for each in plan.split.assignments] == [(GPU[1], 0), (GPU[0], 3)]
    assert [fate_of(plan, n) for n in range(3)] == ["CHOSEN", "CHOSEN", "NOT_IN_MASK"]
    assert plan.split.renderings["LLAMACPP"].args[2:4] == ("--tensor-split", "3,1")
    assert plan.split.headroom_bytes == {GPU[1]: 49 * GIB, GPU[0]: 69 * GIB}
    assert not plan.split.optimal and sum(plan.split.ratios) == 1.0
    plan = placed(ask, gpu(0), gpu(1, 30))
    assert (plan.refusal.reason, plan.missing_bytes) == ("DOES_NOT_FIT", GIB)
    assert "SPLIT_AUTO" in plan.refusal.message
    assert placed(ask, gpu(0), gpu(1, None)).refusal.reason == "MEMORY_UNKNOWN"


def test_a_device_without_layers_stands_last_and_has_the_overhead():
    """The engine is told of the others only, in the order in which it sees them."""
    plan = placed(explicit(1, 0, 1, mask=(GPU[0], GPU[1], GPU[2]), exact=True), gpu(0), gpu(1), gpu(2))
    assert numbers(plan) == [0, 2, 1]
    assert plan.bytes_by_device == {GPU[0]: 21 * GIB, GPU[2]: 21 * GIB, GPU[1]: GIB}
    assert plan.split.renderings["LLAMACPP"].args[2:4] == ("--tensor-split", "2,2")


def test_more_devices_than_ratios_may_be_in_a_mask_that_is_not_asked_for_whole():
    assert sorted(chosen(explicit(1, 1, mask=(GPU[0], GPU[1], GPU[2])), gpu(0, 5), gpu(1), gpu(2))) == [1, 2]


def test_without_a_mask_the_larger_share_goes_where_it_fits():
    plan = placed(explicit(1, 3), gpu(0, 31), gpu(1, 11), gpu(2, 5))
    assert plan.device_ids == (GPU[1], GPU[0])
    assert fate_of(plan, 2) == "DOES_NOT_FIT"
    plan = placed(explicit(1, 3), gpu(0, 30), gpu(1, 11))
    assert (plan.refusal.reason, plan.missing_bytes) == ("DOES_NOT_FIT", GIB)
    assert placed(explicit(1, 1, 1), gpu(0), gpu(1)).refusal.reason == "NOT_ENOUGH_DEVICES"
    plan = placed(explicit(1, 1), gpu(0), gpu(1, None))
    assert plan.refusal.reason == "MEMORY_UNKNOWN" and "of 1 devices" in plan.refusal.message
    assert [fate_of(plan, n) for n in (0, 1)] == ["HELD_BACK", "MEMORY_UNKNOWN"]


def test_one_ratio_may_be_a_mig_instance_and_several_may_not():
    one = mig(7, 0)
    name = one.device.device_id
    assert placed(replace(explicit(1), estimate=model(2, 2)), one).device_ids == (name,)
    plan = placed(replace(explicit(1, 1), estimate=model(2, 2)), one, gpu(0))
    assert (plan.refusal.reason, fate_of(plan, name)) == ("NOT_ENOUGH_DEVICES", "MIG_ALONE")
    plan = placed(replace(explicit(1, 1), estimate=model(2, 2)), one, gpu(0), gpu(1), gpu(2, degraded=True))
    assert [fate_of(plan, each) for each in (name, 0, 2)] == ["MIG_ALONE", "CHOSEN", "LAST_RESORT"]


@pytest.mark.behaviour("PLACE-2")
def test_devices_for_ratios_are_near_each_other_where_they_can_be():
    nodes = [gpu(0, node=0), gpu(1, node=1), gpu(2, node=1)]
    assert sorted(chosen(explicit(1, 1), *nodes)) == [1, 2]
    linked = [gpu(0), gpu(1, links={2: NVLINK}), gpu(2)]
    assert sorted(chosen(explicit(1, 1), *linked)) == [1, 2]
    apart = [gpu(0, node=0), gpu(1, node=1)]
    assert sorted(chosen(explicit(1, 1), *apart)) == [0, 1]
    assert placed(explicit(1, 1, allow_cross_numa=False), *apart).refusal.reason == "NUMA_SPLIT"


@pytest.mark.behaviour("PLACE-4")
def test_ratios_take_worn_devices_last_and_one_on_trial_at_most():
    assert sorted(chosen(explicit(1, 1), gpu(0, degraded=True), gpu(1), gpu(2))) == [1, 2]
    plan = placed(explicit(1, 1), gpu(0, probation=True), gpu(1, probation=True), gpu(2))
    assert sorted(numbers(plan)) == [0, 2]
    plan = placed(explicit(1, 1), gpu(0, probation=True), gpu(1, probation=True))
    assert plan.refusal.reason == "NOT_ENOUGH_DEVICES"


def test_ratios_of_a_model_of_unknown_insides_say_only_how_many_devices():
    ask = PlacementAsk(bytes_per_device=GIB, split=SplitMode.EXPLICIT, ratios=(1, 3))
    assert placed(ask, gpu(0), gpu(1)).bytes_by_device == {GPU[0]: GIB, GPU[1]: GIB}
