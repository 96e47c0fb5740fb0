"""What a daemon makes of the engines that it finds at its start, before it answers the first call (PROC-6, PROC-7).

All directories of a pool are looked at together: the one that lives is taken over wherever it stands in the list, so
that no second engine is started beside it; what is dead and not needed is removed; more than one that may live is
nobody's to choose from, and the pool is UNKNOWN. A reload is the exception: its two engines are told apart by what the
pool remembers of it, and it is taken forward or back (DRN-3).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

from poolmgr.core.memo import Memo
from poolmgr.core.messages import Cleared, Found, InDoubt
from poolmgr.errors import EnvironmentFault
from poolmgr.model.engine import RecoveredEngine, RecoveryState
from poolmgr.model.pool import PoolRecord, PoolSpec
from poolmgr.runtime.engine_host import Beside, EngineHost
from poolmgr.runtime.pool_actor import PoolActor

# How long what a dead engine left behind may take to die; a process in uninterruptible sleep takes longer.
SURVIVORS_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Known:
    """A pool of the store: its actor, what it remembers (None: nothing), and the specs of its generations."""

    actor: PoolActor
    memo: Memo | None
    specs: Mapping[int, PoolSpec]


@dataclass(frozen=True, slots=True)
class Recovery:
    """`warnings` is the daemon's list of what an operator should know. `boot_id` is this boot's.

    `doubts`: the engines that made a pool UNKNOWN, by pool.
    """

    engines: EngineHost
    warnings: deque[str]
    boot_id: str
    doubts: dict[str, tuple[RecoveredEngine, ...]] = field(default_factory=dict)

    async def take_over(self, pools: Mapping[str, Known], found: Sequence[RecoveredEngine]) -> None:
        by_pool = sorted(found, key=lambda engine: (engine.pool_id, -engine.generation))
        for pool_id, engines in groupby(by_pool, key=lambda engine: engine.pool_id):
            await self._one_pool(pools.get(pool_id), list(engines))

    async def _one_pool(self, known: Known | None, engines: list[RecoveredEngine]) -> None:
        """`engines` of one pool, the newest generation first."""
        doubtful = [e for e in engines if e.state is RecoveryState.IN_DOUBT]
        alive = [e for e in engines if e.state is RecoveryState.ALIVE]
        dead: list[RecoveredEngine] = []
        for engine in (e for e in engines if e.state is RecoveryState.DEAD):
            (dead if await self._ended(engine) else doubtful).append(engine)
        if known is None:
            self.warnings.extend(
                f"engine {e.engine_id} of pool {e.pool_id!r} is left alone: no such pool is stored. {e.detail}".strip()
                for e in (*alive, *doubtful)
            )
        else:
            await self._settle(known, doubtful, alive, dead)
        for engine in dead:
            await self._remove(engine)

    async def _settle(
        self, known: Known, doubtful: list[RecoveredEngine], alive: list[RecoveredEngine], dead: list[RecoveredEngine]
    ) -> None:
        """Takes out of `dead` what the next start goes on in."""
        second = _second(known.memo, alive)
        own = [e for e in alive if e is not second]
        if doubtful or len(own) > 1:
            self._doubt(known.actor, [*doubtful, *alive])
            return
        if second is not None:  # first, so that a pool whose own engine is dead does not take itself for empty
            memo = known.memo
            retiring = memo is not None and memo.retiring == second.engine_id
            spec = known.specs.get(second.generation, known.actor.pool.spec)
            if not self._adopt(known.actor, second, Beside(spec, retiring)):
                return
        if own:
            self._adopt(known.actor, own[0], None)
        else:
            self._found(known, dead)

    def _found(self, known: Known, dead: list[RecoveredEngine]) -> None:
        """The place of the engine that ended last, of a generation that the pool has."""
        last = next((e for e in dead if known.memo is None or e.generation <= known.memo.generation), None)
        if last is None:
            return
        dead.remove(last)
        self.engines.remember(last)
        known.actor.tell(self._told(known, last))

    def _told(self, known: Known, engine: RecoveredEngine) -> Found:
        who = engine.identity
        if who is None or engine.exit is None:
            return Found(engine.engine_id)
        if known.memo is not None and known.memo.target:
            return Found(engine.engine_id)  # ended for a reload that did not come to its commit
        if who.boot_id != self.boot_id:
            return Found(engine.engine_id)  # it went with its host, which asks everybody to end: nobody's failure
        told = self.engines.told(known.actor, engine.engine_id, engine.exit)
        return Found(engine.engine_id, who.pid, who.start_ticks, told)

    async def _ended(self, engine: RecoveredEngine) -> bool:
        """Whether nothing is left of an engine whose main process has ended; what is left of its tree is killed."""
        if not engine.survivors:
            return True
        try:
            return await self.engines.end_survivors(engine.engine_id, SURVIVORS_SECONDS)
        except EnvironmentFault as error:
            self.warnings.append(f"engine {engine.engine_id} has ended, but: {error.message}")
            return False

    def _adopt(self, actor: PoolActor, engine: RecoveredEngine, beside: Beside | None) -> bool:
        """Whether it is watched; if not, its pool is in doubt."""
        try:
            self.engines.adopt(actor, engine, beside)
        except EnvironmentFault as error:
            self._doubt(actor, [replace(engine, detail=error.message)])
            return False
        return True

    def _doubt(self, actor: PoolActor, engines: list[RecoveredEngine]) -> None:
        detail = "; ".join(f"engine {e.engine_id}: {e.detail or e.state.value.lower()}" for e in engines)
        text = f"{detail}. End what is not wanted, then stop the pool"
        self.warnings.append(f"pool {actor.pool.pool_id} is in doubt: {text}")
        self.doubts[actor.pool.pool_id] = tuple(engines)
        self.engines.claim_ports(engines)  # one that still loads does not listen yet
        actor.tell(InDoubt(engines[0].engine_id, text))

    async def _remove(self, engine: RecoveredEngine) -> None:
        try:
            await self.engines.remove(engine.pool_id, engine.engine_id)
        except EnvironmentFault as error:
            self.warnings.append(f"engine {engine.engine_id} has ended, but: {error.message}")

    async def clear(self, actor: PoolActor, found: Sequence[RecoveredEngine]) -> None:
        """Looks again at a pool in doubt, of which `found` is what is left now: an operator may have ended it."""
        if any(engine.state is not RecoveryState.DEAD for engine in found):
            return
        if all([await self._ended(engine) for engine in found]):
            self.engines.give_back_ports(self.doubts.pop(actor.pool.pool_id, ()))
            actor.tell(Cleared())


def _second(memo: Memo | None, alive: Sequence[RecoveredEngine]) -> RecoveredEngine | None:
    """Of a reload that the daemon died in: the engine that retires, or the one that was not committed."""
    if memo is None:
        return None
    for engine in alive:
        if memo.retiring and engine.engine_id == memo.retiring:
            return engine
        if memo.target and engine.generation == memo.target:
            return engine
    return None


def lost_records(found: Sequence[RecoveredEngine], pools: Mapping[str, Known]) -> Sequence[PoolRecord]:
    """Pools that run and that the store does not have: the newest record that an engine of each carries."""
    lost: dict[str, PoolRecord] = {}
    for engine in found:
        record = engine.launch.record if engine.launch else None
        if engine.state is RecoveryState.DEAD or record is None or engine.pool_id in pools:
            continue
        if engine.pool_id not in lost or record.generation > lost[engine.pool_id].generation:
            lost[engine.pool_id] = record
    return [lost[pool_id] for pool_id in sorted(lost)]
