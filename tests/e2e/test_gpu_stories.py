"""Pools on GPUs: what engines are shown, what they hold, who waits, and what a partition does to it all.

One daemon on two GPUs of one name, a partitioned one and a small one; engines are real processes that hold memory by
the simulated driver, and what the driver lists is looked at from outside.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from poolmgr.client import CallError, Client
from poolmgr.v1 import device_pb2 as dpb
from poolmgr.v1 import pool_pb2 as pb
from tests.e2e.daemon import eventually
from tests.e2e.engines import tell
from tests.e2e.gpus import GIB, MIB, QUICK, GpuDaemon, holders, scenario_file, seen_on, visible

pytestmark = pytest.mark.e2e

FIRST, SECOND, PARTED, SMALL = range(4)
SCENARIO = """
[[gpu]]
model = "A100-80GB"
count = 2

[[gpu]]
model = "A100-40GB"
mig = ["3g.20gb", "2g.10gb"]

[[gpu]]
model = "T4"
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GpuDaemon]:
    directory = tmp_path_factory.mktemp("gpus")
    daemon = GpuDaemon(directory, QUICK, scenario=scenario_file(directory, SCENARIO))
    try:
        daemon.start()
        yield daemon
        assert daemon.shutdown() == 0
        assert daemon.family() == []
    finally:
        daemon.destroy()


def serve(client: Client, pool_id: str, spec: pb.PoolSpec) -> pb.Pool:
    client.create_pool(pool_id, spec)
    pool = client.preload(pool_id, wait=15)
    assert pool.ready, pool.last_error
    return pool


def measured(client: Client, pool: pb.Pool) -> list[dpb.Claim]:
    """The engine's claims, once the driver has been asked what it holds."""

    def found() -> list[dpb.Claim] | None:
        claims = [claim for claim in client.list_claims() if claim.holder == pool.pool_id]
        return claims if claims and all(list(claim.pids) == [pool.pid] for claim in claims) else None

    return eventually(found, 10, client.list_claims)


# What an engine is shown.


@pytest.mark.behaviour("PROC-2", "MASK-2", "MASK-3", "TEL-6")
@pytest.mark.parametrize(
    ("mask", "gpus"), [("3,0", (SMALL, FIRST)), ("GPU1", (SECOND,)), ("none", ()), ("", ())], ids=repr
)
def test_an_engine_is_shown_the_gpus_of_its_mask_by_uuid_in_its_order_and_is_on_no_other(
    daemon: GpuDaemon, client: Client, pool_id: str, mask: str, gpus: tuple[int, ...]
) -> None:
    pool = serve(client, pool_id, daemon.engine(mask, held=GIB))
    wanted = daemon.uuids(*gpus)
    assert visible(pool.pid) == wanted
    assert seen_on(daemon.host, {pool.pid}) == set(gpus)
    claims = measured(client, pool) if gpus else [c for c in client.list_claims() if c.holder == pool_id]
    assert sorted(claim.device_id for claim in claims) == sorted(wanted)
    for claim in claims:
        assert (claim.kind, claim.measured_bytes, list(claim.pids)) == (dpb.Claim.ENGINE, GIB, [pool.pid])
        assert daemon.until_device(claim.device_id, lambda d: d.state == dpb.Device.ALLOCATED).claims == 1
    client.stop(pool_id, wait=10)
    assert not [claim for claim in client.list_claims() if claim.holder == pool_id]
    for device_id in wanted:
        daemon.until_device(device_id, lambda d: d.state == dpb.Device.AVAILABLE and d.claims == 0)


@pytest.mark.behaviour("PROC-2", "MASK-2")
def test_an_engine_on_a_mig_instance_is_shown_that_alone(daemon: GpuDaemon, client: Client, pool_id: str) -> None:
    large, small = daemon.host.instances(PARTED)
    pool = serve(client, pool_id, daemon.engine("2.1", held=GIB))
    (shown,) = visible(pool.pid)
    assert shown == client.get_device("2.1").device_id and shown in (large, small)
    (listed,) = [p for p in daemon.host.state.processes(PARTED) if p["pid"] == pool.pid]
    assert daemon.host.instances(PARTED)[int(listed["instance"] or 0)] == shown
    assert [claim.device_id for claim in measured(client, pool)] == [shown]
    assert client.list_claims(daemon.host.uuid(PARTED)) == []


@pytest.mark.behaviour("DEV-2")
def test_two_gpus_of_one_name_are_two_devices(daemon: GpuDaemon, client: Client, pool_id: str) -> None:
    one, other = (client.get_device(name) for name in ("0", "1"))
    assert one.name == other.name and one.device_id != other.device_id and one.pci_bus_id != other.pci_bus_id
    assert client.get_device(other.pci_bus_id) == client.get_device(other.device_id) == other
    pool = serve(client, pool_id, daemon.engine(other.device_id))
    assert visible(pool.pid) == [other.device_id] and seen_on(daemon.host, {pool.pid}) == {SECOND}


