"""One pool, step by step: its start, the deadlines of a start, and its port."""

from __future__ import annotations

import pytest

from poolmgr.core.effects import CountRestart, KillTree, NoteName, RunProbe, Start
from poolmgr.core.engine import PROGRESS_LOG_BYTES, PROGRESS_READ_BYTES, PROGRESS_RSS_BYTES
from poolmgr.core.messages import Exited, Preload, StartRefused, Tick, TreeEmpty
from poolmgr.core.settle import next_deadline
from poolmgr.core.view import fingerprint, view
from poolmgr.errors import Reason
from poolmgr.model.engine import CrashCause, EngineFacts, Usage
from poolmgr.model.pool import PoolState, ProbeSpec, RestartMode, SupervisionOverrides
from tests.core.helpers import (
    ENGINE,
    EXIT_1,
    FAILED,
    KILLED,
    LOADING,
    OK,
    Driver,
    a_pool,
    a_spec,
    in_state,
    of,
    only,
    only_note,
)

S = PoolState
OTHER = "f" * 32


# PRE-1, PRE-8, PRE-9: start.


@pytest.mark.behaviour("PRE-1", "PRE-9")
def test_a_start_goes_from_spawn_over_probe_to_ready_and_publishes_what_the_engine_is():
    driver = Driver()
    assert driver.do(Preload())[-1] == Start("", proven=False, fresh_port=False, generation=1)
    assert only(RunProbe, driver.spawn()).readiness
    driver.now += 4.0
    told = driver.answer(OK, facts=EngineFacts("b123", 2, 4096, "tiny"), owned=True)
    shown = view(fingerprint(driver.pool), 7, 0.0)
    assert (shown.state, shown.ready, shown.slots_total, shown.slots_free) == (S.READY, True, 2, 2)
    assert (shown.engine_version, shown.context_length, shown.endpoint) == ("b123", 4096, "127.0.0.1:8000")
    assert shown.load_time == 4.0
    assert only_note(told, NoteName.POOL_READY).fields["duration_ms"] == 4000


@pytest.mark.behaviour("PRE-1", "RST-8")
@pytest.mark.parametrize(("permanent", "state"), [(True, S.PARKED), (False, S.BACKOFF)])
def test_a_closed_gate_parks_for_good_or_backs_off_and_says_why(permanent, state):
    driver = in_state(S.PROVISIONING)
    effects = driver.do(StartRefused("MODEL_NOT_FOUND", "no file /m.gguf", permanent))
    assert driver.state is state
    assert driver.pool.last_error.reason == "MODEL_NOT_FOUND"
    assert "no file /m.gguf" in view(fingerprint(driver.pool), 1, 0.0).last_error.message
    assert bool(of(CountRestart, effects)) is not permanent
    assert bool(of(Start, driver.pass_time(1e5))) is not permanent


@pytest.mark.behaviour("PRE-8")
def test_a_failed_start_waits_for_the_whole_tree_before_it_backs_off():
    driver = in_state(S.STARTING)
    effects = driver.do(Exited(ENGINE, EXIT_1, ("boom",)))
    assert of(KillTree, effects)
    assert driver.state is S.STOPPING
    driver.do(TreeEmpty(ENGINE))
    assert (driver.state, driver.pool.engine) == (S.BACKOFF, None)
    assert driver.pool.last_error.log_tail == ("boom",)


@pytest.mark.behaviour("PRE-2")
def test_a_dead_child_fails_the_start_at_once_and_not_at_the_deadline():
    driver = in_state(S.STARTING)
    driver.now += 0.3
    driver.crash(EXIT_1)
    assert driver.state is S.BACKOFF
    assert driver.pool.last_error.uptime == pytest.approx(0.3)


@pytest.mark.behaviour("PRE-2")
def test_readiness_is_asked_every_half_second_with_a_bounded_wait():
    driver = in_state(S.STARTING)
    assert driver.log[-1] == RunProbe(ENGINE, 1, readiness=True, timeout=3.0)
    driver.answer(LOADING)
    assert not of(RunProbe, driver.pass_time(0.49))
    assert of(RunProbe, driver.pass_time(0.02))


@pytest.mark.behaviour("PRE-2")
def test_only_one_probe_is_under_way_at_a_time():
    driver = in_state(S.STARTING)
    assert not of(RunProbe, driver.pass_time(30.0))


@pytest.mark.behaviour("PRE-2")
def test_a_pool_overrides_how_it_is_probed():
    spec = a_spec(readiness=ProbeSpec(interval=2.0, timeout=9.0), liveness=ProbeSpec(interval=30.0, timeout=8.0))
    driver = Driver(a_pool(spec))
    assert only(RunProbe, driver.start()).timeout == 9.0
    driver.answer(LOADING)
    assert not of(RunProbe, driver.pass_time(1.9))
    driver.pass_time(0.2)
    driver.answer(OK)
    assert not of(RunProbe, driver.pass_time(29.9))
    assert only(RunProbe, driver.pass_time(0.2)).timeout == 8.0


# PRE-3: deadlines of a start.


