"""Rules about how a run ends and what follows, which the other tests of core took for granted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from poolmgr.core.effects import Discard, KillTree, NoteName, RecordLeases, RunProbe, Start, Terminate
from poolmgr.core.memo import Judged
from poolmgr.core.messages import (
    Adopted,
    ChangeSpec,
    Cleared,
    Drain,
    Exited,
    Found,
    HostFault,
    InDoubt,
    LeasesKept,
    Preload,
    Recovered,
    Release,
    Renew,
    ResetBreaker,
    Spawned,
    StartRefused,
    Stop,
    TreeEmpty,
    Undrain,
)
from poolmgr.core.restart import RestartPolicy
from poolmgr.core.state import ReloadPhase, memo_of
from poolmgr.errors import ClientError, Reason
from poolmgr.model.lease import RefusalReason
from poolmgr.model.pool import BreakerState, PoolState, ReloadStrategy, RestartMode
from tests.core.helpers import (
    BAD_ARGUMENTS,
    ENGINE,
    EXIT_0,
    EXIT_1,
    NEXT,
    OK,
    QUIET,
    Driver,
    a_pool,
    a_remembering_pool,
    a_spec,
    in_state,
    notes,
    of,
    only,
    only_note,
    ready,
)

S = PoolState
ON_FAILURE = replace(QUIET, restart=RestartMode.ON_FAILURE)


# An engine in doubt.


@pytest.mark.behaviour("PROC-6")
def test_a_pool_in_doubt_is_stopped_and_wanted_no_more_once_nothing_is_left_of_it():
    driver = Driver(a_remembering_pool())
    driver.do(InDoubt(ENGINE, "start time differs"))
    driver.do(Cleared())
    assert (driver.state, driver.pool.wanted) == (S.STOPPED, False)
    assert driver.pool.home.engine_id == ENGINE
    driver.do(Preload())
    assert driver.state is S.PROVISIONING


@pytest.mark.behaviour("PROC-6")
@pytest.mark.parametrize("state", [s for s in S if s not in (S.UNKNOWN, S.LOST)])
def test_what_was_never_in_doubt_is_not_cleared(state):
    driver = in_state(state)
    before = driver.pool
    assert not driver.do(Cleared())
    assert driver.pool == before


# Exit with code 0.


@pytest.mark.behaviour("RST-1")
def test_an_engine_that_ends_by_itself_with_code_0_is_wanted_no_more_also_by_the_next_daemon():
    driver = ready(ON_FAILURE)
    driver.crash(EXIT_0)
    assert (driver.state, memo_of(driver.pool).wanted) == (S.STOPPED, False)
    assert (driver.pool.restart_count, driver.pool.last_error) == (0, None)


@pytest.mark.behaviour("DRN-2", "DRN-3")
def test_an_engine_that_ends_by_itself_in_a_reloads_drain_is_still_wanted_when_the_next_one_fails():
    driver = ready(ON_FAILURE)
    driver.lease("held", ttl=300.0)
    driver.change(ReloadStrategy.BREAK_BEFORE_MAKE)
    assert driver.state is S.DRAINING
    driver.crash(EXIT_0)
    assert driver.pool.wanted
    driver.start_next()
    driver.end(NEXT)
    assert (driver.state, only(Start, driver.log[-6:]).generation) == (S.PROVISIONING, 1)


@pytest.mark.behaviour("PROC-6", "DRN-3")
def test_an_outdated_engine_that_ends_by_itself_in_its_drain_makes_room_for_its_successor():
    driver = Driver(a_remembering_pool(ON_FAILURE))
    driver.do(Adopted(ENGINE, 77, 8123, current=False))
    lease = ready(QUIET).lease("held", ttl=300.0)._replace(endpoint="127.0.0.1:8123")
    driver.do(LeasesKept((lease,)))
    driver.answer(OK)
    assert driver.state is S.DRAINING
    driver.crash(EXIT_0)
    assert (driver.state, driver.pool.wanted) == (S.PROVISIONING, True)


@pytest.mark.behaviour("PROC-6", "RST-8")
@pytest.mark.parametrize(
    ("mode", "record", "counted"),
    [
        (RestartMode.ON_FAILURE, EXIT_0, 0),
        (RestartMode.ON_FAILURE, EXIT_1, 1),
        (RestartMode.ALWAYS, EXIT_0, 1),
    ],
)
def test_an_end_that_no_daemon_saw_is_followed_by_what_the_mode_says(mode, record, counted):
    driver = Driver(a_remembering_pool(replace(QUIET, restart=mode)))
    told = driver.do(Found(ENGINE, 100, 100, Exited(ENGINE, record)))
    assert (driver.pool.restart_count, len(notes(told, NoteName.ENGINE_CRASHED))) == (counted, counted)
    assert driver.pool.wanted is bool(counted)
    driver.do(Recovered())
    assert driver.state is (S.BACKOFF if counted else S.STOPPED)


@pytest.mark.behaviour("PROC-6", "RST-8")
@pytest.mark.parametrize("other", [{"pid": 101}, {"ticks": 101}, {"engine_id": NEXT}])
def test_an_end_of_another_run_than_the_one_that_was_judged_counts(other):
    first = Driver(a_remembering_pool())
    fact = Found(ENGINE, 100, 100, Exited(ENGINE, EXIT_1))
    first.do(fact)
    memo = memo_of(first.pool)
    driver = Driver(a_remembering_pool(judged=memo.judged))
    driver.do(fact)
    assert driver.pool.restart_count == 0
    driver.do(replace(fact, **other))
    assert driver.pool.restart_count == 1


@pytest.mark.behaviour("PROC-6", "RST-8")
@pytest.mark.parametrize(
    ("pid", "ticks", "kept"), [(100, 100, False), (99, 100, True), (101, 100, True), (100, 99, True), (100, 101, True)]
)
def test_only_a_process_that_begins_under_the_marks_of_the_judged_one_takes_the_judgement_off_them(pid, ticks, kept):
    driver = Driver(a_remembering_pool())
    driver.do(Found(ENGINE, 100, 100, Exited(ENGINE, EXIT_1)))
    before = driver.pool.judged
    driver.do(Recovered())
    driver.at(driver.pool.resume_at)
    driver.do(Spawned(ENGINE, pid, 8000, ticks=ticks, generation=1))
    assert driver.pool.judged == (before if kept else Judged())


@pytest.mark.behaviour("PROC-6", "RST-6")
def test_a_fault_of_the_host_moves_no_time_of_an_engine_in_doubt():
    driver = Driver(a_remembering_pool(resting=S.BACKOFF, resume_at=5000.0))
    driver.do(InDoubt(ENGINE, "start time differs"))
    driver.do(HostFault())
    assert (driver.state, driver.pool.resume_at) == (S.UNKNOWN, 5000.0)


@pytest.mark.behaviour("PROC-6")
def test_an_end_of_which_no_process_is_known_counts_for_nothing():
    driver = Driver(a_remembering_pool())
    driver.do(Found(ENGINE, exited=Exited(ENGINE, EXIT_1)))
    assert driver.pool.restart_count == 0


# Stops.


@pytest.mark.behaviour("PROC-3")
def test_a_stop_without_grace_asks_for_nothing_but_the_kill():
    effects = ready().do(Stop(0.0))
    assert (of(KillTree, effects), of(Terminate, effects)) == ([KillTree(ENGINE)], [])


@pytest.mark.behaviour("PROC-3")
@pytest.mark.parametrize(("second", "after"), [(Stop(60.0), 30.0), (Stop(), 30.0), (Stop(10.0), 10.0)])
def test_a_second_stop_never_gives_more_time_than_the_first(second, after):
    driver = ready(QUIET)
    driver.do(Stop(30.0))
    driver.do(second)
    assert driver.pool.engine.kill_at == driver.now + after


def test_an_engine_that_is_being_ended_is_asked_nothing_more():
    driver = ready()
    driver.do(Stop(1000.0))
    assert not of(RunProbe, driver.pass_time(900.0))


@pytest.mark.behaviour("PROC-3")
def test_what_is_left_after_the_exit_of_the_main_process_is_killed_once_and_not_at_the_grace_again():
    driver = ready()
    driver.do(Stop(30.0))
    driver.do(Exited(ENGINE, EXIT_0))
    assert driver.pool.engine.kill_at is None
    assert not driver.pass_time(100.0)


@pytest.mark.behaviour("RST-8")
@pytest.mark.parametrize("for_now", [True, False])
def test_a_stop_for_now_leaves_the_pool_wanted_for_the_next_daemon(for_now):
    driver = ready(QUIET)
    driver.do(Stop(for_now=for_now))
    driver.crash(EXIT_0)
    assert (driver.state, memo_of(driver.pool).wanted) == (S.STOPPED, for_now)


def test_a_stop_for_now_wants_nothing_that_was_not_wanted_before():
    driver = in_state(S.STOPPED)
    driver.do(Stop(for_now=True))
    assert not memo_of(driver.pool).wanted


@pytest.mark.behaviour("RST-2")
@pytest.mark.parametrize("again", [Stop(), Drain()])
def test_an_end_that_is_asked_for_while_a_failed_engine_ends_lets_no_other_start(again):
    driver = ready(QUIET)
    driver.do(Exited(ENGINE, EXIT_1))
    assert driver.state is S.STOPPING
    driver.do(again)
    driver.do(TreeEmpty(ENGINE))
    assert (driver.state, driver.pool.wanted, driver.pool.resume_at) == (S.STOPPED, False, None)


@pytest.mark.behaviour("RST-2")
def test_a_reset_starts_no_engine_that_an_operator_stops():
    driver = in_state(S.STOPPING)
    driver.do(ResetBreaker())
    driver.crash(EXIT_0)
    assert driver.state is S.STOPPED


@pytest.mark.behaviour("RST-2")
def test_a_reset_leaves_an_engine_that_ends_before_its_backoff_to_that():
    driver = ready(QUIET)
    driver.do(Exited(ENGINE, EXIT_1))
    driver.do(ResetBreaker())
    driver.do(TreeEmpty(ENGINE))
    assert driver.state is S.BACKOFF


# Refused starts.


@pytest.mark.behaviour("RST-6")
def test_a_start_that_the_hosts_fault_refuses_is_nobodys_failure_and_is_asked_for_again():
    driver = in_state(S.PROVISIONING)
    told = driver.do(StartRefused(Reason.HOST_FAULT, "no answer from the driver", permanent=False))
    assert (driver.state, driver.pool.restart_count, driver.pool.policy) == (S.BACKOFF, 0, RestartPolicy())
    assert driver.pool.resume_at == driver.now + driver.pool.settings.host_probe_interval
    assert (driver.pool.last_error.reason, driver.pool.last_error.message) == (
        Reason.HOST_FAULT, "no answer from the driver",
    )  # fmt: skip
    note = only_note(told, NoteName.START_FAILED)
    assert note.fields == {"reason": Reason.HOST_FAULT, "message": "no answer from the driver", "permanent": False}
    driver.pass_time(driver.pool.settings.host_probe_interval)
    assert driver.state is S.PROVISIONING


@pytest.mark.behaviour("RST-6")
def test_a_start_after_a_fault_of_the_host_asks_the_host_first_and_the_one_after_it_does_not():
    driver = in_state(S.BACKOFF)
    driver.do(HostFault())
    asked = driver.at(driver.pool.resume_at)
    assert only(Start, asked).probe_host
    driver.spawn()
    driver.crash()
    assert not only(Start, driver.at(driver.pool.resume_at)).probe_host


@pytest.mark.behaviour("RST-6")
def test_a_fault_of_the_host_leaves_a_pool_with_bad_arguments_parked():
    driver = in_state(S.STARTING)
    driver.crash(EXIT_1, BAD_ARGUMENTS)
    assert driver.state is S.PARKED
    driver.do(HostFault())
    assert (driver.state, driver.pool.resume_at) == (S.PARKED, None)


@pytest.mark.behaviour("RST-6")
def test_a_fault_of_the_host_that_comes_before_the_tree_is_empty_moves_the_next_start():
    driver = ready(QUIET)
    for _ in range(3):
        driver.crash()
        driver.make_ready()
        driver.now += driver.pool.settings.stable_after
    driver.do(Exited(ENGINE, EXIT_1))
    assert driver.state is S.STOPPING
    driver.now += 0.25
    driver.do(HostFault())
    driver.do(TreeEmpty(ENGINE))
    assert (driver.state, driver.pool.resume_at) == (S.BACKOFF, driver.now + driver.pool.settings.backoff_initial)


# Probes.


@pytest.mark.behaviour("PRE-4")
def test_an_engine_of_which_nobody_can_tell_who_listens_is_asked_again_after_the_usual_time():
    driver = in_state(S.STARTING)
    driver.answer(OK, owned=None)
    assert driver.pool.reason == "port 8000 answered, but who listens there cannot be told"
    assert driver.pool.engine.probe.due == driver.now + driver.pool.settings.readiness_interval
    assert of(RunProbe, driver.pass_time(driver.pool.settings.readiness_interval))


# New specs.


@pytest.mark.behaviour("DRN-2", "RST-7")
def test_a_new_spec_for_a_pool_whose_engine_failed_and_still_ends_starts_at_once_when_it_has():
    driver = ready(QUIET)
    driver.do(Exited(ENGINE, EXIT_1))
    driver.change(args=("--new",))
    told = driver.do(TreeEmpty(ENGINE))
    assert (driver.state, only(Start, told).generation) == (S.PROVISIONING, 2)
    assert of(Discard, told) == [Discard(ENGINE)]


@pytest.mark.behaviour("DRN-2")
def test_a_new_spec_for_a_pool_that_an_operator_stops_starts_nothing():
    driver = in_state(S.STOPPING)
    driver.change(args=("--new",))
    driver.crash(EXIT_0)
    assert (driver.state, driver.pool.generation) == (S.STOPPED, 2)


@pytest.mark.behaviour("DRN-4")
def test_the_generations_of_a_pool_are_kept_in_order_each_once_and_no_more_than_twenty():
    driver = in_state(S.STOPPED)
    for generation in (*range(2, 25), 10):
        driver.do(ChangeSpec(a_spec(args=(str(generation),)), generation))
    assert driver.pool.good == (*(g for g in range(5, 25) if g != 10), 10)
    assert (driver.pool.generation, driver.pool.newest) == (10, 24)


@pytest.mark.behaviour("DRN-2")
@pytest.mark.parametrize(("slots", "starts"), [(2, False), (3, True), (1, False)])
def test_more_slots_than_the_engine_was_given_are_another_engine_and_no_fewer(slots, starts):
    driver = ready(QUIET)
    told = driver.do(ChangeSpec(replace(QUIET, slots=slots), 2))
    assert bool(of(Start, told)) is starts


@pytest.mark.behaviour("DRN-2")
def test_a_spec_that_comes_during_a_reload_is_refused_with_where_the_reload_is():
    driver = ready(QUIET)
    driver.change()
    with pytest.raises(ClientError) as refused:
        driver.change()
    assert refused.value.numbers == {"generation": 2, "phase": ReloadPhase.STARTING}
    assert refused.value.retry_after == 1.0


# What an operator wants while a reload is under way.


@pytest.mark.behaviour("DRN-2")
def test_a_preload_after_the_old_engine_was_drained_for_a_reload_starts_nothing_of_its_own():
    driver = ready(QUIET)
    driver.change(ReloadStrategy.BREAK_BEFORE_MAKE)
    driver.crash(EXIT_0)
    assert (driver.state, driver.pool.reload.phase) == (S.STOPPED, ReloadPhase.STARTING)
    assert not of(Start, driver.do(Preload()))
    assert driver.pool.wanted


@pytest.mark.behaviour("DRN-2", "LEASE-1")
def test_a_release_on_the_engine_that_retires_frees_its_slot_at_once():
    driver = ready(QUIET)
    first, second = driver.lease("one", ttl=300.0), driver.lease("two", ttl=300.0)
    driver.change()
    driver.reload_to(ReloadPhase.RETIRING)
    assert driver.ask("three").reason is RefusalReason.POOL_FULL
    driver.do(Release(first.lease_id, first.token))
    assert driver.lease("three").generation == 2
    assert driver.pool.leases.elsewhere == 1
    driver.do(Renew(second.lease_id, second.token))
    assert driver.pool.beside.leases.live[second.lease_id].expires == driver.now + 300.0


@pytest.mark.behaviour("DRN-1")
def test_an_undrain_of_a_pool_that_drains_for_an_operator_leaves_it_wanted():
    driver = in_state(S.DRAINING)
    assert not driver.pool.wanted
    driver.do(Undrain())
    assert (driver.state, driver.pool.wanted, driver.pool.drain_until) == (S.READY, True, None)


# What a later daemon goes on with.


def taken_over(leases: int = 0, **memo) -> Driver:
    driver = Driver(a_remembering_pool(QUIET, **memo))
    driver.do(Adopted(ENGINE, 77, 8123))
    lent = ready(QUIET)
    held = tuple(lent.lease(str(n), ttl=300.0)._replace(endpoint="127.0.0.1:8123") for n in range(leases))
    driver.do(LeasesKept(held))
    driver.do(Recovered())
    return driver


@pytest.mark.behaviour("PROC-6")
def test_a_stop_that_an_earlier_daemon_did_not_finish_is_finished_before_the_engine_is_ready():
    driver = taken_over(wanted=False)
    assert (driver.state, of(Terminate, driver.log)) == (S.STOPPING, [Terminate(ENGINE)])
    assert driver.pool.reason == "asked to stop before the daemon's start"
    assert driver.pool.engine.kill_at == driver.now + driver.pool.settings.stop_grace
    driver.crash(EXIT_0)
    assert driver.state is S.STOPPED


@pytest.mark.behaviour("PROC-6", "DRN-1")
@pytest.mark.parametrize(("left", "seconds"), [(20.0, 20.0), (-20.0, 0.0)])
def test_a_drain_that_an_earlier_daemon_did_not_finish_goes_on_with_the_time_that_is_left(left, seconds):
    driver = taken_over(1, wanted=False, drain_until=Driver().now + left)
    assert driver.state is S.STARTING
    told = driver.answer(OK)
    assert only_note(told, NoteName.DRAIN_STARTED).fields == {"deadline_ms": int(seconds * 1000), "active_leases": 1}
    assert (driver.state, driver.pool.drain_until) == (
        (S.DRAINING, driver.now + seconds) if seconds else (S.STOPPING, None)
    )
    driver.pass_time(seconds)
    driver.crash(EXIT_0)
    assert driver.state is S.STOPPED


@pytest.mark.behaviour("PROC-6", "DRN-1")
def test_a_deletion_that_an_earlier_daemon_began_drains_for_the_time_of_the_spec_where_none_was_told():
    driver = taken_over(1, deleting=True)
    driver.answer(OK)
    assert (driver.state, driver.pool.drain_until) == (S.DRAINING, driver.now + driver.pool.spec.drain_deadline)


@pytest.mark.behaviour("LEASE-3")
def test_a_lost_record_of_leases_holds_the_pool_for_the_longest_ttl_and_says_so():
    driver = Driver(a_remembering_pool(QUIET))
    driver.do(Adopted(ENGINE, 77, 8123))
    note = only_note(driver.do(LeasesKept(known=False)), NoteName.LEASES_UNKNOWN)
    seconds = driver.pool.lease_settings.ttl_max + driver.pool.lease_settings.grace
    assert (driver.pool.held_until, note.fields["hold_ms"]) == (driver.now + seconds, int(seconds * 1000))


@pytest.mark.behaviour("LEASE-3")
def test_a_lost_record_of_leases_holds_no_pool_without_an_engine():
    driver = Driver(a_remembering_pool(QUIET))
    assert not notes(driver.do(LeasesKept(known=False)), NoteName.LEASES_UNKNOWN)
    assert driver.pool.held_until is None


@pytest.mark.behaviour("LEASE-3")
def test_leases_on_an_engine_that_was_taken_over_are_not_recorded_as_over():
    lease = ready(QUIET).lease("one")._replace(endpoint="127.0.0.1:8123")
    driver = Driver(a_remembering_pool(QUIET))
    driver.do(Adopted(ENGINE, 77, 8123))
    assert not of(RecordLeases, driver.do(LeasesKept((lease,))))
    assert driver.pool.leases.live.keys() == {lease.lease_id}


@pytest.mark.behaviour("RST-2", "RST-8")
@pytest.mark.parametrize("late", [-1.0, 0.0, 1.0])
def test_a_breaker_that_an_earlier_daemon_opened_keeps_its_time_and_lets_one_trial_through_after_it(late):
    parked = in_state(S.PARKED)
    until = parked.pool.policy.open_until
    driver = Driver(a_remembering_pool(policy=parked.pool.policy), now=until + late)
    told = driver.do(Recovered())
    if late < 0:
        assert (driver.state, driver.pool.resume_at) == (S.PARKED, until)
    else:
        assert (driver.state, driver.pool.policy.breaker_state) == (S.PROVISIONING, BreakerState.HALF_OPEN)
        assert only_note(told, NoteName.BREAKER_HALF_OPEN).fields["consecutive_failures"] == 5


def test_a_pool_that_nobody_wants_waits_where_an_engine_had_been_and_is_as_declared_where_none_had():
    driver = Driver(a_remembering_pool(wanted=False))
    driver.do(Recovered())
    assert driver.state is S.PENDING
    driver = Driver(a_remembering_pool(wanted=False))
    driver.do(Found(ENGINE))
    driver.do(Recovered())
    assert driver.state is S.STOPPED


def test_a_pool_that_was_declared_is_not_wanted_and_has_never_been_started():
    pool = a_pool()
    assert (pool.state, pool.reason, pool.wanted, pool.restart_count, pool.good) == (
        S.PENDING,
        "declared",
        False,
        0,
        (1,),
    )
    assert (pool.probes, pool.recovering, pool.host_doubt, pool.forgotten, pool.newest) == (0, False, False, False, 1)
