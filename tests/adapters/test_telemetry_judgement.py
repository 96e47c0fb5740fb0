"""How the telemetry process is judged and followed, step by step: what needs no process, and no time that passes."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from poolmgr.adapters.telemetry import decoding
from poolmgr.adapters.telemetry.heartbeat import LOOKS_PER_LIMIT, Watch
from poolmgr.adapters.telemetry.merging import WAIT_SECONDS, Merger
from poolmgr.adapters.telemetry.minder import Minder
from poolmgr.adapters.telemetry.process import kernel_log, wire
from poolmgr.adapters.telemetry.questions import MAX_QUESTIONS, Questions
from poolmgr.adapters.telemetry.replacing import MAX_UNDEAD, STABLE_SECONDS, Replacing
from poolmgr.adapters.telemetry.rings import Place
from poolmgr.errors import EnvironmentFault, Reason
from poolmgr.model.device import Absence, Discovery, DriverEvent, DriverEventKind, LinkKind, RecoveryAction
from poolmgr.model.settings import TelemetrySettings
from poolmgr.testing.devices import a_gpu
from poolmgr.testing.fakes import FakeClock, settled
from tests.adapters.telemetry_support import told

ONE = a_gpu(0)


# The heartbeat


def beat(watch: Watch, beats: int, until: float, rate: float = 10.0) -> list[str]:
    """What is found wrong while a writer beats and somebody looks on time. `until`: seconds from 1000."""
    wrong = []
    for look in range(1, int(until / watch.interval) + 1):
        now = 1000.0 + look * watch.interval
        watch.attend(now)
        done = min(beats, int((now - 1000.0) * rate))
        found = watch.look(done, 1000.0 + done / rate if done else 0.0)
        if found:
            wrong.append(found)
    return wrong


@pytest.mark.behaviour("TEL-7")
def test_a_writer_that_beats_is_never_found_wrong() -> None:
    watch = Watch(2.0, 1000.0)
    assert beat(watch, 10**9, 600.0) == []
    assert watch.flowing
    assert watch.age < 0.2


@pytest.mark.behaviour("DEV-5", "TEL-7")
@pytest.mark.parametrize("beats", [0, 1, 7, 19])
def test_a_writer_that_stops_is_seen_within_the_limit_after_its_last_beat(beats: int) -> None:
    last = beats / 10
    assert beat(Watch(2.0, 1000.0), beats, last + 2.0 - 2.0 / LOOKS_PER_LIMIT - 0.26) == []
    watch = Watch(2.0, 1000.0)
    assert beat(watch, beats, last + 2.0)
    assert not watch.flowing


@pytest.mark.behaviour("TEL-7")
@pytest.mark.parametrize(
    ("sequence", "at", "said"),
    [(11, 999.0, "went back by"), (9, 1001.0, "sequence went back"), (11, 1003.0, "ahead")],
)
def test_a_writer_whose_numbers_cannot_be_is_lying(sequence: int, at: float, said: str) -> None:
    watch = Watch(2.0, 1000.0)
    watch.attend(1000.9)
    assert watch.look(10, 1000.9) is None
    watch.attend(1001.0)
    assert said in (watch.look(sequence, at) or "")


@pytest.mark.behaviour("TEL-7")
def test_a_sequence_that_is_stuck_while_its_time_moves_is_a_lie_and_one_read_between_two_writes_is_none() -> None:
    watch = Watch(2.0, 1000.0)
    found = []
    for look in range(1, 8):
        now = 1000.0 + look * 0.25
        watch.attend(now)
        found.append(watch.look(5, now))
    assert found[:2] == [None, None]
    assert "stuck" in str(found[-1])
    honest = Watch(2.0, 1000.0)
    for look in range(1, 40):
        now = 1000.0 + look * 0.25
        honest.attend(now)
        assert honest.look(look // 2, now) is None


@pytest.mark.behaviour("TEL-7")
def test_a_daemon_that_was_away_itself_gives_the_writer_a_chance_to_show_up() -> None:
    watch = Watch(2.0, 1000.0)
    watch.attend(1000.25)
    assert watch.look(1, 1000.2) is None
    watch.attend(1030.0)
    assert watch.look(1, 1000.2) is None
    watch.attend(1030.25)
    assert watch.look(2, 1030.2) is None
    assert watch.flowing
    away = Watch(2.0, 1000.0)
    away.attend(1030.0)
    assert away.look(1, 1000.2) is None
    for look in range(1, 9):
        away.attend(1030.0 + look * 0.25)
        found = away.look(1, 1000.2)
    assert found is not None


# The next process


@pytest.mark.behaviour("DEV-5")
def test_the_first_failure_is_made_good_at_once_and_later_ones_wait_longer_and_longer() -> None:
    replacing = Replacing()
    delays = [replacing.failed(1000.0 + n) for n in range(12)]
    assert delays[:5] == [0.0, 1.0, 2.0, 4.0, 8.0]
    assert delays == sorted(delays)
    assert delays[-1] == 300.0
    replacing.flows(2000.0)
    assert replacing.failed(2000.0 + STABLE_SECONDS - 1) == 300.0
    replacing.flows(3000.0)
    replacing.flows(3000.0 + STABLE_SECONDS)
    assert replacing.failed(3000.0 + STABLE_SECONDS) == 0.0


class FakeChild:
    """Takes what it is told; `answers` says what it does about it."""

    def __init__(self, pid: int, hear: Callable[[wire.Message], None], answers: Callable[[wire.Message], Any]) -> None:
        self.pid = pid
        self.gone = asyncio.Event()
        self.killed = False
        self._hear, self._answers = hear, answers

    def send(self, message: wire.Message) -> bool:
        answer = self._answers(message)
        if answer is not None:
            asyncio.get_running_loop().call_soon(self._hear, {"answer": message["id"], **answer})
        return True

    def hang_up(self) -> None:
        self.gone.set()

    def kill(self) -> None:
        self.killed = True


class FakeOwner:
    def __init__(self) -> None:
        self.told: list[str] = []

    def looked(self, answer: Any) -> Discovery:
        self.told.append("looked")
        return decoding.discovery(answer, 0.0, "")

    def happened(self, message: wire.Message) -> None:
        self.told.append(message["event"])

    def failing(self, seconds: float, what: str, *, hung: bool) -> None:
        self.told.append(f"failing {what}")

    def flowing(self) -> None:
        self.told.append("flowing")


class Minded:
    """A minder of children that a test makes up."""

    def __init__(self, directory: Path, answers: Callable[[wire.Message], Any], *, die: bool = True) -> None:
        self.clock, self.owner = FakeClock(), FakeOwner()
        self.children: list[FakeChild] = []
        self._answers, self._die = answers, die
        place = Place(directory, directory)
        self.minder = Minder(
            self.clock, TelemetrySettings(), place, itertools.count(1), self._launch, {"op": "hello"}, self.owner
        )

    async def _launch(self, hear: Callable[[wire.Message], None], ended: Callable[[str], None]) -> FakeChild:
        if self._die:
            for child in self.children:
                child.gone.set()
        self.children.append(FakeChild(len(self.children) + 1, hear, self._answers))
        return self.children[-1]


@pytest.mark.behaviour("DEV-5")
async def test_a_driver_that_hangs_for_an_hour_costs_a_dozen_processes_and_is_told_of_at_once(tmp_path: Path) -> None:
    world = Minded(tmp_path, lambda message: None)
    world.minder.start()
    await world.clock.advance(2.0)
    assert world.owner.told[0] == "failing discover"
    await world.clock.advance(3600.0)
    assert 3 <= len(world.children) <= 12
    assert all(child.killed for child in world.children[:-1])
    world._answers = None  # type: ignore[assignment]
    await world.minder.close()


@pytest.mark.behaviour("DEV-5")
async def test_processes_that_cannot_be_killed_do_not_pile_up(tmp_path: Path) -> None:
    world = Minded(tmp_path, lambda message: None, die=False)
    world.minder.start()
    await world.clock.advance(3 * 3600.0)
    assert len(world.children) == MAX_UNDEAD
    world.children[0].gone.set()
    await world.clock.advance(20.0)
    assert len(world.children) == MAX_UNDEAD + 1
    world.children[-1].gone.set()
    await world.minder.close()


@pytest.mark.behaviour("DEV-5")
async def test_discovery_repeats_every_ten_seconds_and_a_storm_of_events_does_not_hasten_it_beyond_once_a_second(
    tmp_path: Path,
) -> None:
    answered = {"error": {"reason": "NO_DEVICES", "message": "none"}}
    world = Minded(tmp_path, lambda message: answered if message["op"] == "discover" else None)
    world.minder.start()
    await world.clock.advance(60.0)
    assert 6 <= world.owner.told.count("looked") <= 8
    world.owner.told.clear()
    for _ in range(100):
        world.minder.look_soon()
        await world.clock.advance(0.1)
    assert 9 <= world.owner.told.count("looked") <= 11
    assert not [said for said in world.owner.told if said.startswith("failing")]
    world.children[-1].gone.set()
    await world.minder.close()


# Questions


async def test_a_question_that_is_not_answered_fails_at_its_deadline_and_goes_on_to_be_owed() -> None:
    clock, sent = FakeClock(), []
    questions = Questions(clock, lambda message: not sent.append(message))  # type: ignore[func-returns-value]
    asked = asyncio.ensure_future(questions.ask("memory", 0.5))
    await clock.advance(0.4)
    assert not asked.done()
    await clock.advance(0.2)
    with pytest.raises(EnvironmentFault) as fault:
        await asked
    assert fault.value.reason is Reason.TELEMETRY_STALLED
    assert questions.oldest() == (1000.0, "memory")
    assert sent[0]["deadline"] == 1000.5
    questions.answered({"answer": sent[0]["id"], "late": True})
    assert questions.oldest() is None


async def test_an_answer_to_no_question_is_an_error_and_questions_have_a_limit() -> None:
    questions = Questions(FakeClock(), lambda message: True)
    with pytest.raises(ValueError, match="no question"):
        questions.answered({"answer": 1})
    asked = [asyncio.ensure_future(questions.ask("memory", 5.0)) for _ in range(MAX_QUESTIONS)]
    await settled()
    with pytest.raises(EnvironmentFault, match="64 questions"):
        await questions.ask("memory", 5.0)
    for task in asked:
        task.cancel()
    await asyncio.gather(*asked, return_exceptions=True)


# Events


def xid(source: str, code: int = 79, device_id: str | None = ONE.device_id, **more: Any) -> DriverEvent:
    return DriverEvent(DriverEventKind.XID, device_id, 1000.0, code, source=source, **more)


@pytest.mark.behaviour("TEL-4")
@pytest.mark.parametrize("first", ["driver", "kernel-log"])
async def test_an_xid_that_both_sources_tell_is_one_event_and_names_the_process(first: str) -> None:
    clock, heard = FakeClock(), []
    merger = Merger(clock, heard.append)
    merger.has_log = True
    both = [xid("driver"), xid("kernel-log", pid=12)]
    for event in sorted(both, key=lambda event: event.source != first):
        merger.add(event)
    await clock.advance(1.0)
    assert [event.pid for event in heard] == [12]
    merger.add(xid("driver"))
    merger.add(xid("driver", 31))
    assert len(heard) == 1
    await clock.advance(WAIT_SECONDS)
    assert [event.code for event in heard] == [79, 79, 31]


@pytest.mark.behaviour("TEL-4")
async def test_without_a_log_an_xid_waits_for_nothing() -> None:
    heard: list[DriverEvent] = []
    Merger(FakeClock(), heard.append).add(xid("driver"))
    assert len(heard) == 1


@pytest.mark.behaviour("TEL-4")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "NVRM: Xid (PCI:0000:3b:00): 79, pid=1234, name=python, GPU has fallen off the bus.",
            {"code": 79, "pci": "0000:3b:00", "pid": 1234},
        ),
        ("NVRM: Xid (PCI:0000:3b:00): 79, pid='<unknown>', name=<unknown>, GPU has", {"code": 79, "pci": "0000:3b:00"}),
        ("[ 12.3] NVRM: Xid (0000:03:00): 14, Channel 00000001", {"code": 14, "pci": "0000:03:00"}),
        (
            "NVRM: Xid (PCI:0000:3B:00 GPU-I:05): 31, pid=7, name=a, Ch 0000000b",
            {"code": 31, "pci": "0000:3b:00", "pid": 7},
        ),
        ("NVRM: Xid (PCI:0000:3b:00): 154, GPU recovery action changed", {"code": 154, "pci": "0000:3b:00"}),
        ("NVRM: Xid (PCI:0000:3b:00): 48", {"code": 48, "pci": "0000:3b:00"}),
    ],
)
def test_an_xid_is_read_in_a_line_of_the_kernels_log(text: str, expected: dict[str, Any]) -> None:
    event = kernel_log.parse(text)
    assert event is not None
    assert {key: event[key] for key in event if key in ("code", "pci", "pid")} == expected
    assert (event["kind"], event["source"]) == ("XID", "kernel-log")


@pytest.mark.behaviour("TEL-4")
@pytest.mark.parametrize(
    "text",
    [
        "NVRM: GPU at PCI:0000:3b:00: GPU-b850f46d",
        "usb 1-1: new device",
        "NVRM: Xid (PCI:0000:3b:00): many",
        "",
        "\x00",
    ],
)
def test_other_lines_are_no_xids(text: str) -> None:
    assert kernel_log.parse(text) is None


@pytest.mark.behaviour("TEL-4")
def test_the_kernels_log_is_read_from_now_on_and_timed_on_the_boot_clock(tmp_path: Path) -> None:
    file = tmp_path / "kmsg"
    old = b"6,1,1000000,-;NVRM: Xid (PCI:0000:3b:00): 13, pid=1, name=old\n"
    file.write_bytes(old)
    log = kernel_log.KernelLog(str(file))
    with file.open("ab") as more:
        more.write(b"6,2,2000000,-;NVRM: Xid (PCI:0000:3b:00): 79, pid=2, name=new\n SUBSYSTEM=pci\n")
    (event,) = log.events_of(1)
    assert event["code"] == 79
    assert event["at"] == pytest.approx(2.0 + suspended(), abs=0.5)


def suspended() -> float:
    """Seconds that this boot has slept."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()


