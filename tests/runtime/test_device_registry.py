"""The one writer of device states, over a telemetry, a process table and a memory that a test says."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import pytest

from poolmgr.core.claims import Violation
from poolmgr.errors import ClientError, EnvironmentFault, Reason
from poolmgr.model.claim import ClaimKind, ProcessFacts, RunningEngine
from poolmgr.model.device import Absence, DeviceState, DriverEvent, DriverEventKind, RingInfo
from poolmgr.model.device_health import DeviceNote, DeviceNoteName, Inadmissible
from poolmgr.runtime.bus import Bus, DeviceChange, Resync
from poolmgr.runtime.devices import DeviceOutside, DeviceRegistry
from poolmgr.runtime.tasks import Tasks
from poolmgr.testing.devices import FakeTelemetry, a_gpu, an_instance
from poolmgr.testing.fakes import FakeClock, InlineWorkers, settled

S, N = DeviceState, DeviceNoteName
HOUR = 3600.0


@dataclass
class TextMemory:
    """`fault` is raised by `save`; `held` keeps a save from ending until it is set."""

    text: str = ""
    fault: EnvironmentFault | None = None
    saves: int = 0

    def load(self) -> str:
        return self.text

    def save(self, text: str) -> None:
        if self.fault is not None:
            raise self.fault
        self.saves += 1
        self.text = text


@dataclass
class ProcessTable:
    facts: dict[int, ProcessFacts] = field(default_factory=dict)

    def look(self, pids: Collection[int]) -> Mapping[int, ProcessFacts]:
        return {pid: self.facts[pid] for pid in pids if pid in self.facts}


class Desk:
    """A registry that has started, and all that it told."""

    def __init__(self, *devices, memory: TextMemory | None = None, clock: FakeClock | None = None) -> None:
        self.clock = clock or FakeClock()
        self.telemetry = FakeTelemetry(self.clock, *devices)
        self.memory = memory or TextMemory()
        self.table = ProcessTable()
        self.engines: list[RunningEngine] = []
        self.failures: list[BaseException] = []
        self.tasks = Tasks(self.failures.append)
        self.bus = Bus(3)
        self.notes: list[DeviceNote] = []
        self.bus.listen_devices(self.notes.append)
        outside = DeviceOutside(self.telemetry, self.table, self.memory, InlineWorkers())
        self.registry = DeviceRegistry(outside, self.clock, self.bus, self.tasks)
        self.registry.engines = lambda: self.engines
        self.violations: list[Violation] = []
        self.away: list[str] = []
        self.registry.on_violation = self.violations.append
        self.registry.on_move_away = lambda device_id, reason: self.away.append(device_id)

    async def __aenter__(self) -> Desk:
        await self.registry.start()
        await settled()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.registry.close()
        await self.tasks.close()
        assert self.failures == []

    def state(self, device_id: str) -> DeviceState:
        return self.registry.device(device_id).view.state

    def xid(self, device_id: str, code: int = 79) -> None:
        self.telemetry.happen(DriverEvent(DriverEventKind.XID, device_id, self.clock.now(), code))

    def noted(self, name: DeviceNoteName) -> list[DeviceNote]:
        return [note for note in self.notes if note.name is name]


A, B = a_gpu(0).device_id, a_gpu(1).device_id


def two(**options) -> Desk:
    return Desk(a_gpu(0), a_gpu(1), **options)


# Reading and watching.


@pytest.mark.behaviour("DEV-2")
async def test_devices_are_read_in_order_and_by_whatever_names_them():
    gpu = replace(a_gpu(0), mig_mode=True)
    async with Desk(a_gpu(1), an_instance(gpu, 1), gpu, an_instance(gpu, 0)) as desk:
        shown = [one.view.device for one in desk.registry.devices()]
        assert [device.mig_slot or device.index for device in shown] == [0, "0.0", "0.1", 1]
        assert desk.registry.device("1").device_id == a_gpu(1).device_id
        assert desk.registry.device("0.1").view.device.mig_slot == "0.1"
        with pytest.raises(ClientError, match="there are 0 = ") as refused:
            desk.registry.device("7")
        assert refused.value.reason is Reason.DEVICE_NOT_FOUND


async def test_every_change_has_a_revision_of_its_own_and_what_is_the_same_has_none():
    async with two() as desk:
        first = desk.bus.revision
        desk.telemetry.show(a_gpu(0), a_gpu(1))
        assert desk.bus.revision == first
        desk.telemetry.show(a_gpu(0), replace(a_gpu(1), vram_free_bytes=5))
        desk.telemetry.show(a_gpu(0))
        batch = await anext(desk.bus.watch(first))
        assert not isinstance(batch, Resync)
        assert [change.revision for change in batch] == [first + 1, first + 2]
        assert all(isinstance(change, DeviceChange) and change.device_id == B for change in batch)
        assert desk.registry.device(B).revision == first + 2 and desk.state(B) is S.OFFLINE


@pytest.mark.behaviour("DEV-5")
async def test_reads_are_answered_while_the_driver_hangs_and_the_stall_is_told_once():
    async with two() as desk:
        desk.telemetry.stall(2.0, "nvmlDeviceGetTemperature")
        desk.registry.stalled(3.0, "nvmlDeviceGetTemperature")
        assert len(desk.registry.devices()) == 2 and desk.registry.claims() == []
        await desk.clock.advance(30.0)
        assert desk.registry.status().stalled_seconds == 32.0
        desk.telemetry.flow()
        assert desk.registry.status().stalled_seconds is None and desk.registry.status().stalls == 1
        (stalled,), (flows,) = desk.noted(N.STALLED), desk.noted(N.FLOWS)
        assert stalled.fields == {"seconds": 2.0, "call": "nvmlDeviceGetTemperature"}
        assert flows.fields["seconds"] == 32.0


@pytest.mark.behaviour("DEV-4")
async def test_a_host_without_devices_says_why_and_what_to_do():
    desk = Desk()
    desk.telemetry.show(absence=Absence.NO_LIBRARY, message="libnvidia-ml.so.1 is not there", advice="install it")
    async with desk:
        status = desk.registry.status()
        assert (status.devices, status.absence) == (0, Absence.NO_LIBRARY)
        assert (status.message, status.advice) == ("libnvidia-ml.so.1 is not there", "install it")
        (note,) = desk.noted(N.NO_DEVICES)
        assert note.fields["absence"] == "NO_LIBRARY" and note.fields["advice"] == "install it"


async def test_the_status_tells_of_the_ring_and_the_driver():
    desk = two()
    desk.telemetry.ring_info = RingInfo("/r", 1, 1, 1 << 20, 10.0, 600.0, (), (A, B), 5, 0.25)
    async with desk:
        await desk.clock.advance(4.0)
        status = desk.registry.status()
        assert (status.ring_depth, status.ring_bytes, status.ring_rate_hz) == (600.0, 1 << 20, 10.0)
        assert (status.heartbeat_age, status.discovery_age, status.driver_version) == (0.25, 4.0, "570.86.15")


# States over time.


@pytest.mark.behaviour("STATE-1")
async def test_a_quarantine_ends_by_itself_at_its_time():
    async with two() as desk:
        desk.xid(A)
        assert desk.state(A) is S.QUARANTINED and desk.away == [A]
        await desk.clock.advance(HOUR - 1)
        assert desk.state(A) is S.QUARANTINED
        await desk.clock.advance(1)
        assert desk.state(A) is S.PROBATION


@pytest.mark.behaviour("STATE-1")
async def test_a_probation_is_passed_by_an_engine_that_runs_well():
    async with two() as desk:
        desk.xid(A)
        await desk.clock.advance(HOUR)
        assert desk.registry.admits(A) is None
        desk.engines = [RunningEngine("e1", "chat", 10, (A,), desk.clock.now())]
        refused = desk.registry.admits(A)
        assert refused is not None and refused.reason is Inadmissible.PROBATION_BUSY
        assert desk.registry.admits(A, "e1") is None
        await desk.clock.advance(HOUR)
        assert desk.state(A) is S.ALLOCATED


async def test_a_device_that_was_away_between_two_looks_has_its_holders_again():
    async with two() as desk:
        desk.engines = [RunningEngine("e1", "chat", 10, (A,), 0.0)]
        await desk.clock.advance(2.0)
        desk.telemetry.show(a_gpu(1))
        assert desk.state(A) is S.OFFLINE
        desk.telemetry.show(a_gpu(0), a_gpu(1))
        assert desk.state(A) is S.ALLOCATED


# Claims.


@pytest.mark.behaviour("TEL-6")
async def test_processes_are_looked_at_every_two_seconds_and_put_down_to_their_owner():
    async with two() as desk:
        desk.engines = [RunningEngine("e1", "chat", 10, (A,), 0.0)]
        desk.telemetry.hold(A, 11, 4096)
        desk.telemetry.hold(B, 77, 100)
        desk.table.facts = {
            11: ProcessFacts(11, 1, engine_id="e1"),
            77: ProcessFacts(77, 1, user="ada", command="train"),
        }
        await desk.clock.advance(2.0)
        mine, other = desk.registry.claims()
        assert (mine.kind, mine.holder, mine.measured_bytes) == (ClaimKind.ENGINE, "chat", 4096)
        assert (other.kind, other.holder, other.user) == (ClaimKind.PROCESS, "train", "ada")
        assert desk.registry.device(B).view.claims == 1 and desk.state(B) is S.ALLOCATED
        desk.telemetry.let_go(B, 77)
        await desk.clock.advance(2.0)
        assert [claim.device_id for claim in desk.registry.claims()] == [A]


@pytest.mark.behaviour("TEL-6")
async def test_a_gpu_in_mig_mode_is_not_asked_for_the_processes_of_its_instances():
    gpu = replace(a_gpu(0), mig_mode=True)
    part = an_instance(gpu, 0)
    async with Desk(gpu, part) as desk:
        for device_id in (gpu.device_id, part.device_id):
            desk.telemetry.hold(device_id, 77, 100)
        await desk.clock.advance(2.0)
        assert [claim.device_id for claim in desk.registry.claims()] == [part.device_id]


@pytest.mark.behaviour("DEV-5")
async def test_claims_stay_as_they_were_while_the_driver_does_not_answer():
    async with two() as desk:
        desk.telemetry.hold(A, 77, 100)
        await desk.clock.advance(2.0)
        desk.telemetry._stalled = True  # nobody has noticed yet
        desk.telemetry.let_go(A, 77)
        await desk.clock.advance(10.0)
        assert len(desk.registry.claims()) == 1
        desk.telemetry.flow()
        await desk.clock.advance(4.0)
        assert desk.registry.claims() == []


@pytest.mark.behaviour("MASK-3")
async def test_an_engine_off_its_mask_is_told_of_once_until_another_runs_there():
    async with two() as desk:
        desk.engines = [RunningEngine("e1", "chat", 10, (A,), 0.0)]
        desk.telemetry.hold(B, 10, 512)
        await desk.clock.advance(10.0)
        assert [(v.pool_id, v.engine_id, v.device_id) for v in desk.violations] == [("chat", "e1", B)]
        (note,) = desk.noted(N.MASK_VIOLATION)
        assert note.device_id == B and note.fields == {"pool_id": "chat", "engine_id": "e1", "used_bytes": 512}
        desk.engines = [RunningEngine("e2", "chat", 10, (A,), 0.0)]
        await desk.clock.advance(2.0)
        assert [violation.engine_id for violation in desk.violations] == ["e1", "e2"]


@pytest.mark.behaviour("MASK-3")
async def test_an_engine_within_its_mask_is_left_alone():
    async with two() as desk:
        desk.engines = [RunningEngine("e1", "chat", 10, (A, B), 0.0)]
        desk.telemetry.hold(A, 10, 512)
        desk.telemetry.hold(B, 10, 512)
        await desk.clock.advance(10.0)
        assert desk.violations == [] and len(desk.registry.claims()) == 2


# Operators and what outlives the daemon.


@pytest.mark.behaviour("STATE-1")
async def test_a_cordon_is_durable_before_it_is_answered_and_outlives_the_daemon():
    async with two() as desk:
        published = await desk.registry.cordon("0", "new fan")
        assert published.view.cordon is not None and "new fan" in desk.memory.text
        refused = desk.registry.admits(A)
        assert refused is not None and refused.reason is Inadmissible.CORDONED
    async with two(memory=desk.memory, clock=desk.clock) as after:
        assert after.registry.admits(A) is not None and after.registry.admits(B) is None
        await after.registry.uncordon(A)
        assert after.registry.admits(A) is None and "new fan" not in after.memory.text


@pytest.mark.behaviour("STATE-1")
async def test_a_quarantine_outlives_the_daemon_with_the_time_that_is_left():
    async with two() as desk:
        desk.xid(A)
        await desk.clock.advance(HOUR / 2)
    later = FakeClock(5.0, desk.clock.wall(), "another boot")
    async with two(memory=desk.memory, clock=later) as after:
        assert after.state(A) is S.QUARANTINED
        await later.advance(HOUR / 2 - 1)
        assert after.state(A) is S.QUARANTINED
        await later.advance(1)
        assert after.state(A) is S.PROBATION


async def test_a_cordon_that_cannot_be_stored_is_refused_and_changes_nothing():
    fault = EnvironmentFault(Reason.STORE_UNAVAILABLE, "no space left")
    async with two() as desk:
        desk.memory.fault = fault
        before = desk.bus.revision
        with pytest.raises(EnvironmentFault, match="no space left"):
            await desk.registry.cordon(A, "new fan")
        assert desk.registry.admits(A) is None and desk.bus.revision == before


async def test_a_quarantine_holds_though_it_cannot_be_stored_and_is_stored_later():
    async with two() as desk:
        desk.memory.fault = EnvironmentFault(Reason.STORE_UNAVAILABLE, "no space left")
        desk.xid(A)
        await settled()
        assert desk.state(A) is S.QUARANTINED and len(desk.noted(N.NOT_STORED)) == 1
        desk.memory.fault = None
        desk.telemetry.show(a_gpu(0), a_gpu(1))
        await settled()
        assert "QUARANTINED" in desk.memory.text


async def test_a_caller_that_goes_away_leaves_a_cordon_that_is_whole():
    async with two() as desk:
        asking = asyncio.ensure_future(desk.registry.cordon(A, "new fan"))
        await asyncio.sleep(0)
        asking.cancel()
        await settled()
        assert asking.cancelled()
        assert (desk.registry.device(A).view.cordon is not None) == ("new fan" in desk.memory.text) is True


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 9, "devices": {}}', '{"version": 1, "devices": {"a": {}}}'])
async def test_a_memory_that_cannot_be_read_is_told_and_void(text):
    async with two(memory=TextMemory(text)) as desk:
        assert desk.registry.admits(A) is None
        assert "cannot be read" in str(desk.noted(N.NOT_STORED)[0].fields["message"])


async def test_nothing_is_written_while_there_is_nothing_to_remember():
    async with two() as desk:
        desk.telemetry.hold(A, 77, 100)
        await desk.clock.advance(100.0)
        assert desk.memory.saves == 0


@pytest.mark.behaviour("MASK-1")
async def test_a_mask_is_read_against_the_devices_that_are_there():
    async with two() as desk:
        assert desk.registry.parse_mask("1,0").device_ids == (B, A)
        desk.telemetry.show(a_gpu(0))
        with pytest.raises(ClientError, match="'1' names no device"):
            desk.registry.parse_mask("1")
