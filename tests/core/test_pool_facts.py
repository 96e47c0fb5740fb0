"""One pool, step by step: facts that are late or not ours, and what others see."""

from __future__ import annotations

import itertools

import pytest

from poolmgr.core.effects import NoteName, Start
from poolmgr.core.messages import Exited, Found, HostFault, InDoubt, Probed, ResetBreaker, Spawned, Stop, TreeEmpty
from poolmgr.core.view import fingerprint, view
from poolmgr.errors import InternalError
from poolmgr.model.engine import Usage
from poolmgr.model.lease import RefusalReason
from poolmgr.model.pool import PoolState
from tests.core.helpers import (
    BAD_ARGUMENTS,
    ENGINE,
    EXIT_0,
    EXIT_1,
    FAILED,
    KILLED,
    OK,
    REACH,
    Driver,
    in_state,
    notes,
    of,
    ready,
)

S = PoolState
OTHER = "f" * 32


# Facts that are late or not ours.


LATE = {
    "a foreign exit": Exited(OTHER, KILLED),
    "a foreign empty tree": TreeEmpty(OTHER),
    "an answer to no probe": Probed(ENGINE, 999, OK, Usage(log_bytes=10**9), owned=False),
    "an answer to an old probe": Probed(ENGINE, 0, FAILED, Usage(), owned=False),
}


@pytest.mark.parametrize("fact", LATE)
@pytest.mark.parametrize("state", REACH)
def test_a_late_or_foreign_fact_changes_nothing_in_any_state(state, fact):
    driver = in_state(state)
    before = driver.pool
    assert not driver.do(LATE[fact])
    assert driver.pool == before


@pytest.mark.behaviour("PRE-4", "PRE-2")
def test_the_answer_to_a_probe_of_the_run_before_does_not_make_this_one_ready():
    driver = in_state(S.STARTING)
    serial = driver.pool.engine.probe.serial
    driver.crash()
    driver.pass_time(2.0)
    driver.spawn()
    driver.do(Probed(ENGINE, serial, OK, Usage(), owned=True))
    assert driver.state is S.STARTING
    driver.answer(OK)
    assert driver.state is S.READY


@pytest.mark.behaviour("LIVE-1")
def test_an_answer_after_the_death_is_no_sign_of_life():
    driver = in_state(S.STARTING)
    serial = driver.pool.engine.probe.serial
    driver.do(Exited(ENGINE, EXIT_1))
    driver.do(Probed(ENGINE, serial, OK, Usage(), owned=True))
    assert driver.state is S.STOPPING


def test_an_empty_tree_is_not_believed_while_the_main_process_runs():
    driver = ready()
    driver.do(TreeEmpty(ENGINE))
    assert driver.state is S.READY


@pytest.mark.parametrize("state", sorted({S.READY, S.BACKOFF, S.STOPPED}))
def test_a_start_that_nobody_asked_for_is_a_defect_and_not_hidden(state):
    with pytest.raises(InternalError):
        in_state(state).do(Spawned(OTHER, 1, 2))
    with pytest.raises(InternalError):
        in_state(state).do(InDoubt(OTHER, "?"))


@pytest.mark.behaviour("RST-6", "RST-8")
@pytest.mark.parametrize("ended", [True, False], ids=["parked", "about to be"])
def test_a_fault_of_the_host_is_no_reason_to_start_what_cannot_start(ended):
    driver = ready()
    driver.crash(KILLED)
    driver.at(driver.pool.resume_at)
    driver.spawn()
    driver.do(Exited(ENGINE, EXIT_1, (), BAD_ARGUMENTS))
    if ended:
        driver.do(TreeEmpty(ENGINE))
    driver.do(HostFault())
    if not ended:
        driver.do(TreeEmpty(ENGINE))
    assert not of(Start, driver.pass_time(1e5))
    assert driver.state is S.PARKED


# What others see.


@pytest.mark.behaviour("RST-8")
def test_every_transition_is_told_with_old_state_new_state_and_reason():
    driver = in_state(S.PARKED)
    told = [(n.fields["old_state"], n.fields["new_state"]) for n in notes(driver.log, NoteName.POOL_TRANSITION)]
    assert told[:3] == [("PENDING", "PROVISIONING"), ("PROVISIONING", "STARTING"), ("STARTING", "READY")]
    assert all(a[1] == b[0] for a, b in itertools.pairwise(told))
    assert all(n.fields["reason"] for n in notes(driver.log, NoteName.POOL_TRANSITION))


def test_a_death_and_a_found_directory_change_the_fingerprint_as_they_change_the_view():
    driver = ready()
    driver.do(Stop())
    before = driver.pool
    driver.do(Exited(ENGINE, EXIT_0))
    assert view(fingerprint(before), 1, 0.0) != view(fingerprint(driver.pool), 1, 0.0)
    assert fingerprint(before) != fingerprint(driver.pool)
    found = Driver()
    before = found.pool
    found.do(Found(ENGINE))
    assert fingerprint(before) != fingerprint(found.pool)


def test_a_probe_or_a_renewal_that_nobody_can_see_makes_no_new_revision():
    driver = ready()
    before = fingerprint(driver.pool)
    driver.pass_time(30.0, OK)
    assert fingerprint(driver.pool) == before


@pytest.mark.behaviour("DRN-1")
@pytest.mark.parametrize("state", REACH)
def test_a_reset_is_taken_in_every_state_and_moves_only_a_parked_pool(state):
    driver = in_state(state)
    driver.do(ResetBreaker())
    assert driver.state is (S.PROVISIONING if state is S.PARKED else state)
    assert not driver.pool.policy.failures


def test_an_ask_is_told_why_and_when_to_come_again():
    driver = in_state(S.PARKED)
    refusal = driver.ask("a")
    assert refusal.reason is RefusalReason.BREAKER_OPEN
    assert 0 < refusal.retry_after <= 300.0
