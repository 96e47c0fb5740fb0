"""What comes out of `pool.step`: what the pool wants done, and what it has to say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from poolmgr.core.leases import Answer
from poolmgr.core.memo import Memo
from poolmgr.model.lease import EndedLease, Lease, LeaseOutcome


@dataclass(frozen=True, slots=True)
class Start:
    """Start an engine. `engine_id` empty: a new one; else again in its place. `proven`: this spec has been READY, so
    the gates need not be walked through again. `fresh_port`: the port of the last start is somebody else's.
    `probe_host`: see first whether this host can start anything at all."""

    engine_id: str
    proven: bool
    fresh_port: bool
    generation: int = 0
    probe_host: bool = False


@dataclass(frozen=True, slots=True)
class RunProbe:
    """Ask the engine once, then tell by `Probed` with this serial. `readiness`: with ownership and facts."""

    engine_id: str
    serial: int
    readiness: bool
    timeout: float


@dataclass(frozen=True, slots=True)
class AskWork:
    """Ask an engine that may hang for a piece of its work, then tell by `WorkAnswered`. `timeout` in seconds."""

    engine_id: str
    serial: int
    timeout: float


@dataclass(frozen=True, slots=True)
class Terminate:
    engine_id: str


@dataclass(frozen=True, slots=True)
class KillTree:
    engine_id: str


@dataclass(frozen=True, slots=True)
class Rest:
    """No engine runs and none is about to: give back the port and the shim; directory and log stay."""

    engine_id: str


@dataclass(frozen=True, slots=True)
class Discard:
    """Remove the engine's directory and all that is left of it."""

    engine_id: str


@dataclass(frozen=True, slots=True)
class Forget:
    """The pool is deleted: remove it from the store, and its actor from the daemon."""


@dataclass(frozen=True, slots=True)
class Verify:
    """Ask an engine that is ready for a piece of its work, then tell by `Verified`. `timeout` in seconds."""

    engine_id: str
    generation: int
    timeout: float


@dataclass(frozen=True, slots=True)
class Commit:
    """Make this durable, then tell by `Committed`; until then nothing else of the pool is."""

    generation: int
    memo: Memo


class RecordLeases(NamedTuple):
    """To be recorded before anybody is told of the grants."""

    granted: tuple[Lease, ...] = ()
    ended: tuple[EndedLease, ...] = ()


@dataclass(frozen=True, slots=True)
class CountRestart:
    """One restart of this host."""


@dataclass(frozen=True, slots=True)
class CountDeath:
    """One engine of this host ended that nobody had asked to."""


class LeaseAnswered(NamedTuple):
    answer: Answer


class LeaseEnded(NamedTuple):
    """The direct answer to Renew and Release. `expires` in boot-time seconds, for RENEWED."""

    outcome: LeaseOutcome
    expires: float | None = None


class NoteName(StrEnum):
    """Things worth a log line and, some of them, an alert. Stable."""

    POOL_TRANSITION = "pool_transition"
    ENGINE_CRASHED = "engine_crashed"
    START_FAILED = "engine_start_failed"
    BACKOFF_SCHEDULED = "backoff_scheduled"
    BREAKER_OPENED = "circuit_breaker_opened"
    BREAKER_HALF_OPEN = "circuit_breaker_half_open"
    BREAKER_CLOSED = "circuit_breaker_closed"
    RESTART_RATE_HIGH = "restart_rate_high"
    RESTART_STORM = "restart_storm"
    OOM_STORM = "oom_storm"
    DRAIN_STARTED = "drain_started"
    DRAIN_FINISHED = "drain_finished"
    POOL_READY = "pool_ready"
    LEASES_REVOKED = "leases_revoked"
    LEASES_UNKNOWN = "leases_unknown"
    RELOAD_STARTED = "reload_started"
    RELOAD_COMMITTED = "reload_committed"
    RELOAD_FINISHED = "reload_finished"
    FLAPPING = "restart_flapping"
    HOST_FAULT = "host_fault"
    POOL_IN_DOUBT = "pool_in_doubt"
    ENGINE_LOST = "engine_lost"
    HEALTH_CHECK_FAILED = "health_check_failed"
    ENGINE_SUSPECTED = "engine_suspected"
    ENGINE_HUNG = "engine_hung"


@dataclass(frozen=True, slots=True)
class Note:
    """An event with its evidence."""

    name: NoteName
    fields: Mapping[str, str | int | float | bool] = field(default_factory=dict)


Effect = (
    Start
    | RunProbe
    | AskWork
    | Verify
    | Terminate
    | KillTree
    | Rest
    | Discard
    | Commit
    | Forget
    | RecordLeases
    | CountRestart
    | CountDeath
    | LeaseAnswered
    | LeaseEnded
    | Note
)
