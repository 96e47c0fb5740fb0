"""A connection to the daemon: its options, what is sent again, and how a call fails."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Final, Protocol, Self, TypeVar

import grpc

from poolmgr.client.errors import call_error

DEFAULT_ADDRESS: Final = "127.0.0.1:9200"
ADDRESS_VARIABLE: Final = "POOL_MANAGERD_ADDR"
DEFAULT_TIMEOUT: Final = 10.0
MAX_MESSAGE_BYTES: Final = 4 * 1024 * 1024
# A page of pools or a snapshot may carry a log tail of 64 KiB per failed pool.
MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024
# A server cuts off who pings more often than every 300 s.
KEEPALIVE_MS: Final = 360_000
MAX_ATTEMPTS: Final = 4

# What may be sent again when nobody knows whether it arrived. AcquireLease is here for its request id.
_IDEMPOTENT: Final[Mapping[str, Sequence[str]]] = {
    "PoolService": (
        "CreatePool",
        "GetPool",
        "ListPools",
        "UpdatePool",
        "PreloadPool",
        "DrainPool",
        "StopPool",
        "ResetBreaker",
        "ListPoolGenerations",
    ),
    "LeaseService": ("AcquireLease", "RenewLease", "ReleaseLease", "ListLeases"),
    "EngineService": ("ListEngines", "RegisterEngine"),
    "DeviceService": ("ListDevices", "GetDevice", "ParseMask", "ListClaims", "CordonDevice", "UncordonDevice"),
    "TelemetryService": ("GetTelemetry", "GetRingInfo"),
    "PlacementService": ("PlanSplit", "PlanPlacement", "EstimateMemory"),
    "AdminService": ("GetStatus", "GetConfig", "ReloadConfig"),
}
_RETRIES: Final = {
    "methodConfig": [
        {
            "name": [
                {"service": f"poolmgr.v1.{service}", "method": method}
                for service, methods in _IDEMPOTENT.items()
                for method in methods
            ],
            "retryPolicy": {
                "maxAttempts": MAX_ATTEMPTS,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}
_OPTIONS: Final = [
    ("grpc.service_config", json.dumps(_RETRIES)),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 5000),
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_ANSWER_BYTES),
]

Q = TypeVar("Q", contravariant=True)
A = TypeVar("A", covariant=True)
T = TypeVar("T")


class _Unary(Protocol[Q, A]):
    def __call__(self, request: Q, timeout: float | None = None) -> A: ...


class _Stream(Protocol[A]):
    def __iter__(self) -> Iterator[A]: ...
    def cancel(self) -> object: ...


class Connection:
    """Made on first use. `timeout`: seconds for a call beyond its own wait.

    `address`: host:port; else what POOL_MANAGERD_ADDR says, else 127.0.0.1:9200.
    """

    def __init__(self, address: str | None = None, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        self.address = address = address or os.environ.get(ADDRESS_VARIABLE, DEFAULT_ADDRESS)
        self._timeout = timeout
        self._channel = grpc.insecure_channel(address, _OPTIONS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection and every call on it."""
        self._channel.close()

    def _call(self, method: _Unary[Q, A], request: Q, wait: float | None = 0.0, timeout: float | None = None) -> A:
        """`wait`: how long the daemon may take on request, None without limit; `timeout` replaces the client's."""
        budget = None if wait is None else (self._timeout if timeout is None else timeout) + wait
        try:
            return method(request, timeout=budget)
        except grpc.RpcError as error:
            raise call_error(error, self.address) from error

    def _stream(self, method: Callable[[Q], _Stream[A]], request: Q) -> Iterator[A]:
        call = method(request)
        try:
            yield from call
        except grpc.RpcError as error:
            raise call_error(error, self.address) from error
        finally:
            call.cancel()


def all_pages(page: Callable[[str], tuple[Sequence[T], str]]) -> list[T]:
    items, token = page("")
    found = list(items)
    while token:
        items, token = page(token)
        found.extend(items)
    return found
