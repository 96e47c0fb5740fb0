"""GPUs that exist in a table: a `Telemetry` whose devices, processes, samples and stalls a test says."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from poolmgr.errors import EnvironmentFault, Reason
from poolmgr.model.device import (
    Absence,
    Device,
    DeviceProcess,
    Discovery,
    DriverEvent,
    RingInfo,
    Sample,
    WindowStatistics,
)
from poolmgr.ports import Clock, TelemetryListener

T = TypeVar("T")

GIB = 1024**3
MAX_SAMPLES = 6000  # of a device: 600 s at 10 Hz


def a_gpu(number: int = 0, name: str = "NVIDIA A100-SXM4-80GB", vram_gib: int = 80) -> Device:
    """A GPU like any other; its UUID, index and PCI address follow from `number`."""
    return Device(
        f"GPU-{number:08x}-0000-4000-8000-{number:012x}",
        name,
        index=number,
        compute_capability=(8, 0),
        vram_total_bytes=vram_gib * GIB,
        vram_free_bytes=vram_gib * GIB,
        pci_bus_id=f"00000000:{number + 1:02X}:00.0",
        numa_node=0,
        mig_mode=False,
        ecc_mode=True,
        power_limit_watts=400.0,
    )


def an_instance(gpu: Device, number: int, profile: str = "1g.10gb", vram_gib: int = 10) -> Device:
    """A MIG instance of `gpu`, which a test has to show in MIG mode itself."""
    return Device(
        f"MIG-{number:08x}-{gpu.device_id[4:12]}-4000-8000-000000000000",
        f"{gpu.name} MIG {profile}",
        mig_slot=f"{gpu.index}.{number}",
        mig_profile=profile,
        parent_device_id=gpu.device_id,
        compute_capability=gpu.compute_capability,
        vram_total_bytes=vram_gib * GIB,
        vram_free_bytes=vram_gib * GIB,
        pci_bus_id=gpu.pci_bus_id,
    )


class FakeTelemetry:
    """Keeps the port's contract (`tests/contracts`). What changes is told to the listener at once, once started."""

    def __init__(self, clock: Clock, *devices: Device, simulated: str = "") -> None:
        self._clock = clock
        self._simulated = simulated
        self._listener: TelemetryListener | None = None
        self._stalled = False
        self._waiting: set[asyncio.Future[None]] = set()
        self._processes: dict[str, dict[int, DeviceProcess]] = {}
        self._rows: dict[str, deque[tuple[float, dict[str, float]]]] = {}
        self.ring_info: RingInfo | None = None
        self.silent: set[str] = set()  # devices that the driver does not answer for
        self.discovery = self._discovery(devices, Absence.NO_DEVICES, "the driver shows no devices", "")

    # What a test says.

    def show(
        self,
        *devices: Device,
        absence: Absence = Absence.NO_DEVICES,
        message: str = "the driver shows no devices",
        advice: str = "",
    ) -> None:
        """What a look shows from now on. `absence`, `message` and `advice`: why, where there are no devices."""
        self.discovery = self._discovery(devices, absence, message, advice)
        if self._listener is not None and not self._stalled:
            self._listener.discovered(self.discovery)

    def hold(self, device_id: str, pid: int, used_bytes: int | None = None, graphics: bool = False) -> None:
        """A process takes memory of a device, or now holds another amount."""
        self._processes.setdefault(device_id, {})[pid] = DeviceProcess(pid, used_bytes, graphics)

    def let_go(self, device_id: str, pid: int) -> None:
        self._processes.get(device_id, {}).pop(pid, None)

    def sample(self, device_id: str, **values: float) -> None:
        """A row at the clock's time; a field that is not named is unknown in it."""
        rows = self._rows.setdefault(device_id, deque(maxlen=MAX_SAMPLES))
        rows.append((self._clock.now(), dict(values)))

    def happen(self, event: DriverEvent) -> None:
        if self._listener is not None:
            self._listener.happened(event)

    def stall(self, seconds: float = 2.0, call: str = "") -> None:
        """From now on nothing that asks the driver is answered, until `flow`."""
        self._stalled = True
        if self._listener is not None:
            self._listener.stalled(seconds, call)

    def flow(self) -> None:
        """What waits is answered, and the listener hears of it and of a new look."""
        self._stalled = False
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)
        if self._listener is not None:
            self._listener.flows_again()
            self._listener.discovered(self.discovery)

    # The port.

    async def start(self, listener: TelemetryListener) -> None:
        self._listener = listener
        await asyncio.sleep(0)
        if self._stalled:
            message = "a driver call has not come back"
            listener.discovered(self._discovery((), Absence.STALLED, message, ""))
        else:
            listener.discovered(self.discovery)

    async def close(self) -> None:
        self._listener = None
        self.ring_info = None

    async def processes(self, device_ids: Sequence[str], timeout: float) -> Mapping[str, Sequence[DeviceProcess]]:
        def answer() -> Mapping[str, Sequence[DeviceProcess]]:
            return {name: tuple(self._processes.get(name, {}).values()) for name in self._answering(device_ids)}

        return await self._ask(answer, timeout)

    async def free_memory(self, device_ids: Sequence[str], timeout: float) -> Mapping[str, int]:
        """What each device's total leaves beside what its processes hold."""
        return await self._ask(lambda: {name: self._free(name) for name in self._answering(device_ids)}, timeout)

    async def look_again(self, timeout: float) -> Discovery:
        def answer() -> Discovery:
            self.discovery = replace(self.discovery, at=self._clock.now())
            if self._listener is not None:
                self._listener.discovered(self.discovery)
            return self.discovery

        return await self._ask(answer, timeout)

    def latest(self, device_id: str) -> Sample | None:
        rows = self._rows.get(device_id)
        if not rows:
            return None
        at, values = rows[-1]
        return Sample(device_id, at, self._clock.now() - at, dict(values))

    def statistics(self, device_id: str, field: str, window: float) -> WindowStatistics | None:
        points = self.history(device_id, field, window)
        return _statistics(points, window) if points else None

    def quantiles(self, device_id: str, field: str, window: float) -> Mapping[float, float]:
        values = sorted(value for _, value in self.history(device_id, field, window))
        if not values:
            return {}
        return {q: values[min(len(values) - 1, math.ceil(q * len(values)) - 1)] for q in (0.5, 0.95, 0.99)}

    def history(self, device_id: str, field: str, seconds: float) -> Sequence[tuple[float, float]]:
        since = self._clock.now() - seconds
        rows = self._rows.get(device_id, ())
        return [(at, values[field]) for at, values in rows if at >= since and field in values]

    def ring(self) -> RingInfo | None:
        return self.ring_info

    # Inside.

    def _discovery(self, devices: Sequence[Device], absence: Absence, message: str, advice: str) -> Discovery:
        if self._simulated:
            devices = [replace(device, simulated=True) for device in devices]
        if devices:
            return Discovery(
                tuple(devices), self._clock.now(), "570.86.15", "12.8", None, "", "", simulated=self._simulated
            )
        now = self._clock.now()
        return Discovery((), now, absence=absence, message=message, advice=advice, simulated=self._simulated)

    def _answering(self, device_ids: Sequence[str]) -> list[str]:
        known = {device.device_id for device in self.discovery.devices} - self.silent
        return [name for name in device_ids if name in known]

    def _free(self, device_id: str) -> int:
        device = next(d for d in self.discovery.devices if d.device_id == device_id)
        held = sum(process.used_bytes or 0 for process in self._processes.get(device_id, {}).values())
        return max(0, (device.vram_total_bytes or 0) - held)

    async def _ask(self, answer: Callable[[], T], timeout: float) -> T:
        await asyncio.sleep(0)
        if self._stalled:
            await self._until_it_flows(timeout)
        return answer()

    async def _until_it_flows(self, timeout: float) -> None:
        flowing = asyncio.get_running_loop().create_future()
        numbers = {"timeout_seconds": timeout}
        fault = EnvironmentFault(Reason.TELEMETRY_STALLED, "the driver did not answer in time", numbers=numbers)

        def give_up() -> None:
            if not flowing.done():
                flowing.set_exception(fault)

        timer = self._clock.call_at(self._clock.now() + timeout, give_up)
        self._waiting.add(flowing)
        try:
            await flowing
        finally:
            timer.cancel()
            self._waiting.discard(flowing)


def _statistics(points: Sequence[tuple[float, float]], window: float) -> WindowStatistics:
    """By the definitions, over all points; the deviation is that of the population."""
    times, values = [at for at, _ in points], [value for _, value in points]
    count = len(points)
    mean_at, mean = math.fsum(times) / count, math.fsum(values) / count
    spread = math.fsum((value - mean) ** 2 for value in values)
    spread_at = math.fsum((at - mean_at) ** 2 for at in times)
    slope = error = None
    if spread_at > 0:
        slope = math.fsum((at - mean_at) * (value - mean) for at, value in points) / spread_at
        if count > 2:
            error = math.sqrt(max(0.0, spread - slope**2 * spread_at) / (count - 2) / spread_at)
    steps = itertools.pairwise(points)
    integral = math.fsum((late - soon) * (a + b) / 2 for (soon, a), (late, b) in steps)
    deviation = math.sqrt(spread / count)
    return WindowStatistics(
        window, count, values[-1], min(values), max(values), mean, deviation, slope, error, integral
    )
