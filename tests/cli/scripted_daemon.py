"""A real gRPC server on a real socket that answers as a test says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

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

READY = pool_pb2.Pool(
    pool_id="chat",
    state=pool_pb2.Pool.READY,
    engine=pool_pb2.ENGINE_LLAMACPP,
    slots_total=4,
    endpoint="127.0.0.1:8081",
    pid=4242,
    create_time={"seconds": 1_700_000_000},
)
PARKED = pool_pb2.Pool(
    pool_id="chat",
    state=pool_pb2.Pool.PARKED,
    engine=pool_pb2.ENGINE_COMMAND,
    last_error={"reason": "EXIT_CODE", "message": "exited with 3", "log_tail": ["boom \x1b[2J[red]"]},
)

Handler = Callable[[Any, grpc.ServicerContext], Any]


@dataclass
class ScriptedDaemon:
    """`script`: by RPC, the message to answer with, or a function of (request, context)."""

    script: dict[str, Message | Handler] = field(default_factory=dict)
    calls: list[tuple[str, Any]] = field(default_factory=list)
    address: str = ""

    def requests(self, name: str) -> list[Any]:
        return [request for called, request in self.calls if called == name]

    def __getattr__(self, name: str) -> Handler:
        """Every method of every service."""
        if not name[0].isupper():
            raise AttributeError(name)

        def answer(request: Any, context: grpc.ServicerContext) -> Any:
            self.calls.append((name, request))
            scripted = self.script.get(name)
            if scripted is None:
                context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{name} is not scripted")
            return scripted if isinstance(scripted, Message) else scripted(request, context)

        return answer


@contextmanager
def serving() -> Iterator[ScriptedDaemon]:
    daemon = ScriptedDaemon()
    with ThreadPoolExecutor(8) as threads:
        server = grpc.server(threads, options=[("grpc.so_reuseport", 0)])
        pool_pb2_grpc.add_PoolServiceServicer_to_server(daemon, server)
        lease_pb2_grpc.add_LeaseServiceServicer_to_server(daemon, server)
        engine_pb2_grpc.add_EngineServiceServicer_to_server(daemon, server)
        admin_pb2_grpc.add_AdminServiceServicer_to_server(daemon, server)
        device_pb2_grpc.add_DeviceServiceServicer_to_server(daemon, server)
        telemetry_pb2_grpc.add_TelemetryServiceServicer_to_server(daemon, server)
        placement_pb2_grpc.add_PlacementServiceServicer_to_server(daemon, server)
        daemon.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        try:
            yield daemon
        finally:
            server.stop(None).wait()


def refusing(
    code: grpc.StatusCode, reason: str, message: str, retry_after: int | None = None, **metadata: str
) -> Handler:
    """Refuses as the daemon does: google.rpc.Status with ErrorInfo, and RetryInfo where a time is known."""
    details = [error_details_pb2.ErrorInfo(reason=reason, domain="poolmgr", metadata=metadata)]
    if retry_after is not None:
        details.append(error_details_pb2.RetryInfo(retry_delay={"seconds": retry_after}))
    status = status_pb2.Status(code=code.value[0], message=message, details=[_packed(one) for one in details])

    def refuse(_request: Any, context: grpc.ServicerContext) -> None:
        context.abort_with_status(rpc_status.to_status(status))

    return refuse


def _packed(message: Message) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(message)
    return packed
