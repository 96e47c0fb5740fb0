"""Whose deadline a drain has: the first that an operator gave it, whatever the daemon drains for by itself (DRN-1)."""

import pytest

from poolmgr.core.messages import Adopted, Drain, Evacuate, LeasesKept, Recovered
from poolmgr.core.state import ReloadPhase
from poolmgr.model.lease import Lease
from poolmgr.model.pool import PoolState
from tests.core.helpers import BORN, ENGINE, EXIT_0, NEXT, OK, Driver, a_remembering_pool, a_spec, ready

SOON, LATE = 3.0, 15.0
TTL = 300.0

pytestmark = pytest.mark.behaviour("DRN-1")


def for_its_new_spec() -> Driver:
    """Its engine was started by an earlier spec, and serves somebody."""
    driver = Driver(a_remembering_pool(a_spec(drain_deadline=SOON)))
    driver.do(Adopted(ENGINE, 77, 8123, current=False))
    driver.do(LeasesKept((Lease("p.a", "token-a", "tester", TTL, 1, 1, "127.0.0.1:8123", BORN + TTL),)))
    driver.do(Recovered())
    driver.answer(OK)
    return driver


def off_a_device() -> Driver:
    driver = ready(a_spec(drain_deadline=SOON))
    driver.lease("a", ttl=TTL)
    driver.do(Evacuate("device 0: cordoned"))
    return driver


@pytest.mark.parametrize("drains", [for_its_new_spec, off_a_device])
def test_an_operator_who_drains_what_the_daemon_drains_already_gives_it_the_time_that_was_asked_for(drains):
    driver = drains()
    assert driver.state is PoolState.DRAINING
    driver.do(Drain(LATE))
    driver.pass_time(SOON + 1, OK)
    assert driver.state is PoolState.DRAINING
    driver.pass_time(LATE - SOON, OK)
    assert driver.state is PoolState.STOPPING
    driver.crash(EXIT_0)
    assert driver.state is PoolState.STOPPED


@pytest.mark.parametrize("retiring", [False, True])
def test_asked_again_a_drain_keeps_its_deadline_also_while_another_engine_retires(retiring):
    driver = ready()
    if retiring:
        driver.lease("old", ttl=TTL)
        driver.change()
        driver.reload_to(ReloadPhase.RETIRING)
        assert driver.pool.engine is not None and driver.pool.engine.engine_id == NEXT
    driver.lease("a", ttl=TTL)
    driver.do(Drain(SOON))
    driver.do(Drain(LATE))
    assert driver.state is PoolState.DRAINING
    driver.pass_time(SOON, OK)
    assert driver.state is PoolState.STOPPING
