"""Which single device is chosen, what becomes of the others, and what a refusal says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from poolmgr.core.placement import place
from poolmgr.core.placement_ask import MAX_CANDIDATES
from poolmgr.core.placement_score import ROOM_STEP_BYTES
from poolmgr.errors import ClientError, Reason
from poolmgr.model.device import Link, LinkKind
from poolmgr.model.device_health import Inadmissible, Inadmission
from poolmgr.model.memory import Reserved
from poolmgr.model.names import EngineName
from poolmgr.model.placement import PlacementAsk, Preference, SplitMode
from tests.core.placing import GIB, GPU, every_plan, fate_of, gpu, idle, mig, model, numbers, quarantined

ONE = PlacementAsk(estimate=model(2))  # 21 GiB on one device
JOB = PlacementAsk(bytes_per_device=20 * GIB)


def no_planner(request):
    raise AssertionError("one device needs no planner")


def chosen(ask, *candidates):
    plan = place(ask, candidates, no_planner)
    assert plan.refusal is None, plan.refusal
    return numbers(plan)


def refused(ask, *candidates, split=no_planner):
    plan = place(ask, candidates, split)
    assert plan.device_ids == () and plan.bytes_by_device == {} and plan.split is None
    return plan


# Filters.


@pytest.mark.behaviour("PLACE-1")
def test_a_place_has_its_bytes_and_a_fate_for_every_candidate_told_in_words():
    plan = place(ONE, [gpu(0, 10), gpu(1), quarantined(gpu(2))], no_planner)
    assert plan.bytes_by_device == {GPU[1]: 21 * GIB}
    assert [fate_of(plan, n) for n in range(3)] == ["DOES_NOT_FIT", "CHOSEN", "QUARANTINED"]
    assert len(plan.fates) == 3
    assert all(any(one.device_id in line and one.message in line for line in plan.explanation) for one in plan.fates)
    assert plan.explanation[:2] == (f"on {GPU[1]}", "chosen: the best single device")


@pytest.mark.behaviour("PLACE-1")
def test_only_what_the_mask_names_is_chosen():
    plan = place(replace(JOB, mask=(GPU[2], GPU[7])), [gpu(0), gpu(1), gpu(2)], no_planner)
    assert numbers(plan) == [2]
    assert [fate_of(plan, n) for n in (0, 1, 7)] == ["NOT_IN_MASK", "NOT_IN_MASK", "ABSENT"]


@pytest.mark.behaviour("PLACE-4")
@pytest.mark.parametrize("reason", list(Inadmissible))
def test_a_device_that_takes_no_work_is_not_chosen_and_its_own_reason_is_told(reason):
    out = replace(gpu(0), refusal=Inadmission(reason, "because of the test", 7.0))
    plan = refused(JOB, out)
    assert (plan.refusal.reason, fate_of(plan, 0)) == ("NONE_ADMISSIBLE", reason.value)
    assert "because of the test" in plan.refusal.message and plan.refusal.numbers[reason.value.lower()] == 1
    assert plan.fates[0].numbers == {"until_seconds": 7.0}
    assert chosen(JOB, out, gpu(1)) == [1]


@pytest.mark.behaviour("PLACE-4")
def test_a_device_whose_state_could_not_be_read_is_not_chosen():
    plan = refused(JOB, gpu(0, state_known=False))
    assert (plan.refusal.reason, fate_of(plan, 0)) == ("NONE_ADMISSIBLE", "STATE_UNKNOWN")


@pytest.mark.behaviour("PLACE-1")
@pytest.mark.parametrize(
    ("asked", "has", "fits"), [((8, 0), (8, 0), True), ((8, 6), (8, 0), False), ((7, 5), (8, 0), True)]
)
def test_the_compute_capability_is_at_least_what_is_asked_for(asked, has, fits):
    one = gpu(0)
    one = replace(one, device=replace(one.device, compute_capability=has))
    plan = place(replace(JOB, min_compute_capability=asked), [one], no_planner)
    assert (plan.refusal is None) is fits
    assert fate_of(plan, 0) == ("CHOSEN" if fits else "COMPUTE_CAPABILITY")


@pytest.mark.behaviour("PLACE-1")
def test_an_unknown_compute_capability_is_no_obstacle_unless_one_is_asked_for():
    one = gpu(0)
    one = replace(one, device=replace(one.device, compute_capability=None))
    assert chosen(JOB, one) == [0]
    assert fate_of(refused(replace(JOB, min_compute_capability=(5, 0)), one), 0) == "COMPUTE_CAPABILITY"


@pytest.mark.behaviour("PLACE-1")
def test_mig_instances_are_taken_by_profile_and_only_where_they_are_allowed():
    small, large = mig(0, 0), mig(0, 1, profile="3g.40gb")
    ask = PlacementAsk(bytes_per_device=GIB)
    assert place(replace(ask, mig_profile="3g.40gb"), [gpu(1), small, large], no_planner).device_ids == (
        large.device.device_id,
    )
    plan = place(replace(ask, allow_mig=False), [gpu(1), small], no_planner)
    assert (numbers(plan), fate_of(plan, small.device.device_id)) == ([1], "MIG_NOT_ALLOWED")
    plan = refused(replace(ask, mig_profile="7g.80gb"), gpu(1), small)
    assert [fate_of(plan, name) for name in (1, small.device.device_id)] == ["MIG_PROFILE", "MIG_PROFILE"]
    assert [one.numbers["mig_profile"] for one in plan.fates] == ["none: it is a whole GPU", "1g.10gb"]


@pytest.mark.behaviour("PLACE-1")
def test_a_gpu_in_mig_mode_is_not_chosen_even_if_nobody_said_so():
    one = gpu(0)
    one = replace(one, device=replace(one.device, mig_mode=True))
    assert fate_of(refused(JOB, one), 0) == "PARTITIONED"


# What fits.


@pytest.mark.behaviour("SPLIT-1")
def test_what_fits_to_the_byte_fits_and_one_byte_more_does_not():
    exact = gpu(0, 21)
    assert chosen(ONE, exact) == [0]
    short = replace(exact, memory=replace(exact.memory, free_bytes=21 * GIB - 1))
    plan = refused(ONE, short)
    assert (plan.refusal.reason, plan.missing_bytes) == ("DOES_NOT_FIT", 1)


@pytest.mark.behaviour("MEM-2")
def test_a_refusal_for_memory_has_every_number_of_the_ledger_and_says_what_would_help():
    rows = (Reserved("pool-a", 30 * GIB, 20 * GIB),)
    plan = refused(ONE, gpu(0, 25, reserved=rows), gpu(1, 8))
    assert plan.missing_bytes == plan.refusal.numbers["missing_bytes"] == 6 * GIB
    expected = {
        "need_bytes": 21 * GIB,
        "total_bytes": 80 * GIB,
        "used_bytes": 55 * GIB,
        "reserved_bytes": 30 * GIB,
        "pending_bytes": 10 * GIB,
        "measured_bytes": 20 * GIB,
        "unmanaged_bytes": 35 * GIB,
        "free_bytes": 15 * GIB,
    }
    assert plan.fates[0].numbers == expected
    assert expected.items() <= plan.refusal.numbers.items()
    assert all(
        word in plan.refusal.message
        for word in ("21.0 GiB", "on a device", "6.0 GiB are missing", GPU[0], "split over")
    )


@pytest.mark.behaviour("MEM-2")
def test_what_is_promised_and_not_there_is_missing_too():
    over = gpu(0, 10, reserved=(Reserved("pool-a", 30 * GIB, 0),))
    assert refused(JOB, over).missing_bytes == 40 * GIB


@pytest.mark.behaviour("MEM-2")
def test_unknown_memory_is_neither_free_nor_none():
    plan = refused(JOB, gpu(0, None), gpu(1, None))
    assert (plan.refusal.reason, fate_of(plan, 0)) == ("MEMORY_UNKNOWN", "MEMORY_UNKNOWN")
    assert plan.fates[0].numbers["free_bytes"] == "unknown"
    plan = refused(JOB, gpu(0, None), gpu(1, 5))
    assert (plan.refusal.reason, fate_of(plan, 0), fate_of(plan, 1)) == (
        "DOES_NOT_FIT",
        "MEMORY_UNKNOWN",
        "DOES_NOT_FIT",
    )
    assert chosen(JOB, gpu(0, None), gpu(1)) == [1]


@pytest.mark.behaviour("MEM-2")
def test_unknown_memory_is_no_obstacle_where_no_bytes_are_asked_for_and_comes_last():
    ask = PlacementAsk()
    assert chosen(ask, gpu(0, None)) == [0]
    assert chosen(ask, gpu(0, None), gpu(1)) == [1]
    assert chosen(ask, gpu(0, 0, reserved=(Reserved("a", GIB, 0),))) == [0]


# The best of what fits.


@pytest.mark.behaviour("SPLIT-1")
def test_a_model_goes_to_the_fastest_device_that_it_fits_on_then_to_the_tightest():
    assert chosen(ONE, gpu(0, 30, bandwidth=320e9), gpu(1, 70), gpu(2, 60), gpu(3, 20, bandwidth=4e12)) == [2]
    assert chosen(ONE, gpu(0, 30, bandwidth=None), gpu(1, 70, bandwidth=1.0)) == [1]
    assert chosen(ONE, gpu(0, 70, bandwidth=float("nan")), gpu(1, 70, bandwidth=1.0)) == [1]


@pytest.mark.behaviour("SPLIT-1")
def test_spread_takes_the_emptiest_of_the_fastest():
    ask = replace(ONE, preference=Preference.SPREAD)
    assert chosen(ask, gpu(0, 80, bandwidth=320e9), gpu(1, 60), gpu(2, 70)) == [2]


@pytest.mark.behaviour("PLACE-1")
def test_work_of_unknown_insides_fills_a_device_before_the_next_or_spreads():
    devices = [gpu(0, 70), gpu(1, 30, bandwidth=320e9), gpu(2, 50)]
    assert chosen(JOB, *devices) == [1]
    assert chosen(replace(JOB, preference=Preference.SPREAD), *devices) == [0]
    assert chosen(JOB, gpu(0, 30, bandwidth=320e9), gpu(1, 30)) == [1]


@pytest.mark.behaviour("PLACE-1")
def test_a_difference_that_drivers_make_by_rounding_is_none():
    step = ROOM_STEP_BYTES / GIB
    for less, more in ((0, 1), (1, 0)):
        hot = gpu(0, 30 + less * (step - 1 / 1024), celsius=70, limit_celsius=80)
        assert chosen(JOB, hot, gpu(1, 30 + more * (step - 1 / 1024), celsius=40, limit_celsius=80)) == [1]
    assert chosen(JOB, gpu(0, 30, celsius=70, limit_celsius=80), replace(gpu(1, 30 + step), celsius=40)) == [0]


@pytest.mark.behaviour("PLACE-1")
def test_of_alike_devices_the_cooler_then_the_less_linked_then_the_first_is_taken():
    def warm(number, celsius, limit=90.0, **more):
        return gpu(number, celsius=celsius, limit_celsius=limit, **more)

    assert chosen(JOB, warm(0, 80), warm(1, 76)) == [1]
    assert chosen(JOB, warm(0, 75), warm(1, 40)) == [0]  # both are cool
    assert chosen(JOB, warm(0, 76), warm(1, 75)) == [1]
    assert chosen(JOB, gpu(0), warm(1, 89)) == [1]  # unknown is not cool
    assert chosen(JOB, warm(0, float("nan")), warm(1, 89)) == [1]
    fast = gpu(0)
    fast = replace(fast, device=replace(fast.device, links=(Link(GPU[2], LinkKind.NVLINK, 4, 100e9),)))
    assert chosen(JOB, fast, gpu(1)) == [1]
    assert chosen(JOB, gpu(1), gpu(0)) == [0]


@pytest.mark.behaviour("PLACE-1")
@pytest.mark.parametrize(
    ("loser", "words"),
    [
        (gpu(1, bandwidth=320e9), "slower"),
        (gpu(1, 70), "room"),
        (gpu(1, 30, celsius=89, limit_celsius=90), "temperature"),
        (gpu(1, 30), "order"),
    ],
)
def test_why_another_lost_is_told(loser, words):
    winner = gpu(0, 30, celsius=20, limit_celsius=90) if loser.celsius else gpu(0, 30)
    plan = place(ONE, [winner, loser], no_planner)
    (told,) = [one for one in plan.fates if one.device_id == GPU[1]]
    assert (numbers(plan), told.reason) == ([0], "OUTSCORED")
    assert words in told.message and GPU[0] in told.message


@pytest.mark.behaviour("PLACE-4")
def test_degraded_comes_after_sound_and_probation_after_degraded_however_good_they_are():
    sound, degraded, trial = gpu(0, 21, bandwidth=1e9), gpu(1, 80, degraded=True), gpu(2, 80, probation=True)
    assert chosen(ONE, trial, degraded, sound) == [0]
    assert chosen(ONE, trial, degraded) == [1]
    assert chosen(ONE, trial) == [2]
    plan = place(ONE, [trial, degraded, sound], no_planner)
    assert [fate_of(plan, n) for n in (1, 2)] == ["LAST_RESORT", "LAST_RESORT"]
    full = gpu(0, 5)
    plan = place(ONE, [trial, degraded, full], no_planner)
    assert (numbers(plan), fate_of(plan, 2), fate_of(plan, 0)) == ([1], "LAST_RESORT", "DOES_NOT_FIT")


@pytest.mark.behaviour("PLACE-4")
def test_of_two_on_probation_the_better_one_gets_the_trial():
    worse, better = gpu(0, 60, probation=True, bandwidth=1e9), gpu(1, 60, probation=True)
    plan = place(ONE, [worse, better], no_planner)
    assert (numbers(plan), fate_of(plan, 0)) == ([1], "ONE_TRIAL")


# Nothing to choose from, and asks that contradict themselves.


@pytest.mark.behaviour("PLACE-1")
def test_each_way_to_have_nothing_has_its_own_reason():
    assert refused(JOB).refusal.reason == "NO_DEVICES"
    assert refused(replace(JOB, mask=()), gpu(0)).refusal.reason == "MASK_EMPTY"
    plan = refused(replace(JOB, mask=(GPU[5],)), gpu(0))
    assert plan.refusal.reason == "MASK_EMPTY" and GPU[5] in plan.refusal.message and GPU[0] in plan.refusal.message
    plan = refused(replace(JOB, mask=(GPU[0],)), quarantined(gpu(0)), gpu(1))
    assert plan.refusal.reason == "NONE_ADMISSIBLE" and GPU[1] not in plan.refusal.message


@pytest.mark.parametrize(
    "ask",
    [
        PlacementAsk(bytes_per_device=-1),
        PlacementAsk(bytes_per_device=(1 << 62) + 1),
        PlacementAsk(device_count=-1),
        PlacementAsk(device_count=65),
        PlacementAsk(mask=(GPU[0], GPU[0])),
        PlacementAsk(exact=True),
        PlacementAsk(exact=True, mask=(GPU[0],), device_count=2),
        PlacementAsk(exact=True, mask=tuple(map(str, range(65)))),
        PlacementAsk(mig_profile="1g.10gb", allow_mig=False),
        PlacementAsk(ratios=(1.0,)),
        PlacementAsk(split=SplitMode.EXPLICIT),
        PlacementAsk(split=SplitMode.EXPLICIT, ratios=(0.0, 0.0)),
        PlacementAsk(split=SplitMode.EXPLICIT, ratios=(1.0, -1.0)),
        PlacementAsk(split=SplitMode.EXPLICIT, ratios=(1.0, float("nan"))),
        PlacementAsk(split=SplitMode.EXPLICIT, ratios=(1e308, 1e308)),
        PlacementAsk(split=SplitMode.EXPLICIT, ratios=(1.0, 1.0), device_count=3),
        PlacementAsk(split=SplitMode.EXPLICIT, ratios=(1.0, 1.0), mask=(GPU[0],), exact=True),
        PlacementAsk(split=SplitMode.EXPLICIT, ratios=(1.0,) * 65),
        PlacementAsk(split=SplitMode.EXPLICIT, ratios=(1.0, 1.0), engine=EngineName.VLLM),
    ],
)
def test_an_ask_that_contradicts_itself_is_refused_by_name(ask):
    with pytest.raises(ClientError) as caught:
        place(ask, [gpu(0), gpu(1)], every_plan)
    assert caught.value.reason is Reason.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "pool",
    [
        replace(idle("a", 1.0), reload_seconds=float("nan")),
        replace(idle("a", 1.0), uses_per_hour=-1.0),
        idle("a", 1.0, gpu0=-1),
    ],
)
def test_an_idle_pool_with_a_cost_that_is_none_is_refused(pool):
    with pytest.raises(ClientError, match="idle pool 'a'"):
        place(JOB, [gpu(0)], no_planner, [pool])


def test_a_device_that_is_there_twice_is_refused_and_a_host_beyond_the_limit_too():
    with pytest.raises(ClientError, match="twice"):
        place(JOB, [gpu(0), gpu(0)], no_planner)
    many = [replace(gpu(0), device=replace(gpu(0).device, device_id=f"GPU-{n}")) for n in range(MAX_CANDIDATES + 1)]
    with pytest.raises(ClientError, match="at most"):
        place(JOB, many, no_planner)
    assert place(JOB, many[1:], no_planner).refusal is None