def loading(driver: Driver, seconds: float, grows: dict[str, int]) -> None:
    """Time in which every probe says that it is loading, and each usage has grown by `grows`."""
    end = driver.now + seconds
    while driver.state is S.STARTING and (due := next_deadline(driver.pool)) is not None and due <= end:
        driver.now = due
        if of(RunProbe, driver.do(Tick())):
            before = driver.usage
            driver.usage = Usage(**{k: (getattr(before, k) or 0) + v for k, v in grows.items()})
            driver.answer(LOADING)
    if driver.state is S.STARTING:
        driver.now = end


@pytest.mark.behaviour("PRE-3")
def test_a_start_without_progress_is_stalled_after_60_s():
    driver = in_state(S.STARTING)
    driver.answer(LOADING)
    loading(driver, 59.9, {})
    assert driver.state is S.STARTING
    loading(driver, 0.2, {})
    assert driver.pool.last_error.reason == CrashCause.STALLED
    assert driver.log.count(KillTree(ENGINE)) == 1
    driver.do(Exited(ENGINE, KILLED))
    driver.do(TreeEmpty(ENGINE))
    assert driver.pool.last_error.reason == CrashCause.STALLED, "the kill is not the cause"


@pytest.mark.behaviour("PRE-3")
@pytest.mark.parametrize(
    "grows",
    [
        {"log_bytes": PROGRESS_LOG_BYTES},
        {"rss_bytes": PROGRESS_RSS_BYTES},
        {"read_bytes": PROGRESS_READ_BYTES},
    ],
    ids=lambda grows: next(iter(grows)),
)
def test_progress_extends_a_start_up_to_three_times_its_deadline(grows):
    driver = in_state(S.STARTING)
    driver.answer(LOADING)
    loading(driver, 359.0, grows)
    assert driver.state is S.STARTING
    loading(driver, 2.0, grows)
    assert driver.pool.last_error.reason == CrashCause.START_FAILED
    assert driver.now == pytest.approx(1360.0)


@pytest.mark.behaviour("PRE-3")
def test_a_line_of_log_for_each_probe_is_no_progress():
    driver = in_state(S.STARTING)
    driver.answer(LOADING)
    loading(driver, 61.0, {"log_bytes": 120, "read_bytes": 4096, "rss_bytes": 4096})
    assert driver.pool.last_error.reason == CrashCause.STALLED


@pytest.mark.behaviour("PRE-3", "CFG-2")
def test_a_start_without_progress_fails_at_a_deadline_that_is_shorter_than_the_stall_limit():
    driver = Driver(a_pool(a_spec(supervision=SupervisionOverrides(start_timeout_secs=10))))
    driver.start()
    driver.answer(LOADING)
    loading(driver, 11.0, {})
    assert driver.pool.last_error.reason == CrashCause.START_FAILED
    assert driver.now == pytest.approx(1010.0)


@pytest.mark.behaviour("PRE-3")
def test_a_probe_that_is_never_answered_does_not_hold_a_start_up():
    driver = in_state(S.STARTING)
    driver.pass_time(61.0)
    assert driver.pool.last_error.reason == CrashCause.STALLED


@pytest.mark.parametrize("born", [0.1, 1000.3, 12345.678, 98765.4321, 1e6 + 0.7])
def test_a_stall_is_called_so_whatever_the_clock_rounds_to(born):
    driver = Driver(now=born)
    driver.start()
    driver.pass_time(61.0)
    assert driver.pool.last_error.reason == CrashCause.STALLED


# PRE-4, PRE-5: the port.


@pytest.mark.behaviour("PRE-4")
@pytest.mark.parametrize("result", [OK, LOADING, FAILED], ids=lambda r: r.outcome)
def test_a_stranger_on_the_port_is_never_ready_and_the_next_start_takes_another_port(result):
    driver = in_state(S.STARTING)
    effects = driver.answer(result, owned=False)
    assert (driver.state, driver.pool.last_error.reason) == (S.STOPPING, Reason.PORT_TAKEN)
    assert of(KillTree, effects)
    driver.crash(KILLED)
    again = only(Start, driver.pass_time(5.0))
    assert again == Start(ENGINE, proven=False, fresh_port=True, generation=1)
    driver.make_ready()
    driver.crash()
    assert not only(Start, driver.pass_time(5.0)).fresh_port


@pytest.mark.behaviour("PRE-4", "PRE-5")
def test_a_pool_that_is_not_restarted_also_takes_another_port_when_it_is_asked_to_start():
    driver = Driver(a_pool(a_spec(restart=RestartMode.NEVER)))
    driver.start()
    driver.answer(OK, owned=False)
    driver.crash(KILLED)
    assert driver.state is S.STOPPED
    assert only(Start, driver.do(Preload())).fresh_port


@pytest.mark.behaviour("PRE-4")
def test_an_answer_is_believed_only_once_the_listener_is_seen_to_be_ours():
    driver = in_state(S.STARTING)
    driver.answer(OK, owned=None)
    assert driver.state is S.STARTING
    driver.pass_time(0.5)
    driver.answer(OK, owned=True)
    assert driver.state is S.READY


@pytest.mark.behaviour("LIVE-1", "PRE-3")
def test_a_daemon_that_was_not_scheduled_does_not_fail_a_start_for_the_time_it_slept():
    driver = in_state(S.STARTING)
    driver.answer(FAILED)
    driver.now += 200.0  # no Tick came at its time: the daemon was stopped
    driver.do(Tick())
    assert driver.state is S.STARTING
    driver.pass_time(61.0)
    assert driver.pool.last_error.reason == CrashCause.STALLED
