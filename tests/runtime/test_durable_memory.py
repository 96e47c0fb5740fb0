"""What a pool remembers is stored: whole, in order, and before a command takes effect (RST-8)."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from poolmgr.adapters.store.failing import Failure
from poolmgr.core.state import memo_of
from poolmgr.errors import EnvironmentFault, Reason
from poolmgr.model.engine import ExitRecord
from poolmgr.model.pool import EngineName, PoolSpec, PoolState, ReloadStrategy
from poolmgr.testing.fakes import ScriptedProbe, settled
from tests.runtime.stores import BreakableStore, SlowStore
from tests.runtime.world import World

S = PoolState
CRASH, EXIT_0 = ExitRecord(signal=9, source="shim"), ExitRecord(exit_code=0, source="shim")
NEW = PoolSpec(EngineName.COMMAND, command="/bin/new")


async def slow_world() -> World:
    return await World(wrap=SlowStore).recovered()


@pytest.mark.behaviour("RST-8")
async def test_what_happens_while_something_is_stored_is_stored_after_it():
    world = await slow_world()
    await world.ready_pool()
    world.store.hold()
    world.end(world.runtime.only(), CRASH)
    await settled()
    await world.clock.advance(1.2)
    world.end(world.runtime.only(), CRASH)
    await settled()
    world.store.let_go()
    await settled()
    assert world.memo().restart_count == 2
    assert world.memo() == memo_of(world.pool())
    await world.close()


@pytest.mark.behaviour("RST-8")
@pytest.mark.parametrize("record", [CRASH, EXIT_0], ids=["crash", "exit 0"])
async def test_a_command_that_is_being_stored_does_not_undo_what_happens_meanwhile(record):
    world = await slow_world()
    await world.ready_pool()
    world.store.hold()
    stopping = asyncio.ensure_future(world.facade.stop("a", None, 0.0))
    await settled()
    assert world.runtime.terminated == [], "nothing is done for a command before it is stored"
    world.end(world.runtime.only(), record)
    await settled()
    world.store.let_go()
    await stopping
    await settled()
    assert (world.pool().state, world.memo().wanted) == (S.STOPPED, False)
    assert world.memo() == memo_of(world.pool())
    await world.close()


class HeldProbe(ScriptedProbe):
    """The answer to a synthetic request waits."""

    def __init__(self):
        super().__init__()
        self.go = asyncio.Event()

    async def __call__(self, target):
        if target.kind == "SYNTHETIC":
            await self.go.wait()
        return await super().__call__(target)


@pytest.mark.behaviour("DRN-3", "RST-8")
async def test_a_stop_that_is_stored_before_a_commit_leaves_the_commit_undone():
    world = await World(wrap=SlowStore, probe=HeldProbe()).recovered()
    await world.ready_pool()
    await world.facade.update_pool("a", lambda spec: NEW)
    await settled()
    world.store.hold()
    stopping = asyncio.ensure_future(world.facade.stop("a", None, 0.0))
    await settled()
    world.probe.go.set()
    await settled()
    assert world.facade.pool("a").view.reload_phase == "committing"
    world.store.let_go()
    await stopping
    await settled()
    assert (world.memo().generation, world.memo().wanted) == (1, False)
    await world.obey()
    assert (world.pool().state, world.pool().generation, world.running()) == (S.STOPPED, 1, [])
    await world.close()


COMMANDS = {
    "preload": (S.STOPPED, lambda f: f.preload("a", 0.0)),
    "drain": (S.READY, lambda f: f.drain("a", None, 0.0)),
    "undrain": (S.DRAINING, lambda f: f.undrain("a")),
    "stop": (S.READY, lambda f: f.stop("a", None, 0.0)),
    "delete": (S.READY, lambda f: f.delete("a", None)),
    "reset": (S.BACKOFF, lambda f: f.reset_breaker("a")),
    "a label": (S.READY, lambda f: f.update_pool("a", lambda spec: replace(spec, labels={"team": "x"}))),
    "new arguments": (S.BACKOFF, lambda f: f.update_pool("a", lambda spec: NEW)),
    "reload": (S.READY, lambda f: f.reload_pool("a", NEW, ReloadStrategy.AUTO, None, 0.0)),
    "reload by drain": (S.READY, lambda f: f.reload_pool("a", NEW, ReloadStrategy.BREAK_BEFORE_MAKE, None, 0.0)),
    "rollback": (S.READY, lambda f: f.rollback_pool("a", 1, None, 0.0)),
    "create": (S.READY, lambda f: f.create_pool("b", NEW)),
}


async def in_state(world, state, generations):
    await world.ready_pool(slots=2)
    if generations:
        await world.facade.update_pool("a", lambda spec: NEW)
        await settled()
        await world.obey()
    if state is S.BACKOFF:
        world.end(world.runtime.only(), CRASH)
    elif state is S.STOPPED:
        await world.facade.stop("a", 0.0, 0.0)
    elif state is S.DRAINING:
        await world.lease(ttl=300.0)
        await world.facade.drain("a", None, 0.0)
    await settled()
    assert world.pool().state is state


@pytest.mark.behaviour("RST-8", "DRN-3")
@pytest.mark.parametrize("failure", [Failure.DISK_FULL, Failure.DEAD_HANDLE])
@pytest.mark.parametrize("command", COMMANDS)
async def test_a_command_that_cannot_be_stored_is_refused_and_has_changed_nothing(command, failure):
    state, ask = COMMANDS[command]
    world = await World(wrap=lambda store: BreakableStore(store, failure)).recovered()
    await in_state(world, state, generations=command == "rollback")
    before, engines, stored = world.pool(), list(world.runtime.engines), dict(world.medium.pools)
    world.store.broken = True
    with pytest.raises(EnvironmentFault) as refused:
        await ask(world.facade)
    await settled()
    assert refused.value.reason is Reason.STORE_UNAVAILABLE
    assert world.pool() == before
    assert (list(world.runtime.engines), dict(world.medium.pools)) == (engines, stored)
    assert [p.pool_id for p in world.facade.pools()] == ["a"]
    world.store.broken = False
    asking = asyncio.ensure_future(ask(world.facade))
    await settled()
    assert world.pool() != before or command == "create"
    asking.cancel()
    await settled()
    await world.close()


@pytest.mark.behaviour("RST-8")
async def test_a_fact_that_cannot_be_stored_is_stored_once_that_works_again():
    world = await World(wrap=BreakableStore).recovered()
    await world.ready_pool()
    world.store.broken = True
    world.end(world.runtime.only(), CRASH)
    await world.clock.advance(20.0)
    assert (world.pool().restart_count, world.memo().restart_count) == (1, 0)
    assert sum("not stored yet" in text for text in world.facade.status().warnings) == 1
    world.store.broken = False
    await world.clock.advance(5.0)
    assert world.memo() == memo_of(world.pool())
    await world.close()


@pytest.mark.behaviour("LEASE-4", "LEASE-1")
async def test_a_grant_that_cannot_be_recorded_fails_and_leaves_the_slot_free():
    world = await World(wrap=lambda store: BreakableStore(store, Failure.RECORDING)).recovered()
    await world.ready_pool()
    world.store.broken = True
    with pytest.raises(EnvironmentFault) as refused:
        await world.facade.acquire("a", world.ask())
    assert refused.value.reason is Reason.STORE_UNAVAILABLE
    assert world.facade.pool("a").view.slots_free == 1
    world.store.broken = False
    assert (await world.lease()).fencing_token
    await world.close()


@pytest.mark.behaviour("LEASE-4", "LEASE-5")
async def test_a_waiter_whose_grant_cannot_be_recorded_hears_of_it_and_leaves_the_slot_free():
    world = await World(wrap=lambda store: BreakableStore(store, Failure.RECORDING)).recovered()
    await world.ready_pool()
    first = await world.lease()
    waiting = asyncio.ensure_future(world.facade.acquire("a", world.ask(wait=30.0)))
    await settled()
    world.store.broken = True
    world.facade.release(first.lease_id, first.token)
    with pytest.raises(EnvironmentFault, match="recorded"):
        await waiting
    assert world.facade.pool("a").view.slots_free == 1
    await world.close()
