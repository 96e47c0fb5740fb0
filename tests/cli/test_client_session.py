"""The client's lease session against a real server: order, batches ahead, waits, and how it breaks."""

from __future__ import annotations

import itertools
import threading

import grpc
import pytest

from poolmgr.client import CallError, Client, LeaseRefused, acquiring, granted, releasing, renewing
from poolmgr.client.session import BATCH, BATCHES_AHEAD
from poolmgr.v1 import lease_pb2 as pb
from tests.cli.scripted_daemon import refusing

SECONDS = 10.0


@pytest.fixture
def client(daemon):
    with Client(daemon.address, timeout=SECONDS) as connected:
        yield connected


def granting(operation: pb.LeaseOperation) -> pb.LeaseResult:
    request = operation.acquire
    return pb.LeaseResult(acquire={"lease": {"lease_id": request.request_id, "holder": request.holder}})


def answering(results=granting):
    """A daemon that answers every batch at once."""

    def session(requests, _context):
        for request in requests:
            made = [results(operation) for operation in request.operations]
            for index, result in enumerate(made):
                result.index = index
            yield pb.SessionResponse(batch_id=request.batch_id, results=made, done=True)

    return session


def asks(count: int) -> list[pb.LeaseOperation]:
    return [acquiring("chat", holder=f"h{number}") for number in range(count)]


def test_results_come_in_the_order_of_the_operations_over_all_batches(daemon, client):
    daemon.script["Session"] = answering()
    operations = asks(5 * BATCH + 7)
    with client.session() as session:
        for _ in range(2):
            results = session.run(operations)
            assert [result.index for result in results] == list(range(len(operations)))
            assert [granted(result).holder for result in results] == [f"h{n}" for n in range(len(operations))]


def test_nothing_to_do_is_done_without_a_batch(daemon, client):
    daemon.script["Session"] = answering()
    with client.session() as session:
        assert session.run([]) == []
        assert len(session.run(asks(1))) == 1


def test_batches_are_sent_ahead_of_their_answers_up_to_the_limit(daemon, client):
    ahead = []

    def session(requests, _context):
        while first := next(requests, None):
            batches = [first]
            while len(batches) < BATCHES_AHEAD:
                batches.append(next(requests))
            ahead.append(len(batches))
            for request in batches:
                yield next(answering()(iter([request]), None))

    daemon.script["Session"] = session
    with client.session() as leases:
        assert len(leases.run(asks(2 * BATCHES_AHEAD * BATCH))) == 2 * BATCHES_AHEAD * BATCH
    assert ahead == [BATCHES_AHEAD] * 2


def test_no_more_batches_are_sent_than_the_limit_before_one_is_answered(daemon, client):
    answered, answered_at_send = [], []

    class Watched(list):
        def __getitem__(self, key):
            if isinstance(key, slice):
                answered_at_send.append(len(answered))
            return super().__getitem__(key)

    def session(requests, _context):
        ahead = [next(requests) for _ in range(BATCHES_AHEAD)]
        for request in itertools.chain(ahead, requests):
            answered.append(request.batch_id)
            yield next(answering()(iter([request]), None))

    daemon.script["Session"] = session
    with client.session() as leases:
        leases.run(Watched(asks((BATCHES_AHEAD + 3) * BATCH)))
    assert answered_at_send[:BATCHES_AHEAD] == [0] * BATCHES_AHEAD
    for sent, seen in enumerate(answered_at_send):
        assert sent - seen < BATCHES_AHEAD


@pytest.mark.behaviour("LEASE-5")
def test_an_acquire_that_waits_does_not_hold_up_the_release_that_it_waits_for(daemon, client):
    def session(requests, _context):
        waiting = []
        for request in requests:
            if request.operations[0].WhichOneof("operation") == "acquire":
                waiting.append(request.batch_id)
                yield pb.SessionResponse(batch_id=request.batch_id)
            else:
                result = pb.LeaseResult(release={"outcome": pb.Lease.RELEASED})
                yield pb.SessionResponse(batch_id=request.batch_id, results=[result], done=True)
                for batch_id in waiting:
                    late = [pb.LeaseResult(index=n, acquire={"lease": {"lease_id": "late"}}) for n in range(BATCH)]
                    yield pb.SessionResponse(batch_id=batch_id, results=late[::2])
                    yield pb.SessionResponse(batch_id=batch_id, results=late[1::2], done=True)

    daemon.script["Session"] = session
    count = (BATCHES_AHEAD + 1) * BATCH
    waiters = [acquiring("chat", holder="me", wait=30) for _ in range(count)]
    with client.session() as leases:
        results = leases.run([*waiters, releasing(pb.Lease(lease_id="l", token="t"))])
    assert {granted(result).lease_id for result in results[:count]} == {"late"}
    assert results[count].release.outcome == pb.Lease.RELEASED


def test_operations_carry_what_was_said_and_an_own_request_id(daemon, client):
    lease = pb.Lease(lease_id="l1", token="secret")
    first = acquiring("chat", holder="me", ttl=5, wait=2.5, priority=-1).acquire
    assert (first.pool_id, first.holder, first.ttl.seconds, first.priority) == ("chat", "me", 5, -1)
    assert first.wait.ToMilliseconds() == 2500
    bare = acquiring("chat", holder="me").acquire
    assert not bare.HasField("ttl") and not bare.HasField("wait")
    assert len({first.request_id, bare.request_id, ""}) == 3
    assert (renewing(lease).renew.lease_id, renewing(lease).renew.token) == ("l1", "secret")
    assert (releasing(lease).release.lease_id, releasing(lease).release.token) == ("l1", "secret")


