"""Rules of tables, policies and views, which the other tests of core took for granted."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest

from poolmgr.core.effects import LeaseEnded, NoteName, RecordLeases, RunProbe
from poolmgr.core.leases import (
    Grantor,
    LeaseTable,
    enqueue,
    expire,
    grant,
    knows,
    next_deadline,
    release,
    renew,
    restore,
    serve,
)
from poolmgr.core.lifecycle import COMMANDS, Command, Verdict
from poolmgr.core.memo import Judged, Memo, RegisteredEngine, shifted
from poolmgr.core.messages import (
    Adopted,
    AdoptedBeside,
    Committed,
    Drain,
    LeasesKept,
    Preload,
    Recovered,
    Release,
    Renew,
    Stop,
    Tick,
    Undrain,
    Verified,
)
from poolmgr.core.registered import ITS_OWN_DRAIN
from poolmgr.core.registered_health import NOT_READY
from poolmgr.core.reload import belongs_beside
from poolmgr.core.restart import Breaker, RestartPolicy, failed, refunded, stable_at
from poolmgr.core.state import ReloadPhase, commits, owner, spec_of, version
from poolmgr.core.view import engine_views, fingerprint, recounted, view
from poolmgr.errors import ClientError
from poolmgr.model.engine import EngineFacts, ProbeOutcome, ProbeResult, Usage
from poolmgr.model.lease import EndedLease, Lease, LeaseOutcome, Refusal, RefusalReason
from poolmgr.model.pool import BreakerState, PoolState
from poolmgr.model.settings import LeaseSettings, SupervisionSettings
from tests.core.helpers import (
    ENGINE,
    FAILED,
    LOADING,
    NEXT,
    OK,
    QUIET,
    Driver,
    a_remembering_pool,
    an_ask,
    in_state,
    notes,
    of,
    only,
    only_note,
    ready,
)
from tests.core.test_registered import Registered, a_ready, enrolled, refusal

S = PoolState
BY = Grantor("127.0.0.1:1", 1, 1)


def given(table: LeaseTable, name: str, now: float = 0.0, **ask) -> tuple[LeaseTable, Lease]:
    return grant(table, an_ask(name, **ask), BY, now)


# Leases.


@pytest.mark.behaviour("LEASE-6")
@pytest.mark.parametrize("bound", [1024, 32, 4, 3, 2, 1])
def test_as_many_ended_leases_as_the_bound_says_are_remembered_and_more_than_half_of_it_always(bound):
    settings, table, remembered = LeaseSettings(tombstones=bound), LeaseTable(1), []
    for number in range(2 * bound):
        table, lease = given(table, str(number))
        table, outcome = release(table, lease.lease_id, lease.token, 1.0, settings)
        assert outcome is LeaseOutcome.RELEASED
        remembered.append(sum(map(len, table.ended)))
    assert remembered[:bound] == list(range(1, bound + 1))
    assert all(bound // 2 < count <= bound for count in remembered[bound:])
    assert [n for n in range(2 * bound) if knows(table, f"p.{n}")] == list(range(2 * bound - remembered[-1], 2 * bound))


@pytest.mark.behaviour("LEASE-6")
def test_a_token_is_compared_by_what_it_says():
    table, lease = given(LeaseTable(1), "one")
    same = "".join(list(lease.token))
    table, outcome, expires = renew(table, lease.lease_id, same, 5.0)
    assert (outcome, expires) == (LeaseOutcome.RENEWED, 5.0 + lease.ttl)
    table, ended = release(table, lease.lease_id, same, 6.0, LeaseSettings())
    assert ended is LeaseOutcome.RELEASED
    assert renew(table, lease.lease_id, "".join(list(same)), 7.0)[1] is LeaseOutcome.ALREADY_RELEASED


@pytest.mark.behaviour("LEASE-6")
@pytest.mark.parametrize("token", ["", "a", "zzz"])
def test_whoever_has_another_token_ends_and_extends_nothing(token):
    table, lease = given(LeaseTable(1), "one")
    assert renew(table, lease.lease_id, token, 1.0) == (table, LeaseOutcome.UNKNOWN, None)
    assert release(table, lease.lease_id, token, 1.0, LeaseSettings()) == (table, LeaseOutcome.UNKNOWN)


@pytest.mark.behaviour("LEASE-3", "LEASE-6")
@pytest.mark.parametrize(("late", "outcome"), [(-0.1, "RELEASED"), (0.0, "EXPIRED"), (0.1, "EXPIRED")])
def test_a_release_after_the_expiry_frees_the_slot_and_says_that_it_was_late_then_and_later(late, outcome):
    table, lease = given(LeaseTable(1), "one")
    table, told = release(table, lease.lease_id, lease.token, lease.expires + late, LeaseSettings())
    assert (told, table.free) == (LeaseOutcome[outcome], 1)
    again = LeaseOutcome.ALREADY_RELEASED if late < 0 else LeaseOutcome.EXPIRED
    assert release(table, lease.lease_id, lease.token, 99.0, LeaseSettings())[1] is again


@pytest.mark.behaviour("LEASE-3", "LEASE-6")
@pytest.mark.parametrize(("late", "remembered"), [(-0.1, "ALREADY_RELEASED"), (0.5, "EXPIRED")])
def test_a_release_is_recorded_as_what_a_later_daemon_shall_say_of_it(late, remembered):
    driver = ready(QUIET)
    lease = driver.lease("one")
    driver.now = lease.expires + late
    recorded = only(RecordLeases, driver.do(Release(lease.lease_id, lease.token)))
    assert recorded == RecordLeases(ended=(EndedLease(lease.lease_id, lease.token, LeaseOutcome[remembered]),))


@pytest.mark.behaviour("LEASE-6")
def test_a_release_of_nothing_is_not_recorded():
    driver = ready(QUIET)
    effects = driver.do(Release("p.never", "token"))
    assert (of(RecordLeases, effects), only(LeaseEnded, effects)) == ([], LeaseEnded(LeaseOutcome.UNKNOWN))


@pytest.mark.behaviour("LEASE-3")
def test_leases_that_are_taken_over_live_one_ttl_from_then_and_those_that_ended_are_remembered():
    _, old = given(LeaseTable(1), "old", ttl=20.0)
    _, older = given(LeaseTable(1), "older", ttl=30.0)
    told = EndedLease("p.gone", "token-gone", LeaseOutcome.EXPIRED)
    table = restore(LeaseTable(1), (old, older), (told,), 100.0, LeaseSettings())
    assert {x.lease_id: x.expires for x in table.live.values()} == {"p.old": 120.0, "p.older": 130.0}
    assert (table.free, next_deadline(table)) == (0, 120.0)
    assert renew(table, "p.gone", "token-gone", 101.0)[1] is LeaseOutcome.EXPIRED
    assert restore(LeaseTable(1), (), (), 100.0, LeaseSettings()).ended == ()


@pytest.mark.behaviour("LEASE-5")
def test_fencing_numbers_of_those_who_waited_rise_one_by_one_from_the_grantors():
    table, settings = LeaseTable(3), LeaseSettings()
    for name in ("a", "b", "c", "d"):
        table, _ = enqueue(table, an_ask(name, wait=9.0), 0.0, settings)
    table, answers = serve(table, BY._replace(fence=7), 1.0)
    assert [(a.lease_id, a.result.fencing_token) for a in answers] == [("p.a", 7), ("p.b", 8), ("p.c", 9)]
    assert [w.ask.lease_id for w in table.waiters] == ["p.d"]


@pytest.mark.behaviour("LEASE-5")
def test_whoever_asks_without_a_request_id_takes_nobodys_place():
    table, settings = LeaseTable(0), LeaseSettings()
    for name in ("a", "b"):
        table, answers = enqueue(table, an_ask(name, wait=9.0), 0.0, settings)
        assert not answers
    assert [w.serial for w in table.waiters] == [0, 1]
    assert (table.asked, table.quiet_until) == (2, 9.0)


@pytest.mark.behaviour("LEASE-5")
def test_a_waiter_is_refused_at_its_deadline_and_not_before_and_with_its_time():
    table, settings = LeaseTable(0), LeaseSettings()
    table, _ = enqueue(table, an_ask("a", wait=9.0), 0.0, settings)
    table, _ = enqueue(table, an_ask("b", wait=10.0), 0.0, settings)
    assert expire(table, 8.9, RefusalReason.POOL_FULL, settings)[1] == []
    table, ((lease_id, refusal),) = expire(table, 9.0, RefusalReason.POOL_FULL, settings)
    assert (lease_id, refusal) == ("p.a", Refusal(RefusalReason.POOL_FULL, "no slot within 9 s"))
    assert next_deadline(table) == 10.0


@pytest.mark.behaviour("LEASE-3")
def test_the_next_end_is_the_first_expiry_and_its_grace():
    settings, table = LeaseSettings(), LeaseTable(2)
    table, _ = given(table, "long", ttl=50.0)
    table, short = given(table, "short", ttl=20.0)
    assert next_deadline(table) == 20.0  # too early by the grace, and never too late
    table, _ = expire(table, 20.0, RefusalReason.POOL_FULL, settings)
    assert (next_deadline(table), len(table.live)) == (21.0, 2)
    table, _ = expire(table, 21.0, RefusalReason.POOL_FULL, settings)
    assert (next_deadline(table), len(table.live)) == (51.0, 1)
    table, _ = expire(table, 51.0, RefusalReason.POOL_FULL, settings)
    assert (next_deadline(table), table.quiet_until, knows(table, short.lease_id)) == (None, inf, True)


@pytest.mark.behaviour("LEASE-5")
def test_an_ask_that_does_not_wait_is_told_when_the_first_slot_falls_free():
    driver = ready(QUIET)
    driver.lease("long", ttl=300.0)
    driver.lease("short", ttl=20.0)
    driver.now += 5.0
    refusal = driver.ask("late")
    assert (refusal.reason, refusal.retry_after) == (RefusalReason.POOL_FULL, 16.0)
    assert refusal.message == "all 2 slots of pool p are leased"


@pytest.mark.behaviour("LEASE-5")
def test_an_ask_of_a_pool_that_waits_is_told_when_it_starts():
    driver = in_state(S.BACKOFF)
    driver.now += 0.25
    refusal = driver.ask("early")
    assert (refusal.reason, refusal.retry_after) == (RefusalReason.POOL_NOT_READY, driver.pool.resume_at - driver.now)
    assert refusal.message == f"pool p is BACKOFF ({driver.pool.reason})"


# The restart policy.


@pytest.mark.behaviour("RST-8")
def test_on_another_boots_clock_every_time_moves_alike_and_no_engine_has_lived_through_it():
    policy = RestartPolicy(
        failures=3, consecutive=2, healthy_since=50.0, pool=Breaker(BreakerState.OPEN, 400.0, 300.0),
        generation=Breaker(BreakerState.HALF_OPEN, 200.0, 600.0), restarts=(1.0, 2.0), ooms=(3.0,), history=(4.0, 5.0),
    )  # fmt: skip
    moved = shifted(Memo(1, 1, resume_at=400.0, drain_until=70.0, policy=policy), -1000.5)
    assert (moved.resume_at, moved.drain_until) == (-600.5, -930.5)
    assert moved.policy == RestartPolicy(
        failures=3, consecutive=2, pool=Breaker(BreakerState.OPEN, -600.5, 300.0),
        generation=Breaker(BreakerState.HALF_OPEN, -800.5, 600.0), restarts=(-999.5, -998.5), ooms=(-997.5,),
        history=(-996.5, -995.5),
    )  # fmt: skip
    assert (shifted(Memo(1, 1), 5.0).resume_at, shifted(Memo(1, 1), 5.0).drain_until) == (None, None)


def test_what_a_memo_does_not_say_is_nothing():
    memo = Memo(1, 1)
    assert (memo.target, memo.retiring, memo.good, memo.rolled_back, memo.restart_count) == (0, "", (), (), 0)
    assert (memo.wanted, memo.deleting, memo.resting, memo.registered) == (False, False, None, None)
    assert (memo.judged, memo.policy) == (Judged("", 0, 0), RestartPolicy(0, 0))
    assert RegisteredEngine() == RegisteredEngine("", "", "", 0, None, ready=True, draining=False)


def judged(policy: RestartPolicy, now: float, cause: str = "SIGNAL", host_restarts: int = 0, **limits):
    settings = replace(SupervisionSettings(), **limits)
    return failed(policy, cause, now, 0.5, host_restarts, settings)


@pytest.mark.behaviour("RST-4")
def test_restarts_count_within_their_window_and_not_at_its_end():
    policy = RestartPolicy(restarts=(39.9, 40.0, 40.1, 99.0))
    decision = judged(policy, 100.0)
    assert (decision.rate, decision.policy.restarts) == (3, (40.1, 99.0, 100.0))


@pytest.mark.behaviour("RST-4")
def test_no_more_restarts_are_kept_than_the_limit_needs():
    policy, settings = RestartPolicy(), SupervisionSettings()
    for number in range(30):
        policy = judged(policy, 100.0 + number / 100, breaker_threshold=1000).policy
        policy = replace(policy, pool=Breaker(), generation=Breaker())
    assert len(policy.restarts) == settings.restart_rate_limit + 1


@pytest.mark.behaviour("RST-4")
@pytest.mark.parametrize(("cause", "kept"), [("HOST_OOM", 3), ("GPU_OOM", 3), ("SIGNAL", 2)])
def test_ends_by_lack_of_memory_count_within_their_window_and_others_do_not(cause, kept):
    decision = judged(RestartPolicy(ooms=(40.0, 40.1, 99.0)), 100.0, cause)
    assert len(decision.policy.ooms) == kept
    assert not decision.oom_storm


@pytest.mark.behaviour("RST-5")
def test_failures_of_a_slow_loop_count_within_their_windows_and_not_at_their_ends():
    settings = SupervisionSettings()
    now = 10 * settings.slow_loop_window
    loop, flaps = now - settings.slow_loop_window, now - settings.flapping_window
    decision = judged(RestartPolicy(history=(loop, loop + 1, flaps, *(flaps + n for n in range(1, 6)))), now)
    assert (decision.flapping, len(decision.policy.history), decision.parked) == (6, 8, False)
    assert judged(RestartPolicy(history=(flaps,) * 9), now).flapping == 0


@pytest.mark.behaviour("RST-5")
@pytest.mark.parametrize(("before", "parked"), [(22, False), (23, True), (24, True)])
def test_the_24th_failure_of_a_day_parks(before, parked):
    now = 1e6
    decision = judged(RestartPolicy(history=tuple(now - 60.0 * n for n in range(before, 0, -1))), now)
    assert decision.parked is parked
    assert len(decision.policy.history) == min(before + 1, 24)


@pytest.mark.behaviour("RST-2")
@pytest.mark.parametrize(("before", "opened_by"), [(3, ""), (4, "failures"), (5, "failures")])
def test_an_opened_breaker_says_what_opened_it_and_is_when_the_next_start_may_be(before, opened_by):
    decision = judged(RestartPolicy(consecutive=before), 1000.0)
    assert (decision.opened_by, decision.opened) == (opened_by, bool(opened_by))
    assert decision.resume_at == 1000.0 + (300.0 if opened_by else decision.backoff)


@pytest.mark.behaviour("RST-2")
def test_what_is_half_open_and_what_is_open_is_open_until_the_later_of_both():
    half, early = Breaker(BreakerState.HALF_OPEN, 900.0), Breaker(BreakerState.OPEN, 500.0)
    late = Breaker(BreakerState.OPEN, 700.0)
    assert RestartPolicy(pool=half, generation=early).open_until == 500.0
    assert RestartPolicy(pool=early, generation=late).open_until == 700.0
    assert RestartPolicy(pool=half, generation=early).breaker_state is BreakerState.OPEN
    assert RestartPolicy(pool=half).breaker_state is BreakerState.HALF_OPEN


@pytest.mark.behaviour("RST-2")
def test_an_engine_becomes_stable_only_where_that_changes_something():
    settings = SupervisionSettings()
    assert stable_at(RestartPolicy(healthy_since=5.0), settings) is None
    assert stable_at(RestartPolicy(consecutive=1), settings) is None
    assert stable_at(RestartPolicy(consecutive=1, healthy_since=5.0), settings) == 65.0
    half = Breaker(BreakerState.HALF_OPEN, 1.0, 300.0)
    assert stable_at(RestartPolicy(pool=half, healthy_since=5.0), settings) == 65.0


@pytest.mark.behaviour("RST-6")
def test_a_breaker_that_the_hosts_fault_opened_is_closed_and_one_from_before_is_not():
    settings, now = SupervisionSettings(), 1000.0
    inside = Breaker(BreakerState.OPEN, now - 29.0 + 300.0, 300.0)
    before = Breaker(BreakerState.OPEN, now - 30.0 + 300.0, 300.0)
    doubled = Breaker(BreakerState.OPEN, now - 1.0 + 600.0, 600.0)
    assert refunded(RestartPolicy(pool=inside, generation=inside), now, settings) == RestartPolicy()
    assert refunded(RestartPolicy(pool=before), now, settings).pool == before
    left = refunded(RestartPolicy(pool=doubled), now, settings).pool
    assert left == replace(doubled, open_until=now)
    few = refunded(RestartPolicy(failures=1, consecutive=1, history=(now, now)), now, settings)
    assert (few.failures, few.consecutive) == (0, 0)


# Two engines of a reload.


@pytest.mark.behaviour("LEASE-3", "DRN-2")
def test_leases_of_a_dead_daemon_go_to_the_engine_that_they_are_on():
    driver = Driver(a_remembering_pool(QUIET))
    driver.do(Adopted(ENGINE, 77, 8123))
    driver.do(AdoptedBeside(Adopted(NEXT, 78, 8124), QUIET, 7, retiring=True))
    lent = ready(QUIET)
    ours, theirs = (
        lent.lease("a")._replace(endpoint="127.0.0.1:8123"),
        lent.lease("b")._replace(endpoint="127.0.0.1:8124"),
    )
    driver.do(LeasesKept((ours, theirs)))
    assert driver.pool.leases.live.keys() == {ours.lease_id}
    assert driver.pool.beside.leases.live.keys() == {theirs.lease_id}
    assert (driver.pool.leases.elsewhere, driver.pool.leases.free) == (1, 0)


@pytest.mark.behaviour("LEASE-3")
def test_a_lease_on_another_engine_than_the_one_that_was_taken_over_is_over():
    driver = Driver(a_remembering_pool(QUIET))
    driver.do(Adopted(ENGINE, 77, 8123))
    lease = ready(QUIET).lease("a")._replace(endpoint="127.0.0.1:9999")
    recorded = only(RecordLeases, driver.do(LeasesKept((lease,))))
    assert recorded.ended == (EndedLease(lease.lease_id, lease.token, LeaseOutcome.EXPIRED),)
    assert not driver.pool.leases.live
    assert only(LeaseEnded, driver.do(Renew(lease.lease_id, lease.token))).outcome is LeaseOutcome.EXPIRED


@pytest.mark.behaviour("PROC-6", "DRN-3")
@pytest.mark.parametrize(
    ("retiring", "generation", "phase", "outcome"),
    [(True, 1, ReloadPhase.RETIRING, "complete"), (False, 7, ReloadPhase.ENDING, "rolled_back")],
)
def test_a_reload_in_which_the_daemon_died_is_told_by_the_generation_that_it_leads_to(
    retiring, generation, phase, outcome
):
    driver = Driver(a_remembering_pool(QUIET))
    driver.do(Adopted(ENGINE, 77, 8123))
    driver.do(AdoptedBeside(Adopted(NEXT, 78, 8124), QUIET, 7, retiring))
    assert (driver.pool.reload.generation, driver.pool.reload.phase) == (generation, phase)
    driver.do(LeasesKept())
    driver.do(Recovered())
    note = only_note(driver.end(NEXT), NoteName.RELOAD_FINISHED)
    assert (note.fields["outcome"], note.fields["new_generation"]) == (outcome, generation)
    assert driver.pool.beside is None


@pytest.mark.behaviour("LEASE-3", "DRN-2")
def test_an_engine_whose_port_nobody_knows_gets_no_lease_while_there_is_another():
    driver = Driver(a_remembering_pool(QUIET))
    driver.do(Adopted(ENGINE, 77, 8123))
    driver.do(AdoptedBeside(Adopted(NEXT, 78, 0), QUIET, 7, retiring=True))
    lease = ready(QUIET).lease("a")._replace(endpoint="127.0.0.1:8123")
    assert not belongs_beside(driver.pool, lease)
    assert not belongs_beside(driver.pool, lease._replace(endpoint=""))
    assert not belongs_beside(a_remembering_pool(), lease)


def test_each_of_the_two_engines_of_a_reload_is_found_by_its_id_and_its_generation():
    driver = ready(QUIET)
    driver.change(args=("--new",))
    driver.reload_to(ReloadPhase.VERIFYING)
    pool = driver.pool
    assert (owner(pool, ENGINE), owner(pool, NEXT), owner(pool, "x" * 32)) == (pool, pool.beside, pool)
    assert (version(pool, 1), version(pool, 2), version(pool, 3)) == (pool, pool.beside, pool)
    assert (spec_of(pool, 1), spec_of(pool, 2).args) == (pool.spec, ("--new",))
    assert spec_of(pool, 2).restart is pool.spec.restart
    assert (version(a_remembering_pool(), 1).generation, commits(pool, 2)) == (1, False)
    driver.verify_next()
    assert [commits(driver.pool, generation) for generation in (1, 2, 3)] == [False, True, False]
    driver.commit()
    assert not commits(driver.pool, 2)


@pytest.mark.behaviour("DRN-2")
def test_a_reload_that_ends_is_noted_with_its_outcome_and_how_long_it_took():
    driver = ready(QUIET)
    told = driver.change()
    assert only_note(told, NoteName.RELOAD_STARTED).fields == {
        "old_generation": 1, "new_generation": 2, "beside": True,
    }  # fmt: skip
    driver.now += 1.5
    told = driver.reload_to(ReloadPhase.RETIRING)
    assert only_note(told, NoteName.RELOAD_COMMITTED).fields == {"generation": 2, "duration_ms": 1500}
    driver.now += 0.25
    note = only_note(driver.end(ENGINE), NoteName.RELOAD_FINISHED)
    assert note.fields == {
        "outcome": "complete", "reason": "generation 2 serves alone", "new_generation": 2, "duration_ms": 1750,
    }  # fmt: skip


BEFORE_COMMIT = (ReloadPhase.STARTING, ReloadPhase.VERIFYING, ReloadPhase.COMMITTING)


@pytest.mark.behaviour("DRN-2")
@pytest.mark.parametrize("phase", [*BEFORE_COMMIT, ReloadPhase.RETIRING])
@pytest.mark.parametrize("generation", [1, 2, 3])
@pytest.mark.parametrize("wrong", ["", "it says nothing"])
def test_an_answer_counts_in_its_own_phase_and_for_its_own_generation_only(phase, generation, wrong):
    driver = ready(QUIET)
    driver.lease("held", ttl=300.0)
    driver.change()
    driver.reload_to(phase)
    before = driver.pool
    for waited_for, answer in (
        (ReloadPhase.VERIFYING, Verified(generation, wrong)),
        (ReloadPhase.COMMITTING, Committed(generation, wrong)),
    ):
        if (phase, generation) != (waited_for, 2):
            assert not driver.do(answer)
            assert driver.pool == before


# What is shown.


def test_an_engine_is_shown_with_its_times_on_the_wall_clock_and_what_it_needs():
    driver = Driver()
    driver.start()
    driver.usage = Usage(log_bytes=1, read_bytes=2, rss_bytes=3)
    driver.now += 2.5
    driver.answer(OK, facts=EngineFacts(version="v9", context_length=512))
    shown = view(fingerprint(driver.pool), 4, 1e6)
    assert (shown.load_time, shown.memory_bytes, shown.context_length, shown.engine_version) == (2.5, 3, 512, "v9")
    assert (shown.start_time, shown.ready_time) == (driver.now - 2.5 + 1e6, driver.now + 1e6)
    assert (shown.revision, shown.live, shown.ready, shown.draining) == (4, True, True, False)
    assert (shown.slots_total, shown.slots_free, shown.active_leases, shown.waiting) == (2, 2, 0, 0)


def test_the_progress_of_a_start_is_what_it_has_read_and_where_nobody_knows_that_what_it_has_logged():
    for usage, shown in ((Usage(log_bytes=7, read_bytes=9), 9), (Usage(log_bytes=7), 7), (Usage(), 0)):
        driver = in_state(S.STARTING)
        driver.usage = usage
        driver.answer(LOADING)
        assert view(fingerprint(driver.pool), 1, 0.0).progress_bytes == shown
        driver.pass_time(0.6)
        driver.answer(OK)
        assert view(fingerprint(driver.pool), 1, 0.0).progress_bytes == 0


@pytest.mark.parametrize("change", ["lease", "wait"])
def test_a_count_of_leases_that_changed_is_told_without_looking_at_anything_else(change):
    driver = ready(QUIET)
    before = fingerprint(driver.pool)
    assert recounted(before, driver.pool) is before
    driver.lease("one")
    driver.lease("two")
    if change == "wait":
        driver.ask("three", wait=9.0)
    assert recounted(before, driver.pool) == fingerprint(driver.pool) != before


def test_both_engines_of_a_reload_are_listed_with_their_slots_and_places():
    driver = ready(QUIET)
    driver.lease("one", ttl=300.0)
    driver.change()
    driver.reload_to(ReloadPhase.RETIRING)
    driver.lease("two")
    new, old = engine_views(driver.pool, 1e6, lambda engine_id: f"/{engine_id[0]}")
    assert (new.engine_id, new.generation, new.pid, new.endpoint) == (NEXT, 2, 200, "127.0.0.1:8001")
    assert (new.state, new.slots_total, new.slots_free, new.directory) == (S.READY, 2, 1, "/f")
    assert (old.engine_id, old.generation, old.pid, old.endpoint) == (ENGINE, 1, 100, "127.0.0.1:8000")
    assert (old.state, old.slots_total, old.slots_free, old.start_time) == (S.DRAINING, 2, 0, driver.now + 1e6)
    assert not new.registered and not old.registered


# Engines that register themselves.


@pytest.mark.behaviour("ENG-2")
def test_failed_probes_lose_a_registered_engine_with_their_number_and_the_last_answer():
    driver = a_ready(health_check_interval=5.0)
    told = driver.pass_time(20.0, FAILED)
    note = only_note(told, NoteName.HEALTH_CHECK_FAILED)
    assert note.fields == {"failures": 3, "detail": FAILED.detail}
    assert driver.pool.last_error.message == f"3 probes failed in a row; the last: {FAILED.detail}"
    assert driver.state is S.LOST
    assert not of(RunProbe, driver.pass_time(100.0))


@pytest.mark.behaviour("LIVE-1")
def test_a_probe_of_a_registered_engine_that_could_not_be_sent_counts_neither_way():
    driver = a_ready(health_check_interval=5.0)
    for _ in range(2):
        driver.pass_time(6.0)
        driver.told(FAILED)
        driver.beat()
    driver.pass_time(6.0)
    driver.told(ProbeResult(ProbeOutcome.NOT_ASKED))
    assert (driver.state, driver.pool.registered.probe.failures) == (S.READY, 2)
    driver.pass_time(6.0)
    driver.told(OK)
    assert driver.pool.registered.probe.failures == 0


@pytest.mark.behaviour("ENG-1")
def test_a_registered_engine_that_becomes_ready_is_told_with_its_place_and_its_time():
    driver = Registered()
    driver.register()
    driver.now += 1.5
    note = only_note(driver.told(OK), NoteName.POOL_READY)
    assert note.fields == {
        "duration_ms": 1500, "pid": 77, "endpoint": "10.0.0.7:8000", "slots": 4, "adopted": False,
    }  # fmt: skip
    assert driver.pool.registered.ready_at == driver.now
    driver.beat(ready=False)
    assert (driver.state, driver.pool.reason, driver.pool.registered.ready_at) == (S.STARTING, NOT_READY, None)


@pytest.mark.behaviour("ENG-2", "DRN-1")
def test_a_drain_of_a_registered_engine_is_noted_with_its_time_and_ends_with_its_outcome():
    driver = a_ready()
    lease = driver.lease("one", ttl=300.0)
    driver.beat(draining=True)
    assert (driver.state, driver.pool.reason) == (S.DRAINING, ITS_OWN_DRAIN)
    note = only_note(driver.do(Drain(9.5)), NoteName.DRAIN_STARTED)
    assert note.fields == {"deadline_ms": 9500, "active_leases": 1}
    assert driver.pool.reason == "draining"
    driver.do(Renew(lease.lease_id, lease.token))
    finished = only_note(driver.pass_time(9.5), NoteName.DRAIN_FINISHED)
    assert finished.fields == {"outcome": "forced", "active_leases": 1}
    assert (driver.state, driver.pool.reason) == (S.STOPPED, "drain deadline passed with 1 live leases")


@pytest.mark.behaviour("ENG-2")
def test_a_stop_of_a_registered_engine_revokes_what_is_leased_and_says_how_much():
    driver = a_ready()
    assert not notes(driver.do(Stop()), NoteName.LEASES_REVOKED)
    driver = a_ready()
    driver.lease("one")
    driver.lease("two")
    told = driver.do(Stop())
    assert only_note(told, NoteName.LEASES_REVOKED).fields == {"count": 2}
    assert len(only(RecordLeases, told).ended) == 2
    assert (driver.pool.registered.ready_at, driver.pool.registered.probe.due) == (None, None)


@pytest.mark.behaviour("ENG-1")
def test_a_heartbeat_keeps_what_it_does_not_say_and_is_heard():
    driver = a_ready()
    driver.now += 3.0
    driver.beat(slots_free=2, in_flight=1, progress_counter=10)
    driver.now += 2.0
    driver.beat()
    run = driver.pool.registered
    assert (run.slots_free, run.in_flight, run.progress_counter) == (2, 1, 10)
    assert run.heard == run.last_heartbeat == driver.now
    assert (driver.seen.reload_phase, driver.seen.reload_generation, driver.seen.progress_bytes) == ("", 0, 0)
    assert (driver.seen.restart_count, driver.seen.load_time, driver.seen.backoff_until) == (0, None, None)
    assert (driver.seen.slots_total, driver.seen.slots_free, driver.seen.active_leases) == (4, 2, 0)
    (shown,) = engine_views(driver.pool, 1e6, str)
    assert (shown.in_flight, shown.progress_counter, shown.slots_free) == (1, 10, 2)
    assert (shown.last_heartbeat, shown.registered, shown.directory) == (driver.now + 1e6, True, "")


@pytest.mark.behaviour("ENG-2")
@pytest.mark.parametrize("command", [Undrain(), Stop(), Drain(), Preload()])
@pytest.mark.parametrize("state", [S.STARTING, S.READY, S.LOST, S.STOPPED])
def test_a_command_to_a_registered_engine_is_refused_where_the_table_says_so(state, command):
    driver = a_ready()
    match state:
        case S.STARTING:
            driver.beat(ready=False)
        case S.LOST:
            driver.lose()
        case S.STOPPED:
            driver.do(Stop())
    assert driver.state is state
    before = driver.pool
    if COMMANDS[Command(type(command).__name__.lower())][state] is Verdict.REFUSE:
        with pytest.raises(ClientError, match=f"it is {state}"):
            driver.do(command)
        assert driver.pool == before
    else:
        driver.do(command)


@pytest.mark.behaviour("ENG-2", "DRN-1")
@pytest.mark.parametrize("event", [Tick(), LeasesKept()])
def test_a_drain_of_a_registered_engine_is_not_over_before_all_that_was_left_of_it_has_been_told(event):
    driver = Registered(enrolled(wanted=False, drain_until=Driver().now - 1.0))
    driver.do(event)
    assert (driver.state, driver.pool.drain_until) == (S.PENDING, driver.now - 1.0)
    driver.do(Recovered())
    assert (driver.state, driver.pool.reason) == (S.STOPPED, "drained")


@pytest.mark.behaviour("DRN-1")
@pytest.mark.parametrize("released", [True, False])
def test_the_end_of_a_drain_is_noted_with_its_outcome_and_how_long_it_took(released):
    driver = ready(QUIET)
    lease = driver.lease("one", ttl=300.0)
    driver.now += 3.0
    driver.do(Drain(9.5))
    driver.now += 1.5
    told = driver.do(Release(lease.lease_id, lease.token)) if released else driver.pass_time(8.0)
    outcome = {"outcome": "complete", "active_leases": 0, "duration_ms": 1500}
    forced = {"outcome": "forced", "active_leases": 1, "duration_ms": 9500}
    assert only_note(told, NoteName.DRAIN_FINISHED).fields == (outcome if released else forced)
    grace = driver.pool.settings.drain_grace if released else driver.pool.settings.stop_grace
    assert driver.pool.engine.kill_at == driver.now + grace


@pytest.mark.behaviour("ENG-1", "LEASE-1")
def test_a_registration_that_says_nothing_of_free_slots_frees_none_and_one_that_does_counts_them():
    driver = a_ready()
    driver.beat(slots_free=2)
    driver.lease("one")
    driver.lease("two")
    driver.register(engine_version="v2")
    assert refusal(driver.ask("three")) is RefusalReason.POOL_FULL
    driver.register(slots_free=1)
    driver.lease("three")
    assert refusal(driver.ask("four")) is RefusalReason.POOL_FULL


@pytest.mark.behaviour("ENG-2")
@pytest.mark.parametrize(("jitter", "seconds"), [(0.0, 4.5), (0.5, 5.0), (1.0, 5.5)])
def test_a_registered_engine_is_asked_every_five_seconds_within_a_tenth(jitter, seconds):
    driver = Registered(enrolled())
    driver.jitter = jitter
    driver.to_ready()
    assert driver.pool.registered.probe.due == pytest.approx(driver.now + seconds)


@pytest.mark.parametrize("state", [s for s in S if s is not S.LOST])
def test_a_pool_is_shown_as_ready_with_free_slots_and_as_draining_in_that_state_only(state):
    shown = view(fingerprint(in_state(state).pool), 1, 0.0)
    assert (shown.state, shown.ready, shown.draining) == (state, state is S.READY, state is S.DRAINING)
    assert bool(shown.slots_free) is (state is S.READY)


@pytest.mark.behaviour("LIVE-1")
def test_a_probe_that_is_answered_twice_counts_once():
    driver = ready()
    driver.pass_time(6.0)
    driver.answer(FAILED)
    before = driver.pool
    for _ in range(3):
        assert not driver.answer(FAILED)
    assert driver.pool == before
    assert driver.pool.engine.probe.failures == 1


@pytest.mark.behaviour("RST-8")
@pytest.mark.parametrize(
    ("left", "reason"), [("SIGNAL: ended by signal 9", "SIGNAL: ended by signal 9"), ("", "declared")]
)
def test_a_pool_that_waits_gives_the_reason_that_an_earlier_daemon_gave(left, reason):
    driver = Driver(a_remembering_pool(resting=S.BACKOFF, resume_at=5000.0, reason=left))
    driver.do(Recovered())
    assert (driver.state, driver.pool.reason, driver.pool.resume_at) == (S.BACKOFF, reason, 5000.0)
