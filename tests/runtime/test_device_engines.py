"""The engines of a real supervisor as claims see them."""

from __future__ import annotations

import pytest

from poolmgr.model.pool import EngineName
from poolmgr.model.registration import Registration
from poolmgr.runtime.device_engines import running_engines
from tests.runtime.world import World

pytestmark = pytest.mark.behaviour("TEL-6")


def seen(world: World, devices=("GPU-a",)):
    return running_engines([actor.pool for actor in world.supervisor.actors()], lambda engine_id: devices)


async def test_an_engine_is_seen_from_its_start_on_with_pool_process_and_devices():
    world = await World().recovered()
    assert list(seen(world)) == []
    await world.ready_pool("a")
    (engine,) = seen(world)
    run = world.pool("a").engine
    assert (engine.engine_id, engine.pool_id, engine.pid) == (run.engine_id, "a", run.pid)
    assert (engine.device_ids, engine.since) == (("GPU-a",), run.started)
    await world.close()


async def test_both_engines_of_a_reload_are_seen():
    world = await World().recovered()
    await world.ready_pool("a")
    lease = await world.lease("a")
    await world.facade.update_pool("a", lambda spec: spec.__class__(EngineName.COMMAND, command="/bin/other"))
    await world.clock.advance(0.0)
    engines = seen(world)
    assert {engine.pool_id for engine in engines} == {"a"}
    assert {engine.engine_id for engine in engines} == {e.launch.engine_id for e in world.running()}
    assert len(engines) == 2 and lease.lease_id
    await world.close()


async def test_of_an_engine_that_somebody_else_runs_nobody_knows_what_it_may_use():
    world = await World().recovered()
    said = Registration("e1", "far", "127.0.0.1:8000", EngineName.VLLM, slots_total=2, device_mask="0", pid=4321)
    await world.facade.register_engine(said)
    await world.clock.advance(0.0)
    (engine,) = seen(world)
    assert (engine.engine_id, engine.pool_id, engine.pid, engine.device_ids) == ("e1", "far", 4321, None)
    await world.close()
