"""The runtime over fakes: one writer, no waiting readers, nothing lost, nothing doubled."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import NoReturn

import pytest
import pytest_asyncio

from poolmgr.errors import ClientError, EnvironmentFault, Reason
from poolmgr.model.engine import (
    Diagnosis,
    ExitRecord,
    LaunchSpec,
    ProbeOutcome,
    ProbeResult,
    ProcessIdentity,
    RecoveredEngine,
    RecoveryState,
)
from poolmgr.model.lease import Lease, LeaseOutcome, Refusal
from poolmgr.model.pool import EngineName, Origin, PoolSpec, PoolState, SupervisionOverrides
from poolmgr.ports import EngineListener
from poolmgr.runtime.engine_host import mark_of
from poolmgr.testing.fakes import ScriptedKind, settled
from tests.runtime.world import World

SPEC = PoolSpec(EngineName.COMMAND, command="/bin/engine")


@pytest_asyncio.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    await world.supervisor.recover()
    yield world
    await world.close()


def state(world: World, pool_id: str = "a") -> PoolState:
    return world.facade.pool(pool_id).view.state


@pytest.mark.behaviour("PRE-1", "PRE-9")
async def test_a_preloaded_pool_becomes_ready_and_publishes_what_it_is(world: World) -> None:
    await world.ready_pool(slots=2)
    view = world.facade.pool("a").view
    assert (view.slots_total, view.slots_free, view.engine_version, view.live) == (2, 2, "fake-1", True)
    assert view.endpoint == "127.0.0.1:40000"
    assert view.memory_bytes == 1 << 20


@pytest.mark.behaviour("PRE-1")
async def test_a_closed_gate_stores_nothing_and_reserves_nothing(world: World) -> None:
    world.kind.refusal = ClientError(Reason.MODEL_NOT_FOUND, "no model")
    with pytest.raises(ClientError, match="no model"):
        await world.facade.create_pool("a", SPEC)
    assert world.facade.pools() == [] and await world.store.load() == [] and world.ports.reserved == set()


@pytest.mark.behaviour("PRE-8", "RST-8")
async def test_a_gate_that_closes_after_creation_parks_the_pool_and_gives_the_port_back(world: World) -> None:
    await world.facade.create_pool("a", SPEC)
    world.kind.refusal = ClientError(Reason.EXECUTABLE_NOT_FOUND, "gone")
    pool = await world.facade.preload("a", 5.0)
    assert pool.view.state is PoolState.PARKED
    assert pool.view.last_error is not None and pool.view.last_error.reason == "EXECUTABLE_NOT_FOUND"
    assert world.ports.reserved == set() and world.runtime.starts == []


@pytest.mark.behaviour("PRE-8")
async def test_a_failed_spawn_backs_off_and_leaves_no_port_reserved(world: World) -> None:
    world.runtime.refuse = EnvironmentFault(Reason.SPAWN_FAILED, "no memory", numbers={"errno": 12})
    await world.facade.create_pool("a", SPEC)
    pool = await world.facade.preload("a", 5.0)
    assert pool.view.state is PoolState.BACKOFF and world.ports.reserved == set()


@pytest.mark.behaviour("RST-1", "LIVE-3")
async def test_a_crashed_engine_starts_again_in_its_own_directory_and_on_its_own_port(world: World) -> None:
    await world.ready_pool()
    first = world.runtime.only()
    world.runtime.end(first.launch.engine_id, ExitRecord(signal=9, source="shim"))
    view = world.facade.pool("a").view
    assert view.state is PoolState.BACKOFF and view.last_error is not None
    assert view.last_error.reason == "SIGNAL" and view.last_error.log_tail == ("last line",)
    await world.clock.advance(1.2)
    assert state(world) is PoolState.READY
    assert world.runtime.only().launch == first.launch and world.runtime.only().pid != first.pid
    assert world.facade.pool("a").view.restart_count == 1


@pytest.mark.behaviour("PRE-1")
async def test_a_start_that_was_proven_does_not_walk_through_the_gates_again(world: World) -> None:
    await world.ready_pool()
    checked = world.kind.checked
    world.runtime.end(world.runtime.only().launch.engine_id, ExitRecord(exit_code=3, source="shim"))
    await world.clock.advance(1.2)
    assert state(world) is PoolState.READY and world.kind.checked == checked


@pytest.mark.behaviour("PRE-4", "PRE-5")
async def test_a_stranger_on_the_port_fails_the_start_and_the_next_one_takes_another_port(world: World) -> None:
    world.runtime.owned = False
    await world.facade.create_pool("a", SPEC)
    pool = await world.facade.preload("a", 5.0)
    assert pool.view.last_error is not None and pool.view.last_error.reason == "PORT_TAKEN"
    assert pool.view.state is PoolState.BACKOFF
    world.runtime.owned = True
    world.ports.strangers.add(40000)
    await world.clock.advance(1.2)
    assert state(world) is PoolState.READY
    assert world.facade.pool("a").view.endpoint == "127.0.0.1:40001"


@pytest.mark.behaviour("RST-8")
async def test_bad_arguments_are_not_tried_again(world: World) -> None:
    world.probe.result = ProbeResult(ProbeOutcome.FAILED, "connection refused")
    world.kind.diagnosis = Diagnosis("BAD_ARGUMENTS", "unknown flag --frob", permanent=True)
    await world.facade.create_pool("a", SPEC)
    await world.facade.preload("a", 0.0)
    await settled()
    world.runtime.end(world.runtime.only().launch.engine_id, ExitRecord(exit_code=1, source="shim"))
    await world.clock.advance(4000)
    view = world.facade.pool("a").view
    assert view.state is PoolState.PARKED and len(world.runtime.starts) == 1
    assert view.last_error is not None and view.last_error.reason == "BAD_ARGUMENTS"


@pytest.mark.behaviour("LEASE-1", "LEASE-5")
async def test_a_waiter_gets_the_slot_that_is_given_back(world: World) -> None:
    await world.ready_pool()
    first = await world.facade.acquire("a", world.ask())
    assert isinstance(first, Lease)
    waiting = asyncio.ensure_future(world.facade.acquire("a", world.ask(wait=30.0)))
    await settled()
    assert world.facade.pool("a").view.waiting == 1
    assert world.facade.release(first.lease_id, first.token) is LeaseOutcome.RELEASED
    second = await waiting
    assert isinstance(second, Lease) and second.fencing_token > first.fencing_token


@pytest.mark.behaviour("LEASE-5")
async def test_a_waiter_whose_client_went_away_is_forgotten(world: World) -> None:
    await world.ready_pool()
    first = await world.facade.acquire("a", world.ask())
    assert isinstance(first, Lease)
    waiting = asyncio.ensure_future(world.facade.acquire("a", world.ask(wait=30.0)))
    await settled()
    waiting.cancel()
    await settled()
    assert world.facade.pool("a").view.waiting == 0
    world.facade.release(first.lease_id, first.token)
    assert world.facade.pool("a").view.slots_free == 1


@pytest.mark.behaviour("LEASE-5", "LEASE-1")
async def test_a_grant_that_meets_a_cancelled_caller_is_given_back(world: World) -> None:
    await world.ready_pool()
    first = await world.facade.acquire("a", world.ask())
    assert isinstance(first, Lease)
    waiting = asyncio.ensure_future(world.facade.acquire("a", world.ask(wait=30.0)))
    await settled()
    world.facade.release(first.lease_id, first.token)  # grants, and the caller is cancelled before it hears of it
    waiting.cancel()
    await settled()
    assert world.facade.pool("a").view.active_leases == 0


async def test_an_unknown_pool_refuses_a_lease_and_is_an_error_for_everything_else(world: World) -> None:
    refused = await world.facade.acquire("nope", world.ask("nope"))
    assert isinstance(refused, Refusal) and refused.reason == "POOL_NOT_FOUND"
    with pytest.raises(ClientError, match="no pool 'nope'"):
        await world.facade.drain("nope", None, 0.0)


@pytest.mark.behaviour("DRN-1", "PROC-3")
async def test_status_answers_while_a_drain_waits_for_a_lease(world: World) -> None:
    await world.ready_pool()
    lease = await world.facade.acquire("a", world.ask(ttl=300.0))
    assert isinstance(lease, Lease)
    draining = asyncio.ensure_future(world.facade.drain("a", None, 60.0))
    await settled()
    assert world.facade.status().pools_by_state == {"DRAINING": 1}
    assert world.facade.release(lease.lease_id, lease.token) is LeaseOutcome.RELEASED
    assert world.runtime.terminated == [world.runtime.only().launch.engine_id]
    world.runtime.end(world.runtime.only().launch.engine_id, ExitRecord(exit_code=0, source="shim"))
    assert (await draining).view.state is PoolState.STOPPED
    await settled()
    assert world.runtime.rested and world.ports.reserved == set()


@pytest.mark.behaviour("DRN-5")
async def test_a_deleted_pool_leaves_no_row_no_directory_and_no_port(world: World) -> None:
    await world.ready_pool()
    engine = world.runtime.only()
    deleting = asyncio.ensure_future(world.facade.delete("a", None))
    await settled()
    world.runtime.end(engine.launch.engine_id, ExitRecord(exit_code=0, source="shim"))
    await deleting
    await settled()
    assert world.facade.pools() == [] and await world.store.load() == []
    assert world.runtime.removed == [engine.launch.engine_id] and world.ports.reserved == set()


@pytest.mark.behaviour("DRN-5")
async def test_a_deletion_goes_on_when_its_caller_goes_away(world: World) -> None:
    await world.ready_pool()
    deleting = asyncio.ensure_future(world.facade.delete("a", None))
    await settled()
    deleting.cancel()
    world.runtime.end(world.runtime.only().launch.engine_id, ExitRecord(exit_code=0, source="shim"))
    await settled()
    assert world.facade.pools() == []


async def test_two_creations_of_one_pool_make_one(world: World) -> None:
    one, other = await asyncio.gather(world.facade.create_pool("a", SPEC), world.facade.create_pool("a", SPEC))
    assert one is other
    with pytest.raises(ClientError, match="another spec"):
        await world.facade.create_pool("a", PoolSpec(EngineName.COMMAND, command="/bin/other"))


async def test_a_creation_that_the_store_refuses_makes_no_pool(world: World) -> None:
    world.store.close()
    with pytest.raises(EnvironmentFault):
        await world.facade.create_pool("a", SPEC)
    assert world.facade.pools() == []


async def crash_loops(world: World, pools: int, **spec: object) -> None:
    """That many pools whose engines die in their start, so that it is not the host's fault (RST-6)."""
    world.probe.result = ProbeResult(ProbeOutcome.LOADING)
    for i in range(pools):
        await world.facade.create_pool(f"p{i}", replace(SPEC, **spec))  # type: ignore[arg-type]
        await world.facade.preload(f"p{i}", 0.0)
        await settled()
        world.runtime.end(list(world.runtime.engines)[-1], ExitRecord(signal=11, source="shim"))
        await settled()


