"""The `Telemetry` of this host: what is asked goes through one process to the driver, what is read is in its ring."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import poolmgr_ext

from poolmgr.adapters.telemetry import decoding
from poolmgr.adapters.telemetry.child import Child, Spawned, TelemetryChild
from poolmgr.adapters.telemetry.merging import Merger
from poolmgr.adapters.telemetry.minder import Launch, Minder
from poolmgr.adapters.telemetry.process import wire
from poolmgr.adapters.telemetry.questions import stalled
from poolmgr.adapters.telemetry.rings import Place
from poolmgr.model.device import (
    Absence,
    DeviceProcess,
    Discovery,
    DriverEvent,
    DriverEventKind,
    RingInfo,
    Sample,
    WindowStatistics,
)
from poolmgr.model.settings import TelemetrySettings
from poolmgr.ports import Clock, TelemetryListener, Workers

_EPOCH_BITS: Final = 20  # rings of one daemon
_EXTENSION: Final = str(Path(str(poolmgr_ext.__file__)).parent.parent)
_CHANGES: Final = (DriverEventKind.XID, DriverEventKind.MIG_CONFIG)


@dataclass(frozen=True, slots=True)
class Driver:
    """Which driver: the host's, or a simulated one. The process inherits no variable but these.

    `library`: what dlopen gets. `simulated`: the name of the scenario. `extension`: the directory with `poolmgr_ext`.
    """

    library: str
    environment: Mapping[str, str] = field(default_factory=dict)
    simulated: str = ""
    extension: str = _EXTENSION


class DriverTelemetry:
    """`epoch`: the daemon's, which no other of this host had: its rings' epochs are above those of all earlier ones."""

    def __init__(
        self,
        clock: Clock,
        workers: Workers,
        settings: TelemetrySettings,
        driver: Driver,
        place: Place,
        epoch: int,
        launch: Launch | None = None,
    ) -> None:
        self._clock, self._workers, self._driver, self._place = clock, workers, driver, place
        self._listener: TelemetryListener | None = None
        self._discovery = Discovery(simulated=driver.simulated)
        self._known = asyncio.Event()  # there was a discovery, or it is known why there is none
        self._failing = False
        self._merger = Merger(clock, self._tell)
        hello = {
            "op": "hello",
            "versions": wire.VERSIONS,
            "library": driver.library,
            "kernel_log": settings.kernel_log and not driver.simulated,
        }
        epochs = itertools.count((epoch << _EPOCH_BITS) + 1)
        self._minder = Minder(clock, settings, place, epochs, launch or self._spawn, hello, self)

    async def start(self, listener: TelemetryListener) -> None:
        self._listener = listener
        await self._workers.run(self._place.clear)
        self._minder.start()
        await self._known.wait()

    async def close(self) -> None:
        self._listener = None
        self._merger.close()
        await self._minder.close()
        await self._workers.run(self._place.remove)

    async def processes(self, device_ids: Sequence[str], timeout: float) -> Mapping[str, Sequence[DeviceProcess]]:
        answer = await self._minder.questions.ask("processes", timeout, devices=list(device_ids))
        try:
            with decoding.sense():
                return decoding.processes(answer)
        except decoding.Nonsense as error:
            raise stalled(str(error), timeout) from error

    async def free_memory(self, device_ids: Sequence[str], timeout: float) -> Mapping[str, int]:
        answer = await self._minder.questions.ask("memory", timeout, devices=list(device_ids))
        try:
            with decoding.sense():
                return decoding.free_memory(answer)
        except decoding.Nonsense as error:
            raise stalled(str(error), timeout) from error

    async def look_again(self, timeout: float) -> Discovery:
        return await self._minder.look_now(timeout)

    def latest(self, device_id: str) -> Sample | None:
        ring = self._minder.ring
        return None if ring is None else ring.latest(device_id, self._clock.now())

    def statistics(self, device_id: str, field: str, window: float) -> WindowStatistics | None:
        ring = self._minder.ring
        return None if ring is None else ring.statistics(device_id, field, window)

    def quantiles(self, device_id: str, field: str, window: float) -> Mapping[float, float]:
        ring = self._minder.ring
        return {} if ring is None else ring.quantiles(device_id, field, window)

    def history(self, device_id: str, field: str, seconds: float) -> Sequence[tuple[float, float]]:
        ring = self._minder.ring
        return () if ring is None else ring.history(device_id, field, seconds)

    def ring(self) -> RingInfo | None:
        ring = self._minder.ring
        return ring.info(self._clock.now()) if ring is not None and self._minder.writing else None

    @property
    def process_id(self) -> int | None:
        """Of the telemetry process; None while there is none."""
        return self._minder.process_id

    # What the minder tells.

    def looked(self, answer: Mapping[str, Any]) -> Discovery:
        with decoding.sense():
            found = decoding.discovery(answer, self._clock.now(), self._driver.simulated)
        self._know(found)
        return found

    def happened(self, message: wire.Message) -> None:
        with decoding.sense():
            if message["event"] == "hello":
                self._merger.has_log = bool(message["kernel_log"])
                return
            if message["event"] != "driver":
                raise ValueError(f"{message['event']!r:.80} is no event")
            event = decoding.event(message, self._discovery.devices, self._clock.now())
        self._merger.add(event)
        if event.kind in _CHANGES:
            self._minder.look_soon()

    def failing(self, seconds: float, what: str, *, hung: bool) -> None:
        if not self._failing:
            self._failing = True
            if self._listener is not None:
                self._listener.stalled(seconds, what)
        if not self._known.is_set():
            message = f"the driver has not answered for {seconds:.1f} s" if hung else what
            self._absent(Absence.STALLED if hung else Absence.FAILED, message)

    def flowing(self) -> None:
        if self._failing:
            self._failing = False
            if self._listener is not None:
                self._listener.flows_again()

    # Inside.

    def _tell(self, event: DriverEvent) -> None:
        if self._listener is not None:
            self._listener.happened(event)

    def _absent(self, absence: Absence, message: str) -> None:
        self._know(decoding.absent(absence, message, self._clock.now(), self._driver.simulated))

    def _know(self, discovery: Discovery) -> None:
        self._discovery = discovery
        self._known.set()
        if self._listener is not None:
            self._listener.discovered(discovery)

    async def _spawn(self, on_message: Callable[[wire.Message], None], on_end: Callable[[str], None]) -> Child:
        spawned = await self._workers.run(Spawned, self._driver.extension, self._driver.environment)
        return TelemetryChild(spawned, on_message, on_end)
