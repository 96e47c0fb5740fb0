"""Leases to protobuf: the limits of an ask, and who may see a token."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolmgr.convert.lease import (
    OUTCOMES,
    REFUSALS,
    ask_from_proto,
    granted_to_proto,
    lease_to_proto,
    refusal_to_proto,
    released_to_proto,
    write_renewal,
)
from poolmgr.errors import ClientError, Reason
from poolmgr.model.lease import Lease, LeaseAsk, LeaseOutcome, Refusal, RefusalReason
from poolmgr.model.settings import LeaseSettings
from poolmgr.v1 import lease_pb2 as pb

LEASE = Lease("id", "secret", "me", 15.0, 2, 2**63 + 1, "127.0.0.1:8080", 100.5, "request")


def ask(**fields) -> LeaseAsk:
    return ask_from_proto(pb.AcquireLeaseRequest(**{"holder": "me", **fields}), "id", "secret", LeaseSettings())


def test_an_ask_without_times_waits_not_at_all_and_gets_the_default_ttl():
    assert ask() == LeaseAsk("id", "secret", "me", ttl=15.0, wait=0.0)


@given(st.integers(3000, 300_000), st.integers(0, 3_600_000))
def test_times_within_the_limits_arrive_exactly(ttl, wait):
    request = pb.AcquireLeaseRequest(holder="me")
    request.ttl.FromMilliseconds(ttl)
    request.wait.FromMilliseconds(wait)
    made = ask_from_proto(request, "id", "secret", LeaseSettings())
    assert (made.ttl, made.wait) == (ttl / 1000, wait / 1000)


@pytest.mark.behaviour("LEASE-3")
@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("ttl", {"ttl": {"seconds": 2, "nanos": 999_999_999}}),
        ("ttl", {"ttl": {}}),
        ("ttl", {"ttl": {"seconds": 301}}),
        ("ttl", {"ttl": {"seconds": -15}}),
        ("wait", {"wait": {"nanos": -1}}),
        ("wait", {"wait": {"seconds": 3601}}),
        ("holder", {"holder": ""}),
        ("holder", {"holder": "x" * 129}),
        ("holder", {"holder": "me\x1b[2J"}),
        ("request_id", {"request_id": "x" * 129}),
    ],
)
def test_an_ask_outside_the_limits_is_refused_by_the_fields_name(field, fields):
    with pytest.raises(ClientError) as refusal:
        ask(**fields)
    assert refusal.value.reason is Reason.INVALID_ARGUMENT
    assert refusal.value.numbers["field"] == field
    assert field in refusal.value.message


def test_the_limits_of_an_ask_are_the_settings():
    request = pb.AcquireLeaseRequest(holder="me", ttl={"seconds": 1})
    assert ask_from_proto(request, "id", "secret", LeaseSettings(ttl_min=0.5)).ttl == 1.0


def test_a_lease_shows_its_end_in_wall_time():
    lease = lease_to_proto("chat", LEASE, 1_700_000_000.0, True)
    assert lease.expire_time.ToMilliseconds() == 1_700_000_100_500
    assert (lease.pool_id, lease.token, lease.fencing_token) == ("chat", "secret", 2**63 + 1)
    assert (lease.ttl.seconds, lease.enforced) == (15, False)


def test_a_token_is_shown_to_its_holder_only():
    assert b"secret" not in lease_to_proto("chat", LEASE, 0.0, False).SerializeToString()


def test_a_refusal_without_a_time_shows_none():
    assert not refusal_to_proto(Refusal(RefusalReason.POOL_FULL, "full")).HasField("retry_after")
    assert refusal_to_proto(Refusal(RefusalReason.POOL_FULL, "full", 0.0)).HasField("retry_after")


@pytest.mark.parametrize(
    ("table", "values"), [(OUTCOMES, pb.Lease.Outcome.values()), (REFUSALS, pb.Refusal.Reason.values())]
)
def test_members_and_specified_protobuf_values_correspond_one_to_one(table, values):
    assert sorted(table.values()) == [value for value in sorted(values) if value]
    assert set(table) == set(type(next(iter(table))))


@pytest.mark.parametrize("outcome", LeaseOutcome)
def test_an_outcome_keeps_its_name(outcome):
    assert pb.Lease.Outcome.Name(released_to_proto(outcome).outcome) == outcome
    renewal = pb.RenewLeaseResponse()
    write_renewal(renewal, outcome, None, 0.0)
    assert pb.Lease.Outcome.Name(renewal.outcome) == outcome


def test_a_renewal_shows_its_end_in_wall_time_and_only_when_there_is_one():
    renewal = pb.RenewLeaseResponse()
    write_renewal(renewal, LeaseOutcome.EXPIRED, None, 1_700_000_000.0)
    assert not renewal.HasField("expire_time")
    write_renewal(renewal, LeaseOutcome.RENEWED, 100.5, 1_700_000_000.0)
    assert renewal.expire_time.ToMilliseconds() == 1_700_000_100_500


def test_a_grant_is_the_lease_with_its_token():
    granted = granted_to_proto("chat", LEASE, 5.0)
    assert granted.lease == lease_to_proto("chat", LEASE, 5.0, True)
