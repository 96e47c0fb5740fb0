"""ReloadPool, RollbackPool and ListPoolGenerations: what reaches the facade, and what comes back."""

from __future__ import annotations

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from poolmgr.api.status import DETAILS_KEY
from poolmgr.errors import ClientError, Reason
from poolmgr.model.pool import EngineName, GenerationView, PoolSpec, ReloadStrategy
from poolmgr.v1 import pool_pb2 as pb
from poolmgr.v1.pool_pb2_grpc import PoolServiceStub
from tests.api.scripted_facade import ScriptedFacade, served

SLEEP = PoolSpec(EngineName.COMMAND, command="sleep")


async def refused(call) -> tuple[grpc.StatusCode, str]:
    """The code and the reason of a call that is not done."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    details = dict(raised.value.trailing_metadata())[DETAILS_KEY]
    info = error_details_pb2.ErrorInfo()
    assert status_pb2.Status.FromString(details).details[0].Unpack(info)
    return raised.value.code(), info.reason


@pytest.mark.behaviour("DRN-2")
@pytest.mark.parametrize(
    ("request_", "asked"),
    [
        (pb.ReloadPoolRequest(pool_id="chat"), ("chat", None, ReloadStrategy.AUTO, None, 0.0)),
        (
            pb.ReloadPoolRequest(pool_id="chat", drain_deadline={}, wait={"seconds": 9}),
            ("chat", None, ReloadStrategy.AUTO, 0.0, 9.0),
        ),
        (
            pb.ReloadPoolRequest(
                pool_id="chat",
                spec={"engine": pb.ENGINE_COMMAND, "command": "sleep"},
                strategy=pb.RELOAD_BREAK_BEFORE_MAKE,
                drain_deadline={"seconds": 5},
            ),
            ("chat", SLEEP, ReloadStrategy.BREAK_BEFORE_MAKE, 5.0, 0.0),
        ),
    ],
)
async def test_a_reload_says_what_to_where_and_how(request_, asked):
    facade = ScriptedFacade(pool=pb.Pool(pool_id="chat", reload_phase="starting", reload_generation=2))
    async with served(facade) as channel:
        answer = await PoolServiceStub(channel).ReloadPool(request_)
    assert facade.calls == [("reload", *asked)]
    assert (answer.reload_phase, answer.reload_generation) == ("starting", 2)


@pytest.mark.behaviour("DRN-4")
async def test_a_rollback_hands_the_generation_down():
    facade = ScriptedFacade()
    async with served(facade) as channel:
        stub = PoolServiceStub(channel)
        await stub.RollbackPool(pb.RollbackPoolRequest(pool_id="chat"))
        await stub.RollbackPool(pb.RollbackPoolRequest(pool_id="chat", generation=3, wait={"seconds": 2}))
    assert facade.calls == [("rollback", "chat", 0, None, 0.0), ("rollback", "chat", 3, None, 2.0)]


@pytest.mark.parametrize(
    "request_",
    [
        pb.ReloadPoolRequest(pool_id="chat", strategy=99),
        pb.ReloadPoolRequest(pool_id="chat", spec={}),
        pb.ReloadPoolRequest(pool_id="chat", drain_deadline={"seconds": -1}),
        pb.ReloadPoolRequest(pool_id="chat", wait={"seconds": 3601}),
    ],
)
async def test_a_malformed_reload_is_refused_before_anything_is_asked(request_):
    facade = ScriptedFacade()
    async with served(facade) as channel:
        code, reason = await refused(PoolServiceStub(channel).ReloadPool(request_))
    assert (code, reason, facade.calls) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT", [])


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        (Reason.RELOAD_IN_PROGRESS, grpc.StatusCode.FAILED_PRECONDITION),
        (Reason.GENERATION_BLOCKED, grpc.StatusCode.FAILED_PRECONDITION),
        (Reason.GENERATION_NOT_FOUND, grpc.StatusCode.NOT_FOUND),
    ],
)
async def test_what_cannot_be_reloaded_is_refused_by_its_reason(reason, code):
    async with served(ScriptedFacade(error=ClientError(reason, "no"))) as channel:
        stub = PoolServiceStub(channel)
        assert await refused(stub.ReloadPool(pb.ReloadPoolRequest(pool_id="chat"))) == (code, reason)
        assert await refused(stub.RollbackPool(pb.RollbackPoolRequest(pool_id="chat"))) == (code, reason)


@pytest.mark.behaviour("DRN-4")
async def test_generations_are_listed_oldest_first_and_by_the_page():
    kept = [GenerationView(number, SLEEP, 1.0, number == 11, number > 9, 0, False) for number in (9, 10, 11)]
    async with served(ScriptedFacade(kept=kept)) as channel:
        stub = PoolServiceStub(channel)
        first = await stub.ListPoolGenerations(pb.ListPoolGenerationsRequest(pool_id="chat", page_size=2))
        assert [(one.generation, one.current, one.committed) for one in first.generations] == [
            *((9, False, False), (10, False, True))
        ]
        rest = await stub.ListPoolGenerations(
            pb.ListPoolGenerationsRequest(pool_id="chat", page_size=2, page_token=first.next_page_token)
        )
        assert [one.generation for one in rest.generations] == [11]
        assert rest.next_page_token == ""
