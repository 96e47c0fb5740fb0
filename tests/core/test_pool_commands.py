"""One pool, step by step: every command in every state, drain and deletion."""

from __future__ import annotations

import pytest

from poolmgr.core.effects import Discard, Forget, NoteName, RunProbe
from poolmgr.core.lifecycle import COMMANDS, Command, Verdict
from poolmgr.core.messages import Delete, Drain, Preload, Release, Stop, Tick, Undrain
from poolmgr.core.settle import next_deadline
from poolmgr.errors import ClientError, Reason
from poolmgr.model.lease import Refusal, RefusalReason
from poolmgr.model.pool import PoolState
from tests.core.helpers import (
    KILLED,
    OK,
    REACH,
    Driver,
    answers,
    in_state,
    of,
    only_note,
    ready,
)

S = PoolState
OTHER = "f" * 32


# Every command in every state.


def acted(driver: Driver, event) -> Verdict:
    before = driver.pool
    try:
        driver.do(event)
    except ClientError:
        assert driver.pool is before
        return Verdict.REFUSE
    return Verdict.ACT if driver.pool.state is not before.state else Verdict.DONE


EVENTS = {
    Command.PRELOAD: Preload(),
    Command.DRAIN: Drain(),
    Command.UNDRAIN: Undrain(),
    Command.STOP: Stop(),
}


@pytest.mark.behaviour("DRN-1")
@pytest.mark.parametrize("command", Command)
@pytest.mark.parametrize("state", REACH)
def test_a_command_does_in_each_state_what_the_table_says(command, state):
    assert acted(in_state(state), EVENTS[command]) is COMMANDS[command][state]


@pytest.mark.behaviour("RST-2")
def test_a_preload_of_a_pool_parked_by_its_breaker_says_when_to_come_again():
    with pytest.raises(ClientError) as refused:
        in_state(S.PARKED).do(Preload())
    assert refused.value.reason is Reason.BREAKER_OPEN
    assert 0 < refused.value.retry_after <= 300.0


@pytest.mark.behaviour("DRN-5")
@pytest.mark.parametrize("state", sorted(set(REACH) - {S.UNKNOWN}))
def test_a_deletion_in_any_state_ends_in_one_forget_with_nothing_left(state):
    driver = in_state(state)
    driver.do(Delete())
    for kind in (Preload(), Undrain()):
        with pytest.raises(ClientError) as refused:
            driver.do(kind)
        assert refused.value.reason is Reason.POOL_DELETING
    refusal = driver.ask("late", wait=10.0)
    assert isinstance(refusal, Refusal)
    assert refusal.reason is RefusalReason.POOL_DRAINING
    if driver.state is S.DRAINING:
        driver.pass_time(301.0, OK)
    if driver.state is S.STOPPING and driver.pool.engine is None:
        driver.spawn()
    if driver.pool.engine is not None:
        driver.crash(KILLED)
    driver.pass_time(1e5)
    driver.do(Tick())
    assert len(of(Forget, driver.log)) == 1
    assert len(of(Discard, driver.log)) == (0 if state in (S.PENDING,) else 1)


@pytest.mark.behaviour("DRN-5")
def test_a_deletion_asked_for_again_is_tried_again():
    driver = in_state(S.STOPPED)
    driver.do(Delete())
    assert of(Forget, driver.do(Delete()))


@pytest.mark.behaviour("DRN-5")
def test_a_stop_hurries_a_deletion_that_drains():
    driver = in_state(S.DRAINING)
    driver.do(Delete())
    driver.do(Stop())
    driver.crash(KILLED)
    assert len(of(Forget, driver.log)) == 1


# DRN-1.


@pytest.mark.behaviour("DRN-1")
def test_a_drain_refuses_new_leases_lets_the_running_one_finish_and_then_stops():
    driver = ready()
    lease = driver.lease("a", ttl=300.0)
    driver.do(Drain())
    refusal = driver.ask("b", wait=10.0)
    assert refusal.reason is RefusalReason.POOL_DRAINING
    effects = driver.do(Release(lease.lease_id, lease.token))
    assert driver.state is S.STOPPING
    assert only_note(effects, NoteName.DRAIN_FINISHED).fields["outcome"] == "complete"


@pytest.mark.behaviour("DRN-1")
def test_a_drain_without_leases_completes_at_once():
    driver = ready()
    driver.do(Drain())
    assert driver.state is S.STOPPING


@pytest.mark.behaviour("DRN-1")
@pytest.mark.parametrize(("deadline", "seconds"), [(None, 300.0), (7.0, 7.0)])
def test_a_drain_is_forced_at_its_deadline_and_says_so(deadline, seconds):
    driver = ready()
    driver.lease("a", ttl=300.0)
    driver.pass_time(1.0)
    driver.lease("b", ttl=300.0)
    driver.do(Drain(deadline))
    driver.pass_time(seconds - 0.1, OK)
    assert driver.state is S.DRAINING
    effects = driver.pass_time(0.2, OK)
    assert driver.state is S.STOPPING
    finished = only_note(effects, NoteName.DRAIN_FINISHED)
    assert finished.fields["outcome"] == "forced"
    assert only_note(effects, NoteName.LEASES_REVOKED).fields["count"] == finished.fields["active_leases"]


@pytest.mark.behaviour("DRN-1")
def test_undrain_cancels_a_drain_and_leases_are_granted_again():
    driver = in_state(S.DRAINING)
    driver.do(Undrain())
    driver.lease("b")
    driver.pass_time(400.0, OK)
    assert driver.state is S.READY


@pytest.mark.behaviour("DRN-1")
def test_waiters_are_told_that_the_pool_drains():
    driver = ready()
    driver.lease("a", ttl=300.0)
    driver.lease("b", ttl=300.0)
    driver.ask("c", wait=100.0)
    assert answers(driver.do(Drain()))["p.c"].reason is RefusalReason.POOL_DRAINING


@pytest.mark.behaviour("DRN-1", "RST-2")
def test_a_long_drain_after_a_failure_does_not_wake_the_pool_in_vain():
    driver = ready()
    driver.crash()
    driver.make_ready()
    driver.lease("a", ttl=300.0)
    driver.do(Drain())
    ticks = driver.pass_time(200.0, OK)
    assert len(of(RunProbe, ticks)) == 40
    assert next_deadline(driver.pool) > driver.now
