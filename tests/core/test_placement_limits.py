"""Places at the edges: exactly full, exactly at a limit, exactly nothing missing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from poolmgr.core import split_missing
from poolmgr.core.memory import entry
from poolmgr.core.placement import place
from poolmgr.core.placement_ask import validate
from poolmgr.core.placement_groups import sockets
from poolmgr.core.placement_score import usable_at_once
from poolmgr.core.placement_split import feasibility
from poolmgr.errors import ClientError
from poolmgr.model.device import LinkKind
from poolmgr.model.placement import IdlePool, PlacementAsk, Preference, SplitMode
from poolmgr.model.plan import MAX_DEVICES, DeviceProfile, LayerProfile, ModelProfile, SplitRequest
from tests.core.placing import GIB, GPU, every_plan, fate_of, gpu, mig, model, numbers

pytestmark = pytest.mark.behaviour("PLACE-1")
NVLINK, PCIE = LinkKind.NVLINK, LinkKind.PCIE
TWO = PlacementAsk(estimate=model(4), split=SplitMode.EXPLICIT, ratios=(1, 1))  # 21 GiB on each


def placed(ask, *candidates):
    return place(ask, candidates, every_plan)


def test_as_many_devices_as_go_together_may_be_asked_for_and_one_more_may_not():
    validate(PlacementAsk(device_count=MAX_DEVICES), [gpu(0)], [])
    validate(PlacementAsk(device_count=0), [gpu(0)], [])
    with pytest.raises(ClientError, match=f"device_count is {MAX_DEVICES + 1}, it has to be 0 to {MAX_DEVICES}"):
        validate(PlacementAsk(device_count=MAX_DEVICES + 1), [gpu(0)], [])


def test_an_idle_pool_may_free_and_cost_nothing():
    validate(PlacementAsk(), [gpu(0)], [IdlePool("a", {GPU[0]: 0}, False, 0.0, 0.0)])
    with pytest.raises(ClientError, match="'a' frees less than nothing"):
        validate(PlacementAsk(), [gpu(0)], [IdlePool("a", {GPU[0]: -1}, False, 0.0, 0.0)])


@pytest.mark.behaviour("MEM-2")
def test_where_memory_is_not_what_is_missing_no_bytes_are():
    apart = [gpu(0, node=0), gpu(1, node=1)]
    near = {"allow_cross_numa": False}
    asks = [
        (replace(TWO, **near), apart, "NUMA_SPLIT"),
        (TWO, [gpu(0), gpu(1, None)], "MEMORY_UNKNOWN"),
        (TWO, [gpu(0)], "NOT_ENOUGH_DEVICES"),
        (PlacementAsk(bytes_per_device=GIB, device_count=2, **near), apart, "NUMA_SPLIT"),
        (PlacementAsk(bytes_per_device=GIB, device_count=2), [gpu(0), gpu(1, None)], "MEMORY_UNKNOWN"),
        (PlacementAsk(bytes_per_device=GIB, device_count=2), [gpu(0)], "NOT_ENOUGH_DEVICES"),
        (PlacementAsk(estimate=model(4), split=SplitMode.AUTO), [gpu(0, None)], "MEMORY_UNKNOWN"),
        (
            PlacementAsk(estimate=model(4), split=SplitMode.AUTO, **near),
            [gpu(0, 21, node=0), gpu(1, 21, node=1)],
            "NUMA_SPLIT",
        ),
        (PlacementAsk(), [], "NO_DEVICES"),
    ]
    for ask, devices, reason in asks:
        plan = placed(ask, *devices)
        assert (plan.refusal.reason, plan.missing_bytes) == (reason, 0)


@pytest.mark.behaviour("MEM-2")
@pytest.mark.parametrize("ask", [TWO, replace(TWO, mask=(GPU[0], GPU[1]), exact=True)])
def test_a_device_that_is_full_lacks_all_that_is_needed(ask):
    plan = placed(ask, gpu(0), gpu(1, 0))
    assert (plan.refusal.reason, plan.missing_bytes) == ("DOES_NOT_FIT", 21 * GIB)


def test_a_full_device_has_nothing_to_plan_with():
    asked = []

    def planner(request):
        asked.append([device.vram_free_bytes for device in request.devices])
        return every_plan(request)

    plan = place(PlacementAsk(estimate=model(4), split=SplitMode.AUTO), [gpu(0, 0), gpu(1, 25)], planner)
    assert sorted(asked[0]) == [0, 25 * GIB]
    assert plan.refusal.numbers["devices"] == 2


@pytest.mark.behaviour("PLACE-2")
def test_devices_with_exactly_the_room_are_a_group_too():
    """Spread would otherwise take the emptier one that has no link."""
    ask = replace(TWO, preference=Preference.SPREAD)
    devices = [gpu(0, 80), gpu(1, 21, links={2: NVLINK}), gpu(2, 21, links={1: NVLINK})]
    assert sorted(numbers(placed(ask, *devices))) == [1, 2]
    short = replace(devices[2], memory=entry(GPU[2], 80 * GIB, 21 * GIB - 1, ()))
    assert sorted(numbers(placed(ask, *devices[:2], short))) == [0, 1]


@pytest.mark.behaviour("PLACE-2")
def test_the_largest_share_chooses_first_whatever_is_preferred():
    ask = replace(TWO, ratios=(1, 3), preference=Preference.SPREAD)
    assert placed(ask, gpu(0, 31), gpu(1, 11)).device_ids == (GPU[1], GPU[0])


@pytest.mark.behaviour("PLACE-2")
def test_spread_takes_the_larger_node_though_it_comes_later():
    devices = [gpu(number, node=0 if number < 2 else 1) for number in range(6)]
    ask = PlacementAsk(bytes_per_device=GIB, device_count=2)
    assert sorted(numbers(placed(ask, *devices))) == [0, 1]
    assert sorted(numbers(placed(replace(ask, preference=Preference.SPREAD), *devices))) == [2, 3]


@pytest.mark.behaviour("PLACE-2")
def test_two_nodes_of_one_socket_are_not_called_several_sockets():
    ask = PlacementAsk(bytes_per_device=GIB, device_count=2)
    near = [gpu(0, node=0, links={1: PCIE}), gpu(1, node=1)]
    assert not any("several sockets" in line for line in placed(ask, *near).explanation)
    assert any("several sockets" in line for line in placed(ask, near[1], gpu(2, node=2)).explanation)


def test_where_no_bytes_are_asked_for_unknown_memory_is_not_the_reason():
    ask = PlacementAsk(device_count=2, allow_cross_numa=False)
    plan = placed(ask, gpu(0, None, node=0), gpu(1, None, node=1))
    assert plan.refusal.reason == "NUMA_SPLIT"


@pytest.mark.parametrize(("proved", "asks"), [(True, 0), (False, 1)])
def test_whether_something_fits_is_asked_of_the_planner_only_where_it_cannot_be_told_without(monkeypatch, proved, asks):
    if not proved:
        monkeypatch.setattr(split_missing, "EXACT_STATES", 0)
    asked = []

    def planner(request):
        asked.append(request)
        return every_plan(request)

    def whether(free):
        layer = LayerProfile(10, 10)
        return feasibility(planner)(SplitRequest(ModelProfile((layer,) * 4), (DeviceProfile("a", free, 1.0),)))

    short, enough = whether(39), whether(40)
    assert (short.fits, short.refusal.missing_bytes, enough.fits) == (False, 1, True)
    assert len(asked) == asks
    assert not feasibility(planner)(SplitRequest(ModelProfile((LayerProfile(1, 1),)), ())).fits
    assert len(asked) == asks + 1


@pytest.mark.behaviour("PLACE-4")
def test_of_any_number_on_probation_one_counts():
    trials = [gpu(number, probation=True) for number in range(5)]
    assert [usable_at_once([gpu(9), *trials[:count]]) for count in range(6)] == [1, 2, 2, 2, 2, 2]
    assert usable_at_once(trials) == 1 and usable_at_once([]) == 0


def test_an_instance_that_is_too_small_for_a_single_share_is_told_so():
    one = mig(7, 0, 5)
    plan = placed(replace(TWO, ratios=(1,)), one)
    assert (plan.refusal.reason, fate_of(plan, one.device.device_id)) == ("DOES_NOT_FIT", "DOES_NOT_FIT")
    assert plan.missing_bytes == 41 * GIB - 5 * GIB


@pytest.mark.behaviour("PLACE-2")
def test_sockets_stand_in_the_order_of_their_best_devices():
    one = [gpu(0, node=0, links={3: PCIE}), gpu(3, node=3)]
    other = [gpu(1, node=1, links={2: PCIE}), gpu(2, node=2)]
    ranked = [one[0], other[0], other[1], one[1]]
    assert [[GPU.index(each.device.device_id) for each in group] for group in sockets(ranked)] == [[0, 3], [1, 2]]
    ranked = [other[1], one[0], one[1], other[0]]
    assert [[GPU.index(each.device.device_id) for each in group] for group in sockets(ranked)] == [[2, 1], [0, 3]]
