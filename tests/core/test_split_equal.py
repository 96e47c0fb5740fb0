"""Equal shards: the smallest device decides, heads divide, and a refusal says what would fit."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from poolmgr.core.split import plan
from poolmgr.core.split_equal import divides
from poolmgr.core.split_search import search
from poolmgr.model.names import EngineName
from poolmgr.model.plan import DeviceProfile, LayerProfile, LinkProfile, ModelProfile, Objective, Refusal, SplitRequest

pytestmark = [pytest.mark.behaviour("SPLIT-7"), pytest.mark.behaviour("SPLIT-2")]
MODEL = ModelProfile((LayerProfile(100, 100, 10),) * 10, context_length=100, heads=32, kv_heads=8)


def request(*free, model=MODEL, overhead=5, **more):
    devices = tuple(DeviceProfile(f"gpu{place}", size, 100.0, overhead) for place, size in enumerate(free))
    return SplitRequest(model, devices, **{"engine": EngineName.VLLM, **more})


def test_every_device_of_the_group_has_the_same_share_of_all_layers():
    told = plan(request(800, 600), search)
    assert [(a.device_id, a.first_layer, a.last_layer) for a in told.assignments] == [("gpu0", 0, 9), ("gpu1", 0, 9)]
    assert [(a.weight_bytes, a.kv_bytes, a.overhead_bytes) for a in told.assignments] == [(500, 50, 5)] * 2
    assert told.headroom_bytes == {"gpu0": 245, "gpu1": 45}
    assert (told.ratios, told.tensor_parallel) == ((0.5, 0.5), 2)
    assert told.renderings["VLLM"].args == ("--tensor-parallel-size", "2", "--pipeline-parallel-size", "1")
    assert told.renderings["TGI"].args == ("--num-shard", "2")


@pytest.mark.parametrize("count", [3, 6, 7, 10, 12])
def test_shares_of_any_number_of_devices_add_up_to_exactly_one(count):
    model = replace(MODEL, heads=count, kv_heads=count)
    assert sum(plan(request(*[900] * count, model=model), search).ratios) == 1.0


def test_shares_are_rounded_up():
    told = plan(request(900, 900, 900, model=replace(MODEL, heads=3, kv_heads=3)), search)
    assert {(a.weight_bytes, a.kv_bytes) for a in told.assignments} == {(334, 34)}


def test_a_share_that_is_more_than_the_smallest_device_has_is_refused_with_the_numbers_and_what_would_fit():
    told = plan(request(2000, 500), search)
    assert (told.fits, told.refusal.reason) == (False, Refusal.SHARE_DOES_NOT_FIT)
    assert told.refusal.missing_bytes == 500 + 50 + 5 - 500
    assert "500 bytes weights + 50 bytes cache + 5 bytes overhead" in told.refusal.message
    assert "gpu1 has 500 bytes free" in told.refusal.message
    assert "1 device would fit: gpu0" in told.refusal.message


def test_of_fewer_devices_that_would_fit_the_most_are_proposed_and_no_others():
    told = plan(request(2000, 2000, 270, 270), search)
    proposed = [text for text in told.explanation if re.match(r"\d devices? would fit", text)]
    assert proposed == ["2 devices would fit: gpu0, gpu1"]
    assert told.refusal.message.endswith("; 2 devices would fit: gpu0, gpu1")


def test_where_fewer_devices_do_not_fit_either_a_pipeline_is_proposed():
    told = plan(request(900, 500), search)
    assert "a pipeline of 2 × 1 (layers 0 to 6 on gpu0, layers 7 to 9 on gpu1) would fit" in told.explanation


def test_a_smaller_context_that_would_fit_is_proposed_and_one_token_more_would_not_fit():
    told = plan(request(540, 540), search)
    assert "a context of 70 instead of 100 would fit" in told.explanation
    asked = [plan(request(540, 540, model=smaller(tokens)), search).fits for tokens in (70, 71)]
    assert asked == [True, False]


def smaller(tokens):
    cache = -(-10 * tokens // 100)
    return replace(MODEL, context_length=tokens, layers=(LayerProfile(100, 100, cache),) * 10)


def test_groups_in_a_pipeline_are_proposed_where_neither_alone_fits():
    told = plan(request(400, 400, 250, 250), search)
    assert told.refusal.reason is Refusal.SHARE_DOES_NOT_FIT
    assert any("a pipeline of 2 × 2 (layers 0 to" in text and "on gpu0+gpu1" in text for text in told.explanation)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "count", "allowed"),
    [
        (32, 8, 4, True),
        (32, 8, 16, True),
        (32, 8, 3, False),
        (32, 8, 64, False),
        (12, 8, 3, False),
        (24, 8, 12, False),
        (40, 0, 5, True),
        (0, 0, 1, True),
        (0, 0, 2, False),
    ],
)
def test_devices_divide_the_heads_and_the_kv_heads_or_are_a_multiple_of_them(heads, kv_heads, count, allowed):
    assert divides(replace(MODEL, heads=heads, kv_heads=kv_heads), count) is allowed


def test_more_devices_than_kv_heads_keep_whole_ones_each():
    told = plan(request(*[900] * 4, model=replace(MODEL, kv_heads=2)), search)
    assert {(a.weight_bytes, a.kv_bytes) for a in told.assignments} == {(250, 50)}


def test_of_a_number_that_does_not_divide_those_with_the_most_room_are_used_and_the_rest_is_named():
    told = plan(request(600, 700, 800), search)
    assert [a.device_id for a in told.assignments] == ["gpu1", "gpu2"]
    assert any(text.startswith("gpu0 out: 32 heads and 8 KV heads") for text in told.explanation)


def test_heads_that_forbid_the_number_that_would_have_room_are_the_reason():
    told = plan(request(400, 400, 400), search)
    assert told.refusal.reason is Refusal.NOT_DIVISIBLE
    assert told.refusal.message.startswith("32 heads and 8 KV heads cannot be divided by 3")
    unknown = plan(request(600, 600, model=replace(MODEL, heads=0)), search)
    assert unknown.refusal.reason is Refusal.NOT_DIVISIBLE
    assert "the number of its heads is unknown" in unknown.refusal.message


def test_at_most_so_many_devices_as_are_asked_for():
    told = plan(request(700, 1200, 800, 2000, max_devices=2), search)
    assert [a.device_id for a in told.assignments] == ["gpu1", "gpu3"]


def test_the_largest_context_is_that_of_the_smallest_share():
    model = replace(MODEL, context_limit=1000)
    told = plan(request(800, 600, model=model, objective=Objective.MAX_CONTEXT), search)
    # 95 bytes for the cache of ten layers' halves: 19 bytes a layer, 190 tokens.
    assert told.context_length == 190
    assert told.headroom_bytes["gpu1"] == 0


def test_time_is_that_of_the_slowest_device_with_two_exchanges_a_layer_over_the_slowest_link():
    asked = request(800, 800, default_hop_seconds=0.5)
    asked = replace(asked, links=(LinkProfile("gpu0", "gpu1", 0.01, 1e9),))
    told = plan(asked, search)
    assert told.latency_seconds_per_token == pytest.approx(550 / 100 + 0.5 + 2 * 10 * 0.01)
    assert told.bottleneck_seconds_per_token == told.latency_seconds_per_token


def test_a_pipeline_that_is_faster_is_proposed_beside_the_plan():
    slow = replace(request(1200, 1200), default_hop_seconds=0.5)
    # 11.5 seconds instead of 5.5 + 0.5 and twenty exchanges of half a second.
    assert any(text.startswith("gpu0 alone would be faster: 1.15e+04 ms") for text in plan(slow, search).explanation)
    split = plan(replace(slow, objective=Objective.MIN_BOTTLENECK), search)
    assert any(text.startswith("a pipeline of 2 × 1 (layers 0 to 4 on gpu0") for text in split.explanation)
    quick = replace(slow, default_hop_seconds=0.0, objective=Objective.MIN_LATENCY)
    assert not any("would be faster" in text for text in plan(quick, search).explanation)
