"""The pool as others see it: what is shown of it, and what counts as a change of that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from poolmgr.core.state import SERVING, Pool, RegisteredRun, ReloadPhase, changed
from poolmgr.model.engine import EngineFacts, Usage
from poolmgr.model.plan import SplitPlan
from poolmgr.model.pool import BreakerState, Origin, PoolError, PoolSpec, PoolState, PoolView
from poolmgr.model.registration import EngineView


class ShownRun(NamedTuple):
    """What is shown of a run of an engine; the defaults where there is none."""

    engine_id: str = ""
    pid: int = 0
    port: int = 0
    started: float | None = None
    main_alive: bool = False
    adopted: bool = False
    ready_at: float | None = None
    facts: EngineFacts = EngineFacts()
    ready_usage: Usage | None = None
    endpoint: str = ""
    plan: SplitPlan | None = None


_NO_RUN = ShownRun()


class Fingerprint(NamedTuple):
    """All that `view` is made of, so that what it does not hold can neither be shown nor make a new revision.

    It counts the leases and does not hold them: thousands of revisions are kept.
    """

    pool_id: str
    spec: PoolSpec
    origin: Origin
    generation: int
    create_time: float
    state: PoolState
    reason: str
    slots: int
    leased: int
    waiting: int
    breaker: BreakerState
    resume_at: float | None
    restart_count: int
    last_error: PoolError | None
    home: str
    progress: int
    run: ShownRun
    held: bool
    reload_phase: str
    reload_generation: int
    queued: int = 0  # place in the queue of starts, from 1
    total: int = 0  # slots of an engine that registered itself; `slots` is what may be leased of them now


def fingerprint(pool: Pool) -> Fingerprint:
    """Equal for two pools that look the same from outside: what decides whether there is a new revision."""
    if pool.registered is not None:
        return _of_registered(pool, pool.registered)
    seen = pool if pool.beside is None else _seen(pool)
    run, leases, reload = seen.engine, pool.leases, pool.reload
    return Fingerprint(
        pool.pool_id, pool.spec, pool.origin, pool.generation, pool.create_time, seen.state, seen.reason,
        leases.slots, len(leases.live) + leases.elsewhere, len(leases.waiters), pool.policy.breaker_state,
        pool.resume_at, pool.restart_count, pool.last_error,
        seen.home.engine_id if seen.home else "", _progress(seen),
        _NO_RUN if run is None else ShownRun(
            run.engine_id, run.pid, run.port, run.started, run.main_alive, run.adopted, run.ready_at, run.facts,
            run.ready_usage, plan=run.plan,
        ),
        pool.held_until is not None,
        reload.phase.value if reload else "",
        reload.generation if reload else 0,
        seen.queued if seen.state is PoolState.PROVISIONING else 0,
    )  # fmt: skip


def recounted(before: Fingerprint, pool: Pool) -> Fingerprint:
    """The fingerprint of a pool in which nothing but its leases has changed: what every grant pays for."""
    leases = pool.leases
    leased = len(leases.live) + leases.elsewhere
    if before.leased == leased and before.waiting == len(leases.waiters) and before.slots == leases.slots:
        return before
    return Fingerprint._make((*before[:7], leases.slots, leased, len(leases.waiters), *before[10:]))


def _of_registered(pool: Pool, run: RegisteredRun) -> Fingerprint:
    """Of when it was heard last nothing is shown here: a heartbeat that says nothing new makes no revision."""
    engine, alive = run.engine, pool.state in (PoolState.STARTING, *SERVING)
    return Fingerprint(
        pool.pool_id, pool.spec, pool.origin, pool.generation, pool.create_time, pool.state, pool.reason,
        pool.leases.slots, len(pool.leases.live), len(pool.leases.waiters), pool.policy.breaker_state,
        None, 0, pool.last_error, "", 0,
        ShownRun(
            engine.engine_id, engine.pid, main_alive=alive, ready_at=run.ready_at,
            facts=EngineFacts(version=engine.version), endpoint=engine.endpoint,
        ),
        pool.held_until is not None,
        "",
        0,
        total=pool.spec.slots,
    )  # fmt: skip


def _seen(pool: Pool) -> Pool:
    """Where nothing serves, the engine that a reload starts is what there is to see; not ready before the commit."""
    beside, reload = pool.beside, pool.reload
    if beside is None or reload is None or reload.phase is ReloadPhase.RETIRING or pool.engine is not None:
        return pool
    return changed(beside, state=PoolState.STARTING) if beside.state is PoolState.READY else beside


def _progress(pool: Pool) -> int:
    """Bytes that a starting engine has moved so far: read, or written to its log where reads are not known."""
    if pool.engine is None or pool.state is not PoolState.STARTING:
        return 0
    return pool.engine.usage.read_bytes or pool.engine.usage.log_bytes


PHASES = {
    PoolState.PROVISIONING: "provisioning",
    PoolState.STARTING: "loading",
    PoolState.DRAINING: "draining",
    PoolState.STOPPING: "stopping",
    PoolState.BACKOFF: "waiting",
}


def view(of: Fingerprint, revision: int, wall_offset: float) -> PoolView:
    """The pool as others see it. `wall_offset`: Unix time minus boot time, in seconds."""
    run = of.run
    ready = of.state is PoolState.READY
    return PoolView(
        pool_id=of.pool_id,
        spec=of.spec,
        origin=of.origin,
        revision=revision,
        generation=of.generation,
        state=of.state,
        state_reason=of.reason,
        live=run.main_alive,
        ready=ready,
        draining=of.state is PoolState.DRAINING,
        slots_total=of.total or of.slots,
        slots_free=max(0, of.slots - of.leased) if ready and not of.held else 0,
        active_leases=of.leased,
        waiting=of.waiting,
        engine_id=run.engine_id or of.home,
        engine_version=run.facts.version,
        endpoint=_endpoint(run) if of.state in SERVING else "",
        pid=run.pid,
        restart_count=of.restart_count,
        breaker_state=of.breaker,
        backoff_until=_wall(of.resume_at, wall_offset),
        last_error=of.last_error,
        progress_phase=PHASES.get(of.state, ""),
        progress_message=of.reason if of.state in PHASES else "",
        progress_bytes=of.progress,
        create_time=of.create_time,
        start_time=_wall(run.started, wall_offset),
        ready_time=_wall(run.ready_at, wall_offset),
        context_length=run.facts.context_length,
        load_time=_load_time(run),
        memory_bytes=run.ready_usage.rss_bytes if run.ready_usage else None,
        reload_phase=of.reload_phase,
        reload_generation=of.reload_generation,
        queue_position=of.queued,
        split_plan=run.plan,
    )


def _endpoint(run: ShownRun) -> str:
    return f"127.0.0.1:{run.port}" if run.port else run.endpoint


def _load_time(run: ShownRun) -> float | None:
    """Seconds; None of an engine whose load nobody here has seen."""
    if run.ready_at is None or run.started is None or run.adopted:
        return None
    return run.ready_at - run.started


def _wall(at: float | None, offset: float) -> float | None:
    return None if at is None else at + offset


def engine_views(pool: Pool, wall_offset: float, directory: Callable[[str], str]) -> Iterator[EngineView]:
    """The engines of a pool: one, or in a reload two. `directory` says where an engine's records are."""
    if pool.registered is not None:
        yield _registered_view(pool, pool.registered, wall_offset)
    for each in (pool, pool.beside):
        if each is None or each.engine is None:
            continue
        run, slots = each.engine, each.leases.slots
        yield EngineView(
            engine_id=run.engine_id,
            pool_id=each.pool_id,
            generation=each.generation,
            engine=each.spec.engine,
            engine_version=run.facts.version,
            endpoint=f"127.0.0.1:{run.port}" if run.port else "",
            pid=run.pid,
            state=each.state,
            slots_total=slots,
            slots_free=max(0, slots - len(each.leases.live)) if each.state is PoolState.READY else 0,
            device_mask=each.spec.device_mask,
            start_time=_wall(run.started, wall_offset),
            directory=directory(run.engine_id),
        )


def _registered_view(pool: Pool, run: RegisteredRun, wall_offset: float) -> EngineView:
    """Its endpoint is shown in every state: it may be there when nobody hears of it."""
    engine, serves = run.engine, pool.state is PoolState.READY and pool.held_until is None
    return EngineView(
        engine_id=engine.engine_id,
        pool_id=pool.pool_id,
        generation=pool.generation,
        engine=pool.spec.engine,
        engine_version=engine.version,
        endpoint=engine.endpoint,
        pid=engine.pid,
        state=pool.state,
        slots_total=pool.spec.slots,
        slots_free=pool.leases.free if serves else 0,
        device_mask=pool.spec.device_mask,
        start_time=None,
        directory="",
        registered=True,
        last_heartbeat=_wall(run.last_heartbeat, wall_offset),
        in_flight=run.in_flight,
        progress_counter=run.progress_counter,
    )
