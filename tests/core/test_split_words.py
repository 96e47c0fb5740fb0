"""What people are told of a split: every number of it, worked out beside."""

from __future__ import annotations

from dataclasses import replace

import pytest

from poolmgr.core.split import plan
from poolmgr.core.split_answer import GIB, MIB, gap, in_gib, in_milliseconds
from poolmgr.core.split_changes import Budget, half_context, is_worth, least_memory, most_context, unlimited, worded
from poolmgr.core.split_costs import Costs
from poolmgr.core.split_explain import MODEL as COST_MODEL
from poolmgr.core.split_search import search
from poolmgr.errors import ClientError
from poolmgr.model.names import EngineName
from poolmgr.model.plan import (
    MAX_DEVICES,
    MAX_LAYERS,
    DeviceProfile,
    LayerProfile,
    ModelProfile,
    Objective,
    SplitRequest,
)

pytestmark = pytest.mark.behaviour("SPLIT-5")
# Four layers of 5 GiB, of which one is cache.
FOUR = ModelProfile((LayerProfile(4 * GIB, 4 * GIB, GIB),) * 4, context_length=1000, context_limit=4000, slots=4)


def device(number, free, speed=10.0, overhead=1):
    return DeviceProfile(f"gpu{number}", free * GIB, speed * GIB, overhead * GIB)


def asked(*devices, **more):
    return SplitRequest(FOUR, devices, **{"default_hop_seconds": 0.25, **more})


def told(request):
    *lines, last = plan(request, search).explanation
    assert last == COST_MODEL
    return lines


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "0 bytes"), (MIB // 10 - 1, "104856 bytes"), (MIB // 10, "0.1 MiB"), (GIB // 10 - 1, "102.4 MiB"),
        (GIB // 10, "0.1 GiB"), (3 * GIB // 2, "1.5 GiB"), (GIB - 1, "1.0 GiB"),
    ],
)  # fmt: skip
def test_sizes_are_told_in_the_unit_that_suits_them(size, words):
    assert in_gib(size) == words


def test_times_are_told_in_milliseconds_with_three_digits():
    assert [in_milliseconds(seconds) for seconds in (0.0, 0.0012345, 0.25, 2.5)] == [
        "0 ms", "1.23 ms", "250 ms", "2.5e+03 ms",
    ]  # fmt: skip


def test_a_plan_for_the_least_bottleneck_is_told_device_by_device():
    assert told(asked(device(0, 16), device(1, 12), device(2, 3))) == [
        "gpu0 is in: layers 0 to 1, 1.25e+03 ms per token, 5.0 GiB left",
        "gpu1 is in: layers 2 to 3, 1.25e+03 ms per token, 1.0 GiB left",
        "gpu2 is out: 2.0 GiB beside its overhead are less than any layer takes",
        "the plan comes to a slowest stage of 1.25e+03 ms",
        "the slowest stage is on gpu0",
        "bandwidth and hops limit it: with any amount of memory it would be no better by a hundredth",
        "it is the best plan, proved",
    ]


def test_of_stages_that_differ_the_slowest_is_named_and_a_single_layer_is_no_range():
    lines = told(asked(device(0, 16, 10), device(1, 7, 4)))
    assert lines[:2] == [
        "gpu0 is in: layers 0 to 2, 1.75e+03 ms per token, 0 bytes left",
        "gpu1 is in: layer 3, 1.5e+03 ms per token, 1.0 GiB left",
    ]
    assert "the slowest stage is on gpu0" in lines


def test_memory_that_limits_a_latency_is_told_with_what_more_of_it_would_give():
    """15 GiB at 10 GiB/s and 5 at 5, a hop each; alone on the faster 2 seconds and a hop, with 5 GiB more of it."""
    latency = asked(device(0, 16, 10), device(1, 12, 5), objective=Objective.MIN_LATENCY)
    assert told(latency)[2:] == [
        "the plan comes to 3e+03 ms per token",
        "memory limits it: with room for everything everywhere it would be 2.25e+03 ms per token",
        "5.00 GiB more on gpu0 would give 2.25e+03 ms per token",
        "a context of 500 instead of 1000 would give 2.75e+03 ms per token",
        "it is the best plan, proved",
    ]


