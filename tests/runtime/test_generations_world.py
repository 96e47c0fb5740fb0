"""A whole daemon over fakes: reloads, rollbacks and the generations that are kept."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from poolmgr.errors import ClientError, Reason
from poolmgr.model.engine import EngineFacts, ProbeOutcome, ProbeResult
from poolmgr.model.lease import LeaseOutcome
from poolmgr.model.pool import EngineName, PoolSpec, PoolState, ReloadStrategy
from poolmgr.testing.fakes import ScriptedProbe, settled
from tests.runtime.gates import AnyGpu
from tests.runtime.world import World

S = PoolState
MAKE, BREAK, AUTO = ReloadStrategy.MAKE_BEFORE_BREAK, ReloadStrategy.BREAK_BEFORE_MAKE, ReloadStrategy.AUTO
NEW = PoolSpec(EngineName.COMMAND, command="/bin/new", slots=2)


class Choosy(ScriptedProbe):
    """Synthetic requests are answered by `verdict`."""

    verdict = ProbeResult(ProbeOutcome.OK)

    async def __call__(self, target):
        answer = await super().__call__(target)
        return self.verdict if target.kind == "SYNTHETIC" else answer


async def a_world(**spec) -> World:
    world = await World(probe=Choosy(), gate=AnyGpu()).recovered()
    await world.ready_pool(**{"slots": 2, **spec})
    return world


async def go(world, spec, strategy=MAKE, deadline=None):
    await world.facade.reload_pool("a", spec, strategy, deadline, 0.0)
    await settled()
    await world.obey()


def view(world):
    return world.facade.pool("a").view


@pytest.mark.behaviour("DRN-2", "DRN-4")
@pytest.mark.parametrize("strategy", [MAKE, BREAK])
async def test_a_reload_ends_with_the_new_engine_alone_and_with_what_it_says_of_itself(strategy):
    world = await a_world(device_mask="none")
    old = world.runtime.only()
    world.kind.facts = EngineFacts("fake-2")
    await go(world, replace(NEW, device_mask="none"), strategy)
    new = world.runtime.only()
    assert new.launch.argv[0] == "/bin/new"
    assert (view(world).pool_id, view(world).generation, view(world).state) == ("a", 2, S.READY)
    assert (view(world).engine_version, view(world).endpoint) == ("fake-2", f"127.0.0.1:{new.launch.port}")
    assert (view(world).restart_count, view(world).reload_phase) == (0, "")
    assert world.runtime.removed == [old.launch.engine_id]
    assert world.ports.reserved == {new.launch.port}
    assert world.memo().generation == 2
    await world.close()


@pytest.mark.behaviour("DRN-4", "DRN-2")
async def test_the_device_mask_stays_over_a_reload_that_does_not_name_another():
    world = await a_world(device_mask="0,1")
    await go(world, None, MAKE)
    assert (view(world).generation, view(world).spec.device_mask) == (2, "0,1")
    assert world.runtime.only().launch.record.spec.device_mask == "0,1"
    await world.close()


@pytest.mark.behaviour("DRN-2")
async def test_status_and_leases_answer_while_a_reload_is_under_way():
    world = await a_world()
    lease = await world.lease(ttl=300.0)
    world.probe.result = ProbeResult(ProbeOutcome.LOADING)
    reloading = asyncio.ensure_future(world.facade.reload_pool("a", NEW, MAKE, None, 60.0))
    await settled()
    assert (view(world).reload_phase, view(world).reload_generation, view(world).ready) == ("starting", 2, True)
    await world.lease()
    assert world.facade.release(lease.lease_id, lease.token) is LeaseOutcome.RELEASED
    assert not reloading.done()
    world.probe.result = ProbeResult(ProbeOutcome.OK)
    await world.clock.advance(1.0)
    assert (await reloading).view.generation == 2
    await world.close()


@pytest.mark.behaviour("DRN-3")
async def test_a_wrong_answer_to_the_synthetic_request_keeps_the_old_engine_and_is_told():
    world = await a_world()
    old = world.runtime.only()
    world.probe.verdict = ProbeResult(ProbeOutcome.FAILED, "no tokens")
    await go(world, NEW)
    assert (view(world).generation, view(world).pid, view(world).state) == (1, old.pid, S.READY)
    assert view(world).last_error.reason == Reason.VERIFICATION_FAILED
    assert "no tokens" in view(world).last_error.message
    assert world.running() == [old]
    kept = {g.generation: (g.current, g.committed, g.rolled_back) for g in await world.facade.generations("a")}
    assert kept == {1: (True, True, 0), 2: (False, False, 1)}
    await world.close()


@pytest.mark.behaviour("DRN-3")
async def test_a_generation_that_came_back_twice_is_blocked_also_for_the_next_daemon():
    first = await a_world()
    first.probe.verdict = ProbeResult(ProbeOutcome.FAILED, "no tokens")
    for _ in range(2):
        await go(first, NEW)
    world = await first.successor()
    await world.clock.advance(1.0)
    with pytest.raises(ClientError) as refused:
        await world.facade.reload_pool("a", NEW, MAKE, None, 0.0)
    assert refused.value.reason is Reason.GENERATION_BLOCKED
    assert [g.blocked for g in await world.facade.generations("a")] == [False, False, True]
    await go(world, replace(NEW, args=("--edited",)))
    assert view(world).generation == 4
    await world.close()


@pytest.mark.behaviour("DRN-2")
async def test_a_drain_that_takes_too_long_aborts_the_reload_and_the_lease_stays():
    world = await a_world()
    lease = await world.lease(ttl=300.0)
    await world.facade.reload_pool("a", NEW, BREAK, 10.0, 0.0)
    await world.clock.advance(10.1)
    assert (view(world).state, view(world).generation, len(world.runtime.starts)) == (S.READY, 1, 1)
    assert view(world).last_error.reason == Reason.RELOAD_ABORTED
    assert world.facade.renew(lease.lease_id, lease.token)[0] is LeaseOutcome.RENEWED
    await world.close()


# DRN-4.


@pytest.mark.behaviour("DRN-4")
async def test_a_rollback_goes_to_any_generation_that_is_kept_and_to_the_last_good_one_unasked():
    world = await a_world()
    for generation in (2, 3):
        await go(world, replace(NEW, args=(f"--{generation}",)))
    await world.facade.rollback_pool("a", 1, None, 0.0)
    await settled()
    await world.obey()
    assert (view(world).generation, view(world).spec.command) == (1, "/bin/engine")
    await world.facade.rollback_pool("a", 0, None, 0.0)
    await settled()
    await world.obey()
    assert (view(world).generation, view(world).spec.args) == (3, ("--3",))
    await go(world, NEW)
    assert view(world).generation == 4, "a number is never used for two specs"
    await world.close()


@pytest.mark.behaviour("DRN-4", "DRN-3")
async def test_a_generation_that_failed_is_never_the_last_good_one():
    world = await a_world()
    await go(world, NEW)
    world.probe.verdict = ProbeResult(ProbeOutcome.FAILED, "no tokens")
    await go(world, replace(NEW, args=("--bad",)))
    world.probe.verdict = ProbeResult(ProbeOutcome.OK)
    await world.facade.rollback_pool("a", 0, None, 0.0)
    await settled()
    await world.obey()
    assert view(world).generation == 1
    await world.close()


@pytest.mark.behaviour("DRN-4")
@pytest.mark.parametrize("generation", [0, 7])
async def test_a_rollback_to_what_is_not_there_is_an_error_that_says_so(generation):
    world = await a_world()
    before = world.pool()
    with pytest.raises(ClientError) as refused:
        await world.facade.rollback_pool("a", generation, None, 0.0)
    assert refused.value.reason is Reason.GENERATION_NOT_FOUND
    assert world.pool() is before
    await world.close()


@pytest.mark.behaviour("DRN-4")
async def test_the_last_twenty_generations_are_kept_and_the_pools_own_besides():
    first = await a_world()
    first.probe.verdict = ProbeResult(ProbeOutcome.FAILED, "no tokens")
    for i in range(25):
        await go(first, replace(NEW, args=(f"--{i}",)))
    assert [g.generation for g in await first.facade.generations("a")] == [1, *range(7, 27)]
    world = await first.successor()
    await world.clock.advance(1.0)
    assert (view(world).generation, view(world).spec.command, view(world).state) == (1, "/bin/engine", S.READY)
    await world.close()


@pytest.mark.behaviour("DRN-4", "DRN-3")
async def test_the_way_back_to_an_engine_that_still_retires_outlives_the_daemon_on_either_side_of_its_commit():
    for committed in (False, True):
        first = await a_world()
        lease = await first.lease(ttl=300.0)
        old = first.runtime.only()
        await first.facade.reload_pool("a", NEW, MAKE, None, 0.0)
        await settled()
        if committed:
            await first.facade.rollback_pool("a", 0, None, 0.0)
            await settled()
        world = await first.successor()
        await world.clock.advance(1.0)
        assert view(world).generation == (1 if committed else 2)
        assert (view(world).pid == old.pid) is committed
        assert world.facade.renew(lease.lease_id, lease.token)[0] is LeaseOutcome.RENEWED
        await world.close()
