"""Between pools and GPUs: which ones a start gets, and how much of them is set aside for it (PLACE-1, MEM-2, PRE-6)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from poolmgr.core.effects import NoteName
from poolmgr.core.masks import cuda_visible_devices
from poolmgr.core.placement_explicit import in_ratio_order
from poolmgr.core.placement_fates import in_gib
from poolmgr.core.state import EngineRun
from poolmgr.errors import ClientError, EnvironmentFault, Number, PoolmgrError, Reason
from poolmgr.model.device import Device
from poolmgr.model.device_health import DeviceNote, DeviceNoteName
from poolmgr.model.engine import LaunchSpec
from poolmgr.model.mask import Mask, MaskKind
from poolmgr.model.memory import MemoryEstimate
from poolmgr.model.placement import PlacementAsk, PlacementPlan, PlacementQuery, Preference
from poolmgr.model.plan import SplitPlan
from poolmgr.model.pool import PoolSpec, SplitMode
from poolmgr.runtime.bus import Bus, Noted
from poolmgr.runtime.devices import DeviceRegistry
from poolmgr.runtime.estimates import Estimates, Lesson
from poolmgr.runtime.ledger import Ledger, Reading
from poolmgr.runtime.placement import Placement, asked
from poolmgr.runtime.tasks import Tasks

DEVICE_VARIABLE: Final = "CUDA_VISIBLE_DEVICES"
ORDER: Final = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
NO_MASK: Final = ("", "none")
# Why nothing was chosen, as a start tells it: memory that is not there, or that could not be looked at.
_FAULTS: Final[Mapping[str, Reason]] = {
    "DOES_NOT_FIT": Reason.INSUFFICIENT_MEMORY,
    "SHARE_DOES_NOT_FIT": Reason.INSUFFICIENT_MEMORY,
    "MEMORY_UNKNOWN": Reason.TELEMETRY_STALLED,
}
# What the spec asks for and this host has not: no engine's end changes that.
_WRONG_ASKS: Final = ("NOT_DIVISIBLE", "NOT_ENOUGH_DEVICES", "NUMA_SPLIT")


@dataclass(frozen=True, slots=True)
class Seeker:
    """One start. `before`: the devices that its last start was given, kept where they still do."""

    spec: PoolSpec
    engine_id: str
    pool_id: str
    generation: int
    before: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Placed:
    """`devices` by UUID, in the order in which the engine sees them; a CPU engine has none. `reserved`: bytes by
    device, empty where nobody knows what it will take; `share`: the largest of them, of its device's memory. `plan`:
    where it is split, or could be.
    """

    devices: tuple[str, ...] = ()
    plan: SplitPlan | None = None
    reserved: Mapping[str, int] = field(default_factory=dict)
    share: float = 0.0


class Places(Protocol):
    async def check(self, spec: PoolSpec) -> None:
        """Before a spec is taken. Raises ClientError(BAD_MASK, GPU_REQUIRED, BAD_ARGUMENTS), and
        ClientError(INSUFFICIENT_MEMORY) for what would not fit on the empty devices.
        """
        ...

    async def find(self, seeker: Seeker) -> Placed:
        """What this start gets to see now (PRE-6, MASK-4), with its memory set aside in place of what it had before,
        until it is READY or gives it back.

        Raises EnvironmentFault(GPU_REQUIRED, DEVICE_UNAVAILABLE, INSUFFICIENT_MEMORY, TELEMETRY_STALLED): the spec was
        good when it was taken, so that it is the host which has changed, and may change again. ClientError for a model
        that cannot be read.
        """
        ...

    async def fits(self, spec: PoolSpec) -> bool:
        """Whether one more engine of this spec would have a place now, beside all that runs."""
        ...

    def resume(self, engine_id: str, pool_id: str, reserved: Mapping[str, int]) -> None:
        """Sets aside again for an engine of an earlier daemon, which may still be taking its memory."""
        ...

    def give_back(self, engine_id: str) -> None:
        """Nothing is set aside for it any more."""
        ...


class CpuPlaces:
    """Of a daemon that looks for no GPU: only engines that ask for none are started."""

    async def check(self, spec: PoolSpec) -> None:
        if spec.device_mask not in NO_MASK:
            message = f"device_mask {spec.device_mask!r} asks for GPUs and this host shows 0 devices"
            numbers: dict[str, Number] = {"device_mask": spec.device_mask, "devices": 0}
            raise ClientError(Reason.GPU_REQUIRED, message, numbers=numbers)

    async def find(self, seeker: Seeker) -> Placed:
        await self.check(seeker.spec)
        return Placed()

    async def fits(self, spec: PoolSpec) -> bool:
        return spec.device_mask in NO_MASK

    def resume(self, engine_id: str, pool_id: str, reserved: Mapping[str, int]) -> None: ...
    def give_back(self, engine_id: str) -> None: ...


def environment_of(devices: tuple[str, ...]) -> Mapping[str, str]:
    """Of an engine that is to see these and no others, in this order (PROC-2)."""
    return {**ORDER, DEVICE_VARIABLE: ",".join(devices)}


def devices_in(environment: Mapping[str, str]) -> tuple[str, ...]:
    """What `environment_of` was given."""
    return tuple(part for part in environment.get(DEVICE_VARIABLE, "").split(",") if part)


def rendered(spec: PoolSpec, placed: Placed) -> tuple[tuple[str, ...], Mapping[str, str]]:
    """(further arguments, environment): how the engine is told of its place. One that is not split needs no words."""
    environment = environment_of(placed.devices)
    told = placed.plan.renderings.get(spec.engine.value) if placed.plan is not None else None
    if told is None or spec.split.mode is SplitMode.NONE:
        return (), environment
    return told.args, {**told.env, **environment}


def largest_share(reserved: Mapping[str, int], devices: Sequence[Device]) -> float:
    """Rounded up to a thousandth, so that an engine that is told takes a little more rather than too little."""
    totals = {device.device_id: device.vram_total_bytes for device in devices}
    shares = [size / total for name, size in reserved.items() if (total := totals.get(name))]
    return min(1.0, math.ceil(1000 * max(shares, default=0.0)) / 1000)


def same_place(launch: LaunchSpec, placed: Placed) -> bool:
    """Whether an engine that was launched so is told nothing new. Free memory beside it is none of its business."""
    return devices_in(launch.env) == placed.devices and _layers(launch.plan) == _layers(placed.plan)


def _layers(plan: SplitPlan | None) -> tuple[tuple[str, int, int], ...]:
    return tuple((one.device_id, one.first_layer, one.last_layer) for one in plan.assignments) if plan else ()


@dataclass(frozen=True, slots=True)
class Means:
    """What places are found with."""

    registry: DeviceRegistry
    ledger: Ledger
    estimates: Estimates
    placement: Placement
    shunned: Callable[[str, int], frozenset[str]]  # by pool and generation: where it has failed too often


class DevicePlaces:
    """See `Places`. Used on the event loop only. Hears on the bus which engines have become READY."""

    def __init__(self, means: Means, bus: Bus, spawn: Tasks) -> None:
        self._registry = means.registry
        self._ledger = means.ledger
        self._estimates = means.estimates
        self._placement = means.placement
        self._shunned = means.shunned
        self._bus = bus
        self._spawn = spawn
        bus.listen(self._noted)

    async def check(self, spec: PoolSpec) -> None:
        mask = self._mask(spec)
        if mask.kind is MaskKind.NONE:
            return
        estimate = await self._estimates.of_spec(spec)
        if estimate is None:
            self._check_unknown(spec)
            return
        plan = self._placement.when_empty(_ask(spec, mask, estimate))
        refusal = plan.refusal
        if refusal is not None and (refusal.reason in _FAULTS or refusal.reason in _WRONG_ASKS):
            numbers = {**refusal.numbers, "missing_bytes": plan.missing_bytes, "refusal": refusal.reason}
            reason = _FAULTS.get(refusal.reason, Reason.BAD_ARGUMENTS)
            raise ClientError(reason, f"even empty: {refusal.message}", numbers=numbers)

    def _check_unknown(self, spec: PoolSpec) -> None:
        if spec.split.mode is not SplitMode.NONE:
            message = f"split {spec.split.mode} needs to know what {spec.engine} takes of which layer, and nobody does"
            raise ClientError(Reason.BAD_ARGUMENTS, message, numbers={"split": spec.split.mode.value})

    def _mask(self, spec: PoolSpec) -> Mask:
        if spec.device_mask in NO_MASK:
            return Mask()
        text, look = spec.device_mask, self._registry.discovery
        if look.absence is not None:
            message = f"device_mask {text!r} asks for GPUs and this host shows none: {look.message}"
            message += f"; {look.advice}" if look.advice else ""
            numbers: dict[str, Number] = {"device_mask": text, "devices": 0, "absence": look.absence.value}
            raise ClientError(Reason.GPU_REQUIRED, message, numbers=numbers)
        mask = self._registry.parse_mask(text)
        if mask.kind is MaskKind.DEVICES:
            cuda_visible_devices(mask)  # refuses what no CUDA process can have
        return mask

    async def find(self, seeker: Seeker) -> Placed:
        mask = self._mask_now(seeker)
        if mask.kind is MaskKind.NONE:
            return Placed()
        estimate = await self._estimates.of_spec(seeker.spec)
        if estimate is None:
            self._check_unknown(seeker.spec)
            if mask.kind is MaskKind.DEVICES:
                return self._as_named(mask, seeker)
        mask, seeker = _as_asked(mask, seeker, estimate)
        reading = await self._placement.look()
        try:
            plan = self._choose(_ask(seeker.spec, mask, estimate), seeker, reading)
            if plan.refusal is not None:
                raise _fault(plan)
            share = largest_share(plan.bytes_by_device, self._registry.present())
            reserved = self._to_reserve(seeker, plan, share, reading)
        except PoolmgrError:
            self._ledger.release(seeker.engine_id)
            raise
        factor = estimate.factor if estimate is not None else None
        self._ledger.reserve(seeker.engine_id, seeker.pool_id, reserved, factor)
        return Placed(plan.device_ids, plan.split, reserved, share)

    def _to_reserve(self, seeker: Seeker, plan: PlacementPlan, share: float, reading: Reading) -> Mapping[str, int]:
        """Bytes by device. An engine that is told a share takes as much of each device, however large that is.

        Raises EnvironmentFault(INSUFFICIENT_MEMORY) where a device has that no more.
        """
        if len(plan.device_ids) == 1 or not self._estimates.takes_what_it_is_told(seeker.spec):
            return plan.bytes_by_device
        devices = [one for one in self._registry.present() if one.device_id in plan.bytes_by_device]
        entries = self._ledger.entries(reading, devices, besides=seeker.engine_id)
        takes = {one.device_id: math.floor(share * (one.vram_total_bytes or 0)) for one in devices}
        missing = {name: size - (entries[name].free_bytes or 0) for name, size in takes.items()}
        short = max(missing, key=lambda name: missing[name])
        if missing[short] > 0:
            message = (
                f"{seeker.spec.engine} takes the same share of every device: {share:.1%}, which the smallest of them "
                f"needs, are {in_gib(takes[short])} of {short}, {in_gib(missing[short])} more than it has free"
            )
            numbers: dict[str, Number] = {"device_id": short, "share": share, "missing_bytes": missing[short]}
            raise EnvironmentFault(Reason.INSUFFICIENT_MEMORY, message, numbers=numbers)
        return takes

    def _mask_now(self, seeker: Seeker) -> Mask:
        """What an index means changes when a card goes: an engine keeps the cards that its mask meant first (DEV-2)."""
        spec, before = seeker.spec, seeker.before
        try:
            mask = self._mask(spec)
            if before and mask.kind is MaskKind.DEVICES and _names_indices(spec.device_mask):
                kept = self._mask(replace(spec, device_mask=",".join(before)))
                return mask if set(kept.device_ids) <= set(mask.device_ids) else kept
        except ClientError as error:
            reason = error.reason if error.reason is Reason.GPU_REQUIRED else Reason.DEVICE_UNAVAILABLE
            raise EnvironmentFault(reason, error.message, numbers=error.numbers) from None
        return mask

    def _as_named(self, mask: Mask, seeker: Seeker) -> Placed:
        """All of them, in the mask's order: what it takes of each, nobody knows."""
        for device_id in mask.device_ids:
            obstacle = self._registry.admits(device_id, seeker.engine_id)
            if obstacle is not None:
                numbers = {"device_id": device_id, "refusal": obstacle.reason.value}
                raise EnvironmentFault(Reason.DEVICE_UNAVAILABLE, obstacle.message, numbers=numbers)
        return Placed(mask.device_ids)

    def _choose(self, ask: PlacementAsk, seeker: Seeker, reading: Reading) -> PlacementPlan:
        """Where it was before, if that still does: its model may be in that node's file cache, and leases know it.

        In the same order, or the choice is made anew: over fewer devices another order may be the best one, and a start
        that asks whether its place still does would be sent from one to the other and back for ever.
        """
        shunned = self._shunned(seeker.pool_id, seeker.generation)
        if seeker.before and not shunned & set(seeker.before):
            again = replace(ask, mask=seeker.before, exact=True)
            plan = self._placement.decide(again, reading, seeker.engine_id)
            same = plan.device_ids == seeker.before or ask.split is SplitMode.EXPLICIT
            if plan.refusal is None and same:
                return plan
        return self._placement.decide(ask, reading, seeker.engine_id, shunned)

    async def fits(self, spec: PoolSpec) -> bool:
        try:
            mask = self._mask(spec)
            if mask.kind is MaskKind.NONE:
                return True
            estimate = await self._estimates.of_spec(spec)
        except ClientError:
            return False
        if estimate is None:
            return False  # nobody knows what it takes
        return self._placement.decide(_ask(spec, mask, estimate), await self._placement.look()).refusal is None

    def resume(self, engine_id: str, pool_id: str, reserved: Mapping[str, int]) -> None:
        self._ledger.reserve(engine_id, pool_id, reserved)

    def give_back(self, engine_id: str) -> None:
        self._ledger.release(engine_id)

    def _noted(self, noted: Noted) -> None:
        if noted.note.name is not NoteName.POOL_READY:
            return
        for each in (noted.pool, noted.pool.beside):
            run = each.engine if each is not None else None
            if each is not None and run is not None and run.ready_at is not None and self._ledger.of(run.engine_id):
                self._spawn(self._measure(run, each.spec), "measure memory")

    async def _measure(self, run: EngineRun, spec: PoolSpec) -> None:
        """It has all the memory that it takes: that is what counts from now on, and what is learned from (MEM-3)."""
        predicted, factor = self._ledger.of(run.engine_id), self._ledger.factor(run.engine_id)
        await self._registry.look_at_processes()
        if self._ledger.of(run.engine_id) is not predicted:
            return  # it has ended meanwhile; what is set aside now is its next run's
        held = [claim for claim in self._registry.claims() if claim.engine_id == run.engine_id and claim.pids]
        measured = {claim.device_id: claim.measured_bytes for claim in held}
        self._ledger.settle(run.engine_id, measured)
        if factor is None:  # nobody knows what it was predicted from
            return
        for miss in self._estimates.learn(spec, run.facts.version, Lesson(predicted, measured, factor)):
            fields = {"predicted_bytes": miss.predicted_bytes, "measured_bytes": miss.measured_bytes}
            note = DeviceNote(DeviceNoteName.MEMORY_MISS, miss.device_id, {"engine_id": run.engine_id, **fields})
            self._bus.note_device(note)


