"""What a client raises, and how it is read from a gRPC status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from poolmgr.convert.common import seconds
from poolmgr.errors import Reason
from poolmgr.v1 import lease_pb2

_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}


class CallError(Exception):
    """A call was not done. `reason` is stable: one of errors.Reason, else the name of the gRPC code.

    `metadata` has the numbers that led to it; `retry_after` is in seconds, None when no time is known.
    """

    def __init__(
        self,
        reason: str,
        message: str,
        metadata: Mapping[str, str],
        code: grpc.StatusCode,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.metadata = dict(metadata)
        self.code = code
        self.retry_after = retry_after


class LeaseRefused(Exception):
    """The pool gives no slot now. `reason` names a Refusal.Reason; `retry_after` in seconds, None when nobody knows."""

    def __init__(self, refusal: lease_pb2.Refusal) -> None:
        super().__init__(refusal.message)
        self.reason = lease_pb2.Refusal.Reason.Name(refusal.reason)
        self.message = refusal.message
        self.retry_after = seconds(refusal.retry_after) if refusal.HasField("retry_after") else None


def call_error(error: grpc.RpcError, address: str) -> CallError:
    code, message = error.code(), error.details() or ""
    info, retry_after = _details(error)
    if info is not None:
        return CallError(info.reason, message, info.metadata, code, retry_after)
    if code is grpc.StatusCode.UNAVAILABLE:
        message = f"cannot reach poolmgr at {address}: {message}"
        return CallError(Reason.UNREACHABLE.value, message, {"address": address}, code)
    return CallError(code.name, message, {}, code)


def result_error(error: lease_pb2.LeaseError) -> CallError:
    """Of one operation of a session."""
    retry_after = seconds(error.retry_after) if error.HasField("retry_after") else None
    code = _CODES.get(error.code, grpc.StatusCode.UNKNOWN)
    return CallError(error.reason, error.message, error.metadata, code, retry_after)


def _details(error: grpc.RpcError) -> tuple[error_details_pb2.ErrorInfo | None, float | None]:
    """What google.rpc.Status carries; nothing when there is none, or none that can be read."""
    try:
        status = rpc_status.from_call(error)
    except (ValueError, DecodeError):
        return None, None
    info, retry_after = None, None
    for detail in status.details if status else ():
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo.FromString(detail.value)
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry_after = seconds(error_details_pb2.RetryInfo.FromString(detail.value).retry_delay)
    return info, retry_after