@pytest.mark.behaviour("RST-4")
async def test_restarts_of_many_pools_open_a_breaker_when_the_host_has_had_too_many(world: World) -> None:
    await crash_loops(world, 11)
    states = [pool.view.state for pool in world.facade.pools()]
    assert states.count(PoolState.PARKED) == 1 and states.count(PoolState.BACKOFF) == 10
    (storm,) = world.notes("restart_storm")
    assert storm.note.fields["scope"] == "host_rate" and storm.note.fields["host_restarts"] == 11


@pytest.mark.behaviour("RST-4", "CFG-2")
@pytest.mark.parametrize("own_limit", [2, 1000])
async def test_a_pool_that_overrides_its_restart_rate_does_not_override_the_hosts(world: World, own_limit: int) -> None:
    overrides = SupervisionOverrides(restart_rate_limit=own_limit)
    await crash_loops(world, 11, supervision=overrides)
    states = [pool.view.state for pool in world.facade.pools()]
    assert states.count(PoolState.PARKED) == 1
    (storm,) = world.notes("restart_storm")
    assert (storm.note.fields["scope"], storm.note.fields["limit"]) == ("host_rate", 10)


class Vanished(ScriptedKind):
    """A kind whose executable is gone."""

    def render(self, spec: PoolSpec, port: int) -> NoReturn:
        raise ClientError(Reason.EXECUTABLE_NOT_FOUND, "/bin/engine: no executable file there")


