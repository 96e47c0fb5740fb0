"""LeaseService.Session: batches in, results out, on a real stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import cast

import grpc
import pytest
from google.rpc import code_pb2

from poolmgr.api.session import MAX_OPERATIONS, MAX_UNSENT, MAX_WAITING_BATCHES, LeaseSession
from poolmgr.errors import EnvironmentFault, InternalError, Reason
from poolmgr.runtime.facade import Facade
from poolmgr.v1 import lease_pb2 as pb
from poolmgr.v1.lease_pb2_grpc import LeaseServiceStub
from tests.api.scripted_facade import ScriptedFacade, served

SECONDS = 10.0


def acquire(pool_id: str = "chat", holder: str = "me", wait: int = 0) -> pb.LeaseOperation:
    return pb.LeaseOperation(acquire={"pool_id": pool_id, "holder": holder, "wait": {"seconds": wait}})


def release(lease: pb.Lease) -> pb.LeaseOperation:
    return pb.LeaseOperation(release={"lease_id": lease.lease_id, "token": lease.token})


def renew(lease: pb.Lease) -> pb.LeaseOperation:
    return pb.LeaseOperation(renew={"lease_id": lease.lease_id, "token": lease.token})


class Stream:
    """The client's end, with a bound on every wait."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.call = LeaseServiceStub(channel).Session()

    async def send(self, batch_id: int, operations: Iterable[pb.LeaseOperation]) -> None:
        await self.call.write(pb.SessionRequest(batch_id=batch_id, operations=operations))

    async def next(self) -> pb.SessionResponse:
        response = await asyncio.wait_for(self.call.read(), SECONDS)
        assert response is not grpc.aio.EOF
        return cast(pb.SessionResponse, response)

    async def ask(self, batch_id: int, *operations: pb.LeaseOperation) -> pb.SessionResponse:
        await self.send(batch_id, operations)
        response = await self.next()
        assert response.batch_id == batch_id
        return response

    async def ended(self) -> grpc.StatusCode:
        assert await asyncio.wait_for(self.call.read(), SECONDS) is grpc.aio.EOF
        return await self.call.code()


def leases(response: pb.SessionResponse) -> list[pb.Lease]:
    return [result.acquire.lease for result in response.results]


async def test_a_batch_is_answered_at_once_with_every_result_in_the_order_of_its_operations():
    async with served(ScriptedFacade(free={"chat": 2})) as channel:
        stream = Stream(channel)
        answer = await stream.ask(7, acquire(), acquire(holder="you"), acquire(), acquire("nowhere"))
        assert answer.done
        assert [result.index for result in answer.results] == [0, 1, 2, 3]
        first, second, full, unknown = (result.acquire for result in answer.results)
        assert (first.lease.pool_id, first.lease.holder, second.lease.holder) == ("chat", "me", "you")
        assert first.lease.token and first.lease.ttl.seconds == 15
        assert first.lease.expire_time.seconds == 1_700_000_015
        assert first.lease.fencing_token < second.lease.fencing_token
        assert full.refusal.reason == pb.Refusal.POOL_FULL
        assert not full.refusal.HasField("retry_after")
        assert unknown.refusal.reason == pb.Refusal.POOL_NOT_FOUND
        assert unknown.refusal.retry_after.nanos == 500_000_000


async def test_what_was_acquired_is_renewed_and_released_by_a_later_batch():
    async with served(ScriptedFacade(free={"chat": 1})) as channel:
        stream = Stream(channel)
        (lease,) = leases(await stream.ask(1, acquire()))
        answer = await stream.ask(2, renew(lease), release(lease), release(lease), renew(lease), acquire())
        assert [result.WhichOneof("result") for result in answer.results] == [
            *("renew", "release", "release", "renew", "acquire")
        ]
        renewed, released, again, late, next_one = answer.results
        assert (renewed.renew.outcome, renewed.renew.expire_time.seconds) == (pb.Lease.RENEWED, 1_700_000_015)
        assert (released.release.outcome, again.release.outcome) == (pb.Lease.RELEASED, pb.Lease.UNKNOWN)
        assert late.renew.outcome == pb.Lease.UNKNOWN
        assert not late.renew.HasField("expire_time")
        assert next_one.acquire.lease.lease_id != lease.lease_id


async def test_batches_that_are_sent_ahead_are_answered_in_their_order():
    async with served(ScriptedFacade(free={"chat": 1000})) as channel:
        stream = Stream(channel)
        for batch_id in (5, 3, 9, 3):
            await stream.send(batch_id, [acquire()] * 64)
        answers = [await stream.next() for _ in range(4)]
        assert [(answer.batch_id, len(answer.results), answer.done) for answer in answers] == [
            (batch_id, 64, True) for batch_id in (5, 3, 9, 3)
        ]


