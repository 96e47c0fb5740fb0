"""Where work may go (PLACE-1 to PLACE-5): what is asked, what became of each device, and what is answered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from poolmgr.errors import Number
from poolmgr.model.device import Device
from poolmgr.model.device_health import Inadmission
from poolmgr.model.memory import LedgerEntry, MemoryEstimate, MemoryQuestion
from poolmgr.model.names import EngineName
from poolmgr.model.plan import DeviceProfile, LinkProfile, ModelProfile, Objective, SplitPlan, SplitRequest
from poolmgr.model.pool import SplitMode as SplitMode
from poolmgr.model.pool import SplitSpec


class Preference(StrEnum):
    """BIN_PACK: fill a device before the next. SPREAD: the emptiest first."""

    BIN_PACK = "BIN_PACK"
    SPREAD = "SPREAD"


@dataclass(frozen=True, slots=True)
class Candidate:
    """One device as placement sees it, on this host or on one that is only imagined (PLACE-3).

    `refusal`: why it takes no work now. `degraded` and `probation`: usable, and placed last. `state_known` False: what
    state it is in could not be read. `celsius`, `limit_celsius`: for headroom. `cached`: the model is in its node's
    file cache.
    """

    device: Device
    memory: LedgerEntry
    refusal: Inadmission | None = None
    degraded: bool = False
    probation: bool = False
    state_known: bool = True
    celsius: float | None = None
    limit_celsius: float | None = None


@dataclass(frozen=True, slots=True)
class PlacementAsk:
    """`estimate`: of the model, else `bytes_per_device` on each of `device_count` devices.

    `mask`: device ids that may be used, in the mask's order; None is all. `device_count` 0: as many as it takes, one
    for SplitMode.NONE. `exact`: all of the mask and no other, as when it names them (a gang, PLACE-2). Filters are
    empty or None where nothing is asked.
    """

    estimate: MemoryEstimate | None = None
    bytes_per_device: int = 0
    device_count: int = 0
    mask: tuple[str, ...] | None = None
    exact: bool = False
    split: SplitMode = SplitMode.NONE
    ratios: tuple[float, ...] = ()
    objective: Objective | None = None
    engine: EngineName = EngineName.LLAMACPP
    preference: Preference = Preference.BIN_PACK
    min_compute_capability: tuple[int, int] | None = None
    mig_profile: str = ""
    allow_mig: bool = True
    allow_cross_numa: bool = True
    prefer_nvlink: bool = True
    evict: bool = False


@dataclass(frozen=True, slots=True)
class IdlePool:
    """What an eviction could stop (PLACE-5). `frees`: bytes by device. `busy` ones are never chosen.

    `reload_seconds`: to bring it back; `uses_per_hour`: of late.
    """

    pool_id: str
    frees: Mapping[str, int]
    busy: bool
    reload_seconds: float
    uses_per_hour: float


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of one candidate. `reason` is stable: CHOSEN, or why not; `numbers` led to it."""

    device_id: str
    reason: str
    message: str
    numbers: Mapping[str, Number] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PlacementPlan:
    """`device_ids` in the order in which the engine sees them; empty where it is refused: `refusal` then has a stable
    reason and a sentence. `bytes_by_device`: to reserve. `evictions`: pools whose stop would make room.
    """

    device_ids: tuple[str, ...] = ()
    bytes_by_device: Mapping[str, int] = field(default_factory=dict)
    split: SplitPlan | None = None
    refusal: Fate | None = None
    missing_bytes: int = 0
    fates: tuple[Fate, ...] = ()
    evictions: tuple[str, ...] = ()
    explanation: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SplitQuery:
    """What SplitRequest asks, of a model that may still have to be read and of devices that may be this host's (None).

    `activation_bytes` 0 with a MemoryQuestion: the model's own.
    """

    model: ModelProfile | MemoryQuestion
    devices: tuple[DeviceProfile, ...] | None = None
    links: tuple[LinkProfile, ...] = ()
    default_hop_seconds: float = 0.0
    activation_bytes: int = 0
    objective: Objective | None = None
    max_devices: int = 0
    engine: EngineName = EngineName.LLAMACPP

    def request(
        self, model: ModelProfile, devices: tuple[DeviceProfile, ...], activation_bytes: int, overhead_bytes: int = 0
    ) -> SplitRequest:
        """The request once model and devices are known.

        `activation_bytes`: the model's, where the query has none; `overhead_bytes` likewise, of devices that have none.
        """
        return SplitRequest(
            model,
            tuple(replace(one, overhead_bytes=one.overhead_bytes or overhead_bytes) for one in devices),
            self.links,
            self.default_hop_seconds,
            self.activation_bytes or activation_bytes,
            self.objective,
            self.max_devices,
            self.engine,
        )


@dataclass(frozen=True, slots=True)
class PlacementQuery:
    """A place that is asked for: `memory`, or else `bytes_per_device` on each of `device_count` devices.

    `mask` as of a pool; the filters as of PlacementAsk. `host`: the candidates of an imagined host (PLACE-3), None for
    this one.
    """

    mask: str = "auto"
    split: SplitSpec = field(default_factory=SplitSpec)
    memory: MemoryQuestion | MemoryEstimate | None = None
    bytes_per_device: int = 0
    device_count: int = 0
    objective: Objective | None = None
    engine: EngineName = EngineName.LLAMACPP
    preference: Preference = Preference.BIN_PACK
    min_compute_capability: tuple[int, int] | None = None
    mig_profile: str = ""
    allow_mig: bool = True
    allow_cross_numa: bool = True
    prefer_nvlink: bool = True
    evict: bool = False
    host: tuple[Candidate, ...] | None = None