@pytest.mark.behaviour("PROC-7", "RST-8")
async def test_an_engine_whose_executable_is_gone_is_taken_over_and_its_next_start_says_what_is_missing() -> None:
    medium = World().medium
    first = World(medium)
    await first.ready_pool()
    engine = first.runtime.only()
    await first.close()
    second = World(medium, kind=Vanished())
    identity = ProcessIdentity("boot", engine.pid, 1)
    second.runtime.found = [RecoveredEngine("e1", "a", 1, RecoveryState.ALIVE, 40000, engine.launch, identity=identity)]
    await second.supervisor.recover()
    await second.clock.advance(0.1)
    assert state(second) is PoolState.READY and second.runtime.starts == []
    second.runtime.end("e1", ExitRecord(signal=9, source="shim"))
    second.kind.refusal = ClientError(Reason.EXECUTABLE_NOT_FOUND, "/bin/engine: no executable file there")
    await second.clock.advance(5)
    assert state(second) is PoolState.PARKED and second.ports.reserved == set()
    await second.close()


@pytest.mark.behaviour("PROC-7")
async def test_an_engine_of_this_generation_is_kept_although_a_new_version_would_launch_it_otherwise() -> None:
    medium = World().medium
    first = World(medium)
    await first.ready_pool()
    engine = first.runtime.only()
    await first.close()
    second = World(medium)
    identity = ProcessIdentity("boot", engine.pid, 1)
    otherwise = replace(engine.launch, argv=("/bin/engine", "--old-flag"))
    second.runtime.found = [RecoveredEngine("e1", "a", 1, RecoveryState.ALIVE, 40000, otherwise, identity)]
    await second.supervisor.recover()
    await second.clock.advance(0.1)
    assert state(second) is PoolState.READY and second.facade.pool("a").view.pid == engine.pid
    await second.close()


