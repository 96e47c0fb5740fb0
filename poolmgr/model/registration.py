"""Engines that somebody else runs and that tell of themselves (ENG-1 to ENG-3), and engines as lists show them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from poolmgr.model.pool import EngineName, PoolState

TTL_DEFAULT: Final = 30.0
TTL_MIN: Final = 3.0
TTL_MAX: Final = 300.0


class DesiredState(StrEnum):
    """What a registered engine is to do: take requests, finish those it has, or stop telling of itself."""

    SERVE = "SERVE"
    DRAIN = "DRAIN"
    GONE = "GONE"


@dataclass(frozen=True, slots=True)
class Registration:
    """What an engine tells of itself; None leaves alone what it told before.

    `endpoint`: host:port. `pid`: 0 when it runs on another host. `ttl`: seconds without a heartbeat until it is LOST.
    """

    engine_id: str
    pool_id: str | None = None
    endpoint: str | None = None
    engine: EngineName | None = None
    engine_version: str | None = None
    slots_total: int | None = None
    slots_free: int | None = None
    device_mask: str | None = None
    pid: int | None = None
    ttl: float | None = None


@dataclass(frozen=True, slots=True)
class Beat:
    """One heartbeat; None leaves alone what an earlier one said.

    `progress_counter` rises while the engine gets on with its work. `draining`: it wants no more requests.
    """

    engine_id: str
    slots_free: int | None = None
    in_flight: int | None = None
    progress_counter: int | None = None
    ready: bool | None = None
    draining: bool | None = None


@dataclass(frozen=True, slots=True)
class BeatAnswer:
    """`interval`: seconds until the next heartbeat."""

    interval: float
    desired: DesiredState


@dataclass(frozen=True, slots=True)
class EngineView:
    """An engine as lists show it. Times in Unix seconds; None is unknown. `directory`: empty for a registered one."""

    engine_id: str
    pool_id: str
    generation: int
    engine: EngineName
    engine_version: str
    endpoint: str
    pid: int
    state: PoolState
    slots_total: int
    slots_free: int
    device_mask: str
    start_time: float | None
    directory: str
    registered: bool = False
    last_heartbeat: float | None = None
    in_flight: int | None = None
    progress_counter: int | None = None
