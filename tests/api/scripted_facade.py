"""A facade that keeps a few slots and answers as a test says, behind the real server on a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import grpc

from poolmgr.api.server import ApiServer, ServerSettings
from poolmgr.errors import ClientError, EnvironmentFault, Reason
from poolmgr.model.lease import Lease, LeaseAsk, LeaseOutcome, Refusal, RefusalReason
from poolmgr.model.registration import Beat, BeatAnswer, DesiredState, EngineView, Registration
from poolmgr.model.settings import LeaseSettings
from poolmgr.runtime.facade import Facade
from poolmgr.testing.fakes import SeededRng
from poolmgr.v1 import pool_pb2

FULL = Refusal(RefusalReason.POOL_FULL, "every slot is leased")


@dataclass
class Published:
    """As PublishedPool: the message is there already."""

    encoded: pool_pb2.Pool


@dataclass
class ScriptedFacade:
    """`free`: slots by pool. `fault`: what the end of a batch raises. `calls`: what was asked beside leases."""

    free: dict[str, int] = field(default_factory=dict)
    fault: EnvironmentFault | None = None
    defect: Exception | None = None
    live: dict[str, Lease] = field(default_factory=dict)
    waiters: list[tuple[str, LeaseAsk, asyncio.Future[Lease]]] = field(default_factory=list)
    forgotten: asyncio.Event = field(default_factory=asyncio.Event)
    recorded: list[int] = field(default_factory=list)
    pool: pool_pb2.Pool = field(default_factory=lambda: pool_pb2.Pool(pool_id="chat"))
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    error: ClientError | None = None
    kept: list[Any] = field(default_factory=list)
    listed: list[EngineView] = field(default_factory=list)
    lease_settings: LeaseSettings = field(default_factory=LeaseSettings)
    _serial: int = 0
    _done: int = 0

    # Leases.

    def wall_offset(self) -> float:
        return 1_700_000_000.0

    def lease_key(self, pool_id: str) -> tuple[str, str]:
        self._serial += 1
        return f"{pool_id}.{self._serial}", f"secret-{self._serial}"

    @contextmanager
    def lease_batch(self) -> Iterator[None]:
        self._done = 0
        yield
        if self.fault is not None:
            raise self.fault
        self.recorded.append(self._done)

    def try_acquire(self, pool_id: str, ask: LeaseAsk) -> Lease | Refusal | None:
        if self.defect is not None:
            raise self.defect
        if pool_id not in self.free:
            return Refusal(RefusalReason.POOL_NOT_FOUND, f"there is no pool {pool_id!r}", 0.5)
        if self.free[pool_id] <= 0:
            return None if ask.wait > 0 else FULL
        self._done += 1
        return self._grant(pool_id, ask)

    async def acquire(self, pool_id: str, ask: LeaseAsk) -> Lease | Refusal:
        outcome = self.try_acquire(pool_id, ask)
        if outcome is not None:
            return outcome
        waiter = (pool_id, ask, asyncio.get_running_loop().create_future())
        self.waiters.append(waiter)
        try:
            return await waiter[2]
        except asyncio.CancelledError:
            self.waiters.remove(waiter)
            self.forgotten.set()
            raise

    def _grant(self, pool_id: str, ask: LeaseAsk) -> Lease:
        self.free[pool_id] -= 1
        lease = Lease(ask.lease_id, ask.token, ask.holder, ask.ttl, 3, self._serial, "127.0.0.1:1", ask.ttl)
        self.live[lease.lease_id] = lease
        return lease

    def renew(self, lease_id: str, token: str) -> tuple[LeaseOutcome, float | None]:
        return (LeaseOutcome.RENEWED, 15.0) if lease_id in self.live else (LeaseOutcome.UNKNOWN, None)

    def release(self, lease_id: str, token: str) -> LeaseOutcome:
        if self.live.pop(lease_id, None) is None:
            return LeaseOutcome.UNKNOWN
        self._done += 1
        pool_id = lease_id.rpartition(".")[0]
        self.free[pool_id] += 1
        for waiter in [w for w in self.waiters if w[0] == pool_id][: self.free[pool_id]]:
            self.waiters.remove(waiter)
            waiter[2].set_result(self._grant(pool_id, waiter[1]))
        return LeaseOutcome.RELEASED

    # Pools and engines.

    def _told(self, *call: Any) -> None:
        self.calls.append(call)
        if self.error is not None:
            raise self.error

    async def reload_pool(self, *call: Any) -> Published:
        self._told("reload", *call)
        return Published(self.pool)

    async def rollback_pool(self, *call: Any) -> Published:
        self._told("rollback", *call)
        return Published(self.pool)

    async def generations(self, pool_id: str) -> list[Any]:
        self._told("generations", pool_id)
        return self.kept

    async def register_engine(self, registration: Registration) -> Published:
        self._told("register", registration)
        return Published(self.pool)

    async def deregister_engine(self, engine_id: str) -> None:
        self._told("deregister", engine_id)

    def heartbeat(self, beat: Beat) -> BeatAnswer:
        self._told("beat", beat)
        if beat.engine_id == "gone":
            raise ClientError(Reason.ENGINE_NOT_FOUND, "no engine 'gone'", numbers={"engine_id": "gone"})
        return BeatAnswer(10.0, DesiredState.DRAIN if beat.draining else DesiredState.SERVE)

    def engines(self, pool_id: str) -> list[EngineView]:
        self._told("engines", pool_id)
        return self.listed


@asynccontextmanager
async def served(facade: ScriptedFacade) -> AsyncIterator[grpc.aio.Channel]:
    """The API over `facade`, and a connection to it."""
    server = ApiServer(ServerSettings("127.0.0.1", 0, False, 4 << 20, 64))
    address = server.bind()
    await server.start(cast(Facade, facade), SeededRng())
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            yield channel
    finally:
        await server.stop(0)