@pytest.mark.behaviour("PROC-7")
async def test_a_new_daemon_takes_over_what_runs_and_starts_nothing() -> None:
    medium = World().medium
    first = World(medium)
    await first.ready_pool(preload=True)
    engine = first.runtime.only()
    await first.close()
    second = World(medium)
    identity = ProcessIdentity("boot", engine.pid, 1)
    second.runtime.found = [
        RecoveredEngine(engine.launch.engine_id, "a", 1, RecoveryState.ALIVE, 40000, engine.launch, identity)
    ]
    await second.supervisor.recover()
    await second.clock.advance(0.1)
    view = second.facade.pool("a").view
    assert view.state is PoolState.READY and view.pid == engine.pid and view.restart_count == 0
    assert second.runtime.starts == [] and second.ports.reserved == {40000}
    assert second.bus.revision > first.bus.revision
    await second.close()


@pytest.mark.behaviour("PROC-7")
async def test_an_engine_in_doubt_is_neither_started_nor_stopped() -> None:
    medium = World().medium
    first = World(medium)
    await first.ready_pool(preload=True)
    await first.close()
    second = World(medium)
    second.runtime.found = [RecoveredEngine("e1", "a", 1, RecoveryState.IN_DOUBT, 40000, detail="start time differs")]
    await second.supervisor.recover()
    await second.clock.advance(1000)
    assert state(second) is PoolState.UNKNOWN and second.runtime.starts == []
    assert second.ports.reserved == {40000}, "it may be about to listen there"
    assert "start time differs" in second.facade.status().warnings[0]
    with pytest.raises(ClientError, match="UNKNOWN"):
        await second.facade.preload("a", 0.0)
    await second.close()


@pytest.mark.behaviour("PROC-8")
async def test_a_daemon_that_ends_leaves_engines_running_unless_it_is_asked_to_stop_them(world: World) -> None:
    await world.ready_pool("a")
    assert await world.supervisor.close(stop_engines=False) == 1
    assert world.runtime.terminated == []


@pytest.mark.behaviour("DRN-5")
async def test_a_deletion_is_answered_once_the_engine_directory_is_gone(world: World) -> None:
    await world.ready_pool()
    engine_id = world.runtime.only().launch.engine_id
    removed, go = world.runtime.removed, asyncio.Event()

    async def remove_slowly(engine_id: str) -> None:
        await go.wait()
        removed.append(engine_id)

    world.runtime.remove = remove_slowly  # type: ignore[method-assign]
    deleting = asyncio.ensure_future(world.facade.delete("a", 0.0))
    await settled()
    world.runtime.end(engine_id, ExitRecord(exit_code=0, source="shim"))
    await settled()
    assert not deleting.done() and len(world.facade.pools()) == 1
    go.set()
    await deleting
    assert removed == [engine_id] and world.facade.pools() == []


@pytest.mark.behaviour("PROC-8", "PROC-3")
async def test_stop_engines_leaves_no_shim_and_no_leaf(world: World) -> None:
    await world.ready_pool("a")
    engine_id = world.runtime.only().launch.engine_id
    closing = asyncio.ensure_future(world.supervisor.close(stop_engines=True))
    await settled()
    world.runtime.end(engine_id, ExitRecord(exit_code=0, source="shim"))
    await closing
    assert world.runtime.rested == [engine_id]


@pytest.mark.behaviour("PROC-8")
async def test_stop_engines_ends_them_before_the_daemon(world: World) -> None:
    await world.ready_pool("a")
    closing = asyncio.ensure_future(world.supervisor.close(stop_engines=True))
    await settled()
    assert world.runtime.terminated == [world.runtime.only().launch.engine_id]
    world.runtime.end(world.runtime.only().launch.engine_id, ExitRecord(exit_code=0, source="shim"))
    assert await closing == 0


