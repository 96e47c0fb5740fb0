"""The judge of splits: its own cost, its proofs, and that a wrong planner is found out."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from math import inf

import pytest

from bench import placement, placement_speed
from bench.common import judge
from bench.placement import Tally, judge_ours, unlike
from bench.placement_cases import Case, named_cases, random_cases
from bench.placement_judge import Question, brute, by_subsets, flaws, plans, prove, value_of, verdict
from bench.placement_peers import vllm
from bench.placement_solver import confirms
from poolmgr.core.split_search import search
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

LAYERS = (LayerProfile(60, 40, 10), LayerProfile(50, 50, 10), LayerProfile(100, 100))
MODEL = ModelProfile(LAYERS, context_length=100, context_limit=400)
DEVICES = (DeviceProfile("a", 200, 10.0, 20), DeviceProfile("b", 300, 20.0, 0), DeviceProfile("c", 1000, 1.0, 0))
REQUEST = SplitRequest(MODEL, DEVICES, (LinkProfile("b", "a", 1.0, 4.0),), 5.0, 8, Objective.MIN_BOTTLENECK)
SPLIT = (Stage(0, 0, 1), Stage(1, 2, 2))


def test_a_stage_takes_what_it_reads_and_the_hop_by_which_its_input_comes():
    cost = Question(REQUEST).cost(SPLIT)
    first, second = (40 + 50 + 20) / 10.0 + 5.0, 100 / 20.0 + 1.0 + 8 / 4.0
    assert (cost.slowest, cost.whole) == (first, first + second)
    unlinked = Question(REQUEST).cost((Stage(0, 0, 1), Stage(2, 2, 2)))
    assert unlinked.whole == first + 100 / 1.0 + 5.0


def test_what_stays_free_is_less_weights_cache_and_overhead():
    cost = Question(REQUEST).cost(SPLIT)
    assert cost.headroom == (200 - 20 - 130, 300 - 100)
    assert cost.least_share == 50 / 200
    assert cost.fits
    assert not Question(REQUEST).cost((Stage(0, 0, 2),)).fits


@pytest.mark.parametrize(
    ("window", "context", "held"), [(0, 200, 20), (0, 250, 25), (0, 199, 20), (50, 400, 10), (200, 400, 20)]
)
def test_a_cache_grows_with_the_context_up_to_its_window_and_is_rounded_up(window, context, held):
    layer = LayerProfile(0, 0, 10, window)
    request = replace(REQUEST, model=ModelProfile((layer,), context_length=100))
    assert Question(request, context).held == [0, held]


@pytest.mark.parametrize(
    ("plan", "flaw"),
    [
        ((Stage(0, 0, 0), Stage(0, 1, 2)), "a device twice"),
        ((Stage(0, 0, 0), Stage(1, 2, 2)), "not every layer once, in order"),
        ((Stage(0, 0, 1),), "not every layer once, in order"),
        ((Stage(0, 0, 2), Stage(1, 3, 2)), "an empty stage"),
        ((Stage(3, 0, 2),), "an unknown device"),
        ((Stage(0, 0, 0), Stage(1, 1, 1), Stage(2, 2, 2)), "too many devices"),
    ],
)
def test_what_is_no_plan_is_told_by_name_and_worth_nothing(plan, flaw):
    request = replace(REQUEST, max_devices=2)
    assert flaw in flaws(request, plan)
    assert value_of(request, plan, 100) == inf


def test_every_plan_that_fits_is_tried():
    roomy = replace(REQUEST, devices=tuple(replace(device, vram_free_bytes=10**6) for device in DEVICES))
    found = list(plans(Question(roomy)))
    assert len(set(found)) == len(found) == 3 + 3 * 2 * 2 + 3 * 2 * 1  # on one device, on two, on three
    assert not any(flaws(roomy, plan) for plan in found)


def test_brute_force_and_subsets_agree_on_random_cases_of_every_objective():
    cases = list(random_cases(1, 250, 5, 8))
    assert {case.request.objective for case in cases} == set(Objective)
    proofs = [(brute(case.request), by_subsets(case.request)) for case in cases]
    assert [one.value for one, _ in proofs] == [other.value for _, other in proofs]
    fitting = sum(one.value < inf for one, _ in proofs)
    assert 50 < fitting < 200


def test_an_independent_solver_confirms_the_best_and_refutes_what_is_not():
    cases = random_cases(2, 40, 4, 10, Objective.MIN_BOTTLENECK, Objective.MIN_LATENCY)
    asked = [case.request for case in cases if not case.request.links]
    best = [brute(request).value for request in asked]
    answers = [confirms(request, value, 10.0) for request, value in zip(asked, best, strict=True)]
    assert set(answers) == {True}
    some = [(request, value) for request, value in zip(asked, best, strict=True) if 0 < value < inf]
    worse = [confirms(request, value * 1.001, 10.0) for request, value in some]
    assert len(worse) > 5
    assert set(worse) == {False}


def test_the_solver_is_not_asked_what_it_cannot_tell():
    assert confirms(REQUEST, 1.0, 1.0) is None  # links
    assert confirms(replace(REQUEST, links=(), objective=Objective.BALANCED), 1.0, 1.0) is None


@pytest.mark.behaviour("SPLIT-3", "SPLIT-4")
def test_the_readable_search_finds_the_best_plan_with_its_ties_where_brute_force_can_tell():
    tally = judge_ours(search, random_cases(3, 200, 5, 8))
    figures = tally.figures()
    assert tally.worst == 1.0
    assert figures["cases_by_brute_force"] == 200
    assert figures["ties_missed"] == figures["bounds_above_the_optimum"] == figures["not_claimed_optimal"] == 0


# What a wrong planner does. Each has to be found out by the judge.


def misjudged(planner, count=200):
    """The bars that a planner misses on random cases, of those that its tally decides."""
    tally = judge_ours(planner, random_cases(4, count, 4, 8))
    values = {**tally.figures(), "worst_vs_optimum": tally.worst}
    return [bar.name for bar, _, met in judge(placement.BARS[:4], values) if not met]


def even(request):
    return Found(vllm(request), context_length=request.model.context_length)


def blind(request):
    """Plans as if memory had no end."""
    devices = tuple(replace(device, vram_free_bytes=1 << 60) for device in request.devices)
    return search(replace(request, devices=devices))


def shy(request):
    """Refuses what needs two devices."""
    found = search(request)
    return found if len(found.stages) < 2 else Found()


def backwards(request):
    """Misses only the tie of the order of devices."""
    count = len(request.devices)
    found = search(replace(request, devices=request.devices[::-1]))
    stages = tuple(replace(stage, device=count - 1 - stage.device) for stage in found.stages)
    return replace(found, stages=stages)


def boastful(request):
    """Claims a bound that plans come below."""
    found = search(request)
    return replace(found, lower_bound=found.lower_bound * 1.01)


@pytest.mark.parametrize(
    ("planner", "missed"),
    [
        (search, []),
        (even, ["worst_vs_optimum", "out_of_memory_where_a_fit_exists", "ties_missed"]),
        (blind, ["worst_vs_optimum", "out_of_memory_where_a_fit_exists", "ties_missed"]),
        (shy, ["worst_vs_optimum", "out_of_memory_where_a_fit_exists"]),
        (backwards, ["ties_missed"]),
        (boastful, ["bounds_above_the_optimum"]),
    ],
)
def test_a_wrong_planner_is_told_as_below_by_what_is_wrong_with_it(planner, missed, capsys):
    assert misjudged(planner) == missed
    assert ("wrong:" in capsys.readouterr().out) == bool(missed)


def test_a_plan_where_nothing_fits_is_as_wrong_as_none_where_something_does():
    tight = replace(REQUEST, devices=DEVICES[:1])
    proof = prove(tight)
    assert proof is not None and proof.value == inf
    assert verdict("tight", tight, proof, (Stage(0, 0, 2),), 100).ratio == inf
    assert verdict("tight", tight, proof, (), 100).ratio == 1.0


def test_a_judge_that_is_beaten_says_so_instead_of_praising():
    proof = replace(brute(REQUEST), value=1e9)
    with pytest.raises(AssertionError, match="the judge is wrong"):
        verdict("beaten", REQUEST, proof, SPLIT, 100)
    tally = Tally(proofs=[(next(iter(named_cases())), replace(proof, value=1e9))])
    with pytest.raises(AssertionError, match="HiGHS has a better plan"):
        placement.ask_solver(tally, placement.QUICK)


def test_searches_that_differ_in_one_case_are_told_apart(capsys):
    def other(request):
        found = search(request)
        return replace(found, stages=()) if len(request.model.layers) == 7 else found

    assert unlike(search, search, 5, 60) == 0
    assert 0 < unlike(other, search, 5, 60) < 60
    assert "unlike:" in capsys.readouterr().out


def test_figures_just_past_a_bar_are_below():
    bad = {bar.name: bar.bound + (0.001 if bar.at_most else -0.001) for bar in placement.BARS}
    assert not any(met for _, _, met in judge(placement.BARS, bad))
    good = {bar.name: bar.bound for bar in placement.BARS}
    assert all(met for _, _, met in judge(placement.BARS, good))


def test_every_request_is_timed_in_every_round_and_by_calls_not_by_batches(monkeypatch):
    clock, asked = [0.0], []

    def slow(request):
        asked.append(len(request.devices))
        clock[0] += 1e-4 * len(request.devices)
        return Found()

    monkeypatch.setattr(placement_speed.time, "perf_counter", lambda: clock[0])
    few = replace(REQUEST, devices=DEVICES[:1])
    times = placement_speed.timed(slow, [REQUEST, few], 2)
    assert times == [[pytest.approx(3e-4)] * 2, [pytest.approx(1e-4)] * 2]
    in_turn = [number for number, before in zip(asked, [None, *asked], strict=False) if number != before]
    assert in_turn == [3, 1, 3, 1, 3, 1]


def test_no_timed_call_is_about_the_model_of_the_call_before_unless_it_is_known():
    asked = []
    placement_speed.sample(lambda request: asked.append(request) or Found(), REQUEST, 3)
    assert asked == [REQUEST] * 3
    assert all(one.model.layers is not other.model.layers for one, other in pairwise(asked))
    placement_speed.sample(lambda request: asked.append(request) or Found(), REQUEST, 2, known=True)
    assert asked[-1].model.layers is asked[-2].model.layers


def test_the_gap_is_what_the_bound_leaves_open():
    value = value_of(REQUEST, SPLIT, 100)
    assert placement_speed.gap_of(REQUEST, Found(SPLIT, False, value / 2, 100)) == 1.0
    assert placement_speed.gap_of(REQUEST, Found(SPLIT, False, 0.0, 100)) == inf
    assert placement_speed.gap_of(REQUEST, Found((), False, 1.0, 100)) == inf


def test_cases_are_those_of_their_seed():
    assert list(random_cases(6, 20, 4, 8)) == list(random_cases(6, 20, 4, 8))
    assert list(random_cases(6, 20, 4, 8)) != list(random_cases(7, 20, 4, 8))
    assert all(isinstance(case, Case) for case in random_cases(6, 3, 4, 8))
