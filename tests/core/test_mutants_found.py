"""Rules that the other tests of core took for granted: what is noted, told and remembered beside what is decided."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from dataclasses import replace
from enum import Enum

import pytest

import poolmgr.core
from poolmgr.core.effects import CountDeath, Note, NoteName, RecordLeases, RunProbe, Terminate
from poolmgr.core.leases import Grantor, LeaseTable, grant, knows, release
from poolmgr.core.memo import Judged
from poolmgr.core.messages import (
    Drain,
    Exited,
    Found,
    HostFault,
    InDoubt,
    LeasesKept,
    Preload,
    Recovered,
    Stop,
    TreeEmpty,
)
from poolmgr.core.registration import retold
from poolmgr.core.restart import RestartPolicy, refunded
from poolmgr.core.settle import next_deadline
from poolmgr.core.state import ReloadPhase, Turn, memo_of, remembering
from poolmgr.errors import ClientError
from poolmgr.model.engine import EngineFacts, ProbeOutcome, ProbeResult, Usage
from poolmgr.model.lease import EndedLease, LeaseOutcome, Refusal, RefusalReason
from poolmgr.model.pool import PoolState, ReloadStrategy
from poolmgr.model.registration import Registration
from poolmgr.model.settings import LeaseSettings, SupervisionSettings
from tests.core.helpers import (
    BAD_ARGUMENTS,
    ENGINE,
    EXIT_0,
    EXIT_1,
    FAILED,
    KILLED,
    LOADING,
    OOM,
    QUIET,
    Driver,
    a_pool,
    a_remembering_pool,
    an_ask,
    in_state,
    notes,
    of,
    only,
    only_note,
    ready,
)
from tests.core.test_registered import FIRST, Registered, a_ready

S = PoolState
COPIED_OFTEN = "Pool"  # its slots would be copied one by one
# Tables and scratch pads of one search or of one buffer's layout: nobody keeps them beyond the call that makes them.
SCRATCH = {
    ("split_changes", "Budget"),
    ("split_costs", "Tables"),
    ("split_latency", "Run"),
    ("split_sweep", "Reach"),
    ("split_sweep", "Sweep"),
    ("ggml_allocator", "Graph"),
    ("ggml_allocator", "Heap"),
    ("ggml_allocator", "Node"),
    ("llamacpp_graph", "_Builder"),
}


def values_of_core() -> list[type]:
    """Every class of core but enums, tuples and scratch pads."""
    modules = [importlib.import_module(f"poolmgr.core.{m.name}") for m in pkgutil.iter_modules(poolmgr.core.__path__)]
    found = {v for m in modules for v in vars(m).values() if isinstance(v, type) and v.__module__ == m.__name__}
    kept = (v for v in found if (v.__module__.rpartition(".")[2], v.__name__) not in SCRATCH)
    return sorted((v for v in kept if not issubclass(v, Enum | tuple | Turn)), key=lambda v: v.__name__)


@pytest.mark.parametrize("value", values_of_core(), ids=lambda v: v.__name__)
def test_a_value_is_frozen_and_slotted(value):
    assert dataclasses.is_dataclass(value) and value.__dataclass_params__.frozen
    assert ("__slots__" in vars(value)) is (value.__name__ != COPIED_OFTEN)


# What an end is told as.


@pytest.mark.behaviour("LIVE-3")
@pytest.mark.parametrize(
    ("record", "text"),
    [
        (OOM, "killed by the host's out-of-memory killer after 7.0 s"),
        (KILLED, "ended by signal 9 after 7.0 s"),
        (EXIT_1, "exited with code 1 after 7.0 s"),
        (replace(EXIT_1, exit_code=None), "ended after 7.0 s; nobody could tell how"),
    ],
)
def test_an_end_is_told_in_words_with_the_time_that_it_took(record, text):
    driver = ready()
    driver.now += 7.0
    note = only_note(driver.crash(record), NoteName.ENGINE_CRASHED)
    assert (driver.pool.last_error.message, note.fields["uptime_seconds"]) == (text, 7.0)
    assert (note.fields["reason"], note.fields["message"]) == (driver.pool.last_error.reason, text)


@pytest.mark.behaviour("RST-6")
def test_an_engine_counts_among_the_hosts_deaths_only_when_it_had_served_and_nobody_ended_it():
    assert of(CountDeath, ready().crash())
    assert not of(CountDeath, in_state(S.STARTING).crash())
    assert not of(CountDeath, in_state(S.STOPPING).crash())


def test_a_pool_that_is_ended_has_nothing_due_but_the_kill():
    driver = ready()
    driver.do(Stop(grace=30.0))
    assert next_deadline(driver.pool) == driver.now + 30.0  # long after the next probe
    assert not of(RunProbe, driver.pass_time(60.0))


@pytest.mark.behaviour("RST-1", "RST-8")
@pytest.mark.parametrize("end", [Stop(), Drain()])
def test_our_own_end_credits_the_health_that_the_engine_had(end):
    driver = ready(QUIET)
    driver.crash()
    driver.make_ready()
    assert driver.pool.policy.failures == 1
    driver.now += driver.pool.settings.failure_decay
    driver.do(end)
    driver.crash(EXIT_0)
    assert driver.state is S.STOPPED
    assert (driver.pool.policy.failures, driver.pool.policy.healthy_since) == (0, None)


# What is noted of a restart.


@pytest.mark.behaviour("RST-1")
def test_a_backoff_is_noted_with_its_time_and_what_it_follows_from():
    driver = ready(QUIET)
    driver.crash()
    driver.make_ready()
    told = driver.crash()
    assert only_note(told, NoteName.BACKOFF_SCHEDULED).fields == {
        "backoff_ms": 2000, "failure_count": 2, "restart_count": 2,
    }  # fmt: skip
    assert not notes(told, NoteName.BREAKER_OPENED)


@pytest.mark.behaviour("RST-2")
def test_an_opened_breaker_is_noted_with_what_opened_it_and_for_how_long_and_no_backoff_beside_it():
    driver = in_state(S.BACKOFF)
    while driver.state is not S.PARKED:
        driver.make_ready()
        told = driver.crash()
    assert only_note(told, NoteName.BREAKER_OPENED).fields == {
        "by": "failures", "consecutive_failures": 5, "open_ms": 300_000,
    }  # fmt: skip
    assert not notes(told, NoteName.BACKOFF_SCHEDULED)


@pytest.mark.behaviour("RST-4")
@pytest.mark.parametrize(("before", "name"), [(4, None), (5, NoteName.RESTART_RATE_HIGH), (10, NoteName.RESTART_STORM)])
def test_a_high_rate_of_restarts_on_the_host_is_noted_with_its_evidence(before, name):
    driver = ready(QUIET)
    driver.host_restarts = before
    told = driver.crash()
    rates = notes(told, NoteName.RESTART_RATE_HIGH) + notes(told, NoteName.RESTART_STORM)
    assert [note.name for note in rates] == ([name] if name else [])
    if name:
        evidence = {"restarts": 1, "host_restarts": before + 1, "window_seconds": 60.0, "limit": 10}
        scope = {"scope": "host_rate"} if name is NoteName.RESTART_STORM else {}
        assert rates[0].fields == evidence | scope


@pytest.mark.behaviour("RST-5")
def test_a_slow_loop_is_noted_from_the_sixth_failure_on():
    driver = ready(QUIET)
    for number in range(1, 8):
        told = driver.crash()
        assert [n.fields["failures"] for n in notes(told, NoteName.FLAPPING)] == ([number] if number >= 6 else [])
        driver.make_ready()
        driver.now += driver.pool.settings.stable_after
    (note,) = notes(told, NoteName.FLAPPING)
    assert (note.fields["window_seconds"], note.fields["parked"]) == (6 * 3600.0, False)


@pytest.mark.behaviour("RST-4")
def test_the_fifth_end_by_lack_of_memory_within_a_minute_is_noted():
    driver = ready(QUIET)
    for number in range(1, 6):
        told = driver.crash(OOM)
        assert [n.fields["ooms"] for n in notes(told, NoteName.OOM_STORM)] == ([5] if number == 5 else [])
        if number < 5:
            driver.make_ready()


# What a later daemon is told.


@pytest.mark.behaviour("PROC-6", "RST-8")
def test_an_end_that_was_judged_is_not_counted_again_by_the_daemon_that_finds_it():
    driver = ready()
    driver.crash()
    assert driver.pool.judged == Judged(ENGINE, 100, 100)
    later = Driver(remembering(a_pool(), memo_of(driver.pool)))
    later.do(Found(ENGINE, 100, 100, Exited(ENGINE, EXIT_1)))
    later.do(Recovered())
    assert (later.state, later.pool.restart_count) == (S.BACKOFF, 1)


@pytest.mark.behaviour("PROC-6", "RST-8")
@pytest.mark.parametrize("diagnosis", [None, BAD_ARGUMENTS])
def test_an_end_that_no_daemon_saw_is_counted_once_and_parks_no_pool(diagnosis):
    driver = Driver(a_remembering_pool())
    told = driver.do(Found(ENGINE, 100, 100, Exited(ENGINE, EXIT_1, ("last words",), diagnosis)))
    driver.do(Recovered())
    assert (driver.state, driver.pool.restart_count) == (S.BACKOFF, 1)
    assert driver.pool.last_error.message == "exited with code 1 while no daemon ran"
    note = only_note(told, NoteName.ENGINE_CRASHED)
    assert (note.fields["message"], note.fields["uptime_seconds"]) == (driver.pool.last_error.message, 0.0)


@pytest.mark.behaviour("PROC-6", "RST-8")
@pytest.mark.parametrize(
    ("memo", "fact"),
    [
        ({"wanted": False}, Found(ENGINE, 100, 100, Exited(ENGINE, EXIT_1))),
        ({}, Found(ENGINE, 100, 100)),
        ({}, Found(ENGINE, 0, 0, Exited(ENGINE, EXIT_1))),
    ],
)
def test_an_end_of_an_engine_that_nobody_wants_or_can_name_counts_for_nothing(memo, fact):
    driver = Driver(a_remembering_pool(**memo))
    told = driver.do(fact)
    assert (driver.pool.restart_count, driver.pool.last_error, of(Note, told)) == (0, None, [])
    assert driver.pool.home.engine_id == ENGINE


@pytest.mark.behaviour("PROC-6")
def test_a_pool_in_doubt_notes_why():
    note = only_note(Driver().do(InDoubt(ENGINE, "start time differs")), NoteName.POOL_IN_DOUBT)
    assert note.fields["detail"] == "start time differs"


# What a start is told.


def test_a_start_says_what_its_last_probe_said_and_keeps_it_when_the_next_says_nothing():
    driver = in_state(S.STARTING)
    driver.answer(LOADING)
    assert driver.pool.reason == LOADING.detail
    driver.pass_time(0.6)
    driver.answer(ProbeResult(ProbeOutcome.FAILED))
    assert driver.pool.reason == LOADING.detail
    driver.pass_time(0.6)
    driver.answer(FAILED)
    assert driver.pool.reason == FAILED.detail


@pytest.mark.behaviour("PRE-3")
@pytest.mark.parametrize(("measure", "least"), [("log_bytes", 512), ("read_bytes", 65_536), ("rss_bytes", 262_144)])
def test_a_load_counts_as_progress_from_a_growth_on_that_no_mere_probe_causes(measure, least):
    for grown, progressed in ((least - 1, False), (least, True), (least + 1, True)):
        driver = in_state(S.STARTING)
        driver.usage = Usage(log_bytes=0, read_bytes=1, rss_bytes=1)
        driver.answer(LOADING)
        began = driver.now
        driver.pass_time(0.6)
        before = driver.pool.engine.progressed
        assert before == began
        driver.usage = replace(driver.usage, **{measure: getattr(driver.usage, measure) + grown})
        driver.answer(LOADING)
        assert (driver.pool.engine.progressed > before) is progressed


def test_an_engine_is_known_by_what_its_id_says():
    driver = in_state(S.STOPPING)
    same = "".join(ENGINE)
    driver.do(Exited(same, EXIT_0))
    driver.do(TreeEmpty(same))
    assert driver.state is S.STOPPED
    driver.do(Preload())
    assert driver.state is S.PROVISIONING


# What is told of a pool that cannot serve.


@pytest.mark.behaviour("RST-2")
def test_a_start_that_an_open_breaker_refuses_says_how_long_to_the_millisecond():
    driver = in_state(S.PARKED)
    driver.do(Stop())
    driver.now += 1.2345678
    with pytest.raises(ClientError) as refused:
        driver.do(Preload())
    left = driver.pool.policy.open_until - driver.now
    assert refused.value.numbers == {"consecutive_failures": 5, "seconds_left": round(left, 3)}
    assert refused.value.retry_after == left > 290.0


@pytest.mark.behaviour("LEASE-1")
def test_an_engine_with_fewer_slots_than_its_spec_is_full_and_not_said_to_refuse_them():
    driver = Driver()
    driver.make_ready(EngineFacts(slots=1))
    driver.lease("first")
    answer = driver.ask("second")
    assert isinstance(answer, Refusal) and answer.reason is RefusalReason.POOL_FULL
    assert answer.message == "all 1 slots of pool p are leased"


@pytest.mark.behaviour("RST-6")
@pytest.mark.parametrize("state", [S.READY, S.DRAINING, S.STOPPING, S.STOPPED])
def test_a_fault_of_the_host_schedules_no_start_of_a_pool_that_waits_for_none(state):
    driver = in_state(state)
    driver.do(HostFault())
    assert (driver.state, driver.pool.resume_at, driver.pool.host_doubt) == (state, None, True)


@pytest.mark.behaviour("RST-6")
def test_a_fault_of_the_host_has_a_pool_that_waits_start_after_the_first_backoff():
    driver = in_state(S.BACKOFF)
    driver.pass_time(0.5)
    driver.do(HostFault())
    assert driver.pool.resume_at == driver.now + driver.pool.settings.backoff_initial


# What is left of leases.


def test_a_table_knows_the_leases_that_live_and_those_that_are_over_and_no_other():
    ask, settings = an_ask("one"), LeaseSettings()
    table, lease = grant(LeaseTable(2), ask, Grantor("127.0.0.1:1", 1, 1), 0.0)
    assert knows(table, lease.lease_id) and not knows(table, "p.other")
    table, _ = release(table, lease.lease_id, lease.token, 1.0, settings)
    assert knows(table, lease.lease_id) and not knows(table, "p.other")


@pytest.mark.behaviour("LEASE-3")
def test_leases_on_an_engine_that_is_gone_are_recorded_as_over():
    lease = ready().lease("one")
    driver = Driver(a_remembering_pool())
    recorded = only(RecordLeases, driver.do(LeasesKept((lease,))))
    assert recorded == RecordLeases(ended=(EndedLease(lease.lease_id, lease.token, LeaseOutcome.EXPIRED),))
    assert not driver.pool.leases.live


# Reloads: what ends them, and what they leave.


def draining_for_a_reload() -> Driver:
    driver = ready(QUIET)
    driver.lease("held", ttl=300.0)
    driver.change(ReloadStrategy.BREAK_BEFORE_MAKE)
    assert (driver.state, driver.pool.reload.phase) == (S.DRAINING, ReloadPhase.DRAINING)
    return driver


@pytest.mark.behaviour("DRN-1", "DRN-2")
def test_a_drain_takes_the_place_of_a_reloads_with_its_own_deadline_and_end():
    driver = draining_for_a_reload()
    driver.now += 1.0
    driver.do(Drain(deadline=200.0))
    assert (driver.pool.drain_until, driver.pool.reload) == (driver.now + 200.0, None)
    driver.pass_time(200.0)
    assert driver.state is S.STOPPING
    driver.crash(EXIT_0)
    assert driver.state is S.STOPPED


@pytest.mark.behaviour("DRN-2")
@pytest.mark.parametrize(("given", "grace"), [(None, 5.0), (2.0, 2.0)])
def test_a_stop_ends_the_engine_that_retires_with_the_same_grace(given, grace):
    driver = ready(QUIET)
    driver.lease("held", ttl=300.0)
    driver.change()
    driver.reload_to(ReloadPhase.RETIRING)
    effects = driver.do(Stop(given))
    assert {e.engine_id for e in of(Terminate, effects)} == {ENGINE, "f" * 32}
    assert driver.pool.beside.engine.kill_at == driver.pool.engine.kill_at == driver.now + grace


# Engines that register themselves.


@pytest.mark.behaviour("ENG-2")
def test_an_engine_that_is_lost_is_noted_with_why():
    driver = a_ready()
    effects = driver.pass_time(driver.pool.settings.heartbeat_ttl)
    note = only_note(effects, NoteName.ENGINE_LOST)
    assert (note.fields["reason"], note.fields["message"]) == ("UNREACHABLE", "no heartbeat for 30 s")


@pytest.mark.behaviour("ENG-1")
@pytest.mark.parametrize("endpoint", ["10.0.0.1:8000", "10.0.0.9:8000"])
def test_an_engine_that_moved_is_probed_anew_wherever_it_moved(endpoint):
    driver = a_ready()
    driver.register(endpoint=endpoint)
    assert driver.state is S.STARTING
    driver.told(ProbeResult(ProbeOutcome.OK))
    assert driver.state is S.READY


@pytest.mark.behaviour("ENG-1")
def test_a_registration_that_changes_nothing_adds_no_generation_and_one_that_does_adds_one():
    driver = Registered().to_ready()
    driver.register()
    driver.register()
    assert driver.pool.good == (1,)
    driver.register(slots_total=3)
    assert driver.pool.good == (1, 2)
    _, spec = retold(driver.pool, Registration("e1", slots_total=3))
    assert spec == driver.pool.spec and FIRST.slots_total == 4


# What is due without an event, and what a late one finds.


@pytest.mark.behaviour("RST-2")
def test_a_run_of_failures_is_over_after_a_minute_of_service_in_which_nothing_else_happens():
    driver = ready(QUIET)
    driver.crash()
    driver.make_ready()
    assert next_deadline(driver.pool) == driver.now + driver.pool.settings.stable_after
    driver.pass_time(driver.pool.settings.stable_after)
    assert driver.pool.policy.consecutive == 0


@pytest.mark.behaviour("DRN-1")
@pytest.mark.parametrize("late", [0.0, 3.0])
def test_a_drain_is_forced_at_its_deadline_however_late_that_is_noticed(late):
    driver = ready(QUIET)
    driver.lease("held", ttl=300.0)
    driver.do(Drain(deadline=10.0))
    told = driver.at(driver.now + 10.0 + late)
    assert driver.state is S.STOPPING
    assert only_note(told, NoteName.DRAIN_FINISHED).fields["outcome"] == "forced"


@pytest.mark.behaviour("RST-6")
def test_a_fault_of_the_host_takes_back_what_was_charged_in_its_window_and_nothing_older():
    settings = SupervisionSettings()
    now = 1000.0
    since = now - settings.host_fault_window
    times = (since - 5.0, since, since + 1.0, now)
    policy = RestartPolicy(failures=5, consecutive=4, restarts=times, ooms=times, history=times)
    left = refunded(policy, now, settings)
    assert left.restarts == left.ooms == left.history == times[:2]
    assert (left.failures, left.consecutive) == (3, 2)
