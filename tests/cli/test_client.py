"""The Python client against a real server: retries, errors, pages, streams, and leases that keep themselves."""

from __future__ import annotations

import socket
import threading

import grpc
import pytest

from poolmgr.client import CallError, Client, LeaseRefused
from poolmgr.errors import Reason
from poolmgr.v1 import admin_pb2, lease_pb2, pool_pb2
from tests.cli.scripted_daemon import refusing

SECONDS = 10.0
LEASE = lease_pb2.Lease(
    lease_id="l1", pool_id="chat", token="secret", endpoint="127.0.0.1:1", ttl={"nanos": 900_000_000}
)
GRANT = lease_pb2.AcquireLeaseResponse(lease=LEASE)
RENEWED = lease_pb2.RenewLeaseResponse(outcome=lease_pb2.Lease.RENEWED)
RELEASED = lease_pb2.ReleaseLeaseResponse(outcome=lease_pb2.Lease.RELEASED)


@pytest.fixture
def client(daemon):
    with Client(daemon.address) as connected:
        yield connected


def failing(times, answer):
    """Refuses with a bare UNAVAILABLE so many times, then answers."""
    left = [times]

    def handle(_request, context):
        left[0] -= 1
        if left[0] >= 0:
            context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")
        return answer

    return handle


def test_an_error_has_the_daemons_reason_numbers_and_retry_time(daemon, client):
    daemon.script["GetPool"] = refusing(grpc.StatusCode.NOT_FOUND, "POOL_NOT_FOUND", "no pool x", 3, pool_id="x")
    with pytest.raises(CallError) as refused:
        client.get_pool("x")
    error = refused.value
    assert (error.reason, error.message, error.code) == ("POOL_NOT_FOUND", "no pool x", grpc.StatusCode.NOT_FOUND)
    assert (error.metadata, error.retry_after) == ({"pool_id": "x"}, 3.0)


def test_an_error_without_details_has_its_code_for_a_reason(daemon, client):
    with pytest.raises(CallError) as refused:
        client.status()
    assert refused.value.reason == "UNIMPLEMENTED"


def test_details_that_contradict_the_status_are_not_believed(daemon, client):
    def lie(_request, context):
        context.set_trailing_metadata((("grpc-status-details-bin", b"\xff\xff"),))
        context.abort(grpc.StatusCode.NOT_FOUND, "gone")

    daemon.script["GetPool"] = lie
    with pytest.raises(CallError) as refused:
        client.get_pool("x")
    assert (refused.value.reason, refused.value.message) == ("NOT_FOUND", "gone")


def test_a_daemon_that_is_not_there_is_unreachable_and_named(unused_address):
    with Client(unused_address) as client, pytest.raises(CallError) as refused:
        client.status()
    assert refused.value.reason == Reason.UNREACHABLE
    assert unused_address in refused.value.message


def test_a_daemon_that_does_not_answer_fails_at_the_deadline():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with Client(f"127.0.0.1:{port}", timeout=0.2) as client, pytest.raises(CallError) as refused:
            client.status()
    assert refused.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_read_is_tried_again_when_the_daemon_is_unavailable_for_a_moment(daemon, client):
    daemon.script["GetStatus"] = failing(2, admin_pb2.Status(version="1"))
    assert client.status().version == "1"
    assert len(daemon.requests("GetStatus")) == 3


def test_tries_are_bounded(daemon, client):
    daemon.script["GetStatus"] = failing(100, admin_pb2.Status())
    with pytest.raises(CallError):
        client.status()
    assert len(daemon.requests("GetStatus")) == 4


@pytest.mark.parametrize(
    ("rpc", "call"),
    [
        ("UndrainPool", lambda client: client.undrain("x")),
        ("ReloadPool", lambda client: client.reload("x")),
        ("RollbackPool", lambda client: client.rollback("x")),
        ("DeletePool", lambda client: client.delete("x")),
        ("DeregisterEngine", lambda client: client.deregister_engine("x")),
        ("Shutdown", lambda client: client.shutdown()),
    ],
)
def test_what_is_not_idempotent_is_sent_once(daemon, client, rpc, call):
    daemon.script[rpc] = failing(1, None)
    with pytest.raises(CallError):
        call(client)
    assert len(daemon.requests(rpc)) == 1


@pytest.mark.behaviour("LEASE-4")
def test_every_try_of_a_lease_carries_the_same_request_id(daemon, client):
    daemon.script["AcquireLease"] = failing(1, GRANT)
    client.acquire("chat", holder="me")
    client.acquire("chat", holder="me")
    first, again, other = (request.request_id for request in daemon.requests("AcquireLease"))
    assert first == again != other


def test_a_call_may_take_its_own_wait_beyond_the_clients_timeout(daemon):
    left = []

    def note(_request, context):
        left.append(context.time_remaining())
        return pool_pb2.Pool()

    daemon.script["PreloadPool"] = daemon.script["GetPool"] = note
    with Client(daemon.address, timeout=5.0) as client:
        client.preload("x", wait=100.0)
        client.get_pool("x")
    assert 100.0 < left[0] < 106.0
    assert left[1] < 6.0


