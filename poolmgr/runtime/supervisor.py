"""The pools of this daemon: made, found again, changed and forgotten here; each is then its actor's."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from poolmgr.core.messages import ChangeSpec, Preload, Stop
from poolmgr.core.state import new_pool
from poolmgr.errors import ClientError, EnvironmentFault, PoolmgrError, Reason
from poolmgr.model.pool import Origin, PoolRecord, PoolSpec, PoolState
from poolmgr.model.settings import LeaseSettings, SupervisionSettings
from poolmgr.ports import Clock, Rng, Store
from poolmgr.runtime.bus import Bus
from poolmgr.runtime.engine_host import EngineHost, Outside
from poolmgr.runtime.host_counters import HostCounters
from poolmgr.runtime.keyed import KeyedLocks
from poolmgr.runtime.pool_actor import PoolActor, Surroundings
from poolmgr.runtime.recovery import Recovery
from poolmgr.runtime.tasks import Tasks

T = TypeVar("T")
MAX_WARNINGS = 64  # the newest are kept
MAX_POOLS = 256  # the bound of the metrics' pool_id label (OBS-1)


@dataclass(frozen=True, slots=True)
class Settings:
    supervision: SupervisionSettings
    leases: LeaseSettings


class Supervisor:
    """Owns every actor. Used on the event loop only."""

    def __init__(
        self, clock: Clock, rng: Rng, store: Store, outside: Outside, settings: Settings, bus: Bus, spawn: Tasks
    ) -> None:
        self._clock = clock
        self._store = store
        self._outside = outside
        self.settings = settings
        self.bus = bus
        self._spawn = spawn
        self.warnings: deque[str] = deque(maxlen=MAX_WARNINGS)
        self.engines = EngineHost(outside, clock, spawn, self.warnings)
        s = settings.supervision
        counters = HostCounters(store.epoch, s.restart_window, s.restart_rate_limit)
        self._around = Surroundings(clock, rng, bus, counters, self.engines.perform, self._forget)
        self._actors: dict[str, PoolActor] = {}
        # Orders the editors of one pool's spec. Nothing else waits for them: not status, leases, drain or the actor.
        self._edits = KeyedLocks()
        self._creating: set[str] = set()
        self._editing: set[asyncio.Task[None]] = set()
        self.reloads = asyncio.Lock()  # one reload of the file after the other
        self._forgetting: dict[str, asyncio.Future[None]] = {}
        self.closing = False

    # Look.

    def actor(self, pool_id: str) -> PoolActor:
        """Raises ClientError(POOL_NOT_FOUND)."""
        try:
            return self._actors[pool_id]
        except KeyError:
            raise ClientError(
                Reason.POOL_NOT_FOUND, f"there is no pool {pool_id!r}", numbers={"pool_id": pool_id}
            ) from None

    def find(self, pool_id: str) -> PoolActor | None:
        return self._actors.get(pool_id)

    def actors(self) -> Sequence[PoolActor]:
        """By pool id."""
        return [self._actors[pool_id] for pool_id in sorted(self._actors)]

    # Make and change.

    async def check(self, spec: PoolSpec) -> None:
        """Raises ClientError for a spec that this host cannot run."""
        self.validate(spec)
        await self.engines.check(spec)

    def validate(self, spec: PoolSpec) -> None:
        """Raises ClientError for a spec that no host could run."""
        if spec.engine not in self._outside.kinds:
            known = ", ".join(sorted(self._outside.kinds))
            raise ClientError(Reason.ENGINE_UNSUPPORTED, f"no engine kind {spec.engine}; this version has {known}")
        self._outside.kinds[spec.engine].validate(spec)

    async def create(self, pool_id: str, spec: PoolSpec, origin: Origin, gates: bool = True) -> PoolActor:
        """Makes a pool durable, then alive. The same id and spec again: the pool that is there.

        Without `gates`, a missing model or executable is found by the first start, which parks the pool. A caller
        that goes away changes nothing: store and daemon never differ.
        """
        return await self.whole(self._create(pool_id, spec, origin, gates))

    async def _create(self, pool_id: str, spec: PoolSpec, origin: Origin, gates: bool) -> PoolActor:
        async with self._edits.hold(pool_id):
            existing = self._actors.get(pool_id)
            if existing is not None:
                return self._same(existing, spec)
            self._admit()
            self._creating.add(pool_id)
            try:
                self.validate(spec)
                if gates:
                    await self.engines.check(spec)
                record = PoolRecord(pool_id, spec, 1, origin, self._clock.wall())
                await self._store.put_pool(record)
            finally:
                self._creating.discard(pool_id)
            actor = self._add(record)
        if spec.preload and not self.closing:
            actor.tell(Preload())
        return actor

    async def whole(self, work: Coroutine[object, object, T]) -> T:
        """Does the work to its end, also when whoever asked for it is cancelled meanwhile."""
        outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        async def run() -> None:
            try:
                outcome.set_result(await work)
            except asyncio.CancelledError:
                outcome.cancel()
                raise
            except BaseException as error:
                outcome.set_exception(error)
                outcome.exception()  # whoever asked may be gone
                if not isinstance(error, PoolmgrError):
                    raise

        task = self._spawn(run(), "edit")
        self._editing.add(task)
        task.add_done_callback(self._editing.discard)
        return await asyncio.shield(outcome)

    async def check_new(self, pool_id: str, spec: PoolSpec) -> None:
        """All that `create` would refuse, and nothing changed."""
        existing = self._actors.get(pool_id)
        if existing is not None:
            self._same(existing, spec)
        else:
            self._admit()
        await self.check(spec)

    def _admit(self) -> None:
        if self.closing:
            raise EnvironmentFault(Reason.SHUTTING_DOWN, "the daemon is shutting down")
        self.check_room(1)

    def check_room(self, more: int) -> None:
        """Raises ClientError(POOL_LIMIT) when `more` pools would be too many; those on their way are counted."""
        pools = len(self._actors) + len(self._creating)
        if pools + more > MAX_POOLS:
            raise ClientError(
                Reason.POOL_LIMIT,
                f"{more} more would be too many: there are {pools} pools, the limit is {MAX_POOLS}",
                numbers={"pools": pools, "limit": MAX_POOLS},
            )

    @staticmethod
    def _same(existing: PoolActor, spec: PoolSpec) -> PoolActor:
        if existing.pool.spec == spec and not existing.pool.deleting:
            return existing
        why = "is being deleted" if existing.pool.deleting else "exists with another spec; UpdatePool changes it"
        raise ClientError(
            Reason.POOL_DELETING if existing.pool.deleting else Reason.POOL_EXISTS,
            f"pool {existing.pool.pool_id} {why}",
            numbers={"pool_id": existing.pool.pool_id, "generation": existing.pool.generation},
        )

    async def update(self, pool_id: str, change: Callable[[PoolSpec], PoolSpec]) -> PoolActor:
        """Takes over what `change` makes of the spec as a new generation; an equal one changes nothing.

        `change` is called once this editor's turn has come, so that no other's change is lost.
        """
        return await self.whole(self._update(pool_id, change))

    async def _update(self, pool_id: str, change: Callable[[PoolSpec], PoolSpec]) -> PoolActor:
        async with self._edits.hold(pool_id):
            actor = self.actor(pool_id)
            pool, spec = actor.pool, change(actor.pool.spec)
            if pool.spec == spec:
                return actor
            if pool.deleting:
                raise ClientError(Reason.POOL_DELETING, f"pool {pool_id} is being deleted")
            await self.check(spec)
            record = PoolRecord(pool_id, spec, pool.generation + 1, pool.origin, pool.create_time)
            await self._store.put_pool(record)
            if not self.closing:  # it is durable: the next daemon acts on it
                actor.tell(ChangeSpec(spec, record.generation))
        return actor

    def _add(self, record: PoolRecord) -> PoolActor:
        actor = PoolActor(new_pool(record, self.settings.supervision, self.settings.leases), self._around)
        self._actors[record.pool_id] = actor
        return actor

    # Forget.

    def forgotten(self, pool_id: str) -> asyncio.Future[None]:
        """Done when the deletion of this pool is; fails when it could not be made durable."""
        return self._forgetting.setdefault(pool_id, asyncio.get_running_loop().create_future())

    def _forget(self, actor: PoolActor) -> None:
        self._spawn(self._delete(actor), f"forget {actor.pool.pool_id}")

    async def _delete(self, actor: PoolActor) -> None:
        pool_id = actor.pool.pool_id
        async with self._edits.hold(pool_id):
            if self._actors.get(pool_id) is not actor:
                return
            try:
                await self.engines.put_away(pool_id)
                await self._store.delete_pool(pool_id)
            except PoolmgrError as error:
                self._resolve_forgotten(pool_id, error)
                return
            del self._actors[pool_id]
            actor.close()
            self.bus.publish_deletion(pool_id)
        self._resolve_forgotten(pool_id, None)

    def _resolve_forgotten(self, pool_id: str, error: PoolmgrError | None) -> None:
        future = self._forgetting.pop(pool_id, None)
        if future is None or future.done():
            return
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
            future.exception()  # whoever waited may be gone; the next DeletePool tries again

    # Begin and end.

    async def recover(self) -> None:
        """Rebuilds the actors from the store and takes over what runs, before the first call is answered."""
        for record in await self._store.load():
            self._add(record)
        recovery = Recovery(self.engines, self.warnings)
        await recovery.take_over(self._actors, await self._outside.runtime.recover())
        for actor in self.actors():
            if actor.pool.spec.preload and actor.pool.state is PoolState.PENDING:
                actor.tell(Preload())

    async def close(self, stop_engines: bool) -> int:
        """Ends the actors; with `stop_engines` their engines first. Returns how many engines go on."""
        self.closing = True
        while self._editing:
            await asyncio.wait(self._editing)
        if stop_engines:
            await self._stop_all()
        left = sum(1 for actor in self.actors() if actor.pool.engine is not None)
        for actor in self.actors():
            actor.close()
        return left

    async def _stop_all(self) -> None:
        for actor in self.actors():
            try:
                actor.command(Stop())
            except ClientError as refused:  # UNKNOWN: not ours to end
                self.warnings.append(f"pool {actor.pool.pool_id} is not stopped: {refused.message}")
        limit = self._clock.now() + self.settings.supervision.stop_grace + 10
        for actor in self.actors():
            await actor.until(lambda p: p.engine is None and p.state is not PoolState.STOPPING, limit)
            await self._put_away(actor.pool.pool_id)

    async def _put_away(self, pool_id: str) -> None:
        try:
            await self.engines.put_away(pool_id)
        except PoolmgrError as error:
            self.warnings.append(f"pool {pool_id}: {error.message}")


def counts(actors: Sequence[PoolActor]) -> Mapping[str, int]:
    """Pools by state name, states without pools left out."""
    result: dict[str, int] = {}
    for actor in actors:
        result[actor.pool.state] = result.get(actor.pool.state, 0) + 1
    return result
