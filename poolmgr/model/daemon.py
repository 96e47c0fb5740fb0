"""The daemon as its API shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from poolmgr.model.device_health import DriverStatus


@dataclass(frozen=True, slots=True)
class DaemonStatus:
    """`start_time` in Unix seconds. `epoch`: starts on this state directory. `containment`: see ports.Runtime.

    `pools_by_state`: counts by PoolState; states without a pool may be left out. `warnings`: each a sentence.
    `driver`: None without telemetry.
    """

    version: str
    pid: int
    start_time: float
    epoch: int
    revision: int
    address: str
    state_dir: str
    containment: str
    pools: int
    pools_ready: int
    engines_live: int
    active_leases: int
    warnings: tuple[str, ...] = ()
    pools_by_state: Mapping[str, int] = field(default_factory=dict)
    driver: DriverStatus | None = None


@dataclass(frozen=True, slots=True)
class ConfigChange:
    """What a reload of the configuration did, or would do: pool ids, and keys that wait for the next start."""

    pools_created: tuple[str, ...] = ()
    pools_updated: tuple[str, ...] = ()
    pools_deleted: tuple[str, ...] = ()
    restart_required: tuple[str, ...] = ()
