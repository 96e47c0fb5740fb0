"""The one door of the daemon: what gRPC and the web call. Reads answer from what is published and never wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass

from poolmgr.core.messages import Delete, Drain, Event, Preload, Release, Renew, ResetBreaker, Stop, Undrain
from poolmgr.core.state import Pool
from poolmgr.errors import ClientError, EnvironmentFault, Reason
from poolmgr.model.daemon import ConfigChange, DaemonStatus
from poolmgr.model.lease import Lease, LeaseAsk, LeaseOutcome, Refusal, RefusalReason
from poolmgr.model.pool import Origin, PoolSpec, PoolState
from poolmgr.model.settings import LeaseSettings
from poolmgr.ports import Clock
from poolmgr.runtime import declared
from poolmgr.runtime.bus import Bus, Change, PublishedPool, Resync
from poolmgr.runtime.engine_host import Outside
from poolmgr.runtime.pool_actor import PoolActor
from poolmgr.runtime.supervisor import Supervisor, counts

ON_THE_WAY = {PoolState.PENDING, PoolState.PROVISIONING, PoolState.STARTING, PoolState.STOPPING}
STARTED = frozenset(set(PoolState) - ON_THE_WAY)  # or failed to
DRAINED = frozenset(set(PoolState) - {PoolState.DRAINING, PoolState.STOPPING})


@dataclass(frozen=True, slots=True)
class About:
    """What the daemon says of itself that does not change. `start_time` in Unix seconds."""

    version: str
    pid: int
    start_time: float
    address: str
    state_dir: str
    config_file: str


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
        self, supervisor: Supervisor, outside: Outside, clock: Clock, about: About, controls: Controls
    ) -> None:
        self._supervisor = supervisor
        self._workers = outside.workers
        self._runtime = outside.runtime
        self._clock = clock
        self._rng = outside.rng
        self.about = about
        self._controls = controls

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
        return (await self._supervisor.update(pool_id, change)).published

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
        actor = self._supervisor.actor(pool_id)
        actor.command(Delete(deadline))
        await asyncio.shield(self._supervisor.forgotten(pool_id))

    async def _command(self, pool_id: str, event: Event, wait: float, reached: Callable[[Pool], bool]) -> PublishedPool:
        if self._supervisor.closing:
            raise EnvironmentFault(Reason.SHUTTING_DOWN, "the daemon is shutting down")
        actor = self._supervisor.actor(pool_id)
        actor.command(event)
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
        return self._supervisor.find(lease_id.rpartition(".")[0])

    def leases(self, pool_id: str) -> Sequence[tuple[str, Lease]]:
        """(pool id, lease), by pool id and grant; every pool when `pool_id` is empty."""
        actors = [self._supervisor.actor(pool_id)] if pool_id else self._supervisor.actors()
        return [(actor.pool.pool_id, lease) for actor in actors for lease in actor.pool.leases.live.values()]

    # Watch.

    def watch(self, after: int) -> AsyncGenerator[list[Change] | Resync, None]:
        return self.bus.watch(after)

    def follow_log(self, pool_id: str, lines: int) -> AsyncGenerator[tuple[str, ...], None]:
        return self._runtime.follow_log(self._engine_id(pool_id), lines)

    def log_tail(self, pool_id: str, lines: int) -> tuple[str, ...]:
        return self._runtime.log_tail(self._engine_id(pool_id), lines)

    def _engine_id(self, pool_id: str) -> str:
        home = self._supervisor.actor(pool_id).pool.home
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
            active_leases=sum(len(actor.pool.leases.live) for actor in actors),
            warnings=tuple(self._supervisor.warnings),
            pools_by_state=by_state,
        )

    def config_values(self) -> Sequence[tuple[str, str, str]]:
        """(section.key, value as JSON, origin)."""
        return self._controls.config_values()

    async def reload_config(self, validate_only: bool) -> ConfigChange:
        """Reads the file again. A bad file, or a pool in it that cannot run, changes nothing."""
        wanted, restart_required = await self._workers.run(self._controls.read_config)
        return await declared.reload(self._supervisor, wanted, restart_required, validate_only)

    def shutdown(self, stop_engines: bool) -> int:
        """Begins the end of the daemon. Returns how many engines will go on."""
        self._supervisor.closing = True
        self._controls.shutdown(stop_engines)
        return 0 if stop_engines else self.status().engines_live
