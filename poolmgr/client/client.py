"""The calls."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from google.protobuf.field_mask_pb2 import FieldMask

from poolmgr.client.connection import DEFAULT_TIMEOUT, all_pages
from poolmgr.client.devices import DeviceCalls
from poolmgr.client.errors import LeaseRefused
from poolmgr.client.held import HeldLease
from poolmgr.client.placement import PlacementCalls
from poolmgr.client.session import LeaseSession
from poolmgr.convert.common import duration_to_proto, optional_duration
from poolmgr.v1 import admin_pb2, engine_pb2, lease_pb2, pool_pb2
from poolmgr.v1.admin_pb2_grpc import AdminServiceStub
from poolmgr.v1.engine_pb2_grpc import EngineServiceStub
from poolmgr.v1.lease_pb2_grpc import LeaseServiceStub
from poolmgr.v1.pool_pb2_grpc import PoolServiceStub


class Client(DeviceCalls, PlacementCalls):
    """A connection to the daemon, made on first use. `timeout`: seconds for a call beyond its own wait.

    `address`: host:port; else what POOL_MANAGERD_ADDR says, else 127.0.0.1:9200.
    """

    def __init__(self, address: str | None = None, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        super().__init__(address, timeout=timeout)
        self._pools = PoolServiceStub(self._channel)
        self._leases = LeaseServiceStub(self._channel)
        self._engines = EngineServiceStub(self._channel)
        self._admin = AdminServiceStub(self._channel)

    # Pools.

    def create_pool(self, pool_id: str, spec: pool_pb2.PoolSpec, *, validate_only: bool = False) -> pool_pb2.Pool:
        request = pool_pb2.CreatePoolRequest(
            pool_id=pool_id, spec=spec, request_id=uuid.uuid4().hex, validate_only=validate_only
        )
        return self._call(self._pools.CreatePool, request)

    def get_pool(self, pool_id: str) -> pool_pb2.Pool:
        return self._call(self._pools.GetPool, pool_pb2.GetPoolRequest(pool_id=pool_id))

    def list_pools(self) -> list[pool_pb2.Pool]:
        """All of them, by pool id."""

        def page(token: str) -> tuple[Sequence[pool_pb2.Pool], str]:
            answer = self._call(self._pools.ListPools, pool_pb2.ListPoolsRequest(page_token=token))
            return answer.pools, answer.next_page_token

        return all_pages(page)

    def update_pool(self, pool_id: str, spec: pool_pb2.PoolSpec, paths: Sequence[str] = ("spec",)) -> pool_pb2.Pool:
        """Replaces what `paths` name, such as "spec.slots"; what `spec` leaves out of it goes back to its default."""
        pool = pool_pb2.Pool(pool_id=pool_id, spec=spec)
        request = pool_pb2.UpdatePoolRequest(pool=pool, update_mask=FieldMask(paths=paths))
        return self._call(self._pools.UpdatePool, request)

    def preload(self, pool_id: str, *, wait: float = 0.0) -> pool_pb2.Pool:
        """Starts it. Answers when it is READY, has failed, or `wait` seconds are over: look at the state."""
        request = pool_pb2.PreloadPoolRequest(pool_id=pool_id, wait=duration_to_proto(wait))
        return self._call(self._pools.PreloadPool, request, wait)

    def drain(self, pool_id: str, *, deadline: float | None = None, wait: float = 0.0) -> pool_pb2.Pool:
        """`deadline`: seconds that leases may still have, None for the spec's."""
        request = pool_pb2.DrainPoolRequest(
            pool_id=pool_id, deadline=optional_duration(deadline), wait=duration_to_proto(wait)
        )
        return self._call(self._pools.DrainPool, request, wait)

    def undrain(self, pool_id: str) -> pool_pb2.Pool:
        return self._call(self._pools.UndrainPool, pool_pb2.UndrainPoolRequest(pool_id=pool_id))

    def reload(
        self,
        pool_id: str,
        spec: pool_pb2.PoolSpec | None = None,
        *,
        strategy: pool_pb2.ReloadStrategy.ValueType = pool_pb2.RELOAD_AUTO,
        drain_deadline: float | None = None,
        wait: float = 0.0,
    ) -> pool_pb2.Pool:
        """Moves it to a new spec; None restarts the same. A reload that fails leaves the pool as it was: look at its
        `generation` and `last_error`. `drain_deadline`: seconds for the old engine's leases, None for the spec's.
        """
        request = pool_pb2.ReloadPoolRequest(
            pool_id=pool_id,
            spec=spec,
            strategy=strategy,
            drain_deadline=optional_duration(drain_deadline),
            wait=duration_to_proto(wait),
        )
        return self._call(self._pools.ReloadPool, request, wait)

    def rollback(
        self, pool_id: str, generation: int = 0, *, drain_deadline: float | None = None, wait: float = 0.0
    ) -> pool_pb2.Pool:
        """Goes back to a generation that is kept, 0 for the last good one; the rest as `reload`."""
        request = pool_pb2.RollbackPoolRequest(
            pool_id=pool_id,
            generation=generation,
            drain_deadline=optional_duration(drain_deadline),
            wait=duration_to_proto(wait),
        )
        return self._call(self._pools.RollbackPool, request, wait)

    def generations(self, pool_id: str) -> list[pool_pb2.PoolGeneration]:
        """Those that are kept, oldest first."""

        def page(token: str) -> tuple[Sequence[pool_pb2.PoolGeneration], str]:
            request = pool_pb2.ListPoolGenerationsRequest(pool_id=pool_id, page_token=token)
            answer = self._call(self._pools.ListPoolGenerations, request)
            return answer.generations, answer.next_page_token

        return all_pages(page)

    def stop(self, pool_id: str, *, grace: float | None = None, wait: float = 0.0) -> pool_pb2.Pool:
        """`grace`: seconds from SIGTERM to the kill, None for the daemon's."""
        request = pool_pb2.StopPoolRequest(
            pool_id=pool_id, grace=optional_duration(grace), wait=duration_to_proto(wait)
        )
        return self._call(self._pools.StopPool, request, wait)

    def delete(self, pool_id: str, *, drain_deadline: float | None = None) -> None:
        """Answers once the pool is gone, however long its drain takes."""
        request = pool_pb2.DeletePoolRequest(pool_id=pool_id, drain_deadline=optional_duration(drain_deadline))
        self._call(self._pools.DeletePool, request, None)

    def reset_breaker(self, pool_id: str) -> pool_pb2.Pool:
        return self._call(self._pools.ResetBreaker, pool_pb2.ResetBreakerRequest(pool_id=pool_id))

    def watch_pools(self, *, from_revision: int = 0, pool_id: str = "") -> Iterator[pool_pb2.WatchPoolsResponse]:
        """Every change in order, without end. Closing the iterator ends the watch."""
        request = pool_pb2.WatchPoolsRequest(from_revision=from_revision, pool_id=pool_id)
        return self._stream(self._pools.WatchPools, request)

    def tail_logs(self, pool_id: str, *, lines: int = 50, follow: bool = False) -> Iterator[str]:
        """The last lines of the engine's log, then with `follow` new ones until the engine is removed."""
        request = pool_pb2.TailLogsRequest(pool_id=pool_id, lines=lines, follow=follow)
        for answer in self._stream(self._pools.TailLogs, request):
            yield from answer.lines

    # Leases.

    def acquire(
        self, pool_id: str, *, holder: str, ttl: float | None = None, wait: float = 0.0, priority: int = 0
    ) -> lease_pb2.Lease:
        """Takes a slot, or raises LeaseRefused. The caller renews and releases; `lease` does both by itself."""
        request = lease_pb2.AcquireLeaseRequest(
            pool_id=pool_id,
            holder=holder,
            ttl=optional_duration(ttl),
            wait=duration_to_proto(wait),
            priority=priority,
            request_id=uuid.uuid4().hex,
        )
        answer = self._call(self._leases.AcquireLease, request, wait)
        if answer.HasField("refusal"):
            raise LeaseRefused(answer.refusal)
        return answer.lease

    def renew(self, lease_id: str, token: str, *, timeout: float | None = None) -> lease_pb2.RenewLeaseResponse:
        request = lease_pb2.RenewLeaseRequest(lease_id=lease_id, token=token)
        return self._call(self._leases.RenewLease, request, timeout=timeout)

    def release(self, lease_id: str, token: str) -> lease_pb2.ReleaseLeaseResponse:
        request = lease_pb2.ReleaseLeaseRequest(lease_id=lease_id, token=token)
        return self._call(self._leases.ReleaseLease, request)

    @contextmanager
    def lease(
        self, pool_id: str, *, holder: str, ttl: float | None = None, wait: float = 0.0, priority: int = 0
    ) -> Iterator[HeldLease]:
        """A slot for the time of the block: renewed in the background, released at the end."""
        held = HeldLease(self, self.acquire(pool_id, holder=holder, ttl=ttl, wait=wait, priority=priority))
        try:
            yield held
        finally:
            held.close()

    def session(self) -> LeaseSession:
        """A stream for leases by the batch: `with client.session() as session: session.run(operations)`."""
        return LeaseSession(self._leases.Session, self.address, self._timeout)

    def list_leases(self, pool_id: str = "") -> list[lease_pb2.Lease]:
        """Live leases in the order of their grant, without their tokens; of every pool unless one is named."""

        def page(token: str) -> tuple[Sequence[lease_pb2.Lease], str]:
            request = lease_pb2.ListLeasesRequest(pool_id=pool_id, page_token=token)
            answer = self._call(self._leases.ListLeases, request)
            return answer.leases, answer.next_page_token

        return all_pages(page)

    # Engines and the daemon.

    def list_engines(self, pool_id: str = "") -> list[engine_pb2.EngineInstance]:
        def page(token: str) -> tuple[Sequence[engine_pb2.EngineInstance], str]:
            request = engine_pb2.ListEnginesRequest(pool_id=pool_id, page_token=token)
            answer = self._call(self._engines.ListEngines, request)
            return answer.engines, answer.next_page_token

        return all_pages(page)

    def register_engine(self, request: engine_pb2.RegisterEngineRequest) -> pool_pb2.Pool:
        """Tells of an engine that runs by itself; fields that are not set stay as they were. Then send heartbeats."""
        return self._call(self._engines.RegisterEngine, request)

    def heartbeats(self, requests: Iterator[engine_pb2.HeartbeatRequest]) -> Iterator[engine_pb2.HeartbeatResponse]:
        """Sends what `requests` gives, as it gives it, and yields the answers: when to send the next, and what to do.

        Ends when `requests` does. Raises CallError; an engine is not lost by that before its ttl is over.
        """
        return self._stream(self._engines.Heartbeat, requests)

    def deregister_engine(self, engine_id: str) -> None:
        self._call(self._engines.DeregisterEngine, engine_pb2.DeregisterEngineRequest(engine_id=engine_id))

    def status(self) -> admin_pb2.Status:
        return self._call(self._admin.GetStatus, admin_pb2.GetStatusRequest())

    def config(self) -> admin_pb2.Config:
        return self._call(self._admin.GetConfig, admin_pb2.GetConfigRequest())

    def reload_config(self, *, validate_only: bool = False) -> admin_pb2.ReloadConfigResponse:
        return self._call(self._admin.ReloadConfig, admin_pb2.ReloadConfigRequest(validate_only=validate_only))

    def shutdown(self, *, stop_engines: bool = False) -> admin_pb2.ShutdownResponse:
        """Ends the daemon. Engines go on unless `stop_engines` is set."""
        return self._call(self._admin.Shutdown, admin_pb2.ShutdownRequest(stop_engines=stop_engines))
