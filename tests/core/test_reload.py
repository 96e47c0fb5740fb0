"""One pool, step by step: the way to another generation and back."""

from __future__ import annotations

import pytest

from poolmgr.core.effects import (
    Commit,
    CountRestart,
    Discard,
    Forget,
    KillTree,
    LeaseEnded,
    NoteName,
    Rest,
    RunProbe,
    Start,
    Terminate,
    Verify,
)
from poolmgr.core.messages import (
    ChangeSpec,
    Committed,
    Delete,
    Drain,
    Exited,
    Preload,
    Probed,
    Release,
    Renew,
    ResetBreaker,
    StartRefused,
    Stop,
    TreeEmpty,
    Undrain,
)
from poolmgr.core.settle import next_deadline
from poolmgr.core.state import ReloadPhase, leased, live_leases
from poolmgr.core.view import fingerprint, view
from poolmgr.errors import ClientError, Reason
from poolmgr.model.engine import Usage
from poolmgr.model.lease import LeaseOutcome, RefusalReason
from poolmgr.model.pool import PoolState, ReloadStrategy, RestartMode
from tests.core.helpers import (
    BAD_ARGUMENTS,
    ENGINE,
    EXIT_0,
    EXIT_1,
    FAILED,
    KILLED,
    NEXT,
    OK,
    Driver,
    a_spec,
    answers,
    notes,
    of,
    only,
    only_note,
    ready,
)

S, P = PoolState, ReloadPhase
MAKE, BREAK = ReloadStrategy.MAKE_BEFORE_BREAK, ReloadStrategy.BREAK_BEFORE_MAKE
BEFORE_COMMIT = (P.STARTING, P.VERIFYING, P.COMMITTING)


def reloading(phase: ReloadPhase, strategy: ReloadStrategy = MAKE, leases: int = 0) -> Driver:
    """A ready pool with so many leases, on its way to its second generation."""
    driver = ready()
    for i in range(leases):
        driver.lease(str(i), ttl=300.0)
    driver.change(strategy)
    driver.reload_to(phase)
    return driver


def outcome(driver: Driver) -> str:
    return str(notes(driver.log, NoteName.RELOAD_FINISHED)[-1].fields["outcome"])


def end_next(driver: Driver) -> None:
    """The engine beside does as it was told."""
    if driver.pool.beside is not None:
        driver.end(NEXT, KILLED)


# Which way.


@pytest.mark.behaviour("DRN-2")
@pytest.mark.parametrize(
    ("spec", "strategy", "beside"),
    [
        ({}, ReloadStrategy.AUTO, True),
        ({"device_mask": "0", "fits": True}, ReloadStrategy.AUTO, True),
        ({"device_mask": "0", "fits": False}, ReloadStrategy.AUTO, False),
        ({"port": 8123}, ReloadStrategy.AUTO, False),
        ({"device_mask": "0", "fits": False}, MAKE, True),
        ({}, BREAK, False),
    ],
)
def test_the_new_engine_starts_beside_the_old_one_where_both_fit_or_somebody_says_so(spec, strategy, beside):
    driver = ready()
    lease = driver.lease("a", ttl=300.0)
    effects = driver.change(strategy, args=("--new",), **spec)
    assert [s.generation for s in of(Start, effects)] == ([2] if beside else [])
    assert driver.state is (S.READY if beside else S.DRAINING)
    assert only_note(effects, NoteName.RELOAD_STARTED).fields["beside"] is beside
    assert driver.do(Renew(lease.lease_id, lease.token))


@pytest.mark.behaviour("DRN-2")
def test_a_reload_without_another_spec_starts_another_engine_all_the_same():
    driver = ready()
    assert only(Start, driver.do(ChangeSpec(driver.pool.spec, 2, anew=True))).generation == 2


# Make before break.


