"""The real telemetry process with the real native reader, on the simulated driver and on none."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from poolmgr.errors import EnvironmentFault, Reason
from poolmgr.model.device import Absence, DeviceProcess, DriverEventKind
from tests.adapters.telemetry_support import PATIENCE, QUICK, Simulation, comes

SCENARIO = "2xA100-80GB+1xT4"
PRIVATE_MIB = 20


@pytest_asyncio.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Simulation]:
    made = Simulation(tmp_path, SCENARIO)
    yield made
    made.host.fault("clear")
    await made.close()


def private_mib(pid: int | None) -> float:
    """Memory that nobody shares, without the ring."""
    ring, kib = False, 0
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name, *rest = line.split()
        if not name.endswith(":"):
            ring = "/ring." in line
        elif name in ("Private_Clean:", "Private_Dirty:") and not ring:
            kib += int(rest[0])
    return kib / 1024


@pytest.mark.behaviour("DEV-1", "TEL-1")
async def test_a_simulated_host_is_discovered_and_sampled_by_a_small_process(rig: Simulation) -> None:
    telemetry = await rig.start()
    (found,) = rig.heard.discoveries
    assert [device.device_id for device in found.devices] == list(rig.host.uuids())
    assert [device.name for device in found.devices] == ["NVIDIA A100-SXM4-80GB"] * 2 + ["Tesla T4"]
    assert all(device.simulated for device in found.devices)
    assert found.simulated == SCENARIO
    gpu = rig.host.uuid(2)
    sample = await comes(lambda: telemetry.latest(gpu))
    assert sample.values
    ring = telemetry.ring()
    assert ring is not None
    assert set(sample.values) <= {field.name for field in ring.fields}
    statistics = await comes(lambda: telemetry.statistics(gpu, next(iter(sample.values)), 10))
    assert statistics.count > 0
    assert 1 < private_mib(telemetry.process_id) <= PRIVATE_MIB
    assert not rig.heard.stalls


@pytest.mark.behaviour("DEV-4")
@pytest.mark.parametrize(
    ("fault", "absence"),
    [
        ("no-driver", Absence.NO_DRIVER),
        ("mismatch", Absence.DRIVER_MISMATCH),
        ("no-devices", Absence.NO_DEVICES),
    ],
)
async def test_a_driver_that_cannot_be_used_is_told_and_used_once_it_can(
    rig: Simulation, fault: str, absence: Absence
) -> None:
    rig.host.fault(fault)
    telemetry = await rig.start()
    assert rig.heard.discoveries[-1].absence is absence
    rig.host.fault("devices-back" if fault == "no-devices" else "driver-works")
    assert len((await telemetry.look_again(PATIENCE)).devices) == 3
    await comes(lambda: telemetry.latest(rig.host.uuid(0)))


@pytest.mark.behaviour("DEV-4")
async def test_no_library_no_state_and_a_simulated_driver_in_disguise_are_three_reasons(rig: Simulation) -> None:
    await rig.start(library="/nowhere/libnvidia-ml.so.1", simulated="")
    assert rig.heard.discoveries[-1].absence is Absence.NO_LIBRARY
    await rig.start(environment={"POOLMGR_SIM_STATE": "/nowhere"})
    assert rig.heard.discoveries[-1].absence is Absence.NO_DRIVER
    await rig.start(simulated="")
    assert rig.heard.discoveries[-1].absence is Absence.FAILED
    assert "--simulate" in rig.heard.discoveries[-1].message


async def test_memory_and_its_holders_are_those_of_this_moment(rig: Simulation) -> None:
    telemetry = await rig.start()
    gpu = rig.host.uuid(2)
    before = (await telemetry.free_memory((gpu,), PATIENCE))[gpu]
    rig.host.process_take(2, os.getpid(), 1 << 30)
    assert await telemetry.processes((gpu,), PATIENCE) == {gpu: (DeviceProcess(os.getpid(), 1 << 30),)}
    assert (await telemetry.free_memory((gpu,), PATIENCE))[gpu] == before - (1 << 30)
    rig.host.process_release(2, os.getpid())
    assert await telemetry.processes((gpu,), PATIENCE) == {gpu: ()}


@pytest.mark.behaviour("DEV-5", "TEL-7")
async def test_a_driver_that_hangs_is_seen_in_time_blocks_nothing_and_is_met_again(rig: Simulation) -> None:
    settings = replace(QUICK, stall_limit=2.0)
    telemetry = await rig.start(settings)
    gpu = rig.host.uuid(0)
    await comes(lambda: telemetry._minder._watch.flowing)
    first = telemetry.process_id
    rig.host.fault("hang", seconds=600.0)
    begin, longest = rig.clock.now(), 0.0
    while not rig.heard.stalls:
        before = time.perf_counter()
        telemetry.latest(gpu)
        telemetry.ring()
        await asyncio.sleep(0)
        longest = max(longest, time.perf_counter() - before)
        assert rig.clock.now() - begin < PATIENCE
    assert rig.clock.now() - begin <= settings.stall_limit + 0.3
    assert longest < 0.25
    seconds, call = rig.heard.stalls[0]
    assert 1.0 < seconds <= settings.stall_limit
    assert call.startswith("nvmlDevice")
    with pytest.raises(EnvironmentFault) as fault:
        await telemetry.processes((gpu,), 0.1)
    assert fault.value.reason is Reason.TELEMETRY_STALLED
    stale = telemetry.latest(gpu)
    assert stale is None or stale.age > 1.0
    await comes(lambda: telemetry.process_id not in (None, first))
    rig.host.fault("clear")
    await rig.heard.until(lambda: rig.heard.flows)
    fresh = await comes(lambda: (sample := telemetry.latest(gpu)) and sample.age < 1.0 and sample)
    assert fresh.at > begin


@pytest.mark.behaviour("DEV-2")
async def test_a_device_that_is_lost_and_comes_back_is_the_same_device(rig: Simulation) -> None:
    telemetry = await rig.start()
    gpu = rig.host.uuid(0)
    await comes(lambda: telemetry.latest(gpu))
    rig.host.fault("removed", 0)
    missing = await telemetry.look_again(PATIENCE)
    assert gpu not in {device.device_id for device in missing.devices}
    rig.host.fault("clear")
    back = await telemetry.look_again(PATIENCE)
    assert [device.device_id for device in back.devices] == list(rig.host.uuids())
    await comes(lambda: (sample := telemetry.latest(gpu)) and sample.values and sample.at > back.at)
    assert not rig.heard.stalls


@pytest.mark.behaviour("DEV-5")
async def test_an_instance_that_is_made_while_all_runs_is_found_and_sampled_and_gone_when_it_is_destroyed(
    rig: Simulation,
) -> None:
    telemetry = await rig.start()
    await comes(telemetry.ring)
    rig.host.fault("mig-mode", 0, on=True)
    instance = rig.host.mig_create(0, "3g.40gb")
    found = await telemetry.look_again(PATIENCE)
    assert instance in {device.device_id for device in found.devices}
    await comes(lambda: telemetry.latest(instance))
    rig.host.mig_destroy(0, 0)
    assert instance not in {device.device_id for device in (await telemetry.look_again(PATIENCE)).devices}
    assert not rig.heard.stalls


@pytest.mark.behaviour("TEL-4")
async def test_an_xid_of_the_simulated_driver_is_heard(rig: Simulation) -> None:
    await rig.start()
    rig.host.xid(1, 48)
    await rig.heard.until(lambda: rig.heard.events)
    event = rig.heard.events[0]
    assert (event.kind, event.device_id, event.code) == (DriverEventKind.XID, rig.host.uuid(1), 48)


@pytest.mark.behaviour("TEL-1")
async def test_a_driver_that_hangs_does_not_keep_the_process_from_ending_with_its_daemon(rig: Simulation) -> None:
    telemetry = await rig.start(replace(QUICK, stall_limit=60.0))
    await comes(lambda: telemetry.latest(rig.host.uuid(0)))
    process = psutil.Process(telemetry.process_id)
    rig.host.fault("hang", seconds=600.0)
    with pytest.raises(EnvironmentFault):
        await telemetry.look_again(0.1)
    begin = time.monotonic()
    await telemetry.close()
    assert not process.is_running()
    assert time.monotonic() - begin < 0.9  # by itself: it is killed after a second
