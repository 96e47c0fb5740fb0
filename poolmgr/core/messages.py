"""What goes into `pool.step` (commands and observed facts) and what comes out of it (effects)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from poolmgr.core.leases import Answer
from poolmgr.model.engine import Diagnosis, EngineFacts, ExitRecord, ProbeResult, Usage
from poolmgr.model.lease import LeaseAsk, LeaseOutcome
from poolmgr.model.pool import PoolSpec


@dataclass(frozen=True, slots=True)
class Moment:
    """All of the outside that a decision may use.

    `now`: boot-time seconds. `wall`: Unix seconds, for people. `jitter`: uniform in [0, 1). `fence`: the next unused
    fencing number of the host. `host_restarts`: restarts on this host within the restart window.
    """

    now: float
    wall: float = 0.0
    jitter: float = 0.5
    fence: int = 1
    host_restarts: int = 0


# Commands. Each may raise ClientError out of `step`, which then has changed nothing.


@dataclass(frozen=True, slots=True)
class Preload:
    pass


@dataclass(frozen=True, slots=True)
class Drain:
    """`deadline`: seconds from now; None takes the spec's."""

    deadline: float | None = None


@dataclass(frozen=True, slots=True)
class Undrain:
    pass


@dataclass(frozen=True, slots=True)
class Stop:
    """`grace`: seconds between SIGTERM and the kill; None takes the setting."""

    grace: float | None = None


@dataclass(frozen=True, slots=True)
class Delete:
    """Drain, stop, forget. Only a StopPool can hurry it."""

    deadline: float | None = None


@dataclass(frozen=True, slots=True)
class ResetBreaker:
    pass


@dataclass(frozen=True, slots=True)
class ChangeSpec:
    """The spec of a new generation, already durable."""

    spec: PoolSpec
    generation: int


@dataclass(frozen=True, slots=True)
class Acquire:
    ask: LeaseAsk


@dataclass(frozen=True, slots=True)
class Renew:
    lease_id: str
    token: str


@dataclass(frozen=True, slots=True)
class Release:
    lease_id: str
    token: str


@dataclass(frozen=True, slots=True)
class ForgetWaiter:
    lease_id: str


# Facts.


@dataclass(frozen=True, slots=True)
class Spawned:
    """The start succeeded: exec is done. `slots`: how many it was started with, 0 for as many as the spec asks for."""

    engine_id: str
    pid: int
    port: int
    slots: int = 0


@dataclass(frozen=True, slots=True)
class StartRefused:
    """A gate was closed or the spawn failed; no process exists. `permanent`: no retry before the spec changes."""

    reason: str
    message: str
    permanent: bool


@dataclass(frozen=True, slots=True)
class Adopted:
    """An engine of an earlier daemon, alive and proven ours.

    `current`: it runs what the spec asks for now. `slots`: how many it was started with, 0 for as many as that.
    """

    engine_id: str
    pid: int
    port: int
    current: bool = True
    slots: int = 0


@dataclass(frozen=True, slots=True)
class InDoubt:
    """An engine of an earlier daemon of which not all marks agree."""

    engine_id: str
    detail: str


@dataclass(frozen=True, slots=True)
class Found:
    """The directory of an engine that ended while no daemon ran; the next start goes on in it."""

    engine_id: str


@dataclass(frozen=True, slots=True)
class Probed:
    """The answer to the probe `serial`. `owned`: whether the listening socket is the engine's; None: cannot tell."""

    serial: int
    result: ProbeResult
    usage: Usage
    owned: bool | None = None
    facts: EngineFacts | None = None


@dataclass(frozen=True, slots=True)
class Exited:
    """The main process ended."""

    engine_id: str
    record: ExitRecord
    log_tail: tuple[str, ...] = ()
    diagnosis: Diagnosis | None = None


@dataclass(frozen=True, slots=True)
class TreeEmpty:
    """No process of the engine is left."""

    engine_id: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Something that `next_deadline` announced is due."""


Event = (
    Preload | Drain | Undrain | Stop | Delete | ResetBreaker | ChangeSpec | Acquire | Renew | Release | ForgetWaiter
    | Spawned | StartRefused | Adopted | InDoubt | Found | Probed | Exited | TreeEmpty | Tick
)  # fmt: skip


# Effects.


@dataclass(frozen=True, slots=True)
class Start:
    """Start an engine. `engine_id` empty: a new one; else again in its place. `proven`: this spec has been READY, so
    the gates need not be walked through again. `fresh_port`: the port of the last start is somebody else's."""

    engine_id: str
    proven: bool
    fresh_port: bool


@dataclass(frozen=True, slots=True)
class RunProbe:
    """Ask the engine once, then tell by `Probed` with this serial. `readiness`: with ownership and facts."""

    serial: int
    readiness: bool
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
class CountRestart:
    """One restart of this host."""


@dataclass(frozen=True, slots=True)
class LeaseAnswered:
    answer: Answer


@dataclass(frozen=True, slots=True)
class LeaseEnded:
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
    HEALTH_CHECK_FAILED = "health_check_failed"


@dataclass(frozen=True, slots=True)
class Note:
    """An event with its evidence."""

    name: NoteName
    fields: Mapping[str, str | int | float | bool] = field(default_factory=dict)


Effect = (
    Start | RunProbe | Terminate | KillTree | Rest | Discard | Forget | CountRestart | LeaseAnswered | LeaseEnded | Note
)
