"""Telemetry: model <-> protobuf. What is None stays absent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from google.protobuf.duration_pb2 import Duration

from poolmgr.convert.common import duration_to_proto, invalid, optional_duration, optional_timestamp, seconds
from poolmgr.model.device import FieldInfo, RingInfo, WindowStatistics
from poolmgr.model.telemetry import WINDOWS, DeviceReading, FieldReading, TelemetryAsk
from poolmgr.v1 import telemetry_pb2 as pb

MAX_FIELDS: Final = 256
MAX_HISTORY: Final = 600.0
INTERVAL_DEFAULT: Final = 1.0
INTERVAL_MIN: Final = 0.1
INTERVAL_MAX: Final = 60.0


def ask_from_proto(request: pb.GetTelemetryRequest) -> TelemetryAsk:
    """Raises ClientError(INVALID_ARGUMENT) for windows that are not kept and history that is not there."""
    history = seconds(request.history)
    if not 0 <= history <= MAX_HISTORY:
        raise invalid("history", f"is {history:g} s, it must be 0 s to {MAX_HISTORY:g} s", value=history, low=0)
    windows = tuple(_window(message) for message in request.windows[: len(WINDOWS) + 1])
    return TelemetryAsk(fields_from(request.fields), tuple(dict.fromkeys(windows)), request.quantiles, history)


def fields_from(names: Sequence[str]) -> tuple[str, ...]:
    if len(names) > MAX_FIELDS:
        raise invalid("fields", f"has {len(names)} names, at most {MAX_FIELDS} are allowed", value=len(names))
    return tuple(names)


def interval_from(message: Duration | None) -> float:
    """Raises ClientError(INVALID_ARGUMENT) outside of the bounds."""
    if message is None:
        return INTERVAL_DEFAULT
    value = seconds(message)
    if not INTERVAL_MIN <= value <= INTERVAL_MAX:
        text = f"is {value:g} s, it must be {INTERVAL_MIN:g} s to {INTERVAL_MAX:g} s"
        raise invalid("interval", text, value=value, low=INTERVAL_MIN, high=INTERVAL_MAX)
    return value


def device_to_proto(reading: DeviceReading) -> pb.DeviceTelemetry:
    return pb.DeviceTelemetry(
        device_id=reading.device_id,
        index=reading.index,
        time=optional_timestamp(reading.at),
        age=optional_duration(None if reading.age is None else max(0.0, reading.age)),
        stale=reading.stale,
        fields=[_field_to_proto(field) for field in reading.fields],
    )


def ring_to_proto(ring: RingInfo) -> pb.RingInfo:
    return pb.RingInfo(
        path=ring.path,
        epoch=ring.epoch,
        version=ring.version,
        size_bytes=ring.size_bytes,
        rate_hz=ring.rate_hz,
        depth=duration_to_proto(ring.depth_seconds),
        fields=[_info_to_proto(field) for field in ring.fields],
        device_ids=ring.device_ids,
        writer_pid=ring.writer_pid,
        heartbeat_age=duration_to_proto(max(0.0, ring.heartbeat_age)),
    )


def _info_to_proto(field: FieldInfo) -> pb.RingInfo.Field:
    return pb.RingInfo.Field(
        name=field.name, unit=field.unit, counter=field.counter, cadence=duration_to_proto(field.cadence)
    )


def _field_to_proto(reading: FieldReading) -> pb.FieldTelemetry:
    info = reading.info
    return pb.FieldTelemetry(
        name=info.name,
        unit=info.unit,
        counter=info.counter,
        cadence=duration_to_proto(info.cadence),
        value=reading.value,
        statistics=[_window_to_proto(one, reading.quantiles.get(one.window, {})) for one in reading.statistics],
        points=[pb.FieldTelemetry.Point(age=duration_to_proto(age), value=value) for age, value in reading.points],
    )


def _window_to_proto(one: WindowStatistics, quantiles: Mapping[float, float]) -> pb.WindowStatistics:
    return pb.WindowStatistics(
        window=duration_to_proto(one.window),
        count=one.count,
        last=one.last,
        minimum=one.minimum,
        maximum=one.maximum,
        mean=one.mean,
        standard_deviation=one.standard_deviation,
        slope=one.slope,
        slope_error=one.slope_error,
        integral=one.integral,
        p50=quantiles.get(0.5),
        p95=quantiles.get(0.95),
        p99=quantiles.get(0.99),
    )


def _window(message: Duration) -> float:
    value = seconds(message)
    if value not in WINDOWS:
        kept = ", ".join(f"{window:g}" for window in WINDOWS)
        raise invalid("windows", f"has {value:g} s; statistics are kept of {kept} s", value=value)
    return value
