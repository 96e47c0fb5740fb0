"""One pool, step by step: what a new generation does in every state, and what an engine of before does."""

from __future__ import annotations

import pytest

from poolmgr.core.effects import CountRestart, Discard, KillTree, NoteName, Start, Terminate
from poolmgr.core.messages import Adopted, ChangeSpec, Drain, Found, LeasesKept, Preload, Recovered, Release, Undrain
from poolmgr.core.view import fingerprint, view
from poolmgr.errors import ClientError
from poolmgr.model.lease import Lease
from poolmgr.model.pool import PoolState, SupervisionOverrides
from tests.core.helpers import (
    ENGINE,
    EXIT_0,
    FAILED,
    KILLED,
    OK,
    REACH,
    Driver,
    a_remembering_pool,
    a_spec,
    in_state,
    notes,
    of,
    only,
    ready,
)

S = PoolState
OTHER = "f" * 32


# ChangeSpec.


LABELS = {"labels": {"team": "x"}, "priority": 3, "slots": 1, "drain_deadline": 9.0, "preload": True}


@pytest.mark.behaviour("DRN-2")
@pytest.mark.parametrize("state", REACH)
def test_a_change_that_no_engine_notices_leaves_every_state_as_it_is(state):
    driver = in_state(state)
    effects = driver.do(ChangeSpec(a_spec(**LABELS), 2))
    assert driver.state is state
    assert not of(Start, effects) + of(Terminate, effects) + of(KillTree, effects)
    assert (driver.pool.generation, driver.pool.leases.slots) == (2, 1)


AFTER_NEW_ARGUMENTS = {
    S.PENDING: S.PENDING,
    S.PROVISIONING: S.STOPPING,
    S.STARTING: S.STOPPING,
    S.DRAINING: S.DRAINING,
    S.STOPPING: S.STOPPING,
    S.STOPPED: S.STOPPED,
    S.BACKOFF: S.PROVISIONING,
    S.PARKED: S.PROVISIONING,
    S.UNKNOWN: S.UNKNOWN,
}
WANTED = {S.PROVISIONING, S.STARTING, S.BACKOFF, S.PARKED}


@pytest.mark.behaviour("DRN-2", "DRN-4")
@pytest.mark.parametrize("state", AFTER_NEW_ARGUMENTS)
def test_new_arguments_replace_the_engine_of_a_pool_that_is_to_run_and_start_none_that_is_not(state):
    driver = in_state(state)
    driver.do(ChangeSpec(a_spec(args=("--new",)), 2))
    assert driver.state is AFTER_NEW_ARGUMENTS[state]
    if driver.state is S.STOPPING and driver.pool.engine is None:
        driver.spawn()
    if driver.state is S.DRAINING:
        driver.pass_time(301.0, OK)
    if driver.pool.engine is not None:
        driver.crash(KILLED)
    assert (driver.state is S.PROVISIONING) is (state in WANTED)
    assert driver.pool.restart_count == (5 if state is S.PARKED else state is S.BACKOFF)


@pytest.mark.behaviour("DRN-2")
@pytest.mark.parametrize("state", sorted(set(REACH) - {S.UNKNOWN, S.PENDING, S.READY}))
def test_no_engine_directory_of_another_command_line_is_ever_started_again(state):
    driver = in_state(state)
    driver.do(ChangeSpec(a_spec(args=("--new",)), 2))
    driver.do(ChangeSpec(a_spec(args=("--new",), labels={"a": "b"}), 3))
    if driver.state is S.STOPPING and driver.pool.engine is None:
        driver.spawn()
    if driver.state is S.DRAINING:
        driver.pass_time(301.0, OK)
    if driver.pool.engine is not None:
        driver.crash(KILLED)
    if driver.state is S.STOPPED:
        driver.do(Preload())
    assert driver.state is S.PROVISIONING
    assert of(Discard, driver.log) == [Discard(ENGINE)]
    last = of(Start, driver.log)[-1]
    assert (last.engine_id, last.proven, last.generation) == ("", False, 2 if state in (S.BACKOFF, S.PARKED) else 3)


@pytest.mark.behaviour("LEASE-1")
@pytest.mark.parametrize("state", [S.PROVISIONING, S.STARTING, S.BACKOFF, S.STOPPED])
def test_more_slots_than_the_engine_was_started_with_need_a_new_start(state):
    driver = in_state(state)
    driver.do(ChangeSpec(a_spec(slots=3), 2))
    if driver.state is S.STOPPING and driver.pool.engine is None:
        driver.spawn()
    if driver.pool.engine is not None:
        driver.crash(KILLED)
    if driver.state is S.STOPPED:
        driver.do(Preload())
    assert of(Start, driver.log)[-1].engine_id == ""
    driver.spawn(OTHER)
    driver.answer(OK)
    assert driver.pool.leases.slots == 3