@pytest.mark.behaviour("DRN-2", "DRN-4")
def test_the_new_engine_is_verified_and_committed_before_it_serves_and_the_old_one_retires():
    driver = ready()
    driver.change(MAKE)
    assert only(Verify, driver.start_next() + driver.answer(OK, NEXT)).engine_id == NEXT
    commit = only(Commit, driver.verify_next())
    assert (commit.memo.generation, commit.memo.retiring, commit.memo.target) == (2, ENGINE, 0)
    assert driver.pool.generation == 1, "nothing is taken over before the commit is durable"
    effects = driver.commit()
    shown = view(fingerprint(driver.pool), 1, 0.0)
    assert (shown.generation, shown.state, shown.endpoint) == (2, S.READY, "127.0.0.1:8001")
    assert of(Terminate, effects) == [Terminate(ENGINE)]
    ended = driver.end(ENGINE, EXIT_0)
    assert of(Discard, ended) == [Discard(ENGINE)]
    assert (driver.pool.reload, driver.pool.beside, outcome(driver)) == (None, None, "complete")
    assert (driver.pool.restart_count, driver.pool.good) == (0, (1, 2))


@pytest.mark.behaviour("DRN-2", "LEASE-1")
@pytest.mark.parametrize("phase", BEFORE_COMMIT)
def test_before_the_commit_leases_are_given_on_the_old_engine_only(phase):
    driver = reloading(phase)
    assert driver.lease("a").endpoint == "127.0.0.1:8000"
    shown = view(fingerprint(driver.pool), 1, 0.0)
    assert (shown.ready, shown.slots_free, shown.reload_phase) == (True, 1, phase)


@pytest.mark.behaviour("DRN-2", "LEASE-1", "LEASE-6")
def test_after_the_commit_leases_are_given_on_the_new_engine_and_the_old_ones_keep_their_slots():
    driver = reloading(P.COMMITTING, leases=1)
    old = next(live_leases(driver.pool))
    driver.commit()
    assert driver.pool.beside.state is S.DRAINING
    new = driver.lease("new", ttl=300.0)
    assert (new.endpoint, new.generation) == ("127.0.0.1:8001", 2)
    assert driver.ask("one too many").reason is RefusalReason.POOL_FULL, "slots are counted over both engines"
    assert only_outcome(driver.do(Renew(old.lease_id, old.token))) is LeaseOutcome.RENEWED
    assert only_outcome(driver.do(Release(old.lease_id, old.token))) is LeaseOutcome.RELEASED
    assert only_outcome(driver.do(Release(old.lease_id, old.token))) is LeaseOutcome.ALREADY_RELEASED
    assert leased(driver.pool) == 1
    driver.lease("next")
    driver.end(ENGINE, EXIT_0)
    assert only_outcome(driver.do(Release(old.lease_id, old.token))) is LeaseOutcome.ALREADY_RELEASED


def only_outcome(effects):
    return only(LeaseEnded, effects).outcome


@pytest.mark.behaviour("LEASE-6", "DRN-2")
def test_what_ended_before_the_commit_is_remembered_after_it():
    driver = reloading(P.COMMITTING, leases=2)
    gone = next(live_leases(driver.pool))
    driver.do(Release(gone.lease_id, gone.token))
    driver.commit()
    assert only_outcome(driver.do(Release(gone.lease_id, gone.token))) is LeaseOutcome.ALREADY_RELEASED


@pytest.mark.behaviour("LEASE-4", "DRN-2")
def test_a_retry_after_the_commit_gets_the_lease_that_the_request_got_before_it():
    driver = ready()
    first = driver.lease("a", request_id="r", ttl=300.0)
    driver.change(MAKE)
    driver.reload_to(P.RETIRING)
    assert driver.lease("b", request_id="r") == first


@pytest.mark.behaviour("DRN-2", "LEASE-5")
def test_whoever_waits_is_served_by_the_new_engine():
    driver = reloading(P.COMMITTING, leases=2)
    driver.ask("waits", wait=1000.0)
    driver.commit()
    old = next(live_leases(driver.pool))
    granted = answers(driver.do(Release(old.lease_id, old.token)))["p.waits"]
    assert granted.endpoint == "127.0.0.1:8001"


@pytest.mark.behaviour("DRN-2")
def test_the_drain_deadline_ends_the_old_engine_and_the_reload_stands():
    driver = ready()
    driver.lease("a", ttl=300.0)
    driver.do(ChangeSpec(a_spec(args=("--new",)), 2, MAKE, drain_deadline=10.0))
    driver.reload_to(P.RETIRING)
    driver.pass_time(9.9, OK)
    assert not of(Terminate, driver.log)
    driver.pass_time(0.2, OK)
    assert of(Terminate, driver.log) == [Terminate(ENGINE)]
    assert leased(driver.pool) == 0
    driver.end(ENGINE, EXIT_0)
    assert (driver.state, driver.pool.generation, outcome(driver)) == (S.READY, 2, "complete")


