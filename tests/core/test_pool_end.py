"""One pool, step by step: how its engine is watched, how it ends, and what is told of it."""

from __future__ import annotations

import pytest

from poolmgr.core.effects import KillTree, NoteName, Rest, Terminate
from poolmgr.core.messages import Drain, Exited, StartRefused, Stop, TreeEmpty
from poolmgr.core.settle import next_deadline
from poolmgr.model.engine import CrashCause, Diagnosis, ExitRecord, Usage
from poolmgr.model.pool import PoolState, RestartMode
from tests.core.helpers import (
    BAD_ARGUMENTS,
    CUDA,
    ENGINE,
    EXIT_0,
    EXIT_1,
    FAILED,
    KILLED,
    OK,
    OOM,
    Driver,
    a_spec,
    in_state,
    of,
    only_note,
    ready,
)

S = PoolState
OTHER = "f" * 32


# LIVE-1.


@pytest.mark.behaviour("LIVE-1")
def test_three_failed_probes_in_a_row_end_the_engine_with_a_grace():
    driver = ready()
    effects = driver.pass_time(10.1, FAILED)
    assert driver.state is S.READY
    effects = driver.pass_time(5.0, FAILED)
    assert driver.state is S.STOPPING
    assert (of(Terminate, effects), of(KillTree, effects)) == ([Terminate(ENGINE)], [])
    assert only_note(effects, NoteName.HEALTH_CHECK_FAILED).fields["failures"] == 3
    driver.crash(EXIT_0)
    assert driver.pool.last_error.reason == CrashCause.HEALTH_CHECK_FAILED
    assert driver.pool.restart_count == 1


@pytest.mark.behaviour("LIVE-1")
def test_one_good_answer_in_between_starts_the_count_anew():
    driver = ready()
    for result in (FAILED, FAILED, OK, FAILED, FAILED, OK):
        driver.pass_time(5.1, result)
    assert driver.state is S.READY


@pytest.mark.behaviour("LIVE-1")
@pytest.mark.parametrize("jitter", [0.0, 0.3, 0.999])
def test_health_is_asked_every_five_seconds_within_a_tenth(jitter):
    driver = Driver(jitter=jitter)
    driver.make_ready()
    assert 4.5 - 1e-9 <= next_deadline(driver.pool) - driver.now <= 5.5


@pytest.mark.behaviour("LIVE-1")
def test_a_daemon_that_was_not_scheduled_counts_no_failure():
    driver = ready()
    for _ in range(10):
        driver.at(next_deadline(driver.pool) + 1.1)
        driver.answer(FAILED)
    assert driver.state is S.READY
    for _ in range(10):
        driver.at(next_deadline(driver.pool))
        driver.now += 3.0 + 1.1
        driver.answer(FAILED)
    assert driver.state is S.READY


@pytest.mark.behaviour("LIVE-1")
def test_a_lag_of_less_than_a_second_pauses_nothing():
    driver = ready()
    for _ in range(3):
        driver.at(next_deadline(driver.pool) + 0.9)
        driver.now += 3.0
        driver.answer(FAILED)
    assert driver.state is S.STOPPING


@pytest.mark.behaviour("LIVE-1")
def test_a_draining_engine_is_watched_like_a_ready_one():
    driver = in_state(S.DRAINING)
    driver.pass_time(16.0, FAILED)
    assert driver.state is S.STOPPING
    driver.crash()
    assert (driver.state, driver.pool.restart_count) == (S.STOPPED, 0)


# LIVE-3.


@pytest.mark.behaviour("LIVE-3")
@pytest.mark.parametrize(
    ("record", "diagnosis", "cause"),
    [
        (EXIT_1, None, CrashCause.EXIT_CODE),
        (KILLED, None, CrashCause.SIGNAL),
        (OOM, None, CrashCause.HOST_OOM),
        (ExitRecord(), None, CrashCause.UNKNOWN),
        (EXIT_1, CUDA, CrashCause.CUDA_ERROR),
        (KILLED, Diagnosis("GPU_OOM", "out of memory", permanent=False), CrashCause.GPU_OOM),
    ],
)
def test_a_crash_is_told_with_its_cause_and_evidence(record, diagnosis, cause):
    driver = ready()
    driver.usage = Usage(rss_bytes=12345)
    driver.pass_time(5.1, OK)
    driver.now = 1000.0 + 7.0
    driver.do(Exited(ENGINE, record, ("a", "b"), diagnosis))
    error = driver.pool.last_error
    assert error.reason == cause
    assert (error.exit, error.log_tail, error.uptime, error.memory_bytes) == (record, ("a", "b"), 7.0, 12345)


