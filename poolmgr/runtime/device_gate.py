"""Between engines and GPUs: when their memory is back, and what an end had to do with them."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from poolmgr.core import fault_domains, vram
from poolmgr.core.fault_domains import Failure
from poolmgr.core.vram import DeviceUse, Held
from poolmgr.errors import EnvironmentFault
from poolmgr.model.device import DriverEvent, DriverEventKind
from poolmgr.model.device_health import Severity, Verdict
from poolmgr.model.engine import CrashCause, Diagnosis
from poolmgr.ports import Clock, ProcessInfo, Telemetry, Workers
from poolmgr.runtime.devices import DeviceRegistry
from poolmgr.runtime.waiting import pause

BUSY_PERCENT: Final = 1.0
STALE_SECONDS: Final = 5.0
DEVICE_LOST_SECONDS: Final = 10.0  # between an XID and an end that it explains (LIVE-3)
LOOK_SECONDS: Final = 0.25  # between two looks at what is still held (PROC-4)
RELEASE_SECONDS: Final = 30.0
ASK_SECONDS: Final = 2.0
EVENTS_KEPT: Final = 256


class Gate(Protocol):
    """Devices are named by UUID, in the order in which the engine sees them; a CPU engine has none."""

    async def starts(self, engine_id: str, devices: Sequence[str]) -> None:
        """Remembers how much of each is in use before the engine's start."""
        ...

    async def released(self, engine_id: str, devices: Sequence[str], pids: Sequence[int]) -> None:
        """Returns once the driver shows nothing of the engine any more, or after the limit (PROC-4).

        `pids`: that were the engine's. A device that is still held then is not to be trusted with work.
        """
        ...

    def diagnose(self, devices: Sequence[str]) -> Diagnosis | None:
        """Of an end just now: an XID after which a device is lost to what ran on it (LIVE-3)."""
        ...

    def failed(self, devices: Sequence[str], pool_id: str, generation: int, cause: str) -> str:
        """An end was counted against a pool (RST-3). Why that is its generation's fault; empty when nobody knows."""
        ...

    def busy(self, devices: Sequence[str]) -> bool | None:
        """Whether any of them works. None: not known, as where the samples are stale."""
        ...


class CpuOnly:
    """Of a daemon that looks for no GPU."""

    async def starts(self, engine_id: str, devices: Sequence[str]) -> None: ...
    async def released(self, engine_id: str, devices: Sequence[str], pids: Sequence[int]) -> None: ...

    def diagnose(self, devices: Sequence[str]) -> Diagnosis | None:
        return None

    def failed(self, devices: Sequence[str], pool_id: str, generation: int, cause: str) -> str:
        return ""

    def busy(self, devices: Sequence[str]) -> bool | None:
        return False if not devices else None


class DeviceGate:
    """See `Gate`. Used on the event loop only."""

    def __init__(
        self, registry: DeviceRegistry, telemetry: Telemetry, processes: ProcessInfo, workers: Workers, clock: Clock
    ) -> None:
        self._registry = registry
        self._telemetry = telemetry
        self._processes = processes
        self._workers = workers
        self._clock = clock
        self._failures: tuple[Failure, ...] = ()
        self._before: dict[str, Mapping[str, DeviceUse]] = {}
        self._xids: deque[DriverEvent] = deque(maxlen=EVENTS_KEPT)
        registry.on_event = self._happened

    def shunned(self, pool_id: str, generation: int) -> frozenset[str]:
        """Where this generation has failed often enough: another device would tell whose fault that is."""
        return fault_domains.shunned(self._failures, pool_id, generation, self._clock.now())

    # Their memory.

    async def starts(self, engine_id: str, devices: Sequence[str]) -> None:
        """Looks twice: an engine that ends between the two questions of one look would make the baseline too low."""
        if not devices:
            self._before[engine_id] = {}
            return
        one, two = await self._uses(devices), await self._uses(devices)
        self._before[engine_id] = {
            name: max((look[name] for look in (one, two) if name in look), key=lambda use: vram.unaccounted(use) or 0)
            for name in {*one, *two}
        }

    async def released(self, engine_id: str, devices: Sequence[str], pids: Sequence[int]) -> None:
        before, until = self._before.pop(engine_id, {}), self._clock.now() + RELEASE_SECONDS
        held = await self._held(devices, before, pids)
        while held and self._clock.now() < until:
            await pause(self._clock, LOOK_SECONDS)
            held = await self._held(devices, before, pids)
        for device_id, what in held.items():
            text = f"its memory was not released within {RELEASE_SECONDS:.0f} s after engine {engine_id} ended: {what}"
            self._registry.report(device_id, Verdict(Severity.FAULT, text))

    async def _held(
        self, devices: Sequence[str], before: Mapping[str, DeviceUse], pids: Sequence[int]
    ) -> dict[str, Held]:
        """By device. What cannot be seen counts as released: a driver that does not answer accuses nobody."""
        uses = await self._uses(devices)
        listed = {process.pid for use in uses.values() for process in use.processes or ()}
        alive = await self._workers.run(self._processes.look, listed) if listed else {}
        ours = {*pids, *(pid for pid in listed if pid not in alive)}
        found = {device_id: vram.held(before.get(device_id), use, ours) for device_id, use in uses.items()}
        return {device_id: what for device_id, what in found.items() if what is not None}

    async def _uses(self, devices: Sequence[str]) -> dict[str, DeviceUse]:
        try:
            processes = await self._telemetry.processes(devices, ASK_SECONDS)
            free = await self._telemetry.free_memory(devices, ASK_SECONDS)
        except EnvironmentFault:
            return {}
        totals = {device.device_id: device.vram_total_bytes for device in self._registry.present()}
        return {
            device_id: DeviceUse(totals.get(device_id), free.get(device_id), processes.get(device_id))
            for device_id in devices
            if device_id in processes or device_id in free
        }

    # What an end had to do with them.

    def _happened(self, event: DriverEvent) -> None:
        if event.kind is DriverEventKind.XID:
            self._xids.append(event)

    def diagnose(self, devices: Sequence[str]) -> Diagnosis | None:
        now = self._clock.now()
        for event in reversed(self._xids):
            if now - event.at > DEVICE_LOST_SECONDS:
                return None
            verdict = self._registry.judge(event)
            if event.device_id in devices and verdict.severity is Severity.FAULT:
                text = f"XID {event.code} on {event.device_id}: {verdict.meaning}"
                return Diagnosis(CrashCause.DEVICE_LOST, text, permanent=False)
        return None

    def failed(self, devices: Sequence[str], pool_id: str, generation: int, cause: str) -> str:
        if len(devices) != 1:  # of several GPUs nobody can tell which one it was
            return ""
        failure = Failure(self._clock.now(), devices[0], pool_id, generation, cause)
        self._failures, blame = fault_domains.add(self._failures, failure)
        if blame.device:
            self._registry.report(devices[0], Verdict(Severity.FAULT, blame.device))
        return blame.generation

    def busy(self, devices: Sequence[str]) -> bool | None:
        known: list[float] = []
        for device_id in devices:
            sample = self._telemetry.latest(device_id)
            value = sample.values.get("utilization_gpu") if sample and sample.age <= STALE_SECONDS else None
            if value is None:
                return None
            known.append(value)
        return any(value >= BUSY_PERCENT for value in known)