# What fails before the commit.


def refuses(driver):
    driver.do(StartRefused("MODEL_NOT_FOUND", "no file", permanent=True, generation=2))


def crashes(driver):
    driver.end(NEXT, KILLED)


def exits_by_itself(driver):
    driver.end(NEXT, EXIT_0)


def answers_wrong(driver):
    driver.verify_next("42 is not the answer")
    end_next(driver)


def cannot_be_committed(driver):
    driver.commit("no space left on device")
    end_next(driver)


FAILURES = {
    "refused": (P.STARTING, refuses, "MODEL_NOT_FOUND"),
    "crashed while it was verified": (P.VERIFYING, crashes, "SIGNAL"),
    "ended by itself": (P.VERIFYING, exits_by_itself, Reason.VERIFICATION_FAILED),
    "verification failed": (P.VERIFYING, answers_wrong, Reason.VERIFICATION_FAILED),
    "commit failed": (P.COMMITTING, cannot_be_committed, Reason.STORE_UNAVAILABLE),
}


@pytest.mark.behaviour("DRN-3", "RST-8")
@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_before_the_commit_leaves_the_old_engine_serving_and_counts_for_nothing(failure):
    phase, fail, reason = FAILURES[failure]
    driver = reloading(phase, leases=1)
    fail(driver)
    assert (driver.state, driver.pool.generation, driver.pool.engine.engine_id) == (S.READY, 1, ENGINE)
    assert (driver.pool.reload, driver.pool.beside, outcome(driver)) == (None, None, "rolled_back")
    assert driver.pool.last_error.reason == reason
    assert "generation 2" in driver.pool.last_error.message
    assert (driver.pool.restart_count, driver.pool.policy.failures, leased(driver.pool)) == (0, 0, 1)
    assert not of(CountRestart, driver.log)
    assert Discard(ENGINE) not in driver.log
    driver.lease("b")


@pytest.mark.behaviour("DRN-3")
@pytest.mark.parametrize("failure", FAILURES)
def test_where_the_old_engine_had_to_go_first_a_failure_starts_it_again_in_its_own_place(failure):
    phase, fail, _ = FAILURES[failure]
    driver = reloading(phase, BREAK)
    assert driver.pool.engine is None
    fail(driver)
    assert (driver.state, driver.pool.generation) == (S.PROVISIONING, 1)
    again = of(Start, driver.log)[-1]
    assert (again.engine_id, again.proven, again.generation) == (ENGINE, True, 1)


@pytest.mark.behaviour("DRN-3")
def test_a_log_that_names_a_fault_of_the_new_spec_is_what_the_error_says():
    driver = reloading(P.STARTING)
    driver.start_next()
    driver.end(NEXT, EXIT_1, BAD_ARGUMENTS)
    assert "unknown flag --nonsense" in driver.pool.last_error.message
    assert driver.state is S.READY


@pytest.mark.behaviour("DRN-2", "PRE-3")
def test_a_new_engine_that_never_becomes_ready_fails_at_its_own_deadline():
    driver = reloading(P.STARTING)
    driver.start_next()
    driver.pass_time(61.0)
    end_next(driver)
    assert (outcome(driver), driver.pool.last_error.reason) == ("rolled_back", "STALLED")


# What happens to the old engine meanwhile.


@pytest.mark.behaviour("DRN-2", "RST-8")
@pytest.mark.parametrize("phase", [P.STARTING, P.VERIFYING])
def test_an_old_engine_that_crashes_meanwhile_is_restarted_and_the_reload_goes_on(phase):
    driver = reloading(phase)
    driver.crash(KILLED)
    assert (driver.state, driver.pool.restart_count, driver.pool.reload.phase) == (S.BACKOFF, 1, phase)
    driver.reload_to(P.COMMITTING)
    driver.commit()
    assert (driver.pool.generation, driver.state, driver.pool.restart_count) == (2, S.READY, 1)


@pytest.mark.behaviour("DRN-2")
def test_an_old_engine_that_crashed_is_not_started_again_after_the_commit():
    driver = reloading(P.COMMITTING)
    driver.crash(KILLED)
    driver.commit()
    assert (driver.state, driver.pool.generation, driver.pool.reload) == (S.READY, 2, None)
    assert not of(Start, driver.pass_time(100.0, OK))