@pytest.mark.behaviour("DRN-2")
def test_fewer_slots_and_back_restart_nothing_also_over_a_crash():
    driver = ready()
    driver.do(ChangeSpec(a_spec(slots=1), 2))
    driver.crash()
    driver.make_ready()
    driver.do(ChangeSpec(a_spec(slots=2), 3))
    assert (driver.state, driver.pool.leases.slots) == (S.READY, 2)


def an_outdated_engine_with_a_lease() -> tuple[Driver, Lease]:
    """Taken over from an earlier daemon, and launched for another spec than the pool's."""
    driver = Driver(a_remembering_pool())
    driver.do(Adopted(ENGINE, 77, 8123, current=False))
    lease = Lease("p.a", "token-a", "tester", 300.0, 1, 1, "127.0.0.1:8123", 1e9)
    driver.do(LeasesKept((lease,)))
    driver.do(Recovered())
    driver.answer(OK)
    return driver, lease


@pytest.mark.behaviour("DRN-2", "DRN-3")
def test_an_outdated_engine_that_was_taken_over_waits_for_its_leases_and_its_drain_is_not_undone():
    driver, lease = an_outdated_engine_with_a_lease()
    assert driver.state is S.DRAINING
    assert notes(driver.log, NoteName.DRAIN_STARTED)
    with pytest.raises(ClientError, match="new spec"):
        driver.do(Undrain())
    driver.do(Release(lease.lease_id, lease.token))
    driver.crash(EXIT_0)
    assert driver.state is S.PROVISIONING


@pytest.mark.behaviour("DRN-1", "DRN-2")
def test_an_engine_of_the_old_spec_never_becomes_ready_again_by_undrain():
    driver = ready()
    driver.lease("a", ttl=300.0)
    driver.do(Drain())
    driver.do(ChangeSpec(a_spec(args=("--new",)), 2))
    with pytest.raises(ClientError):
        driver.do(Undrain())
    driver.pass_time(301.0, OK)
    driver.crash(EXIT_0)
    assert driver.state is S.STOPPED, "the operator's drain is the last word"


@pytest.mark.behaviour("CFG-2")
def test_a_change_of_overrides_holds_from_then_on():
    driver = ready()
    driver.do(ChangeSpec(a_spec(supervision=SupervisionOverrides(health_check_failures=1)), 2))
    driver.pass_time(5.1, FAILED)
    assert driver.state is S.STOPPING


@pytest.mark.behaviour("PROC-5")
def test_a_crashed_engine_starts_again_in_its_own_place_without_the_gates():
    driver = ready()
    driver.crash()
    assert only(Start, driver.pass_time(2.0)) == Start(ENGINE, proven=True, fresh_port=False, generation=1)


# PROC-6: adoption.


@pytest.mark.behaviour("PROC-6")
def test_an_adopted_engine_becomes_ready_with_its_port_and_counts_no_restart():
    driver = Driver(a_remembering_pool())
    driver.do(Adopted(ENGINE, 77, 8123))
    assert driver.state is S.STARTING
    effects = driver.answer(OK)
    shown = view(fingerprint(driver.pool), 1, 0.0)
    assert (shown.state, shown.pid, shown.endpoint, shown.restart_count) == (S.READY, 77, "127.0.0.1:8123", 0)
    assert shown.load_time is None, "nobody saw it load"
    assert not of(CountRestart, effects) + of(Start, effects)


@pytest.mark.behaviour("PROC-6", "DRN-3")
def test_an_adopted_engine_of_an_older_spec_is_replaced_once_it_is_ready():
    driver = Driver(a_remembering_pool())
    driver.do(Adopted(ENGINE, 77, 8123, current=False))
    driver.do(LeasesKept())
    driver.do(Recovered())
    driver.answer(OK)
    assert driver.state is S.STOPPING
    driver.crash(EXIT_0)
    assert of(Discard, driver.log) == [Discard(ENGINE)]
    assert of(Start, driver.log) == [Start("", proven=False, fresh_port=False, generation=1)]


@pytest.mark.behaviour("PROC-6")
def test_an_engine_in_doubt_is_left_alone():
    driver = in_state(S.UNKNOWN)
    assert not driver.pass_time(1e6)
    assert not of(Start, driver.log) + of(KillTree, driver.log) + of(Terminate, driver.log)


@pytest.mark.behaviour("PROC-6")
def test_a_dead_engine_that_was_found_lends_its_place_to_the_next_start():
    driver = Driver()
    driver.do(Found(ENGINE))
    assert only(Start, driver.do(Preload())).engine_id == ENGINE


@pytest.mark.behaviour("RST-7")
def test_a_parked_pool_tries_again_when_its_start_is_given_more_time():
    driver = in_state(S.PARKED)
    driver.do(ChangeSpec(a_spec(supervision=SupervisionOverrides(start_timeout_secs=600)), 2))
    assert driver.state is S.PROVISIONING
