"""The configuration: one class per section, one field per key, with its default and bounds (CFG-1, CFG-2).

The one table of keys: the environment's names, `example.toml`, `config show` and the errors all follow it. A key is
here because something uses it. Keys end in their unit: `_ms`, `_secs`, `_bytes`, `_ratio`; the rest are counts.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator, model_validator

from poolmgr.model.limits import MAX_COUNT, MAX_MILLISECONDS, MAX_PORT, MAX_SECONDS, is_pool_id, spec_problems
from poolmgr.model.pool import PoolSpec
from poolmgr.model.settings import LeaseSettings, SupervisionSettings, TelemetrySettings

_MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen; `host` without brackets, port 0 for any."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: Any) -> Address:
    """`host:port` or `[ipv6]:port`, on loopback only (SEC-1). Raises ValueError that names the address."""
    if not isinstance(text, str):
        raise ValueError(f"must be text like 127.0.0.1:9200, not {text!r}")
    host, separator, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not separator or not host or (":" in host and not bracketed):
        raise ValueError(f"{text!r} is not host:port or [ipv6]:port")
    if not (port.isascii() and port.isdecimal() and int(port) <= MAX_PORT):
        raise ValueError(f"{text!r} has no port from 0 to {MAX_PORT}")
    host = host.strip("[]")
    if not _is_loopback(host):
        raise ValueError(
            f"{text!r} is not a loopback address (127.0.0.1, [::1] or localhost); others can be listened on once TLS "
            "and authentication are there, in a later version"
        )
    return Address(host, int(port))


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _absolute(path: Path) -> Path:
    if not path.is_absolute():
        raise ValueError(f"must be an absolute path, not {str(path)!r}")
    return path


ListenAddress = Annotated[Address, PlainValidator(parse_address), PlainSerializer(str)]
Directory = Annotated[Path, AfterValidator(_absolute)]
Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
Backoff = Annotated[int, Field(ge=0, le=MAX_MILLISECONDS)]  # 0 restarts at once
Milliseconds = Annotated[int, Field(ge=1, le=MAX_MILLISECONDS)]
Seconds = Annotated[float, Field(gt=0, le=MAX_SECONDS)]
Grace = Annotated[float, Field(ge=0, le=MAX_SECONDS)]
Ratio = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    # Validated from JSON, where strict means: no number from text, no text from a number.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Server(Section):
    addr: ListenAddress = Address("127.0.0.1", 9200)
    reflection: bool = True
    max_message_bytes: Annotated[int, Field(ge=64 * 1024, le=64 * _MIB)] = 4 * _MIB
    max_concurrent_rpcs: Count = 1024


class State(Section):
    dir: Directory


class Supervision(Section):
    """Defaults of PRE-2, PRE-3, PROC-3, LIVE-1, LIVE-2, RST-1, RST-2, RST-4, RST-5, DRN-1 and ENG-1.

    `drain_deadline_secs` is for declared pools that name no deadline of their own.
    """

    health_check_interval_ms: Milliseconds = 5000
    health_check_timeout_ms: Milliseconds = 3000
    health_check_failures: Count = 3
    health_check_jitter_ratio: Ratio = 0.1
    loop_lag_limit_ms: Milliseconds = 1000
    stall_window_secs: Seconds = 60.0
    stall_batch_factor: Annotated[float, Field(ge=1, le=100)] = 3.0
    stall_cpu_ratio: Ratio = 0.02
    stall_limit_secs: Seconds = 600.0
    synthetic_timeout_secs: Seconds = 60.0
    synthetic_interval_secs: Grace = 0.0
    readiness_interval_ms: Milliseconds = 500
    parallel_starts: Count = 2
    start_timeout_secs: Seconds = 120.0
    start_extension_factor: Annotated[float, Field(ge=1, le=100)] = 3.0
    stall_timeout_secs: Seconds = 60.0
    stop_grace_secs: Grace = 5.0
    drain_grace_secs: Grace = 30.0
    drain_deadline_secs: Grace = 300.0
    backoff_initial_ms: Backoff = 1000
    backoff_max_ms: Milliseconds = 60_000
    backoff_floor_ms: Backoff = 500
    jitter_ratio: Ratio = 0.1
    decay_secs: Seconds = 300.0
    circuit_breaker_threshold: Count = 5
    circuit_breaker_timeout_secs: Seconds = 300.0
    circuit_breaker_max_timeout_secs: Seconds = 3600.0
    stable_secs: Seconds = 60.0
    restart_rate_limit: Count = 10
    restart_warn: Count = 5
    restart_window_secs: Seconds = 60.0
    oom_storm_limit: Count = 5
    flapping_limit: Count = 6
    flapping_window_secs: Seconds = 21_600.0
    slow_loop_limit: Count = 24
    slow_loop_window_secs: Seconds = 86_400.0
    heartbeat_interval_secs: Seconds = 10.0
    heartbeat_ttl_secs: Seconds = 30.0

    @model_validator(mode="after")
    def _ordered(self) -> Supervision:
        for smaller, larger in (
            ("backoff_floor_ms", "backoff_max_ms"),
            ("backoff_initial_ms", "backoff_max_ms"),
            ("circuit_breaker_timeout_secs", "circuit_breaker_max_timeout_secs"),
        ):
            # A cap below another key's default is a wish, not a contradiction: the policy takes the cap.
            if {smaller, larger} <= self.model_fields_set:
                _in_order(self, smaller, larger)
        return self

    def settings(self) -> SupervisionSettings:
        """The same in the units of the core."""
        return SupervisionSettings(
            health_check_interval=self.health_check_interval_ms / 1000,
            health_check_timeout=self.health_check_timeout_ms / 1000,
            health_check_failures=self.health_check_failures,
            health_jitter=self.health_check_jitter_ratio,
            loop_lag_limit=self.loop_lag_limit_ms / 1000,
            stall_window=self.stall_window_secs,
            stall_batch_factor=self.stall_batch_factor,
            stall_cpu_ratio=self.stall_cpu_ratio,
            stall_limit=self.stall_limit_secs,
            synthetic_timeout=self.synthetic_timeout_secs,
            synthetic_interval=self.synthetic_interval_secs,
            readiness_interval=self.readiness_interval_ms / 1000,
            parallel_starts=self.parallel_starts,
            start_timeout=self.start_timeout_secs,
            start_extension_factor=self.start_extension_factor,
            stall_timeout=self.stall_timeout_secs,
            stop_grace=self.stop_grace_secs,
            drain_grace=self.drain_grace_secs,
            backoff_initial=self.backoff_initial_ms / 1000,
            backoff_max=self.backoff_max_ms / 1000,
            backoff_floor=self.backoff_floor_ms / 1000,
            backoff_jitter=self.jitter_ratio,
            failure_decay=self.decay_secs,
            breaker_threshold=self.circuit_breaker_threshold,
            breaker_timeout=self.circuit_breaker_timeout_secs,
            breaker_timeout_max=self.circuit_breaker_max_timeout_secs,
            stable_after=self.stable_secs,
            restart_rate_limit=self.restart_rate_limit,
            restart_rate_warn=self.restart_warn,
            restart_window=self.restart_window_secs,
            oom_storm_limit=self.oom_storm_limit,
            flapping_limit=self.flapping_limit,
            flapping_window=self.flapping_window_secs,
            slow_loop_limit=self.slow_loop_limit,
            slow_loop_window=self.slow_loop_window_secs,
            heartbeat_interval=self.heartbeat_interval_secs,
            heartbeat_ttl=self.heartbeat_ttl_secs,
        )


class Leases(Section):
    """Defaults of LEASE-3 and LEASE-5."""

    ttl_default_secs: Seconds = 15.0
    ttl_min_secs: Seconds = 3.0
    ttl_max_secs: Seconds = 300.0
    grace_secs: Grace = 1.0
    max_waiters: Count = 256
    wait_max_secs: Seconds = 3600.0
    tombstones: Count = 1024

    @model_validator(mode="after")
    def _ordered(self) -> Leases:
        _in_order(self, "ttl_min_secs", "ttl_default_secs")
        _in_order(self, "ttl_default_secs", "ttl_max_secs")
        return self

    def settings(self) -> LeaseSettings:
        """The same in the names of the core."""
        return LeaseSettings(
            ttl_default=self.ttl_default_secs,
            ttl_min=self.ttl_min_secs,
            ttl_max=self.ttl_max_secs,
            grace=self.grace_secs,
            max_waiters=self.max_waiters,
            tombstones=self.tombstones,
            wait_max=self.wait_max_secs,
        )


class Telemetry(Section):
    """Defaults of DEV-5 and TEL-1."""

    library: Annotated[str, Field(min_length=1, max_length=4096)] = "libnvidia-ml.so.1"
    kernel_log: bool = True
    rate_hz: Annotated[float, Field(ge=1, le=100)] = 10.0
    depth_secs: Annotated[float, Field(ge=10, le=MAX_SECONDS)] = 600.0
    max_bytes: Annotated[int, Field(ge=_MIB, le=4096 * _MIB)] = 128 * _MIB
    discovery_interval_secs: Annotated[float, Field(ge=1, le=MAX_SECONDS)] = 10.0
    stall_limit_secs: Annotated[float, Field(ge=0.5, le=60)] = 2.0

    def settings(self) -> TelemetrySettings:
        """The same in the names of the model."""
        return TelemetrySettings(
            library=self.library,
            kernel_log=self.kernel_log,
            rate_hz=self.rate_hz,
            depth_seconds=self.depth_secs,
            max_bytes=self.max_bytes,
            discovery_interval=self.discovery_interval_secs,
            stall_limit=self.stall_limit_secs,
        )


class Observability(Section):
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "console", "json"] = "auto"


def _pool_id(text: str) -> str:
    if not is_pool_id(text):
        raise ValueError(f"{text!r} is no pool id: 1 to 63 of a-z, 0-9 and -")
    return text


def _sound_spec(spec: PoolSpec) -> PoolSpec:
    problems = spec_problems(spec)
    if problems:
        raise ValueError("; ".join(map(str, problems)))
    return spec


class Config(Section):
    """Everything. `pools` are the declared ones (CFG-3)."""

    server: Server
    state: State
    supervision: Supervision
    leases: Leases
    telemetry: Telemetry
    observability: Observability
    pools: dict[Annotated[str, AfterValidator(_pool_id)], Annotated[PoolSpec, AfterValidator(_sound_spec)]]


SECTIONS: Final[dict[str, type[Section]]] = {
    "server": Server,
    "state": State,
    "supervision": Supervision,
    "leases": Leases,
    "telemetry": Telemetry,
    "observability": Observability,
}


def _in_order(section: Section, smaller: str, larger: str) -> None:
    low, high = getattr(section, smaller), getattr(section, larger)
    if low > high:
        raise ValueError(f"{smaller} ({low:g}) must not be above {larger} ({high:g})")
