"""Start permits, as a pool shows them and as an operator meets them."""

from __future__ import annotations

import asyncio

import pytest

from poolmgr.model.engine import ExitRecord, ProbeOutcome, ProbeResult
from poolmgr.model.pool import EngineName, PoolSpec, PoolState
from poolmgr.testing.fakes import settled
from tests.runtime.world import World

pytestmark = pytest.mark.behaviour("PRE-7")
S = PoolState
SPEC = PoolSpec(EngineName.COMMAND, command="/bin/engine")
LOADING, OK = ProbeResult(ProbeOutcome.LOADING, "loading"), ProbeResult(ProbeOutcome.OK)


async def loading(*pool_ids: str) -> World:
    world = await World().recovered()
    world.probe.result = LOADING
    for pool_id in pool_ids:
        await world.facade.create_pool(pool_id, SPEC)
        await world.facade.preload(pool_id, 0.0)
    await settled()
    return world


def started(world: World) -> list[str]:
    return [launch.pool_id for launch in world.runtime.starts]


async def test_a_third_preload_waits_until_one_of_two_is_ready_and_shows_its_place_and_why():
    world = await loading("a", "b", "c", "d")
    assert started(world) == ["a", "b"]
    c, d = world.facade.pool("c").view, world.facade.pool("d").view
    assert (c.state, c.queue_position, d.queue_position) == (S.PROVISIONING, 1, 2)
    assert c.state_reason == "waits for one of 2 starts at a time on this host"
    world.probe.result = OK
    await world.clock.advance(0.6)
    await world.clock.advance(0.6)
    assert started(world) == ["a", "b", "c", "d"]
    assert [world.facade.pool(p).view.queue_position for p in "abcd"] == [0, 0, 0, 0]
    assert world.facade.pool("d").view.state is S.READY
    await world.close()


async def test_a_start_that_fails_makes_room_for_the_next():
    world = await loading("a", "b", "c")
    engine = next(e for e in world.running() if e.launch.pool_id == "a")
    world.end(engine, ExitRecord(exit_code=1, source="shim"))
    await settled()
    assert started(world) == ["a", "b", "c"]
    await world.close()


async def test_a_pool_that_is_stopped_while_it_waits_leaves_the_queue_and_nothing_behind():
    world = await loading("a", "b", "c", "d")
    await world.facade.stop("c", None, 0.0)
    await settled()
    assert world.facade.pool("c").view.state is S.STOPPED
    assert world.facade.pool("d").view.queue_position == 1
    world.probe.result = OK
    await world.clock.advance(1.2)
    assert started(world) == ["a", "b", "d"]
    await world.close()


async def test_an_engine_that_served_comes_back_though_the_host_is_busy_with_first_starts():
    world = await World().recovered()
    await world.ready_pool("served")
    world.probe.result = LOADING
    for pool_id in ("a", "b", "c"):
        await world.facade.create_pool(pool_id, SPEC)
        await world.facade.preload(pool_id, 0.0)
    engine = next(e for e in world.running() if e.launch.pool_id == "served")
    world.end(engine, ExitRecord(signal=9, source="shim"))
    await settled()
    await world.clock.advance(1.2)
    assert started(world).count("served") == 2
    assert world.facade.pool("c").view.queue_position == 1
    await world.close()


async def test_a_daemon_that_ends_lets_go_of_those_who_wait():
    world = await loading("a", "b", "c")
    closing = asyncio.ensure_future(world.supervisor.close(stop_engines=True))
    await settled()
    await world.obey()
    await world.clock.advance(1.0)
    assert await closing == 0
    assert world.facade.pool("c").view.state is S.STOPPED
    assert started(world) == ["a", "b"]
