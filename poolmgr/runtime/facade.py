"""The one door of the daemon: what gRPC and the web call. Reads answer from what is published and never wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from poolmgr.core.messages import Delete, Drain, Event, Preload, Release, Renew, ResetBreaker, Stop, Undrain
from poolmgr.core.state import Pool, ReloadPhase, leased, live_leases
from poolmgr.core.view import engine_views
from poolmgr.errors import ClientError, EnvironmentFault, Reason
from poolmgr.model.daemon import ConfigChange, DaemonStatus
from poolmgr.model.lease import Lease, LeaseAsk, LeaseOutcome, Refusal, RefusalReason, pool_of
from poolmgr.model.pool import GenerationView, Origin, PoolSpec, PoolState, ReloadStrategy
from poolmgr.model.registration import Beat, BeatAnswer, EngineView, Registration
from poolmgr.model.settings import LeaseSettings
from poolmgr.ports import Clock, Store
from poolmgr.runtime import declared
from poolmgr.runtime.bus import Bus, Change, DeviceChange, PublishedPool, Resync
from poolmgr.runtime.devices import DeviceRegistry
from poolmgr.runtime.engine_host import Outside
from poolmgr.runtime.generations import Generations, Way
from poolmgr.runtime.placement import Placement
from poolmgr.runtime.pool_actor import PoolActor
from poolmgr.runtime.readings import Readings
from poolmgr.runtime.registrations import Registrations
from poolmgr.runtime.supervisor import Supervisor, counts

ON_THE_WAY = {PoolState.PENDING, PoolState.PROVISIONING, PoolState.STARTING, PoolState.STOPPING}
STARTED = frozenset(set(PoolState) - ON_THE_WAY)  # or failed to


def _arrived(pool: Pool) -> bool:
    """Whether a reload is committed or over; the old engine may still retire."""
    reload = pool.reload
    return pool.state in STARTED and (reload is None or reload.phase is ReloadPhase.RETIRING)


DRAINED = frozenset(set(PoolState) - {PoolState.DRAINING, PoolState.STOPPING})


@dataclass(frozen=True, slots=True)
class About:
    """What the daemon says of itself that does not change. `start_time` in Unix seconds; `notes` for operators."""

    version: str
    pid: int
    start_time: float
    address: str
    state_dir: str
    config_file: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Controls:
    """What only the composition root can do.

    `config_values`: (section.key, JSON value, origin) of what is in force. `read_config`: reads the file again and
    gives (the pools it declares, the keys that only the next start takes up); ClientError when it is bad.
    `shutdown`: begins the end of the daemon.
    """

    config_values: Callable[[], Sequence[tuple[str, str, str]]]
    read_config: Callable[[], tuple[Mapping[str, PoolSpec], tuple[str, ...]]]
    shutdown: Callable[[bool], None]


class Facade:
    """Raises PoolmgrError for what cannot be done; what it raises left nothing behind."""

    def __init__(
        self,
        supervisor: Supervisor,
        outside: Outside,
        store: Store,
        clock: Clock,
        about: About,
        controls: Controls,
        devices: DeviceRegistry | None = None,
        readings: Readings | None = None,
        placement: Placement | None = None,
    ) -> None:
        self._supervisor = supervisor
        self.versions = Generations(supervisor, store, clock)
        self.registrations = Registrations(supervisor, clock)
        self._workers = outside.workers
        self._runtime = outside.runtime
        self._clock = clock
        self._rng = outside.rng
        self.about = about
        self._controls = controls
        self._devices = devices
        self._readings = readings
        self._placement = placement

    @property
    def devices(self) -> DeviceRegistry:
        """Raises EnvironmentFault(NO_TELEMETRY) where the daemon has none."""
        if self._devices is None:
            raise EnvironmentFault(Reason.NO_TELEMETRY, "this daemon was started without telemetry")
        return self._devices

    @property
    def readings(self) -> Readings:
        """Raises EnvironmentFault(NO_TELEMETRY) where the daemon has none."""
        if self._readings is None:
            raise EnvironmentFault(Reason.NO_TELEMETRY, "this daemon was started without telemetry")
        return self._readings

    @property
    def placement(self) -> Placement:
        """Raises EnvironmentFault(NO_TELEMETRY) where the daemon has none."""
        if self._placement is None:
            raise EnvironmentFault(Reason.NO_TELEMETRY, "this daemon was started without telemetry")
        return self._placement

    @property
    def bus(self) -> Bus:
        return self._supervisor.bus

    @property
    def lease_settings(self) -> LeaseSettings:
        return self._supervisor.settings.leases

    def wall_offset(self) -> float:
        """Unix time minus boot time, in seconds."""
        return self._clock.wall() - self._clock.now()

    # Pools.

    def pool(self, pool_id: str) -> PublishedPool:
        return self._supervisor.actor(pool_id).published

    def pools(self) -> Sequence[PublishedPool]:
        """By pool id."""
        return [actor.published for actor in self._supervisor.actors()]

    async def create_pool(self, pool_id: str, spec: PoolSpec) -> PublishedPool:
        return (await self._supervisor.create(pool_id, spec, Origin.API)).published

    async def check_pool(self, pool_id: str, spec: PoolSpec) -> None:
        await self._supervisor.check_new(pool_id, spec)

    async def update_pool(self, pool_id: str, change: Callable[[PoolSpec], PoolSpec]) -> PublishedPool:
        self.registrations.require_ours(pool_id)
        return (await self.versions.update(pool_id, change)).published

    async def reload_pool(
        self, pool_id: str, spec: PoolSpec | None, strategy: ReloadStrategy, drain_deadline: float | None, wait: float
    ) -> PublishedPool:
        """To a new generation; `spec` None restarts the same. Times in seconds."""
        self.registrations.require_ours(pool_id)
        actor = await self.versions.reload(pool_id, spec, Way(strategy, drain_deadline))
        return await self._reloaded(actor, wait)

    async def rollback_pool(
        self, pool_id: str, generation: int, drain_deadline: float | None, wait: float
    ) -> PublishedPool:
        """To a generation that is kept, 0 for the last good one."""
        self.registrations.require_ours(pool_id)
        actor = await self.versions.rollback(pool_id, generation, Way(drain_deadline=drain_deadline))
        return await self._reloaded(actor, wait)

    async def _reloaded(self, actor: PoolActor, wait: float) -> PublishedPool:
        if wait > 0:
            await actor.until(_arrived, self._clock.now() + wait)
        return actor.published

    async def generations(self, pool_id: str) -> Sequence[GenerationView]:
        """Oldest first."""
        return await self.versions.list(pool_id)

    async def preload(self, pool_id: str, wait: float) -> PublishedPool:
        return await self._command(pool_id, Preload(), wait, lambda p: p.state in STARTED)

    async def drain(self, pool_id: str, deadline: float | None, wait: float) -> PublishedPool:
        return await self._command(pool_id, Drain(deadline), wait, lambda p: p.state in DRAINED)

    async def undrain(self, pool_id: str) -> PublishedPool:
        return await self._command(pool_id, Undrain(), 0.0, lambda p: True)

    async def stop(self, pool_id: str, grace: float | None, wait: float) -> PublishedPool:
        return await self._command(pool_id, Stop(grace), wait, lambda p: p.state is not PoolState.STOPPING)

    async def reset_breaker(self, pool_id: str) -> PublishedPool:
        return await self._command(pool_id, ResetBreaker(), 0.0, lambda p: True)

    async def delete(self, pool_id: str, deadline: float | None) -> None:
        """Returns once the pool is forgotten; goes on when the caller does not wait for it."""
        await self._command(pool_id, Delete(deadline), 0.0, lambda p: True)
        await asyncio.shield(self._supervisor.forgotten(pool_id))

    async def _command(self, pool_id: str, event: Event, wait: float, reached: Callable[[Pool], bool]) -> PublishedPool:
        if self._supervisor.closing:
            raise EnvironmentFault(Reason.SHUTTING_DOWN, "the daemon is shutting down")
        actor = self._supervisor.actor(pool_id)
        if actor.pool.state is PoolState.UNKNOWN:
            await self._supervisor.clear_doubt(pool_id)
        await actor.command(event)
        if wait > 0:
            await actor.until(reached, self._clock.now() + wait)
        return actor.published

    # Leases.

    def lease_key(self, pool_id: str) -> tuple[str, str]:
        """A new (lease_id, token). The id names its pool, so that nothing needs to remember where it is."""
        drawn = self._rng.hex(24)  # at once: each draw is a system call
        return f"{pool_id}.{drawn[:16]}", drawn[16:]

    async def acquire(self, pool_id: str, ask: LeaseAsk) -> Lease | Refusal:
        actor = self._supervisor.find(pool_id)
        if actor is None:
            return Refusal(RefusalReason.POOL_NOT_FOUND, f"there is no pool {pool_id!r}")
        return await actor.acquire(ask)

    def try_acquire(self, pool_id: str, ask: LeaseAsk) -> Lease | Refusal | None:
        """As `acquire`, without waiting: None where the ask would have to, and may."""
        actor = self._supervisor.find(pool_id)
        if actor is None:
            return Refusal(RefusalReason.POOL_NOT_FOUND, f"there is no pool {pool_id!r}")
        if not ask.wait:
            return actor.ask(ask)
        result = actor.ask(replace(ask, wait=0.0))
        return result if isinstance(result, Lease) else None

    def lease_batch(self) -> AbstractContextManager[None]:
        """What is granted and ended inside is recorded at once, at its end. EnvironmentFault: no grant in it holds."""
        return self._supervisor.recording.batch()

    def renew(self, lease_id: str, token: str) -> tuple[LeaseOutcome, float | None]:
        """(outcome, new expiry in boot-time seconds)."""
        actor = self._pool_of(lease_id)
        if actor is None:
            return LeaseOutcome.UNKNOWN, None
        ended = actor.end_lease(Renew(lease_id, token))
        return ended.outcome, ended.expires

    def release(self, lease_id: str, token: str) -> LeaseOutcome:
        actor = self._pool_of(lease_id)
        return LeaseOutcome.UNKNOWN if actor is None else actor.end_lease(Release(lease_id, token)).outcome

    def _pool_of(self, lease_id: str) -> PoolActor | None:
        return self._supervisor.find(pool_of(lease_id))

    def leases(self, pool_id: str) -> Sequence[tuple[str, Lease]]:
        """(pool id, lease), by pool id and grant; every pool when `pool_id` is empty."""
        actors = [self._supervisor.actor(pool_id)] if pool_id else self._supervisor.actors()
        return [(actor.pool.pool_id, lease) for actor in actors for lease in live_leases(actor.pool)]

    # Engines.

    async def register_engine(self, said: Registration) -> PublishedPool:
        return (await self.registrations.register(said)).published

    def heartbeat(self, beat: Beat) -> BeatAnswer:
        return self.registrations.heartbeat(beat)

    async def deregister_engine(self, engine_id: str) -> None:
        await self.registrations.deregister(engine_id)

    def engines(self, pool_id: str) -> Sequence[EngineView]:
        """By pool; every pool's when `pool_id` is empty."""
        actors = [self._supervisor.actor(pool_id)] if pool_id else self._supervisor.actors()
        offset = self.wall_offset()
        return [view for actor in actors for view in engine_views(actor.pool, offset, self._runtime.directory)]

    # Watch.

    def watch(self, after: int) -> AsyncGenerator[list[Change | DeviceChange] | Resync, None]:
        return self.bus.watch(after)

    def follow_log(self, pool_id: str, lines: int) -> AsyncGenerator[tuple[str, ...], None]:
        return self._runtime.follow_log(self._engine_id(pool_id), lines)

    def log_tail(self, pool_id: str, lines: int) -> tuple[str, ...]:
        return self._runtime.log_tail(self._engine_id(pool_id), lines)

    def _engine_id(self, pool_id: str) -> str:
        pool = self._supervisor.actor(pool_id).pool
        home = pool.home
        if pool.registered is not None:
            raise ClientError(Reason.POOL_STATE, f"the engine of pool {pool_id} registered itself: its log is not here")
        if home is None or not home.engine_id:
            raise ClientError(Reason.POOL_STATE, f"pool {pool_id} has not been started, so it has no log")
        return home.engine_id

    def directory(self, engine_id: str) -> str:
        return self._runtime.directory(engine_id) if engine_id else ""

    # The daemon.

    def status(self) -> DaemonStatus:
        actors, about = self._supervisor.actors(), self.about
        by_state = counts(actors)
        return DaemonStatus(
            version=about.version,
            pid=about.pid,
            start_time=about.start_time,
            epoch=self.bus.epoch,
            revision=self.bus.revision,
            address=about.address,
            state_dir=about.state_dir,
            containment=self._runtime.containment,
            pools=len(actors),
            pools_ready=by_state.get(PoolState.READY, 0),
            engines_live=sum(1 for actor in actors if actor.pool.engine is not None),
            active_leases=sum(leased(actor.pool) for actor in actors),
            warnings=(*about.notes, *self._supervisor.warnings),
            pools_by_state=by_state,
            driver=self._devices.status() if self._devices else None,
        )

    def config_values(self) -> Sequence[tuple[str, str, str]]:
        """(section.key, value as JSON, origin)."""
        return self._controls.config_values()

    async def reload_config(self, validate_only: bool) -> ConfigChange:
        """Reads the file again. A bad file, or a pool in it that cannot run, changes nothing."""
        wanted, restart_required = await self._workers.run(self._controls.read_config)
        return await declared.reload(self._supervisor, self.versions, wanted, restart_required, validate_only)

    def shutdown(self, stop_engines: bool) -> int:
        """Begins the end of the daemon. Returns how many engines will go on."""
        self._supervisor.closing = True
        self._controls.shutdown(stop_engines)
        return 0 if stop_engines else self.status().engines_live