def test_a_plan_for_the_largest_context_is_told_at_that_context():
    """11 GiB for two layers of 4: 1.5 GiB of cache each. The half of it would be no plan for the largest."""
    lines = told(asked(device(0, 14), device(1, 12), objective=Objective.MAX_CONTEXT))
    assert lines == [
        "gpu0 is in: layers 0 to 1, 1.35e+03 ms per token, 2.0 GiB left",
        "gpu1 is in: layers 2 to 3, 1.35e+03 ms per token, 0 bytes left",
        "the plan comes to a context of 1500 tokens",
        "0.25 GiB more on gpu1 would give a context of 1625 tokens",
        "it is the best plan, proved",
    ]


def test_a_balanced_plan_is_told_in_shares_of_what_is_free():
    """1 of 12 GiB is left; 1.25 of 12.25 with a step more; 2 of 12 with half of the cache."""
    lines = told(asked(device(0, 16), device(1, 12), objective=Objective.BALANCED))
    assert lines[2:] == [
        "the plan comes to 8.3% of each device free",
        "0.25 GiB more on gpu1 would give 10.2% of each device free",
        "a context of 500 instead of 1000 would give 16.7% of each device free",
        "it is the best plan, proved",
    ]


def test_what_does_not_fit_is_told_with_the_largest_layer_each_device_and_what_would_help():
    refused = plan(asked(device(0, 10), device(1, 5)), search)
    assert refused.refusal.missing_bytes == 7 * GIB
    assert refused.refusal.message == (
        "no split fits: weights and cache take 20.0 GiB, 2 devices have 13.0 GiB beside their overhead; 7.0 GiB more "
        "would do where the nearest plan lacks them"
    )
    assert refused.explanation[:-1] == (
        "weights and cache take 20.0 GiB, the largest layer 5.0 GiB; 7.0 GiB are missing in the nearest plan",
        "gpu0: 10.0 GiB free, 1.0 GiB overhead",
        "gpu1: 5.0 GiB free, 1.0 GiB overhead, less than the largest layer takes",
        "11.00 GiB more on gpu0 would make it fit",
    )


def test_a_context_and_more_devices_that_would_fit_are_told():
    lines = told(asked(device(0, 18), device(1, 12), max_devices=1))
    assert lines[-3:] == [
        "3.00 GiB more on gpu0 would make it fit",
        "a context of 250 instead of 1000 would fit",
        "2 devices instead of at most 1 would fit",
    ]
    assert not any("instead of at most" in line for line in told(asked(device(0, 8), device(1, 8), max_devices=2)))
    assert not any("instead of at most" in line for line in told(asked(device(0, 8), device(1, 8), max_devices=1)))


def test_a_device_with_room_for_exactly_the_smallest_layer_is_not_called_too_small():
    lines = told(asked(device(0, 30), device(1, 6, 1.0), objective=Objective.MIN_LATENCY))
    assert "gpu1 is out: no plan with it is better" in lines
    lines = told(asked(device(0, 30), replace(device(1, 6), overhead_bytes=GIB + 1), objective=Objective.MIN_LATENCY))
    assert "gpu1 is out: 5.0 GiB beside its overhead are less than any layer takes" in lines


def test_a_gap_is_the_share_above_the_bound_and_nothing_where_there_is_no_bound():
    costs = Costs((1.0, 2.0), (0, 0), 2.0, 3.0, 0.0, True)
    assert gap(Objective.MIN_LATENCY, costs, 2.0) == 0.5
    assert gap(Objective.MIN_BOTTLENECK, costs, 1.0) == 1.0
    assert gap(Objective.MIN_LATENCY, costs, 4.0) == gap(Objective.MIN_LATENCY, costs, 0.0) == 0.0
    assert gap(Objective.BALANCED, costs, 0.5) == 0.0


