"""Engines that die together: the host's fault, and nobody's failure (RST-6)."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from poolmgr.errors import EnvironmentFault, Reason
from poolmgr.model.engine import ExitRecord
from poolmgr.model.pool import BreakerState, PoolState
from poolmgr.model.settings import SupervisionSettings
from poolmgr.runtime.host_counters import HostCounters
from tests.runtime.world import World

KILLED = ExitRecord(signal=9, source="shim")


@pytest_asyncio.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    await world.supervisor.recover()
    yield world
    await world.close()


def kill(world: World, pool_id: str) -> None:
    engine_id = next(e.launch.engine_id for e in world.runtime.engines.values() if e.launch.pool_id == pool_id)
    world.runtime.end(engine_id, KILLED)


def charged(world: World) -> list[int]:
    return [actor.pool.policy.failures for actor in world.supervisor.actors()]


@pytest.mark.behaviour("RST-6")
async def test_half_of_the_engines_dead_within_the_window_charge_no_pool_and_the_host_is_asked_first(
    world: World,
) -> None:
    for pool_id in ("a", "b", "c", "d"):
        await world.ready_pool(pool_id)
    kill(world, "a")
    assert charged(world) == [1, 0, 0, 0]
    await world.clock.advance(0.1)
    kill(world, "b")
    assert charged(world) == [0, 0, 0, 0]
    assert len(world.notes("host_fault")) == 2
    world.runtime.host_fault = EnvironmentFault(Reason.HOST_FAULT, "no processes")
    await world.clock.advance(2.0)
    assert world.runtime.host_probes == 2
    pool = world.facade.pool("a").view
    assert (pool.state, pool.last_error and pool.last_error.reason) == (PoolState.BACKOFF, "HOST_FAULT")
    world.runtime.host_fault = None
    await world.clock.advance(6.0)
    assert world.facade.pool("a").view.ready and world.facade.pool("b").view.ready
    assert charged(world) == [0, 0, 0, 0]


@pytest.mark.behaviour("RST-6")
async def test_one_engine_of_four_is_charged_and_so_is_whoever_goes_on_dying_after_a_host_fault(world: World) -> None:
    for pool_id in ("a", "b", "c", "d"):
        await world.ready_pool(pool_id)
    kill(world, "a")
    await world.clock.advance(31.0)
    kill(world, "b")
    assert charged(world) == [1, 1, 0, 0] and world.notes("host_fault") == []
    kill(world, "c")
    assert charged(world) == [1, 0, 0, 0]
    await world.clock.advance(35.0)
    kill(world, "b")
    kill(world, "c")
    assert charged(world) == [1, 1, 1, 0]
    assert world.facade.pool("b").view.breaker_state is BreakerState.CLOSED


@pytest.mark.behaviour("RST-6")
async def test_engines_that_die_before_they_served_are_no_sign_of_a_host_fault(world: World) -> None:
    for pool_id in ("a", "b"):
        await world.ready_pool(pool_id)
        kill(world, pool_id)
        await world.clock.advance(31.0)
    assert world.notes("host_fault") == []


@pytest.mark.behaviour("RST-6", "RST-4")
def test_a_host_fault_excuses_each_pool_once_so_that_a_crash_loop_does_not_ride_on_it() -> None:
    counters = HostCounters(range(1, 10), SupervisionSettings(), lambda: None)
    assert counters.count_death(0.0, "a", alive=1) == ()
    assert counters.count_death(1.0, "b", alive=0) == ("a", "b")
    assert counters.count_death(5.0, "a", alive=1) == ()
    assert counters.count_death(6.0, "c", alive=1) == ("c",)
