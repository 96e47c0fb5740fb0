"""Engines that register themselves: model <-> protobuf. A field that is absent stays None: nothing was said of it."""

from __future__ import annotations

import re
from typing import Final

from poolmgr.convert.common import count_from, enum_from, enum_table, invalid, seconds_from, write_duration
from poolmgr.convert.pool import ENGINE_NAMES, pool_id_from
from poolmgr.model.limits import MAX_PORT
from poolmgr.model.pool import MAX_SLOTS, EngineName
from poolmgr.model.registration import TTL_DEFAULT, TTL_MAX, TTL_MIN, Beat, BeatAnswer, DesiredState, Registration
from poolmgr.v1 import engine_pb2 as pb
from poolmgr.v1 import pool_pb2

MAX_ENGINE_ID: Final = 128
MAX_TEXT: Final = 256
MAX_PID: Final = 2**22  # the kernel's own limit
MAX_IN_FLIGHT: Final = 1_000_000

DESIRED: Final = enum_table(DesiredState, pb.HeartbeatResponse.DesiredState.Value)

# No slash and no leading dot: ids of engines name directories.
_ENGINE_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_PORT: Final = re.compile(r"[0-9]{1,5}")
_HOST: Final = re.compile(r"[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]")


def registration_from_proto(request: pb.RegisterEngineRequest) -> Registration:
    """Raises ClientError(INVALID_ARGUMENT) that names the field, its value and its limits."""
    said = request.HasField
    return Registration(
        engine_id_from(request.engine_id),
        pool_id_from(request.pool_id) if said("pool_id") else None,
        _endpoint(request.endpoint) if said("endpoint") else None,
        _engine(request.engine) if said("engine") else None,
        _text(request.engine_version, "engine_version") if said("engine_version") else None,
        count_from(request.slots_total, 1, MAX_SLOTS, "slots_total") if said("slots_total") else None,
        count_from(request.slots_free, 0, MAX_SLOTS, "slots_free") if said("slots_free") else None,
        _text(request.device_mask, "device_mask") if said("device_mask") else None,
        count_from(request.pid, 0, MAX_PID, "pid") if said("pid") else None,
        seconds_from(request.ttl, TTL_DEFAULT, TTL_MIN, TTL_MAX, "ttl") if said("ttl") else None,
    )


def beat_from_proto(request: pb.HeartbeatRequest) -> Beat:
    """Raises ClientError(INVALID_ARGUMENT) as above."""
    said = request.HasField
    return Beat(
        engine_id_from(request.engine_id),
        count_from(request.slots_free, 0, MAX_SLOTS, "slots_free") if said("slots_free") else None,
        count_from(request.in_flight, 0, MAX_IN_FLIGHT, "in_flight") if said("in_flight") else None,
        request.progress_counter if said("progress_counter") else None,
        request.ready if said("ready") else None,
        request.draining if said("draining") else None,
    )


def answer_to_proto(answer: BeatAnswer) -> pb.HeartbeatResponse:
    response = pb.HeartbeatResponse(desired_state=DESIRED[answer.desired])
    write_duration(response.interval, answer.interval)
    return response


def engine_id_from(text: str) -> str:
    """A well-formed id of an engine, else ClientError(INVALID_ARGUMENT) that names it."""
    if not _ENGINE_ID.fullmatch(text):
        message = f"{text[:80]!r} is not 1 to {MAX_ENGINE_ID} of A-Z, a-z, 0-9, '.', '_', ':' and '-'"
        raise invalid("engine_id", f"{message}, a letter or digit first", value=text[:80], high=MAX_ENGINE_ID)
    return text


def _engine(value: pool_pb2.Engine.ValueType) -> EngineName:
    return enum_from(ENGINE_NAMES, value, "engine")


def _endpoint(text: str) -> str:
    host, colon, port = text.rpartition(":")
    shown = repr(text[:80])
    if not colon or not _HOST.fullmatch(host):
        raise invalid("endpoint", f"{shown} is not host:port; an IPv6 address stands in brackets", value=text[:80])
    if not _PORT.fullmatch(port) or not 1 <= int(port) <= MAX_PORT:
        message = f"{shown} has port {port[:80]!r}, it must be 1 to {MAX_PORT}"
        raise invalid("endpoint", message, value=port[:80], low=1, high=MAX_PORT)
    return text


def _text(text: str, field: str) -> str:
    # Shown in terminals and logs, where a control character is somebody else's command.
    if len(text) > MAX_TEXT or not text.isprintable():
        message = f"must be at most {MAX_TEXT} printable characters, it has {len(text)}"
        raise invalid(field, message, value=len(text), high=MAX_TEXT)
    return text