@pytest.mark.behaviour("CFG-3")
async def test_a_file_changes_only_the_pools_that_it_declared(world: World) -> None:
    from poolmgr.runtime import declared

    await world.facade.create_pool("mine", SPEC)
    await declared.reload(world.supervisor, world.facade.versions, {"b": SPEC, "c": SPEC}, (), False)
    change = await declared.reload(
        world.supervisor, world.facade.versions, {"b": PoolSpec(EngineName.COMMAND, command="/x")}, (), False
    )
    await settled()
    assert (change.pools_created, change.pools_updated, change.pools_deleted) == ((), ("b",), ("c",))
    assert [p.pool_id for p in world.facade.pools()] == ["b", "mine"]
    assert world.facade.pool("b").view.generation == 2 and world.facade.pool("b").view.origin is Origin.CONFIG


@pytest.mark.behaviour("CFG-3")
async def test_a_file_that_names_a_pool_of_the_api_or_one_that_cannot_run_changes_nothing(world: World) -> None:
    from poolmgr.runtime import declared

    await world.facade.create_pool("mine", SPEC)
    with pytest.raises(ClientError, match="mine"):
        await declared.reload(world.supervisor, world.facade.versions, {"mine": SPEC, "b": SPEC}, (), False)
    world.kind.refusal = ClientError(Reason.MODEL_NOT_FOUND, "no model")
    with pytest.raises(ClientError, match=r"pools\.b: no model"):
        await declared.reload(world.supervisor, world.facade.versions, {"b": SPEC}, (), False)
    assert [p.pool_id for p in world.facade.pools()] == ["mine"]


async def test_a_change_that_no_engine_notices_restarts_nothing(world: World) -> None:
    await world.ready_pool(slots=2)
    pid = world.runtime.only().pid
    await world.facade.update_pool(
        "a", lambda _: PoolSpec(EngineName.COMMAND, command="/bin/engine", labels={"team": "x"})
    )
    await settled()
    view = world.facade.pool("a").view
    assert view.generation == 2 and view.slots_total == 1 and world.runtime.only().pid == pid


@pytest.mark.behaviour("DRN-2")
async def test_a_change_of_the_command_starts_the_new_generation_and_ends_the_old_one(world: World) -> None:
    await world.ready_pool()
    old = world.runtime.only()
    await world.facade.update_pool("a", lambda _: PoolSpec(EngineName.COMMAND, command="/bin/new"))
    await settled()
    world.runtime.end(old.launch.engine_id, ExitRecord(exit_code=0, source="shim"))
    await world.clock.advance(0.1)
    assert state(world) is PoolState.READY and world.runtime.only().launch.argv[0] == "/bin/new"
    assert world.runtime.only().launch.engine_id != old.launch.engine_id
    assert old.launch.engine_id in world.runtime.removed


@pytest.mark.behaviour("PRE-2", "PRE-8")
async def test_an_engine_that_dies_before_its_start_is_reported_is_not_taken_for_alive(world: World) -> None:
    start = world.runtime.start

    async def start_and_die(launch: LaunchSpec, listener: EngineListener) -> ProcessIdentity:
        identity = await start(launch, listener)
        world.runtime.end(launch.engine_id, ExitRecord(exit_code=7, source="shim"))
        return identity

    world.runtime.start = start_and_die  # type: ignore[method-assign]
    await world.facade.create_pool("a", SPEC)
    pool = await world.facade.preload("a", 5.0)
    assert pool.view.state is PoolState.BACKOFF
    assert pool.view.last_error is not None and pool.view.last_error.exit == ExitRecord(exit_code=7, source="shim")


DEAD = {"state": RecoveryState.DEAD, "port": 0}


def found(engine_id: str, **fields: object) -> RecoveredEngine:
    return RecoveredEngine(engine_id, "a", 1, **fields)  # type: ignore[arg-type]


def alive(engine_id: str, spec: PoolSpec) -> RecoveredEngine:
    """An engine that runs and was launched for `spec`."""
    launch = LaunchSpec(engine_id, "a", 1, ("/bin/engine",), {}, 40000, mark=mark_of(spec), slots=spec.slots)
    identity = ProcessIdentity("boot", 77, 1)
    return found(engine_id, state=RecoveryState.ALIVE, port=40000, launch=launch, identity=identity)


