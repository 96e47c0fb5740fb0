"""Where work goes on this host: what the gate asks at each start, and what clients ask without one (PLACE-1 to 5).

Decided in one breath over what was looked at before, with what is reserved at that very moment: two that ask at once
never get the same memory, and nobody waits for another's look.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final

from poolmgr.core import masks
from poolmgr.core.memory import entry
from poolmgr.core.placement import place
from poolmgr.core.split import plan
from poolmgr.errors import ClientError, Reason
from poolmgr.model.device import Device, DeviceState
from poolmgr.model.mask import Mask, MaskKind
from poolmgr.model.memory import LedgerEntry, MemoryEstimate, MemoryQuestion
from poolmgr.model.placement import Candidate, IdlePool, PlacementAsk, PlacementPlan, PlacementQuery, SplitQuery
from poolmgr.model.plan import DeviceProfile, ModelProfile, SplitPlan, SplitRequest
from poolmgr.model.pool import SplitMode
from poolmgr.ports import Planner, Telemetry, Workers
from poolmgr.runtime.devices import DeviceRegistry
from poolmgr.runtime.estimates import Estimates
from poolmgr.runtime.ledger import Ledger, Reading

STALE_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Seekers:
    """What a place is found with."""

    ledger: Ledger
    estimates: Estimates
    planner: Planner
    workers: Workers


class Placement:
    """Used on the event loop only. `idle`: the pools that an eviction could stop (PLACE-5)."""

    def __init__(self, registry: DeviceRegistry, telemetry: Telemetry, seekers: Seekers) -> None:
        self._registry = registry
        self._telemetry = telemetry
        self._ledger = seekers.ledger
        self._estimates = seekers.estimates
        self._planner = seekers.planner
        self._workers = seekers.workers
        self.idle: Callable[[], Sequence[IdlePool]] = tuple

    # Of this host.

    async def look(self) -> Reading:
        """Asks the driver; the answer is good for any number of decisions made soon."""
        return await self._ledger.look([device.device_id for device in self._registry.present() if device.usable])

    def decide(
        self, ask: PlacementAsk, reading: Reading, engine_id: str = "", shunned: Collection[str] = ()
    ) -> PlacementPlan:
        """For an engine, whose own claim and reservation are no obstacle. `shunned` devices are placed last."""
        candidates = [
            replace(one, degraded=True) if one.device.device_id in shunned else one
            for one in self._candidates(reading, engine_id)
        ]
        return self._place(ask, candidates, self.idle() if ask.evict else ())

    def when_empty(self, ask: PlacementAsk) -> PlacementPlan:
        """On the devices of this host if nobody used them and nothing was wrong with them."""
        devices = sorted((device for device in self._registry.present() if device.usable), key=_order)
        entries = {
            one.device_id: entry(one.device_id, one.vram_total_bytes, one.vram_total_bytes, ()) for one in devices
        }
        return self._place(ask, [Candidate(one, entries[one.device_id]) for one in devices], ())

    def _place(self, ask: PlacementAsk, candidates: Sequence[Candidate], idle: Sequence[IdlePool]) -> PlacementPlan:
        return place(ask, candidates, self.split, idle)

    def split(self, request: SplitRequest) -> SplitPlan:
        """Raises ClientError(INVALID_ARGUMENT) for a request that means nothing."""
        return plan(request, self._planner.search)

    def _candidates(self, reading: Reading, engine_id: str = "") -> Sequence[Candidate]:
        self._registry.engines_changed()
        devices = self._registry.present()
        entries = self._ledger.entries(reading, devices, besides=engine_id)
        return [self._candidate(device, entries[device.device_id], engine_id) for device in sorted(devices, key=_order)]

    def _candidate(self, device: Device, memory: LedgerEntry, engine_id: str) -> Candidate:
        view, sample = self._registry.device(device.device_id).view, self._telemetry.latest(device.device_id)
        fresh = sample is not None and sample.age <= STALE_SECONDS
        # To be asked only where something is in the way: that puts down all memory of the host to its holders anew.
        refused = view.refusal is not None
        return Candidate(
            device,
            memory,
            self._registry.admits(device.device_id, engine_id) if refused else None,
            degraded=view.state is DeviceState.DEGRADED,
            probation=view.state is DeviceState.PROBATION,
            state_known=self._registry.answers,
            celsius=sample.values.get("temperature") if sample is not None and fresh else None,
            limit_celsius=device.slowdown_celsius,
        )

    # What clients ask.

    async def estimate_memory(self, question: MemoryQuestion) -> MemoryEstimate:
        """Raises ClientError(MODEL_NOT_FOUND, MODEL_INVALID)."""
        return await self._estimates.of(question)

    async def plan_split(self, query: SplitQuery) -> SplitPlan:
        """Of this host's free memory where the query names no devices. Raises ClientError."""
        estimate = await self._estimated(query.model)
        model = query.model if isinstance(query.model, ModelProfile) else estimate.model if estimate else None
        if model is None:
            raise ClientError(Reason.INVALID_ARGUMENT, "neither a model nor a model_path is given")
        activation, overhead = (estimate.activation_bytes, estimate.overhead_bytes) if estimate else (0, 0)
        devices = query.devices
        if devices is None:
            found = [one for one in self._candidates(await self.look()) if one.refusal is None and one.device.usable]
            devices = tuple(profile for one in found if (profile := _profile(one)) is not None)
        return await self._workers.run(self.split, query.request(model, devices, activation, overhead))

    async def plan_placement(self, query: PlacementQuery) -> PlacementPlan:
        """For this host, or for the one that the query describes (PLACE-3). Raises ClientError."""
        estimate = await self._estimated(query.memory)
        if query.host is not None:
            mask = masks.parse(query.mask, [one.device for one in query.host])
            return await self._workers.run(self._place, asked(query, mask, estimate), query.host, ())
        ask = asked(query, self._registry.parse_mask(query.mask), estimate)
        # Nothing is set aside for the answer, and looking for evictions may take seconds: not on the event loop.
        candidates, idle = self._candidates(await self.look()), self.idle() if ask.evict else ()
        return await self._workers.run(self._place, ask, candidates, idle)

    async def _estimated(self, of: object) -> MemoryEstimate | None:
        if isinstance(of, MemoryQuestion):
            return await self._estimates.of(of)
        return of if isinstance(of, MemoryEstimate) else None


