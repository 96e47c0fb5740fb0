"""What must hold of any pool after any step, and of the world around it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from poolmgr.core import view as view_module
from poolmgr.core.effects import LeaseAnswered, Note, NoteName, RecordLeases
from poolmgr.core.messages import ChangeSpec, Event, LeasesKept, Probed
from poolmgr.core.settle import next_deadline
from poolmgr.core.state import Pool, ReloadPhase, live_leases
from poolmgr.model.lease import Lease
from poolmgr.model.pool import BreakerState, PoolState
from tests.core.helpers import OK, both, notes

if TYPE_CHECKING:  # the two need each other
    from poolmgr.core.memo import Memo
    from tests.core.world import Engine, World

S = PoolState
NO_PROCESS = frozenset({S.PENDING, S.STOPPED, S.BACKOFF, S.PARKED})
SERVING = frozenset({S.READY, S.DRAINING})
BEFORE_COMMIT = frozenset(set(ReloadPhase) - {ReloadPhase.RETIRING})


def of_the_step(world: World, before: Pool, event: Event, effects: list[Any]) -> None:
    pool = world.pool
    due = next_deadline(pool)
    assert due is None or due > world.now, f"left undone: {due - world.now} s ago"
    leases_are_within_their_limit(world, before, event, effects)
    if pool.state is S.READY and before.state is S.STARTING and before.beside is None:
        assert isinstance(event, Probed)
        assert event.result is OK
        assert event.owned is True
        assert event.serial == before.probes, "ready by an answer to another probe"
    if pool.state is not before.state and before.beside is None and pool.beside is None:
        moved = [e for e in effects if isinstance(e, Note) and e.name is NoteName.POOL_TRANSITION]
        assert moved, "a transition without an event"
        assert moved[-1].fields["new_state"] == pool.state
    reloads_lead_where_they_say(before, pool, event, effects)
    looks(pool)


def leases_are_within_their_limit(world: World, before: Pool, event: Event, effects: list[Any]) -> None:
    pool, known = world.pool, {lease.lease_id for lease in live_leases(before)}
    told = [e.answer.result for e in effects if isinstance(e, LeaseAnswered)]
    granted = [r for r in told if isinstance(r, Lease) and r.lease_id not in known]
    live = sum(1 for _ in live_leases(pool))
    if not isinstance(event, LeasesKept):
        assert live <= max(pool.leases.slots, len(known)), "more leases than slots"
    assert pool.leases.elsewhere == (len(pool.beside.leases.live) if pool.beside else 0)
    for lease in granted:
        lost = [
            name for name, (held, _) in world.out.items() if name not in world.kept.leases and unexpired(world, held)
        ]
        assert live + len(lost) <= pool.leases.slots, "granted above the limit"
        assert pool.engine is not None, "granted without an engine"
        assert lease.endpoint == f"127.0.0.1:{pool.engine.port}", "granted on the engine of another generation"
    recorded = [lease.lease_id for e in effects if isinstance(e, RecordLeases) for lease in e.granted]
    assert recorded == [lease.lease_id for lease in granted], "told of other grants than were recorded"


def unexpired(world: World, lease: Lease) -> bool:
    return lease.expires > world.now


def reloads_lead_where_they_say(before: Pool, pool: Pool, event: Event, effects: list[Any]) -> None:
    committed, finished = notes(effects, NoteName.RELOAD_COMMITTED), notes(effects, NoteName.RELOAD_FINISHED)
    if pool.generation != before.generation and not isinstance(event, ChangeSpec):
        assert committed, "another generation without a commit"
    for note in finished:
        if note.fields["outcome"] in ("rolled_back", "aborted", "cancelled"):
            assert pool.generation == before.generation
            assert pool.state is not S.STOPPED or not pool.wanted or pool.deleting, "the old generation is given up"
        if note.fields["outcome"] == "aborted":
            assert pool.state is S.READY


def looks(pool: Pool) -> None:
    """A watcher is shown the pool as it is."""
    shown = view_module.view(view_module.fingerprint(pool), 0, 0.0)
    run, held = pool.engine, pool.leases
    for name in ("pool_id", "spec", "origin", "generation", "create_time", "restart_count", "last_error"):
        assert getattr(shown, name) == getattr(pool, name), name
    leased = sum(1 for _ in live_leases(pool))
    assert (shown.slots_total, shown.active_leases, shown.waiting) == (held.slots, leased, len(held.waiters))
    gives = pool.state is S.READY and not pool.deleting and pool.held_until is None
    assert shown.slots_free == (max(0, held.slots - leased) if gives else 0)
    assert shown.ready == (pool.state is S.READY and not pool.deleting), "shown ready before its time"
    assert shown.breaker_state == pool.policy.breaker_state
    assert shown.reload_phase == (pool.reload.phase if pool.reload else "")
    if run is not None or pool.beside is None:
        assert (shown.state, shown.state_reason, shown.backoff_until) == (pool.state, pool.reason, pool.resume_at)
        assert shown.live == (run is not None and run.main_alive), "a death is not seen"
        assert shown.pid == (run.pid if run else 0)
        assert shown.ready_time == (run.ready_at if run else None)


def of_the_world(world: World) -> None:
    pool = world.pool
    known = {p.engine.engine_id for p in both(pool) if p.engine is not None}
    assert {e.engine_id for e in world.engines.values()} == known or world.recovering, "an engine of nobody's"
    for generation, count in Counter(e.generation for e in world.engines.values()).items():
        assert count == 1, f"{count} engines of generation {generation}"
        assert generation not in world.starting, f"generation {generation} is started while it runs"
    assert (pool.beside is None) or pool.reload is not None, "an engine beside, and no reload"
    most = 1 if pool.reload is None and not world.recovering else 2
    assert len(world.engines) + len(world.starting) <= most, "a second engine, and no reload"
    for each in both(pool):
        of_one_version(world, each)
    of_a_reload(world, pool)
    if not world.recovering:
        recorded, live = set(world.kept.leases), {lease.lease_id for lease in live_leases(pool)}
        assert recorded == live, f"recorded {recorded - live} too much, {live - recorded} too little"
    if world.forgets:
        assert pool.deleting


def of_one_version(world: World, pool: Pool) -> None:
    engine = world.engines.get(pool.engine.engine_id) if pool.engine else None
    starting = world.starting.get(pool.generation) or (pool is world.pool and next(iter(world.starting.values()), None))
    if pool.state is S.READY:
        assert engine is not None
        assert not engine.told, "ready with an engine known to be dead"
        assert engine.args == pool.spec.args, "ready with the engine of another spec"
        assert pool.leases.slots <= engine.slots, "more slots than the engine was started with"
    if pool.state in NO_PROCESS:
        assert pool.engine is None, f"{pool.state} with a process"
    if pool.state is S.PROVISIONING:
        assert starting, "waits for a start that nobody makes"
    if pool.state in (S.STARTING, S.READY, S.DRAINING):
        assert engine is not None
    if pool.state is S.STOPPING:
        assert engine is not None or starting, "waits for the end of nothing"
    adopted = pool.state is S.STARTING and pool.engine is not None and pool.engine.adopted
    assert not pool.leases.live or pool.state in SERVING or adopted, "a lease on an engine that does not serve"
    for lease in pool.leases.live.values():
        assert engine is not None and lease.endpoint == engine.endpoint, "a lease on another engine than its own"


def of_a_reload(world: World, pool: Pool) -> None:
    reload, beside = pool.reload, pool.beside
    if reload is None:
        return
    if reload.phase in BEFORE_COMMIT:
        kept = beside is None or not beside.leases.live or reload.comeback
        assert kept, "a lease on an engine before its commit"
        assert pool.generation != reload.generation
    else:
        assert pool.generation == reload.generation
        assert beside is not None
        assert beside.state is not S.READY or world.recovering, "it does not retire"
    if reload.phase in (ReloadPhase.VERIFYING, ReloadPhase.STARTING):
        assert beside is not None
    assert beside is None or not beside.leases.waiters


def of_kept_leases(world: World, memo: Memo, recorded: dict[str, Engine]) -> None:
    """A new daemon loses no lease that was recorded and whose engine goes on."""
    live = {lease.lease_id for lease in live_leases(world.pool)}
    for lease_id, engine in recorded.items():
        goes_on = memo.wanted or memo.deleting or memo.drain_until is not None or memo.retiring == engine.engine_id
        if engine.ended is None and goes_on:
            assert lease_id in live, "a lease is lost with the daemon"


def of_memory(world: World, memo: Memo, empty: bool) -> None:
    """What an earlier daemon knew, a new one knows. `empty`: no engine was found."""
    pool, own = world.pool, world.engine
    assert pool.deleting == memo.deleting
    assert pool.restart_count >= memo.restart_count, "restarts are forgotten"
    assert pool.newest >= memo.newest, "a generation's number is given again"
    if memo.policy.breaker_state is not BreakerState.CLOSED:
        assert pool.policy.breaker_state is not BreakerState.CLOSED, "the breaker is forgotten"
    if memo.wanted and own is not None and own.ended is None:
        assert pool.state not in (S.STOPPING, S.STOPPED), "an engine that is wanted is ended"
    if memo.resting is not None and empty and not memo.deleting:
        waits = memo.resume_at is None or memo.resume_at > world.now
        assert not waits or pool.state is memo.resting, "it does not wait as it was to"
        assert pool.state is not S.STOPPED, "a pool that was to start again does not"
