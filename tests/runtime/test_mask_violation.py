"""An engine where its mask has no device: told of, and its pool stopped. The composition of app, over fakes."""

from __future__ import annotations

import pytest

from poolmgr.app import judge_engines
from poolmgr.model.device_health import DeviceNoteName
from poolmgr.model.pool import PoolState
from poolmgr.runtime.devices import DeviceOutside, DeviceRegistry
from poolmgr.runtime.ledger import Ledger
from poolmgr.testing.devices import FakeTelemetry, a_gpu
from poolmgr.testing.fakes import InlineWorkers
from tests.runtime.test_device_registry import ProcessTable, TextMemory
from tests.runtime.world import World

pytestmark = pytest.mark.behaviour("MASK-3")


async def watched(world: World) -> FakeTelemetry:
    telemetry = FakeTelemetry(world.clock, a_gpu(0))
    outside = DeviceOutside(telemetry, ProcessTable(), TextMemory(), InlineWorkers())
    registry = DeviceRegistry(outside, world.clock, world.bus, world.tasks)
    ledger = Ledger(registry, telemetry, world.clock)
    judge_engines(registry, ledger, world.supervisor, world.facade, world.tasks)
    await registry.start()
    return telemetry


async def test_the_pool_of_an_engine_off_its_mask_is_stopped_and_stays_so():
    world = await World().recovered()
    notes = []
    world.bus.listen_devices(notes.append)
    telemetry = await watched(world)
    await world.ready_pool("a")
    await world.ready_pool("b")
    telemetry.hold(a_gpu(0).device_id, world.pool("a").engine.pid, 1 << 30)
    await world.clock.advance(2.5)
    assert world.pool("a").state is PoolState.STOPPING
    await world.obey()
    await world.clock.advance(600.0)
    assert world.pool("a").state is PoolState.STOPPED and world.pool("b").state is PoolState.READY
    told = [note for note in notes if note.name is DeviceNoteName.MASK_VIOLATION]
    assert [note.fields["pool_id"] for note in told] == ["a"]
    await world.close()


async def test_an_engine_that_nobody_sees_on_a_device_runs_on():
    world = await World().recovered()
    telemetry = await watched(world)
    await world.ready_pool("a")
    telemetry.hold(a_gpu(0).device_id, 77, 1 << 30)
    await world.clock.advance(60.0)
    assert world.pool("a").state is PoolState.READY
    await world.close()