async def successor(preload: bool = True) -> World:
    """A new daemon over the store of one that had a pool."""
    first = World()
    await first.supervisor.recover()
    await first.ready_pool(preload=preload)
    await first.close()
    return World(first.medium)


@pytest.mark.behaviour("PROC-7")
async def test_the_engine_that_lives_is_taken_over_wherever_its_directory_stands() -> None:
    world = await successor()
    world.runtime.found = [found("0aaa", **DEAD), alive("1bbb", SPEC)]
    await world.supervisor.recover()
    await world.clock.advance(0.1)
    assert world.facade.pool("a").view.pid == 77 and world.runtime.starts == []
    assert world.runtime.removed == ["0aaa"] and not world.supervisor.warnings
    await world.close()


@pytest.mark.behaviour("PROC-7")
async def test_of_two_engines_that_live_neither_is_chosen() -> None:
    world = await successor()
    world.runtime.found = [alive("0aaa", SPEC), alive("1bbb", SPEC)]
    await world.supervisor.recover()
    await world.clock.advance(1000)
    assert state(world) is PoolState.UNKNOWN and world.runtime.starts == []
    await world.close()


@pytest.mark.behaviour("PROC-7", "PRE-8")
async def test_what_a_dead_engine_left_running_is_ended_before_the_next_start() -> None:
    world = await successor()
    world.runtime.found = [found("0aaa", survivors=True, exit=ExitRecord(signal=9), **DEAD)]
    recovering = asyncio.ensure_future(world.supervisor.recover())
    await world.clock.advance(0.1)
    await recovering
    await world.clock.advance(0.1)
    assert state(world) is PoolState.READY and [s.engine_id for s in world.runtime.starts] == ["0aaa"]
    await world.close()


@pytest.mark.behaviour("PROC-7")
async def test_a_survivor_that_cannot_be_killed_keeps_its_pool_in_doubt_and_not_the_daemon_from_starting() -> None:
    world = await successor()
    world.runtime.kill_works = False
    world.runtime.found = [found("0aaa", survivors=True, exit=ExitRecord(signal=9), **DEAD)]
    recovering = asyncio.ensure_future(world.supervisor.recover())
    await world.clock.advance(20.0)
    await recovering
    assert state(world) is PoolState.UNKNOWN and world.runtime.starts == []
    await world.close()


@pytest.mark.behaviour("DRN-5")
async def test_a_creation_that_waits_for_a_deletion_makes_one_pool(world: World) -> None:
    await world.facade.create_pool("a", SPEC)
    deleting = asyncio.ensure_future(world.facade.delete("a", None))
    creating = [asyncio.ensure_future(world.facade.create_pool("a", SPEC)) for _ in range(3)]
    await settled(60)
    await asyncio.gather(deleting, *creating, return_exceptions=True)
    again = await asyncio.gather(*(world.facade.create_pool("a", SPEC) for _ in range(3)))
    assert len({id(pool) for pool in again}) == 1
    assert len(world.supervisor._edits) == 0  # a lock for every pool there ever was would be a leak


async def test_a_creation_whose_caller_goes_away_is_whole(world: World) -> None:
    creating = asyncio.ensure_future(world.facade.create_pool("a", SPEC))
    await asyncio.sleep(0)
    creating.cancel()
    await settled(40)
    assert [p.pool_id for p in world.facade.pools()] == [r.pool_id for r in await world.store.load()] == ["a"]


async def test_no_more_pools_than_the_limit_are_made_at_once(world: World) -> None:
    made = await asyncio.gather(*(world.facade.create_pool(f"p{i}", SPEC) for i in range(300)), return_exceptions=True)
    refused = [e for e in made if isinstance(e, ClientError)]
    assert len(world.facade.pools()) == 256 and len(refused) == 44
    assert {e.reason for e in refused} == {Reason.POOL_LIMIT}


async def test_two_changes_of_one_spec_are_both_made(world: World) -> None:
    await world.facade.create_pool("a", SPEC)
    await asyncio.gather(
        world.facade.update_pool("a", lambda spec: replace(spec, slots=8)),
        world.facade.update_pool("a", lambda spec: replace(spec, priority=5)),
    )
    spec = world.facade.pool("a").view.spec
    assert (spec.slots, spec.priority) == (8, 5)