def test_every_page_of_a_list_is_read(daemon, client):
    def page(request, _context):
        number = int(request.page_token or 0)
        return pool_pb2.ListPoolsResponse(
            pools=[pool_pb2.Pool(pool_id=f"p{number}")], next_page_token=str(number + 1) if number < 2 else ""
        )

    daemon.script["ListPools"] = page
    assert [pool.pool_id for pool in client.list_pools()] == ["p0", "p1", "p2"]


def test_a_watch_ends_for_the_daemon_when_its_iterator_is_closed(daemon, client):
    ended = threading.Event()

    def watch(_request, context):
        context.add_callback(ended.set)
        yield pool_pb2.WatchPoolsResponse(bookmark=7)
        ended.wait(SECONDS)

    daemon.script["WatchPools"] = watch
    changes = client.watch_pools(from_revision=5)
    assert next(changes).bookmark == 7
    changes.close()
    assert ended.wait(SECONDS)
    assert daemon.requests("WatchPools")[0].from_revision == 5


def test_an_error_in_the_middle_of_a_stream_is_raised_after_what_came_before(daemon, client):
    def logs(request, context):
        yield pool_pb2.TailLogsResponse(lines=["a", "b"])
        refusing(grpc.StatusCode.NOT_FOUND, "POOL_NOT_FOUND", "gone")(request, context)

    daemon.script["TailLogs"] = logs
    lines = client.tail_logs("x", follow=True)
    assert [next(lines), next(lines)] == ["a", "b"]
    with pytest.raises(CallError, match="gone"):
        next(lines)


def test_a_refused_lease_raises_with_reason_and_retry_time(daemon, client):
    refusal = lease_pb2.Refusal(reason=lease_pb2.Refusal.POOL_FULL, message="full", retry_after={"seconds": 2})
    daemon.script["AcquireLease"] = lease_pb2.AcquireLeaseResponse(refusal=refusal)
    with pytest.raises(LeaseRefused) as refused, client.lease("chat", holder="me"):
        pytest.fail("a refused lease was given")
    assert (refused.value.reason, refused.value.message, refused.value.retry_after) == ("POOL_FULL", "full", 2.0)


@pytest.mark.behaviour("LEASE-3")
def test_a_held_lease_is_renewed_while_it_is_held_and_released_at_the_end(daemon, client):
    renewed = threading.Semaphore(0)

    def renew(_request, _context):
        renewed.release()
        return RENEWED

    daemon.script.update(AcquireLease=GRANT, RenewLease=renew, ReleaseLease=RELEASED)
    with client.lease("chat", holder="me") as held:
        assert held.endpoint == "127.0.0.1:1"
        for _ in range(3):
            assert renewed.acquire(timeout=SECONDS)
        assert not held.lost
    assert [(r.lease_id, r.token) for r in daemon.requests("ReleaseLease")] == [("l1", "secret")]


def test_a_lease_is_released_when_its_block_fails(daemon, client):
    daemon.script.update(AcquireLease=GRANT, RenewLease=RENEWED, ReleaseLease=RELEASED)
    with pytest.raises(ZeroDivisionError), client.lease("chat", holder="me"):
        raise ZeroDivisionError
    assert len(daemon.requests("ReleaseLease")) == 1


def test_a_lease_that_the_daemon_let_expire_says_that_it_is_lost_and_is_not_released(daemon, client):
    expired = lease_pb2.RenewLeaseResponse(outcome=lease_pb2.Lease.EXPIRED)
    daemon.script.update(AcquireLease=GRANT, RenewLease=expired)
    with client.lease("chat", holder="me") as held:
        assert held.wait_lost(SECONDS)
        assert (held.lost, held.lost_reason) == (True, "EXPIRED")
    assert daemon.requests("ReleaseLease") == []


def test_a_lease_that_cannot_be_renewed_within_its_ttl_is_lost(daemon, client):
    daemon.script.update(AcquireLease=GRANT, RenewLease=failing(10**6, RENEWED))
    with client.lease("chat", holder="me") as held:
        assert held.wait_lost(SECONDS)
    assert len(daemon.requests("RenewLease")) > 1


def test_a_lease_outlives_a_renewal_that_failed_once(daemon, client):
    renewals = []
    third = threading.Event()

    def renew(_request, context):
        renewals.append(1)
        if len(renewals) == 1:
            context.abort(grpc.StatusCode.INTERNAL, "once")
        if len(renewals) == 3:
            third.set()
        return RENEWED

    daemon.script.update(AcquireLease=GRANT, RenewLease=renew, ReleaseLease=RELEASED)
    with client.lease("chat", holder="me") as held:
        assert third.wait(SECONDS)
        assert not held.lost


def test_a_release_that_fails_is_no_error_of_the_block(daemon, client, caplog):
    daemon.script.update(AcquireLease=GRANT, RenewLease=RENEWED, ReleaseLease=failing(10**6, RELEASED))
    with client.lease("chat", holder="me"):
        pass
    assert "will expire" in caplog.text
