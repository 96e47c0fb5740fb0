"""The database is lost and the record of leases is not: whoever holds a slot of an engine that goes on keeps it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from poolmgr.adapters.store.memory import LeaseRecords, Medium
from poolmgr.model.lease import Lease, LeaseOutcome, Refusal, RefusalReason
from poolmgr.model.pool import EngineName, PoolSpec
from poolmgr.model.registration import Registration
from poolmgr.testing.fakes import settled
from tests.runtime.world import World

ENGINE = Registration("e1", "r", "10.0.0.7:8000", EngineName.COMMAND, "v1", slots_total=1, pid=77)

pytestmark = pytest.mark.behaviour("LEASE-1", "LEASE-4", "ENG-1")


@pytest_asyncio.fixture
async def world() -> AsyncIterator[World]:
    world = World(Medium(leases=LeaseRecords("boot")))
    await world.supervisor.recover()
    yield world
    await world.close()


async def a_lease(world: World) -> Lease:
    await world.facade.register_engine(ENGINE)
    await settled()
    lease = await world.facade.acquire("r", world.ask("r"))
    assert isinstance(lease, Lease)
    return lease


async def next_daemon(world: World) -> World:
    """On a database that is empty."""
    world.medium.pools.clear()
    return await world.successor()


async def registered(world: World, said: Registration = ENGINE) -> World:
    await world.facade.register_engine(said)
    await settled()
    return world


async def test_an_engine_that_registers_again_has_its_leases_and_no_slot_more(world: World) -> None:
    lease = await a_lease(world)
    later = await registered(await next_daemon(world))
    refused = await later.facade.acquire("r", later.ask("r"))
    assert isinstance(refused, Refusal) and refused.reason is RefusalReason.POOL_FULL
    assert later.facade.renew(lease.lease_id, lease.token)[0] is LeaseOutcome.RENEWED
    assert later.facade.release(lease.lease_id, lease.token) is LeaseOutcome.RELEASED
    assert isinstance(await later.facade.acquire("r", later.ask("r")), Lease)
    await later.close()


async def test_also_where_one_more_daemon_died_before_it_did(world: World) -> None:
    lease = await a_lease(world)
    later = await registered(await (await next_daemon(world)).successor())
    assert isinstance(await later.facade.acquire("r", later.ask("r")), Refusal)
    assert later.facade.release(lease.lease_id, lease.token) is LeaseOutcome.RELEASED
    await later.close()


async def test_leases_are_over_where_the_pool_is_made_anew_as_one_of_ours(world: World) -> None:
    lease = await a_lease(world)
    later = await next_daemon(world)
    await later.facade.create_pool("r", PoolSpec(EngineName.COMMAND, command="/bin/engine"))
    assert [end.lease_id for end in world.medium.leases.ended] == [lease.lease_id]
    assert later.facade.leases("") == []
    await later.close()
