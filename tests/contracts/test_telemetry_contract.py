"""What every Telemetry keeps to: the real one on the simulated driver and on a scripted one, and the fake."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from poolmgr_ext import calls

from poolmgr.adapters.system import SystemClock
from poolmgr.errors import EnvironmentFault, Reason
from poolmgr.model.device import Absence, Device, DeviceProcess, DriverEvent, DriverEventKind
from poolmgr.ports import Telemetry
from poolmgr.testing.devices import FakeTelemetry, a_gpu
from tests.adapters.telemetry_support import PATIENCE, Heard, Rig, Simulation, comes, told


@dataclass
class Stage:
    """A telemetry that has not started, and what a test can make its driver do. It has two devices."""

    telemetry: Telemetry
    heard: Heard
    one: str
    two: str
    field: str
    no_devices: Callable[[], None]
    hold: Callable[[str, int, int], None]  # device id, pid, bytes
    lose: Callable[[str], None]
    xid: Callable[[str, int], None]
    hang: Callable[[], None]
    recover: Callable[[], None]
    sampled: Callable[[], Awaitable[Any]]

    async def start(self) -> Telemetry:
        await asyncio.wait_for(self.telemetry.start(self.heard), PATIENCE)
        return self.telemetry


def fake_stage() -> Stage:
    gpus, heard = (a_gpu(0), a_gpu(1)), Heard()
    fake = FakeTelemetry(SystemClock(), *gpus)

    async def sampled() -> None:
        for _ in range(3):
            fake.sample(gpus[0].device_id, temperature=40.0)

    return Stage(
        fake,
        heard,
        *(gpu.device_id for gpu in gpus),
        field="temperature",
        no_devices=fake.show,
        hold=fake.hold,
        lose=lambda device_id: fake.show(*(gpu for gpu in gpus if gpu.device_id != device_id)),
        xid=lambda device_id, code: fake.happen(DriverEvent(DriverEventKind.XID, device_id, 0.0, code)),
        hang=fake.stall,
        recover=fake.flow,
        sampled=sampled,
    )


def scripted_stage(rig: Rig) -> Stage:
    telemetry, gpus, held = rig.make(), (a_gpu(0), a_gpu(1)), {}

    def hold(device_id: str, pid: int, used: int) -> None:
        held.setdefault(device_id, []).append({"pid": pid, "used_bytes": used, "kind": "compute"})
        rig.script.says(processes=held)

    def show(*devices: Device) -> None:
        rig.script.says(devices=[told(device) for device in devices])

    show(*gpus)
    return Stage(
        telemetry,
        rig.heard,
        *(gpu.device_id for gpu in gpus),
        field="memory_used",
        no_devices=show,
        hold=hold,
        lose=lambda device_id: show(*(gpu for gpu in gpus if gpu.device_id != device_id)),
        xid=lambda device_id, code: rig.script.happen(kind="XID", device_id=device_id, code=code),
        hang=lambda: rig.script.says(hangs=["sampler", "init", "processes", "memory", "discover"]),
        recover=lambda: rig.script.says(hangs=None),
        sampled=lambda: comes(lambda: len(telemetry.history(gpus[0].device_id, "memory_used", 10)) >= 3),
    )


def simulated_stage(simulation: Simulation) -> Stage:
    telemetry, uuids = simulation.make(), simulation.host.uuids()
    fields = [field.name for call in calls.TABLE for field in call.fields if field.name.startswith("temperature")]
    return Stage(
        telemetry,
        simulation.heard,
        *uuids,
        field=fields[0],
        no_devices=lambda: simulation.host.fault("no-devices"),
        hold=simulation.host.process_take,
        lose=lambda device_id: simulation.host.fault("removed", device_id),
        xid=simulation.host.xid,
        hang=lambda: simulation.host.fault("hang", seconds=600.0),
        recover=lambda: simulation.host.fault("clear"),
        sampled=lambda: comes(lambda: len(telemetry.history(uuids[0], fields[0], 10)) >= 3),
    )


@pytest_asyncio.fixture(params=["simulated", "scripted", "fake"])
async def stage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Stage]:
    rig: Rig = Simulation(tmp_path, "2xA100-80GB") if request.param == "simulated" else Rig(tmp_path)
    if request.param == "fake":
        made = fake_stage()
    else:
        made = simulated_stage(rig) if isinstance(rig, Simulation) else scripted_stage(rig)
    yield made
    made.recover()
    await made.telemetry.close()
    await rig.close()


@pytest.mark.behaviour("DEV-5")
async def test_start_returns_with_the_first_discovery_told(stage: Stage) -> None:
    await stage.start()
    (found,) = stage.heard.discoveries
    assert [device.device_id for device in found.devices] == [stage.one, stage.two]
    assert (found.absence, found.message) == (None, "")
    assert found.driver_version


@pytest.mark.behaviour("DEV-4")
async def test_a_host_without_devices_is_no_error_and_says_why(stage: Stage) -> None:
    stage.no_devices()
    await stage.start()
    assert stage.heard.discoveries[-1].devices == ()
    assert stage.heard.discoveries[-1].absence is Absence.NO_DEVICES
    assert stage.heard.discoveries[-1].message


async def test_who_holds_memory_is_told_for_each_device_that_answers_and_for_no_other(stage: Stage) -> None:
    telemetry = await stage.start()
    asked = (stage.one, stage.two, "GPU-unknown")
    before = await telemetry.free_memory(asked, PATIENCE)
    assert set(before) == {stage.one, stage.two}
    stage.hold(stage.one, os.getpid(), 1 << 20)
    expected = {stage.one: (DeviceProcess(os.getpid(), 1 << 20),), stage.two: ()}
    assert {name: tuple(held) for name, held in (await telemetry.processes(asked, PATIENCE)).items()} == expected
    after = await telemetry.free_memory(asked, PATIENCE)
    assert after == {stage.one: before[stage.one] - (1 << 20), stage.two: before[stage.two]}
    stage.lose(stage.two)
    assert set(await telemetry.processes(asked, PATIENCE)) == {stage.one}
    assert set(await telemetry.free_memory(asked, PATIENCE)) == {stage.one}


@pytest.mark.behaviour("DEV-5")
async def test_a_look_that_was_asked_for_is_returned_and_told(stage: Stage) -> None:
    telemetry = await stage.start()
    stage.lose(stage.one)
    found = await telemetry.look_again(PATIENCE)
    assert [device.device_id for device in found.devices] == [stage.two]
    assert stage.heard.discoveries[-1].devices == found.devices


@pytest.mark.behaviour("DEV-5")
async def test_what_is_asked_of_a_driver_that_hangs_fails_at_its_deadline_and_is_answered_once_it_comes_back(
    stage: Stage,
) -> None:
    telemetry = await stage.start()
    stage.hang()
    for ask in (telemetry.processes, telemetry.free_memory):
        with pytest.raises(EnvironmentFault) as fault:
            await ask((stage.one,), 0.05)
        assert fault.value.reason is Reason.TELEMETRY_STALLED
    with pytest.raises(EnvironmentFault):
        await telemetry.look_again(0.05)
    await stage.heard.until(lambda: stage.heard.stalls)
    waiting = asyncio.ensure_future(telemetry.free_memory((stage.one,), PATIENCE))
    stage.recover()
    assert set(await waiting) == {stage.one}
    await stage.heard.until(lambda: stage.heard.flows)
    assert len(stage.heard.stalls) == 1


@pytest.mark.behaviour("TEL-4")
async def test_what_the_driver_tells_is_heard(stage: Stage) -> None:
    await stage.start()
    stage.xid(stage.two, 31)
    await stage.heard.until(lambda: stage.heard.events)
    (event,) = stage.heard.events
    assert (event.kind, event.device_id, event.code) == (DriverEventKind.XID, stage.two, 31)


@pytest.mark.behaviour("TEL-3", "TEL-7")
async def test_samples_have_an_age_and_a_history_in_order(stage: Stage) -> None:
    telemetry = await stage.start()
    await stage.sampled()
    sample = telemetry.latest(stage.one)
    assert sample is not None
    assert sample.device_id == stage.one
    assert 0 <= sample.age < PATIENCE
    history = telemetry.history(stage.one, stage.field, 60)
    assert [at for at, _ in history] == sorted(at for at, _ in history)
    values = sorted(value for _, value in history)
    assert values[0] <= sample.values[stage.field] <= values[-1]
    quantiles = telemetry.quantiles(stage.one, stage.field, 60)
    assert list(quantiles) == [0.5, 0.95, 0.99]
    assert values[0] <= quantiles[0.5] <= quantiles[0.95] <= quantiles[0.99]


@pytest.mark.behaviour("TEL-3")
@pytest.mark.parametrize("stage", ["simulated", "fake"], indirect=True)  # the script's sampler makes none
async def test_the_statistics_of_a_window_are_told_by_their_names(stage: Stage) -> None:
    telemetry = await stage.start()
    await stage.sampled()
    found = await comes(lambda: telemetry.statistics(stage.one, stage.field, 10))
    assert found.window == 10
    assert found.count > 0
    assert found.minimum <= found.mean <= found.maximum
    assert found.minimum <= found.last <= found.maximum
    assert found.standard_deviation <= found.maximum - found.minimum


async def test_what_was_never_sampled_is_nothing(stage: Stage) -> None:
    telemetry = await stage.start()
    await stage.sampled()
    assert telemetry.latest("GPU-unknown") is None
    for device_id, field in (("GPU-unknown", stage.field), (stage.one, "flavour")):
        assert telemetry.statistics(device_id, field, 10) is None
        assert not telemetry.history(device_id, field, 10)
        assert not telemetry.quantiles(device_id, field, 10)


async def test_after_its_end_there_is_no_ring_and_nothing_is_told(stage: Stage) -> None:
    telemetry = await stage.start()
    await telemetry.close()
    assert telemetry.ring() is None
    told_before = len(stage.heard.discoveries)
    stage.lose(stage.one)
    assert len(stage.heard.discoveries) == told_before