@pytest.mark.behaviour("DRN-2", "DRN-3")
@pytest.mark.parametrize("strategy", [MAKE, BREAK])
@pytest.mark.parametrize("mode", RestartMode)
@pytest.mark.parametrize("record", [EXIT_0, KILLED], ids=["exit 0", "signal"])
def test_an_old_engine_that_is_not_restarted_does_not_take_the_reload_with_it(strategy, mode, record):
    driver = ready(a_spec(restart=mode))
    driver.lease("a", ttl=300.0)
    driver.change(strategy)
    driver.crash(record)
    driver.reload_to(P.COMMITTING)
    driver.commit()
    driver.pass_time(10.0, OK)
    assert (driver.state, driver.pool.generation) == (S.READY, 2), "a reload was asked for after all"


@pytest.mark.behaviour("DRN-3")
def test_an_engine_that_dies_while_its_commit_is_written_is_the_pools_and_started_again():
    driver = reloading(P.COMMITTING)
    driver.end(NEXT, KILLED)
    driver.commit()
    assert driver.pool.generation == 2
    assert of(Start, driver.log)[-1].generation == 2


@pytest.mark.behaviour("DRN-2", "RST-8")
def test_a_retiring_engine_that_crashes_counts_for_nothing():
    driver = reloading(P.RETIRING, leases=1)
    driver.end(ENGINE, KILLED)
    assert (driver.pool.reload, driver.pool.restart_count, driver.state) == (None, 0, S.READY)
    assert leased(driver.pool) == 0


# Break before make.


@pytest.mark.behaviour("DRN-2")
def test_where_the_two_do_not_fit_the_old_engine_is_drained_and_ended_before_the_new_one_starts():
    driver = ready()
    lease = driver.lease("a", ttl=300.0)
    driver.change(BREAK)
    assert not of(Start, driver.pass_time(100.0, OK))
    driver.do(Release(lease.lease_id, lease.token))
    assert driver.state is S.STOPPING
    assert not [s for s in of(Start, driver.log) if s.generation == 2], "while the old one is there"
    driver.crash(EXIT_0)
    assert of(Start, driver.log)[-1].generation == 2
    assert not of(Discard, driver.log), "the way back needs its place"
    driver.reload_to(P.COMMITTING)
    assert Discard(ENGINE) in driver.commit()
    assert (driver.state, driver.pool.generation, driver.pool.reload) == (S.READY, 2, None)


@pytest.mark.behaviour("DRN-2")
def test_a_drain_deadline_aborts_a_reload_and_the_old_engine_serves_on():
    driver = ready()
    lease = driver.lease("a", ttl=300.0)
    driver.do(ChangeSpec(a_spec(args=("--new",)), 2, BREAK, drain_deadline=20.0))
    assert driver.ask("b", wait=5.0).reason is RefusalReason.POOL_DRAINING
    driver.pass_time(20.1, OK)
    assert (driver.state, driver.pool.generation, driver.pool.reload) == (S.READY, 1, None)
    assert (outcome(driver), driver.pool.last_error.reason) == ("aborted", Reason.RELOAD_ABORTED)
    assert only_outcome(driver.do(Renew(lease.lease_id, lease.token))) is LeaseOutcome.RENEWED
    assert driver.pool.rolled_back == ()
    assert not of(Terminate, driver.log)
    driver.pass_time(400.0, OK)
    assert driver.state is S.READY, "and the drain is over"


@pytest.mark.behaviour("DRN-1", "DRN-2")
def test_an_undrain_ends_a_reload_that_drains():
    driver = ready()
    driver.lease("a", ttl=300.0)
    driver.change(BREAK)
    driver.do(Undrain())
    assert (driver.state, driver.pool.reload, outcome(driver)) == (S.READY, None, "cancelled")
    driver.lease("b")


@pytest.mark.behaviour("DRN-2", "LEASE-5")
def test_whoever_asks_while_neither_engine_serves_waits_for_the_new_one():
    driver = ready()
    driver.change(BREAK)
    assert driver.ask("while the old one ends", wait=100.0) is None
    driver.crash(EXIT_0)
    assert driver.ask("while the new one starts", wait=100.0) is None
    driver.reload_to(P.COMMITTING)
    assert set(answers(driver.commit())) == {"p.while the old one ends", "p.while the new one starts"}