@pytest.mark.behaviour("CFG-3")
async def test_a_declared_pool_that_is_still_being_deleted_refuses_the_whole_file(world: World) -> None:
    from poolmgr.runtime import declared

    await declared.reload(world.supervisor, world.facade.versions, {"a": SPEC}, (), False)
    await world.facade.preload("a", 0.0)
    await world.clock.advance(0.1)
    await world.facade.acquire("a", world.ask(ttl=300.0))
    await declared.reload(world.supervisor, world.facade.versions, {}, (), False)
    with pytest.raises(ClientError, match="still being deleted"):
        await declared.reload(world.supervisor, world.facade.versions, {"a": SPEC, "b": SPEC}, (), False)
    assert [p.pool_id for p in world.facade.pools()] == ["a"]


@pytest.mark.behaviour("CFG-3")
async def test_one_declared_pool_that_cannot_run_does_not_keep_the_others_from_running(world: World) -> None:
    from poolmgr.runtime import declared

    wanted = {"bad": PoolSpec(EngineName.VLLM), "good": replace(SPEC, preload=True)}
    await declared.apply_at_start(world.supervisor, world.facade.versions, wanted)
    await world.clock.advance(0.1)
    assert [p.pool_id for p in world.facade.pools()] == ["good"] and state(world, "good") is PoolState.READY
    assert "pools.bad" in world.facade.status().warnings[0]


@pytest.mark.behaviour("PRE-4")
async def test_an_answer_from_a_port_on_which_nobody_listens_is_not_readiness(world: World) -> None:
    world.runtime.owned = None
    await world.facade.create_pool("a", SPEC)
    await world.facade.preload("a", 0.0)
    await world.clock.advance(2.0)
    assert state(world) is PoolState.STARTING
    world.runtime.owned = True
    await world.clock.advance(1.0)
    assert state(world) is PoolState.READY


@pytest.mark.behaviour("DRN-5")
async def test_a_directory_that_cannot_be_removed_fails_the_deletion_and_the_next_try_removes_it(world: World) -> None:
    await world.ready_pool()
    await world.facade.stop("a", None, 0.0)
    world.runtime.end(world.runtime.only().launch.engine_id, ExitRecord(exit_code=0, source="shim"))
    remove = world.runtime.remove

    denied = True

    async def sometimes(engine_id: str) -> None:
        if denied:
            raise EnvironmentFault(Reason.STATE_DIR, "permission denied")
        await remove(engine_id)

    world.runtime.remove = sometimes  # type: ignore[method-assign]
    with pytest.raises(EnvironmentFault, match="permission denied"):
        await world.facade.delete("a", None)
    denied = False
    await world.facade.delete("a", None)
    assert world.facade.pools() == [] and len(world.runtime.removed) == 1


@pytest.mark.behaviour("DRN-3")
@pytest.mark.parametrize(
    ("launched", "stays"),
    [
        (replace(SPEC, env={"A": "old"}), False),  # stored, and the daemon died before it could act on it
        (replace(SPEC, slots=4), True),  # fewer slots now: a limit
        (replace(SPEC, labels={"team": "x"}), True),
        (replace(SPEC, command="/bin/old"), False),
    ],
)
async def test_an_engine_that_was_launched_for_another_spec_is_replaced_and_no_other(
    launched: PoolSpec, stays: bool
) -> None:
    world = await successor()
    world.runtime.found = [alive("1bbb", launched)]
    await world.supervisor.recover()
    await world.clock.advance(0.1)
    assert world.runtime.terminated == ([] if stays else ["1bbb"])
    await world.close()


def held_by(root: object) -> list[object]:
    """Everything that `root` keeps alive, less what belongs to modules."""
    found, ahead = {id(root): root}, [root]
    while ahead:
        new = [o for o in gc.get_referents(*ahead) if id(o) not in found and not isinstance(o, type)]
        found.update((id(o), o) for o in new)
        ahead = list({id(o): o for o in new}.values())
    return list(found.values())


async def test_a_kept_revision_counts_the_leases_and_holds_none(world):
    await world.ready_pool(slots=3)
    lease = await world.facade.acquire("a", world.ask())
    published = world.facade.pool("a")
    assert any(thing is lease for thing in held_by(world.supervisor.actor("a").pool)), "the search finds a lease"
    assert not any(isinstance(thing, Lease) for thing in held_by(published))
    assert world.facade.release(lease.lease_id, lease.token) is LeaseOutcome.RELEASED
    assert (published.view.slots_free, published.view.active_leases) == (2, 1), "as it was then"


