"""What the memory of this host's devices is promised to, and what is left of it (MEM-2).

A reservation bridges the time from a decision to the memory that the driver shows: it is made with the decision, and
ends when the engine has become READY, failed or gone. What engines and strangers hold is looked at, never remembered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from poolmgr.core.memory import entry
from poolmgr.errors import EnvironmentFault
from poolmgr.model.claim import Claim, ClaimKind
from poolmgr.model.device import Device
from poolmgr.model.memory import LedgerEntry, Reserved
from poolmgr.ports import Clock, Telemetry
from poolmgr.runtime.devices import DeviceRegistry

ASK_SECONDS: Final = 2.0
# An engine that took less than was set aside for it by no more than this has left nothing that anybody waits for.
FREED_BYTES: Final = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Reservation:
    """`bytes_by_device`: set aside. `since`: boot-time seconds. `factor`: the estimate's own bytes were multiplied by
    this; None where that is not known, as of an earlier daemon's.
    """

    pool_id: str
    bytes_by_device: Mapping[str, int]
    since: float
    factor: float | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """One look at the driver. `free` lacks the devices that it did not answer for."""

    free: Mapping[str, int] = field(default_factory=dict)
    claims: Sequence[Claim] = ()


class Ledger:
    """Used on the event loop only. `on_freed` hears when something that was reserved is free again.

    However many starts ask for a look at once, the driver is asked by one at a time: it answers one question after the
    other, and refuses to have too many of them open.
    """

    def __init__(self, registry: DeviceRegistry, telemetry: Telemetry, clock: Clock) -> None:
        self._registry = registry
        self._telemetry = telemetry
        self._clock = clock
        self._reserved: dict[str, Reservation] = {}
        self._turn = asyncio.Lock()
        self._next: asyncio.Future[Reading] | None = None  # the look that has not begun
        self.on_freed: Callable[[], None] = lambda: None
        registry.reserved = self.claims

    def of(self, engine_id: str) -> Mapping[str, int]:
        """Bytes by device; empty for an engine that has nothing set aside."""
        held = self._reserved.get(engine_id)
        return held.bytes_by_device if held is not None else {}

    def factor(self, engine_id: str) -> float | None:
        held = self._reserved.get(engine_id)
        return held.factor if held is not None else None

    def reserve(
        self, engine_id: str, pool_id: str, bytes_by_device: Mapping[str, int], factor: float | None = None
    ) -> None:
        """In place of what the engine had before."""
        before = self.of(engine_id)
        self._reserved[engine_id] = Reservation(pool_id, dict(bytes_by_device), self._clock.now(), factor)
        if any(size > bytes_by_device.get(device_id, 0) for device_id, size in before.items()):
            self.on_freed()

    def release(self, engine_id: str) -> None:
        if self._reserved.pop(engine_id, None) is not None:
            self.on_freed()

    def settle(self, engine_id: str, measured: Mapping[str, int | None]) -> None:
        """What it holds counts from now on in place of what was set aside for it."""
        held = self._reserved.pop(engine_id, None)
        if held is None:
            return
        taken = {device_id: measured.get(device_id) or 0 for device_id in held.bytes_by_device}
        if any(size - taken[device_id] > FREED_BYTES for device_id, size in held.bytes_by_device.items()):
            self.on_freed()

    def claims(self) -> Sequence[Claim]:
        """Of engines that do not run yet; those of running ones carry what is set aside for them."""
        running = {engine.engine_id for engine in self._registry.engines()}
        return [
            Claim(f"reservation/{engine_id}/{device_id}", device_id, ClaimKind.RESERVATION, held.pool_id, held.since,
                  reserved_bytes=size, engine_id=engine_id)
            for engine_id, held in self._reserved.items() if engine_id not in running
            for device_id, size in held.bytes_by_device.items()
        ]  # fmt: skip

    async def look(self, devices: Sequence[str]) -> Reading:
        """One look that begins after it was asked for; those who wait for one share it."""
        while (shared := self._next) is not None:
            try:
                return await asyncio.shield(shared)
            except asyncio.CancelledError:
                if not shared.cancelled():
                    raise  # it is us who are not waited for any more; else whoever was to look for all is gone
        mine: asyncio.Future[Reading] = asyncio.get_running_loop().create_future()
        self._next = mine
        try:
            async with self._turn:
                self._next = None
                mine.set_result(await self._look(devices))
        finally:
            self._next = None if self._next is mine else self._next
            mine.cancel()  # of no effect where it has its result
        return mine.result()

    async def _look(self, devices: Sequence[str]) -> Reading:
        """Asks the driver: for the processes first, or memory that is taken in between would be in neither."""
        await self._registry.look_at_processes()
        claims = self._registry.claims()
        try:
            return Reading(await self._telemetry.free_memory(devices, ASK_SECONDS), claims)
        except EnvironmentFault:
            return Reading({}, claims)

    def entries(self, reading: Reading, devices: Sequence[Device], besides: str = "") -> Mapping[str, LedgerEntry]:
        """By device, with what is reserved now. `besides`: an engine id whose own reservation does not count."""
        return {device.device_id: self._entry(device, reading, besides) for device in devices}

    def _entry(self, device: Device, reading: Reading, besides: str) -> LedgerEntry:
        here = {
            engine_id: size
            for engine_id, held in self._reserved.items()
            if engine_id != besides and (size := held.bytes_by_device.get(device.device_id))
        }
        engines = [c for c in reading.claims if c.device_id == device.device_id and c.kind is ClaimKind.ENGINE]
        seen = {claim.engine_id: claim.measured_bytes or 0 for claim in engines}
        reserved = [Reserved(engine_id, size, seen.get(engine_id, 0)) for engine_id, size in here.items()]
        others = [claim.measured_bytes for claim in engines if claim.engine_id not in here and claim.pids]
        known = None if None in others else sum(size for size in others if size is not None)
        free = reading.free.get(device.device_id)
        return entry(device.device_id, device.vram_total_bytes, free, reserved, known)
