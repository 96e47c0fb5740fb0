"""Leases: model <-> protobuf. On the path of every grant, so messages are written in place."""

from __future__ import annotations

from typing import Final

from poolmgr.convert.common import (
    enum_table,
    invalid,
    optional_duration,
    seconds_from,
    write_duration,
    write_timestamp,
)
from poolmgr.model.lease import Lease, LeaseAsk, LeaseOutcome, Refusal, RefusalReason
from poolmgr.model.settings import LeaseSettings
from poolmgr.v1 import lease_pb2 as pb

MAX_HOLDER: Final = 128
MAX_REQUEST_ID: Final = 128

OUTCOMES: Final = enum_table(LeaseOutcome, pb.Lease.Outcome.Value)
REFUSALS: Final = enum_table(RefusalReason, pb.Refusal.Reason.Value)

_RELEASED: Final = {outcome: pb.ReleaseLeaseResponse(outcome=value) for outcome, value in OUTCOMES.items()}


def ask_from_proto(request: pb.AcquireLeaseRequest, lease_id: str, token: str, settings: LeaseSettings) -> LeaseAsk:
    """The ask with the id and the secret that its lease shall have. Raises ClientError(INVALID_ARGUMENT)."""
    ttl = request.ttl if request.HasField("ttl") else None
    wait = request.wait if request.HasField("wait") else None
    return LeaseAsk(
        lease_id,
        token,
        _holder(request.holder),
        seconds_from(ttl, settings.ttl_default, settings.ttl_min, settings.ttl_max, "ttl"),
        seconds_from(wait, 0.0, 0.0, settings.wait_max, "wait"),
        request.priority,
        _request_id(request.request_id),
    )


def lease_to_proto(pool_id: str, lease: Lease, wall_offset: float, with_token: bool) -> pb.Lease:
    """`wall_offset`: Unix seconds less boot-time seconds. The token is for the holder's eyes only."""
    message = pb.Lease()
    _write_lease(message, pool_id, lease, wall_offset, with_token)
    return message


def granted_to_proto(pool_id: str, lease: Lease, wall_offset: float) -> pb.AcquireLeaseResponse:
    """The answer to its holder. Written in place: a message given to the constructor of another is copied."""
    response = pb.AcquireLeaseResponse()
    write_grant(response, pool_id, lease, wall_offset)
    return response


def write_grant(message: pb.AcquireLeaseResponse, pool_id: str, lease: Lease, wall_offset: float) -> None:
    """`granted_to_proto` into a message that is there already."""
    _write_lease(message.lease, pool_id, lease, wall_offset, True)


def _write_lease(message: pb.Lease, pool_id: str, lease: Lease, wall_offset: float, with_token: bool) -> None:
    message.lease_id = lease.lease_id
    message.pool_id = pool_id
    message.generation = lease.generation
    message.holder = lease.holder
    message.fencing_token = lease.fencing_token
    if with_token:
        message.token = lease.token
    message.endpoint = lease.endpoint
    write_duration(message.ttl, lease.ttl)
    write_timestamp(message.expire_time, lease.expires + wall_offset)


def refusal_to_proto(refusal: Refusal) -> pb.Refusal:
    return pb.Refusal(
        reason=REFUSALS[refusal.reason],
        message=refusal.message,
        retry_after=optional_duration(refusal.retry_after),
    )


def write_renewal(
    message: pb.RenewLeaseResponse, outcome: LeaseOutcome, expires: float | None, wall_offset: float
) -> None:
    """`expires`: on the boot-time clock, None unless the lease was renewed."""
    message.outcome = OUTCOMES[outcome]
    if expires is not None:
        write_timestamp(message.expire_time, expires + wall_offset)


def released_to_proto(outcome: LeaseOutcome) -> pb.ReleaseLeaseResponse:
    """The answer to a release; one message for each outcome, which nobody changes."""
    return _RELEASED[outcome]


def _holder(holder: str) -> str:
    # Shown in terminals and logs, where a control character is somebody else's command.
    if not 1 <= len(holder) <= MAX_HOLDER or not holder.isprintable():
        message = f"must be 1 to {MAX_HOLDER} printable characters, it has {len(holder)}"
        raise invalid("holder", message, value=len(holder), low=1, high=MAX_HOLDER)
    return holder


def _request_id(request_id: str) -> str:
    if len(request_id) > MAX_REQUEST_ID:
        message = f"has {len(request_id)} characters, at most {MAX_REQUEST_ID} are allowed"
        raise invalid("request_id", message, value=len(request_id), high=MAX_REQUEST_ID)
    return request_id
