"""What stands between pools and GPUs, over a real registry and a telemetry that a test says."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from poolmgr.core.fault_domains import CUDA_FAILURES
from poolmgr.model.claim import ProcessFacts
from poolmgr.model.device import DeviceState
from poolmgr.model.pool import EngineName, PoolSpec
from poolmgr.runtime.device_gate import RELEASE_SECONDS, DeviceGate
from poolmgr.testing.devices import GIB, a_gpu
from poolmgr.testing.fakes import InlineWorkers, settled
from tests.runtime.test_device_registry import Desk

A, B = a_gpu(0).device_id, a_gpu(1).device_id
SPEC = PoolSpec(EngineName.COMMAND, command="/bin/engine")


def on(mask: str) -> PoolSpec:
    return replace(SPEC, device_mask=mask)


def gate_of(desk: Desk) -> DeviceGate:
    return DeviceGate(desk.registry, desk.telemetry, desk.table, InlineWorkers(), desk.clock)


def four() -> Desk:
    return Desk(a_gpu(0), a_gpu(1), a_gpu(2), a_gpu(3))


# Their memory.


async def ending(desk: Desk, gate: DeviceGate, pids: tuple[int, ...] = (7,)) -> asyncio.Future[None]:
    released = asyncio.ensure_future(gate.released("e1", (A,), pids))
    await settled()
    return released


@pytest.mark.behaviour("PROC-4")
async def test_memory_that_is_back_at_once_is_waited_for_no_longer():
    async with four() as desk:
        gate = gate_of(desk)
        await gate.starts("e1", (A,))
        assert (await ending(desk, gate)).done()
        assert desk.state(A) is DeviceState.AVAILABLE


@pytest.mark.behaviour("PROC-4")
async def test_memory_that_comes_back_late_is_waited_for_and_accuses_nobody():
    async with four() as desk:
        gate = gate_of(desk)
        desk.telemetry.hold(A, 7, 20 * GIB)
        released = await ending(desk, gate)
        await desk.clock.advance(3.0)
        assert not released.done()
        desk.telemetry.let_go(A, 7)
        await desk.clock.advance(0.3)
        assert released.done()
        assert desk.state(A) is not DeviceState.QUARANTINED


@pytest.mark.behaviour("PROC-4")
async def test_memory_that_is_never_given_back_quarantines_the_device_and_names_the_holder():
    async with four() as desk:
        gate = gate_of(desk)
        desk.telemetry.hold(A, 7, 20 * GIB)
        released = await ending(desk, gate)
        await desk.clock.advance(RELEASE_SECONDS + 1.0)
        assert released.done()
        view = desk.registry.device(A).view
        assert view.state is DeviceState.QUARANTINED
        assert f"{20 * GIB} bytes held by process 7" in view.state_reason and "e1" in view.state_reason


@pytest.mark.behaviour("PROC-4")
async def test_a_worker_that_is_dead_and_still_listed_is_waited_for_a_stranger_that_lives_is_not():
    async with four() as desk:
        gate = gate_of(desk)
        desk.table.facts[9] = ProcessFacts(9, 1, command="stranger")
        desk.telemetry.hold(A, 9, 30 * GIB)
        assert (await ending(desk, gate)).done()
        desk.telemetry.hold(A, 8, GIB)
        released = await ending(desk, gate)
        assert not released.done()
        desk.telemetry.let_go(A, 8)
        await desk.clock.advance(0.3)
        assert released.done()


@pytest.mark.behaviour("PROC-4", "DEV-5")
async def test_a_driver_that_does_not_answer_keeps_no_stop_from_ending_and_accuses_nobody():
    async with four() as desk:
        gate = gate_of(desk)
        desk.telemetry.hold(A, 7, 20 * GIB)
        desk.telemetry.stall()
        released = await ending(desk, gate)
        await desk.clock.advance(2.1)
        assert released.done()
        desk.telemetry.flow()
        await settled()
        assert desk.state(A) is not DeviceState.QUARANTINED


# Ends.


@pytest.mark.behaviour("LIVE-3")
async def test_an_end_soon_after_a_fault_of_its_device_is_the_devices_and_later_or_elsewhere_it_is_not():
    async with four() as desk:
        gate = gate_of(desk)
        assert gate.diagnose((A,)) is None
        desk.xid(A, 79)
        told = gate.diagnose((B, A))
        assert told.reason == "DEVICE_LOST" and "XID 79" in told.message and not told.permanent
        assert gate.diagnose((B,)) is None
        await desk.clock.advance(10.5)
        assert gate.diagnose((A,)) is None


@pytest.mark.behaviour("LIVE-3")
async def test_an_xid_of_the_application_is_not_a_lost_device():
    async with four() as desk:
        gate = gate_of(desk)
        desk.xid(A, 13)
        assert gate.diagnose((A,)) is None


@pytest.mark.behaviour("RST-3")
async def test_a_gpu_on_which_two_generations_fail_is_quarantined_and_one_of_several_is_not_guessed_at():
    async with four() as desk:
        gate = gate_of(desk)
        for _ in range(2 * CUDA_FAILURES):
            gate.failed((A, B), "a", 1, "CUDA_ERROR")
            gate.failed((A, B), "b", 1, "CUDA_ERROR")
        assert {desk.state(A), desk.state(B)} == {DeviceState.AVAILABLE}
        for pool_id in ("a", "b"):
            for _ in range(CUDA_FAILURES):
                gate.failed((A,), pool_id, 1, "CUDA_ERROR")
        assert desk.state(A) is DeviceState.QUARANTINED
        assert "pool a generation 1, pool b generation 1" in desk.registry.device(A).view.state_reason


@pytest.mark.behaviour("LIVE-2")
async def test_whether_a_gpu_works_is_known_from_fresh_samples_only():
    async with four() as desk:
        gate = gate_of(desk)
        assert gate.busy(()) is False
        assert gate.busy((A,)) is None
        desk.telemetry.sample(A, utilization_gpu=0.0)
        assert gate.busy((A,)) is False
        assert gate.busy((A, B)) is None
        desk.telemetry.sample(B, utilization_gpu=37.0)
        assert gate.busy((A, B)) is True
        await desk.clock.advance(6.0)
        assert gate.busy((A,)) is None


@pytest.mark.behaviour("PROC-4")
async def test_a_process_that_ends_while_an_engine_is_about_to_start_accuses_no_device_when_that_engine_has_ended():
    async with four() as desk:
        gate = gate_of(desk)
        desk.table.facts[9] = ProcessFacts(9, 1, command="another engine")
        desk.telemetry.hold(A, 9, 4 * GIB)
        listed = desk.telemetry.processes

        async def then_it_ends(devices, timeout):
            answer = await listed(devices, timeout)
            desk.telemetry.let_go(A, 9)  # between the list of processes and the free memory
            return answer

        desk.telemetry.processes = then_it_ends
        await gate.starts("e1", (A,))
        desk.telemetry.processes = listed
        released = await ending(desk, gate)
        await desk.clock.advance(RELEASE_SECONDS + 1.0)
        assert released.done() and desk.state(A) is not DeviceState.QUARANTINED