@pytest.mark.behaviour("DRN-2")
def test_while_no_engine_serves_the_one_that_starts_is_shown():
    driver = reloading(P.STARTING, BREAK)
    driver.start_next()
    shown = view(fingerprint(driver.pool), 1, 0.0)
    assert (shown.state, shown.pid, shown.ready, shown.generation) == (S.STARTING, 200, False, 1)
    driver.answer(OK, NEXT)
    assert view(fingerprint(driver.pool), 1, 0.0).state is S.STARTING, "not ready before it is committed"


# Operators.


@pytest.mark.behaviour("DRN-2")
@pytest.mark.parametrize("phase", BEFORE_COMMIT)
@pytest.mark.parametrize("event", [Stop(), Drain(), Delete()], ids=["stop", "drain", "delete"])
def test_an_end_before_the_commit_ends_the_new_engine_at_once_and_the_old_one_as_asked(phase, event):
    driver = reloading(phase)
    effects = driver.do(event)
    if phase is not P.STARTING:
        assert KillTree(NEXT) in effects
    assert driver.state is S.STOPPING
    if phase is P.STARTING:
        assert KillTree(NEXT) in driver.start_next()
    driver.end(NEXT, KILLED)
    driver.crash(EXIT_0)
    assert (driver.state, driver.pool.generation, driver.pool.beside) == (S.STOPPED, 1, None)
    assert not of(Start, driver.pass_time(1e5))


@pytest.mark.behaviour("DRN-2", "DRN-3")
def test_a_commit_that_comes_after_the_end_was_asked_for_changes_nothing():
    driver = reloading(P.COMMITTING)
    driver.do(Stop())
    driver.do(Committed(2))
    assert driver.pool.generation == 1


@pytest.mark.behaviour("DRN-2")
def test_a_stop_hurries_the_engine_that_retires():
    driver = reloading(P.RETIRING, leases=1)
    effects = driver.do(Stop())
    assert set(of(Terminate, effects)) == {Terminate(ENGINE), Terminate(NEXT)}


@pytest.mark.behaviour("DRN-2")
def test_a_preload_while_a_cancelled_reload_ends_brings_the_old_generation_back():
    driver = reloading(P.VERIFYING, BREAK)
    driver.do(Stop())
    driver.do(Preload())
    end_next(driver)
    assert (driver.state, driver.pool.generation) == (S.PROVISIONING, 1)


@pytest.mark.behaviour("DRN-5")
def test_a_deletion_waits_for_both_engines():
    driver = reloading(P.RETIRING, leases=1)
    driver.do(Delete())
    driver.end(NEXT, EXIT_0)
    assert not of(Forget, driver.log)
    driver.do(Stop())
    driver.end(ENGINE, EXIT_0)
    assert len(of(Forget, driver.log)) == 1
    assert set(of(Discard, driver.log)) == {Discard(ENGINE), Discard(NEXT)}


@pytest.mark.behaviour("DRN-2")
@pytest.mark.parametrize("phase", [*BEFORE_COMMIT, P.RETIRING])
def test_one_reload_at_a_time(phase):
    driver = reloading(phase, leases=1)
    before = driver.pool
    with pytest.raises(ClientError) as refused:
        driver.do(ChangeSpec(a_spec(args=("--third",)), 3))
    assert refused.value.reason is Reason.RELOAD_IN_PROGRESS
    assert driver.pool is before


@pytest.mark.behaviour("DRN-5")
def test_a_pool_that_is_being_deleted_goes_nowhere_else():
    driver = reloading(P.RETIRING, leases=1)
    driver.do(Delete())
    with pytest.raises(ClientError) as refused:
        driver.do(ChangeSpec(a_spec(), 1))
    assert refused.value.reason is Reason.POOL_DELETING


# The way back.


@pytest.mark.behaviour("DRN-3")
def test_a_spec_that_was_rolled_back_twice_is_blocked_until_it_is_edited_or_reset():
    driver = ready()
    for _ in range(2):
        driver.change(args=("--bad",))
        driver.reload_to(P.VERIFYING)
        answers_wrong(driver)
    with pytest.raises(ClientError) as refused:
        driver.change(args=("--bad",), labels={"team": "x"})
    assert refused.value.reason is Reason.GENERATION_BLOCKED
    driver.change(args=("--better",))
    driver.do(Stop())
    driver.start_next()
    end_next(driver)
    driver.crash(EXIT_0)
    driver.make_ready()
    driver.do(ResetBreaker())
    assert of(Start, driver.change(args=("--bad",)))


