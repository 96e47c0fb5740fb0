"""Engines that register themselves (ENG-1 to ENG-3): each is a pool of its own, whose spec is what it told.

A registration is durable, so a later daemon needs no more than the next heartbeat; a heartbeat is not, and costs no
write unless it says that the engine is no longer ready, or drains.
"""

from __future__ import annotations

import asyncio

from poolmgr.core.memo import Memo
from poolmgr.core.messages import Delete, Heartbeat, Register
from poolmgr.core.registration import desired, heartbeat_interval, introduced, not_ours, retold
from poolmgr.core.state import Pool
from poolmgr.errors import ClientError, EnvironmentFault, Reason
from poolmgr.model.pool import Origin, PoolRecord
from poolmgr.model.registration import Beat, BeatAnswer, Registration
from poolmgr.ports import Clock
from poolmgr.runtime.keyed import KeyedLocks
from poolmgr.runtime.pool_actor import PoolActor
from poolmgr.runtime.supervisor import Supervisor

FIRST = 1  # generations count from it


class Registrations:
    """Used on the event loop only. What it raises left nothing behind."""

    def __init__(self, supervisor: Supervisor, clock: Clock) -> None:
        self._supervisor = supervisor
        self._clock = clock
        self._order = KeyedLocks()  # by engine id; held before the pool's own

    def find(self, engine_id: str) -> PoolActor:
        """Raises ClientError(ENGINE_NOT_FOUND)."""
        actor = self._find(engine_id)
        if actor is None:
            raise ClientError(
                Reason.ENGINE_NOT_FOUND, f"no engine {engine_id!r} is registered", numbers={"engine_id": engine_id}
            )
        return actor

    def _find(self, engine_id: str) -> PoolActor | None:
        """At most MAX_POOLS are looked at, a few times a second: an index of them would be one more thing to keep."""
        for actor in self._supervisor.actors():
            run = actor.pool.registered
            if run is not None and run.engine.engine_id == engine_id:
                return actor
        return None

    def require_ours(self, pool_id: str) -> None:
        """Raises ClientError(POOL_STATE) where the engine registered itself: nobody changes its spec but it."""
        pool = self._supervisor.actor(pool_id).pool
        if pool.registered is not None:
            raise not_ours(pool)

    async def register(self, said: Registration) -> PoolActor:
        """Makes the engine's pool, or takes over what is said anew. Durable on return.

        ClientError(POOL_EXISTS): the pool is one of ours or another engine's, or the engine has another pool.
        """
        return await self._supervisor.whole(self._register(said))

    async def _register(self, said: Registration) -> PoolActor:
        async with self._order.hold(said.engine_id):
            pool_id = self._pool_id(said)
            async with self._supervisor.editing(pool_id):
                if self._supervisor.closing:
                    raise EnvironmentFault(Reason.SHUTTING_DOWN, "the daemon is shutting down")
                actor = self._supervisor.find(pool_id)
                if actor is None:
                    return await self._first(pool_id, said)
                _require_same(actor.pool, said)
                await self._again(actor, said)
        return actor

    def _pool_id(self, said: Registration) -> str:
        known = self._find(said.engine_id)
        if known is None:
            if said.pool_id is None:
                text = f"the first registration of engine {said.engine_id} needs pool_id"
                raise ClientError(Reason.INVALID_ARGUMENT, text, numbers={"field": "pool_id"})
            return said.pool_id
        pool_id = known.pool.pool_id
        if said.pool_id not in (None, pool_id):
            raise ClientError(
                Reason.POOL_EXISTS,
                f"engine {said.engine_id} is registered for pool {pool_id}; deregister it first",
                numbers={"engine_id": said.engine_id, "pool_id": pool_id},
            )
        return pool_id

    async def _first(self, pool_id: str, said: Registration) -> PoolActor:
        engine, spec = introduced(said)
        record = PoolRecord(pool_id, spec, FIRST, Origin.REGISTERED, self._clock.wall())
        memo = Memo(FIRST, FIRST, wanted=True, good=(FIRST,), registered=engine)
        actor = await self._supervisor.enrol(record, memo)
        actor.tell(Register(engine, spec, FIRST, said.slots_free))
        return actor

    async def _again(self, actor: PoolActor, said: Registration) -> None:
        pool = actor.pool
        engine, spec = retold(pool, said)
        generation, record = pool.generation, None
        if spec != pool.spec:
            generation = pool.newest + 1
            record = PoolRecord(pool.pool_id, spec, generation, pool.origin, pool.create_time)
        await actor.command(Register(engine, spec, generation, said.slots_free, said.endpoint is not None), record)

    def heartbeat(self, beat: Beat) -> BeatAnswer:
        """Waits for nothing. ClientError(ENGINE_NOT_FOUND)."""
        actor = self.find(beat.engine_id)
        actor.tell(Heartbeat(beat))
        return BeatAnswer(heartbeat_interval(actor.pool), desired(actor.pool))

    async def deregister(self, engine_id: str) -> None:
        """Forgets the engine and its pool; live leases are revoked. ClientError(ENGINE_NOT_FOUND)."""
        if self._supervisor.closing:
            raise EnvironmentFault(Reason.SHUTTING_DOWN, "the daemon is shutting down")
        actor = self.find(engine_id)
        await actor.command(Delete(deadline=0.0))
        await asyncio.shield(self._supervisor.forgotten(actor.pool.pool_id))


def _require_same(pool: Pool, said: Registration) -> None:
    """Raises ClientError(POOL_EXISTS) for a pool that is not this engine's. One whose engine was lost is anybody's."""
    numbers = {"pool_id": pool.pool_id, "engine_id": said.engine_id}
    if pool.registered is None:
        text = f"pool {pool.pool_id} is run by this daemon; an engine cannot register for it"
        raise ClientError(Reason.POOL_EXISTS, text, numbers=numbers)
    known = pool.registered.engine.engine_id
    if known not in ("", said.engine_id):
        text = f"pool {pool.pool_id} is engine {known}'s; deregister that first"
        raise ClientError(Reason.POOL_EXISTS, text, numbers=numbers)