def _ask(spec: PoolSpec, mask: Mask, estimate: MemoryEstimate | None) -> PlacementAsk:
    # What takes nobody knows how much goes where most is left, and not onto the fullest device on which 0 bytes fit.
    preference = Preference.SPREAD if estimate is None else Preference.BIN_PACK
    count = _count(estimate)
    query = PlacementQuery(
        spec.device_mask, spec.split, estimate, engine=spec.engine, device_count=count, preference=preference
    )
    return asked(query, mask, estimate)


def _names_indices(mask: str) -> bool:
    """Whether what it means depends on which cards are there."""
    return mask != "all" and any(part.strip()[:1].isdigit() for part in mask.split(","))


def _as_asked(mask: Mask, seeker: Seeker, estimate: MemoryEstimate | None) -> tuple[Mask, Seeker]:
    """What it had before stands in the order of the engine's stages; ratios are given in the order of the mask."""
    before, split = seeker.before, seeker.spec.split
    if estimate is None or split.mode is not SplitMode.EXPLICIT or len(before) != len(split.ratios):
        return mask, seeker
    ordered = in_ratio_order(split.ratios, len(estimate.model.layers), before)
    kept = mask.device_ids == before
    return replace(mask, device_ids=ordered) if kept else mask, replace(seeker, before=ordered)


def _count(estimate: MemoryEstimate | None) -> int:
    """Of an engine of which nothing is known, one: it was asked for a GPU, and not for how many."""
    return 1 if estimate is None else 0


def _fault(plan: PlacementPlan) -> EnvironmentFault | ClientError:
    assert plan.refusal is not None
    refusal = plan.refusal
    numbers = {**refusal.numbers, "missing_bytes": plan.missing_bytes, "refusal": refusal.reason}
    if refusal.reason == "NOT_DIVISIBLE":
        return ClientError(Reason.BAD_ARGUMENTS, refusal.message, numbers=numbers)
    reason = _FAULTS.get(refusal.reason, Reason.DEVICE_UNAVAILABLE)
    return EnvironmentFault(reason, refusal.message, numbers=numbers)