async def test_an_empty_batch_is_done_at_once():
    async with served(ScriptedFacade()) as channel:
        answer = await Stream(channel).ask(1)
        assert (answer.done, list(answer.results)) == (True, [])


@pytest.mark.behaviour("LEASE-5")
async def test_an_acquire_that_waits_is_answered_later_and_done_marks_the_last_answer():
    async with served(ScriptedFacade(free={"chat": 2})) as channel:
        stream = Stream(channel)
        held = leases(await stream.ask(1, acquire(), acquire()))
        answer = await stream.ask(2, acquire(wait=60), acquire(), acquire(wait=60))
        assert [result.index for result in answer.results] == [1]
        assert not answer.done
        late = []
        for batch_id, lease in enumerate(held, start=3):
            await stream.send(batch_id, [release(lease)])
            answers = {answer.batch_id: answer for answer in (await stream.next(), await stream.next())}
            assert answers[batch_id].done
            late.append(answers[2])
        assert [[result.index for result in answer.results] for answer in late] == [[0], [2]]
        assert [answer.done for answer in late] == [False, True]
        assert all(answer.results[0].acquire.HasField("lease") for answer in late)


async def test_waiters_that_are_served_at_once_share_a_response():
    async with served(ScriptedFacade(free={"chat": 8})) as channel:
        stream = Stream(channel)
        held = leases(await stream.ask(1, *[acquire()] * 8))
        assert not (await stream.ask(2, *[acquire(wait=60)] * 8)).done
        await stream.send(3, map(release, held))
        answers = {answer.batch_id: answer for answer in (await stream.next(), await stream.next())}
        assert sorted(result.index for result in answers[2].results) == list(range(8))
        assert answers[2].done


@pytest.mark.parametrize(
    ("operation", "field"),
    [
        (acquire(holder=""), "holder"),
        (acquire(pool_id="No Pool"), "pool_id"),
        (acquire(wait=3601), "wait"),
        (pb.LeaseOperation(acquire={"pool_id": "chat", "holder": "me", "ttl": {"seconds": 1}}), "ttl"),
        (pb.LeaseOperation(), "operations[1]"),
    ],
)
async def test_a_malformed_operation_gets_a_typed_error_and_the_others_are_done(operation, field):
    async with served(ScriptedFacade(free={"chat": 9})) as channel:
        stream = Stream(channel)
        answer = await stream.ask(1, acquire(), operation, acquire())
        assert [result.WhichOneof("result") for result in answer.results] == ["acquire", "error", "acquire"]
        error = answer.results[1].error
        assert (error.code, error.reason) == (code_pb2.INVALID_ARGUMENT, "INVALID_ARGUMENT")
        assert error.metadata["field"] == field
        assert field in error.message
        assert (await stream.ask(2, acquire())).results[0].acquire.HasField("lease")


async def test_a_batch_over_the_limit_ends_the_stream_before_any_of_it_is_done():
    facade = ScriptedFacade(free={"chat": 1000})
    async with served(facade) as channel:
        stream = Stream(channel)
        assert len((await stream.ask(1, *[acquire()] * MAX_OPERATIONS)).results) == MAX_OPERATIONS
        await stream.send(2, [acquire()] * (MAX_OPERATIONS + 1))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stream.next()
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert str(MAX_OPERATIONS + 1) in refused.value.details()
        assert len(facade.live) == MAX_OPERATIONS


@pytest.mark.behaviour("LEASE-4")
async def test_a_batch_is_recorded_as_one_before_it_is_answered():
    facade = ScriptedFacade(free={"chat": 3})
    async with served(facade) as channel:
        stream = Stream(channel)
        held = leases(await stream.ask(1, *[acquire()] * 3))
        assert facade.recorded == [3]
        await stream.ask(2, *map(release, held[:2]), acquire())
        assert facade.recorded == [3, 3]


@pytest.mark.behaviour("LEASE-4")
async def test_grants_that_could_not_be_recorded_are_void_and_what_was_released_stays_released():
    facade = ScriptedFacade(free={"chat": 2})
    async with served(facade) as channel:
        stream = Stream(channel)
        (lease,) = leases(await stream.ask(1, acquire()))
        facade.fault = EnvironmentFault(Reason.STORE_UNAVAILABLE, "disk full", numbers={"free": 0}, retry_after=2.5)
        answer = await stream.ask(2, acquire(), release(lease), acquire("nowhere"))
        assert answer.done
        void, released, refused = answer.results
        assert released.release.outcome == pb.Lease.RELEASED
        for result in (void, refused):
            assert (result.error.code, result.error.reason) == (code_pb2.UNAVAILABLE, "STORE_UNAVAILABLE")
            assert (result.error.metadata["free"], result.error.retry_after.nanos) == ("0", 500_000_000)
        assert lease.token.encode() not in answer.SerializeToString()
        facade.fault = None
        assert (await stream.ask(3, acquire())).results[0].acquire.HasField("lease")