@pytest.mark.behaviour("MASK-1", "MASK-2", "MASK-4", "PRE-6")
@pytest.mark.parametrize(
    ("mask", "why"),
    [
        ("9", "'9'"),
        ("0,,1", "empty"),
        ("0,GPU0", "again"),
        ("GPU-ffffffff", "GPU-ffffffff"),
        ("GPU-", "GPU-"),
        ("2", "MIG mode"),
        ("2,2.0", "MIG mode|slice|instance"),
        ("2.0,2.1", "one MIG instance"),
        ("0,2.0", "MIG instance"),
        ("banana", "banana"),
    ],
)
def test_a_mask_that_cannot_be_served_is_refused_before_anything_is_made(
    daemon: GpuDaemon, client: Client, mask: str, why: str
) -> None:
    with pytest.raises(CallError, match=why) as refused:
        client.create_pool("refused", daemon.engine(mask))
    assert refused.value.reason == "BAD_MASK"
    assert client.list_pools() == []
    if mask in ("9", "banana", "GPU-ffffffff"):
        assert all(uuid in refused.value.message for uuid in daemon.uuids(FIRST, SECOND, SMALL))


# Who holds what.


@pytest.mark.behaviour("TEL-6")
def test_a_process_that_nobody_announced_is_a_claim_of_its_own_until_it_ends(daemon: GpuDaemon, client: Client) -> None:
    uuid = daemon.host.uuid(SMALL)
    with subprocess.Popen(["sleep", "60"]) as stranger:
        try:
            daemon.host.process_take(SMALL, stranger.pid, 3 * GIB)
            daemon.until_device(uuid, lambda d: d.claims == 1 and d.state == dpb.Device.ALLOCATED)
            (claim,) = client.list_claims(uuid)
            assert (claim.kind, claim.holder) == (dpb.Claim.PROCESS, "sleep")
            assert (claim.user, claim.measured_bytes) == (psutil.Process().username(), 3 * GIB)
            assert (list(claim.pids), claim.engine_id, claim.container_id) == ([stranger.pid], "", "")
        finally:
            stranger.kill()
    daemon.until_device(uuid, lambda d: d.claims == 0 and d.state == dpb.Device.AVAILABLE)


@pytest.mark.behaviour("MASK-3")
def test_an_engine_that_takes_memory_off_its_mask_is_told_of_and_stopped_and_no_other(
    daemon: GpuDaemon, client: Client, pool_id: str
) -> None:
    other = f"{pool_id}-b"
    try:
        neighbour = serve(client, other, daemon.engine("1"))
        pool = serve(client, pool_id, daemon.engine("0"))
        offset, off_mask = daemon.log_size(), daemon.host.uuid(SECOND)
        tell(pool.endpoint, gpu={off_mask: GIB})
        told = daemon.wait_for_log("mask_violation", offset)
        assert (told["pool_id"], told["device_id"], told["used_bytes"]) == (pool_id, off_mask, GIB)
        daemon.until(pool_id, lambda p: p.state == pb.Pool.STOPPED)
        assert holders(daemon.host, SECOND) == {neighbour.pid}
        after = client.get_pool(other)
        assert after.ready and (after.pid, after.restart_count) == (neighbour.pid, 0)
        assert [line["device_id"] for line in daemon.log(offset) if line["event"] == "mask_violation"] == [off_mask]
        assert not client.get_pool(pool_id).live
    finally:
        client.stop(other, grace=0)
        client.delete(other, drain_deadline=0)


@pytest.mark.behaviour("MASK-3", "TEL-6")
def test_a_child_of_an_engine_that_asked_for_no_gpu_is_that_engine_on_a_gpu(
    daemon: GpuDaemon, client: Client, pool_id: str
) -> None:
    serve(client, pool_id, daemon.engine("none", "--leave-children", 1, "--escape"))
    line = next(line for line in client.tail_logs(pool_id) if line.startswith("child pid="))
    child, offset = int(line.partition("=")[2]), daemon.log_size()
    daemon.host.process_take(SMALL, child, GIB)
    told = daemon.wait_for_log("mask_violation", offset)
    assert (told["pool_id"], told["device_id"]) == (pool_id, daemon.host.uuid(SMALL))
    daemon.until(pool_id, lambda p: p.state == pb.Pool.STOPPED)
    assert not psutil.pid_exists(child)


# Who waits.


