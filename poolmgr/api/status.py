"""How an error reaches a client: the one table from reasons to gRPC codes, and the details that go along."""

from __future__ import annotations

from collections.abc import Mapping

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from poolmgr.errors import PoolmgrError, Reason

DOMAIN = "poolmgr"
MAX_MESSAGE = 1024  # it travels twice in trailing metadata, of which a client takes 8 KiB in all
DETAILS_KEY = "grpc-status-details-bin"

_C = grpc.StatusCode
CODES: Mapping[Reason, grpc.StatusCode] = {
    Reason.INVALID_ARGUMENT: _C.INVALID_ARGUMENT,
    Reason.INVALID_CONFIG: _C.INVALID_ARGUMENT,
    Reason.POOL_NOT_FOUND: _C.NOT_FOUND,
    Reason.POOL_EXISTS: _C.ALREADY_EXISTS,
    Reason.POOL_STATE: _C.FAILED_PRECONDITION,
    Reason.POOL_LIMIT: _C.RESOURCE_EXHAUSTED,
    Reason.POOL_DELETING: _C.FAILED_PRECONDITION,
    Reason.BREAKER_OPEN: _C.FAILED_PRECONDITION,
    Reason.RELOAD_IN_PROGRESS: _C.FAILED_PRECONDITION,
    Reason.GENERATION_BLOCKED: _C.FAILED_PRECONDITION,
    Reason.GENERATION_NOT_FOUND: _C.NOT_FOUND,
    Reason.ENGINE_NOT_FOUND: _C.NOT_FOUND,
    Reason.MODEL_NOT_FOUND: _C.FAILED_PRECONDITION,
    Reason.MODEL_INVALID: _C.FAILED_PRECONDITION,
    Reason.MODEL_DIGEST_MISMATCH: _C.FAILED_PRECONDITION,
    Reason.EXECUTABLE_NOT_FOUND: _C.FAILED_PRECONDITION,
    Reason.ENGINE_UNSUPPORTED: _C.INVALID_ARGUMENT,
    Reason.BAD_ARGUMENTS: _C.INVALID_ARGUMENT,
    Reason.GPU_REQUIRED: _C.FAILED_PRECONDITION,
    Reason.BAD_MASK: _C.INVALID_ARGUMENT,
    Reason.DEVICE_NOT_FOUND: _C.NOT_FOUND,
    Reason.DEVICE_UNAVAILABLE: _C.FAILED_PRECONDITION,
    Reason.FIELD_NOT_FOUND: _C.NOT_FOUND,
    Reason.INVALID_SCENARIO: _C.INVALID_ARGUMENT,
    Reason.RELOAD_ABORTED: _C.FAILED_PRECONDITION,
    Reason.VERIFICATION_FAILED: _C.FAILED_PRECONDITION,
    Reason.DOES_NOT_FIT: _C.FAILED_PRECONDITION,
    Reason.PORT_TAKEN: _C.UNAVAILABLE,
    Reason.PORT_UNAVAILABLE: _C.RESOURCE_EXHAUSTED,
    Reason.SPAWN_FAILED: _C.UNAVAILABLE,
    Reason.HOST_FAULT: _C.UNAVAILABLE,
    Reason.INSUFFICIENT_MEMORY: _C.RESOURCE_EXHAUSTED,
    Reason.TELEMETRY_STALLED: _C.UNAVAILABLE,
    Reason.NO_TELEMETRY: _C.UNAVAILABLE,
    Reason.STORE_UNAVAILABLE: _C.UNAVAILABLE,
    Reason.STATE_DIR: _C.FAILED_PRECONDITION,
    Reason.STATE_IN_USE: _C.UNAVAILABLE,
    Reason.ADDRESS: _C.UNAVAILABLE,
    Reason.SHUTTING_DOWN: _C.UNAVAILABLE,
    Reason.OVERLOADED: _C.RESOURCE_EXHAUSTED,
    Reason.UNREACHABLE: _C.UNAVAILABLE,
    Reason.INTERNAL: _C.INTERNAL,
}


def status_of(error: PoolmgrError, correlation_id: str) -> tuple[grpc.StatusCode, str, bytes]:
    """(code, message, serialised google.rpc.Status with ErrorInfo, and RetryInfo where a time is known)."""
    code = CODES[error.reason]
    message = error.message if len(error.message) <= MAX_MESSAGE else error.message[:MAX_MESSAGE] + " ..."
    if error.reason is Reason.INTERNAL:
        message = f"internal error; the daemon's log has it under correlation id {correlation_id}"
    info = error_details_pb2.ErrorInfo(
        reason=error.reason, domain=DOMAIN, metadata={k: str(v) for k, v in error.numbers.items()}
    )
    info.metadata["correlation_id"] = correlation_id
    details = [_packed(info)]
    if error.retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_after * 1e9))
        details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    status = status_pb2.Status(code=code.value[0], message=message, details=details)
    return code, message, status.SerializeToString()


def _packed(message: error_details_pb2.ErrorInfo | error_details_pb2.RetryInfo) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
