"""An engine process: how it is launched, who it is, how it ended, what it says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the two describe each other
    from poolmgr.model.plan import SplitPlan
    from poolmgr.model.pool import PoolRecord


class CrashCause(StrEnum):
    """Why an engine ended or was ended (LIVE-3, a closed set)."""

    EXIT_CODE = "EXIT_CODE"
    SIGNAL = "SIGNAL"
    HOST_OOM = "HOST_OOM"
    GPU_OOM = "GPU_OOM"
    CUDA_ERROR = "CUDA_ERROR"
    DEVICE_LOST = "DEVICE_LOST"
    HEALTH_CHECK_FAILED = "HEALTH_CHECK_FAILED"
    HUNG = "HUNG"
    START_FAILED = "START_FAILED"
    STALLED = "STALLED"
    STOPPED_BY_US = "STOPPED_BY_US"
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """One engine to run. The directory, the cgroup leaf and the shim are named by `engine_id`, a uuid in hex.

    `argv[0]` is an absolute path. `env` is the whole environment. `port` is the port it will listen on, 0 for none.
    `mark` stands for all of the pool's spec that the engine notices, `slots` for how many it was started with: by the
    two a later daemon tells whether it still is what its pool asks for. `record` is the pool itself, for a daemon that
    has lost its store. `plan` and `reserved`, bytes by device: what it was to take, where that is known.
    """

    engine_id: str
    pool_id: str
    generation: int
    argv: tuple[str, ...]
    env: Mapping[str, str]
    port: int = 0
    log_limit_bytes: int = 64 * 1024 * 1024
    mark: str = ""
    slots: int = 0
    record: PoolRecord | None = None
    plan: SplitPlan | None = None
    reserved: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A process that cannot be mistaken for another: a pid means nothing without its start time and boot.

    `start_ticks`: field 22 of /proc/<pid>/stat. `pidfd_inode`: None on kernels before 6.9.
    """

    boot_id: str
    pid: int
    start_ticks: int
    pidfd_inode: int | None = None


@dataclass(frozen=True, slots=True)
class ExitRecord:
    """How a process ended; all None when nobody could tell. `source`: shim, waitid, zombie, pidfd_info or unknown."""

    exit_code: int | None = None
    signal: int | None = None
    oom_killed: bool = False
    source: str = "unknown"


@dataclass(frozen=True, slots=True)
class Usage:
    """What an engine's process tree has used so far; None where the host does not say.

    All but `rss_bytes`, the sum over its processes, only rise while the tree lives. `cpu_seconds`: user and system.
    """

    log_bytes: int = 0
    rss_bytes: int | None = None
    read_bytes: int | None = None
    cpu_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How an engine gets on with its requests, as it says itself (LIVE-2).

    `mark` is another one whenever a piece of work was done since the last, and the same as long as none was; what it
    consists of is the kind's business. None: it counts nothing. `free`: slots without a request; None is unknown.
    """

    in_flight: int
    mark: str | None
    free: int | None = None


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What a ready engine says of itself; zero or empty when it does not say."""

    version: str = ""
    slots: int = 0
    context_length: int = 0
    model: str = ""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What the log of a dead engine tells. `permanent`: the same spec would fail again."""

    reason: str
    message: str
    permanent: bool


class RecoveryState(StrEnum):
    """What a daemon finds of an engine at its start."""

    ALIVE = "ALIVE"
    DEAD = "DEAD"
    IN_DOUBT = "IN_DOUBT"


@dataclass(frozen=True, slots=True)
class RecoveredEngine:
    """An engine directory found at the daemon's start. `exit` is set when DEAD, `identity` when ALIVE; it is set for
    a DEAD one whose process is known.

    `launch` is what it was started with, where that can be read. `survivors`: DEAD, but processes of its tree are left.
    """

    engine_id: str
    pool_id: str
    generation: int
    state: RecoveryState
    port: int
    launch: LaunchSpec | None = None
    identity: ProcessIdentity | None = None
    exit: ExitRecord | None = None
    detail: str = ""
    survivors: bool = False


@dataclass(frozen=True, slots=True)
class ProbeTarget:
    """Where and how to ask: `host:port`, and the request. `timeout` in seconds bounds the whole exchange."""

    kind: str
    host: str
    port: int
    path: str = ""
    service: str = ""
    body: str = ""
    expect: str = ""
    timeout: float = 3.0


class ProbeOutcome(StrEnum):
    OK = "OK"
    LOADING = "LOADING"
    FAILED = "FAILED"
    NOT_ASKED = "NOT_ASKED"  # the daemon itself could not ask: that says nothing of the engine


@dataclass(frozen=True, slots=True)
class ProbeResult:
    outcome: ProbeOutcome
    detail: str = ""
