"""Hosts without a GPU, and with many; daemons that die and come back to theirs; scenarios with mistakes."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from poolmgr.client import CallError
from poolmgr.v1 import admin_pb2
from poolmgr.v1 import device_pb2 as dpb
from poolmgr.v1 import pool_pb2 as pb
from tests.e2e.daemon import eventually
from tests.e2e.engines import scripted, tell
from tests.e2e.gpus import GIB, MIB, QUICK, GpuDaemon, scenario_file, visible

pytestmark = pytest.mark.e2e

Driver = admin_pb2.Driver
HANG_SECONDS = 60.0
NO_LIBRARY = "/nowhere/libnvidia-ml.so.1"


@pytest.fixture
def own(tmp_path: Path) -> Iterator[GpuDaemon]:
    """A daemon of this test alone, not started yet."""
    daemon = GpuDaemon(tmp_path, QUICK)
    yield daemon
    daemon.destroy()


def ends_well(daemon: GpuDaemon) -> None:
    assert daemon.shutdown() == 0
    assert daemon.family() == []


# Without GPUs.


@pytest.mark.behaviour("DEV-4", "PRE-6")
@pytest.mark.parametrize(
    ("scenario", "absence", "word"),
    [
        ("", Driver.NO_LIBRARY, NO_LIBRARY),
        ('[[fault]]\nkind = "no-driver"', Driver.NO_DRIVER, "DRIVER_NOT_LOADED"),
        ('[[fault]]\nkind = "mismatch"', Driver.DRIVER_MISMATCH, "VERSION_MISMATCH"),
        ('[[fault]]\nkind = "no-devices"', Driver.NO_DEVICES, "device"),
    ],
    ids=["no library", "no driver", "mismatch", "no devices"],
)
def test_a_pool_that_asks_for_gpus_is_refused_where_there_are_none_and_told_why_and_what_to_do(
    own: GpuDaemon, tmp_path: Path, scenario: str, absence: int, word: str
) -> None:
    if scenario:
        own.scenario = scenario_file(tmp_path, f'[[gpu]]\nmodel = "T4"\n\n{scenario}\nat = 0\n')
    else:
        own.settings = {**QUICK, "telemetry.library": NO_LIBRARY}
    with own.start().client() as client:
        driver = client.status().driver
        assert (driver.devices, driver.absence) == (0, absence)
        assert word in driver.message and driver.advice
        assert bool(driver.simulated) is bool(scenario)
        assert client.list_devices() == []
        for mask in ("0", "all", "auto"):
            with pytest.raises(CallError) as refused:
                client.create_pool("gpu", scripted(device_mask=mask))
            assert refused.value.reason == "GPU_REQUIRED"
            assert driver.message in refused.value.message and driver.advice in refused.value.message
            assert refused.value.metadata["absence"] == Driver.Absence.Name(absence)
        assert client.list_pools() == []
        client.create_pool("cpu", scripted(device_mask="none"))
        assert visible(client.preload("cpu", wait=15).pid) == []
        if scenario:
            own.host.fault("devices-back" if absence == Driver.NO_DEVICES else "driver-works")
            own.until_device("", lambda d: d.admits)
            client.create_pool("gpu", own.engine("0"))
            assert visible(client.preload("gpu", wait=15).pid) == own.uuids(0)
    ends_well(own)


@pytest.mark.behaviour("STATE-3", "TEL-4")
def test_of_two_gpus_that_fail_the_second_stays_for_a_person_to_decide(own: GpuDaemon) -> None:
    own.scenario = "2xA100-80GB"
    with own.start().client() as client:
        first, second = own.uuids(0, 1)
        own.host.xid(0, 79)
        own.until_device(first, lambda d: d.state == dpb.Device.QUARANTINED)
        own.host.xid(1, 79)
        spared = own.until_device(second, lambda d: d.state == dpb.Device.DEGRADED)
        assert spared.admits and "XID 79" in spared.state_reason
        told = own.wait_for_log("disruption_budget")
        assert (told["device_id"], told["level"]) == (second, "critical")
        client.create_pool("a", own.engine("1"))
        assert visible(client.preload("a", wait=15).pid) == [second]
        client.create_pool("b", own.engine("0"))
        client.preload("b")
        refused = own.until("b", lambda p: p.state == pb.Pool.BACKOFF)
        assert refused.last_error.reason == "DEVICE_UNAVAILABLE" and "quarantined" in refused.last_error.message
    ends_well(own)


# Over the daemon's own death.


@pytest.mark.behaviour("PROC-6", "PROC-7", "MASK-3", "MASK-4", "TEL-6")
def test_a_daemon_that_was_killed_finds_its_engines_on_their_gpus_again(own: GpuDaemon) -> None:
    own.scenario = "2xA100-80GB+1xT4"
    with own.start().client() as client:
        for pool_id, mask in (("wide", "1,0"), ("narrow", "2")):
            client.create_pool(pool_id, own.engine(mask, held=GIB))
        before = {pool_id: client.preload(pool_id, wait=15) for pool_id in ("wide", "narrow")}
        shown = {pool_id: visible(pool.pid) for pool_id, pool in before.items()}
    own.terminate(signal.SIGKILL)
    offset = own.log_size()
    with own.start().client() as client:
        for pool_id, pool in before.items():
            after = client.get_pool(pool_id)
            assert after.ready and (after.pid, after.restart_count) == (pool.pid, 0)
            assert visible(after.pid) == shown[pool_id]

        def measured() -> list[dpb.Claim] | None:
            claims = client.list_claims()
            return claims if claims and all(claim.pids for claim in claims) else None

        claims = eventually(measured, 10, client.list_claims)
        held = {claim.device_id: (claim.kind, claim.holder, list(claim.pids)) for claim in claims}
        owner = {uuid: pool for pool_id, pool in before.items() for uuid in shown[pool_id]}
        assert held == {uuid: (dpb.Claim.ENGINE, pool.pool_id, [pool.pid]) for uuid, pool in owner.items()}
        # The next start of an adopted engine is one on the same devices, once their memory is back.
        tell(before["wide"].endpoint, exit=1)
        again = own.until("wide", lambda p: p.ready and p.pid != before["wide"].pid)
        assert visible(again.pid) == shown["wide"] == own.uuids(1, 0)
        events = {line["event"] for line in own.log(offset)}
        assert not events & {"mask_violation", "device_missing", "device_quarantined"}
    ends_well(own)


@pytest.mark.behaviour("STATE-1", "DEV-2")
def test_a_cordon_keeps_new_work_away_and_old_work_in_place_over_a_kill_of_the_daemon(own: GpuDaemon) -> None:
    own.scenario = "2xT4"
    with own.start().client() as client:
        uuid = own.host.uuid(0)
        client.create_pool("old", own.engine("0"))
        client.create_pool("new", own.engine("0"))
        old = client.preload("old", wait=15)
        cordoned = client.cordon_device("0", reason="a fan is to be changed")
        assert (cordoned.device_id, cordoned.admits) == (uuid, False)
        assert cordoned.inadmissible == dpb.Device.DEVICE_CORDONED
    own.terminate(signal.SIGKILL)
    with own.start().client() as client:
        assert client.get_device(uuid).cordon.reason == "a fan is to be changed"
        client.preload("new")
        refused = own.until("new", lambda p: p.state == pb.Pool.BACKOFF)
        assert refused.last_error.reason == "DEVICE_UNAVAILABLE" and refused.pid == 0
        assert uuid in refused.last_error.message and "a fan is to be changed" in refused.last_error.message
        kept = client.get_pool("old")
        assert kept.ready and (kept.pid, kept.restart_count) == (old.pid, 0)
        assert client.uncordon_device(uuid).admits
        served = own.until("new", lambda p: p.ready)
        assert visible(served.pid) == [uuid]
    ends_well(own)


@pytest.mark.behaviour("STATE-1")
def test_a_cordon_with_drain_empties_a_gpu_in_its_window_and_the_next_daemon_goes_on_with_it(own: GpuDaemon) -> None:
    own.scenario = "2xT4"
    with own.start().client() as client:
        client.create_pool("a", own.engine("0"))
        client.create_pool("b", own.engine("1"))
        a, b = client.preload("a", wait=15), client.preload("b", wait=15)
        begin = time.time() + 2.0
        planned = client.cordon_device("0", reason="new fan", start_time=begin, end_time=begin + 6.0, drain=True)
        assert planned.admits and planned.cordon.drain
        assert client.get_pool("a").pid == a.pid
    own.terminate(signal.SIGKILL)  # it begins while nobody watches, or soon after
    with own.start().client() as client:
        gone = own.until("a", lambda p: p.state == pb.Pool.BACKOFF)
        assert gone.last_error.reason == "DEVICE_UNAVAILABLE" and "new fan" in gone.last_error.message
        assert time.time() >= begin
        again = own.until("a", lambda p: p.ready, 20.0)
        assert time.time() >= begin + 6.0 and again.restart_count == 0
        assert client.get_device("0").admits and not client.get_device("0").HasField("cordon")
        assert client.get_pool("b").pid == b.pid
    ends_well(own)


@pytest.mark.behaviour("DEV-5", "PROC-6", "TEL-7")
def test_a_daemon_that_begins_while_the_driver_hangs_takes_its_engines_over_and_starts_no_other(own: GpuDaemon) -> None:
    own.scenario = "2xT4"
    with own.start().client() as client:
        client.create_pool("old", own.engine("0"))
        client.create_pool("new", own.engine("1"))
        old = client.preload("old", wait=15)
    own.host.fault("hang", seconds=HANG_SECONDS)
    own.terminate(signal.SIGKILL)
    began = time.monotonic()
    offset = own.log_size()
    with own.start().client() as client:
        assert time.monotonic() - began < HANG_SECONDS / 3
        kept = client.get_pool("old")
        assert kept.ready and (kept.pid, kept.restart_count) == (old.pid, 0)
        driver = client.status().driver
        assert driver.absence == Driver.STALLED and driver.HasField("stalled")
        client.preload("new")
        refused = own.until("new", lambda p: p.state == pb.Pool.BACKOFF)
        assert refused.last_error.reason == "GPU_REQUIRED" and refused.pid == 0
        own.host.fault("clear")
        own.until_device("", lambda d: d.admits, 20)
        assert visible(own.until("new", lambda p: p.ready).pid) == own.uuids(1)
        assert not {line["event"] for line in own.log(offset)} & {"mask_violation", "device_quarantined"}
        assert client.get_pool("old").pid == old.pid
    ends_well(own)


@pytest.mark.behaviour("MASK-4", "PRE-6", "DEV-2")
def test_the_mask_of_a_pool_is_looked_at_again_with_every_start(own: GpuDaemon) -> None:
    own.scenario = "2xT4"
    with own.start().client() as client:
        uuid = own.host.uuid(1)
        client.create_pool("a", own.engine(uuid))
        own.host.fault("removed", 1)
        own.until_device(uuid, lambda d: d.state == dpb.Device.OFFLINE)
    own.terminate(signal.SIGKILL)
    with own.start().client() as client:
        client.preload("a")
        refused = own.until("a", lambda p: p.state == pb.Pool.BACKOFF)
        assert refused.last_error.reason == "DEVICE_UNAVAILABLE" and uuid in refused.last_error.message
        own.host.fault("found", 1)
        assert visible(own.until("a", lambda p: p.ready).pid) == [uuid]
    ends_well(own)


# Many.


@pytest.mark.behaviour("DEV-1", "MASK-1", "TEL-1")
def test_sixty_four_gpus_are_listed_sampled_and_given_to_one_engine(own: GpuDaemon) -> None:
    count = 64
    own.scenario = f"{count}xT4"
    with own.start().client() as client:
        devices = client.list_devices()
        assert [device.index for device in devices] == list(range(count))
        uuids = [device.device_id for device in devices]
        assert uuids == own.uuids(*range(count)) and len(set(uuids)) == count
        assert len({device.pci_bus_id for device in devices}) == count
        client.create_pool("all", own.engine("all", held=16 * MIB))
        pool = client.preload("all", wait=20)
        assert visible(pool.pid) == uuids
        full = next(beat for beat in client.stream_telemetry(fields=["temperature"]) if _whole(beat.devices, count))
        assert [device.device_id for device in full.devices] == uuids
        ring = client.ring_info()
        assert ring.size_bytes <= 128 * MIB and list(ring.device_ids) == uuids
        assert client.parse_mask("0-63").cuda_visible_devices == ",".join(uuids)
        claimed = eventually(lambda: len([c for c in client.list_claims() if c.pids]) == count, 10)
        assert claimed
    ends_well(own)


def _whole(devices: object, count: int) -> bool:
    listed = list(devices)  # type: ignore[call-overload]
    return len(listed) == count and all(d.fields[0].HasField("value") and not d.stale for d in listed)


# Scenarios with mistakes.


@pytest.mark.behaviour("SIM-2", "DEV-4")
@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ('[[gpu]]\nmodel = "A100-81GB"\n', 2, "model"),
        ('[[gpu]]\nmodel = "T4"\ntemprature = 60\n', 3, "temprature"),
        ('[[gpu]]\nmodel = "T4"\n\n[[fault]]\ngpu = 7\nkind = "lost"\n', 5, "gpu"),
        ('[[gpu]]\nmodel = "T4"\npower = { wave = "wobble" }\n', 3, "wave"),
        ('[[gpu]\nmodel = "T4"\n', 1, ""),
    ],
    ids=["no such model", "no such key", "no such gpu", "no such wave", "no toml"],
)
def test_a_scenario_with_a_mistake_is_refused_by_line_and_key_and_leaves_nothing(
    own: GpuDaemon, tmp_path: Path, text: str, line: int, key: str
) -> None:
    own.scenario = scenario_file(tmp_path, text)
    ended = subprocess.run(own.command(), capture_output=True, text=True, timeout=20)
    assert ended.returncode == 2
    assert f"scenario.toml:{line}: " in ended.stderr and key in ended.stderr
    assert "INVALID_SCENARIO" in ended.stderr
    assert not own.state.exists() and own.family() == []


@pytest.mark.behaviour("DEV-4")
@pytest.mark.parametrize("shorthand", ["3xA100-81GB", "2xT4+"])
def test_a_shorthand_that_names_nothing_is_refused_and_leaves_nothing(own: GpuDaemon, shorthand: str) -> None:
    own.scenario = shorthand
    ended = subprocess.run(own.command(), capture_output=True, text=True, timeout=20)
    assert ended.returncode == 2 and "INVALID_SCENARIO" in ended.stderr
    assert not own.state.exists()
