"""What every conversion needs: seconds, enums, and the one way to say that an argument is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from poolmgr.errors import ClientError, Number, Reason

E = TypeVar("E", bound=StrEnum)
V = TypeVar("V", bound=int)

_NANOS = 1_000_000_000


def invalid(field: str, message: str, **numbers: Number) -> ClientError:
    """INVALID_ARGUMENT that begins with the field's name; the name and `numbers` reach the client as metadata."""
    return ClientError(Reason.INVALID_ARGUMENT, f"{field} {message}", numbers={"field": field, **numbers})


def seconds(message: Duration) -> float:
    """Through whole nanoseconds: that division rounds once, so that a value comes back as it went out."""
    return (message.seconds * _NANOS + message.nanos) / _NANOS


def seconds_from(message: Duration | None, default: float, low: float, high: float, name: str) -> float:
    """Seconds in [low, high]; None, an absent field, means `default`. INVALID_ARGUMENT outside of the range."""
    if message is None:
        return default
    value = seconds(message)
    if not low <= value <= high:
        raise invalid(name, f"is {value:g} s, it must be {low:g} s to {high:g} s", value=value, low=low, high=high)
    return value


def duration_to_proto(value: float) -> Duration:
    """Non-negative seconds, to the nanosecond."""
    message = Duration()
    write_duration(message, value)
    return message


def write_duration(message: Duration, value: float) -> None:
    """`duration_to_proto` into a message that is there already."""
    message.seconds, message.nanos = divmod(round(value * _NANOS), _NANOS)


def timestamp_to_proto(unix_seconds: float) -> Timestamp:
    """Unix seconds, to the microsecond: a float of today's clock holds no more."""
    message = Timestamp()
    write_timestamp(message, unix_seconds)
    return message


def write_timestamp(message: Timestamp, unix_seconds: float) -> None:
    """`timestamp_to_proto` into a message that is there already."""
    message.seconds, micros = divmod(round(unix_seconds * 1_000_000), 1_000_000)
    message.nanos = micros * 1000


def count_from(value: int, low: int, high: int, name: str) -> int:
    """A whole number in [low, high]. INVALID_ARGUMENT outside of the range."""
    if not low <= value <= high:
        raise invalid(name, f"is {value}, it must be {low} to {high}", value=value, low=low, high=high)
    return value


def optional_duration(value: float | None) -> Duration | None:
    return None if value is None else duration_to_proto(value)


def timestamp_from(message: Timestamp) -> float:
    """Unix seconds."""
    return (message.seconds * _NANOS + message.nanos) / _NANOS


def optional_timestamp(unix_seconds: float | None) -> Timestamp | None:
    return None if unix_seconds is None else timestamp_to_proto(unix_seconds)


def enum_table(members: Iterable[E], value_of: Callable[[str], V], prefix: str = "") -> dict[E, V]:
    """Each member's protobuf value, found by name. Raises ValueError at import when protobuf lacks a member."""
    return {member: value_of(prefix + member.value) for member in members}


def enum_from(table: dict[V, E], value: V, field: str) -> E:
    """The member for a protobuf value, which may be any number: enums are open. INVALID_ARGUMENT when there is none."""
    member = table.get(value)
    if member is None:
        expected = ", ".join(table.values())
        raise invalid(field, f"is unspecified or unknown ({value}), it must be one of {expected}", value=int(value))
    return member