@pytest.mark.behaviour("DRN-3")
def test_a_generation_that_works_after_all_is_not_blocked_by_its_past():
    driver = ready()
    driver.change(args=("--flaky",))
    driver.reload_to(P.VERIFYING)
    answers_wrong(driver)
    driver.change(args=("--flaky",))
    driver.reload_to(P.RETIRING)
    assert driver.pool.rolled_back == ()


@pytest.mark.behaviour("DRN-4")
def test_the_way_back_leads_through_the_engine_that_still_retires():
    driver = reloading(P.RETIRING, leases=1)
    old = next(live_leases(driver.pool))
    effects = driver.do(ChangeSpec(a_spec(), 1))
    assert not of(Start, effects)
    assert only(Verify, effects).engine_id == ENGINE
    assert driver.lease("b").endpoint == "127.0.0.1:8001", "not before its commit"
    driver.verify_next()
    driver.commit()
    assert (driver.pool.generation, driver.pool.engine.engine_id, driver.pool.newest) == (1, ENGINE, 2)
    assert old in driver.pool.leases.live.values()
    assert driver.pool.beside.generation == 2


@pytest.mark.behaviour("DRN-4")
@pytest.mark.parametrize("end", ["wrong answer", "crash"])
def test_an_engine_that_should_have_come_back_and_does_not_retires_after_all(end):
    driver = reloading(P.RETIRING, leases=1)
    driver.do(ChangeSpec(a_spec(), 1))
    if end == "crash":
        driver.end(ENGINE, KILLED)
    else:
        driver.verify_next("wrong")
        driver.pass_time(301.0, OK)
        driver.end(ENGINE, EXIT_0)
    assert (driver.pool.generation, driver.state, driver.pool.reload) == (2, S.READY, None)


# Facts about either engine.


@pytest.mark.behaviour("DRN-2")
@pytest.mark.parametrize("phase", [*BEFORE_COMMIT, P.RETIRING])
def test_a_fact_about_neither_engine_changes_nothing(phase):
    driver = reloading(phase, leases=1)
    before = driver.pool
    for fact in (Exited("x" * 32, KILLED), TreeEmpty("x" * 32), Probed("x" * 32, 1, OK, Usage(), owned=True)):
        assert not driver.do(fact)
    assert driver.pool == before


@pytest.mark.behaviour("PRE-4", "DRN-2")
def test_the_answer_to_a_probe_of_an_engine_that_is_gone_is_not_taken_for_the_others():
    driver = reloading(P.RETIRING)
    serial = driver.pool.engine.probe.serial
    driver.end(ENGINE, EXIT_0)
    driver.pass_time(next_deadline(driver.pool) - driver.now)
    probed = driver.pool.engine.probe
    driver.do(Probed(ENGINE, probed.serial, FAILED, Usage(), owned=True))
    assert driver.pool.engine.probe == probed
    assert probed.serial == serial + 1


@pytest.mark.behaviour("LIVE-1", "DRN-2")
def test_both_engines_are_probed_and_a_new_one_that_fails_its_probes_is_not_taken():
    driver = reloading(P.VERIFYING)
    driver.pass_time(6.0, OK)
    assert {probe.engine_id for probe in of(RunProbe, driver.log)} == {ENGINE, NEXT}
    for _ in range(3):
        while driver.pool.beside.engine.probe.sent is None:
            driver.at(next_deadline(driver.pool))
            if driver.pool.engine.probe.sent is not None:
                driver.answer(OK)
        driver.answer(FAILED, NEXT)
    end_next(driver)
    assert (outcome(driver), driver.state) == ("rolled_back", S.READY)
    assert driver.pool.last_error.reason == "HEALTH_CHECK_FAILED"


@pytest.mark.behaviour("DRN-3", "PROC-5")
def test_the_old_engines_place_rests_and_is_kept_for_the_way_back():
    driver = reloading(P.STARTING, BREAK)
    assert Rest(ENGINE) in driver.log
    assert Discard(ENGINE) not in driver.log
