"""The telemetry process on each driver: what the daemon really uses (TEL-1, DEV-5)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from poolmgr_ext.nvml import Library

from poolmgr.adapters.system import SystemClock, ThreadWorkers
from poolmgr.adapters.telemetry.driver import Driver, DriverTelemetry
from poolmgr.adapters.telemetry.rings import Place
from poolmgr.model.settings import TelemetrySettings
from tests.adapters.telemetry_support import PATIENCE, Heard, comes
from tests.gpu.drivers import DriverUnderTest

pytestmark = [pytest.mark.behaviour("SIM-4")]
HELD_MIB = 256


@dataclass
class Running:
    telemetry: DriverTelemetry
    heard: Heard


@pytest_asyncio.fixture
async def running(driver: DriverUnderTest, tmp_path: Path) -> AsyncIterator[Running]:
    """As the daemon starts it: with no variable of ours but those of the simulated driver."""
    workers, heard = ThreadWorkers("gpu-test", 2), Heard()
    environment = {name: value for name, value in driver.environment.items() if name.startswith(("POOLMGR_", "LD_"))}
    how = Driver(driver.library, environment, driver.scenario)
    telemetry = DriverTelemetry(SystemClock(), workers, TelemetrySettings(), how, Place(tmp_path), epoch=1)
    await asyncio.wait_for(telemetry.start(heard), PATIENCE)
    yield Running(telemetry, heard)
    await telemetry.close()
    workers.close()


@pytest.mark.behaviour("TEL-1", "DEV-1")
async def test_the_telemetry_process_finds_and_samples_what_the_library_shows(running: Running, library: Library):
    shown = library.discover()
    found = running.heard.discoveries[0]
    assert found.absence is None, f"{found.message}; {found.advice}"
    assert [device.device_id for device in found.devices] == [device["device_id"] for device in shown["devices"]]
    assert (found.driver_version, found.cuda_version) == (shown["driver_version"], shown["cuda_version"])
    for device in found.devices:
        sample = await comes(lambda device=device: running.telemetry.latest(device.device_id))
        assert sample.age < 2.0
        assert sample.values["memory_total"] == device.vram_total_bytes
    ring = running.telemetry.ring()
    assert ring is not None and ring.writer_pid == running.telemetry.process_id
    assert not running.heard.stalls


@pytest.mark.behaviour("TEL-6")
async def test_memory_and_processes_are_answered_in_time(running: Running, driver: DriverUnderTest):
    gpu = running.heard.discoveries[0].devices[0].device_id
    before = (await running.telemetry.free_memory((gpu,), PATIENCE))[gpu]
    with driver.hold(gpu) as holder:
        if holder.refusal and driver.host is None:
            pytest.skip(f"gpu: CUDA cannot be used here: {holder.refusal}")
        holder.ask(f"alloc {HELD_MIB}")
        assert before - (await running.telemetry.free_memory((gpu,), PATIENCE))[gpu] >= HELD_MIB << 20
        listed = (await running.telemetry.processes((gpu,), PATIENCE))[gpu]
        if driver.tells_our_pids:
            assert holder.pid in {process.pid for process in listed}
    assert not running.heard.stalls
