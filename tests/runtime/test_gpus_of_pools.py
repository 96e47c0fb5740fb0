"""GPUs as a pool gets them: told to its engine, kept over a restart, given back after its end."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

import pytest

from poolmgr.errors import ClientError, EnvironmentFault, Reason
from poolmgr.model.engine import Diagnosis, ExitRecord, ProbeOutcome, ProbeResult
from poolmgr.model.lease import Refusal, RefusalReason
from poolmgr.model.pool import EngineName, PoolSpec, PoolState, ReloadStrategy
from poolmgr.runtime.engine_host import PLACES_TRIED
from poolmgr.runtime.leaving import Leaving
from poolmgr.runtime.places import Placed, Seeker
from poolmgr.testing.fakes import settled
from tests.runtime.gates import AnyGpu
from tests.runtime.world import World

S = PoolState
CRASH = ExitRecord(signal=11, source="shim")


async def on_gpus(mask: str = "1,0", **gate: object) -> World:
    world = await World(gate=AnyGpu(**gate)).recovered()  # type: ignore[arg-type]
    await world.ready_pool(device_mask=mask)
    return world


def leaving(world: World, **reasons: str) -> Leaving:
    """`reasons` by the number of the GPU, as gpu0."""
    return Leaving(world.supervisor, lambda device_id: reasons.get(device_id.lower().replace("-", ""), ""))


def environment(world: World) -> dict[str, str]:
    return dict(world.runtime.starts[-1].env)


@pytest.mark.behaviour("PROC-2", "MASK-2")
async def test_an_engine_sees_the_devices_of_its_mask_by_uuid_in_its_order():
    world = await on_gpus("1,0")
    assert environment(world)["CUDA_VISIBLE_DEVICES"] == "GPU-1,GPU-0"
    assert environment(world)["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    await world.close()


@pytest.mark.behaviour("PROC-2", "PRE-6")
@pytest.mark.parametrize("mask", ["", "none"])
async def test_an_engine_that_asks_for_none_sees_none(mask):
    world = await on_gpus(mask)
    assert environment(world)["CUDA_VISIBLE_DEVICES"] == ""
    await world.close()


@pytest.mark.behaviour("PRE-6")
@pytest.mark.parametrize("mask", ["0", "0,1", "GPU-8d3c", "all", "NONE"])
async def test_a_daemon_without_gpus_refuses_a_pool_that_asks_for_one_before_anything_is_made(mask):
    world = await World().recovered()
    with pytest.raises(ClientError) as refused:
        await world.facade.create_pool("a", PoolSpec(EngineName.COMMAND, command="/bin/engine", device_mask=mask))
    assert refused.value.reason is Reason.GPU_REQUIRED
    assert refused.value.numbers == {"device_mask": mask, "devices": 0}
    assert world.facade.pools() == [] and world.runtime.starts == []
    await world.close()


@pytest.mark.behaviour("MASK-4", "PRE-6")
async def test_a_device_that_is_gone_at_a_restart_charges_nobody_and_is_taken_again_when_it_is_back():
    world = await on_gpus("0")
    gate = world.gate
    world.end(world.runtime.only(), CRASH)
    gate.fault = EnvironmentFault(Reason.DEVICE_UNAVAILABLE, "device GPU-0 is not there")
    await settled()
    for _ in range(20):
        await world.clock.advance(6.0)
    view = world.facade.pool("a").view
    assert (view.state, view.last_error.reason, view.restart_count) == (S.BACKOFF, "DEVICE_UNAVAILABLE", 1)
    gate.fault = None
    await world.clock.advance(6.0)
    assert world.facade.pool("a").view.state is S.READY
    await world.close()


@pytest.mark.behaviour("PRE-7")
async def test_two_engines_never_start_on_one_gpu_at_once():
    world = await World(gate=AnyGpu()).recovered()
    world.probe.result = replace(world.probe.result, outcome=type(world.probe.result.outcome).LOADING)
    for pool_id, mask in (("a", "0"), ("b", "0"), ("c", "1")):
        await world.facade.create_pool(pool_id, PoolSpec(EngineName.COMMAND, command="/bin/engine", device_mask=mask))
        await world.facade.preload(pool_id, 0.0)
    await settled()
    assert [launch.pool_id for launch in world.runtime.starts] == ["a", "c"]
    assert world.facade.pool("b").view.state_reason == "waits for the start of pool a on GPU-0"
    await world.close()


@pytest.mark.behaviour("PROC-3", "PROC-4")
async def test_a_stop_is_over_once_the_memory_of_its_gpus_is_back():
    world = await on_gpus("0", held=asyncio.Event())
    engine = world.runtime.only()
    pid = world.facade.pool("a").view.pid
    await world.facade.stop("a", 0.0, 0.0)
    await world.obey()
    assert world.facade.pool("a").view.state is S.STOPPING
    assert world.gate.ended == [(engine.launch.engine_id, ("GPU-0",), (pid,))]
    world.gate.held.set()
    await settled()
    assert world.facade.pool("a").view.state is S.STOPPED
    await world.close()


@pytest.mark.behaviour("PROC-4")
async def test_a_crashed_engine_starts_again_only_when_the_memory_of_its_gpus_is_back():
    world = await on_gpus("0", held=asyncio.Event())
    world.end(world.runtime.only(), CRASH)
    await settled()
    await world.clock.advance(20.0)
    assert len(world.runtime.starts) == 1
    world.gate.held.set()
    await settled()
    await world.clock.advance(2.0)
    assert len(world.runtime.starts) == 2
    await world.close()


@pytest.mark.behaviour("LIVE-3", "RST-3")
async def test_an_end_that_the_device_explains_says_so_and_is_told_with_its_device_and_generation():
    world = await on_gpus("0", said=Diagnosis("DEVICE_LOST", "XID 79 on GPU-0", permanent=False))
    world.end(world.runtime.only(), CRASH)
    await settled()
    assert world.facade.pool("a").view.last_error.reason == "DEVICE_LOST"
    assert world.gate.failures == [(("GPU-0",), "a", 1, "DEVICE_LOST")]
    await world.close()


@pytest.mark.behaviour("PROC-6", "PROC-4")
async def test_an_adopted_engine_keeps_the_devices_that_it_was_started_with():
    first = await on_gpus("0,2")
    world = await first.successor(gate=AnyGpu())
    engine = world.runtime.only()
    assert world.supervisor.engines.devices_of(engine.launch.engine_id) == ("GPU-0", "GPU-2")
    world.end(engine, CRASH)
    await settled()
    assert world.gate.ended[0][1] == ("GPU-0", "GPU-2")
    await world.close()


@pytest.mark.behaviour("MASK-4", "STATE-1")
async def test_a_pool_that_waits_for_its_device_starts_as_soon_as_it_takes_work_again():
    world = await World(gate=AnyGpu()).recovered()
    world.gate.fault = EnvironmentFault(Reason.DEVICE_UNAVAILABLE, "device GPU-0 is cordoned")
    await world.facade.create_pool("a", PoolSpec(EngineName.COMMAND, command="/bin/engine", device_mask="0"))
    await world.facade.preload("a", 0.0)
    await settled()
    view = world.facade.pool("a").view
    assert (view.state, view.state_reason) == (S.BACKOFF, "DEVICE_UNAVAILABLE: device GPU-0 is cordoned")
    world.gate.fault = None
    leaving(world).devices_changed()
    await settled()
    await world.clock.advance(0.0)
    assert world.facade.pool("a").view.state is S.READY
    await world.close()


@pytest.mark.behaviour("RST-1")
async def test_a_pool_that_waits_for_another_reason_is_not_hurried_by_a_device():
    world = await on_gpus("0")
    world.end(world.runtime.only(), CRASH)
    await settled()
    leaving(world).devices_changed()
    await settled()
    assert world.facade.pool("a").view.state is S.BACKOFF
    assert len(world.runtime.starts) == 1
    await world.close()


@pytest.mark.behaviour("DRN-3")
async def test_a_reload_to_a_device_that_takes_no_work_leaves_the_old_generation_serving():
    world = await on_gpus("0")
    world.gate.fault = EnvironmentFault(Reason.DEVICE_UNAVAILABLE, "device GPU-1 is cordoned")
    spec = replace(world.facade.pool("a").view.spec, device_mask="1")
    await world.facade.reload_pool("a", spec, ReloadStrategy.MAKE_BEFORE_BREAK, None, 0.0)
    await settled()
    view = world.facade.pool("a").view
    assert (view.state, view.generation, view.reload_phase) == (S.READY, 1, "")
    assert "GPU-1 is cordoned" in view.last_error.message
    await world.close()


@pytest.mark.behaviour("PRE-7", "PROC-4")
async def test_a_start_that_fails_is_tried_again_where_the_memory_comes_back_later_than_the_backoff_ends():
    world = await World(gate=AnyGpu(held=asyncio.Event())).recovered()
    world.probe.result = replace(world.probe.result, outcome=type(world.probe.result.outcome).LOADING)
    await world.facade.create_pool("a", PoolSpec(EngineName.COMMAND, command="/bin/engine", device_mask="0"))
    await world.facade.preload("a", 0.0)
    await settled()
    world.end(world.runtime.only(), CRASH)
    await settled()
    await world.clock.advance(5.0)
    world.gate.held.set()
    await settled()
    await world.clock.advance(0.1)
    assert len(world.runtime.starts) == 2, world.facade.pool("a").view.state_reason
    await world.close()


@dataclass
class Renumbered(AnyGpu):
    """`first`: which card index 0 is now."""

    first: str = "GPU-A"

    async def find(self, seeker: Seeker) -> Placed:
        meant = tuple(self.first if part == "0" else part for part in seeker.spec.device_mask.split(","))
        return Placed(seeker.before or meant)


@pytest.mark.behaviour("DEV-2", "MASK-4")
@pytest.mark.parametrize("daemon", ["the same daemon", "the next daemon"])
async def test_a_pool_by_index_keeps_its_card_when_indexes_change_until_its_spec_does(daemon):
    world = await World(gate=Renumbered()).recovered()
    await world.ready_pool(device_mask="0")
    if daemon == "the next daemon":
        world.end(world.runtime.only(), CRASH)
        world = await world.successor(gate=Renumbered(first="GPU-B"))
    else:
        world.gate.first = "GPU-B"
        world.end(world.runtime.only(), CRASH)
        await settled()
    await world.clock.advance(1.5)
    assert environment(world)["CUDA_VISIBLE_DEVICES"] == "GPU-A"
    await world.facade.reload_pool("a", None, ReloadStrategy.BREAK_BEFORE_MAKE, None, 0.0)
    await settled()
    await world.obey()
    await world.clock.advance(1.0)
    assert environment(world)["CUDA_VISIBLE_DEVICES"] == "GPU-B"
    await world.close()


@pytest.mark.behaviour("LIVE-3")
async def test_an_xid_that_is_told_after_the_end_that_it_caused_still_explains_it():
    world = await on_gpus("0", held=asyncio.Event())
    world.end(world.runtime.only(), CRASH)
    await settled()
    assert world.facade.pool("a").view.last_error.reason == "SIGNAL"
    world.gate.said = Diagnosis("DEVICE_LOST", "XID 79 on GPU-0", permanent=False)
    world.gate.held.set()
    await settled()
    error = world.facade.pool("a").view.last_error
    assert (error.reason, error.exit.signal) == ("DEVICE_LOST", 11)
    assert "XID 79" in error.message
    await world.close()


@pytest.mark.behaviour("STATE-1")
async def test_work_leaves_a_device_that_is_not_to_be_trusted_and_comes_back_when_it_takes_work_again():
    world = await on_gpus("0")
    lease = await world.lease(ttl=300.0)
    world.gate.fault = EnvironmentFault(Reason.DEVICE_UNAVAILABLE, "device GPU-0 is quarantined")
    leaving(world).move_away("GPU-0", "XID 79")
    await settled()
    view = world.facade.pool("a").view
    assert (view.state, view.state_reason) == (S.DRAINING, "device GPU-0: XID 79")
    refused = await world.facade.acquire("a", world.ask())
    assert isinstance(refused, Refusal) and refused.reason is RefusalReason.POOL_DRAINING
    world.facade.release(lease.lease_id, lease.token)
    await world.obey()
    view = world.facade.pool("a").view
    assert (view.state, view.last_error.reason, view.restart_count) == (S.BACKOFF, "DEVICE_UNAVAILABLE", 0)
    world.gate.fault = None
    leaving(world).devices_changed()
    await settled()
    assert world.facade.pool("a").view.state is S.READY
    await world.close()


@pytest.mark.behaviour("STATE-1")
async def test_work_on_other_devices_and_work_that_nobody_wants_is_left_alone():
    world = await on_gpus("1")
    leaving(world).move_away("GPU-0", "XID 79")
    await settled()
    assert world.facade.pool("a").view.state is S.READY
    await world.facade.stop("a", 0.0, 0.0)
    await world.obey()
    leaving(world).move_away("GPU-1", "XID 79")
    await settled()
    assert world.facade.pool("a").view.state is S.STOPPED
    await world.close()


@pytest.mark.behaviour("STATE-1")
async def test_a_pool_that_was_starting_on_a_device_that_is_to_be_left_leaves_it_once_it_serves():
    world = await World(gate=AnyGpu()).recovered()
    leaving(world, gpu0="cordoned: new fan")
    for pool_id, mask in (("a", "0"), ("b", "1")):
        spec = PoolSpec(EngineName.COMMAND, command="/bin/engine", device_mask=mask)
        await world.facade.create_pool(pool_id, spec)
        await world.facade.preload(pool_id, 0.0)
    await world.clock.advance(0.0)
    view = world.facade.pool("a").view
    assert (view.state, view.state_reason) == (S.STOPPING, "drained")
    assert [noted.pool.pool_id for noted in world.notes("drain_started")] == ["a"]
    assert world.facade.pool("b").view.state is S.READY
    await world.close()


@pytest.mark.behaviour("RST-3")
async def test_a_generation_that_is_to_blame_is_parked_until_it_is_edited():
    gate = AnyGpu(blamed="generation 1 has CUDA errors on 2 GPUs")
    world = await World(gate=gate).recovered()
    await world.ready_pool(device_mask="0")
    world.end(world.runtime.only(), CRASH)
    for _ in range(30):
        await world.clock.advance(60.0)
    view = world.facade.pool("a").view
    assert (view.state, len(world.runtime.starts), view.backoff_until) == (S.PARKED, 1, None)
    assert view.state_reason.startswith("GENERATION_BLOCKED: generation 1 has CUDA errors on 2 GPUs")
    assert view.last_error.reason == "SIGNAL" and "2 GPUs" in view.last_error.message
    gate.blamed = ""
    await world.facade.update_pool("a", lambda spec: replace(spec, args=("--other",)))
    await world.facade.preload("a", 0.0)
    await settled()
    assert len(world.runtime.starts) == 2
    await world.close()


@pytest.mark.behaviour("PLACE-2", "PRE-8")
async def test_a_start_whose_places_are_always_gone_is_given_up_and_charged_to_nobody():
    world = await World(gate=AnyGpu(restless=True)).recovered()
    await world.facade.create_pool("a", PoolSpec(EngineName.COMMAND, command="/bin/engine", device_mask="auto"))
    await world.facade.preload("a", 0.0)
    await settled()
    view = world.facade.pool("a").view
    assert (view.state, view.last_error.reason, view.restart_count) == (S.BACKOFF, "DEVICE_UNAVAILABLE", 0)
    assert world.runtime.starts == [] and len(world.gate.sought) == 2 * PLACES_TRIED
    await world.facade.stop("a", 0.0, 0.0)
    assert world.facade.pool("a").view.state is S.STOPPED
    await world.close()


@pytest.mark.behaviour("PRE-7", "PROC-6")
async def test_an_engine_that_the_next_daemon_finds_loading_is_not_sized_against_by_another():
    world = await World(gate=AnyGpu()).recovered()
    world.probe.result = ProbeResult(ProbeOutcome.LOADING)
    for pool_id in ("a", "b"):
        spec = PoolSpec(EngineName.COMMAND, command="/bin/engine", device_mask="0")
        await world.facade.create_pool(pool_id, spec)
    await world.facade.preload("a", 0.0)
    await settled()
    after = await world.successor(gate=AnyGpu(), probe=world.probe)
    await after.facade.preload("b", 0.0)
    await settled()
    assert after.facade.pool("a").view.state is S.STARTING
    assert (after.facade.pool("b").view.state, after.runtime.starts) == (S.PROVISIONING, [])
    world.probe.result = ProbeResult(ProbeOutcome.OK)
    await after.clock.advance(2.0)
    assert after.facade.pool("a").view.state is S.READY and len(after.runtime.starts) == 1
    await after.close()


@pytest.mark.behaviour("DRN-3", "MEM-2")
async def test_a_reload_that_a_full_gpu_refuses_blocks_no_generation():
    world = await on_gpus("0", room=True)
    for _ in range(4):
        world.gate.fault = EnvironmentFault(Reason.INSUFFICIENT_MEMORY, "needs 9 GiB, has 3 GiB")
        await world.facade.reload_pool(
            "a", replace(world.pool().spec, args=("--next",)), ReloadStrategy.AUTO, None, 0.0
        )
        await settled()
        world.gate.fault = None
        await world.clock.advance(1.0)
        view = world.facade.pool("a").view
        assert (view.state, view.last_error.reason, view.reload_phase) == (S.READY, "INSUFFICIENT_MEMORY", "")
    assert not any(one.blocked for one in await world.facade.generations("a"))
    await world.close()
