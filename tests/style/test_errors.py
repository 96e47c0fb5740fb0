"""The one table from reasons to codes is whole, and every reason is of a family that says who can mend it."""

from __future__ import annotations

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from poolmgr.api.status import CODES, DOMAIN, status_of
from poolmgr.errors import ClientError, InternalError, PoolmgrError, Reason
from poolmgr.model.lease import LeaseOutcome, RefusalReason
from poolmgr.v1 import lease_pb2

C = grpc.StatusCode
CLIENT = {
    C.INVALID_ARGUMENT,
    C.FAILED_PRECONDITION,
    C.NOT_FOUND,
    C.ALREADY_EXISTS,
    C.UNAUTHENTICATED,
    C.PERMISSION_DENIED,
}
ENVIRONMENT = {C.UNAVAILABLE, C.RESOURCE_EXHAUSTED, C.DEADLINE_EXCEEDED}


def test_every_reason_has_one_code_and_no_code_is_left_over():
    assert set(CODES) == set(Reason)


@pytest.mark.parametrize("reason", Reason)
def test_every_code_is_of_one_of_the_three_families(reason: Reason):
    if reason is Reason.INTERNAL:
        assert CODES[reason] is C.INTERNAL
    else:
        assert CODES[reason] in CLIENT | ENVIRONMENT


@pytest.mark.parametrize("reason", [reason for reason in Reason if reason is not Reason.INTERNAL])
def test_every_reason_reaches_the_client_with_its_numbers(reason: Reason):
    error = PoolmgrError(reason, "what happened", numbers={"limit": 3}, retry_after=1.5)
    code, message, details = status_of(error, "c-1")
    status = status_pb2.Status.FromString(details)
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(info) and status.details[1].Unpack(retry)
    assert (code, message) == (CODES[reason], "what happened") == (code, status.message)
    assert (status.code, info.reason, info.domain) == (code.value[0], reason.value, DOMAIN)
    assert dict(info.metadata) == {"limit": "3", "correlation_id": "c-1"}
    assert retry.retry_delay.ToMilliseconds() == 1500


def test_an_internal_error_shows_nothing_of_the_inside():
    code, message, details = status_of(InternalError("secret of the inside"), "c-2")
    assert code is C.INTERNAL and "c-2" in message
    assert b"secret" not in details and "secret" not in message


def test_a_time_that_is_not_known_is_not_promised():
    _, _, details = status_of(ClientError(Reason.POOL_NOT_FOUND, "no such pool"), "c-3")
    assert len(status_pb2.Status.FromString(details).details) == 1


@pytest.mark.parametrize(
    ("ours", "wire"), [(RefusalReason, lease_pb2.Refusal.Reason), (LeaseOutcome, lease_pb2.Lease.Outcome)]
)
def test_refusals_and_outcomes_have_the_same_names_on_the_wire(ours, wire):
    assert {member.value for member in ours} == {name for name, number in wire.items() if number}
