"""`poolmgr engine list`, and the client's calls of EngineService."""

from __future__ import annotations

import json

from google.protobuf.empty_pb2 import Empty

from poolmgr.client import Client
from poolmgr.v1 import engine_pb2, pool_pb2

OURS = engine_pb2.EngineInstance(
    engine_id="ab12",
    pool_id="chat",
    generation=2,
    engine=pool_pb2.ENGINE_LLAMACPP,
    engine_version="b1",
    endpoint="127.0.0.1:8081",
    pid=42,
    state=pool_pb2.Pool.READY,
    slots_total=4,
    slots_free=3,
)
THEIRS = engine_pb2.EngineInstance(
    engine_id="e1",
    pool_id="far",
    engine=pool_pb2.ENGINE_VLLM,
    endpoint="10.0.0.1:8000",
    state=pool_pb2.Pool.LOST,
    registered=True,
    last_heartbeat={"seconds": 1_700_000_000},
    in_flight=0,
)


def test_engines_of_both_kinds_are_listed_on_one_line_each(daemon, run):
    daemon.script["ListEngines"] = engine_pb2.ListEnginesResponse(engines=[OURS, THEIRS])
    header, ours, theirs = run("engine", "list").out.splitlines()
    assert header.split()[:4] == ["ENGINE", "POOL", "GENERATION", "STATE"]
    assert ours.split() == [*("ab12", "chat", "2", "READY", "llamacpp", "b1", "3/4", "127.0.0.1:8081", "42"), "poolmgr"]
    assert theirs.split()[:8] == ["e1", "far", "0", "LOST", "vllm", "0/0", "10.0.0.1:8000", "itself"]
    assert theirs.split()[8].startswith("2023-11-")


def test_only_the_engines_of_one_pool_are_asked_for(daemon, run):
    daemon.script["ListEngines"] = engine_pb2.ListEnginesResponse(engines=[OURS])
    run("engine", "list", "--pool", "chat")
    run("engine", "list")
    assert [request.pool_id for request in daemon.requests("ListEngines")] == ["chat", ""]


def test_engines_in_json_tell_a_zero_from_what_was_not_said(daemon, run):
    daemon.script["ListEngines"] = engine_pb2.ListEnginesResponse(engines=[OURS, THEIRS])
    ours, theirs = json.loads(run("engine", "list", "--json").out)["engines"]
    assert (ours["registered"], theirs["registered"]) == (False, True)
    assert "in_flight" not in ours
    assert theirs["in_flight"] == 0


def test_no_engines_says_how_to_begin(daemon, run):
    daemon.script["ListEngines"] = engine_pb2.ListEnginesResponse()
    assert "pool preload" in run("engine", "list").out


def test_an_engine_registers_sends_heartbeats_and_leaves_through_the_client(daemon):
    def heartbeat(requests, _context):
        for request in requests:
            drain = engine_pb2.HeartbeatResponse.DRAIN if request.draining else engine_pb2.HeartbeatResponse.SERVE
            yield engine_pb2.HeartbeatResponse(interval={"seconds": 10}, desired_state=drain)

    daemon.script.update(RegisterEngine=pool_pb2.Pool(pool_id="far"), Heartbeat=heartbeat, DeregisterEngine=Empty())
    told = engine_pb2.RegisterEngineRequest(engine_id="e1", pool_id="far", slots_total=2)
    beats = [engine_pb2.HeartbeatRequest(engine_id="e1", draining=draining) for draining in (False, True)]
    with Client(daemon.address) as client:
        assert client.register_engine(told).pool_id == "far"
        answers = [answer.desired_state for answer in client.heartbeats(iter(beats))]
        client.deregister_engine("e1")
    assert answers == [engine_pb2.HeartbeatResponse.SERVE, engine_pb2.HeartbeatResponse.DRAIN]
    assert daemon.requests("RegisterEngine") == [told]
    assert daemon.requests("DeregisterEngine")[0].engine_id == "e1"
