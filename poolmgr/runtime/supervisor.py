"""The pools of this daemon: made, found again, changed and forgotten here; each is then its actor's."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TypeVar

from poolmgr.core.effects import Effect
from poolmgr.core.memo import Memo
from poolmgr.core.messages import Blamed, HostFault, LeasesKept, Preload, Recovered, Stop
from poolmgr.core.state import changed, may_serve, new_pool, remembering
from poolmgr.errors import ClientError, EnvironmentFault, PoolmgrError, Reason
from poolmgr.model.engine import RecoveryState
from poolmgr.model.lease import EndedLease, KeptLeases, Lease, pool_of
from poolmgr.model.pool import Origin, PoolRecord, PoolSpec, PoolState, StoredPool
from poolmgr.model.settings import LeaseSettings, SupervisionSettings
from poolmgr.ports import Clock, Rng, Store
from poolmgr.runtime.bus import Bus
from poolmgr.runtime.device_gate import RELEASE_SECONDS
from poolmgr.runtime.engine_host import EngineHost, Outside
from poolmgr.runtime.host_counters import HostCounters
from poolmgr.runtime.idle import Uses
from poolmgr.runtime.keyed import KeyedLocks
from poolmgr.runtime.pool_actor import PoolActor, Surroundings
from poolmgr.runtime.recording import Recording
from poolmgr.runtime.recovery import Known, Recovery, lost_records
from poolmgr.runtime.registered_host import RegisteredHost
from poolmgr.runtime.remembering import decode, encode
from poolmgr.runtime.tasks import Tasks

T = TypeVar("T")
MAX_WARNINGS = 64  # the newest are kept
ENDING_SECONDS = 10.0  # from the kill of an engine to the end of its tree
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
        self.engines = EngineHost(outside, clock, spawn, self.warnings, settings.supervision.parallel_starts)
        self._registered = RegisteredHost(outside, spawn)
        self.counters = HostCounters(range(0), settings.supervision, self._reserve_fences)
        self.uses = Uses(clock)
        self.recording = Recording(store, self.counters, self.uses)
        self._around = Surroundings(
            clock, rng, bus, self.counters, self.recording, store, spawn, self.warnings, self._perform,
            self._forget, self._died, self._failed,
        )  # fmt: skip
        self._recovery = Recovery(self.engines, self.warnings, clock.boot_id)
        self._actors: dict[str, PoolActor] = {}
        self._orphans: dict[str, list[Lease]] = {}  # of pools that the store has lost; their engines may register again
        self._edits = KeyedLocks()
        self._creating: set[str] = set()
        self._editing: set[asyncio.Task[None]] = set()
        self.reloads = asyncio.Lock()  # one reload of the file after the other
        self._forgetting: dict[str, asyncio.Future[None]] = {}
        self.closing = False

    def _perform(self, actor: PoolActor, effect: Effect) -> None:
        host = self.engines if actor.pool.registered is None else self._registered
        host.perform(actor, effect)

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
        await self._outside.places.check(spec)
        await self.engines.check(spec)

    async def fits(self, spec: PoolSpec) -> bool:
        """Whether there is room for one more engine of this spec, beside all that runs."""
        return await self._outside.places.fits(spec)

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
                    await self._outside.places.check(spec)
                    await self.engines.check(spec)
                record = PoolRecord(pool_id, spec, 1, origin, self._clock.wall())
                memo = Memo(1, 1, wanted=spec.preload, good=(1,))
                await self._store.put_pool(record, encode(memo, self._clock))
            finally:
                self._creating.discard(pool_id)
            actor = self._add(record, memo, made=True)
            if spec.preload and not self.closing:
                actor.tell(Preload())
        return actor

    async def enrol(self, record: PoolRecord, memo: Memo) -> PoolActor:
        """Makes the pool of an engine that registered itself durable, then alive. Whoever calls holds its `editing`."""
        self._admit()
        self._creating.add(record.pool_id)
        try:
            await self._store.put_pool(record, encode(memo, self._clock))
        finally:
            self._creating.discard(record.pool_id)
        return self._add(record, memo, made=True)

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
        if existing.pool.spec == spec and not existing.pool.deleting and existing.pool.registered is None:
            return existing
        why = "is being deleted" if existing.pool.deleting else "exists with another spec; UpdatePool changes it"
        raise ClientError(
            Reason.POOL_DELETING if existing.pool.deleting else Reason.POOL_EXISTS,
            f"pool {existing.pool.pool_id} {why}",
            numbers={"pool_id": existing.pool.pool_id, "generation": existing.pool.generation},
        )

    def editing(self, pool_id: str) -> AbstractAsyncContextManager[None]:
        """Held by whoever changes the spec of this pool. Nothing else waits for it: not status, leases or the actor."""
        return self._edits.hold(pool_id)

    def _add(self, record: PoolRecord, memo: Memo, made: bool = False) -> PoolActor:
        """`made`: just now, so that there is nothing to be found of it."""
        pool = remembering(new_pool(record, self.settings.supervision, self.settings.leases), memo)
        actor = PoolActor(changed(pool, recovering=not made), self._around, memo)
        self._actors[record.pool_id] = actor
        if made and record.pool_id in self._orphans:
            actor.tell(LeasesKept(tuple(self._orphans.pop(record.pool_id))))
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
                await actor.forget()  # or it would be written into the row of a pool that is made again
                await self._store.delete_pool(pool_id)
            except PoolmgrError as error:
                self._resolve_forgotten(pool_id, error)
                return
            del self._actors[pool_id]
            self.uses.forget(pool_id)
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
        self.warnings.extend(self._store.warnings)
        self.counters.add_fences(await self._store.reserve_fences())
        found = await self._outside.runtime.recover()
        running = {engine.pool_id for engine in found if engine.state is RecoveryState.ALIVE}
        pools = {stored.pool_id: self._restore(stored, running) for stored in await self._store.load()}
        for record in lost_records(found, pools):
            pools[record.pool_id] = await self._rebuild(record)
        ours = {pool_id: known for pool_id, known in pools.items() if known.actor.pool.registered is None}
        await self._recovery.take_over(ours, found)
        self._hand_leases(self._store.kept_leases())
        for actor in self.actors():
            actor.tell(Recovered())

    def _restore(self, stored: StoredPool, running: Collection[str]) -> Known:
        """The pool as it was committed; where nothing is remembered, its newest generation, wanted if it runs."""
        memo = decode(stored.state, self._clock) if stored.state else None
        if memo is None and stored.state:
            self.warnings.append(f"pool {stored.pool_id}: what it remembered cannot be read; it begins anew")
        specs = {g.generation: g.spec for g in stored.generations}
        generation = memo.generation if memo and memo.generation in specs else max(specs)
        record = PoolRecord(stored.pool_id, specs[generation], generation, stored.origin, stored.create_time)
        if memo is None:
            wanted = record.spec.preload or stored.pool_id in running
            fresh = Memo(generation, max(specs), wanted=wanted, good=(generation,))
            return Known(self._add(record, fresh), None, specs)
        return Known(self._add(record, memo), memo, specs)

    async def _rebuild(self, record: PoolRecord) -> Known:
        """A pool that the store has lost, from the engine of it that runs (PROC-7)."""
        text = f"pool {record.pool_id} was not in the store; it is rebuilt from its engine, which runs"
        self.warnings.append(text)
        memo = Memo(record.generation, record.generation, wanted=True, good=(record.generation,))
        try:
            await self._store.put_pool(record, encode(memo, self._clock))
        except EnvironmentFault as fault:
            self.warnings.append(f"pool {record.pool_id}: not stored: {fault.message}")
        return Known(self._add(record, memo), None, {record.generation: record.spec})

    def _hand_leases(self, kept: KeptLeases) -> None:
        """Every pool hears of its leases, also that there may be more; one that is gone, if it ever comes back."""
        if not kept.known and not any(may_serve(actor.pool) for actor in self.actors()):
            self._store.vouch_for_leases()  # nothing runs that a lease could be on
        by_pool: dict[str, list[Lease]] = {}
        for pool_id, lease in kept.live:
            by_pool.setdefault(pool_id, []).append(lease)
        ended: dict[str, list[EndedLease]] = {}
        for end in kept.ended:
            ended.setdefault(pool_of(end.lease_id), []).append(end)
        for actor in self.actors():
            pool_id = actor.pool.pool_id
            live = tuple(by_pool.pop(pool_id, ()))
            actor.tell(LeasesKept(live, tuple(ended.get(pool_id, ())), kept.known))
        self._orphans = by_pool

    async def clear_doubt(self, pool_id: str) -> None:
        """Looks again at a pool that is UNKNOWN: an operator may have ended what was in doubt."""
        async with self.reloads:
            actor = self.actor(pool_id)
            if actor.pool.state is PoolState.UNKNOWN:
                doubts = [engine.engine_id for engine in self._recovery.doubts.get(pool_id, ())]
                await self._recovery.clear(actor, await self._outside.runtime.recover(doubts))

    def _died(self, actor: PoolActor) -> None:
        alive = sum(1 for a in self.actors() if a.pool.engine is not None and a.pool.engine.main_alive)
        for pool_id in self.counters.count_death(self._clock.now(), actor.pool.pool_id, alive):
            if pool_id in self._actors:
                self._actors[pool_id].tell(HostFault())

    def _failed(self, actor: PoolActor) -> None:
        self.counters.count_restart(self._clock.now())
        run, error = actor.pool.engine, actor.pool.last_error
        if run is not None and error is not None:
            devices = self.engines.devices_of(run.engine_id) or ()
            why = self._outside.gate.failed(devices, actor.pool.pool_id, run.generation, error.reason)
            if why:
                actor.tell(Blamed(run.generation, why))

    def _reserve_fences(self) -> None:
        self._spawn(self._more_fences(), "fences")

    async def _more_fences(self) -> None:
        try:
            self.counters.add_fences(await self._store.reserve_fences())
        except EnvironmentFault:
            self.counters.add_fences(None)

    async def close(self, stop_engines: bool) -> int:
        """Ends the actors; with `stop_engines` their engines first. Returns how many engines go on."""
        self.closing = True
        while self._editing:
            await asyncio.wait(self._editing)
        if stop_engines:
            await self._stop_all()
        left = sum(1 for actor in self.actors() if actor.pool.engine is not None)
        for actor in self.actors():
            await actor.flush()
            actor.close()
        return left

    async def _stop_all(self) -> None:
        ours = [actor for actor in self.actors() if actor.pool.registered is None]
        for actor in ours:
            try:
                await actor.command(Stop(for_now=True))
            except PoolmgrError as refused:  # UNKNOWN: not ours to end
                self.warnings.append(f"pool {actor.pool.pool_id} is not stopped: {refused.message}")
        # From the kill to the end of a tree, and then until the memory of its GPUs is back (PROC-4).
        limit = self._clock.now() + self.settings.supervision.stop_grace + ENDING_SECONDS + RELEASE_SECONDS
        for actor in ours:
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
