"""The cost model's numbers, and the pieces of the searches, each on its own.

The first to be run of the tests of splits: what is wrong here makes searches run for long.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf
from random import Random

import pytest

from poolmgr.core import split_latency, split_missing, split_sweep
from poolmgr.core.split_answer import GIB
from poolmgr.core.split_bounds import SLACK, bottleneck_bound, latency_bound
from poolmgr.core.split_costs import HOST, Costs, Tables, at_context, evaluate, evenness_of, kv_bytes_at
from poolmgr.core.split_missing import missing_bytes
from poolmgr.core.split_search import _above, _between, most_headroom, search
from poolmgr.core.split_sweep import Limits, Reach, Sweep, _bits, _runs, largest
from poolmgr.model.plan import (
    DeviceProfile,
    LayerProfile,
    LinkProfile,
    ModelProfile,
    Objective,
    SplitRequest,
    Stage,
)
from tests.core.split_cases import case

pytestmark = pytest.mark.behaviour("SPLIT-3")
# Four layers of 5 GiB, of which one is cache.
FOUR = ModelProfile((LayerProfile(4 * GIB, 4 * GIB, GIB),) * 4, context_length=1000, context_limit=4000, slots=4)


def device(number, free, speed=10.0, overhead=1):
    return DeviceProfile(f"gpu{number}", free * GIB, speed * GIB, overhead * GIB)


def asked(*devices, **more):
    return SplitRequest(FOUR, devices, **{"default_hop_seconds": 0.25, **more})


def test_a_cache_grows_with_the_context_up_to_its_window_and_is_rounded_up():
    layer = LayerProfile(0, 0, 10, 0)
    assert [kv_bytes_at(layer, 4, tokens) for tokens in (1, 2, 4, 5, 8)] == [3, 5, 10, 13, 20]
    slides = replace(layer, kv_window=4)
    assert [kv_bytes_at(slides, 2, tokens) for tokens in (1, 4, 5, 100)] == [5, 20, 20, 20]
    assert [kv_bytes_at(slides, 8, tokens) for tokens in (1, 4, 8)] == [3, 10, 10]
    unknown = replace(FOUR, context_length=0)
    assert at_context(unknown, 5) is unknown and at_context(FOUR, 0) is FOUR and at_context(FOUR, 1000) is FOUR


def test_the_share_that_is_left_is_of_what_is_free_and_none_of_nothing():
    assert evenness_of(3, DeviceProfile("a", 12, 1.0)) == 0.25
    assert evenness_of(-1, DeviceProfile("a", 0, 1.0)) == 0.0
    assert evenness_of(1, DeviceProfile("a", 1, 1.0)) == 1.0


def test_hops_and_sums_are_those_of_the_stages():
    links = (LinkProfile("gpu0", "gpu1", 0.5, 4.0),)
    request = asked(device(0, 20), device(1, 20, 5.0), device(2, 20), links=links, activation_bytes=8)
    costs = evaluate(request, (Stage(1, 0, 0), Stage(0, 1, 2), Stage(2, 3, 3)))
    assert costs.seconds == (1.25, 1.0 + 0.5 + 2.0, 0.75)
    assert (costs.bottleneck, costs.latency, costs.headroom) == (3.5, 5.5, (14 * GIB, 9 * GIB, 14 * GIB))
    assert (costs.fits, costs.evenness) == (True, 0.45)
    assert evaluate(request, ()) == Costs((), (), 0.0, 0.0, 0.0, False)
    assert evaluate(request, (Stage(0, 0, 3),), 500).headroom == (GIB,)


def test_only_devices_that_nothing_tells_apart_are_alike():
    base = device(0, 12)
    others = [
        replace(base, device_id="b"),
        replace(base, device_id="c", overhead_bytes=2 * GIB),
        replace(base, device_id="d", vram_free_bytes=13 * GIB),
        replace(base, device_id="e", memory_bandwidth_bytes_per_second=9.0 * GIB),
        replace(base, device_id="f"),
    ]
    tables = Tables(asked(base, *others))
    assert tables.alike == [-1, 0, -1, -1, -1, 1]
    assert tables.states() == 4 * 2**3
    assert list(tables.usable(0)) == [0, 2, 3, 4] and list(tables.usable(0b11)) == [2, 3, 4, 5]
    linked = Tables(asked(base, *others, links=(LinkProfile("gpu0", "e", 0.1, 1.0),)))
    assert linked.alike == [-1, -1, -1, -1, -1, 1]
    assert linked.states() == 3 * 2**4 * 5
    among = Tables(asked(base, others[0], links=(LinkProfile("gpu0", "b", 0.1, 1.0),)))
    assert among.alike == [-1, 0]


def test_the_most_devices_are_the_least_of_layers_devices_and_what_is_allowed():
    five = [device(number, 12) for number in range(5)]
    assert [Tables(asked(*five, max_devices=most)).most_devices for most in (0, 1, 3, 9)] == [4, 1, 3, 4]
    assert Tables(asked(*five[:3])).most_devices == 3


# Numbers are searched for by halving.


def test_the_largest_number_that_is_allowed_is_found_up_to_the_highest():
    for high in (0, 1, 2, 3, 4, 5, 1 << 60):
        for most in range(-1, 8):
            asked_for = []

            def allowed(number, most=most, asked_for=asked_for):
                asked_for.append(number)
                assert len(asked_for) <= 61
                return number <= most

            assert largest(allowed, high) == min(most, high)
    assert largest(lambda number: True, -1) == -1


def test_the_middle_of_two_numbers_is_between_them_and_reaches_the_one_that_it_may():
    low, high = 1.0, 1.0 + 2**-52
    assert (_between(low, high), _above(low, high)) == (low, high)
    assert _between(1.0, 1.0 + 2**-50) == _above(1.0, 1.0 + 2**-50) == 1.0 + 2**-51
    assert 0.0 < _between(0.0, 1.0) < 1.0 and _between(-0.0, 1.0) > 0.0
    assert _between(2.0, 4.0) == _above(2.0, 4.0) == 3.0


def test_the_most_headroom_is_found_in_a_limited_number_of_attempts():
    for most in (5, 6, 7, 40, 99, 100):
        tried = []

        def attempt(wanted, most=most, tried=tried):
            tried.append(wanted)
            return most if wanted <= most else None

        assert most_headroom(5, 100, attempt) == most
        assert tried[0] == 6 and len(tried) <= 9
    assert most_headroom(5, 5, lambda wanted: pytest.fail("there is no more")) == 5
    assert most_headroom(5, 1 << 60, lambda wanted: wanted if wanted <= 1 << 50 else None) == 1 << 50


def test_bits_and_runs_of_bits_are_told_from_the_lowest():
    assert list(_bits(0b1011001)) == [0, 3, 4, 6]
    assert list(_runs(0b1011001)) == [(0, 0), (3, 4), (6, 6)]
    assert list(_runs(0b111)) == [(0, 2)] and list(_runs(0)) == list(_bits(0)) == []


# How far a stage may go.


def reach(request=None, **limits):
    return Reach(Tables(request or asked(device(0, 16), device(1, 4))), Limits(2, **limits))


def test_a_stage_goes_as_far_as_memory_and_each_limit_allow():
    assert [reach().end(HOST, 0, first) for first in range(4)] == [3, 4, 4, 4]
    assert [reach().end(HOST, 1, first) for first in range(4)] == [0, 1, 2, 3]
    # Half a second a layer, and a hop.
    for seconds, end in ((0.7, 0), (0.75, 1), (1.24, 1), (1.25, 2), (inf, 3)):
        assert reach(seconds=seconds).end(HOST, 0, 0) == end
    for headroom, end in ((0, 3), (1, 2), (5 * GIB, 2), (5 * GIB + 1, 1), (15 * GIB, 0), (16 * GIB, 0)):
        assert reach(headroom=headroom).end(HOST, 0, 0) == end
    for evenness, end in ((0.0, 3), (0.3, 2), (0.3125, 2), (0.32, 1), (0.625, 1), (0.63, 0), (0.95, 0)):
        assert reach(evenness=evenness).end(HOST, 0, 0) == end


def test_what_a_limit_refused_is_told_with_its_value_and_what_memory_refused_is_not():
    limited = reach(seconds=1.0)
    assert limited.refused(HOST, 0, 0, 1) == (1.25, -1.0)
    assert reach().refused(HOST, 0, 0, 3) == (inf, -1.0)
    assert reach().refused(HOST, 0, 1, 4) == (inf, -1.0)
    assert reach(evenness=0.5).refused(HOST, 0, 0, 1) == (inf, 0.3125)
    assert reach(headroom=1).refused(HOST, 0, 0, 2) == (inf, -1.0)


def test_a_sweep_names_the_nearest_of_what_it_refused():
    tables = Tables(asked(device(0, 11), device(1, 12)))
    assert Sweep(tables, Limits(2)).stages == (Stage(0, 0, 1), Stage(1, 2, 3))
    failed = Sweep(tables, Limits(2, seconds=1.0))
    assert (failed.found, failed.stages, failed.refused_seconds) == (False, (), 1.25)
    uneven = Sweep(tables, Limits(2, evenness=0.1))
    assert (uneven.found, uneven.refused_evenness) == (False, 1 / 12)
    assert not Sweep(tables, Limits(1)).found
    assert Sweep(tables, Limits(2)).refused_seconds == inf


# Bounds of what is not proved.


def nearly(value):
    return pytest.approx(value * (1.0 - SLACK), rel=1e-15)


def test_no_stage_is_faster_than_the_work_over_all_devices_or_the_largest_layer_on_the_fastest():
    assert bottleneck_bound(Tables(asked(device(0, 30), device(1, 30, 5.0)))) == nearly(20 / 15 + 0.25)
    assert bottleneck_bound(Tables(asked(device(0, 30), device(1, 30, 5.0), max_devices=1))) == nearly(20 / 10 + 0.25)
    many = asked(*(device(number, 30) for number in range(6)))
    # Four layers: no more than four devices.
    assert bottleneck_bound(Tables(many)) == nearly(20 / 40 + 0.25)
    large = replace(FOUR, layers=(LayerProfile(16 * GIB, 16 * GIB), LayerProfile(GIB, GIB)))
    assert bottleneck_bound(Tables(replace(many, model=large))) == nearly(16 / 10 + 0.25)
    links = tuple(LinkProfile(f"gpu{a}", f"gpu{b}", 0.0, 1e30) for a in range(2) for b in range(a))
    linked = asked(device(0, 30, 1000.0), device(1, 30, 1000.0), links=links)
    assert bottleneck_bound(Tables(linked)) == nearly(0.25)  # the first stage's hop


def test_no_sum_is_less_than_with_the_densest_layers_on_the_fastest_devices():
    one = asked(device(0, 30, 5.0), device(1, 30))
    assert latency_bound(Tables(one)) == nearly(20 / 10 + 0.25)
    # 10 GiB on the faster one, 10 on the other, two hops.
    two = asked(device(0, 30, 5.0), device(1, 11))
    assert latency_bound(Tables(two)) == nearly(10 / 10 + 10 / 5 + 0.25)
    # 12 on the one and 8 on the other: a part of a layer, and neither has room for all.
    parts = asked(device(0, 15, 5.0), device(1, 13))
    assert latency_bound(Tables(parts)) == nearly(12 / 10 + 8 / 5 + 2 * 0.25)
    sparse = (LayerProfile(10 * GIB, GIB), LayerProfile(10 * GIB, 10 * GIB), LayerProfile(0, 0))
    mixed = replace(asked(device(0, 21, 5.0), device(1, 11)), model=replace(FOUR, layers=sparse))
    assert latency_bound(Tables(mixed)) == nearly(10 / 10 + 1 / 5 + 0.25)
    assert latency_bound(Tables(asked(device(0, 0), device(1, 0)))) == 0.0


def test_a_bound_of_a_sum_has_a_hop_for_each_device_that_is_needed_by_the_fastest_link():
    link = (LinkProfile("gpu0", "gpu1", 0.0625, 1e30),)
    three = asked(device(0, 8), device(1, 9), device(2, 8), links=link)
    assert latency_bound(Tables(three)) == nearly(20 / 10 + 0.25 + 2 * 0.0625)


@pytest.mark.behaviour("SPLIT-4")
def test_what_counts_as_small_enough_to_be_proved():
    def tables(count, layers, linked=False):
        links = (LinkProfile("gpu0", "gpu1", 0.125, 1.0),) if linked else ()
        model = replace(FOUR, layers=(LayerProfile(1, 1),) * layers)
        return Tables(replace(asked(*(device(n, 30 + n) for n in range(count)), links=links), model=model))

    assert split_sweep.is_exact(tables(16, 2)) and not split_sweep.is_exact(tables(17, 2))
    # Sets, devices, half of the pairs of ends; half of the devices are used already, with links half of that.
    assert split_latency.is_exact(tables(8, 256)) and not split_latency.is_exact(tables(8, 257))
    assert split_latency.is_exact(tables(8, 128, linked=True)) and not split_latency.is_exact(
        tables(8, 129, linked=True)
    )


@pytest.mark.behaviour("SPLIT-4")
def test_a_bounded_search_finds_the_best_value_of_all_requests_that_are_small(monkeypatch):
    asked_for = [replace(case(Random(seed)), objective=each) for seed in range(50) for each in Objective]
    proved = [search(request) for request in asked_for]
    monkeypatch.setattr(split_latency, "EXACT_LABELS", -1)
    monkeypatch.setattr(split_sweep, "EXACT_STATES", 0)
    same = 0
    for request, best in zip(asked_for, proved, strict=True):
        found = search(request)
        assert value(request, found) == value(request, best)
        same += found.stages == best.stages
    assert same >= 0.8 * len(asked_for)


def value(request, found):
    costs = evaluate(request, found.stages, found.context_length)
    return {
        Objective.MIN_LATENCY: costs.latency,
        Objective.MIN_BOTTLENECK: costs.bottleneck,
        Objective.BALANCED: costs.evenness,
        Objective.MAX_CONTEXT: found.context_length,
    }[request.objective]


# What is missing.


@pytest.mark.behaviour("SPLIT-2")
def test_a_device_with_exactly_no_room_lacks_whatever_it_is_given():
    assert missing_bytes(asked(device(0, 1), device(1, 1))) == (20 * GIB, True)
    assert missing_bytes(asked(device(0, 0))) == (21 * GIB, True)
    assert missing_bytes(asked(device(0, 21))) == (0, True)
    # A layer beyond what fits on the first, and the rest on the second: 1 and 0; the other way round 4 and 0.
    assert missing_bytes(asked(device(0, 10), device(1, 11))) == (GIB, True)
    assert missing_bytes(asked(device(0, 10), device(1, 11), max_devices=1)) == (10 * GIB, True)


@pytest.mark.behaviour("SPLIT-2")
def test_beyond_the_sets_that_are_all_looked_at_it_is_said_and_still_near(monkeypatch):
    requests = [case(Random(seed), most_devices=4) for seed in range(60)]
    least = [missing_bytes(request)[0] for request in requests]
    monkeypatch.setattr(split_missing, "EXACT_STATES", 0)
    told = [missing_bytes(request) for request in requests]
    assert not any(proved for _, proved in told)
    assert [size for size, _ in told] == least
    monkeypatch.setattr(split_missing, "BEAM", 1)
    assert all(missing_bytes(request)[0] >= size for request, size in zip(requests, least, strict=True))