def test_better_is_what_is_better_by_more_than_a_hundredth_of_the_amount():
    assert [is_worth(100.0, better) for better in (98.0, 99.0, 100.0, 101.0)] == [True, False, False, False]
    assert [is_worth(-100.0, better) for better in (-102.0, -101.0, -100.0)] == [True, False, False]
    assert is_worth(0.0, -0.1) and not is_worth(0.0, 0.0)


def test_each_objective_has_its_own_words():
    assert [worded(objective, -0.5) for objective in (Objective.BALANCED, Objective.MAX_CONTEXT)] == [
        "50.0% of each device free", "a context of 0 tokens",
    ]  # fmt: skip
    assert worded(Objective.MIN_LATENCY, 0.001) == "1 ms per token"
    assert worded(Objective.MIN_BOTTLENECK, 0.001) == "a slowest stage of 1 ms"


def test_as_many_plans_are_made_for_an_explanation_as_their_size_allows():
    few = asked(*(device(number, 12, 10.0 + number) for number in range(8)))
    assert Budget.of(few, search).left == 64
    assert Budget.of(replace(few, devices=(*few.devices, device(8, 12, 1.0))), search).left == 8
    most = 1 << 54
    huge = replace(few.devices[0], vram_free_bytes=most)
    assert Budget.of(replace(few, devices=(huge,)), search).left == 64
    assert Budget.of(replace(few, devices=(huge, replace(few.devices[1], vram_free_bytes=1))), search).left == 0
    layers = (LayerProfile(most, 0, 1),)
    assert Budget.of(replace(few, model=replace(FOUR, layers=layers)), search).left == 0
    assert Budget.of(replace(few, model=replace(FOUR, layers=(LayerProfile(most, 0),))), search).left == 64


