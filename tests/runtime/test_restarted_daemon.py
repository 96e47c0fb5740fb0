"""What a daemon that was killed leaves to the next one: leases, intents, counts, and half a reload."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from poolmgr.core.state import ReloadPhase
from poolmgr.errors import ClientError, EnvironmentFault, Reason
from poolmgr.model.engine import ExitRecord, ProbeOutcome, ProbeResult, RecoveryState
from poolmgr.model.lease import LeaseOutcome, Refusal, RefusalReason
from poolmgr.model.pool import BreakerState, EngineName, Origin, PoolSpec, PoolState, ReloadStrategy, RestartMode
from poolmgr.testing.fakes import FakeClock, ScriptedProbe, settled
from tests.runtime.stores import SlowStore
from tests.runtime.world import World

S, P = PoolState, ReloadPhase
MAKE, BREAK = ReloadStrategy.MAKE_BEFORE_BREAK, ReloadStrategy.BREAK_BEFORE_MAKE
CRASH, EXIT_0 = ExitRecord(signal=11, source="shim"), ExitRecord(exit_code=0, source="shim")
NEW = PoolSpec(EngineName.COMMAND, command="/bin/new", slots=2)
LOADING = ProbeResult(ProbeOutcome.LOADING, "loading")


def another_boot() -> FakeClock:
    return FakeClock(now=50.0, wall=1.9e9, boot_id="boot 2")


async def a_world(**changes) -> World:
    world = await World(**changes).recovered()
    await world.ready_pool(slots=2)
    return world


async def crash_until(world, state):
    while world.pool().state is not state:
        await world.clock.advance(max(0.0, (world.pool().resume_at or 0.0) - world.clock.now()))
        for engine in world.running():
            world.end(engine, CRASH)
        await settled()


# Leases.


@pytest.mark.behaviour("LEASE-1", "LEASE-3", "LEASE-4")
async def test_a_lease_outlives_the_daemon_for_one_full_ttl_and_keeps_its_slot():
    first = await a_world()
    lease = await first.lease(ttl=15.0, request_id="r")
    await first.clock.advance(14.0)
    world = await first.successor()
    assert world.pool().state is S.READY
    assert [x.lease_id for _, x in world.facade.leases("a")] == [lease.lease_id]
    again = await world.lease(request_id="r")
    assert (again.lease_id, again.fencing_token) == (lease.lease_id, lease.fencing_token)
    other = await world.lease()
    assert other.fencing_token > lease.fencing_token
    refused = await world.facade.acquire("a", world.ask())
    assert isinstance(refused, Refusal)
    assert refused.reason is RefusalReason.POOL_FULL
    await world.clock.advance(14.9)
    assert world.facade.renew(lease.lease_id, lease.token)[0] is LeaseOutcome.RENEWED
    await world.clock.advance(16.1)
    assert world.facade.leases("a") == []
    await world.close()


@pytest.mark.behaviour("LEASE-6", "LEASE-4")
async def test_a_lease_that_ended_before_is_known_to_have_ended():
    first = await a_world()
    lease = await first.lease()
    first.facade.release(lease.lease_id, lease.token)
    world = await first.successor()
    assert world.facade.release(lease.lease_id, lease.token) is LeaseOutcome.ALREADY_RELEASED
    assert world.facade.pool("a").view.slots_free == 2
    await world.close()


@pytest.mark.behaviour("LEASE-3")
async def test_another_boot_voids_every_lease():
    first = await a_world()
    lease = await first.lease(ttl=300.0)
    world = await first.successor(clock=another_boot())
    await world.clock.advance(1.0)
    assert world.facade.pool("a").view.slots_free == 2
    assert world.facade.renew(lease.lease_id, lease.token)[0] is not LeaseOutcome.RENEWED
    assert (await world.lease()).fencing_token > lease.fencing_token
    await world.close()


@pytest.mark.behaviour("LEASE-3")
async def test_the_leases_of_an_engine_that_died_while_no_daemon_ran_are_over():
    first = await a_world()
    lease = await first.lease(ttl=300.0)
    world = await first.successor(dead={first.runtime.only().launch.engine_id: CRASH})
    assert world.facade.renew(lease.lease_id, lease.token)[0] is LeaseOutcome.EXPIRED
    await world.clock.advance(5.0)
    assert world.facade.pool("a").view.slots_free == 2
    await world.close()


@pytest.mark.behaviour("LEASE-1", "LEASE-3")
async def test_where_the_record_of_leases_is_lost_no_slot_is_given_until_none_can_be_out():
    first = await a_world()
    await first.lease(ttl=300.0)
    first.medium.leases = None
    world = await first.successor()
    assert world.pool().state is S.READY
    waiting = asyncio.ensure_future(world.facade.acquire("a", world.ask(wait=1000.0)))
    refused = await world.facade.acquire("a", world.ask())
    assert isinstance(refused, Refusal)
    assert refused.retry_after is not None
    assert 300.0 <= refused.retry_after <= 400.0
    assert world.facade.pool("a").view.slots_free == 0
    await world.clock.advance(300.0)
    assert not waiting.done()
    await world.clock.advance(refused.retry_after - 300.0 + 0.1)
    assert (await waiting).fencing_token
    await world.close()


@pytest.mark.behaviour("LEASE-3")
async def test_a_lost_record_holds_nothing_back_where_no_engine_ran():
    first = await a_world()
    first.medium.leases = None
    world = await first.successor(dead={first.runtime.only().launch.engine_id: CRASH})
    await world.clock.advance(5.0)
    await world.lease()
    await world.close()


@pytest.mark.behaviour("LEASE-2")
async def test_fencing_numbers_rise_over_every_kind_of_end():
    world, last = await a_world(), 0
    for clock in (None, another_boot(), None):
        lease = await world.lease(ttl=300.0)
        assert lease.fencing_token > last
        last = lease.fencing_token
        world = await world.successor(clock=clock)
        await world.clock.advance(5.0)
        world.facade.release(lease.lease_id, lease.token)
    assert (await world.lease()).fencing_token > last
    await world.close()


# RST-8: what was decided.


@pytest.mark.behaviour("RST-8", "RST-1")
async def test_a_backoff_goes_on_where_it_was_and_its_count_with_it():
    first = await a_world()
    await crash_until(first, S.BACKOFF)
    await first.clock.advance(1.5)
    first.end(first.runtime.only(), CRASH)
    await settled()
    before = first.pool()
    assert before.state is S.BACKOFF
    world = await first.successor()
    after = world.pool()
    assert (after.state, after.resume_at, after.restart_count) == (S.BACKOFF, before.resume_at, before.restart_count)
    assert after.policy == before.policy
    assert world.runtime.starts == []
    await world.clock.advance(before.resume_at - world.clock.now() - 0.01)
    assert world.runtime.starts == []
    await world.clock.advance(0.1)
    assert len(world.runtime.starts) == 1
    await world.close()


@pytest.mark.behaviour("RST-8", "RST-2")
async def test_an_open_breaker_stays_open_for_the_rest_of_its_time_also_in_another_boot():
    for clock in (None, another_boot()):
        first = await a_world()
        await crash_until(first, S.PARKED)
        left = first.pool().resume_at - first.clock.now()
        world = await first.successor(clock=clock)
        assert (world.pool().state, world.facade.pool("a").view.breaker_state) == (S.PARKED, BreakerState.OPEN)
        with pytest.raises(ClientError, match="breaker"):
            await world.facade.preload("a", 0.0)
        await world.clock.advance(left - 1.0)
        assert world.runtime.starts == []
        await world.clock.advance(1.1)
        assert len(world.runtime.starts) == 1
        assert world.facade.pool("a").view.breaker_state is BreakerState.HALF_OPEN
        await world.close()


@pytest.mark.behaviour("RST-8", "RST-7")
async def test_what_cannot_start_stays_parked_until_somebody_changes_it():
    first = await World().recovered()
    first.kind.refusal = ClientError(Reason.EXECUTABLE_NOT_FOUND, "gone")
    await first.supervisor.create("a", PoolSpec(EngineName.COMMAND, command="/bin/engine"), Origin.API, gates=False)
    await first.facade.preload("a", 1.0)
    assert first.pool().state is S.PARKED
    await settled()
    world = await first.successor()
    await world.clock.advance(1e5)
    assert (world.pool().state, world.runtime.starts) == (S.PARKED, [])
    assert world.facade.pool("a").view.last_error.reason == "EXECUTABLE_NOT_FOUND"
    await world.facade.reset_breaker("a")
    await world.clock.advance(1.0)
    assert world.pool().state is S.READY
    await world.close()


@pytest.mark.behaviour("RST-8")
async def test_a_pool_that_was_stopped_stays_stopped_also_when_its_spec_says_preload():
    first = await World().recovered()
    await first.ready_pool(preload=True)
    await first.facade.stop("a", 0.0, 0.0)
    await settled()
    world = await first.successor()
    await world.clock.advance(100.0)
    assert (world.pool().state, world.runtime.starts) == (S.STOPPED, [])
    await world.close()


@pytest.mark.behaviour("RST-8")
async def test_a_pool_that_was_preloaded_is_started_again_also_when_its_spec_does_not_say_so():
    first = await a_world()
    world = await first.successor(clock=another_boot())
    await world.clock.advance(1.0)
    assert (world.pool().state, world.pool().restart_count) == (S.READY, 0)
    await world.close()


@pytest.mark.behaviour("RST-8", "PROC-3")
async def test_a_stop_that_was_stored_and_not_carried_out_is_carried_out():
    first = await a_world()
    await first.lease(ttl=300.0)
    put = first.store.put_state

    async def put_and_die(pool_id, state):
        await put(pool_id, state)
        await asyncio.Event().wait()

    first.store.put_state = put_and_die
    stopping = asyncio.ensure_future(first.facade.stop("a", None, 0.0))
    await settled()
    stopping.cancel()
    assert (first.memo().wanted, first.runtime.terminated) == (False, [])
    world = await first.successor()
    engine = world.runtime.only()
    assert world.runtime.terminated == [engine.launch.engine_id]
    await world.obey()
    assert (world.pool().state, world.pool().restart_count) == (S.STOPPED, 0)
    await world.close()


@pytest.mark.behaviour("DRN-1", "RST-8", "LEASE-3")
async def test_a_drain_goes_on_with_its_leases_to_its_deadline():
    first = await a_world()
    lease = await first.lease(ttl=60.0)
    await first.facade.drain("a", 100.0, 0.0)
    await first.clock.advance(40.0)
    world = await first.successor()
    assert world.pool().state is S.DRAINING
    assert world.runtime.terminated == []
    await world.clock.advance(30.0)
    world.facade.renew(lease.lease_id, lease.token)
    await world.clock.advance(31.0)
    assert world.runtime.terminated == [world.runtime.only().launch.engine_id]
    await world.obey()
    assert world.pool().state is S.STOPPED
    await world.close()


@pytest.mark.behaviour("DRN-5", "RST-8")
async def test_a_deletion_goes_on():
    first = await a_world()
    lease = await first.lease(ttl=60.0)
    deleting = asyncio.ensure_future(first.facade.delete("a", None))
    await settled()
    deleting.cancel()
    world = await first.successor()
    assert world.pool().state is S.DRAINING
    world.facade.release(lease.lease_id, lease.token)
    await settled()
    await world.obey()
    assert (world.facade.pools(), world.medium.pools, world.ports.reserved) == ([], {}, set())
    assert len(world.runtime.removed) == 1
    await world.close()


# PROC-6: what ended while no daemon ran.


@pytest.mark.behaviour("PROC-6", "RST-8")
async def test_an_engine_that_died_while_no_daemon_ran_is_counted_once_over_any_number_of_daemons():
    first = await a_world()
    engine = first.runtime.only()
    second = await first.successor(dead={engine.launch.engine_id: CRASH})
    assert (second.pool().state, second.pool().restart_count) == (S.BACKOFF, 1)
    assert second.facade.pool("a").view.last_error.reason == "SIGNAL"
    assert "while no daemon ran" in second.facade.pool("a").view.last_error.message
    second.runtime.engines[engine.launch.engine_id] = engine
    third = await second.successor(dead={engine.launch.engine_id: CRASH})
    assert (third.pool().state, third.pool().restart_count) == (S.BACKOFF, 1)
    assert third.pool().resume_at == second.pool().resume_at
    await third.clock.advance(5.0)
    assert third.runtime.starts[0].engine_id == engine.launch.engine_id
    await third.close()


@pytest.mark.behaviour("PROC-6", "RST-8")
async def test_an_engine_whose_crash_was_counted_before_the_daemon_died_is_not_counted_again():
    first = await a_world()
    engine = first.runtime.only()
    first.end(engine, CRASH)
    await settled()
    world = await first.successor()
    assert (world.pool().state, world.pool().restart_count) == (S.BACKOFF, 1)
    await world.close()


@pytest.mark.behaviour("PROC-6", "LIVE-3")
async def test_an_engine_that_ended_by_itself_while_no_daemon_ran_is_not_started_again():
    first = await a_world()
    world = await first.successor(dead={first.runtime.only().launch.engine_id: EXIT_0})
    await world.clock.advance(100.0)
    assert (world.pool().state, world.pool().restart_count, world.runtime.starts) == (S.STOPPED, 0, [])
    await world.close()


@pytest.mark.behaviour("PROC-6", "RST-8")
@pytest.mark.parametrize("record", [ExitRecord(), CRASH, EXIT_0], ids=["unknown", "signal", "exit 0"])
async def test_what_ended_with_its_host_counts_for_nothing_and_is_started_again(record):
    """At the end of a host every process is asked to end: that says nothing of the engine."""
    first = await a_world()
    engine_id = first.runtime.only().launch.engine_id
    world = await first.successor(dead={engine_id: record}, clock=another_boot())
    await world.clock.advance(1.0)
    assert (world.pool().state, world.pool().restart_count) == (S.READY, 0)
    await world.close()


@pytest.mark.behaviour("RST-8")
@pytest.mark.parametrize("record", [EXIT_0, ExitRecord(signal=15, source="shim")], ids=["exit 0", "signal"])
async def test_an_engine_that_an_earlier_daemon_had_found_unfit_and_ended_is_started_again(record):
    first = await a_world()
    first.probe.result = ProbeResult(ProbeOutcome.FAILED, "connection refused")
    await first.clock.advance(17.0)
    assert first.pool().state is S.STOPPING
    await settled()
    world = await first.successor(dead={first.runtime.only().launch.engine_id: record})
    await world.clock.advance(3.0)
    assert (world.pool().state, world.pool().restart_count) == (S.READY, 1)
    await world.close()


@pytest.mark.behaviour("PROC-6")
async def test_what_was_in_doubt_is_let_go_once_an_operator_has_ended_it():
    first = await a_world()
    engine = first.runtime.only()
    await first.die()
    world = World(first.medium, clock=FakeClock(first.clock.now(), first.clock.wall()))
    doubtful = first._as_found(engine, {}, world.clock)
    world.runtime.found = [replace(doubtful, state=RecoveryState.IN_DOUBT, detail="start time differs")]
    await world.supervisor.recover()
    for event in (world.facade.stop("a", None, 0.0), world.facade.preload("a", 0.0)):
        with pytest.raises(ClientError, match="UNKNOWN"):
            await event
    assert world.runtime.terminated == []
    world.runtime.found = [replace(doubtful, state=RecoveryState.DEAD, exit=CRASH)]
    await world.facade.preload("a", 0.0)
    await world.clock.advance(1.0)
    assert (world.pool().state, world.pool().restart_count) == (S.READY, 0)
    assert len(world.ports.reserved) == 1
    await world.close()


# DRN-3: a daemon that dies in a reload.


class HeldProbe(ScriptedProbe):
    """Answers synthetic requests when it is let go."""

    def __init__(self):
        super().__init__()
        self.go = asyncio.Event()

    async def __call__(self, target):
        if target.kind == "SYNTHETIC":
            await self.go.wait()
        return await super().__call__(target)


async def reloading(phase, strategy=MAKE):
    """A world whose pool is in that phase of a reload to its second generation, with one lease on the old engine."""
    world = await a_world(wrap=SlowStore, probe=HeldProbe())
    lease = await world.lease(ttl=300.0) if strategy is MAKE or phase is P.DRAINING else None
    if phase is P.STARTING:
        world.probe.result = LOADING
    await world.facade.reload_pool("a", NEW, strategy, None, 0.0)
    await settled()
    if strategy is BREAK and phase is not P.DRAINING:
        await world.obey()
    if phase is P.COMMITTING:
        world.store.hold()
    if phase in (P.COMMITTING, P.RETIRING):
        world.probe.go.set()
    await settled()
    assert world.pool().reload is not None, "too far"
    assert world.pool().reload.phase is phase
    return world, lease


@pytest.mark.behaviour("DRN-3", "PROC-7", "LEASE-4")
@pytest.mark.parametrize("phase", [P.STARTING, P.VERIFYING, P.COMMITTING])
async def test_a_daemon_that_dies_before_the_commit_rolls_back_and_the_old_engine_never_stopped_serving(phase):
    first, lease = await reloading(phase)
    old, new = first.running()
    world = await first.successor()
    await world.clock.advance(1.0)
    assert [e.launch.engine_id for e in world.running()] == [old.launch.engine_id]
    assert world.runtime.removed == [new.launch.engine_id]
    view = world.facade.pool("a").view
    assert (view.generation, view.state, view.pid, view.restart_count) == (1, S.READY, old.pid, 0)
    assert world.facade.renew(lease.lease_id, lease.token)[0] is LeaseOutcome.RENEWED
    assert world.runtime.starts == []
    await world.facade.update_pool("a", lambda spec: NEW)
    assert world.pool().reload.generation == 3, "a number is never used for two specs"
    await world.close()


@pytest.mark.behaviour("DRN-3", "PROC-7", "LEASE-3")
async def test_a_daemon_that_dies_after_the_commit_rolls_forward_and_leases_on_both_engines_go_on():
    first, old_lease = await reloading(P.RETIRING)
    new_lease = await first.lease(ttl=300.0)
    old, new = first.running()
    world = await first.successor()
    await world.clock.advance(1.0)
    view = world.facade.pool("a").view
    assert (view.generation, view.state, view.pid, view.active_leases) == (2, S.READY, new.pid, 2)
    assert isinstance(await world.facade.acquire("a", world.ask()), Refusal), "slots are counted over both"
    for lease in (old_lease, new_lease):
        assert world.facade.renew(lease.lease_id, lease.token)[0] is LeaseOutcome.RENEWED
    world.facade.release(old_lease.lease_id, old_lease.token)
    await settled()
    assert world.runtime.terminated == [old.launch.engine_id]
    await world.obey()
    assert (world.pool().reload, world.runtime.removed) == (None, [old.launch.engine_id])
    assert world.facade.renew(new_lease.lease_id, new_lease.token)[0] is LeaseOutcome.RENEWED
    await world.close()


@pytest.mark.behaviour("DRN-3")
@pytest.mark.parametrize("phase", [P.RETIRING, P.VERIFYING])
@pytest.mark.parametrize("which", ["old", "new", "both"])
async def test_engines_that_die_with_the_daemon_leave_the_committed_generation_running(phase, which):
    first, _ = await reloading(phase)
    old, new = first.running()
    ids = {"old": [old], "new": [new], "both": [old, new]}[which]
    world = await first.successor(dead={e.launch.engine_id: CRASH for e in ids})
    await world.clock.advance(2.0)
    for _ in range(3):
        await world.obey()
        await world.clock.advance(301.0)
    generation = 2 if phase is P.RETIRING else 1
    assert (world.pool().state, world.pool().generation, world.pool().reload) == (S.READY, generation, None)
    (left,) = world.running()
    assert left.launch.generation == generation
    await world.close()


@pytest.mark.behaviour("DRN-3")
@pytest.mark.parametrize("phase", [P.DRAINING, P.STARTING, P.VERIFYING, P.COMMITTING])
async def test_where_the_old_engine_had_to_go_first_it_comes_back(phase):
    first, lease = await reloading(phase, BREAK)
    world = await first.successor()
    await world.clock.advance(5.0)
    assert (world.pool().state, world.pool().generation, world.pool().restart_count) == (S.READY, 1, 0)
    (left,) = world.running()
    assert left.launch.argv[0] == "/bin/engine"
    if lease is not None:
        assert world.facade.renew(lease.lease_id, lease.token)[0] is LeaseOutcome.RENEWED
    await world.close()


@pytest.mark.behaviour("DRN-3", "RST-8")
@pytest.mark.parametrize("record", [EXIT_0, ExitRecord(signal=15, source="shim")], ids=["exit 0", "signal"])
async def test_an_old_engine_that_obeyed_a_reload_while_no_daemon_ran_comes_back_and_counts_for_nothing(record):
    first = await a_world()
    await first.facade.reload_pool("a", NEW, BREAK, None, 0.0)
    await settled()
    engine = first.runtime.only()
    assert first.runtime.terminated == [engine.launch.engine_id]
    world = await first.successor(dead={engine.launch.engine_id: record})
    await world.clock.advance(5.0)
    assert (world.pool().state, world.pool().generation, world.pool().restart_count) == (S.READY, 1, 0)
    await world.close()


@pytest.mark.behaviour("DRN-3", "PROC-7")
async def test_an_engine_of_a_reload_that_cannot_be_watched_puts_its_pool_in_doubt_and_not_the_daemon():
    first, _ = await reloading(P.VERIFYING)
    new = first.running()[1]
    await first.die()
    world = World(first.medium, clock=FakeClock(first.clock.now(), first.clock.wall()))
    world.runtime.found = [first._as_found(e, {}, world.clock) for e in first.running()]
    attach = world.runtime.attach

    def sometimes(engine_id, listener):
        if engine_id == new.launch.engine_id:
            raise EnvironmentFault(Reason.STATE_DIR, "too many open files")
        attach(engine_id, listener)

    world.runtime.attach = sometimes
    await world.supervisor.recover()
    await world.clock.advance(100.0)
    assert (world.pool().state, world.runtime.starts, world.runtime.terminated) == (S.UNKNOWN, [], [])
    await world.close()


@pytest.mark.behaviour("PROC-7", "DRN-2")
async def test_what_a_pool_is_rebuilt_from_is_its_spec_as_it_was_asked_for():
    first, _ = await reloading(P.RETIRING)
    new = first.running()[1]
    assert new.launch.record.spec == NEW
    assert new.launch.record.spec.restart is RestartMode.ON_FAILURE
    await first.close()


@pytest.mark.behaviour("PROC-7", "LEASE-3")
async def test_a_pool_that_the_store_has_lost_is_rebuilt_from_its_engine_and_goes_on():
    first = await a_world()
    engine = first.runtime.only()
    first.medium.pools.clear()
    first.medium.leases = None
    world = await first.successor()
    await world.clock.advance(1.0)
    view = world.facade.pool("a").view
    assert (view.state, view.pid, view.restart_count, view.slots_free) == (S.READY, engine.pid, 0, 0)
    assert "rebuilt" in " ".join(world.facade.status().warnings)
    assert world.runtime.terminated == []
    await world.close()


@pytest.mark.behaviour("PROC-6", "PROC-7")
@pytest.mark.parametrize("state", ["", "not JSON"])
async def test_a_running_engine_whose_pool_remembers_nothing_is_taken_over_and_goes_on(state):
    """As after an upgrade from a version that remembered nothing."""
    first = await a_world()
    engine = first.runtime.only()
    await settled()
    first.medium.pools["a"] = replace(first.medium.pools["a"], state=state)
    world = await first.successor()
    await world.clock.advance(10.0)
    view = world.facade.pool("a").view
    assert (view.state, view.pid) == (S.READY, engine.pid)
    await world.close()


@pytest.mark.behaviour("PROC-8", "RST-8")
async def test_what_was_stopped_with_the_daemon_is_started_with_the_next_one():
    first = await a_world()
    closing = asyncio.ensure_future(first.supervisor.close(stop_engines=True))
    await settled()
    await first.obey()
    await first.clock.advance(1.0)
    assert await closing == 0
    world = await first.successor()
    await world.clock.advance(1.0)
    assert world.pool().state is S.READY, "nobody asked for the pool to stop"
    await world.close()


@pytest.mark.behaviour("RST-1", "RST-2", "RST-8")
@pytest.mark.parametrize("state", [S.BACKOFF, S.PARKED])
async def test_a_daemon_that_ends_with_its_engines_leaves_the_next_one_the_rest_of_a_wait(state):
    first = await a_world()
    await crash_until(first, state)
    left = first.pool().resume_at - first.clock.now()
    starts = len(first.runtime.starts)
    assert await first.supervisor.close(stop_engines=True) == 0
    await first.clock.advance(0.9 * left)
    assert len(first.runtime.starts) == starts
    world = await first.successor()
    assert world.pool().state is state
    await world.clock.advance(0.05 * left)
    assert world.runtime.starts == []
    await world.clock.advance(0.06 * left)
    assert len(world.runtime.starts) == 1
    await world.close()


@pytest.mark.behaviour("RST-8")
async def test_while_a_daemon_ends_with_its_engines_no_wait_ends_in_a_start():
    first = await a_world()
    await first.ready_pool("b")
    other = next(e for e in first.running() if e.launch.pool_id == "b")
    first.end(next(e for e in first.running() if e.launch.pool_id == "a"), CRASH)
    await settled()
    assert first.pool("a").state is S.BACKOFF
    starts = len(first.runtime.starts)
    closing = asyncio.ensure_future(first.supervisor.close(stop_engines=True))
    await first.clock.advance(first.pool("a").resume_at - first.clock.now() + 1.0)
    assert len(first.runtime.starts) == starts
    first.end(other, ExitRecord(exit_code=0, source="shim"))
    assert await closing == 0


@pytest.mark.behaviour("LEASE-5", "DRN-1")
async def test_where_no_slot_is_given_until_unknown_leases_are_over_a_pool_that_ends_still_refuses():
    first = await a_world()
    await first.lease()
    first.medium.leases = None
    world = await first.successor()
    waiting = asyncio.ensure_future(world.facade.acquire("a", world.ask(wait=20.0)))
    await settled()
    assert world.pool().held_until is not None and not waiting.done()
    await world.facade.drain("a", 60.0, 0.0)
    refused = await asyncio.wait_for(waiting, 1.0)
    assert isinstance(refused, Refusal) and refused.reason is RefusalReason.POOL_DRAINING
    await world.close()
