"""The telemetry process and what minds it, with a driver that does what the test says."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import pytest_asyncio
import uvloop

from poolmgr.errors import EnvironmentFault, Reason
from poolmgr.model.device import Absence, DeviceProcess, DriverEventKind
from poolmgr.testing.devices import a_gpu, an_instance
from tests.adapters.telemetry_support import PATIENCE, QUICK, Rig, comes, told

ONE, TWO = a_gpu(0), a_gpu(1)


@pytest_asyncio.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    made = Rig(tmp_path, ONE, TWO)
    yield made
    await made.close()


@pytest.mark.behaviour("TEL-1", "DEV-1")
async def test_devices_are_known_when_start_returns_and_samples_follow(rig: Rig) -> None:
    telemetry = await rig.start()
    assert rig.heard.discoveries[0].devices == (ONE, TWO)
    assert rig.heard.discoveries[0].absence is None
    sample = await comes(lambda: telemetry.latest(TWO.device_id))
    assert sample.values == {"memory_used": 8.0, "temperature_gpu": 8.0}
    assert 0 <= sample.age < 5
    info = telemetry.ring()
    assert info is not None
    assert info.device_ids == (ONE.device_id, TWO.device_id)
    assert [(field.name, field.counter) for field in info.fields] == [
        ("memory_used", False),
        ("temperature_gpu", False),
    ]
    assert info.writer_pid == telemetry.process_id
    assert rig.rings() == [Path(info.path)]
    assert not rig.heard.stalls


@pytest.mark.behaviour("DEV-4")
@pytest.mark.parametrize(
    ("reason", "absence"),
    [
        ("NO_DRIVER", Absence.NO_DRIVER),
        ("DRIVER_MISMATCH", Absence.DRIVER_MISMATCH),
        ("NO_PERMISSION", Absence.NO_PERMISSION),
        ("A_NEW_ONE", Absence.FAILED),
    ],
)
async def test_a_driver_that_refuses_leaves_no_devices_a_reason_and_what_to_do(
    rig: Rig, reason: str, absence: Absence
) -> None:
    rig.script.says(absence=reason)
    telemetry = await rig.start()
    found = rig.heard.discoveries[-1]
    assert (found.devices, found.absence) == ((), absence)
    assert found.message and found.advice
    assert telemetry.latest(ONE.device_id) is None
    assert telemetry.ring() is None
    rig.script.says(absence=None)
    assert (await telemetry.look_again(PATIENCE)).devices == (ONE, TWO)
    await comes(lambda: telemetry.latest(ONE.device_id))


@pytest.mark.behaviour("DEV-4")
async def test_no_library_and_no_devices_are_two_things(rig: Rig) -> None:
    await rig.start(library="nowhere")
    assert rig.heard.discoveries[-1].absence is Absence.NO_LIBRARY
    rig.script.says(devices=[])
    await rig.start()
    assert rig.heard.discoveries[-1].absence is Absence.NO_DEVICES


async def test_who_holds_memory_and_what_is_free_is_asked_now_and_a_silent_device_is_absent(rig: Rig) -> None:
    held = [{"pid": 12, "used_bytes": 500, "kind": "compute"}, {"pid": 13, "used_bytes": None, "kind": "graphics"}]
    rig.script.says(processes={ONE.device_id: held}, silent=[TWO.device_id])
    telemetry = await rig.start()
    both = (ONE.device_id, TWO.device_id)
    expected = {ONE.device_id: (DeviceProcess(12, 500), DeviceProcess(13, None, graphics=True))}
    assert await telemetry.processes(both, PATIENCE) == expected
    assert await telemetry.free_memory(both, PATIENCE) == {ONE.device_id: ONE.vram_total_bytes - 500}


@pytest.mark.behaviour("DEV-5", "TEL-7")
async def test_a_call_that_hangs_is_seen_within_the_limit_and_the_process_replaced_with_a_new_ring(rig: Rig) -> None:
    telemetry = await rig.start()
    await comes(lambda: telemetry.latest(ONE.device_id))
    before, first = telemetry.ring(), telemetry.process_id
    assert before is not None
    rig.script.says(hangs=["sampler", "init"])
    stuck_at = rig.clock.now()
    await rig.heard.until(lambda: rig.heard.stalls)
    assert rig.clock.now() - stuck_at <= QUICK.stall_limit + 0.1
    assert telemetry.ring() is None
    old = telemetry.latest(ONE.device_id)
    assert old is None or old.age >= QUICK.stall_limit / 2
    await comes(lambda: telemetry.process_id not in (None, first))
    rig.script.says(hangs=None)
    await rig.heard.until(lambda: rig.heard.flows)
    after = telemetry.ring()
    assert after is not None
    assert after.epoch > before.epoch
    assert rig.rings() == [Path(after.path)]
    fresh = await comes(lambda: telemetry.latest(ONE.device_id))
    assert fresh.age < QUICK.stall_limit
    assert len(rig.heard.stalls) == rig.heard.flows == 1


@pytest.mark.behaviour("DEV-5")
async def test_nothing_on_the_loop_waits_for_a_driver_that_hangs(rig: Rig) -> None:
    telemetry = await rig.start()
    await comes(lambda: telemetry.latest(ONE.device_id))
    rig.script.says(hangs=["processes", "sampler", "init", "discover"])
    begin, longest = time.monotonic(), 0.0
    asked = asyncio.ensure_future(telemetry.processes((ONE.device_id,), 2.0))
    while not asked.done():
        before = time.monotonic()
        telemetry.latest(ONE.device_id)
        telemetry.ring()
        telemetry.statistics(ONE.device_id, "memory_used", 10)
        await asyncio.sleep(0)
        longest = max(longest, time.monotonic() - before)
    with pytest.raises(EnvironmentFault) as fault:
        await asked
    assert fault.value.reason is Reason.TELEMETRY_STALLED
    assert 1.9 < time.monotonic() - begin < 3.0
    assert longest < 0.25
    assert rig.heard.stalls


@pytest.mark.behaviour("DEV-5")
async def test_a_driver_that_hangs_from_the_start_does_not_hold_up_the_daemon(rig: Rig) -> None:
    rig.script.says(hangs=["init"])
    begin = rig.clock.now()
    telemetry = await rig.start()
    assert rig.clock.now() - begin < 2.0
    assert rig.heard.discoveries[-1].absence is Absence.STALLED
    assert rig.heard.stalls
    first = telemetry.process_id
    rig.script.says(hangs=None)
    await rig.heard.until(lambda: rig.heard.flows)
    assert telemetry.process_id == first  # it was slow, and no other was any faster
    assert rig.heard.discoveries[-1].devices == (ONE, TWO)


@pytest.mark.behaviour("TEL-7")
async def test_a_process_that_is_killed_is_followed_by_another_at_once(rig: Rig) -> None:
    telemetry = await rig.start()
    first = await comes(telemetry.ring)
    os.kill(first.writer_pid, signal.SIGKILL)
    await rig.heard.until(lambda: rig.heard.flows)
    assert "signal 9" in rig.heard.stalls[0][1]
    second = telemetry.ring()
    assert second is not None
    assert second.epoch > first.epoch
    assert second.writer_pid != first.writer_pid


@pytest.mark.behaviour("TEL-7")
@pytest.mark.parametrize(
    ("script", "said"),
    [
        ({"lies": ["sampler"]}, "time went back"),
        ({"ends": ["sampler"]}, "sampling has ended"),
        ({"fails": ["sampler"]}, "the sampler is broken"),
        ({"dies": ["sampler"]}, "exit code 7"),
    ],
)
async def test_a_writer_that_lies_or_fails_is_replaced_and_it_is_said_why(rig: Rig, script: dict, said: str) -> None:
    telemetry = await rig.start()
    first = await comes(telemetry.ring)
    await comes(lambda: telemetry._minder._watch.flowing)
    rig.script.says(**script)
    await rig.heard.until(lambda: rig.heard.stalls)
    assert said in rig.heard.stalls[0][1]
    rig.script.says(**dict.fromkeys(script))
    await comes(lambda: (ring := telemetry.ring()) is not None and ring.epoch > first.epoch)
    await rig.heard.until(lambda: rig.heard.flows)


@pytest.mark.behaviour("TEL-7")
@pytest.mark.parametrize(
    ("devices", "said"),
    [
        ([told(ONE) | {"vram_total_bytes": -1}], "makes no sense"),
        ([told(ONE), told(ONE)], "makes no sense"),
        ([{"name": "no id"}], "KeyError"),
    ],
    ids=["negative memory", "one twice", "no id"],
)
async def test_a_discovery_that_makes_no_sense_is_not_believed(rig: Rig, devices: list[dict], said: str) -> None:
    rig.script.says(devices=devices)
    await rig.start()
    assert rig.heard.discoveries[-1].devices == ()
    assert rig.heard.discoveries[-1].absence is Absence.FAILED
    assert said in rig.heard.stalls[0][1]


async def test_a_question_is_asked_again_of_the_process_that_follows(rig: Rig) -> None:
    telemetry = await rig.start()
    rig.script.says(hangs=["memory"])
    asked = asyncio.ensure_future(telemetry.free_memory((ONE.device_id,), PATIENCE))
    await rig.heard.until(lambda: rig.heard.stalls)
    assert rig.heard.stalls[0][1] == "memory"
    rig.script.says(hangs=None)
    assert await asked == {ONE.device_id: ONE.vram_total_bytes}


@pytest.mark.behaviour("DEV-2")
async def test_a_device_that_went_away_keeps_its_place_in_the_ring_and_comes_back_to_it(rig: Rig) -> None:
    telemetry = await rig.start()
    ring = await comes(telemetry.ring)
    rig.script.says(devices=[told(TWO)])
    assert (await telemetry.look_again(PATIENCE)).devices == (TWO,)
    rig.script.says(devices=[told(ONE), told(TWO)])
    assert (await telemetry.look_again(PATIENCE)).devices == (ONE, TWO)
    now = telemetry.ring()
    assert now is not None
    assert (now.epoch, now.device_ids) == (ring.epoch, ring.device_ids)


@pytest.mark.behaviour("DEV-5")
async def test_an_event_that_changes_devices_leads_to_a_look_and_new_ones_to_a_new_ring(rig: Rig) -> None:
    telemetry = await rig.start()
    before = await comes(telemetry.ring)
    instance = an_instance(ONE, 0)
    rig.script.says(devices=[told(replace(ONE, mig_mode=True)), told(instance), told(TWO)])
    rig.script.happen(kind="MIG_CONFIG", device_id=ONE.device_id)
    await rig.heard.until(lambda: instance in rig.heard.discoveries[-1].devices)
    assert rig.heard.events[0].kind is DriverEventKind.MIG_CONFIG
    after = await comes(lambda: (ring := telemetry.ring()) and ring.epoch > before.epoch and ring)
    assert instance.device_id in after.device_ids
    await comes(lambda: telemetry.latest(instance.device_id))
    assert not rig.heard.stalls


@pytest.mark.behaviour("TEL-4")
async def test_an_xid_is_told_with_its_device_code_and_time(rig: Rig) -> None:
    await rig.start()
    rig.script.happen(kind="XID", device_id=TWO.device_id, code=79)
    await rig.heard.until(lambda: rig.heard.events)
    (event,) = rig.heard.events
    assert (event.kind, event.device_id, event.code, event.source) == (
        DriverEventKind.XID, TWO.device_id, 79, "driver",
    )  # fmt: skip
    assert abs(rig.clock.now() - event.at) < 5


async def test_a_driver_that_goes_away_is_told_and_met_by_a_new_process(rig: Rig) -> None:
    telemetry = await rig.start()
    await comes(lambda: telemetry.latest(ONE.device_id))
    first = telemetry.process_id
    rig.script.says(absence="NO_DRIVER")
    assert (await telemetry.look_again(PATIENCE)).absence is Absence.NO_DRIVER
    await comes(lambda: telemetry.process_id not in (None, first))
    assert rig.heard.discoveries[-1].absence is Absence.NO_DRIVER


@pytest.mark.behaviour("TEL-1")
async def test_the_process_ends_with_its_daemon_even_while_the_driver_holds_it(rig: Rig) -> None:
    telemetry = await rig.start(replace(QUICK, stall_limit=60.0))
    process = psutil.Process(telemetry.process_id)
    rig.script.says(hangs=["memory", "sampler"])
    with pytest.raises(EnvironmentFault):
        await telemetry.free_memory((ONE.device_id,), 0.05)
    await telemetry.close()
    assert not process.is_running()
    assert list(rig.shared_memory.iterdir()) == []


@pytest.mark.behaviour("TEL-1")
async def test_rings_that_an_earlier_daemon_left_are_removed_and_epochs_go_on(rig: Rig) -> None:
    telemetry = await rig.start(epoch=3)
    old = await comes(telemetry.ring)
    Path(old.path).with_name("ring.1").write_bytes(b"of a daemon that was killed")
    next_daemon = await rig.start(epoch=4)
    new = await comes(next_daemon.ring)
    assert new.epoch > old.epoch
    assert rig.rings() == [Path(new.path)]


async def test_a_directory_of_somebody_else_is_not_written_to(rig: Rig) -> None:
    telemetry = rig.make()
    taken = Path(telemetry._place.path(1)).parent
    taken.rmdir()
    taken.symlink_to(rig.directory)
    mine = rig.directory / "ring.7"
    mine.touch()
    await telemetry.start(rig.heard)
    ring = await comes(telemetry.ring)
    assert Path(ring.path).parent == rig.directory / "telemetry"
    assert mine.exists()


@pytest.mark.behaviour("TEL-1")
async def test_the_process_inherits_no_environment_and_no_descriptors(rig: Rig) -> None:
    os.environ["POOLMGR_SECRET"] = "secret"
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    try:
        telemetry = await rig.start()
        process = psutil.Process(telemetry.process_id)
        assert set(process.environ()) <= {"SCRIPT", "EVENTS", "REAL_EXTENSION", "LC_CTYPE"}
        targets = []
        for fd in os.listdir(f"/proc/{process.pid}/fd"):
            with contextlib.suppress(FileNotFoundError):  # closed since, so it was its own
                targets.append(os.readlink(f"/proc/{process.pid}/fd/{fd}"))
        assert targets and os.readlink(f"/proc/self/fd/{writing}") not in targets
    finally:
        del os.environ["POOLMGR_SECRET"]
        os.close(reading)
        os.close(writing)


async def test_sixty_four_linked_devices_are_more_than_a_packet_and_told_whole(rig: Rig) -> None:
    many = [a_gpu(number) for number in range(64)]
    links = {gpu.device_id: [{"peer": peer.device_id, "kind": "NVLINK", "lanes": 18} for peer in many] for gpu in many}
    rig.script.says(devices=[told(gpu) | {"links": links[gpu.device_id]} for gpu in many])
    telemetry = await rig.start()
    assert len(rig.heard.discoveries[0].devices) == 64
    assert all(len(device.links) == 64 for device in rig.heard.discoveries[0].devices)
    await comes(lambda: telemetry.latest(many[63].device_id))


def test_all_of_it_goes_on_uvloop_as_it_does_on_asyncio(tmp_path: Path) -> None:
    async def live() -> None:
        rig = Rig(tmp_path, ONE)
        telemetry = await rig.start()
        first = await comes(telemetry.ring)
        rig.script.says(hangs=["sampler"])
        await rig.heard.until(lambda: rig.heard.stalls)
        rig.script.says(hangs=None)
        await rig.heard.until(lambda: rig.heard.flows)
        os.kill(telemetry.process_id or 0, signal.SIGKILL)
        await rig.heard.until(lambda: rig.heard.flows == 2)
        assert (await telemetry.look_again(PATIENCE)).devices == (ONE,)
        ring = telemetry.ring()
        assert ring is not None and ring.epoch >= first.epoch + 2
        await rig.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(live())


@pytest.mark.behaviour("TEL-1")
async def test_the_process_ends_with_a_daemon_that_is_killed_and_leaves_no_ring(rig: Rig) -> None:
    daemon = await asyncio.create_subprocess_exec(
        sys.executable, "-c", DAEMON, str(rig.directory), stdout=asyncio.subprocess.PIPE, cwd=os.getcwd()
    )  # fmt: skip
    assert daemon.stdout is not None
    line = await asyncio.wait_for(daemon.stdout.readline(), PATIENCE)
    process = psutil.Process(int(line))
    daemon.kill()
    await daemon.wait()
    await comes(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE)
    assert rig.rings() == []


DAEMON = """
import asyncio, json, pathlib, sys
from poolmgr.testing.devices import a_gpu
from tests.adapters.telemetry_support import Rig, comes

async def live(directory):
    rig = Rig(directory, a_gpu(0), a_gpu(1))
    telemetry = await rig.start()
    await comes(lambda: telemetry.latest(a_gpu(0).device_id))
    print(telemetry.process_id, flush=True)
    await asyncio.Event().wait()

asyncio.run(live(pathlib.Path(sys.argv[1])))
"""