def test_the_last_plan_of_a_budget_is_made_and_none_after_it():
    """11 GiB are missing: 7 steps of 3 GiB are enough, then 3 are not, 5 are, and 4 are."""
    request = asked(device(0, 10))
    found = [least_memory(request, Budget(search, left), None, 3 * GIB) for left in range(5)]
    assert [more and more.extra // GIB for more in found] == [None, 21, 21, 15, 12]


def test_half_a_context_is_asked_about_only_where_there_is_one_and_a_plan_left():
    request = asked(device(0, 30), objective=Objective.MIN_LATENCY)
    budget = Budget(search, 1)
    # 18 GiB instead of 20, at 10 GiB a second, and a hop.
    assert half_context(request, budget, 2.25) == (500, pytest.approx(2.05))
    assert budget.left == 0
    assert half_context(request, budget, 2.25) is None
    assert half_context(request, Budget(search, 1), 2.06) is None
    for tokens in (0, 1):
        short = replace(request, model=replace(FOUR, context_length=tokens))
        assert half_context(short, Budget(search, 1), 2.25) is None
        assert most_context(short, search) == 0
    two = replace(request, model=replace(FOUR, context_length=2))
    assert half_context(two, Budget(search, 1), 2.25) == (1, pytest.approx(2.05))
    assert most_context(two, search) == 1


def test_without_limits_every_device_has_room_for_everything_and_more():
    request = unlimited(asked(device(0, 4), device(1, 50)))
    assert [one.vram_free_bytes for one in request.devices] == [22 * GIB, 51 * GIB]


# Limits of what may be asked.


def problem(**changes):
    with pytest.raises(ClientError) as caught:
        plan(replace(asked(device(0, 30)), **changes), search)
    return caught.value.message, caught.value.numbers


def test_a_limit_is_told_with_what_was_asked_and_may_be_reached():
    one = LayerProfile(2, 1)
    most = replace(FOUR, layers=(one,) * MAX_LAYERS)
    assert plan(replace(asked(device(0, 30)), model=most), search).fits
    assert problem(model=replace(FOUR, layers=(one,) * (MAX_LAYERS + 1))) == (
        "the model has 2049 layers, at most 2048 are planned", {"layers": 2049, "limit": 2048},
    )  # fmt: skip
    assert problem(model=replace(FOUR, layers=())) == ("the model has no layers", {"layers": 0})
    many = tuple(device(number, 30) for number in range(MAX_DEVICES + 1))
    assert plan(replace(asked(), devices=many[:-1]), search).fits
    assert problem(devices=many) == (
        "there are 65 devices, at most 64 are planned", {"devices": 65, "limit": 64},
    )  # fmt: skip
    assert problem(activation_bytes=(1 << 62) + 1) == (
        f"activation_bytes is {(1 << 62) + 1}, it has to be 0 to {1 << 62}", {"value": (1 << 62) + 1, "limit": 1 << 62},
    )  # fmt: skip
    assert problem(default_hop_seconds=1.5e9) == (
        "default_hop_seconds is 1500000000.0, it has to be 0 to 1e+09", {"value": "1500000000.0", "limit": 1e9},
    )  # fmt: skip
    slow = replace(device(0, 30), memory_bandwidth_bytes_per_second=0.5)
    assert problem(devices=(slow,)) == (
        "device 'gpu0': memory_bandwidth_bytes_per_second is 0.5, it has to be 1 to 1e+24",
        {"value": "0.5", "least": 1.0, "limit": 1e24},
    )
    assert problem(model=replace(FOUR, layers=(LayerProfile(1, 2),))) == (
        "layer 0: 2 active bytes are more than its 1 resident", {"active_bytes": 2, "resident_bytes": 1},
    )  # fmt: skip
    assert problem(model=replace(FOUR, slots=(1 << 40) + 1))[1]["limit"] == 1 << 40
    assert problem(model=replace(FOUR, heads=(1 << 20) + 1))[1]["limit"] == 1 << 20


def test_values_at_their_limits_are_planned():
    for speed in (1.0, 1e24):
        edge = replace(device(0, 30), memory_bandwidth_bytes_per_second=speed)
        assert plan(asked(edge, default_hop_seconds=1e9), search).fits
    assert plan(replace(asked(device(0, 30)), model=replace(FOUR, heads=1 << 20, slots=1 << 40)), search).fits


# Equal shards.


def test_a_plan_of_equal_shards_is_told_with_what_limits_it_and_who_is_left_out():
    model = replace(FOUR, heads=8, kv_heads=2, slots=1)
    request = replace(asked(device(0, 20), device(1, 14), device(2, 12), engine=EngineName.VLLM), model=model)
    lines = plan(request, search).explanation
    # 8 GiB of weights and 2 of cache at 10 GiB a second, a hop, and eight exchanges of a quarter of a second.
    assert lines[:3] == (
        "2 equal shares of 8.0 GiB weights and 2.0 GiB cache, 3.25e+03 ms per token",
        "gpu1 has the least left and limits the share: 3.0 GiB",
        "gpu2 out: 8 heads and 2 KV heads are shared by 2, the most that divide and are allowed",
    )
    assert lines[3:] == (
        "a pipeline of 2 × 1 (layers 0 to 2 on gpu0, layer 3 on gpu1) would be faster: 2.5e+03 ms per "
        "token instead of 3.25e+03 ms",
    )


def test_equal_shards_that_do_not_fit_are_told_with_every_number():
    model = replace(FOUR, heads=8, kv_heads=2)
    request = replace(asked(device(0, 10), device(1, 9), engine=EngineName.VLLM), model=model)
    refused = plan(request, search)
    numbers = (
        "an equal share of 2 is 8.0 GiB weights + 2.0 GiB cache + 1.0 GiB overhead, the smallest device gpu1 has "
        "9.0 GiB free"
    )
    assert refused.refusal.missing_bytes == 3 * GIB
    assert refused.refusal.message == numbers
    assert refused.explanation[:2] == (numbers, "3.0 GiB are missing over all of them")
