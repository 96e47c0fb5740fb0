"""Which idle pools would have to stop: the cheapest set, and never a busy pool."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import chain, combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolmgr.core import eviction
from poolmgr.core.memory import entry
from poolmgr.core.placement import place
from poolmgr.model.memory import Reserved
from poolmgr.model.names import EngineName
from poolmgr.model.placement import IdlePool, PlacementAsk, SplitMode
from poolmgr.model.plan import Objective
from tests.core.placing import GIB, GPU, every_plan, gpu, idle, model, numbers

pytestmark = pytest.mark.behaviour("PLACE-5")

JOB = PlacementAsk(bytes_per_device=20 * GIB, evict=True)


def held(number: int, free_gib: int, held_gib: int = 40):
    """A device on which known pools hold memory."""
    return gpu(number, free_gib, reserved=(Reserved("pools", held_gib * GIB, held_gib * GIB),))


def evicted(ask, devices, *pools):
    plan = place(ask, devices, every_plan, pools)
    assert plan.refusal is not None and plan.device_ids == ()
    return plan.evictions


def test_the_cheapest_stop_that_makes_room_is_named_and_the_refusal_stands():
    plan = place(JOB, [held(0, 10)], every_plan, [idle("dear", 9, gpu0=20), idle("cheap", 2, gpu0=10)])
    assert plan.evictions == ("cheap",)
    assert (plan.refusal.reason, plan.device_ids, plan.missing_bytes) == ("DOES_NOT_FIT", (), 10 * GIB)
    assert any("cheap stops" in line and "2.0 seconds" in line for line in plan.explanation)


def test_nothing_is_named_unless_it_is_asked_for_or_where_it_fits_anyway():
    pools = [idle("a", 1, gpu0=40)]
    assert place(replace(JOB, evict=False), [held(0, 10)], every_plan, pools).evictions == ()
    plan = place(JOB, [held(0, 20)], every_plan, pools)
    assert (plan.refusal, plan.evictions) == (None, ())


def test_what_is_freed_has_to_reach_to_the_byte():
    assert evicted(JOB, [held(0, 10)], idle("a", 1, gpu0=10)) == ("a",)
    less = replace(idle("a", 1), frees={GPU[0]: 10 * GIB - 1})
    plan = place(JOB, [held(0, 10)], every_plan, [less])
    assert plan.evictions == () and any("no stop" in line for line in plan.explanation)


def test_a_busy_pool_is_never_named():
    assert evicted(JOB, [held(0, 10)], idle("busy", 0, busy=True, gpu0=40), idle("a", 5, gpu0=40)) == ("a",)
    assert evicted(JOB, [held(0, 10)], idle("busy", 0, busy=True, gpu0=40)) == ()


def test_two_cheap_pools_are_stopped_rather_than_a_dear_one():
    pools = [idle("a", 2, gpu0=5), idle("b", 2, gpu0=5), idle("dear", 5, gpu0=40)]
    assert evicted(JOB, [held(0, 10)], *pools) == ("a", "b")
    assert evicted(JOB, [held(0, 10)], *pools[:2], idle("dear", 4, gpu0=40)) == ("dear",)  # as cheap, and one


def test_the_cost_is_the_reload_times_the_use():
    seldom, often = (
        IdlePool("seldom", {GPU[0]: 40 * GIB}, False, 60, 1),
        IdlePool("often", {GPU[0]: 40 * GIB}, False, 10, 7),
    )
    assert evicted(JOB, [held(0, 10)], seldom, often) == ("seldom",)


def test_a_pool_that_costs_nothing_is_not_stopped_for_nothing():
    free = [idle("a", 0, gpu0=1), idle("b", 0, gpu0=40), idle("c", 0, gpu1=40)]
    assert evicted(JOB, [held(0, 10)], *free) == ("b",)


def test_what_is_promised_and_not_there_is_paid_for_first():
    over = gpu(0, 10, reserved=(Reserved("a", 20 * GIB, 0), Reserved("b", 40 * GIB, 40 * GIB)))
    assert evicted(JOB, [over], idle("b", 1, gpu0=29)) == ()
    assert evicted(JOB, [over], idle("b", 1, gpu0=30)) == ("b",)


def test_a_gang_gets_room_on_each_of_its_devices():
    ask = replace(JOB, device_count=2)
    pools = [idle("a", 1, gpu0=40), idle("b", 2, gpu1=40), idle("c", 4, gpu0=20, gpu1=20)]
    assert evicted(ask, [held(0, 10), held(1, 10)], *pools) == ("a", "b")


def test_a_split_gets_room_where_its_planner_can_use_it():
    ask = PlacementAsk(estimate=model(4), split=SplitMode.AUTO, evict=True)
    devices = [held(0, 21), held(1, 5)]
    assert evicted(ask, devices, idle("a", 1, gpu1=15), idle("b", 3, gpu1=20, gpu0=20)) == ("b",)
    assert evicted(ask, devices, idle("a", 1, gpu1=15), idle("b", 3, gpu1=16)) == ("b",)


def test_what_is_freed_elsewhere_is_not_freed_here():
    short = replace(held(0, 20), memory=entry(GPU[0], 80 * GIB, 20 * GIB - 1, ()))
    assert evicted(replace(JOB, mask=GPU[:2]), [short, held(1, 1)], idle("a", 1, gpu1=1)) == ()


def test_pools_elsewhere_and_devices_that_are_out_do_not_count():
    ask = replace(JOB, mask=(GPU[0],))
    assert evicted(ask, [held(0, 10), held(1, 10)], idle("a", 1, gpu1=40)) == ()


@pytest.mark.parametrize(
    ("ask", "devices"),
    [
        (JOB, []),
        (JOB, [gpu(0, None)]),
        (replace(JOB, device_count=2), [held(0, 10)]),
        (replace(JOB, mask=("GPU-x",)), [held(0, 10)]),
        (JOB, [replace(held(0, 10), state_known=False)]),
    ],
)
def test_where_memory_is_not_what_is_missing_no_pool_is_named(ask, devices):
    assert evicted(ask, devices, idle("a", 1, gpu0=40)) == ()


def test_a_place_that_crosses_sockets_may_be_had_within_one_by_a_stop():
    ask = replace(JOB, device_count=2, allow_cross_numa=False)
    devices = [gpu(0, node=0), gpu(1, node=1), replace(held(2, 10), device=gpu(2, node=1).device)]
    plan = place(ask, devices, every_plan, [idle("a", 1, gpu2=40)])
    assert (plan.refusal.reason, plan.evictions) == ("NUMA_SPLIT", ("a",))


def test_after_the_stop_it_fits():
    pools = [idle("a", 2, gpu0=10), idle("b", 1, gpu0=5)]
    assert evicted(JOB, [held(0, 10)], *pools) == ("a",)
    after = replace(held(0, 10), memory=entry(GPU[0], 80 * GIB, 20 * GIB, (Reserved("rest", 30 * GIB, 30 * GIB),)))
    assert numbers(place(JOB, [after], every_plan)) == [0]


pools_drawn = st.lists(
    st.builds(
        IdlePool,
        pool_id=st.text("abcdefgh", min_size=1, max_size=3),
        frees=st.dictionaries(st.sampled_from(GPU[:2]), st.integers(0, 12), max_size=2),
        busy=st.booleans(),
        reload_seconds=st.integers(0, 4).map(float),
        uses_per_hour=st.integers(0, 3).map(float),
    ),
    max_size=6,
    unique_by=lambda pool: pool.pool_id,
)


def dearness(pools):
    return math.fsum(pool.reload_seconds * pool.uses_per_hour for pool in pools)


@given(pools_drawn, st.integers(1, 24), st.integers(0, 12), st.booleans())
def test_no_set_of_idle_pools_is_cheaper_than_the_one_that_is_named(pools, on_first, on_second, quick):
    """Against every set, by the sums and by nothing of ours."""

    def helps(some):
        first, second = (sum(pool.frees.get(name, 0) for pool in some) for name in GPU[:2])
        return first >= on_first and second >= on_second

    asked = []

    def room(most=4096):
        may_fit = (lambda some: sum(pool.frees.get(GPU[0], 0) for pool in some) >= on_first) if quick else helps
        return eviction.Room(lambda some: asked.append(some) or helps(some), may_fit, most)

    found = eviction.cheapest(pools, set(GPU[:2]), room())
    stoppable = [pool for pool in pools if not pool.busy]
    sets = chain.from_iterable(combinations(stoppable, n) for n in range(1, len(stoppable) + 1))
    able = [each for each in sets if helps(each)]
    assert (found is None) == (not able)
    if found is not None:
        assert found.cheapest and helps(found.pools) and not any(pool.busy for pool in found.pools)
        assert found.cost == dearness(found.pools) == min(map(dearness, able))
        assert len(found.pools) == min(len(each) for each in able if dearness(each) == found.cost)
        assert found == eviction.cheapest(pools[::-1], set(GPU[:2]), room())
        assert quick or len(asked) <= 4  # all of them, and the one
        cut = eviction.cheapest(pools, set(GPU[:2]), room(most=0))
        assert not cut.cheapest and helps(cut.pools) and cut.cost >= found.cost


@pytest.mark.parametrize("count", [eviction.MAX_EXACT, eviction.MAX_EXACT + 1])
def test_more_pools_than_can_be_looked_at_in_all_sets_are_chosen_greedily_and_that_is_said(count):
    pools = [idle(f"p{n:02d}", 1 + n, gpu0=2) for n in range(count - 1)] + [idle("z", 0.5, gpu0=1)]
    plan = place(JOB, [held(0, 10)], every_plan, pools)
    exact = count <= eviction.MAX_EXACT
    assert any(("not proved" in line) is (not exact) for line in plan.explanation if "would fit once" in line)
    assert plan.evictions == ("p00", "p01", "p02", "p03", "p04")  # z is cheap and not needed


def test_a_greedy_choice_has_nothing_to_spare():
    pools = [idle(f"p{n:02d}", 1 + n % 5, gpu0=1 + n % 7) for n in range(40)]
    found = place(JOB, [held(0, 0)], every_plan, pools).evictions
    freed = {pool.pool_id: pool.frees[GPU[0]] for pool in pools}
    total = sum(freed[name] for name in found)
    assert total >= 20 * GIB and all(total - freed[name] < 20 * GIB for name in found)


def test_beyond_the_limit_the_dearest_are_left_alone():
    pools = [idle(f"p{n:04d}", 1000 - n, gpu0=1) for n in range(eviction.MAX_POOLS + 9)]
    looked_at = []
    eviction.cheapest(pools, {GPU[0]}, eviction.Room(lambda some: looked_at.append(len(some)) or False, len))
    assert looked_at == [eviction.MAX_POOLS]
    found = eviction.cheapest(pools, {GPU[0]}, eviction.Room(lambda some: len(some) >= eviction.MAX_POOLS, len))
    assert "p0008" not in {pool.pool_id for pool in found.pools} and len(found.pools) == eviction.MAX_POOLS


def test_where_each_look_takes_a_plan_only_so_many_are_taken_and_that_is_said():
    """Without room for the bytes nothing is planned; here they are there and no layer fits."""
    ask = PlacementAsk(estimate=model(2), split=SplitMode.AUTO, evict=True)
    devices = [held(n, 9) for n in range(4)]
    pools = [idle(f"p{n:02d}", 1, **{f"gpu{n % 4}": 1.5}) for n in range(eviction.MAX_EXACT)]
    plan = place(ask, devices, every_plan, pools)
    assert len(plan.evictions) == 4 and any("not proved" in line for line in plan.explanation)


def test_sets_that_free_too_few_bytes_for_the_layers_are_not_counted_among_them():
    """Nine stops leave 18.6 GiB beside the overhead for 20, ten leave 20.25; there are 220 sets of nine."""
    ask = PlacementAsk(estimate=model(2), split=SplitMode.AUTO, evict=True)
    pools = [idle(f"p{n:02d}", 1, gpu0=1.625) for n in range(eviction.MAX_EXACT)]
    plan = place(ask, [held(0, 5)], every_plan, pools)
    assert len(plan.evictions) == 10 and not any("not proved" in line for line in plan.explanation)


@pytest.mark.parametrize("engine", [EngineName.LLAMACPP, EngineName.VLLM])
def test_the_best_plan_is_looked_for_once_unless_shards_are_equal(engine):
    ask = PlacementAsk(estimate=model(2), split=SplitMode.AUTO, evict=True, engine=engine)
    planned = []

    def counts(request):
        planned.append(request)
        return every_plan(request)

    assert place(ask, [held(0, 5)], counts, [idle("a", 1, gpu0=15), idle("b", 2, gpu0=16)]).evictions == ("b",)
    assert len(planned) == (1 if engine is EngineName.LLAMACPP else 3)


def test_a_plan_for_the_largest_context_may_do_with_less_than_the_whole_cache():
    ask = PlacementAsk(estimate=model(2, context_length=4096), split=SplitMode.AUTO, evict=True)
    largest = replace(ask, objective=Objective.MAX_CONTEXT)
    assert evicted(largest, [held(0, 10)], idle("a", 1, gpu0=10)) == ("a",)
    assert evicted(largest, [held(0, 10)], idle("a", 1, gpu0=9)) == ()
    assert evicted(ask, [held(0, 10)], idle("a", 1, gpu0=10)) == ()
