"""What a pool is asked to be (`PoolSpec`) and what it is at one revision (`PoolView`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from poolmgr.model.engine import ExitRecord
from poolmgr.model.names import EngineName as EngineName
from poolmgr.model.plan import SplitPlan

MAX_SLOTS = 4096
LOG_TAIL_LINES = 50
LOG_TAIL_CHARACTERS = 8192  # so that a snapshot of 256 failed pools stays below 4 MiB, the usual limit of clients


class PoolState(StrEnum):
    PENDING = "PENDING"
    PROVISIONING = "PROVISIONING"
    STARTING = "STARTING"
    READY = "READY"
    DRAINING = "DRAINING"
    STOPPING = "STOPPING"
    STOPPED = "STOPPED"
    BACKOFF = "BACKOFF"
    PARKED = "PARKED"
    UNKNOWN = "UNKNOWN"
    LOST = "LOST"


class BreakerState(StrEnum):
    CLOSED = "CLOSED"
    OPEN = "OPEN"
    HALF_OPEN = "HALF_OPEN"


class RestartMode(StrEnum):
    ON_FAILURE = "ON_FAILURE"
    ALWAYS = "ALWAYS"
    NEVER = "NEVER"


class ProbeKind(StrEnum):
    DEFAULT = "DEFAULT"
    HTTP = "HTTP"
    TCP = "TCP"
    GRPC = "GRPC"
    SYNTHETIC = "SYNTHETIC"
    NONE = "NONE"


class SplitMode(StrEnum):
    """How a model is laid over its devices (SPLIT-1)."""

    NONE = "NONE"  # on the best single one
    AUTO = "AUTO"  # planned over the mask
    EXPLICIT = "EXPLICIT"  # by the ratios that are given


class ReloadStrategy(StrEnum):
    """How a reload gets from one engine to the next (DRN-2)."""

    AUTO = "AUTO"
    MAKE_BEFORE_BREAK = "MAKE_BEFORE_BREAK"
    BREAK_BEFORE_MAKE = "BREAK_BEFORE_MAKE"


class Origin(StrEnum):
    """Who declared a pool: a file reload touches only pools that the file declared (CFG-3).

    REGISTERED: its engine did, which somebody else runs (ENG-1).
    """

    API = "api"
    CONFIG = "config"
    REGISTERED = "registered"


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """`path`: absolute. `digest`: ``sha256:<hex>`` or empty. `context_length`: tokens per slot, 0 = engine's own."""

    path: str = ""
    digest: str = ""
    context_length: int = 0
    cache_type: str = ""


@dataclass(frozen=True, slots=True)
class ProbeSpec:
    """How to ask an engine whether it is well. `interval` and `timeout` in seconds, 0 = the supervision default."""

    kind: ProbeKind = ProbeKind.DEFAULT
    path: str = ""
    service: str = ""
    body: str = ""
    expect: str = ""
    interval: float = 0.0
    timeout: float = 0.0
    failure_threshold: int = 0


@dataclass(frozen=True, slots=True)
class SupervisionOverrides:
    """CFG-2 keys that a pool changes for itself; None keeps the daemon's value."""

    health_check_interval_ms: int | None = None
    health_check_timeout_ms: int | None = None
    health_check_failures: int | None = None
    readiness_interval_ms: int | None = None
    start_timeout_secs: int | None = None
    stall_timeout_secs: int | None = None
    backoff_initial_ms: int | None = None
    backoff_max_ms: int | None = None
    backoff_floor_ms: int | None = None
    circuit_breaker_threshold: int | None = None
    circuit_breaker_timeout_secs: int | None = None
    restart_rate_limit: int | None = None
    restart_window_secs: int | None = None
    stable_secs: int | None = None


@dataclass(frozen=True, slots=True)
class SplitSpec:
    """`ratios`: of EXPLICIT, each device's share in the order of the mask; positive, of any sum."""

    mode: SplitMode = SplitMode.NONE
    ratios: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """The desired pool. `drain_deadline` in seconds. `device_mask` empty or "none" means no GPU."""

    engine: EngineName
    model: ModelSpec = field(default_factory=ModelSpec)
    command: str = ""
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    device_mask: str = ""
    slots: int = 1
    port: int = 0
    readiness: ProbeSpec = field(default_factory=ProbeSpec)
    liveness: ProbeSpec = field(default_factory=ProbeSpec)
    restart: RestartMode = RestartMode.ON_FAILURE
    supervision: SupervisionOverrides = field(default_factory=SupervisionOverrides)
    drain_deadline: float = 300.0
    preload: bool = False
    priority: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    split: SplitSpec = field(default_factory=SplitSpec)


@dataclass(frozen=True, slots=True)
class PoolRecord:
    """A pool as it is kept: the spec of its newest generation. `create_time` in Unix seconds."""

    pool_id: str
    spec: PoolSpec
    generation: int
    origin: Origin
    create_time: float


@dataclass(frozen=True, slots=True)
class Generation:
    """One version of a pool's spec. `create_time` in Unix seconds."""

    generation: int
    spec: PoolSpec
    create_time: float


@dataclass(frozen=True, slots=True)
class GenerationView:
    """A generation as the API shows it. `create_time` in Unix seconds.

    `current`: the pool's now. `committed`: has been the pool's once. `rolled_back`: how often. `blocked`: no reload
    leads to it until it is edited (DRN-3).
    """

    generation: int
    spec: PoolSpec
    create_time: float
    current: bool
    committed: bool
    rolled_back: int
    blocked: bool


@dataclass(frozen=True, slots=True)
class StoredPool:
    """A pool as it was stored: its generations, oldest first, never none; `state` is what it remembers, or empty."""

    pool_id: str
    origin: Origin
    create_time: float
    generations: tuple[Generation, ...]
    state: str = ""


@dataclass(frozen=True, slots=True)
class PoolError:
    """What ended the last engine or start. `reason` is a crash cause or an error reason; `at` in Unix seconds."""

    reason: str
    message: str
    at: float
    log_tail: tuple[str, ...] = ()
    exit: ExitRecord | None = None
    uptime: float | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class PoolView:
    """A pool at one revision, as the API shows it. Times in Unix seconds, durations in seconds; None is unknown.

    `reload_phase` and `reload_generation`, where it leads, are "" and 0 while no reload is under way.
    """

    pool_id: str
    spec: PoolSpec
    origin: Origin
    revision: int
    generation: int
    state: PoolState
    state_reason: str
    live: bool
    ready: bool
    draining: bool
    slots_total: int
    slots_free: int
    active_leases: int
    waiting: int
    engine_id: str
    engine_version: str
    endpoint: str
    pid: int
    restart_count: int
    breaker_state: BreakerState
    backoff_until: float | None
    last_error: PoolError | None
    progress_phase: str
    progress_message: str
    progress_bytes: int
    create_time: float
    start_time: float | None
    ready_time: float | None
    context_length: int
    load_time: float | None
    memory_bytes: int | None
    reload_phase: str = ""
    reload_generation: int = 0
    queue_position: int = 0  # of its start, from 1; 0 when it does not queue
    split_plan: SplitPlan | None = None  # what its engine was started with
