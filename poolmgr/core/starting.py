"""How a run of an engine begins, and where: in the engine directory of its generation, if that has one already."""

from __future__ import annotations

from dataclasses import replace

from poolmgr.core.effects import Discard, KillTree, Rest, Start
from poolmgr.core.lifecycle import Trigger
from poolmgr.core.memo import Judged
from poolmgr.core.messages import Adopted, Spawned
from poolmgr.core.state import EngineRun, Home, Pool, ProbeTimer, Turn
from poolmgr.model.pool import PoolSpec, PoolState

NO_GENERATION = 0  # generations count from 1


def engine_arguments(spec: PoolSpec) -> PoolSpec:
    """The spec less everything that a running engine does not notice (DRN-2)."""
    blank = PoolSpec(engine=spec.engine)
    return replace(
        spec,
        slots=blank.slots,
        readiness=blank.readiness,
        liveness=blank.liveness,
        restart=blank.restart,
        supervision=blank.supervision,
        drain_deadline=blank.drain_deadline,
        preload=blank.preload,
        priority=blank.priority,
        labels=blank.labels,
    )


def start(turn: Turn, trigger: Trigger, reason: str) -> None:
    """Towards a new run, in the directory of the last one if that was launched for the same generation."""
    if outdated(turn.pool):
        discard_home(turn)
    pool = turn.pool
    home = pool.home or Home("", pool.generation, pool.spec.slots)
    turn.go(trigger, reason, resume_at=None, then=Trigger.HALT, home=home)
    turn.do(Start(home.engine_id, home.proven, home.fresh_port, pool.generation, pool.host_doubt))


def needs_restart(pool: Pool, spec: PoolSpec) -> bool:
    """Whether what was launched cannot serve `spec`. Fewer slots are a limit; more than it was given are not."""
    grown = pool.home is not None and spec.slots > pool.home.slots
    return grown or engine_arguments(pool.spec) != engine_arguments(spec)


def outdated(pool: Pool) -> bool:
    """Whether the engine was launched, or would be launched again, for a spec that is no longer the pool's."""
    return pool.home is not None and pool.home.generation != pool.generation


def discard_home(turn: Turn) -> None:
    if turn.pool.home and turn.pool.home.engine_id:
        turn.do(Discard(turn.pool.home.engine_id))
    turn.set(home=None)


def rest(turn: Turn) -> None:
    if turn.pool.home and turn.pool.home.engine_id:
        turn.do(Rest(turn.pool.home.engine_id))


def queued(turn: Turn, position: int, reason: str) -> None:
    if turn.pool.state is PoolState.PROVISIONING:
        turn.set(queued=position, reason=reason or turn.pool.reason)


def spawned(turn: Turn, fact: Spawned | Adopted) -> None:
    pool, now = turn.pool, turn.at.now
    adopted = isinstance(fact, Adopted)
    home = pool.home or Home(fact.engine_id, pool.generation, pool.spec.slots)
    if isinstance(fact, Adopted):
        launched = pool.generation if fact.current else NO_GENERATION
        home = Home(fact.engine_id, launched, pool.spec.slots)
    run = EngineRun(
        fact.engine_id, fact.pid, fact.port, home.generation, now, now, adopted, probe=ProbeTimer(due=now),
        ticks=fact.ticks, plan=fact.plan,
    )  # fmt: skip
    turn.set(
        engine=run,
        home=replace(home, engine_id=fact.engine_id, slots=fact.slots or home.slots, fresh_port=False),
        host_doubt=False,
        queued=0,
        judged=Judged() if pool.judged.pid == fact.pid and pool.judged.ticks == fact.ticks else pool.judged,
    )
    if pool.state is PoolState.STOPPING:  # stopped while the start was under way
        turn.do(KillTree(fact.engine_id))
        return
    reason = f"adopted process {fact.pid}" if adopted else f"process {fact.pid} runs"
    turn.go(Trigger.ADOPTED if adopted else Trigger.SPAWNED, reason)


def slot_limit(pool: Pool) -> int:
    """Slots to lease: what the spec asks for, and never more than the running engine was given or says it has."""
    if pool.engine is None or pool.home is None:
        return pool.spec.slots
    limit = min(pool.spec.slots, pool.home.slots)
    return min(limit, pool.engine.facts.slots) if pool.engine.facts.slots else limit
