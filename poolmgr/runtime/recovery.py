"""What a daemon makes of the engines that it finds at its start, before it answers the first call (PROC-6, PROC-7).

All directories of a pool are looked at together: the one that lives is taken over wherever it stands in the list, so
that no second engine is started beside it; what is dead and not needed is removed; more than one that may live is
nobody's to choose from, and the pool is UNKNOWN.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from poolmgr.core.messages import Found, InDoubt
from poolmgr.errors import EnvironmentFault
from poolmgr.model.engine import RecoveredEngine, RecoveryState
from poolmgr.runtime.engine_host import EngineHost
from poolmgr.runtime.pool_actor import PoolActor

# How long what a dead engine left behind may take to die; a process in uninterruptible sleep takes longer.
SURVIVORS_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Recovery:
    """`warnings` is the daemon's list of what an operator should know."""

    engines: EngineHost
    warnings: deque[str]

    async def take_over(self, actors: dict[str, PoolActor], found: Sequence[RecoveredEngine]) -> None:
        by_pool = sorted(found, key=lambda engine: (engine.pool_id, -engine.generation))
        for pool_id, engines in groupby(by_pool, key=lambda engine: engine.pool_id):
            await self._one_pool(actors.get(pool_id), list(engines))

    async def _one_pool(self, actor: PoolActor | None, engines: list[RecoveredEngine]) -> None:
        """`engines` of one pool, the newest generation first."""
        doubtful = [e for e in engines if e.state is RecoveryState.IN_DOUBT]
        alive = [e for e in engines if e.state is RecoveryState.ALIVE]
        dead: list[RecoveredEngine] = []
        for engine in (e for e in engines if e.state is RecoveryState.DEAD):
            (dead if await self._ended(engine) else doubtful).append(engine)
        if actor is None:
            self.warnings.extend(
                f"engine {e.engine_id} of pool {e.pool_id!r} is left alone: no such pool is stored. {e.detail}".strip()
                for e in (*alive, *doubtful)
            )
        elif doubtful or len(alive) > 1:
            self._doubt(actor, [*doubtful, *alive])
        elif alive:
            self._adopt(actor, alive[0])
        elif dead:
            actor.tell(Found(dead.pop(0).engine_id))
        for engine in dead:
            await self._remove(engine)

    async def _ended(self, engine: RecoveredEngine) -> bool:
        """Whether nothing is left of an engine whose main process has ended; what is left of its tree is killed."""
        if not engine.survivors:
            return True
        try:
            return await self.engines.end_survivors(engine.engine_id, SURVIVORS_SECONDS)
        except EnvironmentFault as error:
            self.warnings.append(f"engine {engine.engine_id} has ended, but: {error.message}")
            return False

    def _adopt(self, actor: PoolActor, engine: RecoveredEngine) -> None:
        try:
            self.engines.adopt(actor, engine)
        except EnvironmentFault as error:
            self._doubt(actor, [replace(engine, detail=error.message)])

    def _doubt(self, actor: PoolActor, engines: list[RecoveredEngine]) -> None:
        detail = "; ".join(f"engine {e.engine_id}: {e.detail or e.state.value.lower()}" for e in engines)
        text = f"{detail}. End what is not wanted, then restart the daemon"
        self.warnings.append(f"pool {actor.pool.pool_id} is in doubt: {text}")
        actor.tell(InDoubt(engines[0].engine_id, text))

    async def _remove(self, engine: RecoveredEngine) -> None:
        try:
            await self.engines.remove(engine.engine_id)
        except EnvironmentFault as error:
            self.warnings.append(f"engine {engine.engine_id} has ended, but: {error.message}")