async def test_a_waiter_whose_grant_fails_is_told_so():
    facade = ScriptedFacade(free={"chat": 0})
    async with served(facade) as channel:
        stream = Stream(channel)
        await stream.ask(1, acquire(wait=60))
        ((_, _, promised),) = facade.waiters
        promised.set_exception(EnvironmentFault(Reason.STORE_UNAVAILABLE, "disk full"))
        answer = await stream.next()
        assert (answer.done, answer.results[0].error.reason) == (True, "STORE_UNAVAILABLE")


@pytest.mark.behaviour("LEASE-5")
async def test_a_stream_that_breaks_forgets_its_waiters_and_releases_nothing():
    facade = ScriptedFacade(free={"chat": 1})
    async with served(facade) as channel:
        stream = Stream(channel)
        (lease,) = leases(await stream.ask(1, acquire()))
        await stream.ask(2, acquire(wait=60))
        assert len(facade.waiters) == 1
        stream.call.cancel()
        await asyncio.wait_for(facade.forgotten.wait(), SECONDS)
        assert facade.waiters == []
        assert set(facade.live) == {lease.lease_id}


async def test_a_client_that_sends_no_more_still_gets_the_answers_that_it_waits_for():
    facade = ScriptedFacade(free={"chat": 1})
    async with served(facade) as channel:
        stream = Stream(channel)
        (lease,) = leases(await stream.ask(1, acquire()))
        await stream.ask(2, acquire(wait=60))
        await stream.call.done_writing()
        facade.release(lease.lease_id, lease.token)
        assert (await stream.next()).done
        assert await stream.ended() is grpc.StatusCode.OK


async def test_a_stream_without_a_batch_ends_when_the_client_does():
    async with served(ScriptedFacade()) as channel:
        stream = Stream(channel)
        await stream.call.done_writing()
        assert await stream.ended() is grpc.StatusCode.OK


@pytest.mark.behaviour("LEASE-5")
async def test_one_waiting_batch_too_many_is_refused_and_releases_are_never_held_up():
    facade = ScriptedFacade(free={"chat": 1})
    async with served(facade) as channel:
        stream = Stream(channel)
        (lease,) = leases(await stream.ask(0, acquire()))
        for batch_id in range(1, MAX_WAITING_BATCHES + 1):
            assert not (await stream.ask(batch_id, acquire(wait=60))).done
        answer = await stream.ask(99, acquire(wait=60))
        assert answer.done
        assert answer.results[0].acquire.refusal.reason == pb.Refusal.OVERLOADED
        assert str(MAX_WAITING_BATCHES) in answer.results[0].acquire.refusal.message
        await stream.send(100, [release(lease)])
        answers = {answer.batch_id: answer for answer in (await stream.next(), await stream.next())}
        assert answers[100].results[0].release.outcome == pb.Lease.RELEASED
        assert answers[1].results[0].acquire.HasField("lease")
        assert not (await stream.ask(101, acquire(wait=60))).done


@pytest.mark.parametrize("defect", [ZeroDivisionError("secret"), InternalError("secret")])
async def test_a_defect_ends_the_stream_as_internal_and_shows_nothing_of_the_inside(defect):
    facade = ScriptedFacade(free={"chat": 1}, defect=defect)
    async with served(facade) as channel:
        stream = Stream(channel)
        await stream.send(1, [acquire()])
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stream.next()
        assert refused.value.code() is grpc.StatusCode.INTERNAL
        assert "secret" not in str(refused.value)


async def test_a_defect_in_a_wait_ends_the_stream_too():
    facade = ScriptedFacade(free={"chat": 0})
    async with served(facade) as channel:
        stream = Stream(channel)
        await stream.ask(1, acquire(wait=60))
        facade.waiters[0][2].set_exception(ZeroDivisionError("secret"))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stream.next()
        assert refused.value.code() is grpc.StatusCode.INTERNAL


async def test_no_batch_is_read_ahead_of_a_client_that_takes_no_answers():
    read = 0

    async def requests() -> AsyncIterator[pb.SessionRequest]:
        nonlocal read
        for batch_id in range(3 * MAX_UNSENT):
            read += 1
            yield pb.SessionRequest(batch_id=batch_id)

    responses = LeaseSession(cast(Facade, ScriptedFacade())).responses(requests())
    taken = [(await anext(responses)).batch_id]
    for _ in range(10 * MAX_UNSENT):
        await asyncio.sleep(0)
    assert read <= MAX_UNSENT + 1
    taken += [response.batch_id async for response in responses]
    assert taken == list(range(3 * MAX_UNSENT))
