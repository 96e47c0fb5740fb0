"""The numbers that the pure core decides with. Durations in seconds, ratios in 0..1; the defaults are the config's.

`poolmgr.config` is the only place that makes them from a file; tests make them directly.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

from poolmgr.model.lease import TTL_DEFAULT, TTL_MAX, TTL_MIN, WAIT_MAX
from poolmgr.model.pool import SupervisionOverrides


@dataclass(frozen=True, slots=True)
class SupervisionSettings:
    """How engines are watched and restarted (PRE-2, PRE-3, PROC-3, LIVE-1, LIVE-2, RST-1 to RST-6)."""

    health_check_interval: float = 5.0
    health_check_timeout: float = 3.0
    health_check_failures: int = 3
    readiness_interval: float = 0.5
    parallel_starts: int = 2  # of engines that have not been READY before, on this host (PRE-7)
    start_timeout: float = 120.0
    start_extension_factor: float = 3.0
    stall_timeout: float = 60.0
    stop_grace: float = 5.0
    drain_grace: float = 30.0
    backoff_initial: float = 1.0
    backoff_max: float = 60.0
    backoff_floor: float = 0.5
    backoff_jitter: float = 0.1
    failure_decay: float = 300.0
    breaker_threshold: int = 5
    breaker_timeout: float = 300.0
    breaker_timeout_max: float = 3600.0
    stable_after: float = 60.0
    restart_rate_limit: int = 10
    restart_rate_warn: int = 5
    restart_window: float = 60.0
    oom_storm_limit: int = 5
    flapping_limit: int = 6
    flapping_window: float = 6 * 3600.0
    slow_loop_limit: int = 24
    slow_loop_window: float = 24 * 3600.0
    host_fault_window: float = 30.0
    host_fault_engines: int = 2
    host_probe_interval: float = 5.0
    loop_lag_limit: float = 1.0
    verify_timeout: float = 30.0
    stall_window: float = 60.0  # with requests in flight and nothing done, HUNG (LIVE-2)
    stall_batch_factor: float = 3.0  # never before so many of its longest measured batches
    stall_cpu_ratio: float = 0.02  # of one core: what a process tree may use and have done no work
    stall_limit: float = 600.0  # nothing counted for so long, all slots taken: HUNG whatever seems active
    synthetic_timeout: float = 60.0  # of the request that decides a suspicion; at least
    synthetic_interval: float = 0.0  # how long an engine without counters goes unasked while leased; 0: for ever
    health_jitter: float = 0.1
    heartbeat_interval: float = 10.0  # of engines that register themselves (ENG-1)
    heartbeat_ttl: float = 30.0


@dataclass(frozen=True, slots=True)
class LeaseSettings:
    """Bounds and defaults of leases (LEASE-3, LEASE-5). `tombstones`: how many ended leases are remembered."""

    ttl_default: float = TTL_DEFAULT
    ttl_min: float = TTL_MIN
    ttl_max: float = TTL_MAX
    grace: float = 1.0
    max_waiters: int = 256
    tombstones: int = 1024
    wait_max: float = WAIT_MAX


@dataclass(frozen=True, slots=True)
class TelemetrySettings:
    """How the GPUs are read (DEV-5, TEL-1, TEL-7). `library`: what dlopen gets."""

    library: str = "libnvidia-ml.so.1"
    kernel_log: bool = True  # whether XIDs are read there too, where that can be
    rate_hz: float = 10.0
    depth_seconds: float = 600.0
    max_bytes: int = 128 * 1024 * 1024
    discovery_interval: float = 10.0
    stall_limit: float = 2.0


# Each overridable key: the setting it changes, and how many of its units make one of the setting's.
_MILLISECONDS: Final = 1000
_SECONDS: Final = 1
OVERRIDES: Final[dict[str, tuple[str, int | None]]] = {
    "health_check_interval_ms": ("health_check_interval", _MILLISECONDS),
    "health_check_timeout_ms": ("health_check_timeout", _MILLISECONDS),
    "health_check_failures": ("health_check_failures", None),
    "readiness_interval_ms": ("readiness_interval", _MILLISECONDS),
    "start_timeout_secs": ("start_timeout", _SECONDS),
    "stall_timeout_secs": ("stall_timeout", _SECONDS),
    "backoff_initial_ms": ("backoff_initial", _MILLISECONDS),
    "backoff_max_ms": ("backoff_max", _MILLISECONDS),
    "backoff_floor_ms": ("backoff_floor", _MILLISECONDS),
    "circuit_breaker_threshold": ("breaker_threshold", None),
    "circuit_breaker_timeout_secs": ("breaker_timeout", _SECONDS),
    "restart_rate_limit": ("restart_rate_limit", None),
    "restart_window_secs": ("restart_window", _SECONDS),
    "stable_secs": ("stable_after", _SECONDS),
}


def override(settings: SupervisionSettings, overrides: SupervisionOverrides) -> SupervisionSettings:
    """`settings` with what a pool changes for itself; what is None stays."""
    changes: dict[str, Any] = {}
    for key, (name, unit) in OVERRIDES.items():
        value: int | None = getattr(overrides, key)
        if value is not None:
            changes[name] = value if unit is None else value / unit
    return replace(settings, **changes)
