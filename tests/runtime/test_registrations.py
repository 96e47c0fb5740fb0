"""Engines that register themselves, through the facade of a whole daemon over fakes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio

from poolmgr.adapters.store.memory import LeaseRecords, Medium
from poolmgr.core.effects import Discard, KillTree, Rest, Start, Terminate
from poolmgr.errors import ClientError, EnvironmentFault, InternalError, Reason
from poolmgr.model.engine import ProbeOutcome, ProbeResult, RecoveredEngine, RecoveryState
from poolmgr.model.lease import Lease, LeaseOutcome, Refusal, RefusalReason
from poolmgr.model.pool import EngineName, Origin, PoolSpec, PoolState, PoolView, ReloadStrategy
from poolmgr.model.registration import Beat, DesiredState, Registration
from poolmgr.runtime import declared
from poolmgr.runtime.registered_host import RegisteredHost
from poolmgr.runtime.supervisor import MAX_POOLS
from poolmgr.testing.fakes import settled
from tests.runtime.world import World

S = PoolState
FIRST = Registration("e1", "r", "10.0.0.7:8000", EngineName.COMMAND, "v1", slots_total=2, pid=77)
OURS = PoolSpec(EngineName.COMMAND, command="/bin/engine")


@pytest_asyncio.fixture
async def world() -> AsyncIterator[World]:
    world = await begun(Medium(leases=LeaseRecords("boot")))
    yield world
    await world.close()


async def begun(medium: Medium, **changes: object) -> World:
    world = World(medium, **changes)  # type: ignore[arg-type]
    await world.supervisor.recover()
    return world


async def next_daemon(world: World) -> World:
    """The daemon dies without a word; another one begins on what it left."""
    for actor in world.supervisor.actors():
        actor.close()
    await world.tasks.close()
    return await begun(world.medium, clock=world.clock)


def seen(world: World, pool_id: str = "r") -> PoolView:
    return world.facade.pool(pool_id).view


async def a_ready(world: World) -> None:
    await world.facade.register_engine(FIRST)
    await settled()
    assert seen(world).state is S.READY


def refused(error: pytest.ExceptionInfo[ClientError]) -> Reason:
    return error.value.reason


@pytest.mark.behaviour("ENG-1", "ENG-2")
async def test_a_registered_engine_is_probed_where_it_is_shown_and_leased(world: World) -> None:
    world.probe.result = ProbeResult(ProbeOutcome.LOADING)
    assert (await world.facade.register_engine(FIRST)).view.state is S.STARTING
    world.probe.result = ProbeResult(ProbeOutcome.OK)
    await world.clock.advance(0.5)
    view = seen(world)
    assert (view.state, view.endpoint, view.engine_version, view.pid) == (S.READY, "10.0.0.7:8000", "v1", 77)
    assert (view.origin, view.slots_total, view.slots_free, view.live) == (Origin.REGISTERED, 2, 2, True)
    asked = world.probe.asked[-1]
    assert (asked.kind, asked.host, asked.port, asked.path) == ("HTTP", "10.0.0.7", 8000, "/health")
    lease = await world.facade.acquire("r", world.ask("r"))
    assert isinstance(lease, Lease) and lease.endpoint == "10.0.0.7:8000"
    assert world.facade.renew(lease.lease_id, lease.token)[0] is LeaseOutcome.RENEWED
    assert world.facade.release(lease.lease_id, lease.token) is LeaseOutcome.RELEASED
    assert world.runtime.starts == [] and world.ports.reserved == set()


@pytest.mark.behaviour("ENG-2")
@pytest.mark.parametrize(
    ("endpoint", "host"), [("10.0.0.7:8000", "10.0.0.7"), ("[::1]:8000", "::1"), ("gpu-7.lan:8000", "gpu-7.lan")]
)
async def test_a_kind_that_this_daemon_does_not_know_is_asked_whether_it_listens(
    world: World, endpoint: str, host: str
) -> None:
    await world.facade.register_engine(replace(FIRST, engine=EngineName.VLLM, endpoint=endpoint))
    await settled()
    (asked,) = world.probe.asked
    assert (asked.kind, asked.host, asked.port) == ("TCP", host, 8000)
    assert seen(world).state is S.READY


@pytest.mark.behaviour("ENG-1")
async def test_a_heartbeat_is_answered_with_the_next_interval_and_what_to_do(world: World) -> None:
    await a_ready(world)
    answer = world.facade.heartbeat(Beat("e1", slots_free=1, in_flight=1, progress_counter=5))
    assert (answer.interval, answer.desired) == (10.0, DesiredState.SERVE)
    (shown,) = world.facade.engines("")
    assert shown.registered and (shown.in_flight, shown.progress_counter, shown.slots_free) == (1, 5, 1)
    assert shown.last_heartbeat == world.clock.wall()
    lease = await world.facade.acquire("r", world.ask("r", ttl=100.0))
    assert isinstance(lease, Lease) and (seen(world).slots_total, seen(world).slots_free) == (2, 0)
    await world.facade.drain("r", None, 0.0)
    assert world.facade.heartbeat(Beat("e1")).desired is DesiredState.DRAIN
    world.facade.release(lease.lease_id, lease.token)
    assert world.facade.heartbeat(Beat("e1")).desired is DesiredState.GONE
    await world.facade.preload("r", 0.0)
    assert world.facade.heartbeat(Beat("e1")).desired is DesiredState.SERVE


@pytest.mark.behaviour("ENG-1")
async def test_lists_show_the_engines_of_this_daemon_beside_those_that_registered(world: World) -> None:
    await world.ready_pool("a")
    await a_ready(world)
    ours, theirs = world.facade.engines("")
    assert (ours.pool_id, ours.registered, ours.endpoint) == ("a", False, "127.0.0.1:40000")
    assert (theirs.pool_id, theirs.registered, theirs.directory) == ("r", True, "")
    assert [view.engine_id for view in world.facade.engines("r")] == ["e1"]


@pytest.mark.behaviour("ENG-1")
async def test_a_registration_again_is_the_same_pool_and_a_changed_spec_its_next_generation(world: World) -> None:
    await a_ready(world)
    before = seen(world)
    assert (await world.facade.register_engine(FIRST)).view == before
    assert (await world.facade.register_engine(Registration("e1", engine_version="v2"))).view.generation == 1
    changed = (await world.facade.register_engine(Registration("e1", slots_total=5))).view
    assert (changed.generation, changed.slots_total, changed.engine_version) == (2, 5, "v2")
    (stored,) = await world.store.load()
    assert [g.spec.slots for g in stored.generations] == [2, 5]


@pytest.mark.behaviour("ENG-1")
async def test_a_registration_for_somebody_elses_pool_or_a_second_one_is_refused(world: World) -> None:
    await world.ready_pool("a")
    await a_ready(world)
    for said in (
        replace(FIRST, engine_id="e2", pool_id="a"),
        replace(FIRST, engine_id="e2"),
        replace(FIRST, pool_id="b"),
    ):
        with pytest.raises(ClientError) as error:
            await world.facade.register_engine(said)
        assert refused(error) is Reason.POOL_EXISTS
    for said in (Registration("e2"), Registration("e2", "b")):
        with pytest.raises(ClientError) as error:
            await world.facade.register_engine(said)
        assert refused(error) is Reason.INVALID_ARGUMENT
    assert sorted(p.pool_id for p in world.facade.pools()) == ["a", "r"]
    assert [p.pool_id for p in await world.store.load()] == ["a", "r"]


@pytest.mark.behaviour("ENG-1")
async def test_two_registrations_at_once_for_two_pools_make_one(world: World) -> None:
    both = (world.facade.register_engine(FIRST), world.facade.register_engine(replace(FIRST, pool_id="b")))
    outcomes = await asyncio.gather(*both, return_exceptions=True)
    assert [isinstance(one, ClientError) for one in outcomes] == [False, True]
    assert [p.pool_id for p in world.facade.pools()] == ["r"]


@pytest.mark.behaviour("ENG-1")
async def test_registered_pools_count_towards_the_limit(world: World) -> None:
    for number in range(MAX_POOLS):
        await world.facade.register_engine(replace(FIRST, engine_id=f"e{number}", pool_id=f"p{number}"))
    with pytest.raises(ClientError) as error:
        await world.facade.register_engine(replace(FIRST, engine_id="more", pool_id="more"))
    assert refused(error) is Reason.POOL_LIMIT
    with pytest.raises(ClientError):
        await world.facade.create_pool("ours", OURS)


@pytest.mark.behaviour("ENG-1")
async def test_heartbeats_of_nobody_are_refused_and_so_are_they_after_the_end(world: World) -> None:
    await a_ready(world)
    with pytest.raises(ClientError) as error:
        world.facade.heartbeat(Beat("e2"))
    assert refused(error) is Reason.ENGINE_NOT_FOUND
    lease = await world.facade.acquire("r", world.ask("r", ttl=300.0))
    assert isinstance(lease, Lease)
    await world.facade.deregister_engine("e1")
    assert world.facade.pools() == [] and await world.store.load() == []
    assert world.facade.release(lease.lease_id, lease.token) is LeaseOutcome.UNKNOWN
    with pytest.raises(ClientError) as error:
        world.facade.heartbeat(Beat("e1"))
    assert refused(error) is Reason.ENGINE_NOT_FOUND
    with pytest.raises(ClientError) as error:
        await world.facade.deregister_engine("e1")
    assert refused(error) is Reason.ENGINE_NOT_FOUND
    await a_ready(world)  # and anybody may come again


@pytest.mark.behaviour("ENG-2", "DRN-5")
async def test_a_second_delete_with_a_shorter_deadline_is_kept_to(world: World) -> None:
    await a_ready(world)
    assert isinstance(await world.facade.acquire("r", world.ask("r", ttl=300.0)), Lease)
    deletions = [asyncio.ensure_future(world.facade.delete("r", seconds)) for seconds in (200.0, 2.0)]
    await world.clock.advance(1.9)
    assert seen(world).state is S.DRAINING and not any(one.done() for one in deletions)
    await world.clock.advance(0.1)
    await asyncio.gather(*deletions)
    assert world.facade.pools() == []


@pytest.mark.behaviour("ENG-2")
async def test_an_engine_of_ours_cannot_be_deregistered_or_told_of_by_a_heartbeat(world: World) -> None:
    await world.ready_pool("a")
    engine_id = seen(world, "a").engine_id
    with pytest.raises(ClientError) as error:
        await world.facade.deregister_engine(engine_id)
    assert refused(error) is Reason.ENGINE_NOT_FOUND
    with pytest.raises(ClientError):
        world.facade.heartbeat(Beat(engine_id))
    assert seen(world, "a").state is S.READY


@pytest.mark.behaviour("ENG-2")
async def test_nobody_but_the_engine_changes_its_spec(world: World) -> None:
    await a_ready(world)
    facade = world.facade
    for change in (
        facade.update_pool("r", lambda spec: replace(spec, slots=9)),
        facade.reload_pool("r", None, ReloadStrategy.AUTO, None, 0.0),
        facade.rollback_pool("r", 0, None, 0.0),
    ):
        with pytest.raises(ClientError, match="registered itself") as error:
            await change
        assert refused(error) is Reason.POOL_STATE
    with pytest.raises(ClientError) as error:
        await facade.create_pool("r", seen(world).spec)
    assert refused(error) is Reason.POOL_EXISTS
    with pytest.raises(ClientError, match="its log is not here"):
        facade.log_tail("r", 5)


@pytest.mark.behaviour("ENG-2", "CFG-3")
async def test_a_reload_of_the_file_never_touches_a_registered_pool(world: World) -> None:
    await a_ready(world)
    await declared.reload(world.supervisor, world.facade.versions, {}, (), False)
    await declared.apply_at_start(world.supervisor, world.facade.versions, {"r": OURS})
    with pytest.raises(ClientError) as error:
        await declared.reload(world.supervisor, world.facade.versions, {"r": OURS}, (), False)
    assert refused(error) is Reason.POOL_EXISTS
    assert seen(world).state is S.READY and seen(world).origin is Origin.REGISTERED


@pytest.mark.behaviour("ENG-1", "ENG-3")
async def test_a_silent_engine_is_lost_and_back_with_its_next_heartbeat(world: World) -> None:
    await a_ready(world)
    lease = await world.facade.acquire("r", world.ask("r", ttl=300.0))
    assert isinstance(lease, Lease)
    await world.clock.advance(29.0)
    assert seen(world).state is S.READY
    await world.clock.advance(1.0)
    assert (seen(world).state, seen(world).active_leases, seen(world).live) == (S.LOST, 1, False)
    told = await world.facade.acquire("r", world.ask("r", wait=5.0))
    assert isinstance(told, Refusal) and told.reason is RefusalReason.POOL_NOT_READY
    asked = len(world.probe.asked)
    await world.clock.advance(100.0)
    assert len(world.probe.asked) == asked  # it is not asked while nothing is heard of it
    world.facade.heartbeat(Beat("e1"))
    await settled()
    assert (seen(world).state, seen(world).slots_free) == (S.READY, 1)


@pytest.mark.behaviour("ENG-2", "RST-4")
async def test_an_engine_that_fails_its_probes_is_lost_and_neither_restarted_nor_counted(world: World) -> None:
    await world.ready_pool("a")
    await a_ready(world)
    world.probe.result = ProbeResult(ProbeOutcome.FAILED, "connection refused")
    await world.clock.advance(4.0)
    world.facade.heartbeat(Beat("e1"))
    await world.clock.advance(14.0)
    view = seen(world)
    assert (
        (view.state, view.live) == (S.LOST, False)
        and view.last_error is not None
        and "connection refused" in view.last_error.message
    )
    assert view.restart_count == 0 and len(world.runtime.starts) == len({s.pool_id for s in world.runtime.starts}) == 1


@pytest.mark.behaviour("ENG-3", "LEASE-3")
async def test_after_the_daemons_death_the_next_heartbeat_brings_the_engine_back_with_its_leases(world: World) -> None:
    await a_ready(world)
    lease = await world.facade.acquire("r", world.ask("r", ttl=60.0))
    assert isinstance(lease, Lease)
    later = await next_daemon(world)
    view = seen(later)
    assert (view.state, view.active_leases, view.engine_id, view.pid) == (S.LOST, 1, "e1", 77)
    assert later.facade.renew(lease.lease_id, lease.token)[0] is LeaseOutcome.RENEWED
    later.facade.heartbeat(Beat("e1", slots_free=1))
    await settled()
    assert (seen(later).state, seen(later).slots_free) == (S.READY, 1)
    again = await later.facade.acquire("r", later.ask("r"))
    assert isinstance(again, Lease) and again.fencing_token > lease.fencing_token
    assert later.facade.release(lease.lease_id, lease.token) is LeaseOutcome.RELEASED
    await later.close()


@pytest.mark.behaviour("ENG-2", "RST-8")
async def test_what_was_stopped_stays_so_in_a_later_daemon_until_somebody_wants_it(world: World) -> None:
    await a_ready(world)
    await world.facade.stop("r", None, 0.0)
    later = await next_daemon(world)
    assert later.facade.heartbeat(Beat("e1")).desired is DesiredState.GONE and seen(later).state is S.STOPPED
    await later.facade.preload("r", 0.0)
    await settled()
    assert seen(later).state is S.READY
    await later.close()


@pytest.mark.behaviour("ENG-1")
async def test_a_draining_engine_is_still_draining_for_a_later_daemon(world: World) -> None:
    await a_ready(world)
    world.facade.heartbeat(Beat("e1", draining=True))
    await settled()
    later = await next_daemon(world)
    later.facade.heartbeat(Beat("e1"))
    await settled()
    assert seen(later).state is S.DRAINING
    await later.close()


@pytest.mark.behaviour("ENG-2", "PROC-8")
async def test_a_shutdown_that_ends_engines_ends_ours_only(world: World) -> None:
    await a_ready(world)
    await world.supervisor.close(stop_engines=True)
    later = await next_daemon(world)
    assert seen(later).state is S.LOST and later.facade.heartbeat(Beat("e1")).desired is DesiredState.SERVE
    await later.close()


@pytest.mark.behaviour("ENG-2", "PROC-6")
async def test_an_engine_directory_of_the_same_pool_id_is_left_alone(world: World) -> None:
    await a_ready(world)
    for actor in world.supervisor.actors():
        actor.close()
    await world.tasks.close()
    later = World(world.medium, clock=world.clock)
    later.runtime.found = [RecoveredEngine("x" * 32, "r", 1, RecoveryState.ALIVE, 40000)]
    await later.supervisor.recover()
    assert seen(later).state is S.LOST and any("left alone" in text for text in later.supervisor.warnings)
    assert later.runtime.engines == {} and later.runtime.removed == []
    await later.close()


@pytest.mark.behaviour("ENG-2")
@pytest.mark.parametrize(
    "effect", [Start("", False, False), Terminate("e1"), KillTree("e1"), Rest("e1"), Discard("e1")]
)
async def test_an_effect_on_a_process_is_a_defect_that_is_not_performed(world: World, effect: Start) -> None:
    await a_ready(world)
    host = world.supervisor._registered
    assert isinstance(host, RegisteredHost)
    with pytest.raises(InternalError, match="not ours"):
        host.perform(world.supervisor.actor("r"), effect)
    assert world.runtime.starts == [] and world.runtime.terminated == []


async def test_a_registration_that_cannot_be_stored_is_none(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(*_: object, **__: object) -> None:
        raise EnvironmentFault(Reason.STORE_UNAVAILABLE, "no space left")

    with monkeypatch.context() as patch:
        patch.setattr(world.store, "put_pool", full)
        with pytest.raises(EnvironmentFault):
            await world.facade.register_engine(FIRST)
    assert world.facade.pools() == [] and world.probe.asked == []
    await a_ready(world)
    with monkeypatch.context() as patch:
        patch.setattr(world.store, "put_pool", full)
        with pytest.raises(EnvironmentFault):
            await world.facade.register_engine(Registration("e1", slots_total=9))
    assert seen(world).slots_total == 2 and seen(world).generation == 1


async def test_a_daemon_that_ends_takes_no_registration(world: World) -> None:
    await a_ready(world)
    world.supervisor.closing = True
    for said in (replace(FIRST, engine_id="e2", pool_id="b"), Registration("e1", slots_total=9)):
        with pytest.raises(EnvironmentFault) as error:
            await world.facade.register_engine(said)
        assert error.value.reason is Reason.SHUTTING_DOWN
    with pytest.raises(EnvironmentFault):
        await world.facade.deregister_engine("e1")


async def test_what_a_heartbeat_says_while_a_registration_is_stored_is_not_lost(world: World) -> None:
    await a_ready(world)
    registering = asyncio.ensure_future(world.facade.register_engine(Registration("e1", engine_version="v2")))
    actor, told = world.supervisor.actor("r"), False
    put = world.store.put_state

    async def slow(pool_id: str, state: str) -> None:
        nonlocal told
        if not told:
            told = True
            world.facade.heartbeat(Beat("e1", draining=True))
        await put(pool_id, state)

    world.store.put_state = slow  # type: ignore[method-assign]
    await registering
    assert told and actor.pool.registered is not None
    assert actor.pool.registered.engine.draining and actor.pool.registered.engine.version == "v2"
    assert isinstance(actor.pool.state, S) and seen(world).state is S.DRAINING
