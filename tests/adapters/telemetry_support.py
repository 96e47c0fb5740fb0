"""A telemetry process whose driver does what a test says or is simulated, and somebody who hears what is told."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import poolmgr_ext

from poolmgr.adapters.simulator import host, scenario
from poolmgr.adapters.system import SystemClock, ThreadWorkers
from poolmgr.adapters.telemetry.driver import Driver, DriverTelemetry
from poolmgr.adapters.telemetry.rings import Place
from poolmgr.model.device import Device, Discovery, DriverEvent
from poolmgr.model.settings import TelemetrySettings

PATIENCE = 15.0
FAKE_DRIVER = Path(__file__).parent / "fake_driver"
QUICK = TelemetrySettings(discovery_interval=60.0, stall_limit=1.0, depth_seconds=30.0)


class Heard:
    """What a listener was told, in order."""

    def __init__(self) -> None:
        self.discoveries: list[Discovery] = []
        self.events: list[DriverEvent] = []
        self.stalls: list[tuple[float, str]] = []
        self.flows = 0
        self._told = asyncio.Event()

    def discovered(self, discovery: Discovery) -> None:
        self.discoveries.append(discovery)
        self._told.set()

    def happened(self, event: DriverEvent) -> None:
        self.events.append(event)
        self._told.set()

    def stalled(self, seconds: float, call: str) -> None:
        self.stalls.append((seconds, call))
        self._told.set()

    def flows_again(self) -> None:
        self.flows += 1
        self._told.set()

    async def until(self, holds: Callable[[], object]) -> None:
        """Waits for something to be told after which `holds`."""

        async def wait() -> None:
            while not holds():
                self._told.clear()
                await self._told.wait()

        await asyncio.wait_for(wait(), PATIENCE)


class ScriptedDriver:
    """The files that the fake driver reads."""

    def __init__(self, directory: Path, *devices: Device) -> None:
        self._script, self._events = directory / "script.json", directory / "events"
        self._events.mkdir(exist_ok=True)
        self._numbers = itertools.count(1)
        self._says: dict[str, Any] = {}
        self.says(devices=[told(device) for device in devices])

    def says(self, **changes: Any) -> None:
        """From now on; None takes it back."""
        self._says = {key: value for key, value in (self._says | changes).items() if value is not None}
        new = self._script.with_suffix(".new")
        new.write_text(json.dumps(self._says))
        new.rename(self._script)

    def happen(self, **event: Any) -> None:
        number = next(self._numbers)
        new = self._script.with_suffix(".event")
        new.write_text(json.dumps(event))
        new.rename(self._events / f"{number:06}")

    def driver(self, **changes: Any) -> Driver:
        environment = {
            "SCRIPT": str(self._script),
            "EVENTS": str(self._events),
            "REAL_EXTENSION": str(Path(str(poolmgr_ext.__file__)).parent),
        }
        return replace(Driver("anything", environment, extension=str(FAKE_DRIVER)), **changes)


def told(device: Device) -> dict[str, Any]:
    """As the telemetry process tells of it."""
    return {name: value for name, value in asdict(device).items() if value is not None and name != "simulated"}


class Rig:
    """A real telemetry process on a scripted driver."""

    def __init__(self, directory: Path, *devices: Device) -> None:
        self.directory = directory
        self.shared_memory = directory / "shm"
        self.shared_memory.mkdir(exist_ok=True)
        self.script = ScriptedDriver(directory, *devices)
        self.clock = SystemClock()
        self.workers = ThreadWorkers("telemetry-test", 2)
        self.heard = Heard()
        self.made: list[DriverTelemetry] = []

    def make(self, settings: TelemetrySettings = QUICK, epoch: int = 1, **changes: Any) -> DriverTelemetry:
        return self.of(self.script.driver(**changes), settings, epoch)

    def of(self, driver: Driver, settings: TelemetrySettings, epoch: int) -> DriverTelemetry:
        place = Place(self.directory, self.shared_memory)
        telemetry = DriverTelemetry(self.clock, self.workers, settings, driver, place, epoch=epoch)
        self.made.append(telemetry)
        return telemetry

    async def start(self, settings: TelemetrySettings = QUICK, epoch: int = 1, **changes: Any) -> DriverTelemetry:
        telemetry = self.make(settings, epoch, **changes)
        await asyncio.wait_for(telemetry.start(self.heard), PATIENCE)
        return telemetry

    def rings(self) -> list[Path]:
        return sorted(self.shared_memory.glob("*/ring.*"))

    async def close(self) -> None:
        for telemetry in self.made:
            await telemetry.close()
        self.workers.close()


class Simulation(Rig):
    """A simulated host, and the telemetry process on it."""

    def __init__(self, directory: Path, shorthand: str) -> None:
        super().__init__(directory)
        self.state, self.shorthand = directory / "state", shorthand
        self.host = host.SimulatedHost(scenario.load(shorthand), self.state)

    def make(self, settings: TelemetrySettings = QUICK, epoch: int = 1, **changes: Any) -> DriverTelemetry:
        environment = {"POOLMGR_SIM_STATE": str(self.state)}
        driver = replace(Driver(str(host.library_path()), environment, self.shorthand), **changes)
        return self.of(driver, settings, epoch)


async def comes(true: Callable[[], Any]) -> Any:
    """Waits for what nobody tells of: what a reader of the ring sees."""

    async def wait() -> Any:
        while not (found := true()):  # noqa: ASYNC110 - shared memory tells nobody
            await asyncio.sleep(0.005)
        return found

    return await asyncio.wait_for(wait(), PATIENCE)
