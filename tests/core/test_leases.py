"""Slots, waiters and the ends of leases, rule by rule."""

from __future__ import annotations

from dataclasses import replace

import pytest

from poolmgr.core.effects import LeaseEnded
from poolmgr.core.messages import Acquire, ChangeSpec, Exited, ForgetWaiter, Release, Renew, Stop, Tick, TreeEmpty
from poolmgr.model.engine import EngineFacts
from poolmgr.model.lease import Lease, LeaseOutcome, Refusal, RefusalReason
from poolmgr.model.settings import LeaseSettings
from tests.core.helpers import (
    ENGINE,
    KILLED,
    QUIET,
    Driver,
    a_pool,
    a_spec,
    an_ask,
    answers,
    only,
    ready,
)


def quiet(**changes) -> Driver:
    return ready(QUIET, **changes)


def ended(driver: Driver, event: Renew | Release) -> LeaseOutcome:
    return only(LeaseEnded, driver.do(event)).outcome


# LEASE-1, LEASE-2: slots and fencing.


@pytest.mark.behaviour("LEASE-1")
def test_no_more_leases_are_granted_than_there_are_slots():
    driver = quiet()
    driver.lease("a")
    driver.lease("b")
    refusal = driver.ask("c")
    assert isinstance(refusal, Refusal)
    assert refusal.reason is RefusalReason.POOL_FULL
    assert refusal.retry_after == pytest.approx(16.0)


@pytest.mark.behaviour("LEASE-1")
def test_a_limit_lowered_under_the_live_leases_ends_none_and_grants_none():
    driver = quiet()
    first = driver.lease("a")
    driver.lease("b")
    driver.do(ChangeSpec(replace(QUIET, slots=1), 2))
    driver.do(Release(first.lease_id, first.token))
    assert isinstance(driver.ask("c"), Refusal)
    assert len(driver.pool.leases.live) == 1


@pytest.mark.behaviour("LEASE-1", "PRE-9")
def test_an_engine_that_has_fewer_slots_than_the_spec_sets_the_limit():
    driver = Driver(a_pool(a_spec(slots=8)))
    driver.make_ready(EngineFacts(slots=3))
    assert driver.pool.leases.slots == 3


@pytest.mark.behaviour("LEASE-1")
def test_a_limit_raised_back_to_what_the_engine_was_started_with_serves_the_waiters():
    driver = quiet()
    driver.do(ChangeSpec(replace(QUIET, slots=1), 2))
    driver.lease("a")
    assert driver.ask("b", wait=60.0) is None
    assert set(answers(driver.do(ChangeSpec(replace(QUIET, slots=2), 3)))) == {"p.b"}


@pytest.mark.behaviour("LEASE-2")
def test_grants_of_one_step_get_rising_fencing_numbers():
    driver = quiet()
    held = [driver.lease("a"), driver.lease("b")]
    for name in "cde":
        driver.ask(name, wait=300.0)
    driver.now += 16.0
    granted = answers(driver.do(Tick()))
    fences = [lease.fencing_token for lease in (*held, *granted.values())]
    assert fences == sorted(set(fences))
    assert list(granted) == ["p.c", "p.d"]


# LEASE-3: time.


@pytest.mark.behaviour("LEASE-3")
def test_an_expired_lease_holds_its_slot_for_the_grace_and_not_longer():
    driver = quiet()
    driver.lease("a", ttl=10.0)
    driver.lease("b", ttl=300.0)
    driver.pass_time(10.9)
    assert isinstance(driver.ask("c"), Refusal)
    driver.pass_time(0.2)
    assert isinstance(driver.ask("d"), Lease)


@pytest.mark.behaviour("LEASE-3")
def test_a_renewed_lease_lives_one_ttl_from_then():
    driver = quiet()
    lease = driver.lease("a", ttl=10.0)
    driver.pass_time(9.0)
    renewed = only(LeaseEnded, driver.do(Renew(lease.lease_id, lease.token)))
    assert (renewed.outcome, renewed.expires) == (LeaseOutcome.RENEWED, driver.now + 10.0)
    driver.pass_time(9.9)
    assert ended(driver, Renew(lease.lease_id, lease.token)) is LeaseOutcome.RENEWED


@pytest.mark.behaviour("LEASE-3", "LEASE-6")
@pytest.mark.parametrize("late", [0.0, 0.5, 1.0, 60.0])
def test_an_expired_lease_cannot_be_renewed_during_the_grace_or_after(late):
    driver = quiet()
    lease = driver.lease("a", ttl=10.0)
    driver.pass_time(10.0 + late)
    assert ended(driver, Renew(lease.lease_id, lease.token)) is LeaseOutcome.EXPIRED
    assert ended(driver, Release(lease.lease_id, lease.token)) is LeaseOutcome.EXPIRED


# LEASE-5: waiters.


@pytest.mark.behaviour("LEASE-5")
def test_a_free_slot_goes_to_the_highest_priority_then_to_who_came_first():
    driver = quiet()
    held = [driver.lease("x", ttl=300.0), driver.lease("y", ttl=300.0)]
    for name, priority in (("low", 0), ("first", 5), ("second", 5), ("top", 9)):
        assert driver.ask(name, wait=100.0, priority=priority) is None
    order = []
    for _ in range(4):
        given = held.pop(0)
        granted = answers(driver.do(Release(given.lease_id, given.token)))
        order += granted
        held += granted.values()
    assert order == ["p.top", "p.first", "p.second", "p.low"]