@pytest.mark.behaviour("TEL-4")
def test_the_kernels_log_names_a_device_by_its_pci_address() -> None:
    message = {"kind": "XID", "pci": "0000:01:00", "code": 79, "at": 1000.0, "source": "kernel-log"}
    assert decoding.event(message, (ONE, a_gpu(1)), 1000.0).device_id == ONE.device_id
    assert decoding.event(message | {"pci": "0000:77:00"}, (ONE,), 1000.0).device_id is None
    assert decoding.event(message | {"pci": "nonsense"}, (ONE,), 1000.0).device_id is None


# Messages


@pytest.mark.parametrize("size", [0, 1, 48 * 1024 - 20, 48 * 1024, 200_000])
def test_a_message_of_any_size_comes_together_again(size: int) -> None:
    message = {"text": "x" * size}
    assembly = wire.Assembly()
    packets = wire.encode(message)
    assert [assembly.add(packet) for packet in packets[:-1]] == [None] * (len(packets) - 1)
    assert assembly.add(packets[-1]) == message
    assert assembly.add(wire.encode({"next": 1})[0]) == {"next": 1}


def test_what_is_no_message_is_an_error() -> None:
    with pytest.raises(ValueError, match="bytes"):
        wire.encode({"text": "x" * wire.MESSAGE_BYTES})
    for packet in (b".[1]", b".{", b"?{}", b"."):
        with pytest.raises(ValueError):  # noqa: PT011 - json's own message
            wire.Assembly().add(packet)
    assembly, part = wire.Assembly(), b"+" + b"x" * 40_000
    for _ in range(wire.MESSAGE_BYTES // 40_000):
        assembly.add(part)
    with pytest.raises(ValueError, match="packet"):
        assembly.add(part)


@pytest.mark.behaviour("DEV-1")
def test_a_device_is_told_whole_and_what_is_not_known_stays_unknown() -> None:
    raw = told(ONE) | {
        "links": [{"peer": "GPU-b", "kind": "NVLINK", "lanes": 12, "bytes_per_second": 3e11}],
        "recovery_action": "DRAIN_AND_RESET",
        "a_field_of_a_later_version": 1,
    }
    (device,) = decoding.discovery({"devices": json.loads(json.dumps([raw]))}, 5.0, "").devices
    assert device.links[0].kind is LinkKind.NVLINK
    assert device.recovery_action is RecoveryAction.DRAIN_AND_RESET
    (bare,) = decoding.discovery({"devices": [{"device_id": "GPU-x", "name": "n", "ecc_mode": None}]}, 5.0, "").devices
    assert (bare.ecc_mode, bare.vram_total_bytes, bare.index, bare.links) == (None, None, None, ())


@pytest.mark.parametrize(
    "change",
    [
        {"index": "0"}, {"vram_total_bytes": 1.5}, {"mig_mode": 1}, {"power_limit_watts": float("nan")},
        {"recovery_action": "EXPLODE"}, {"compute_capability": [8]}, {"links": [{"peer": 3, "kind": "NVLINK"}]},
        {"links": [{"peer": "a", "kind": "ROPE"}]}, {"name": None}, {"device_id": ""},
    ],
)  # fmt: skip
def test_a_device_that_makes_no_sense_is_an_error(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - each its own
        decoding.discovery({"devices": [told(ONE) | change]}, 5.0, "")


@pytest.mark.behaviour("DEV-4")
def test_each_absence_of_the_driver_says_what_to_do_and_a_simulated_one_that_it_is_played() -> None:
    for absence in Absence:
        if absence is not Absence.NOT_LOOKED:
            assert decoding.absent(absence, "", 0.0, "").advice
            assert "'8xA100'" in decoding.absent(absence, "", 0.0, "8xA100").advice
