"""A drain that a daemon finds at its start, before it has been told of the leases that are out (DRN-1, LEASE-4)."""

import pytest

from poolmgr.core.effects import NoteName, Terminate
from poolmgr.core.messages import Adopted, LeasesKept, Recovered, Release
from poolmgr.model.lease import Lease
from poolmgr.model.pool import PoolState
from tests.core.helpers import BORN, ENGINE, OK, Driver, a_remembering_pool, notes, of, only_note

PORT = 8123
DEADLINE = 60.0
LEASE = Lease("p.a", "token-a", "tester", 300.0, 1, 1, f"127.0.0.1:{PORT}", BORN + 300.0)

pytestmark = pytest.mark.behaviour("DRN-1", "LEASE-4")


def taken_over(current: bool = True, **memo) -> Driver:
    """Its engine has answered its first probe, and nobody has told of leases: other pools' engines took a while."""
    driver = Driver(a_remembering_pool(**memo))
    driver.do(Adopted(ENGINE, 77, PORT, current=current))
    driver.answer(OK)
    return driver


def drains() -> Driver:
    return taken_over(wanted=False, drain_until=BORN + DEADLINE)


def test_a_drain_waits_for_leases_that_its_daemon_has_not_been_told_of_yet():
    driver = drains()
    assert (driver.state, of(Terminate, driver.log)) == (PoolState.DRAINING, [])
    driver.do(LeasesKept((LEASE,)))
    driver.do(Recovered())
    assert (driver.state, set(driver.pool.leases.live)) == (PoolState.DRAINING, {LEASE.lease_id})
    driver.do(Release(LEASE.lease_id, LEASE.token))
    assert of(Terminate, driver.log) and only_note(driver.log, NoteName.DRAIN_FINISHED).fields["outcome"] == "complete"


def test_so_does_an_engine_of_an_earlier_spec():
    driver = taken_over(current=False)
    driver.do(LeasesKept((LEASE,)))
    driver.do(Recovered())
    assert (driver.state, of(Terminate, driver.log)) == (PoolState.DRAINING, [])


def test_a_drain_of_which_no_lease_is_left_ends_with_the_last_word_of_what_was_found():
    driver = drains()
    driver.do(LeasesKept())
    assert not of(Terminate, driver.log)
    driver.do(Recovered())
    assert of(Terminate, driver.log)


def test_a_deadline_that_passes_meanwhile_is_asked_for_no_earlier_and_ends_the_engine_then():
    driver = drains()
    driver.pass_time(DEADLINE + 1, OK)  # which fails on a deadline that is announced again and again
    assert not notes(driver.log, NoteName.DRAIN_FINISHED)
    driver.do(LeasesKept((LEASE,)))
    driver.do(Recovered())
    assert of(Terminate, driver.log) and only_note(driver.log, NoteName.DRAIN_FINISHED).fields["outcome"] == "forced"
