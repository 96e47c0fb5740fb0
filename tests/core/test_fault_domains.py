"""A bad card and a bad configuration are told apart."""

from __future__ import annotations

import pytest

from poolmgr.core.fault_domains import (
    CUDA_FAILURES,
    ELSEWHERE,
    FAILURES,
    REMEMBERED,
    WINDOW_SECONDS,
    Blame,
    Failure,
    add,
    shunned,
)

pytestmark = pytest.mark.behaviour("RST-3")


def fail(failures, times, pool="a", generation=1, device="GPU-1", cause="SIGNAL", at=0.0, every=1.0):
    blame = Blame()
    for i in range(times):
        failures, blame = add(failures, Failure(at + i * every, device, pool, generation, cause))
        assert not (blame.device and blame.generation)
    return failures, blame.device or blame.generation


def test_one_generation_that_fails_for_ever_is_not_the_gpus_fault():
    _, why = fail((), 50)
    assert why == ""


@pytest.mark.parametrize(("pool", "generation"), [("b", 1), ("a", 2)], ids=["another pool", "the next generation"])
def test_a_second_generation_that_fails_there_too_puts_it_down_to_the_gpu(pool, generation):
    failures, _ = fail((), FAILURES)
    failures, why = fail(failures, FAILURES - 1, pool, generation)
    assert why == ""
    _, why = fail(failures, 1, pool, generation)
    assert "2 generations" in why and "pool a generation 1" in why and f"pool {pool} generation {generation}" in why


def test_cuda_errors_say_sooner_that_it_is_the_card_and_are_counted_apart():
    failures, why = fail((), CUDA_FAILURES, cause="CUDA_ERROR")
    assert why == ""
    failures, why = fail(failures, FAILURES - 1, "b")
    assert why == "", "what is no CUDA error does not count among them"
    _, why = fail(failures, CUDA_FAILURES, "b", cause="DEVICE_LOST")
    assert "CUDA errors" in why


def test_failures_on_two_gpus_blame_neither():
    failures, _ = fail((), FAILURES)
    _, why = fail(failures, FAILURES, "b", device="GPU-2")
    assert why == ""


def test_failures_of_an_hour_ago_are_forgotten():
    failures, _ = fail((), FAILURES)
    _, why = fail(failures, FAILURES, "b", at=WINDOW_SECONDS + FAILURES)
    assert why == ""


def test_a_gpu_that_was_judged_begins_anew_and_memory_is_bounded():
    failures, _ = fail((), FAILURES)
    failures, why = fail(failures, FAILURES, "b")
    assert why and not [f for f in failures if f.device_id == "GPU-1"]
    failures, _ = fail((), 2 * REMEMBERED, every=0.001)
    assert len(failures) == REMEMBERED


@pytest.mark.parametrize(("cause", "limit"), [("SIGNAL", FAILURES), ("CUDA_ERROR", CUDA_FAILURES)])
def test_a_generation_that_fails_on_a_second_gpu_too_is_to_blame_itself(cause, limit):
    failures, why = fail((), limit, cause=cause)
    failures, why = fail(failures, ELSEWHERE - 1, device="GPU-2", cause=cause)
    assert why == ""
    failures, why = fail(failures, 1, device="GPU-2", cause=cause)
    assert f"generation 1 has {'CUDA errors' if cause == 'CUDA_ERROR' else 'failures'} on 2 GPUs" in why
    assert f"{limit} on GPU-1" in why and f"{ELSEWHERE} on GPU-2" in why
    assert failures == (), "they say nothing of either GPU"


def test_a_few_failures_here_and_there_blame_nobody():
    failures, _ = fail((), FAILURES - 1)
    _, why = fail(failures, FAILURES - 1, device="GPU-2")
    assert why == ""


def test_another_generation_is_not_blamed_for_the_first():
    failures, _ = fail((), FAILURES)
    _, why = fail(failures, FAILURES - 1, generation=2, device="GPU-2")
    assert why == ""


def test_a_gpu_on_which_a_generation_has_failed_is_shunned_by_it_alone_and_for_an_hour():
    failures, _ = fail((), FAILURES)
    last = FAILURES - 1.0
    assert shunned(failures, "a", 1, last) == {"GPU-1"}
    assert shunned(failures, "a", 2, last) == shunned(failures, "b", 1, last) == frozenset()
    assert shunned(failures, "a", 1, WINDOW_SECONDS) == frozenset()
    assert shunned(failures[1:], "a", 1, last) == frozenset()


def test_the_limits_are_those_that_are_documented():
    assert (WINDOW_SECONDS, FAILURES, CUDA_FAILURES, ELSEWHERE, REMEMBERED) == (3600.0, 5, 2, 2, 256)


def test_a_failure_counts_for_less_than_an_hour_and_no_longer():
    for before, told in ((WINDOW_SECONDS - 0.5, True), (WINDOW_SECONDS, False), (2 * WINDOW_SECONDS, False)):
        failures, _ = fail((), FAILURES, every=0.0)
        failures, why = fail(failures, FAILURES, "b", at=before, every=0.0)
        assert bool(why) is told
        assert (shunned(fail((), FAILURES, every=0.0)[0], "a", 1, before) == {"GPU-1"}) is told


@pytest.mark.parametrize(("pool", "generation"), [("a", 2), ("b", 1), ("A", 9)])
def test_only_the_failures_of_the_generation_that_is_to_blame_are_forgotten(pool, generation):
    failures, _ = fail((), 1, pool, generation, device="GPU-3")
    kept = failures
    failures, _ = fail(failures, FAILURES)
    failures, why = fail(failures, ELSEWHERE, device="GPU-2")
    assert why.startswith("generation 1 has failures") and failures == kept


def test_who_is_to_blame_is_said_with_every_number():
    failures, _ = fail((), FAILURES, "b")
    failures, why = fail(failures, FAILURES, "a", 7)
    assert why == "failures of 2 generations on it within 3600 s: pool a generation 7, pool b generation 1"
    failures, _ = fail((), 1, device="GPU-3", cause="CUDA_ERROR")
    failures, _ = fail(failures, CUDA_FAILURES, cause="CUDA_ERROR")
    failures, why = fail(failures, ELSEWHERE, device="GPU-2", cause="CUDA_ERROR")
    assert why == (
        "generation 1 has CUDA errors on 3 GPUs (2 on GPU-1, 2 on GPU-2, 1 on GPU-3): it is not the GPUs' fault"
    )


def test_what_is_remembered_is_the_latest():
    failures, _ = fail((), REMEMBERED + 1, every=0.001)
    assert failures[0].at == 0.001 and len(failures) == REMEMBERED


def test_a_cuda_error_and_an_end_of_another_kind_are_shunned_apart():
    failures, _ = fail((), CUDA_FAILURES - 1, cause="CUDA_ERROR")
    failures, _ = fail(failures, FAILURES - 1)
    assert shunned(failures, "a", 1, 10.0) == frozenset()
    failures, _ = fail(failures, 1, cause="CUDA_ERROR")
    assert shunned(failures, "a", 1, 10.0) == {"GPU-1"}
