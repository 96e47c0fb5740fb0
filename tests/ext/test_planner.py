"""The native planner by example: ties, edges, hostile numbers, and what it does when a search would be too long."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import combinations

import pytest
from poolmgr_ext import planner as native

from poolmgr.adapters.planning import NativePlanner
from poolmgr.core.split_costs import evaluate
from poolmgr.errors import ClientError, Reason
from poolmgr.model.plan import (
    DeviceProfile,
    Found,
    LayerProfile,
    LinkProfile,
    ModelProfile,
    Objective,
    SplitRequest,
    Stage,
)
from tests.ext.planner_cases import CARDS, GIB, judged, request_of

pytestmark = pytest.mark.behaviour("SPLIT-4")

LATENCY, BOTTLENECK, CONTEXT, BALANCED = (
    Objective.MIN_LATENCY, Objective.MIN_BOTTLENECK, Objective.MAX_CONTEXT, Objective.BALANCED,
)  # fmt: skip
SECONDS = (LATENCY, BOTTLENECK)


def model(*sizes: int, kv: int = 0, context: int = 0, limit: int = 0) -> ModelProfile:
    return ModelProfile(tuple(LayerProfile(size, size, kv) for size in sizes), "", context, limit)


def devices(*free_and_speed: tuple[int, float]) -> tuple[DeviceProfile, ...]:
    return tuple(DeviceProfile(f"GPU-{i}", free, speed) for i, (free, speed) in enumerate(free_and_speed))


def ask(request: SplitRequest, **changes: object) -> Found:
    return NativePlanner().search(replace(request, **changes))  # type: ignore[arg-type]


def shares(found: Found) -> list[tuple[int, int]]:
    """Device and number of layers of each stage."""
    return [(stage.device, stage.last_layer - stage.first_layer + 1) for stage in found.stages]


def different(count: int, seed: int, total: int) -> tuple[DeviceProfile, ...]:
    """Devices of which no two are alike, with half as much room again as a model of `total` bytes needs."""
    rng = random.Random(seed)
    return tuple(
        DeviceProfile(f"GPU-{i}", int(total * 1.5 / count * rng.uniform(0.5, 1.5)), rng.uniform(2e11, 3e12), i)
        for i in range(count)
    )


EIGHTY = ModelProfile((*(LayerProfile(GIB // 2, GIB // 2, GIB // 16),) * 80, LayerProfile(GIB, GIB)), "", 8192, 131072)
EIGHTY_BYTES = sum(layer.resident_bytes + layer.kv_bytes for layer in EIGHTY.layers)


# What the objectives mean, and their ties


def test_the_least_sum_uses_one_device_where_the_least_bottleneck_uses_two():
    request = SplitRequest(model(4, 4, 4, 4), devices((16, 2.0), (16, 1.9)), default_hop_seconds=0.5)
    assert shares(ask(request, objective=LATENCY)) == [(0, 4)]
    assert shares(ask(request, objective=BOTTLENECK)) == [(0, 2), (1, 2)]


def test_without_an_objective_one_slot_gets_the_least_sum_and_several_the_least_bottleneck():
    request = SplitRequest(model(4, 4), devices((8, 1.0), (8, 1.0)))
    assert len(ask(request).stages) == 1
    assert len(ask(request, model=replace(request.model, slots=2)).stages) == 2


@pytest.mark.behaviour("SPLIT-3")
def test_among_equal_bottlenecks_fewer_devices_win():
    request = SplitRequest(model(1, 1, 8), devices((9, 1.0), (9, 1.0), (9, 1.0)), objective=BOTTLENECK)
    assert shares(ask(request)) == [(0, 2), (1, 1)]


@pytest.mark.behaviour("SPLIT-3")
@pytest.mark.parametrize("objective", SECONDS)
def test_one_slow_device_wins_over_three_fast_ones_where_all_take_as_long(objective):
    weightless = ModelProfile((LayerProfile(1, 0),) * 3)
    request = SplitRequest(weightless, devices((1, 9.0), (1, 9.0), (1, 9.0), (3, 1.0)), objective=objective)
    assert shares(ask(request)) == [(3, 3)]


@pytest.mark.behaviour("SPLIT-3")
def test_then_more_headroom_in_the_smallest_share_wins():
    request = SplitRequest(model(4, 4), devices((5, 1.0), (7, 1.0), (6, 1.0)), objective=BOTTLENECK)
    assert shares(ask(request)) == [(1, 1), (2, 1)]


@pytest.mark.behaviour("SPLIT-3")
def test_sums_that_a_later_stage_makes_equal_are_a_tie():
    """A third of a second more before 2**53 seconds is no more in float64, and leaves more headroom."""
    having = devices((8, 40.0), (11, 30.0), (2**53 + 3, 1.0))
    request = SplitRequest(model(4, 4, 4, 2**53), having, objective=LATENCY)
    assert shares(ask(request)) == [(0, 1), (1, 2), (2, 1)]


@pytest.mark.behaviour("SPLIT-3")
def test_then_the_first_devices_in_the_first_order_win():
    request = SplitRequest(model(4, 4), devices((5, 1.0), (6, 2.0), (6, 2.0), (6, 2.0)), objective=BOTTLENECK)
    assert shares(ask(request)) == [(1, 1), (2, 1)]


@pytest.mark.behaviour("SPLIT-3")
def test_then_earlier_stages_take_as_many_layers_as_they_can():
    request = SplitRequest(model(2, 1, 0, 1, 2), devices((3, 1.0), (4, 1.0)), objective=BOTTLENECK)
    assert shares(ask(request)) == [(0, 3), (1, 2)]


def test_the_largest_context_is_found_to_the_token():
    request = SplitRequest(model(10, 10, kv=5, context=100, limit=10_000), devices((62, 1.0)), objective=CONTEXT)
    found = ask(request)
    assert found.context_length == 420
    assert ask(request, devices=devices((61, 1.0))).context_length == 400
    assert ask(request, model=replace(request.model, context_limit=300)).context_length == 300
    assert ask(request, devices=devices((20, 1.0))) == Found(context_length=0)


def test_the_most_even_plan_leaves_every_device_the_same_share():
    request = SplitRequest(model(*(1,) * 12), devices((8, 1.0), (16, 1.0)), objective=BALANCED)
    assert shares(ask(request)) == [(0, 4), (1, 8)]


def test_a_cheap_link_is_worth_another_device_order():
    three = devices((4, 1.0), (4, 1.0), (4, 1.0))
    links = (LinkProfile("GPU-0", "GPU-2", 0.0, 1e9), LinkProfile("GPU-2", "GPU-1", 0.0, 1e9))
    request = SplitRequest(model(4, 4, 4), three, links, default_hop_seconds=9.0, objective=LATENCY)
    assert [stage.device for stage in ask(request).stages] == [0, 2, 1]


def test_with_links_a_stage_may_take_less_so_that_a_cheap_way_stays_open():
    """The longest first stage would leave nothing for the device by which the last is cheap to reach."""
    three = devices((2, 1.0), (1, 1.0), (5, 1.0))
    links = (
        LinkProfile("GPU-0", "GPU-1", 0.0, 1e9), LinkProfile("GPU-1", "GPU-2", 0.0, 1e9),
        LinkProfile("GPU-0", "GPU-2", 10.0, 1e9),
    )  # fmt: skip
    layers = tuple(LayerProfile(size, 0) for size in (1, 1, 5))
    request = SplitRequest(ModelProfile(layers), three, links, 1.0, objective=BOTTLENECK)
    assert shares(ask(request)) == [(0, 1), (1, 1), (2, 1)]


# Edges and hostile numbers


@pytest.mark.parametrize("objective", Objective)
def test_what_does_not_fit_is_proved_not_to(objective):
    request = SplitRequest(model(5, 5, 5, context=8), devices((9, 1.0), (9, 2.0)), objective=objective)
    assert ask(request) == Found(context_length=0 if objective is CONTEXT else 8)
    assert ask(request, devices=()).stages == ()


@pytest.mark.parametrize("objective", Objective)
@pytest.mark.parametrize("count", [1, 3])
def test_layers_without_bytes_fit_a_device_without_room_to_spare(objective, count):
    request = SplitRequest(model(0, 0, 0), (DeviceProfile("a", 7, 1.0, 7),) * count, objective=objective)
    assert shares(ask(request)) == [(0, 3)]


HUGE = 1 << 62
HOSTILE = [
    (model(HUGE), devices((HUGE, 1e-300)), 0.0),
    (model(HUGE // 2, HUGE // 2), devices((HUGE // 2, 1e-300), (HUGE // 2, 1e300)), 1e300),
    (model(HUGE // 2 - 1, 1, HUGE // 2), devices((HUGE // 2 - 1, 5e-324), (HUGE // 2 + 1, 1.7e308)), 5e-324),
    (model(1, 2, 3), devices((3, 5e-324), (3, 5e-324), (6, 5e-324)), 1.7e308),
    (model(1, 2, 3), devices((3, 1.7e308), (3, 1.0), (6, 1e-300)), 1.7e308),
    (model(*(0,) * 5), devices((0, 1.0), (0, 1.0), (HUGE, 1e-300)), 0.0),
    (model(1, HUGE - 7, 1), devices((1, 1.0), (HUGE - 8, 3.0), (7, 1e300)), -0.0),
    (model(3, 3, 3, kv=1, context=1, limit=HUGE), devices((HUGE // 2, 1.0), (HUGE // 2, 1.0)), 0.0),
]


@pytest.mark.parametrize("objective", Objective)
@pytest.mark.parametrize(("asked", "having", "hop"), HOSTILE)
def test_extreme_numbers_are_counted_with_exactly(asked, having, hop, objective):
    request = SplitRequest(asked, having, default_hop_seconds=hop, objective=objective)
    assert ask(request) == judged(request)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "changes",
    [
        {"devices": devices((1, 0.0))},
        {"devices": devices((1, -1.0))},
        {"devices": devices((1, NAN))},
        {"devices": devices((1, INF))},
        {"devices": devices((-1, 1.0))},
        {"devices": devices((HUGE, 1.0), (1, 1.0))},
        {"devices": devices((1 << 64, 1.0))},
        {"devices": devices(*((1, 1.0),) * 65)},
        {"devices": (DeviceProfile("a", 1, 1.0, -1),)},
        {"default_hop_seconds": NAN},
        {"default_hop_seconds": INF},
        {"default_hop_seconds": -1.0},
        {"max_devices": -1},
        {"model": model()},
        {"model": model(-1)},
        {"model": model(HUGE, 1)},
        {"model": model(HUGE, kv=HUGE)},
        {"model": model(1 << 70)},
        {"model": model(*(1,) * 2049)},
        {"model": model(1, context=-1)},
        {"model": model(1, context=1, limit=HUGE + 1)},
        {"links": (LinkProfile("GPU-0", "GPU-9", 0.0, 1.0),)},
        {"links": (LinkProfile("GPU-0", "GPU-1", NAN, 1.0),)},
        {"links": (LinkProfile("GPU-0", "GPU-1", 0.0, 0.0),)},
        {"links": (LinkProfile("GPU-0", "GPU-1", -1.0, 1.0),)},
    ],
)
@pytest.mark.parametrize("objective", Objective)
def test_numbers_that_cannot_be_counted_with_are_refused(changes, objective):
    request = SplitRequest(model(1, 1), devices((1, 1.0), (1, 1.0)), objective=objective)
    assert len(ask(request).stages) == 2
    with pytest.raises(ClientError) as raised:
        ask(request, **changes)
    assert raised.value.reason is Reason.INVALID_ARGUMENT


# How much is searched


def steps(request: SplitRequest, most: int = native.MAX_STEPS) -> int:
    layers = request.model.layers
    packed = native.Layers(
        [layer.resident_bytes for layer in layers], [layer.active_bytes for layer in layers],
        [layer.kv_bytes for layer in layers], [layer.kv_window for layer in layers],
    )  # fmt: skip
    profiles = [
        (device.vram_free_bytes, device.overhead_bytes, device.memory_bandwidth_bytes_per_second)
        for device in request.devices
    ]
    places = {device.device_id: i for i, device in enumerate(request.devices)}
    links = [(places[link.device_a], places[link.device_b], link.latency_seconds) for link in request.links]
    objective = {LATENCY: native.MIN_LATENCY, BOTTLENECK: native.MIN_BOTTLENECK, CONTEXT: native.MAX_CONTEXT,
                 BALANCED: native.BALANCED}[request.objective or LATENCY]  # fmt: skip
    context, limit = request.model.context_length, request.model.context_limit
    return native.search(packed, profiles, links, request.default_hop_seconds, objective, 0, context, limit, most)[4]


@pytest.mark.parametrize(("count", "most"), [(3, 6_000), (8, 100_000), (16, 10_000_000)])
@pytest.mark.parametrize("objective", Objective)
def test_a_model_of_eighty_layers_is_proved_in_few_steps(objective, count, most):
    """A step is about a nanosecond: far below 30 µs for three devices, 1 ms for eight, 200 ms for sixteen."""
    request = SplitRequest(EIGHTY, different(count, 5, EIGHTY_BYTES), default_hop_seconds=1e-5, objective=objective)
    assert ask(request).optimal
    assert ask(request).stages
    assert steps(request) <= most


@pytest.mark.parametrize("objective", Objective)
def test_devices_that_nothing_tells_apart_cost_no_search(objective):
    alike = tuple(DeviceProfile(f"GPU-{i}", 2 * GIB, 1e12) for i in range(64))
    request = SplitRequest(EIGHTY, alike, default_hop_seconds=1e-5, objective=objective)
    found = ask(request)
    assert found.optimal and [stage.device for stage in found.stages] == list(range(len(found.stages)))
    assert steps(request) < 1_000_000


def scattered(count: int, layers: int, linked: bool) -> SplitRequest:
    """Nothing alike, nothing even: the worst there is to search."""
    rng = random.Random(7)
    sizes = [rng.randrange(GIB // 3, GIB) for _ in range(layers)]
    profiles = tuple(LayerProfile(size, int(size * rng.random()), rng.randrange(GIB // 9)) for size in sizes)
    having = different(count, 3, sum(sizes))
    links = tuple(
        LinkProfile(a.device_id, b.device_id, rng.uniform(1e-6, 1e-4), rng.uniform(1e9, 6e10))
        for a, b in combinations(having, 2)
    )
    return SplitRequest(ModelProfile(profiles, "", 8192, 131072), having, links if linked else (), 1e-5, 8192)


@pytest.mark.parametrize("objective", Objective)
@pytest.mark.parametrize(("count", "linked"), [(16, False), (8, True)])
def test_sixteen_different_devices_and_eight_with_links_are_proved(count, linked, objective):
    request = replace(scattered(count, 81, linked), objective=objective)
    found = ask(request)
    assert found.optimal and found.stages
    assert steps(request) <= native.MAX_STEPS


@pytest.mark.parametrize("objective", Objective)
@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize(("count", "layers"), [(16, 200), (18, 80), (64, 81), (64, 2048)])
def test_no_search_goes_on_for_more_than_its_steps(count, layers, linked, objective):
    """Whatever is cut off has a plan that fits, a bound below it, and does not call itself proved."""
    request = replace(scattered(count, layers, linked), objective=objective)
    most = 2_000_000
    found = NativePlanner(most).search(request)
    assert steps(request, most) < 50_000_000
    assert found == NativePlanner(most).search(request)
    costs = evaluate(request, found.stages, found.context_length)
    assert costs.fits
    if objective in SECONDS:
        seconds = costs.latency if objective is LATENCY else costs.bottleneck
        assert 0 < found.lower_bound <= seconds
        assert found.optimal == (found.lower_bound == seconds)
        assert seconds / found.lower_bound < 1.6


@pytest.mark.parametrize("seed", range(300))
def test_a_search_without_steps_still_gives_a_plan_and_a_true_bound(seed):
    request = request_of(random.Random(f"bounded:{seed}"), 4, 6)
    best, found = judged(request), NativePlanner(0).search(request)
    assert bool(found.stages) == bool(best.stages)
    assert found.lower_bound <= best.lower_bound
    if found.stages:
        assert evaluate(request, found.stages, found.context_length).fits
    assert found == best or not found.optimal


@pytest.mark.parametrize("seed", range(24))
def test_beyond_what_can_be_listed_the_bound_is_below_the_best(seed):
    """Eighteen devices of which no two are alike, and so few layers that everything can be tried."""
    rng = random.Random(f"many:{seed}")
    having = tuple(
        DeviceProfile(f"GPU-{i}", rng.randrange(4, 9) * GIB + i, rng.choice(CARDS)[1] + i) for i in range(18)
    )
    links = tuple(
        LinkProfile(a.device_id, b.device_id, rng.choice((0.0, 1e-3)), 1e9)
        for a, b in combinations(having, 2)
        if rng.random() < 0.3
    )
    layers = tuple(LayerProfile(size := rng.randrange(1, 5) * GIB, size) for _ in range(3))
    request = SplitRequest(
        ModelProfile(layers, "", 8, 8), having, links if seed % 2 else (), 1e-3, 0, rng.choice(tuple(Objective))
    )
    best, found = judged(request), NativePlanner().search(request)
    assert best.stages and found.stages
    assert not found.optimal
    assert evaluate(request, found.stages, found.context_length).fits
    assert found.lower_bound <= best.lower_bound
    assert found.context_length <= best.context_length


# How it is called


def test_a_model_that_is_kept_is_not_taken_for_another():
    one, other = model(1, 1, 1), model(9, 9, 9)
    having, planner = devices((30, 1.0), (30, 1.0)), NativePlanner()
    for asked in (one, other, one, replace(one), replace(one, layers=tuple(layer for layer in one.layers)), other):
        request = SplitRequest(asked, having, objective=BOTTLENECK)
        assert planner.search(request) == judged(request)


def test_threads_may_share_one_planner():
    requests = [request_of(random.Random(f"threads:{i}"), 5, 12) for i in range(200)]
    requests += [replace(request, objective=CONTEXT) for request in requests]
    alone = [NativePlanner().search(request) for request in requests]
    shared = NativePlanner()
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            assert list(pool.map(shared.search, requests)) == alone


def test_a_stage_is_told_in_places_of_the_request_and_inclusive_layers():
    request = SplitRequest(model(1, 1, 1), devices((0, 1.0), (3, 1.0)), objective=LATENCY)
    assert ask(request).stages == (Stage(1, 0, 2),)


@pytest.mark.parametrize(
    "arguments", [([1], [1], [1], []), ([], [], [], []), ([1, 2], [1], [1], [0]), ([1], [1], [1], [-1])]
)
def test_lists_that_do_not_match_are_refused(arguments):
    with pytest.raises(ValueError, match=r"layer"):
        native.Layers(*arguments)


def test_an_objective_that_is_none_is_refused():
    with pytest.raises(ValueError, match="no objective 4"):
        native.search(native.Layers([1], [1], [1], [0]), [], [], 0.0, 4, 0, 0, 0)
