"""EngineService: registrations and heartbeats reach the facade as they were sent, lists show every engine."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import grpc
import pytest

from poolmgr.model.pool import EngineName, PoolState
from poolmgr.model.registration import Beat, EngineView, Registration
from poolmgr.v1 import engine_pb2 as pb
from poolmgr.v1 import pool_pb2
from poolmgr.v1.engine_pb2_grpc import EngineServiceStub
from tests.api.scripted_facade import ScriptedFacade, served

SECONDS = 10.0
OURS = EngineView(
    "ab", "chat", 1, EngineName.COMMAND, "", "127.0.0.1:1", 42, PoolState.READY, 2, 1, "", 5.0, "/s/engines/ab"
)


@pytest.mark.behaviour("ENG-1")
async def test_a_registration_answers_with_its_pool_and_a_partial_one_says_only_what_it_changes():
    facade = ScriptedFacade(pool=pool_pb2.Pool(pool_id="chat", state=pool_pb2.Pool.READY))
    async with served(facade) as channel:
        stub = EngineServiceStub(channel)
        answer = await stub.RegisterEngine(
            pb.RegisterEngineRequest(
                engine_id="e1", pool_id="chat", endpoint="10.0.0.1:80", engine=pool_pb2.ENGINE_VLLM, slots_total=4
            )
        )
        await stub.RegisterEngine(pb.RegisterEngineRequest(engine_id="e1", slots_free=0))
    assert (answer.pool_id, answer.state) == ("chat", pool_pb2.Pool.READY)
    assert facade.calls == [
        ("register", Registration("e1", "chat", "10.0.0.1:80", EngineName.VLLM, slots_total=4)),
        ("register", Registration("e1", slots_free=0)),
    ]


@pytest.mark.behaviour("ENG-1")
async def test_heartbeats_are_answered_one_by_one_with_the_next_interval_and_what_to_do():
    facade = ScriptedFacade()
    async with served(facade) as channel:
        call = EngineServiceStub(channel).Heartbeat()
        await call.write(pb.HeartbeatRequest(engine_id="e1", in_flight=0, progress_counter=2**63))
        first = await asyncio.wait_for(call.read(), SECONDS)
        assert (first.interval.seconds, first.desired_state) == (10, pb.HeartbeatResponse.SERVE)
        await call.write(pb.HeartbeatRequest(engine_id="e1", draining=True))
        second = await asyncio.wait_for(call.read(), SECONDS)
        assert second.desired_state == pb.HeartbeatResponse.DRAIN
        await call.done_writing()
        assert await asyncio.wait_for(call.read(), SECONDS) is grpc.aio.EOF
    assert facade.calls == [
        ("beat", Beat("e1", in_flight=0, progress_counter=2**63)),
        ("beat", Beat("e1", draining=True)),
    ]


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (pb.HeartbeatRequest(engine_id="gone"), grpc.StatusCode.NOT_FOUND),
        (pb.HeartbeatRequest(engine_id="e1", in_flight=-1), grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
async def test_a_heartbeat_that_is_of_nobody_or_malformed_ends_the_stream(request_, code):
    async with served(ScriptedFacade()) as channel:
        call = EngineServiceStub(channel).Heartbeat()
        await call.write(request_)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await asyncio.wait_for(call.read(), SECONDS)
        assert refused.value.code() is code


async def test_an_engine_is_deregistered_by_its_id():
    facade = ScriptedFacade()
    async with served(facade) as channel:
        stub = EngineServiceStub(channel)
        await stub.DeregisterEngine(pb.DeregisterEngineRequest(engine_id="e1"))
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.DeregisterEngine(pb.DeregisterEngineRequest(engine_id="../e1"))
    assert facade.calls == [("deregister", "e1")]


async def test_engines_are_listed_by_pool_and_generation_and_by_the_page():
    newer = replace(OURS, engine_id="aa", generation=12)
    other = replace(OURS, engine_id="zz", pool_id="chat-2")
    async with served(ScriptedFacade(listed=[other, newer, OURS])) as channel:
        stub, found, token = EngineServiceStub(channel), [], ""
        for _ in range(3):
            answer = await stub.ListEngines(pb.ListEnginesRequest(page_size=1, page_token=token))
            found += [(one.pool_id, one.engine_id) for one in answer.engines]
            token = answer.next_page_token
    assert found == [("chat", "ab"), ("chat", "aa"), ("chat-2", "zz")]
    assert token == ""