@pytest.mark.behaviour("LEASE-5", "LEASE-1")
async def test_a_caller_that_is_cancelled_in_the_pass_in_which_a_slot_comes_free_keeps_none(world: World) -> None:
    await world.ready_pool()
    first = await world.facade.acquire("a", world.ask())
    assert isinstance(first, Lease)
    waiting = asyncio.ensure_future(world.facade.acquire("a", world.ask(wait=30.0)))
    await settled()
    waiting.cancel()  # its future is cancelled now, its handler runs later
    world.facade.release(first.lease_id, first.token)
    await settled()
    assert world.facade.pool("a").view.active_leases == 0


@pytest.mark.behaviour("PROC-8")
async def test_stop_engines_leaves_none_that_a_trial_or_an_edit_could_start_meanwhile(world: World) -> None:
    await world.ready_pool("serves")
    await world.facade.create_pool("parked", SPEC)
    world.kind.refusal = ClientError(Reason.EXECUTABLE_NOT_FOUND, "gone")
    await world.facade.preload("parked", 1.0)
    world.kind.refusal = None
    editing = asyncio.ensure_future(world.facade.update_pool("parked", lambda s: replace(s, command="/bin/new")))
    await asyncio.sleep(0)
    closing = asyncio.ensure_future(world.supervisor.close(stop_engines=True))
    await settled()
    world.runtime.end(world.runtime.only().launch.engine_id, ExitRecord(exit_code=0, source="shim"))
    await world.clock.advance(400.0)
    assert await closing == 0
    with pytest.raises(EnvironmentFault, match="shutting down"):
        await editing
    assert [s.pool_id for s in world.runtime.starts] == ["serves"]
    assert state(world, "parked") is PoolState.PARKED


async def test_what_could_not_be_put_to_rest_once_is_not_removed_later(world: World) -> None:
    await world.ready_pool()
    rest = world.runtime.rest

    short = True

    async def sometimes(engine_id: str) -> None:
        if short:
            raise EnvironmentFault(Reason.STATE_DIR, "no descriptors")
        await rest(engine_id)

    world.runtime.rest = sometimes  # type: ignore[method-assign]
    await world.facade.stop("a", None, 0.0)
    world.runtime.end(world.runtime.only().launch.engine_id, ExitRecord(exit_code=0, source="shim"))
    await settled()
    short = False
    assert await world.supervisor.close(stop_engines=True) == 0
    assert world.runtime.removed == [] and len(world.runtime.rested) == 1
    assert "no descriptors" in world.facade.status().warnings[0]


async def test_a_defect_in_an_edit_reaches_the_caller_and_the_daemon(world: World) -> None:
    def broken(spec: PoolSpec) -> PoolSpec:
        raise ValueError("a defect")

    await world.facade.create_pool("a", SPEC)
    with pytest.raises(ValueError, match="a defect"):
        await world.facade.update_pool("a", broken)
    assert [str(error) for error in world.failures] == ["a defect"]
    world.failures.clear()


@pytest.mark.behaviour("DRN-2")
async def test_a_restart_with_fewer_slots_is_remembered_as_one(world: World) -> None:
    await world.ready_pool(slots=4)
    await world.facade.update_pool("a", lambda spec: replace(spec, slots=2))
    engine = world.runtime.only()
    world.runtime.end(engine.launch.engine_id, ExitRecord(exit_code=1, source="shim"))
    await world.clock.advance(1.2)
    launched = world.runtime.only().launch.slots
    await world.facade.update_pool("a", lambda spec: replace(spec, slots=4))
    await settled()
    assert launched == 4 or world.runtime.terminated  # started with all four, or replaced by one that has them


@pytest.mark.behaviour("CFG-3")
async def test_a_reload_whose_caller_goes_away_is_whole(world: World) -> None:
    from poolmgr.runtime import declared

    reloading = asyncio.ensure_future(
        declared.reload(world.supervisor, world.facade.versions, {"a": SPEC, "b": SPEC, "c": SPEC}, (), False)
    )
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    reloading.cancel()
    await settled(100)
    assert [p.pool_id for p in world.facade.pools()] == ["a", "b", "c"]


@pytest.mark.behaviour("PROC-7")
async def test_an_engine_that_cannot_be_watched_keeps_its_pool_in_doubt_and_not_the_daemon_from_starting() -> None:
    world = await successor()

    def refuse(engine_id: str, listener: EngineListener) -> NoReturn:
        raise EnvironmentFault(Reason.STATE_DIR, "too many open files")

    world.runtime.attach = refuse  # type: ignore[method-assign]
    world.runtime.found = [alive("1bbb", SPEC)]
    await world.supervisor.recover()
    assert state(world) is PoolState.UNKNOWN and world.ports.reserved == {40000}
    await world.close()