@pytest.mark.behaviour("PRE-7")
def test_starts_on_one_gpu_come_one_after_the_other_and_the_next_sees_its_place(
    daemon: GpuDaemon, client: Client, pool_id: str
) -> None:
    names = [f"{pool_id}-{n}" for n in range(4)]
    first, second, third, elsewhere = names
    try:
        client.create_pool(first, daemon.engine("0", "--never-ready", held=GIB))
        client.preload(first)
        loading = daemon.until(first, lambda p: p.state == pb.Pool.STARTING and p.pid)
        for name, mask in ((second, "0"), (third, "0,1"), (elsewhere, "3")):
            client.create_pool(name, daemon.engine(mask))
            client.preload(name)
        uuid = daemon.host.uuid(FIRST)
        for place, name in ((1, second), (2, third)):
            waits = daemon.until(name, lambda p, place=place: p.progress.queue_position == place)
            assert waits.state == pb.Pool.PROVISIONING and waits.pid == 0
            assert uuid in waits.progress.message + waits.state_reason
        # Its GPU is free, and so is one of the host's two starts at a time.
        assert daemon.until(elsewhere, lambda p: p.ready).pid
        assert seen_on(daemon.host, {loading.pid}) == {FIRST}
        client.stop(first, grace=0)
        for name in (second, third):
            ready = daemon.until(name, lambda p: p.ready)
            assert ready.progress.queue_position == 0
    finally:
        with ThreadPoolExecutor(len(names)) as threads:
            list(threads.map(lambda name: client.delete(name, drain_deadline=0), names))


# Partitions.


@pytest.mark.behaviour("DEV-2", "DEV-3", "DEV-5")
def test_a_mig_instance_that_is_made_and_destroyed_is_watched_as_it_comes_and_goes(
    daemon: GpuDaemon, client: Client, pool_id: str
) -> None:
    pool = serve(client, pool_id, daemon.engine("0"))
    before = {device.device_id for device in client.list_devices()}
    with daemon.watching_devices() as changes:
        assert {device.device_id for device in next(changes).snapshot.devices} == before
        made = daemon.host.mig_create(PARTED, "1g.5gb")
        seen = next(c.upsert for c in changes if c.upsert.device_id not in before and c.HasField("upsert"))
        assert (seen.device_id, seen.mig_profile, seen.usable) == (made, "1g.5gb", True)
        assert seen.parent_device_id == daemon.host.uuid(PARTED) and seen.state == dpb.Device.AVAILABLE
        assert client.parse_mask(made).cuda_visible_devices == made
        slot = daemon.host.instances(PARTED).index(made)
        daemon.host.mig_destroy(PARTED, slot)
        gone = next(c.upsert for c in changes if c.upsert.device_id == made and c.upsert.state == dpb.Device.OFFLINE)
        assert not gone.admits and gone.inadmissible == dpb.Device.DEVICE_OFFLINE
    with pytest.raises(CallError, match=daemon.host.uuid(FIRST)) as refused:
        client.parse_mask(made)
    assert refused.value.reason == "BAD_MASK"
    after = client.get_pool(pool_id)
    assert after.ready and (after.pid, after.restart_count) == (pool.pid, 0)


@pytest.mark.behaviour("DEV-3")
def test_a_partitioned_gpu_takes_no_work_itself_and_says_so(daemon: GpuDaemon, client: Client) -> None:
    whole = client.get_device("2")
    assert (whole.mig_mode, whole.usable, whole.admits) == (True, False, False)
    assert whole.inadmissible == dpb.Device.DEVICE_PARTITIONED and "MIG" in whole.state_reason
    assert list(client.parse_mask("2", allow_partitioned=True).device_ids) == [whole.device_id]


# The command line.


@pytest.mark.behaviour("DEV-1", "MASK-2", "TEL-6")
def test_the_command_line_shows_devices_claims_masks_and_telemetry(
    daemon: GpuDaemon, client: Client, pool_id: str
) -> None:
    pool = serve(client, pool_id, daemon.engine("3", held=64 * MIB))
    uuid = daemon.host.uuid(SMALL)
    measured(client, pool)
    with ThreadPoolExecutor(2) as threads:
        asked = {
            words: threads.submit(daemon.cli, *words.split())
            for words in (
                "devices list",
                "devices show 3",
                "devices claims --json",
                "devices mask 3,0 --json",
                "telemetry 3 --json --field temperature --window 1",
            )
        }
        said = {words: future.result() for words, future in asked.items()}
    assert all(daemon.host.uuid(gpu)[:12] in said["devices list"] for gpu in range(4))
    assert uuid in said["devices show 3"] and "Tesla T4" in said["devices show 3"]
    (claim,) = [c for c in json.loads(said["devices claims --json"])["claims"] if c.get("kind") == "ENGINE"]
    assert (claim["holder"], claim["pids"]) == (pool_id, [pool.pid])
    mask = json.loads(said["devices mask 3,0 --json"])
    names = {key.lower().replace("_", ""): value for key, value in mask.items()}
    assert names["cudavisibledevices"] == ",".join(daemon.uuids(SMALL, FIRST))
    (device,) = json.loads(said["telemetry 3 --json --field temperature --window 1"])["devices"]
    (field,) = device["fields"]
    assert field["name"] == "temperature" and field["value"] == pytest.approx(
        daemon.host.value(SMALL, "temperature"), abs=10
    )
