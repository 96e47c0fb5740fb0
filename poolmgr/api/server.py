"""The gRPC server: options, services, address."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from poolmgr.api.admin import AdminServicer
from poolmgr.api.devices import DeviceServicer
from poolmgr.api.engines import EngineServicer
from poolmgr.api.guard import Guarded
from poolmgr.api.health import HealthServicer
from poolmgr.api.leases import LeaseServicer
from poolmgr.api.placement import PlacementServicer
from poolmgr.api.pools import PoolServicer
from poolmgr.api.telemetry import TelemetryServicer
from poolmgr.errors import EnvironmentFault, Reason
from poolmgr.ports import Rng
from poolmgr.runtime.facade import Facade
from poolmgr.v1 import (
    admin_pb2_grpc,
    device_pb2_grpc,
    engine_pb2_grpc,
    lease_pb2_grpc,
    placement_pb2_grpc,
    pool_pb2,
    pool_pb2_grpc,
    telemetry_pb2_grpc,
)

SERVICES = (
    "poolmgr.v1.PoolService",
    "poolmgr.v1.LeaseService",
    "poolmgr.v1.EngineService",
    "poolmgr.v1.DeviceService",
    "poolmgr.v1.TelemetryService",
    "poolmgr.v1.PlacementService",
    "poolmgr.v1.AdminService",
    "grpc.health.v1.Health",
    reflection.SERVICE_NAME,
)
MAX_METADATA_BYTES = 8 * 1024
HANDSHAKE_TIMEOUT_MS = 5000


@dataclass(frozen=True, slots=True)
class ServerSettings:
    host: str
    port: int
    reflection: bool
    max_message_bytes: int
    max_concurrent_rpcs: int


def server_options(settings: ServerSettings) -> list[tuple[str, int]]:
    """gRPC's channel arguments. The bench's echo server takes them too."""
    return [
        # On by default, and then a second daemon would share the port silently (SEC-3).
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        # Between a soft and a hard limit refusals are random: one limit.
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_TIMEOUT_MS),
    ]


class _GenericOnly:
    """The server as generated code sees it, which registers each method a second time, by name.

    grpcio waits for every such method separately: 12 us more for each call with our thirty (1.85.1, bench.rpc).
    """

    def __init__(self, server: grpc.aio.Server) -> None:
        self.add_generic_rpc_handlers = server.add_generic_rpc_handlers

    def add_registered_method_handlers(self, service: str, handlers: object) -> None:
        """Nothing: the generic handlers answer."""


def _watching(pools: Any) -> grpc.GenericRpcHandler:
    """WatchPools as it is served: its messages come serialised."""
    handler: grpc.RpcMethodHandler[Any, Any] = grpc.unary_stream_rpc_method_handler(
        pools.WatchPools, request_deserializer=pool_pb2.WatchPoolsRequest.FromString, response_serializer=None
    )
    return grpc.method_handlers_generic_handler("poolmgr.v1.PoolService", {"WatchPools": handler})


class ApiServer:
    """`address` is host:port as bound, once `start` has returned."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._server = grpc.aio.server(
            options=server_options(settings), maximum_concurrent_rpcs=settings.max_concurrent_rpcs
        )
        self.address = ""

    def bind(self) -> str:
        """Takes the address; nothing is answered yet. Raises EnvironmentFault(ADDRESS) when it is not to be had."""
        host = f"[{self._settings.host}]" if ":" in self._settings.host else self._settings.host
        wanted = f"{host}:{self._settings.port}"
        try:
            port = self._server.add_insecure_port(wanted)
        except RuntimeError as error:
            raise EnvironmentFault(
                Reason.ADDRESS,
                f"cannot listen on {wanted}; is another daemon there? --addr or POOL_MANAGERD_ADDR chooses another",
                numbers={"address": wanted},
            ) from error
        self.address = f"{host}:{port}"
        return self.address

    async def start(self, facade: Facade, rng: Rng) -> None:
        server = cast(grpc.aio.Server, _GenericOnly(self._server))

        def guarded(servicer: object) -> Any:
            return cast(Any, Guarded(servicer, rng))

        pools = PoolServicer(facade)
        self._server.add_generic_rpc_handlers((_watching(guarded(pools)),))  # goes before the generated one
        pool_pb2_grpc.add_PoolServiceServicer_to_server(guarded(pools), server)
        lease_pb2_grpc.add_LeaseServiceServicer_to_server(guarded(LeaseServicer(facade)), server)
        engine_pb2_grpc.add_EngineServiceServicer_to_server(guarded(EngineServicer(facade)), server)
        device_pb2_grpc.add_DeviceServiceServicer_to_server(guarded(DeviceServicer(facade)), server)
        telemetry_pb2_grpc.add_TelemetryServiceServicer_to_server(guarded(TelemetryServicer(facade)), server)
        placement_pb2_grpc.add_PlacementServiceServicer_to_server(guarded(PlacementServicer(facade)), server)
        admin_pb2_grpc.add_AdminServiceServicer_to_server(guarded(AdminServicer(facade)), server)
        health_pb2_grpc.add_HealthServicer_to_server(guarded(HealthServicer(facade)), server)
        if self._settings.reflection:
            reflection.enable_server_reflection(SERVICES, server)
        await self._server.start()

    async def stop(self, grace: float) -> None:
        """Takes no more calls and lets running ones finish for `grace` seconds."""
        await self._server.stop(grace)
