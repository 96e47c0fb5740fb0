"""Who uses a device, announced or only seen (TEL-6). Bytes; seconds on the boot-time clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class ClaimKind(StrEnum):
    ENGINE = "ENGINE"
    JOB = "JOB"
    TRIAL = "TRIAL"
    CONTAINER = "CONTAINER"
    PROCESS = "PROCESS"  # nobody announced it: the driver shows it
    RESERVATION = "RESERVATION"


@dataclass(frozen=True, slots=True)
class Claim:
    """One holder's use of one device. None: not known, or for `expires`: it does not end by itself.

    `holder`: pool id of an ENGINE, command of a PROCESS. `pids`: those that the driver shows. `container_id`: of the
    container that the process runs in, empty for none.
    """

    claim_id: str
    device_id: str
    kind: ClaimKind
    holder: str
    since: float
    user: str = ""
    reserved_bytes: int | None = None
    measured_bytes: int | None = None
    exclusive: bool = False
    expires: float | None = None
    pids: tuple[int, ...] = ()
    container_id: str = ""
    engine_id: str = ""


@dataclass(frozen=True, slots=True)
class RunningEngine:
    """An engine of ours as claims see it. `device_ids`: what its mask was resolved to when it started.

    None: nobody knows, so that no use is held against it. `pid`: 0 before it runs. `reserved`: bytes set aside for
    it, by device, until it is READY.
    """

    engine_id: str
    pool_id: str
    pid: int
    device_ids: tuple[str, ...] | None
    since: float
    reserved: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ProcessFacts:
    """Who a process is, as the host tells. A pid means nothing without its `start_ticks`.

    `engine_id`: of the engine whose tree it belongs to, empty for none. `user`: name, or number where it has none.
    """

    pid: int
    start_ticks: int
    engine_id: str = ""
    container_id: str = ""
    user: str = ""
    command: str = ""
