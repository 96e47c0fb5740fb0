"""The versions of a pool's spec: changed, reloaded, rolled back, listed (DRN-2 to DRN-4)."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass

from poolmgr.core.memo import RolledBack
from poolmgr.core.messages import ChangeSpec
from poolmgr.core.reload import ROLLBACKS_ALLOWED
from poolmgr.core.state import Pool
from poolmgr.errors import ClientError, EnvironmentFault, Reason
from poolmgr.model.pool import Generation, GenerationView, PoolRecord, PoolSpec, PoolState, ReloadStrategy
from poolmgr.ports import Clock, Store
from poolmgr.runtime.pool_actor import PoolActor
from poolmgr.runtime.supervisor import ENDING_SECONDS, Supervisor

LAST_GOOD = 0


@dataclass(frozen=True, slots=True)
class Way:
    """How to get to another generation. `drain_deadline` in seconds; None takes the old spec's."""

    strategy: ReloadStrategy = ReloadStrategy.AUTO
    drain_deadline: float | None = None


class Generations:
    """Edits of one pool take their turns; a caller that goes away changes nothing: store and daemon never differ."""

    def __init__(self, supervisor: Supervisor, store: Store, clock: Clock) -> None:
        self._supervisor = supervisor
        self._store = store
        self._clock = clock

    async def update(self, pool_id: str, change: Callable[[PoolSpec], PoolSpec]) -> PoolActor:
        """Takes over what `change` makes of the spec as a new generation; an equal one changes nothing.

        `change` is called once this editor's turn has come, so that no other's change is lost.
        """
        return await self._supervisor.whole(self._to_new(pool_id, change, Way(), anew=False))

    async def reload(self, pool_id: str, spec: PoolSpec | None, way: Way) -> PoolActor:
        """To a new generation with this spec, or with the same one; the engine is another one afterwards."""
        return await self._supervisor.whole(self._to_new(pool_id, lambda old: spec or old, way, anew=spec is None))

    async def rollback(self, pool_id: str, generation: int, way: Way) -> PoolActor:
        """Back to a generation that is kept; LAST_GOOD: the last that was the pool's before this one."""
        return await self._supervisor.whole(self._to_kept(pool_id, generation, way))

    async def _to_new(self, pool_id: str, change: Callable[[PoolSpec], PoolSpec], way: Way, anew: bool) -> PoolActor:
        async with self._supervisor.editing(pool_id):
            actor = self._supervisor.actor(pool_id)
            pool, spec = actor.pool, change(actor.pool.spec)
            if pool.spec == spec and not anew:
                return actor
            await self._supervisor.check(spec)
            generation = actor.pool.newest + 1
            record = PoolRecord(pool_id, spec, generation, pool.origin, pool.create_time)
            fits = await self._supervisor.fits(spec)
            there = ChangeSpec(spec, generation, way.strategy, way.drain_deadline, anew, fits)
            await self._go(actor, there, record)
        return actor

    async def _to_kept(self, pool_id: str, generation: int, way: Way) -> PoolActor:
        async with self._supervisor.editing(pool_id):
            actor = self._supervisor.actor(pool_id)
            pool = actor.pool
            kept = {g.generation: g for g in await self._kept(pool_id)}
            wanted = generation or _last_good(pool, kept)
            if wanted == pool.generation:
                return actor
            if wanted not in kept:
                raise _not_kept(pool_id, wanted, sorted(kept))
            spec = kept[wanted].spec
            await self._supervisor.check(spec)
            fits = await self._supervisor.fits(spec)
            await self._go(actor, ChangeSpec(spec, wanted, way.strategy, way.drain_deadline, fits=fits), None)
        return actor

    async def _go(self, actor: PoolActor, change: ChangeSpec, record: PoolRecord | None) -> None:
        if self._supervisor.closing:
            raise EnvironmentFault(Reason.SHUTTING_DOWN, "the daemon is shutting down")
        # The last reload may have an engine to end whose leases are all over: a matter of its grace.
        limit = self._clock.now() + self._supervisor.settings.supervision.drain_grace + ENDING_SECONDS
        await actor.until(lambda pool: not _ending(pool), limit)
        await actor.command(change, record)

    async def list(self, pool_id: str) -> Sequence[GenerationView]:
        """Oldest first."""
        pool = self._supervisor.actor(pool_id).pool
        kept = await self._kept(pool_id)
        back = {r.generation: r for r in pool.rolled_back}
        return [_view(g, pool, back.get(g.generation)) for g in kept]

    async def _kept(self, pool_id: str) -> Sequence[Generation]:
        return next((p.generations for p in await self._store.load() if p.pool_id == pool_id), ())


def _ending(pool: Pool) -> bool:
    return pool.reload is not None and pool.beside is not None and pool.beside.state is PoolState.STOPPING


def _not_kept(pool_id: str, wanted: int, kept: Sequence[int]) -> ClientError:
    if wanted == LAST_GOOD:
        text = f"pool {pool_id} has no earlier good generation"
    else:
        text = f"generation {wanted} of pool {pool_id} is not kept; those are {', '.join(map(str, kept))}"
    return ClientError(Reason.GENERATION_NOT_FOUND, text, numbers={"generation": wanted, "kept": len(kept)})


def _last_good(pool: Pool, kept: Container[int]) -> int:
    return next((g for g in reversed(pool.good) if g != pool.generation and g in kept), LAST_GOOD)


def _view(generation: Generation, pool: Pool, back: RolledBack | None) -> GenerationView:
    times = back.times if back else 0
    return GenerationView(
        generation=generation.generation,
        spec=generation.spec,
        create_time=generation.create_time,
        current=generation.generation == pool.generation,
        committed=generation.generation in pool.good,
        rolled_back=times,
        blocked=times >= ROLLBACKS_ALLOWED,
    )
