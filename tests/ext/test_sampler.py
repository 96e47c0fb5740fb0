"""The sampling loop, against a driver of which every answer is set: cadences, losses, counters, statistics, pace."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from poolmgr_ext import nvml
from poolmgr_ext.nvml import NvmlError
from poolmgr_ext.ring import RingReader
from poolmgr_ext.sampler import CALL_NAMES, FIELDS, Sampler

from tests.ext.stub_driver import GPU_IS_LOST, NOT_SUPPORTED, UNKNOWN, Stub

SECOND = 10**9
EVERY_SWEEP = dict.fromkeys([field.name for field in FIELDS], 0.0)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "ring.1")


def values(reader: RingReader, column: int | str = 0) -> dict[str, float | None]:
    found = reader.latest(column)
    assert found is not None
    return dict(zip([field.name for field in reader.fields], found[1], strict=True))


@contextmanager
def running(sampler: Sampler) -> Iterator[threading.Thread]:
    thread = threading.Thread(target=sampler.run, daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        sampler.stop()
        thread.join(10)
        assert not thread.is_alive()


def wait_for(what: Callable[[], bool], seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    pause = threading.Event()
    while not what():
        assert time.monotonic() < until, "it did not happen"
        pause.wait(0.005)


@pytest.mark.behaviour("TEL-2")
def test_every_field_of_the_table_reaches_the_ring_in_its_unit(stub: Stub, path: str) -> None:
    told = {
        "memory": 3 << 30,
        "clock": 1000,
        "temperature": 61,
        "power": 250_500,
        "utilization": 90 + (40 << 32),
        "encoder": 5,
        "decoder": 6,
        "clock_reasons": 0x44,
        "pstate": 2,
        "fields": 33,
        "power_limit": 700_000,
        "energy": 12_345,
        "fan": 30,
        "replays": 4,
        "ecc": 1,
        "retired": 8,
        "remapped": 9,
        "throughput": 50,
    }
    for call, value in told.items():
        stub.value(call, 0, value)
    stub.processes([7, 8])
    sampler = Sampler(stub.library(1), path, 1)
    sampler.sweep(1)
    with RingReader(path) as reader:
        assert {field.name for field in reader.fields} == {field.name for field in FIELDS}
        assert values(reader) == {
            "memory_total": 80 << 30,
            "memory_free": 77 << 30,
            "memory_used": 3 << 30,
            "clock_graphics": 1000,
            "clock_sm": 1001,
            "clock_memory": 1002,
            "clock_video": 1003,
            "temperature": 61,
            "power": 250.5,
            "utilization_gpu": 90,
            "utilization_memory": 40,
            "utilization_encoder": 5,
            "utilization_decoder": 6,
            "throttle_reasons": 0x44,
            "performance_state": 2,
            "temperature_memory": 33,
            "power_limit": 700,
            "energy": pytest.approx(12.345),
            "fan": 30,
            "pcie_tx_bytes": 33,
            "pcie_rx_bytes": 33,
            "pcie_replays": 4,
            "ecc_corrected_volatile": 1,
            "ecc_uncorrected_volatile": 11,
            "ecc_corrected_aggregate": 101,
            "ecc_uncorrected_aggregate": 111,
            "retired_pages_single": 8,
            "retired_pages_double": 8,
            "retired_pages_pending": None,
            "remapped_rows_corrected": 9,
            "remapped_rows_uncorrected": 2,
            "remapped_rows_pending": 1,
            "remapped_rows_failed": 0,
            "nvlink_crc_errors": 33,
            "nvlink_replays": 33,
            "nvlink_recoveries": 33,
            "processes": 3,
            "pcie_tx": 50_000,
            "pcie_rx": 51_000,
        }
        assert reader.processes(0) == [(7, None), (8, 1000), (99999, 7)]


@pytest.mark.behaviour("TEL-2")
def test_each_field_is_asked_at_its_own_cadence_and_no_faster(stub: Stub, path: str) -> None:
    stub.value("fan", 0, 50)
    sampler = Sampler(stub.library(1), path, 1, rate_hz=10.0)
    before = {call: stub.calls(call, 0) for call in ("memory", "temperature", "fan", "remapped", "throughput")}
    sampler.sweep(100)  # what is ten seconds
    asked = {call: stub.calls(call, 0) - count for call, count in before.items()}
    assert asked == {"memory": 100, "temperature": 50, "fan": 10, "remapped": 2, "throughput": 4}


@pytest.mark.behaviour("TEL-2")
def test_a_faster_rate_asks_only_what_is_read_every_sweep_more_often(stub: Stub, path: str) -> None:
    sampler = Sampler(stub.library(1), path, 1, rate_hz=100.0)
    before = stub.calls("temperature", 0), stub.calls("fan", 0)
    sampler.sweep(100)
    assert (stub.calls("temperature", 0) - before[0], stub.calls("fan", 0) - before[1]) == (5, 1)


@pytest.mark.behaviour("TEL-2")
def test_an_unsupported_field_is_dropped_after_three_times_in_a_row_until_the_next_discovery(
    stub: Stub, path: str
) -> None:
    stub.code("fan", 0, NOT_SUPPORTED)
    library = stub.library(2)
    sampler = Sampler(library, path, 1, fields=["temperature", "fan"], cadences={"temperature": 0, "fan": 0})
    sampler.sweep(2)
    stub.code("fan", 0, 0)
    sampler.sweep(1)  # an answer in between
    stub.code("fan", 0, NOT_SUPPORTED)
    sampler.sweep(2)
    assert sampler.unsupported("GPU-00") == []
    sampler.sweep(1)
    assert sampler.unsupported("GPU-00") == ["fan"] and sampler.unsupported("GPU-01") == []
    asked = stub.calls("fan", 0), stub.calls("fan", 1)
    stub.code("fan", 0, 0)
    sampler.sweep(10)
    assert (stub.calls("fan", 0), stub.calls("fan", 1)) == (asked[0], asked[1] + 10)
    library.discover()
    sampler.rediscovered()
    sampler.sweep(1)
    with RingReader(path) as reader:
        assert sampler.unsupported("GPU-00") == [] and values(reader)["fan"] == 0.0


def test_a_value_that_is_only_a_sentinel_counts_as_unsupported(stub: Stub, path: str) -> None:
    stub.value("fan", 0, 2**32 - 1)
    sampler = Sampler(stub.library(1), path, 1, fields=["fan"], cadences={"fan": 0})
    sampler.sweep(1)
    with RingReader(path) as reader:
        assert values(reader) == {"fan": None}
    sampler.sweep(2)
    assert sampler.unsupported("GPU-00") == ["fan"]


def test_a_call_that_fails_is_unknown_this_time_and_is_asked_again(stub: Stub, path: str) -> None:
    stub.value("power", 0, 5000)
    sampler = Sampler(stub.library(1), path, 1, fields=["power"], cadences={"power": 0})
    with RingReader(path) as reader:
        for code, wanted in ((0, 5.0), (UNKNOWN, None), (10, None), (UNKNOWN, None), (UNKNOWN, None), (0, 5.0)):
            stub.code("power", 0, code)
            sampler.sweep(1)
            assert values(reader) == {"power": wanted}
        assert [value for _, value in reader.history(0, "power", 60)] == [5.0, 5.0]


@pytest.mark.behaviour("TEL-1")
def test_a_lost_device_is_unknown_whole_while_the_others_go_on_and_it_may_come_back(stub: Stub, path: str) -> None:
    sampler = Sampler(stub.library(3), path, 1, rate_hz=10.0)
    sampler.sweep(1)
    for call in ("power", "memory", "clock", "temperature", "fan", "ecc", "processes"):
        stub.code(call, 1, GPU_IS_LOST)
    asked = stub.calls("memory", 1)
    with RingReader(path) as reader:
        sampler.sweep(11)
        assert set(values(reader, 1).values()) == {None}
        assert values(reader, 0)["power"] == values(reader, 2)["power"] == 0.0
        assert reader.latest(1)[0] >= reader.latest(0)[0]  # type: ignore[index]
        assert stub.calls("memory", 1) - asked <= 3  # once a second, and no call after the first that says so
        stub.every_code(1, 0)
        sampler.sweep(22)
        assert values(reader, 1)["power"] == 0.0 and values(reader, 1)["fan"] == 0.0


@pytest.mark.behaviour("TEL-5")
def test_a_counter_is_stored_raw_and_its_statistics_go_on_over_a_reset_and_a_wrap(stub: Stub, path: str) -> None:
    sampler = Sampler(stub.library(1), path, 1, fields=["pcie_replays", "energy"], cadences=EVERY_SWEEP)
    readings = [(2**32 - 5, 1_000_000), (2**32 - 2, 3_000_000), (4, 500_000), (4, 600_000)]
    wait_for(lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME) % SECOND < SECOND // 2)
    for replays, millijoules in readings:
        stub.value("replays", 0, replays)
        stub.value("energy", 0, millijoules)
        sampler.sweep(1)
    with RingReader(path) as reader:
        assert [x for _, x in reader.history(0, "pcie_replays", 60)] == [replays for replays, _ in readings]
        assert reader.increase(0, "pcie_replays", 60.0) == 9 and reader.increase(0, "energy", 60.0) == 2000 + 500 + 100
        wait_for(lambda: (sampler.sweep(1), reader.statistics(0, "energy", 10))[1] is not None)
        energy, counted = reader.statistics(0, "energy", 10), reader.statistics(0, "pcie_replays", 10)
    assert energy is not None and counted is not None
    assert energy.maximum - energy.minimum == pytest.approx(2600.0)
    assert counted.maximum - counted.minimum == 9


@pytest.mark.behaviour("TEL-3")
def test_statistics_in_the_ring_are_those_of_the_samples_in_the_ring(stub: Stub, path: str) -> None:
    stub.value("power", 0, 100_000)
    sampler = Sampler(stub.library(1), path, 1, rate_hz=50.0, fields=["power"], cadences=EVERY_SWEEP)
    with running(sampler), RingReader(path) as reader:
        wait_for(lambda: reader.statistics(0, "power", 1) is not None)
        stub.value("power", 0, 300_000)
        wait_for(lambda: (found := reader.statistics(0, "power", 1)) is not None and found.minimum == 300.0)
        while True:  # statistics and history have to be of the same second
            found = reader.statistics(0, "power", 10)
            history = reader.history(0, "power", 60.0)
            if reader.statistics(0, "power", 10) == found:
                break
    assert found is not None
    newest = history[-1][0] // SECOND
    whole = [value for at, value in history if at // SECOND < newest]
    assert found.count in (len(whole), len(whole) - sum(at // SECOND == newest - 1 for at, _ in history))
    assert (found.minimum, found.maximum, found.last) == (100.0, 300.0, 300.0)
    taken = whole[: found.count]
    assert found.mean == pytest.approx(sum(taken) / len(taken)) and found.slope is not None and found.slope > 0


@pytest.mark.behaviour("TEL-7")
def test_the_heartbeat_rises_around_every_batch_and_stands_still_in_a_call_that_hangs(stub: Stub, path: str) -> None:
    sampler = Sampler(stub.library(2), path, 1, fields=["power"], cadences=EVERY_SWEEP)
    with RingReader(path) as reader:
        assert reader.heartbeat() == (0, 0)
        for sweep in range(1, 4):
            before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            sampler.sweep(1)
            beats, at = reader.heartbeat()
            assert beats == 4 * sweep and before <= at <= time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            assert reader.call() is None
    assert len(CALL_NAMES) == 30 and CALL_NAMES[6] == "nvmlDeviceGetPowerUsage"


@pytest.mark.behaviour("TEL-7", "DEV-5")
def test_a_call_that_hangs_is_named_in_the_ring_and_readers_and_the_interpreter_go_on(stub: Stub, path: str) -> None:
    sampler = Sampler(stub.library(2), path, 1, rate_hz=50.0)
    with RingReader(path) as reader, running(sampler):
        wait_for(lambda: reader.latest(0) is not None)
        stub.number("hang", 1)
        wait_for(lambda: reader.call() == (0, CALL_NAMES.index("nvmlDeviceGetTemperature")))
        still, row = reader.heartbeat(), reader.latest(0)
        wait_for(lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME) - still[1] > SECOND // 5)
        assert reader.heartbeat() == still and reader.latest(0) == row  # old, and it says so
        stub.number("hang", 0)
        wait_for(lambda: reader.heartbeat()[0] > still[0] + 10)
        assert sampler.tallies["skipped"] >= 9  # what was due meanwhile is not made up for


@pytest.mark.behaviour("TEL-1")
def test_it_keeps_its_pace_and_stops_within_a_period_and_ends_the_ring(stub: Stub, path: str) -> None:
    sampler = Sampler(stub.library(1), path, 1, rate_hz=20.0)
    with RingReader(path) as reader:
        with running(sampler) as thread:
            wait_for(lambda: sampler.tallies["sweeps"] >= 20)
            with pytest.raises(RuntimeError, match="runs already"):
                sampler.run()
            assert not reader.ended
            begun = time.monotonic()
            sampler.stop()
            thread.join(10)
            assert time.monotonic() - begun < 0.5  # a period and what else the machine does
        assert reader.ended
        times = [at for at, _ in reader.history(0, "memory_used", 60.0)]
    late = [(at - times[0]) / SECOND - i / 10 for i, at in enumerate(times)]
    assert sampler.tallies["skipped"] > 0 or sorted(late)[len(late) // 2] < 0.02  # it does not drift
    assert 10 <= len(times) <= sampler.tallies["sweeps"]


def test_a_stop_before_the_start_is_not_lost(stub: Stub, path: str) -> None:
    sampler = Sampler(stub.library(1), path, 1)
    sampler.stop()
    sampler.run()
    assert sampler.tallies["sweeps"] == 0


@pytest.mark.behaviour("TEL-1")
def test_sixty_four_devices_are_sampled_within_the_limit(stub: Stub, path: str) -> None:
    for device in range(64):
        stub.value("power", device, 1000 * device)
    sampler = Sampler(stub.library(64), path, 1)
    sampler.sweep(3)
    assert sampler.ring_bytes <= 128 << 20 and 300 < sampler.depth_seconds <= 600
    with RingReader(path) as reader:
        assert [values(reader, column)["power"] for column in range(64)] == [float(d) for d in range(64)]
        assert reader.depth_asked == 600 and len(reader.quantiles(60.0)) == 64


@pytest.mark.behaviour("TEL-6")
def test_more_processes_than_the_side_table_holds_are_counted_all_the_same(stub: Stub, path: str) -> None:
    stub.processes(list(range(1000, 1500)))
    sampler = Sampler(stub.library(1), path, 1, fields=["processes"])
    sampler.sweep(1)
    with RingReader(path) as reader:
        assert len(reader.processes(0)) == 128 and reader.processes(0)[1] == (1001, 1000)
        assert values(reader)["processes"] >= 500  # type: ignore[operator]
    stub.code("processes", 0, GPU_IS_LOST)
    sampler.sweep(10)
    with RingReader(path) as reader:
        assert reader.processes(0) == [] and values(reader) == {"processes": None}


def test_what_cannot_be_sampled_is_refused(stub: Stub, path: str) -> None:
    library = stub.library(1)
    with pytest.raises(KeyError):
        Sampler(library, path, 1, fields=["temper"])
    with pytest.raises(NvmlError) as unknown:
        Sampler(library, path, 1, device_ids=["GPU-77"])
    assert unknown.value.reason == nvml.NO_SUCH_DEVICE
    assert not Path(path).exists()