def _order(device: Device) -> tuple[int, int, str]:
    return device.order


def asked(query: PlacementQuery, mask: Mask, estimate: MemoryEstimate | None) -> PlacementAsk:
    """What of it is to be decided. A mask of which nothing is known but its devices is meant as a whole."""
    if mask.kind is MaskKind.NONE:
        raise ClientError(Reason.BAD_MASK, "mask 'none' asks for no device, so there is nothing to place")
    named = mask.device_ids if mask.kind is MaskKind.DEVICES else None
    return PlacementAsk(
        estimate,
        query.bytes_per_device,
        query.device_count,
        named,
        named is not None and (query.split.mode is SplitMode.EXPLICIT or estimate is None),
        query.split.mode,
        query.split.ratios,
        query.objective,
        query.engine,
        query.preference,
        query.min_compute_capability,
        query.mig_profile,
        query.allow_mig,
        query.allow_cross_numa,
        query.prefer_nvlink,
        query.evict,
    )


def _profile(candidate: Candidate) -> DeviceProfile | None:
    """None where free memory or bandwidth are unknown: a plan over it would be a guess."""
    free, bandwidth = candidate.memory.free_bytes, candidate.device.memory_bandwidth_bytes
    if free is None or not bandwidth or candidate.device.is_instance or not candidate.state_known:
        return None
    return DeviceProfile(candidate.device.device_id, free, bandwidth)
