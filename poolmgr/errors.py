"""The errors of poolmgr: one base, three families, one closed set of stable reasons.

A *reason* is part of the API: it reaches clients in ``google.rpc.ErrorInfo.reason``. `poolmgr.api.status` maps each to
a gRPC code and a test holds the two complete. Families say who can mend it: the caller, the host, or us.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

Number = str | int | float


class Reason(StrEnum):
    """Why a request was not done."""

    # The caller's.
    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    INVALID_CONFIG = "INVALID_CONFIG"
    POOL_NOT_FOUND = "POOL_NOT_FOUND"
    POOL_EXISTS = "POOL_EXISTS"
    POOL_STATE = "POOL_STATE"
    POOL_LIMIT = "POOL_LIMIT"
    POOL_DELETING = "POOL_DELETING"
    BREAKER_OPEN = "BREAKER_OPEN"
    RELOAD_IN_PROGRESS = "RELOAD_IN_PROGRESS"
    GENERATION_BLOCKED = "GENERATION_BLOCKED"
    GENERATION_NOT_FOUND = "GENERATION_NOT_FOUND"
    ENGINE_NOT_FOUND = "ENGINE_NOT_FOUND"
    MODEL_NOT_FOUND = "MODEL_NOT_FOUND"
    MODEL_INVALID = "MODEL_INVALID"
    MODEL_DIGEST_MISMATCH = "MODEL_DIGEST_MISMATCH"
    EXECUTABLE_NOT_FOUND = "EXECUTABLE_NOT_FOUND"
    ENGINE_UNSUPPORTED = "ENGINE_UNSUPPORTED"
    BAD_ARGUMENTS = "BAD_ARGUMENTS"
    GPU_REQUIRED = "GPU_REQUIRED"
    BAD_MASK = "BAD_MASK"
    DEVICE_NOT_FOUND = "DEVICE_NOT_FOUND"
    DEVICE_UNAVAILABLE = "DEVICE_UNAVAILABLE"
    FIELD_NOT_FOUND = "FIELD_NOT_FOUND"
    INVALID_SCENARIO = "INVALID_SCENARIO"
    RELOAD_ABORTED = "RELOAD_ABORTED"
    VERIFICATION_FAILED = "VERIFICATION_FAILED"
    DOES_NOT_FIT = "DOES_NOT_FIT"
    # The host's.
    PORT_TAKEN = "PORT_TAKEN"
    PORT_UNAVAILABLE = "PORT_UNAVAILABLE"
    SPAWN_FAILED = "SPAWN_FAILED"
    HOST_FAULT = "HOST_FAULT"
    INSUFFICIENT_MEMORY = "INSUFFICIENT_MEMORY"
    TELEMETRY_STALLED = "TELEMETRY_STALLED"
    NO_TELEMETRY = "NO_TELEMETRY"
    STORE_UNAVAILABLE = "STORE_UNAVAILABLE"
    STATE_DIR = "STATE_DIR"
    STATE_IN_USE = "STATE_IN_USE"
    ADDRESS = "ADDRESS"
    SHUTTING_DOWN = "SHUTTING_DOWN"
    OVERLOADED = "OVERLOADED"
    UNREACHABLE = "UNREACHABLE"
    # Ours.
    INTERNAL = "INTERNAL"


class PoolmgrError(Exception):
    """Something was not done. `numbers` holds what led to it, `retry_after` seconds until another try may help."""

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        numbers: Mapping[str, Number] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.numbers: Mapping[str, Number] = dict(numbers or {})
        self.retry_after = retry_after


class ClientError(PoolmgrError):
    """The request cannot be done as it stands; the caller can change it."""


class EnvironmentFault(PoolmgrError):
    """The host could not do it; the same request may succeed later."""


class InternalError(PoolmgrError):
    """A defect of poolmgr. Clients see a correlation id and nothing of the inside."""

    def __init__(self, message: str) -> None:
        super().__init__(Reason.INTERNAL, message)
