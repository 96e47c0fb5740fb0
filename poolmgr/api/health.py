"""grpc.health.v1: "" for the daemon, "pool/<id>" for each pool, read from what is published."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from grpc_health.v1 import health_pb2 as pb
from grpc_health.v1 import health_pb2_grpc

from poolmgr.api.guard import Context
from poolmgr.errors import ClientError, Reason
from poolmgr.runtime.bus import Resync
from poolmgr.runtime.facade import Facade

POOL_PREFIX = "pool/"


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    def __init__(self, facade: Facade) -> None:
        self._facade = facade

    async def Check(self, request: pb.HealthCheckRequest, context: Context) -> pb.HealthCheckResponse:
        status = self._status(request.service)
        if status == pb.HealthCheckResponse.SERVICE_UNKNOWN:
            raise ClientError(Reason.POOL_NOT_FOUND, f"no service {request.service!r}; try '' or 'pool/<id>'")
        return pb.HealthCheckResponse(status=status)

    async def Watch(self, request: pb.HealthCheckRequest, context: Context) -> AsyncIterator[pb.HealthCheckResponse]:
        while True:
            revision, status = self._facade.bus.revision, self._status(request.service)
            yield pb.HealthCheckResponse(status=status)
            async with aclosing(self._facade.watch(revision)) as changes:
                async for batch in changes:
                    now = self._status(request.service)
                    if now != status:
                        status = now
                        yield pb.HealthCheckResponse(status=status)
                    if isinstance(batch, Resync):
                        break

    def _status(self, service: str) -> int:
        if not service:
            return int(pb.HealthCheckResponse.SERVING)
        if not service.startswith(POOL_PREFIX):
            return int(pb.HealthCheckResponse.SERVICE_UNKNOWN)
        try:
            pool = self._facade.pool(service.removeprefix(POOL_PREFIX))
        except ClientError:
            return int(pb.HealthCheckResponse.SERVICE_UNKNOWN)
        return int(pb.HealthCheckResponse.SERVING if pool.view.ready else pb.HealthCheckResponse.NOT_SERVING)
