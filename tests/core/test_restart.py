"""Backoff, breaker and restart rate. Where jitter is on, a test asserts bounds and never an exact delay."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolmgr.core import restart
from poolmgr.core.effects import CountRestart, NoteName, Start
from poolmgr.core.messages import ChangeSpec, Drain, Exited, Preload, ResetBreaker, Stop, TreeEmpty
from poolmgr.core.restart import RestartPolicy, backoff_delay
from poolmgr.errors import ClientError, Reason
from poolmgr.model.engine import CrashCause
from poolmgr.model.pool import BreakerState, PoolState, RestartMode
from tests.core.helpers import (
    BAD_ARGUMENTS,
    CUDA,
    CUDA_CAUSES,
    ENGINE,
    EXIT_1,
    FAILED,
    JITTER,
    OK,
    OOM,
    SETTINGS,
    Driver,
    a_pool,
    a_spec,
    backoff_bounds,
    in_state,
    notes,
    of,
    ready,
)


def fail_times(policy: RestartPolicy, count: int, now: float = 1000.0, gap: float = 7.0) -> RestartPolicy:
    for i in range(count):
        policy = restart.failed(policy, CrashCause.SIGNAL, now + i * gap, 0.5, 0, SETTINGS).policy
    return policy


# RST-1.


@pytest.mark.behaviour("RST-1")
@given(st.integers(1, 100_000), st.sampled_from(CrashCause), JITTER)
def test_a_delay_stays_within_jitter_of_its_doubling_for_any_count_and_cause(failures, cause, jitter):
    low, high = backoff_bounds(failures, cause in CUDA_CAUSES)
    assert low - 1e-9 <= backoff_delay(failures, cause, jitter, SETTINGS) <= high + 1e-9


@pytest.mark.behaviour("RST-1")
def test_without_jitter_the_delay_doubles_to_the_cap():
    steady = replace(SETTINGS, backoff_jitter=0.0)
    assert [backoff_delay(n, "SIGNAL", 0.9, steady) for n in range(1, 9)] == [1, 2, 4, 8, 16, 32, 60, 60]


@pytest.mark.behaviour("RST-1")
@pytest.mark.parametrize("cause", CUDA_CAUSES)
def test_a_cuda_cause_waits_twice_as_long_up_to_the_same_cap(cause):
    steady = replace(SETTINGS, backoff_jitter=0.0)
    assert [backoff_delay(n, cause, 0.9, steady) for n in range(1, 8)] == [2, 4, 8, 16, 32, 60, 60]


@pytest.mark.behaviour("RST-1")
@given(JITTER)
def test_jitter_at_the_cap_goes_downward_only(jitter):
    assert 54.0 - 1e-9 <= backoff_delay(20, "SIGNAL", jitter, SETTINGS) <= 60.0


@pytest.mark.behaviour("RST-1")
def test_jitter_reaches_both_sides_of_the_middle():
    assert backoff_delay(3, "SIGNAL", 0.0, SETTINGS) < 4.0 < backoff_delay(3, "SIGNAL", 0.999, SETTINGS)


@pytest.mark.behaviour("RST-1")
@given(st.floats(0.001, 0.4), JITTER)
def test_no_delay_is_shorter_than_the_floor(initial, jitter):
    assert backoff_delay(1, "SIGNAL", jitter, replace(SETTINGS, backoff_initial=initial)) >= 0.5


@pytest.mark.behaviour("RST-1")
@pytest.mark.parametrize(("healthy", "left"), [(299.9, 5), (300.0, 4), (899.9, 3), (900.0, 2), (3000.0, 1)])
def test_the_failure_count_fades_by_one_per_300_s_of_healthy_running(healthy, left):
    policy = replace(fail_times(RestartPolicy(), 4), healthy_since=2000.0)
    assert restart.failed(policy, "SIGNAL", 2000.0 + healthy, 0.5, 0, SETTINGS).policy.failures == left


@pytest.mark.behaviour("RST-1")
def test_time_that_is_not_healthy_running_fades_nothing():
    assert restart.failed(fail_times(RestartPolicy(), 4), "SIGNAL", 1e6, 0.5, 0, SETTINGS).policy.failures == 5
    stopped = restart.ended_well(replace(RestartPolicy(failures=4), healthy_since=0.0), 300.0, SETTINGS)
    assert (stopped.failures, stopped.healthy_since) == (3, None)


@pytest.mark.behaviour("RST-1")
def test_a_drained_engine_that_crashes_leaves_no_health_behind_that_could_fade_failures_later():
    driver = ready()
    driver.crash()
    driver.make_ready()
    driver.lease("x", ttl=300.0)
    driver.do(Drain())
    driver.crash()
    assert driver.pool.policy.healthy_since is None


# RST-2.


def fail_ready(driver: Driver, times: int) -> None:
    for _ in range(times):
        driver.make_ready()
        driver.crash()


@pytest.mark.behaviour("RST-2")
def test_the_fifth_failure_in_a_row_opens_the_breaker_for_300_s():
    driver = Driver()
    fail_ready(driver, 4)
    assert (driver.state, driver.pool.policy.breaker_state) == (PoolState.BACKOFF, BreakerState.CLOSED)
    fail_ready(driver, 1)
    assert (driver.state, driver.pool.policy.breaker_state) == (PoolState.PARKED, BreakerState.OPEN)
    assert driver.pool.resume_at == driver.now + 300.0
    assert not of(Start, driver.pass_time(299.9))
    assert of(Start, driver.pass_time(0.2))


@pytest.mark.behaviour("RST-2")
@pytest.mark.parametrize(("healthy", "opens"), [(59.9, True), (60.0, False)])
def test_60_s_of_stable_running_end_the_row_of_failures(healthy, opens):
    driver = Driver()
    fail_ready(driver, 4)
    driver.make_ready()
    driver.pass_time(healthy, OK)
    driver.crash()
    assert (driver.state is PoolState.PARKED) is opens


@pytest.mark.behaviour("RST-2")
def test_60_s_of_stable_running_count_also_when_their_tick_comes_after_the_crash():
    driver = Driver()
    fail_ready(driver, 4)
    driver.make_ready()
    driver.now += 60.5
    driver.crash()
    assert driver.state is PoolState.BACKOFF


@pytest.mark.behaviour("RST-2")
def test_a_half_open_breaker_starts_exactly_one_trial():
    driver = in_state(PoolState.PARKED)
    assert len(of(Start, driver.pass_time(300.0))) == 1
    assert driver.pool.policy.breaker_state is BreakerState.HALF_OPEN
    driver.spawn()
    driver.crash()
    assert driver.state is PoolState.PARKED
    assert not of(Start, driver.pass_time(599.9))


@pytest.mark.behaviour("RST-2")
def test_each_failed_trial_doubles_the_open_time_up_to_an_hour():
    driver, open_times = in_state(PoolState.PARKED), []
    for _ in range(6):
        open_times.append(driver.pool.resume_at - driver.now)
        driver.make_ready()
        driver.crash()
    assert open_times == pytest.approx([300, 600, 1200, 2400, 3600, 3600])


@pytest.mark.behaviour("RST-2")
def test_a_trial_that_is_stable_for_60_s_closes_the_breaker_and_forgets_the_doubling():
    driver = in_state(PoolState.PARKED)
    driver.make_ready()
    driver.crash()
    driver.make_ready()
    driver.pass_time(59.9, OK)
    assert driver.pool.policy.breaker_state is BreakerState.HALF_OPEN
    effects = driver.pass_time(0.2, OK)
    assert driver.pool.policy.breaker_state is BreakerState.CLOSED
    assert len(notes(effects, NoteName.BREAKER_CLOSED)) == 1
    driver.crash()
    fail_ready(driver, 4)
    assert driver.pool.resume_at == driver.now + 300.0


@pytest.mark.behaviour("RST-2")
def test_a_stop_in_between_does_not_let_a_preload_through_an_open_breaker():
    driver = in_state(PoolState.PARKED)
    driver.do(Stop())
    with pytest.raises(ClientError) as refused:
        driver.do(Preload())
    assert refused.value.reason is Reason.BREAKER_OPEN
    assert refused.value.retry_after == pytest.approx(300.0)
    driver.now += 300.0
    assert of(Start, driver.do(Preload()))
    assert driver.pool.policy.breaker_state is BreakerState.HALF_OPEN


@pytest.mark.behaviour("RST-2")
def test_an_operator_closes_the_breaker_and_the_pool_starts_at_once():
    driver = in_state(PoolState.PARKED)
    assert of(Start, driver.do(ResetBreaker()))
    assert driver.pool.policy.breaker_state is BreakerState.CLOSED


@pytest.mark.behaviour("RST-2", "RST-7")
def test_a_reset_while_the_last_process_is_still_going_is_not_lost():
    driver = Driver()
    fail_ready(driver, 4)
    driver.make_ready()
    driver.do(Exited(ENGINE, EXIT_1))
    assert driver.state is PoolState.STOPPING
    driver.do(ResetBreaker())
    assert of(Start, driver.do(TreeEmpty(ENGINE)))


# RST-4.


@pytest.mark.behaviour("RST-4")
def test_the_eleventh_restart_of_a_pool_within_60_s_opens_the_breaker():
    tolerant = replace(SETTINGS, breaker_threshold=100)
    policy = RestartPolicy()
    for i in range(10):
        decision = restart.failed(policy, "SIGNAL", 1000.0 + i, 0.5, 0, tolerant)
        policy = decision.policy
        assert not decision.opened
    assert restart.failed(policy, "SIGNAL", 1059.9, 0.5, 0, tolerant).opened_by == "pool_rate"
    assert not restart.failed(policy, "SIGNAL", 1060.0, 0.5, 0, tolerant).opened


@pytest.mark.behaviour("RST-4")
@pytest.mark.parametrize(("others", "opened_by"), [(9, ""), (10, "host_rate")])
def test_more_than_ten_restarts_of_the_host_open_the_breaker_of_the_pool_that_fails(others, opened_by):
    assert restart.failed(RestartPolicy(), "SIGNAL", 0.0, 0.5, others, SETTINGS).opened_by == opened_by


@pytest.mark.behaviour("RST-4")
def test_a_storm_is_told_with_its_scope_and_numbers():
    driver = ready()
    driver.host_restarts = 10
    storm = notes(driver.crash(), NoteName.RESTART_STORM)
    assert [n.fields["scope"] for n in storm] == ["host_rate"]
    assert storm[0].fields["host_restarts"] == 11


@pytest.mark.behaviour("RST-4")
@pytest.mark.parametrize(("others", "warned"), [(4, False), (5, True), (9, True)])
def test_a_restart_rate_above_five_on_the_host_is_warned_of(others, warned):
    driver = ready()
    driver.host_restarts = others
    assert bool(notes(driver.crash(), NoteName.RESTART_RATE_HIGH)) is warned


@pytest.mark.behaviour("RST-4")
def test_the_sixth_restart_of_a_pool_within_60_s_is_warned_of():
    driver = Driver(a_pool(supervision=replace(SETTINGS, breaker_threshold=100, backoff_max=1.0)))
    warned = []
    for _ in range(6):
        driver.make_ready()
        warned.append(bool(notes(driver.crash(), NoteName.RESTART_RATE_HIGH)))
    assert warned == [False] * 5 + [True]


@pytest.mark.behaviour("RST-4")
@pytest.mark.parametrize(("last", "storm"), [(59.9, True), (60.0, False)])
def test_five_out_of_memory_crashes_within_60_s_are_an_oom_storm(last, storm):
    tolerant = replace(SETTINGS, breaker_threshold=100)
    policy = RestartPolicy()
    for when, cause in enumerate(("HOST_OOM", "GPU_OOM", "SIGNAL", "HOST_OOM", "GPU_OOM")):
        policy = restart.failed(policy, cause, float(when), 0.5, 0, tolerant).policy
    decision = restart.failed(policy, CrashCause.HOST_OOM, last, 0.5, 0, tolerant)
    assert decision.oom_storm is storm


@pytest.mark.behaviour("RST-4")
def test_an_oom_storm_is_told():
    driver = Driver(a_pool(supervision=replace(SETTINGS, breaker_threshold=100, backoff_max=1.0)))
    told = []
    for _ in range(5):
        driver.make_ready()
        told.append(len(notes(driver.crash(OOM), NoteName.OOM_STORM)))
    assert told == [0, 0, 0, 0, 1]


@pytest.mark.behaviour("RST-4")
def test_every_counted_failure_is_one_restart_of_the_host_and_our_own_stop_is_none():
    driver = ready()
    assert len(of(CountRestart, driver.crash())) == 1
    driver.make_ready()
    stopped = driver.do(Stop()) + driver.crash()
    assert not of(CountRestart, stopped)
    assert driver.pool.restart_count == 1


# RST-7.


@pytest.mark.behaviour("RST-7", "RST-8")
def test_a_pool_parked_for_its_arguments_never_starts_by_itself():
    driver = Driver()
    driver.start()
    driver.crash(EXIT_1, BAD_ARGUMENTS)
    assert (driver.state, driver.pool.resume_at) == (PoolState.PARKED, None)
    assert not of(Start, driver.pass_time(1e6))


@pytest.mark.behaviour("RST-7")
@pytest.mark.parametrize("event", [ResetBreaker(), ChangeSpec(a_spec(args=("--other",)), 2)], ids=["reset", "edit"])
def test_an_operator_brings_a_parked_pool_back(event):
    driver = Driver()
    driver.start()
    driver.crash(EXIT_1, BAD_ARGUMENTS)
    assert of(Start, driver.do(event))
    driver.make_ready()


@pytest.mark.behaviour("RST-7")
def test_an_edited_spec_gets_one_trial_from_an_open_breaker():
    driver = in_state(PoolState.PARKED)
    assert of(Start, driver.do(ChangeSpec(a_spec(args=("--other",)), 2)))
    assert driver.pool.policy.breaker_state is BreakerState.HALF_OPEN
    driver.spawn("f" * 32)
    driver.crash()
    assert (driver.state, driver.pool.resume_at) == (PoolState.PARKED, driver.now + 600.0)


@pytest.mark.behaviour("LIVE-3")
def test_restart_never_stops_a_failed_pool():
    driver = ready(a_spec(restart=RestartMode.NEVER))
    driver.crash()
    assert driver.state is PoolState.STOPPED
    assert driver.pool.last_error is not None
    assert not of(Start, driver.pass_time(1e6))


@pytest.mark.behaviour("RST-1")
def test_a_cuda_crash_backs_off_longer_than_another_one():
    plain, cuda = ready(), ready()
    plain.crash()
    cuda.crash(EXIT_1, CUDA)
    assert plain.pool.resume_at - plain.now < 1.2 < 1.7 < cuda.pool.resume_at - cuda.now


@pytest.mark.behaviour("LIVE-1", "RST-1")
def test_failed_health_checks_are_backed_off_from():
    driver = ready()
    driver.pass_time(15.1, FAILED)
    assert driver.state is PoolState.STOPPING
    driver.crash()
    assert driver.state is PoolState.BACKOFF
    assert driver.pool.last_error.reason == CrashCause.HEALTH_CHECK_FAILED