def test_a_result_that_is_no_lease_raises_what_the_call_would_have():
    refusal = pb.Refusal(reason=pb.Refusal.POOL_FULL, message="full", retry_after={"seconds": 2})
    with pytest.raises(LeaseRefused) as refused:
        granted(pb.LeaseResult(acquire={"refusal": refusal}))
    assert (refused.value.reason, refused.value.retry_after) == ("POOL_FULL", 2.0)
    error = pb.LeaseError(code=14, reason="STORE_UNAVAILABLE", message="disk full", metadata={"free": "0"})
    with pytest.raises(CallError) as failed:
        granted(pb.LeaseResult(error=error))
    told = failed.value
    assert (told.reason, told.message, told.metadata) == ("STORE_UNAVAILABLE", "disk full", {"free": "0"})
    assert (told.code, told.retry_after) == (grpc.StatusCode.UNAVAILABLE, None)
    error.retry_after.seconds, error.code = 3, 999
    with pytest.raises(CallError) as unknown:
        granted(pb.LeaseResult(error=error))
    assert (unknown.value.code, unknown.value.retry_after) == (grpc.StatusCode.UNKNOWN, 3.0)


def test_a_stream_that_the_daemon_refuses_breaks_the_session_with_its_reason(daemon, client):
    refuse = refusing(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT", "operations has 257 entries", value="257")

    def session(requests, context):
        next(requests)
        refuse(None, context)
        yield

    daemon.script["Session"] = session
    with client.session() as leases:
        for _ in range(2):
            with pytest.raises(CallError, match="257 entries") as refused:
                leases.run(asks(1))
            assert (refused.value.reason, refused.value.metadata) == ("INVALID_ARGUMENT", {"value": "257"})


def test_a_daemon_that_ends_the_stream_breaks_the_session(daemon, client):
    daemon.script["Session"] = lambda requests, _context: iter([pb.SessionResponse(batch_id=next(requests).batch_id)])
    with client.session() as leases, pytest.raises(CallError, match="ended the session"):
        leases.run(asks(1))


def test_a_daemon_that_does_not_answer_breaks_the_session_at_the_deadline(daemon):
    over = threading.Event()

    def session(requests, context):
        context.add_callback(over.set)
        next(requests)
        over.wait(SECONDS)
        yield from ()

    daemon.script["Session"] = session
    with Client(daemon.address, timeout=0.2) as client, client.session() as leases:
        with pytest.raises(CallError) as late:
            leases.run(asks(1))
        assert late.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert over.wait(SECONDS)
        with pytest.raises(CallError):
            leases.run(asks(1))


def test_a_run_may_take_the_longest_of_its_waits_beyond_the_clients_timeout(daemon):
    daemon.script["Session"] = answering()
    with Client(daemon.address, timeout=0.0) as client:
        with client.session() as leases:
            waits = [acquiring("chat", holder="me", wait=wait) for wait in (0, SECONDS, 1)]
            assert [granted(result).holder for result in leases.run(waits)] == ["me"] * 3
        with client.session() as leases, pytest.raises(CallError, match="no answer in time"):
            leases.run(asks(1))


class Interrupted(Exception):
    pass


class Interrupting(list):
    """Operations of which the second batch cannot be had: as if somebody pressed Ctrl-C, once the first is there."""

    def __init__(self, operations, there):
        super().__init__(operations)
        self.there = there

    def __getitem__(self, key):
        if isinstance(key, slice) and key.start:
            assert self.there.wait(SECONDS)
            raise Interrupted
        return super().__getitem__(key)


def test_what_a_run_has_left_behind_is_not_taken_for_an_answer_to_the_next(daemon, client):
    there = threading.Event()

    def session(requests, context):
        for response in answering()(requests, context):
            there.set()
            yield response

    daemon.script["Session"] = session
    with client.session() as leases:
        with pytest.raises(Interrupted):
            leases.run(Interrupting(asks(2 * BATCH), there))
        again = asks(3)
        assert [granted(result).lease_id for result in leases.run(again)] == [one.acquire.request_id for one in again]


def test_a_session_is_closed_at_once_though_a_batch_waits(daemon, client):
    there, ended = threading.Event(), threading.Event()

    def session(requests, context):
        context.add_callback(ended.set)
        batch_id = next(requests).batch_id
        there.set()
        yield pb.SessionResponse(batch_id=batch_id)
        assert ended.wait(SECONDS)

    daemon.script["Session"] = session
    with client.session() as leases, pytest.raises(Interrupted):
        leases.run(Interrupting(asks(2 * BATCH), there))
    assert ended.wait(SECONDS / 2)


def test_a_batch_that_is_done_without_its_results_is_not_taken_for_an_answer(daemon, client):
    def session(requests, _context):
        for request in requests:
            yield pb.SessionResponse(batch_id=request.batch_id, done=True)

    daemon.script["Session"] = session
    with client.session() as leases, pytest.raises(CallError, match="0 results for 2") as broken:
        leases.run(asks(2))
    assert broken.value.code is grpc.StatusCode.INTERNAL


def test_a_closed_session_does_nothing_more_and_ends_its_stream(daemon, client):
    ended = threading.Event()

    def session(requests, context):
        context.add_callback(ended.set)
        yield from answering()(requests, context)

    daemon.script["Session"] = session
    with client.session() as leases:
        leases.run(asks(1))
    assert ended.wait(SECONDS)
    with pytest.raises(CallError, match="closed"):
        leases.run(asks(1))


def test_a_daemon_that_is_not_there_makes_no_session(unused_address):
    with Client(unused_address, timeout=SECONDS) as client, client.session() as leases:
        with pytest.raises(CallError) as refused:
            leases.run(asks(1))
        assert refused.value.reason == "UNREACHABLE"
