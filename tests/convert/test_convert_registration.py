"""Engines that register themselves, and engines in lists: absent stays absent, nothing absurd gets in."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolmgr.convert.engine import engine_to_proto
from poolmgr.convert.registration import (
    DESIRED,
    answer_to_proto,
    beat_from_proto,
    engine_id_from,
    registration_from_proto,
)
from poolmgr.errors import ClientError, Reason
from poolmgr.model.pool import EngineName, PoolState
from poolmgr.model.registration import Beat, BeatAnswer, DesiredState, EngineView, Registration
from poolmgr.v1 import engine_pb2 as pb
from poolmgr.v1 import pool_pb2

VIEW = EngineView(
    engine_id="e1",
    pool_id="chat",
    generation=2,
    engine=EngineName.VLLM,
    engine_version="0.9",
    endpoint="10.0.0.1:8000",
    pid=42,
    state=PoolState.LOST,
    slots_total=4,
    slots_free=1,
    device_mask="0",
    start_time=1_700_000_000.5,
    directory="/s/engines/e1",
    registered=True,
    last_heartbeat=1_700_000_010.25,
    in_flight=0,
    progress_counter=2**64 - 1,
)


def refused(make, request) -> ClientError:
    with pytest.raises(ClientError) as refusal:
        make(request)
    assert refusal.value.reason is Reason.INVALID_ARGUMENT
    return refusal.value


@pytest.mark.behaviour("ENG-1")
def test_a_whole_registration_arrives_as_it_was_sent():
    request = pb.RegisterEngineRequest(
        engine_id="gpu-box.1:8000",
        pool_id="chat",
        endpoint="[::1]:8000",
        engine=pool_pb2.ENGINE_TGI,
        engine_version="3.1",
        slots_total=4096,
        slots_free=4,
        device_mask="0,1",
        pid=2**22,
        ttl={"seconds": 45},
    )
    assert registration_from_proto(request) == Registration(
        *("gpu-box.1:8000", "chat", "[::1]:8000", EngineName.TGI, "3.1", 4096, 4, "0,1", 2**22, 45.0)
    )


@pytest.mark.behaviour("ENG-1")
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("pool_id", "chat"),
        ("endpoint", "host.local:1"),
        ("engine_version", ""),
        ("slots_total", 1),
        ("slots_free", 0),
        ("device_mask", ""),
        ("pid", 0),
    ],
)
def test_a_field_that_is_present_is_told_even_when_it_is_empty_and_the_others_are_not(field, value):
    made = registration_from_proto(pb.RegisterEngineRequest(engine_id="e1", **{field: value}))
    assert made == replace(Registration("e1"), **{field: value})


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("engine_id", {"engine_id": ""}),
        ("engine_id", {"engine_id": "../up"}),
        ("engine_id", {"engine_id": ".hidden"}),
        ("engine_id", {"engine_id": "e" * 129}),
        ("engine_id", {"engine_id": "e\n"}),
        ("pool_id", {"pool_id": ""}),
        ("pool_id", {"pool_id": "No"}),
        ("engine", {"engine": 0}),
        ("engine", {"engine": 99}),
        ("engine_version", {"engine_version": "x" * 257}),
        ("engine_version", {"engine_version": "\x1b[2J"}),
        ("slots_total", {"slots_total": -1}),
        ("slots_total", {"slots_total": 0}),
        ("slots_total", {"slots_total": 4097}),
        ("slots_free", {"slots_free": -1}),
        ("slots_free", {"slots_free": 4097}),
        ("device_mask", {"device_mask": "0\0"}),
        ("pid", {"pid": -1}),
        ("pid", {"pid": 2**22 + 1}),
        ("ttl", {"ttl": {"seconds": 2}}),
        ("ttl", {"ttl": {"seconds": 301}}),
        ("ttl", {"ttl": {}}),
    ],
)
def test_a_registration_with_an_absurd_value_is_refused_by_the_fields_name(field, fields):
    error = refused(registration_from_proto, pb.RegisterEngineRequest(**{"engine_id": "e1", **fields}))
    assert error.numbers["field"] == field
    assert error.message.startswith(field)


@pytest.mark.parametrize(
    ("endpoint", "said"),
    [
        ("", "host:port"),
        ("8000", "host:port"),
        (":8000", "host:port"),
        ("::1:8000", "host:port"),
        ("http://host:8000", "host:port"),
        ("ho st:8000", "host:port"),
        ("host\n:8000", "host:port"),
        ("host:", "1 to 65535"),
        ("host:0", "1 to 65535"),
        ("host:65536", "1 to 65535"),
        ("host:-1", "1 to 65535"),
        ("host:http", "1 to 65535"),
        ("host:٣", "1 to 65535"),
        ("host:" + "9" * 5000, "1 to 65535"),
    ],
)
def test_an_endpoint_that_nobody_can_reach_is_refused_with_what_is_wrong_of_it(endpoint, said):
    error = refused(registration_from_proto, pb.RegisterEngineRequest(engine_id="e1", endpoint=endpoint))
    assert error.numbers["field"] == "endpoint"
    assert said in error.message
    assert len(error.message) < 1024


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}", fullmatch=True))
def test_a_well_formed_engine_id_passes_and_is_no_path(text):
    assert engine_id_from(text) == text
    assert "/" not in text and text not in (".", "..")


@pytest.mark.behaviour("ENG-1")
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("slots_free", 0),
        ("in_flight", 0),
        ("in_flight", 1_000_000),
        ("progress_counter", 0),
        ("progress_counter", 2**64 - 1),
        ("ready", False),
        ("draining", False),
        ("draining", True),
    ],
)
def test_a_heartbeat_tells_what_is_present_and_leaves_the_rest(field, value):
    assert beat_from_proto(pb.HeartbeatRequest(engine_id="e1", **{field: value})) == replace(
        Beat("e1"), **{field: value}
    )


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("engine_id", {"engine_id": ""}),
        ("slots_free", {"slots_free": -1}),
        ("slots_free", {"slots_free": 4097}),
        ("in_flight", {"in_flight": -1}),
        ("in_flight", {"in_flight": 1_000_001}),
    ],
)
def test_a_heartbeat_with_an_absurd_value_is_refused_by_the_fields_name(field, fields):
    error = refused(beat_from_proto, pb.HeartbeatRequest(**{"engine_id": "e1", **fields}))
    assert error.numbers["field"] == field


@pytest.mark.parametrize("desired", DesiredState)
def test_the_answer_to_a_heartbeat_tells_when_and_what(desired):
    answer = answer_to_proto(BeatAnswer(2.5, desired))
    assert answer.interval.ToMilliseconds() == 2500
    assert pb.HeartbeatResponse.DesiredState.Name(answer.desired_state) == desired


def test_desired_states_and_specified_protobuf_values_correspond_one_to_one():
    values = pb.HeartbeatResponse.DesiredState.values()
    assert sorted(DESIRED.values()) == sorted(value for value in values if value)
    assert set(DESIRED) == set(DesiredState)


def test_an_engine_shows_every_field_of_its_view():
    engine = engine_to_proto(VIEW)
    assert (engine.state, engine.engine) == (pool_pb2.Pool.LOST, pool_pb2.ENGINE_VLLM)
    assert engine.start_time.ToMilliseconds() == 1_700_000_000_500
    assert engine.last_heartbeat.ToMilliseconds() == 1_700_000_010_250
    for name in (
        *("engine_id", "pool_id", "generation", "engine_version", "endpoint", "pid", "slots_total", "slots_free"),
        *("device_mask", "directory", "registered", "in_flight", "progress_counter"),
    ):
        assert getattr(engine, name) == getattr(VIEW, name), name


def test_what_an_engine_did_not_say_is_absent_and_not_zero():
    unknown = replace(VIEW, start_time=None, last_heartbeat=None, in_flight=None, progress_counter=None)
    engine = engine_to_proto(unknown)
    for name in ("start_time", "last_heartbeat", "in_flight", "progress_counter"):
        assert engine_to_proto(VIEW).HasField(name)
        assert not engine.HasField(name)
