"""What goes into `pool.step`: commands and observed facts. What comes out of it is in `core.effects`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from poolmgr.core.memo import RegisteredEngine
from poolmgr.model.engine import Diagnosis, EngineFacts, ExitRecord, ProbeResult, Progress, Usage
from poolmgr.model.lease import EndedLease, Lease, LeaseAsk
from poolmgr.model.plan import SplitPlan
from poolmgr.model.pool import PoolSpec, ReloadStrategy
from poolmgr.model.registration import Beat


class Moment(NamedTuple):
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
    """`grace`: seconds between SIGTERM and the kill; None takes the setting. `for_now`: the next daemon starts it."""

    grace: float | None = None
    for_now: bool = False


@dataclass(frozen=True, slots=True)
class Delete:
    """Drain, stop, forget. Only a StopPool can hurry it."""

    deadline: float | None = None


@dataclass(frozen=True, slots=True)
class ResetBreaker:
    pass


@dataclass(frozen=True, slots=True)
class ChangeSpec:
    """Go to this generation: one that is new, or one that was kept. `anew`: restart though nothing differs.

    `drain_deadline`: seconds for the engine that serves now; None takes its spec's. `fits`: whether its devices have
    room for the new engine beside all that runs.
    """

    spec: PoolSpec
    generation: int
    strategy: ReloadStrategy = ReloadStrategy.AUTO
    drain_deadline: float | None = None
    anew: bool = False
    fits: bool = True


@dataclass(frozen=True, slots=True)
class Register:
    """An engine that somebody else runs tells of itself (ENG-1). `engine`, `spec`: all that it has told by now.

    `slots_free`: as it told just now, None when it did not. `anew`: it told where it is, as a process does that has
    just begun: what heartbeats said before may be another one's.
    """

    engine: RegisteredEngine
    spec: PoolSpec
    generation: int
    slots_free: int | None = None
    anew: bool = True


class Acquire(NamedTuple):
    ask: LeaseAsk


class Renew(NamedTuple):
    lease_id: str
    token: str


class Release(NamedTuple):
    lease_id: str
    token: str


@dataclass(frozen=True, slots=True)
class ForgetWaiter:
    lease_id: str


# Facts.


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Of an engine that registered itself."""

    beat: Beat


@dataclass(frozen=True, slots=True)
class Spawned:
    """The start of `generation` succeeded: exec is done. `ticks`: start time of the process, by which it is told from
    another of its pid. `slots`: how many it was started with, 0 for as many as the spec asks for."""

    engine_id: str
    pid: int
    port: int
    slots: int = 0
    ticks: int = 0
    generation: int = 0
    plan: SplitPlan | None = None


@dataclass(frozen=True, slots=True)
class Queued:
    """The start of `generation` waits for its permit (PRE-7), at this place from 1; at 0 it has it."""

    generation: int
    position: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class StartRefused:
    """A gate was closed or the spawn failed; no process exists. `permanent`: no retry before the spec changes."""

    reason: str
    message: str
    permanent: bool
    generation: int = 0


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
    ticks: int = 0
    plan: SplitPlan | None = None


@dataclass(frozen=True, slots=True)
class AdoptedBeside:
    """An engine of an earlier daemon, alive and proven ours, of a generation that is not the pool's.

    The daemon died in a reload: after the commit this is the engine that was retiring, before it the one that was to
    come, which goes (DRN-3). `slots` as in Adopted.
    """

    adopted: Adopted
    spec: PoolSpec
    generation: int
    retiring: bool


@dataclass(frozen=True, slots=True)
class LeasesKept:
    """What an earlier daemon of this boot had granted and ended. `known` False: there may be more."""

    live: tuple[Lease, ...] = ()
    ended: tuple[EndedLease, ...] = ()
    known: bool = True


@dataclass(frozen=True, slots=True)
class Recovered:
    """All that was found of this pool has been told: go on from what it remembers."""


@dataclass(frozen=True, slots=True)
class InDoubt:
    """An engine of an earlier daemon of which not all marks agree."""

    engine_id: str
    detail: str


@dataclass(frozen=True, slots=True)
class Found:
    """The directory of an engine that ended while no daemon ran; the next start goes on in it.

    `pid` and `ticks` name the process, 0 where that is not known; `exited` tells how it ended.
    """

    engine_id: str
    pid: int = 0
    ticks: int = 0
    exited: Exited | None = None


@dataclass(frozen=True, slots=True)
class Cleared:
    """Of an engine in doubt nothing is left."""


@dataclass(frozen=True, slots=True)
class Verified:
    """The answer to the synthetic request of a reload; `detail` says what was wrong, empty when nothing was."""

    generation: int
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Committed:
    """The commit of a reload is durable; or `fault` says why it is not, and nothing has changed."""

    generation: int
    fault: str = ""


@dataclass(frozen=True, slots=True)
class HostFault:
    """Many engines of this host died at once: the fault is not this pool's (RST-6)."""


@dataclass(frozen=True, slots=True)
class Evacuate:
    """A device of its engine is not to be trusted with work any more (STATE-1)."""

    reason: str


@dataclass(frozen=True, slots=True)
class Explained:
    """What became known of an end after it was told, before nothing was left of the engine."""

    engine_id: str
    diagnosis: Diagnosis


@dataclass(frozen=True, slots=True)
class Blamed:
    """It is the generation that fails, not the GPUs that it fails on (RST-3): no retry until it is edited."""

    generation: int
    reason: str


@dataclass(frozen=True, slots=True)
class DevicesChanged:
    """What kept a start from its devices may be over."""


@dataclass(frozen=True, slots=True)
class Probed:
    """The answer to the probe `serial`. `owned`: whether the listening socket is the engine's; None: cannot tell.

    `progress`: what it says of its work, None when it does not. `gpu_busy`: None is unknown.
    """

    engine_id: str
    serial: int
    result: ProbeResult
    usage: Usage
    owned: bool | None = None
    facts: EngineFacts | None = None
    progress: Progress | None = None
    gpu_busy: bool | None = None


@dataclass(frozen=True, slots=True)
class WorkAnswered:
    """The answer to the request `serial` of `AskWork`."""

    engine_id: str
    serial: int
    result: ProbeResult


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
    | Register | Heartbeat
    | Queued | Spawned | StartRefused | Adopted | AdoptedBeside | InDoubt | Found | Cleared | LeasesKept | Recovered
    | Probed | WorkAnswered | Verified | Committed | Exited | TreeEmpty | HostFault | Evacuate | Explained | Blamed
    | DevicesChanged | Tick
)  # fmt: skip
