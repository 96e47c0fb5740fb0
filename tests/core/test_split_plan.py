"""What a plan says: shares, refusals with their numbers, and reasons that were found by planning again."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from itertools import permutations
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poolmgr.core.split import evaluate, objective_of, plan
from poolmgr.core.split_answer import GIB
from poolmgr.core.split_changes import MAX_PLANS
from poolmgr.core.split_missing import missing_bytes
from poolmgr.core.split_render import ratios
from poolmgr.core.split_search import search
from poolmgr.model.plan import (
    DeviceProfile,
    Found,
    LayerProfile,
    ModelProfile,
    Objective,
    Refusal,
    SplitRequest,
    Stage,
)
from tests.core.split_cases import case
from tests.core.split_oracle import plans

LAYERS = (LayerProfile(GIB // 2, GIB // 2, GIB // 10),) * 40 + (LayerProfile(GIB, GIB),)
MODEL = ModelProfile(LAYERS, context_length=16384, context_limit=131072, slots=4)
MIXED = (
    DeviceProfile("GPU-0", 24 * GIB, 1.0e12, GIB),
    DeviceProfile("GPU-1", 24 * GIB, 0.9e12, GIB),
    DeviceProfile("GPU-2", 12 * GIB, 0.36e12, GIB),
)
REQUEST = SplitRequest(MODEL, MIXED, default_hop_seconds=5e-5)


@pytest.mark.behaviour("SPLIT-2")
@given(st.lists(st.integers(1, 2048), min_size=1, max_size=64))
def test_ratios_add_up_to_exactly_one_in_any_order(counts):
    shares = ratios(counts)
    assert sum(shares) == sum(reversed(shares)) == math.fsum(shares) == 1.0
    assert all(abs(share - count / sum(counts)) < 1e-15 for share, count in zip(shares, counts, strict=True))


@pytest.mark.behaviour("SPLIT-2")
def test_every_share_is_within_its_device_and_all_layers_are_in_exactly_one():
    for seed in range(150):
        request = case(Random(seed))
        told = plan(request, search)
        if not told.fits:
            continue
        assert [a.first_layer for a in told.assignments] == [0, *(a.last_layer + 1 for a in told.assignments[:-1])]
        assert told.assignments[-1].last_layer == len(request.model.layers) - 1
        free = {device.device_id: device.vram_free_bytes for device in request.devices}
        for one in told.assignments:
            held = one.weight_bytes + one.kv_bytes + one.overhead_bytes
            assert free[one.device_id] - held == told.headroom_bytes[one.device_id] >= 0
        assert sum(told.ratios) == 1.0 and told.ratios == tuple(one.ratio for one in told.assignments)
        assert told.optimal and told.gap == 0.0


@pytest.mark.behaviour("SPLIT-3")
def test_one_slot_wants_the_least_latency_and_several_the_least_bottleneck():
    assert objective_of(replace(REQUEST, model=replace(MODEL, slots=1))) is Objective.MIN_LATENCY
    assert plan(replace(REQUEST, model=replace(MODEL, slots=0)), search).objective is Objective.MIN_LATENCY
    assert plan(REQUEST, search).objective is Objective.MIN_BOTTLENECK
    assert plan(replace(REQUEST, objective=Objective.BALANCED), search).objective is Objective.BALANCED


def test_no_devices_are_a_refusal_and_no_error():
    told = plan(replace(REQUEST, devices=()), search)
    assert (told.fits, told.refusal.reason, told.refusal.missing_bytes) == (False, Refusal.NO_DEVICES, 0)


def least_missing(request):
    """By trying all: what the nearest of all plans lacks."""
    lacking = []
    for stages in plans(len(request.model.layers), len(request.devices), request.max_devices):
        costs = evaluate(request, [Stage(*stage) for stage in stages])
        lacking.append(sum(max(0, -left) for left in costs.headroom))
    return min(lacking)


@pytest.mark.behaviour("SPLIT-2")
@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**40))
def test_the_missing_bytes_are_what_the_nearest_of_all_plans_lacks(seed):
    request = case(Random(seed), most_devices=3)
    assert missing_bytes(request) == (least_missing(request), True)
    told = plan(replace(request, objective=Objective.BALANCED), search)
    assert told.fits == (least_missing(request) == 0)
    if not told.fits:
        assert told.refusal.reason is Refusal.DOES_NOT_FIT
        assert told.refusal.missing_bytes == least_missing(request) > 0


def test_a_model_larger_than_everything_is_refused_with_at_least_the_bytes_that_all_devices_lack():
    huge = replace(MODEL, layers=(LayerProfile(GIB, GIB, GIB),) * 100)
    told = plan(replace(REQUEST, model=huge), search)
    room = sum(device.vram_free_bytes - device.overhead_bytes for device in MIXED)
    assert told.refusal.missing_bytes >= 200 * GIB - room
    assert "200.0 GiB" in told.refusal.message and "57.0 GiB" in told.refusal.message


def test_the_memory_that_would_make_it_fit_is_named_with_its_device_and_is_the_least():
    request = replace(REQUEST, devices=MIXED[2:], objective=Objective.MIN_LATENCY)
    told = plan(request, search)
    words = next(text for text in told.explanation if "would make it fit" in text)
    # 25 GiB of weights and cache and one of overhead on 12.
    assert words == "14.00 GiB more on GPU-2 would make it fit"
    assert told.refusal.missing_bytes == 14 * GIB - 40 * (GIB / 10 - GIB // 10)
    assert plan(replace(request, devices=(replace(MIXED[2], vram_free_bytes=26 * GIB),)), search).fits


@pytest.mark.behaviour("SPLIT-5")
def test_a_smaller_context_that_would_fit_is_named_and_one_token_more_would_not():
    request = replace(REQUEST, devices=(replace(MIXED[0], vram_free_bytes=25 * GIB),), objective=Objective.MIN_LATENCY)
    told = plan(request, search)
    words = next(text for text in told.explanation if text.startswith("a context of"))
    context = int(re.match(r"a context of (\d+) instead of 16384 would fit", words)[1])
    costs = evaluate(request, [Stage(0, 0, 40)], context)
    assert costs.fits and not evaluate(request, [Stage(0, 0, 40)], context + 1).fits


@pytest.mark.behaviour("SPLIT-5")
def test_each_device_has_a_sentence_on_why_it_is_in_or_out():
    told = plan(replace(REQUEST, objective=Objective.MIN_LATENCY), search)
    tiny = (*MIXED, DeviceProfile("GPU-3", GIB // 2, 1e12, GIB))
    limited = plan(replace(REQUEST, devices=tiny, max_devices=2), search)
    assert any(text.startswith("GPU-0 is in: layers 0 to 37") for text in told.explanation)
    assert "GPU-2 is out: no plan with it is better" in told.explanation
    assert any(text.startswith("GPU-3 is out: 0 bytes beside its overhead") for text in limited.explanation)
    assert any(text.startswith("GPU-2 is out: 2 devices are the most") for text in limited.explanation)
    assert "it is the best plan, proved" in told.explanation


@pytest.mark.behaviour("SPLIT-5")
def test_the_memory_that_would_make_a_plan_better_is_the_least_in_steps_that_does():
    request = replace(REQUEST, objective=Objective.MIN_LATENCY)
    told = plan(request, search)
    words = next(text for text in told.explanation if "more on" in text)
    gib, device = re.match(r"([\d.]+) GiB more on (GPU-\d) would give", words).groups()
    assert device == "GPU-0"

    def latency(extra):
        return search_latency(replace(MIXED[0], vram_free_bytes=24 * GIB + int(extra * GIB)))

    def search_latency(first):
        return plan(replace(request, devices=(first, *MIXED[1:])), search).latency_seconds_per_token

    assert latency(float(gib)) < 0.99 * told.latency_seconds_per_token
    assert latency(float(gib) - 0.25) >= 0.99 * told.latency_seconds_per_token


@pytest.mark.behaviour("SPLIT-5")
def test_where_memory_limits_nothing_no_memory_is_proposed():
    told = plan(replace(REQUEST, objective=Objective.MIN_BOTTLENECK), search)
    assert any(text.startswith("bandwidth and hops limit it") for text in told.explanation)
    assert not any("more on" in text for text in told.explanation)


@pytest.mark.behaviour("SPLIT-5")
@pytest.mark.parametrize("objective", Objective)
@pytest.mark.parametrize("size", [1, 4])
def test_explaining_takes_a_limited_number_of_plans(objective, size):
    asked = []

    def counted(request):
        asked.append(request)
        return search(request)

    model = replace(MODEL, layers=LAYERS * size)
    plan(replace(REQUEST, model=model, objective=objective), counted)
    assert len(asked) <= MAX_PLANS + 3


@pytest.mark.behaviour("SPLIT-4")
def test_a_plan_that_is_not_proved_has_a_gap_and_says_so():
    found = search(replace(REQUEST, objective=Objective.MIN_LATENCY))
    bound = found.lower_bound / 1.25
    request = replace(REQUEST, objective=Objective.MIN_LATENCY)
    told = plan(request, lambda _: replace(found, optimal=False, lower_bound=bound))
    assert not told.optimal and told.gap == pytest.approx(0.25)
    assert "it is not proved to be the best: at most 25.0% worse" in told.explanation
    assert "GPU-2 is out: no plan with it was found to be better" in told.explanation


def test_a_split_that_was_given_and_does_not_fit_is_refused_with_what_it_lacks():
    stages = (Stage(2, 0, 40),)
    told = plan(REQUEST, lambda _: Found(stages, optimal=False, context_length=16384))
    assert told.refusal.reason is Refusal.DOES_NOT_FIT
    assert told.refusal.missing_bytes == -evaluate(REQUEST, stages).headroom[0]


def test_sizes_at_the_limits_of_the_numbers_are_planned_or_refused_and_explained():
    layer = LayerProfile((1 << 60) // 40, 1, (1 << 61) // 40)
    request = SplitRequest(
        replace(MODEL, layers=(layer,) * 40, context_limit=0),
        tuple(DeviceProfile(f"GPU-{i}", 1 << 61, 1.0, i) for i in range(2)),
        default_hop_seconds=1e9,
    )
    for objective in Objective:
        assert plan(replace(request, objective=objective), search).fits
        alone = replace(request, devices=request.devices[1:], objective=objective)
        assert plan(alone, search).fits == (objective is Objective.MAX_CONTEXT)


def test_the_order_in_which_devices_are_given_changes_names_and_nothing_of_the_costs():
    told = plan(REQUEST, search)
    for devices in permutations(MIXED):
        other = plan(replace(REQUEST, devices=devices), search)
        assert other.bottleneck_seconds_per_token == told.bottleneck_seconds_per_token
        assert len(other.assignments) == len(told.assignments)
