"""Processes that hold memory, and masks, as a driver shows them: real CUDA contexts on a real one (TEL-6, MASK-2)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from poolmgr_ext.nvml import Library
from poolmgr_ext.ring import RingReader
from poolmgr_ext.sampler import Sampler

from poolmgr.adapters.telemetry.decoding import discovery
from poolmgr.core import masks, vram
from poolmgr.core.vram import DeviceUse
from poolmgr.model.device import DeviceProcess
from tests.gpu.drivers import PATIENCE, DriverUnderTest, Holder

pytestmark = pytest.mark.behaviour("SIM-4")
MIB = 1 << 20
HELD_MIB = 512
CONTEXT_BYTES = 2 << 30  # the most that a context takes beside what is allocated
LOOK_SECONDS = 0.01


def comes(true: Callable[[], Any]) -> Any:
    """Waits for what a driver tells nobody."""
    until = time.monotonic() + PATIENCE
    while not (found := true()):
        assert time.monotonic() < until, "it did not come"
        time.sleep(LOOK_SECONDS)
    return found


@pytest.fixture
def devices(library: Library) -> list[dict[str, Any]]:
    """Those on which work can run."""
    return [each for each in library.discover()["devices"] if not each.get("mig_mode")]


@pytest.fixture
def hold(driver: DriverUnderTest) -> Iterator[Callable[..., Holder]]:
    """hold(visible) -> Holder that CUDA lets in. On a real driver without a CUDA that works nothing can be shown."""
    held: list[Holder] = []

    def start(visible: str | None = None) -> Holder:
        holder = driver.hold(visible)
        held.append(holder)
        if holder.refusal and driver.host is None:
            pytest.skip(f"gpu: CUDA cannot be used here: {holder.refusal}")
        assert not holder.refusal
        return holder

    yield start
    for holder in held:
        holder.__exit__()


def listed(library: Library, device_id: str) -> dict[int, int | None]:
    return {each["pid"]: each["used_bytes"] for each in library.processes(device_id)}


def use(library: Library, device_id: str) -> DeviceUse:
    memory = library.memory(device_id)
    processes = tuple(DeviceProcess(pid, used) for pid, used in listed(library, device_id).items())
    return DeviceUse(memory["total"], memory["free"], processes)


@pytest.mark.behaviour("TEL-6")
def test_a_process_that_holds_memory_is_listed_with_it_until_it_is_killed(driver, library, devices, hold, remark):
    gpu = devices[0]["device_id"]
    before, others = use(library, gpu), listed(library, gpu)
    assert before.free_bytes is not None
    holder = hold(gpu)
    holder.ask(f"alloc {HELD_MIB}")
    used = before.free_bytes - library.memory(gpu)["free"]
    assert HELD_MIB * MIB <= used <= HELD_MIB * MIB + CONTEXT_BYTES
    new = listed(library, gpu).keys() - others.keys()
    if driver.tells_our_pids:
        assert new == {holder.pid}
        held = listed(library, gpu)[holder.pid]
        assert held is None or HELD_MIB * MIB <= held <= HELD_MIB * MIB + CONTEXT_BYTES
        ours = {holder.pid}
    else:
        remark(f"in a process namespace of its own: {holder.pid} is listed as {sorted(new) or 'nothing'}")
        ours = set(new)
    holder.kill()
    start = time.monotonic()
    comes(lambda: vram.held(before, use(library, gpu), ours) is None)
    if driver.host is None:
        remark(f"{HELD_MIB} MiB of a killed process were free after {1000 * (time.monotonic() - start):.0f} ms")


@pytest.mark.behaviour("PROC-4")
def test_memory_that_has_not_come_back_is_seen_as_held(library, devices, hold):
    """While the process is there, the judge of PROC-4 must not call it free."""
    gpu = devices[0]["device_id"]
    before = use(library, gpu)
    holder = hold(gpu)
    holder.ask(f"alloc {HELD_MIB}")
    assert vram.held(before, use(library, gpu), {holder.pid}) is not None


def test_memory_given_back_is_free_at_once_in_a_process_that_goes_on(library, devices, hold):
    gpu = devices[0]["device_id"]
    holder = hold(gpu)
    before = library.memory(gpu)["used"]
    holder.ask(f"alloc {HELD_MIB}")
    during = library.memory(gpu)["used"]
    holder.ask("free")
    assert during - before >= HELD_MIB * MIB
    assert library.memory(gpu)["used"] <= before + vram.TOLERANCE_BYTES


@pytest.mark.behaviour("TEL-1")
def test_the_ring_has_the_process_in_its_side_table(driver, library, devices, hold, tmp_path: Path):
    gpu = devices[0]["device_id"]
    holder = hold(gpu)
    holder.ask(f"alloc {HELD_MIB}")
    sampler = Sampler(library, str(tmp_path / "ring"), 1, depth_seconds=10.0)
    sampler.sweep(2)
    with RingReader(tmp_path / "ring") as reader:
        assert dict(reader.processes(gpu)) == listed(library, gpu)
        if driver.tells_our_pids:
            assert holder.pid in dict(reader.processes(gpu))


@pytest.mark.behaviour("MASK-2", "MASK-3")
def test_a_process_with_a_mask_has_these_devices_and_the_driver_shows_it_nowhere_else(driver, library, devices, hold):
    known = discovery(library.discover(), 0.0, driver.scenario).devices
    gpus = [each["device_id"] for each in devices if "parent_device_id" not in each]
    for text in (
        str(devices[-1]["index"]) if "index" in devices[-1] else devices[-1]["device_id"],
        ",".join(gpus[::-1]),
    ):
        mask = masks.parse(text, known)
        holder = hold(masks.cuda_visible_devices(mask))
        assert holder.uuids == [device_id.partition("-")[2] for device_id in mask.device_ids]
        holder.ask("alloc 64")
        for device in devices:
            if driver.tells_our_pids:
                shown = holder.pid in listed(library, device["device_id"])
                assert shown == (device["device_id"] in mask.device_ids)
        holder.kill()


@pytest.mark.behaviour("MASK-2")
def test_an_instance_in_the_mask_is_the_one_device_of_the_process(driver, library, devices, hold):
    instances = [each for each in devices if "parent_device_id" in each]
    if driver.host is None and not instances:
        pytest.skip("gpu: no GPU of this host has MIG instances")
    assert instances
    holder = hold(instances[0]["device_id"])
    assert holder.uuids == [instances[0]["device_id"].partition("-")[2]]


@pytest.mark.behaviour("MASK-2")
def test_a_mask_of_nothing_leaves_cuda_without_a_device(driver, hold):
    hold()  # CUDA works, so that what follows is the mask's doing
    with driver.hold(masks.cuda_visible_devices(masks.parse("none", ()))) as holder:
        assert "NO_DEVICE" in holder.refusal


def test_cuda_tells_the_same_device_as_the_driver(devices, hold):
    for device in devices:
        holder = hold(device["device_id"])
        (seen,) = holder.told["devices"]
        assert seen["capability"] == device["compute_capability"]
        assert seen["total"] <= device["vram_total_bytes"]
        assert "parent_device_id" in device or seen["name"] == device["name"]
        holder.kill()


@pytest.mark.gpu
def test_load_shows_in_utilisation_and_power(driver, library, devices, hold, tmp_path: Path):
    """Only a real one: nothing computes on the simulated driver, which is why a rehearsal leaves it out."""
    gpu = devices[0]["device_id"]
    holder = hold(gpu)
    holder.ask(f"alloc {HELD_MIB}")
    fields = ("utilization_gpu", "power")
    sampler = Sampler(library, str(tmp_path / "ring"), 1, depth_seconds=10.0, device_ids=[gpu], fields=fields)
    with RingReader(tmp_path / "ring") as reader:

        def now() -> dict[str, float | None]:
            sampler.sweep(4)
            row = reader.latest(0)
            assert row is not None
            return dict(zip((field.name for field in reader.fields), row[1], strict=True))

        idle = now()
        holder.ask("load 2")
        busy = now()
    assert (busy["utilization_gpu"] or 0) > 50
    assert (busy["power"] or 0) > (idle["power"] or 0)