@pytest.mark.behaviour("LEASE-5")
def test_a_waiter_whose_time_is_over_is_refused_once_with_the_reason_of_then():
    driver = quiet()
    driver.lease("a", ttl=300.0)
    driver.lease("b", ttl=300.0)
    driver.ask("c", wait=5.0)
    assert not answers(driver.pass_time(4.9))
    refusal = answers(driver.pass_time(0.2))["p.c"]
    assert refusal.reason is RefusalReason.POOL_FULL
    assert not answers(driver.pass_time(500.0))


@pytest.mark.behaviour("LEASE-5")
def test_a_waiter_whose_client_went_away_is_forgotten():
    driver = quiet()
    first = driver.lease("a", ttl=300.0)
    driver.lease("b", ttl=300.0)
    driver.ask("gone", wait=100.0)
    driver.ask("here", wait=100.0)
    driver.do(ForgetWaiter("p.gone"))
    assert set(answers(driver.do(Release(first.lease_id, first.token)))) == {"p.here"}


@pytest.mark.behaviour("LEASE-5")
def test_one_more_waiter_than_the_bound_is_told_overloaded_whatever_its_priority():
    driver = quiet(leases=LeaseSettings(max_waiters=2))
    driver.lease("a")
    driver.lease("b")
    driver.ask("c", wait=9.0)
    driver.ask("d", wait=9.0, request_id="r")
    assert driver.ask("e", wait=9.0, priority=99).reason is RefusalReason.OVERLOADED
    retried = driver.ask("f", wait=9.0, request_id="r")
    assert retried is None, "a retry takes the place that its request has"


@pytest.mark.behaviour("LEASE-5", "DRN-1")
def test_a_waiter_survives_the_restart_of_the_engine_and_leases_do_not():
    driver = quiet()
    held = driver.lease("a", ttl=300.0)
    driver.lease("b", ttl=300.0)
    driver.ask("c", wait=100.0)
    assert not answers(driver.do(Exited(ENGINE, KILLED)))
    assert ended(driver, Renew(held.lease_id, held.token)) is LeaseOutcome.EXPIRED
    assert driver.ask("d", wait=100.0) is None, "an ask may queue as soon as a restart is on its way"
    driver.do(TreeEmpty(ENGINE))
    assert list(answers(driver.make_ready())) == ["p.c", "p.d"]


@pytest.mark.behaviour("LEASE-5")
def test_waiters_are_refused_once_no_restart_is_coming():
    driver = Driver(a_pool())
    driver.start()
    driver.ask("a", wait=100.0)
    driver.do(Exited(ENGINE, KILLED))
    assert answers(driver.do(Stop()))["p.a"].reason is RefusalReason.POOL_NOT_READY


# LEASE-4, LEASE-6: idempotence and typed outcomes.


@pytest.mark.behaviour("LEASE-4")
def test_a_retry_with_the_same_request_id_gets_the_same_lease_while_it_lives():
    driver = quiet()
    lease = driver.lease("a", ttl=10.0, request_id="r")
    assert driver.ask("again", ttl=10.0, request_id="r") == lease
    assert len(driver.pool.leases.live) == 1
    driver.pass_time(10.5)
    other = driver.ask("late", request_id="r")
    assert isinstance(other, Lease)
    assert other.lease_id != lease.lease_id


@pytest.mark.behaviour("LEASE-4")
def test_a_request_id_is_its_holders_own():
    driver = quiet()
    one = driver.lease("a", request_id="r", holder="one")
    two = driver.lease("b", request_id="r", holder="two")
    assert one.lease_id != two.lease_id


@pytest.mark.behaviour("LEASE-4", "LEASE-5")
def test_a_retry_of_a_waiting_request_takes_its_place_and_the_earlier_try_is_answered():
    driver = quiet()
    first = driver.lease("a", ttl=300.0)
    driver.lease("b", ttl=300.0)
    driver.ask("c", wait=100.0, request_id="r")
    driver.ask("d", wait=100.0)
    told = answers(driver.do(Acquire(an_ask("c2", wait=100.0, request_id="r"))))
    assert isinstance(told["p.c"], Refusal)
    assert set(answers(driver.do(Release(first.lease_id, first.token)))) == {"p.c2"}


@pytest.mark.behaviour("LEASE-6")
def test_release_and_renew_answer_by_type_and_twice_alike():
    driver = quiet()
    lease = driver.lease("a")
    assert ended(driver, Release(lease.lease_id, "wrong token")) is LeaseOutcome.UNKNOWN
    assert ended(driver, Renew("p.never", "token")) is LeaseOutcome.UNKNOWN
    assert ended(driver, Release(lease.lease_id, lease.token)) is LeaseOutcome.RELEASED
    for _ in range(2):
        assert ended(driver, Release(lease.lease_id, lease.token)) is LeaseOutcome.ALREADY_RELEASED
    assert ended(driver, Release(lease.lease_id, "wrong token")) is LeaseOutcome.UNKNOWN


@pytest.mark.behaviour("LEASE-6")
def test_ended_leases_are_remembered_up_to_a_bound():
    driver = quiet(leases=LeaseSettings(tombstones=10))
    gone = []
    for i in range(100):
        lease = driver.lease(f"n{i}")
        driver.do(Release(lease.lease_id, lease.token))
        gone.append(lease)
        assert sum(map(len, driver.pool.leases.ended)) <= 10
    for lease in gone[-5:]:
        assert ended(driver, Release(lease.lease_id, lease.token)) is LeaseOutcome.ALREADY_RELEASED
    assert ended(driver, Release(gone[0].lease_id, gone[0].token)) is LeaseOutcome.UNKNOWN