@pytest.mark.behaviour("LIVE-3")
@pytest.mark.parametrize(
    ("mode", "record", "state"),
    [
        (RestartMode.ON_FAILURE, EXIT_0, S.STOPPED),
        (RestartMode.ALWAYS, EXIT_0, S.BACKOFF),
        (RestartMode.NEVER, EXIT_0, S.STOPPED),
        (RestartMode.ON_FAILURE, EXIT_1, S.BACKOFF),
        (RestartMode.ALWAYS, EXIT_1, S.BACKOFF),
        (RestartMode.NEVER, EXIT_1, S.STOPPED),
    ],
)
def test_an_end_that_nobody_asked_for_is_followed_by_what_the_mode_says(mode, record, state):
    driver = ready(a_spec(restart=mode))
    driver.crash(record)
    assert driver.state is state


@pytest.mark.behaviour("LIVE-3", "PRE-2")
def test_exit_0_before_ready_is_a_failed_start():
    driver = in_state(S.STARTING)
    driver.crash(EXIT_0)
    assert (driver.state, driver.pool.restart_count) == (S.BACKOFF, 1)


@pytest.mark.behaviour("RST-8")
def test_a_log_that_names_a_permanent_fault_parks_a_start_but_not_an_engine_that_has_served():
    starting, served = in_state(S.STARTING), ready()
    starting.crash(EXIT_1, BAD_ARGUMENTS)
    served.crash(EXIT_1, BAD_ARGUMENTS)
    assert (starting.state, served.state) == (S.PARKED, S.BACKOFF)


# PROC-3.


@pytest.mark.behaviour("PROC-3")
@pytest.mark.parametrize(("event", "grace"), [(Stop(), 5.0), (Stop(2.0), 2.0), (Drain(), 30.0)])
def test_an_end_is_sigterm_then_the_kill_of_the_tree_after_the_grace(event, grace):
    driver = ready()
    effects = driver.do(event)
    assert (of(Terminate, effects), of(KillTree, effects)) == ([Terminate(ENGINE)], [])
    assert not of(KillTree, driver.pass_time(grace - 0.1))
    assert len(of(KillTree, driver.pass_time(0.2))) == 1
    assert not driver.pass_time(1000.0), "once is enough"
    driver.crash(KILLED)
    assert driver.state is S.STOPPED


@pytest.mark.behaviour("PROC-3")
def test_a_stop_without_grace_kills_at_once():
    assert of(KillTree, ready().do(Stop(0.0)))


@pytest.mark.behaviour("PROC-3")
def test_what_the_main_process_left_behind_is_killed_before_the_pool_is_stopped():
    driver = ready()
    driver.do(Stop())
    assert of(KillTree, driver.do(Exited(ENGINE, EXIT_0)))
    assert driver.state is S.STOPPING
    assert of(Rest, driver.do(TreeEmpty(ENGINE)))
    assert driver.state is S.STOPPED


@pytest.mark.behaviour("RST-8")
def test_our_own_end_is_no_failure_whatever_the_exit_says():
    driver = ready()
    driver.do(Stop())
    driver.crash(KILLED)
    assert (driver.pool.restart_count, driver.pool.last_error) == (0, None)


@pytest.mark.behaviour("PROC-3")
def test_a_stop_while_the_start_is_under_way_kills_what_comes_of_it():
    driver = in_state(S.PROVISIONING)
    driver.do(Stop())
    assert driver.state is S.STOPPING
    assert of(KillTree, driver.spawn())
    driver.crash(KILLED)
    assert (driver.state, driver.pool.restart_count) == (S.STOPPED, 0)


def test_a_stop_while_the_start_is_under_way_ends_when_nothing_comes_of_it():
    driver = in_state(S.PROVISIONING)
    driver.do(Stop())
    driver.do(StartRefused("SPAWN_FAILED", "no", permanent=True))
    assert (driver.state, driver.pool.last_error) == (S.STOPPED, None)


@pytest.mark.behaviour("PROC-3")
def test_a_second_stop_with_a_shorter_grace_hurries_the_first():
    driver = in_state(S.READY)
    driver.do(Stop(30.0))
    driver.do(Stop(1.0))
    assert KillTree(driver.pool.engine.engine_id) in driver.pass_time(1.0)
