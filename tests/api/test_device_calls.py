"""DeviceService and TelemetryService on a real socket, over a real registry and a telemetry that a test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import cast

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from poolmgr.api.server import ApiServer, ServerSettings
from poolmgr.model.device import (
    Absence,
    DriverEvent,
    DriverEventKind,
    FieldInfo,
    Link,
    LinkKind,
    RecoveryAction,
    RingInfo,
)
from poolmgr.model.telemetry import MAX_POINTS
from poolmgr.runtime.bus import Bus
from poolmgr.runtime.devices import DeviceOutside, DeviceRegistry
from poolmgr.runtime.facade import Facade
from poolmgr.runtime.readings import Readings, thinned
from poolmgr.runtime.tasks import Tasks
from poolmgr.testing.devices import FakeTelemetry, a_gpu, an_instance
from poolmgr.testing.fakes import FakeClock, InlineWorkers, SeededRng, settled
from poolmgr.v1 import device_pb2 as pb
from poolmgr.v1 import pool_pb2, telemetry_pb2
from poolmgr.v1.device_pb2_grpc import DeviceServiceStub
from poolmgr.v1.pool_pb2_grpc import PoolServiceStub
from poolmgr.v1.telemetry_pb2_grpc import TelemetryServiceStub
from tests.runtime.test_device_registry import ProcessTable, TextMemory

SECONDS = 10.0
A, B = a_gpu(0).device_id, a_gpu(1).device_id
FIELDS = (FieldInfo("temperature", "C", False, 0.2), FieldInfo("power", "W", False, 0.2))
RING = RingInfo("/dev/shm/r", 3, 1, 1 << 20, 10.0, 600.0, FIELDS, (A, B), 77, 0.1)


class Served:
    """The two services, and what is behind them."""

    def __init__(self, *devices) -> None:
        self.clock = FakeClock()
        self.telemetry = FakeTelemetry(self.clock, *devices, simulated="2xA100")
        self.telemetry.ring_info = RING
        self.bus = Bus(3)
        self.memory = TextMemory()
        self.tasks = Tasks(lambda error: None)
        outside = DeviceOutside(self.telemetry, ProcessTable(), self.memory, InlineWorkers())
        self._registry = DeviceRegistry(outside, self.clock, self.bus, self.tasks)
        self._readings: Readings | None = Readings(self._registry, self.telemetry, self.clock)
        self.without = False

    devices = Facade.devices
    readings = Facade.readings
    watch = Facade.watch

    @property
    def _devices(self) -> DeviceRegistry | None:
        return None if self.without else self._registry

    def wall_offset(self) -> float:
        return self.clock.wall() - self.clock.now()

    def pools(self) -> list[object]:
        return []

    @asynccontextmanager
    async def up(self) -> AsyncIterator[Served]:
        server = ApiServer(ServerSettings("127.0.0.1", 0, False, 4 << 20, 64))
        address = server.bind()
        await self._registry.start()
        await server.start(cast(Facade, self), SeededRng())
        try:
            async with grpc.aio.insecure_channel(address) as channel:
                self.stub, self.sampled = DeviceServiceStub(channel), TelemetryServiceStub(channel)
                self.pool_stub = PoolServiceStub(channel)
                yield self
        finally:
            await server.stop(0)
            await self._registry.close()
            await self.tasks.close()


@asynccontextmanager
async def two() -> AsyncIterator[Served]:
    async with Served(a_gpu(0), a_gpu(1)).up() as served:
        yield served


async def refused(call) -> tuple[grpc.StatusCode, str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    status = rpc_status.from_call(error.value)
    info = error_details_pb2.ErrorInfo.FromString(status.details[0].value)
    return error.value.code(), info.reason, error.value.details()


async def read(call):
    return await asyncio.wait_for(call.read(), SECONDS)


# Devices.


@pytest.mark.behaviour("DEV-1")
async def test_all_that_is_known_of_a_device_is_told_and_what_is_not_known_is_absent():
    known = replace(
        a_gpu(0),
        links=(Link(B, LinkKind.NVLINK, 12, 3e11),),
        slowdown_celsius=90.0,
        recovery_action=RecoveryAction.NONE,
        vram_free_bytes=0,
    )
    bare = replace(
        a_gpu(1), index=None, compute_capability=None, vram_total_bytes=None, vram_free_bytes=None, numa_node=None,
        mig_mode=None, ecc_mode=None, power_limit_watts=None, pci_bus_id=None,
    )  # fmt: skip
    async with Served(known, bare).up() as served:
        full = await served.stub.GetDevice(pb.GetDeviceRequest(device_id="0"))
        little = await served.stub.GetDevice(pb.GetDeviceRequest(device_id=B))
    assert (full.device_id, full.index, full.compute_capability) == (A, 0, "8.0")
    assert (full.vram_total_bytes, full.vram_free_bytes, full.HasField("vram_free_bytes")) == (80 << 30, 0, True)
    assert (full.links[0].peer_device_id, full.links[0].kind, full.links[0].lanes) == (B, pb.Device.Link.NVLINK, 12)
    assert (full.state, full.admits, full.usable, full.simulated) == (pb.Device.AVAILABLE, True, True, True)
    assert full.recovery_action == pb.Device.NONE
    absent = "index vram_total_bytes vram_free_bytes numa_node mig_mode ecc_mode power_limit_watts slowdown_celsius "
    for name in (absent + "shutdown_celsius memory_bandwidth_bytes_per_second recovery_action").split():
        assert not little.HasField(name), name


async def test_devices_are_listed_by_index_and_by_the_page():
    gpu = replace(a_gpu(2), mig_mode=True)
    devices = [an_instance(gpu, 10), an_instance(gpu, 9), a_gpu(11), gpu, a_gpu(0)]
    async with Served(*devices).up() as served:
        found, token = [], ""
        for _ in range(5):
            answer = await served.stub.ListDevices(pb.ListDevicesRequest(page_size=1, page_token=token))
            found += [one.mig_slot or str(one.index) for one in answer.devices]
            token = answer.next_page_token
    assert (found, token) == (["0", "2", "2.9", "2.10", "11"], "")


async def test_a_device_that_is_not_there_is_not_found_and_what_there_is_is_told():
    async with two() as served:
        for call in (
            served.stub.GetDevice(pb.GetDeviceRequest(device_id="9")),
            served.stub.CordonDevice(pb.CordonDeviceRequest(device_id="9")),
            served.stub.UncordonDevice(pb.UncordonDeviceRequest(device_id="9")),
            served.stub.ListClaims(pb.ListClaimsRequest(device_id="9")),
            served.sampled.GetTelemetry(telemetry_pb2.GetTelemetryRequest(device_id="9")),
        ):
            code, reason, message = await refused(call)
            assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "DEVICE_NOT_FOUND")
            assert A in message and B in message


@pytest.mark.behaviour("DEV-4")
async def test_no_devices_are_an_empty_list_and_no_error():
    served = Served()
    served.telemetry.show(absence=Absence.NO_LIBRARY, message="no library", advice="install the driver")
    served.telemetry.ring_info = None
    async with served.up():
        assert not (await served.stub.ListDevices(pb.ListDevicesRequest())).devices
        code, reason, message = await refused(served.sampled.GetRingInfo(telemetry_pb2.GetRingInfoRequest()))
        assert (code, reason) == (grpc.StatusCode.UNAVAILABLE, "NO_TELEMETRY")
        assert message == "nothing is sampled: no library. install the driver"


async def test_a_daemon_without_telemetry_says_so():
    async with two() as served:
        served.without = True
        _, reason, message = await refused(served.stub.ListDevices(pb.ListDevicesRequest()))
    assert (reason, message) == ("NO_TELEMETRY", "this daemon was started without telemetry")


@pytest.mark.behaviour("STATE-1")
async def test_a_cordon_is_shown_and_uncordon_ends_it_alone():
    async with two() as served:
        cordoned = await served.stub.CordonDevice(pb.CordonDeviceRequest(device_id="1", reason="new fan"))
        again = await served.stub.CordonDevice(pb.CordonDeviceRequest(device_id="1", reason="new fan"))
        assert cordoned == again
        assert (cordoned.cordon.reason, cordoned.admits) == ("new fan", False)
        assert cordoned.inadmissible == pb.Device.DEVICE_CORDONED
        served.telemetry.happen(DriverEvent(DriverEventKind.XID, B, 0.0, 79))
        free = await served.stub.UncordonDevice(pb.UncordonDeviceRequest(device_id=B))
        assert not free.HasField("cordon")
        assert (free.state, free.inadmissible) == (pb.Device.QUARANTINED, pb.Device.DEVICE_QUARANTINED)
        assert free.state_until.seconds == free.state_since.seconds + 3600


@pytest.mark.behaviour("STATE-1")
async def test_a_cordon_for_a_window_is_shown_before_it_begins_and_ends_by_itself():
    async with two() as served:
        at, later = {"seconds": 1_800_000_100}, {"seconds": 1_800_000_200}
        request = pb.CordonDeviceRequest(device_id="1", reason="new fan", start_time=at, end_time=later, drain=True)
        planned = await served.stub.CordonDevice(request)
        assert planned.admits and planned.cordon.drain
        assert (planned.cordon.start_time.seconds, planned.cordon.end_time.seconds) == (1_800_000_100, 1_800_000_200)
        await served.clock.advance(101.0)
        now = await served.stub.GetDevice(pb.GetDeviceRequest(device_id="1"))
        assert not now.admits and now.inadmissible == pb.Device.DEVICE_CORDONED
        await served.clock.advance(100.0)
        after = await served.stub.GetDevice(pb.GetDeviceRequest(device_id="1"))
        assert after.admits and not after.HasField("cordon")


@pytest.mark.parametrize(
    "window",
    [
        {"end_time": {"seconds": 1_700_000_000}},
        {"start_time": {"seconds": 1_900_000_000}, "end_time": {"seconds": 1_900_000_000}},
        {"start_time": {"seconds": -5}},
    ],
    ids=["over", "empty", "before 1970"],
)
async def test_a_window_that_cannot_be_is_refused_and_changes_nothing(window):
    async with two() as served:
        call = served.stub.CordonDevice(pb.CordonDeviceRequest(device_id="1", **window))
        assert (await refused(call))[:2] == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT")
        assert not (await served.stub.GetDevice(pb.GetDeviceRequest(device_id="1"))).HasField("cordon")


@pytest.mark.parametrize("reason", ["x" * 257, "a\x1b[2J", "two\nlines"])
async def test_a_reason_that_would_drive_a_terminal_is_refused(reason):
    async with two() as served:
        call = served.stub.CordonDevice(pb.CordonDeviceRequest(device_id="1", reason=reason))
        assert (await refused(call))[:2] == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT")


@pytest.mark.behaviour("TEL-6")
async def test_claims_tell_who_holds_what_since_when():
    async with two() as served:
        served.telemetry.hold(B, 77, 0)
        served.telemetry.hold(B, 78)
        await served.clock.advance(2.0)
        answer = await served.stub.ListClaims(pb.ListClaimsRequest(device_id="1"))
        none = await served.stub.ListClaims(pb.ListClaimsRequest(device_id="0"))
    known, unknown = answer.claims
    assert (known.device_id, known.kind, list(known.pids)) == (B, pb.Claim.PROCESS, [77])
    assert known.HasField("measured_bytes") and not unknown.HasField("measured_bytes")
    assert known.since.seconds == 1_800_000_002 and not known.HasField("expire_time")
    assert not none.claims


# Masks.


@pytest.mark.behaviour("MASK-2")
async def test_a_mask_comes_back_with_all_its_renderings():
    async with two() as served:
        answer = await served.stub.ParseMask(pb.ParseMaskRequest(mask="1,0"))
        nothing = await served.stub.ParseMask(pb.ParseMaskRequest(mask="none"))
        auto = await served.stub.ParseMask(pb.ParseMaskRequest(mask="auto"))
    assert answer.kind == pb.ParseMaskResponse.DEVICES and list(answer.device_ids) == [B, A]
    assert answer.mask == answer.cuda_visible_devices == f"{B},{A}"
    assert list(answer.docker_device_requests[0].device_ids) == [B, A]
    assert [list(one.all_of) for one in answer.docker_device_requests[0].capabilities] == [["gpu"]]
    assert list(answer.cdi_names) == [f"nvidia.com/gpu={B}", f"nvidia.com/gpu={A}"]
    assert nothing.HasField("cuda_visible_devices") and nothing.cuda_visible_devices == ""
    assert auto.kind == pb.ParseMaskResponse.AUTO and not auto.HasField("cuda_visible_devices")


@pytest.mark.behaviour("MASK-1")
async def test_a_bad_mask_is_refused_with_what_exists():
    async with two() as served:
        code, reason, message = await refused(served.stub.ParseMask(pb.ParseMaskRequest(mask="0,5")))
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "BAD_MASK")
    assert "'5' names no device" in message and A in message


# Watching.


async def test_a_watcher_sees_every_revision_in_order_and_goes_on_where_it_was():
    async with two() as served:
        call = served.stub.WatchDevices(pb.WatchDevicesRequest())
        snapshot = (await read(call)).snapshot
        assert [one.device_id for one in snapshot.devices] == [A, B]
        served.telemetry.show(a_gpu(0))
        served.telemetry.show(a_gpu(0), a_gpu(1))
        upserts = [(await read(call)).upsert for _ in range(2)]
        assert [one.state for one in upserts] == [pb.Device.OFFLINE, pb.Device.AVAILABLE]
        assert [one.revision for one in upserts] == [snapshot.revision + 1, snapshot.revision + 2]
        later = served.stub.WatchDevices(pb.WatchDevicesRequest(from_revision=upserts[1].revision))
        assert (await read(later)).upsert == upserts[1]
        lost = served.stub.WatchDevices(pb.WatchDevicesRequest(from_revision=1))
        assert (await read(lost)).resync.reason == "EPOCH_CHANGED"
        assert len((await read(lost)).snapshot.devices) == 2
        for one in (call, later, lost):
            one.cancel()


async def test_a_watcher_of_one_device_gets_bookmarks_for_the_others():
    async with two() as served:
        call = served.stub.WatchDevices(pb.WatchDevicesRequest(device_id="0"))
        first = (await read(call)).snapshot
        assert [one.device_id for one in first.devices] == [A]
        served.telemetry.show(a_gpu(0), replace(a_gpu(1), vram_free_bytes=1))
        assert (await read(call)).bookmark == first.revision + 1
        call.cancel()


async def test_a_watcher_of_pools_gets_bookmarks_for_devices():
    async with two() as served:
        call = served.pool_stub.WatchPools(pool_pb2.WatchPoolsRequest())
        first = (await read(call)).snapshot
        served.telemetry.show(a_gpu(0))
        assert (await read(call)).bookmark == first.revision + 1
        call.cancel()


# Telemetry.


@pytest.mark.behaviour("TEL-7")
async def test_values_come_with_their_age_and_old_ones_are_called_stale():
    async with two() as served:
        served.telemetry.sample(A, temperature=41.0)
        await served.clock.advance(1.5)
        first, never = (await served.sampled.GetTelemetry(telemetry_pb2.GetTelemetryRequest())).devices
        await served.clock.advance(2.0)
        second = (await served.sampled.GetTelemetry(telemetry_pb2.GetTelemetryRequest(device_id="0"))).devices[0]
    assert (first.device_id, first.stale, first.age.ToMilliseconds()) == (A, False, 1500)
    assert first.time.ToMilliseconds() == 1_800_000_000_000
    temperature, power = first.fields
    assert (temperature.name, temperature.unit, temperature.value) == ("temperature", "C", 41.0)
    assert not power.HasField("value") and not power.statistics
    assert (second.stale, second.age.ToMilliseconds(), second.fields[0].value) == (True, 3500, 41.0)
    assert never.device_id == B and never.stale and not never.HasField("age") and not never.HasField("time")


@pytest.mark.behaviour("TEL-3")
async def test_statistics_quantiles_and_points_are_of_the_windows_that_were_asked_for():
    async with two() as served:
        for value in range(100):
            served.telemetry.sample(A, temperature=float(value))
            await served.clock.advance(0.5)
        request = telemetry_pb2.GetTelemetryRequest(
            device_id="0", fields=["temperature"], windows=[{"seconds": 10}], quantiles=True, history={"seconds": 10}
        )
        (field,) = (await served.sampled.GetTelemetry(request)).devices[0].fields
        everything = await served.sampled.GetTelemetry(telemetry_pb2.GetTelemetryRequest(device_id="0"))
    (window,) = field.statistics
    assert (window.window.seconds, window.count, window.minimum, window.maximum, window.last) == (10, 20, 80, 99, 99)
    assert (window.mean, window.slope, window.p50, window.p99) == (89.5, 2.0, 89.0, 99.0)
    assert [point.value for point in field.points] == list(range(80, 100))
    assert [field.points[0].age.ToMilliseconds(), field.points[-1].age.ToMilliseconds()] == [10_000, 500]
    windows = everything.devices[0].fields[0].statistics
    assert [one.window.seconds for one in windows] == [1, 10, 60, 600]
    assert not windows[0].HasField("p50") and not everything.devices[0].fields[0].points


@pytest.mark.parametrize(
    ("request_", "code", "reason"),
    [
        ({"fields": ["speed"]}, grpc.StatusCode.NOT_FOUND, "FIELD_NOT_FOUND"),
        ({"windows": [{"seconds": 7}]}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT"),
        ({"history": {"seconds": 601}}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT"),
        ({"history": {"seconds": -1}}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT"),
        ({"fields": ["x"] * 257}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT"),
    ],
)
async def test_what_is_not_kept_cannot_be_asked_for(request_, code, reason):
    async with two() as served:
        call = served.sampled.GetTelemetry(telemetry_pb2.GetTelemetryRequest(**request_))
        assert (await refused(call))[:2] == (code, reason)


async def test_a_stream_numbers_its_intervals_and_counts_what_it_could_not_send():
    async with two() as served:
        served.telemetry.sample(A, temperature=41.0)
        request = telemetry_pb2.StreamTelemetryRequest(fields=["temperature"], interval={"nanos": 500_000_000})
        call = served.sampled.StreamTelemetry(request)
        first = await read(call)
        assert (first.sequence, first.skipped, len(first.devices)) == (1, 0, 2)
        assert first.devices[0].fields[0].value == 41.0
        await until_it_waits(served)
        await served.clock.advance(0.5)
        assert (await read(call)).sequence == 2
        await until_it_waits(served)
        served.clock._now += 10.0  # as for a reader that was too slow
        await served.clock.advance(0.0)
        assert (await read(call)).sequence == 3
        late = await read(call)
        assert (late.sequence, late.skipped) == (22, 18)
        served.telemetry.ring_info = None  # the telemetry process is replaced
        await until_it_waits(served)
        await served.clock.advance(0.5)
        assert not (await read(call)).devices
        call.cancel()


async def until_it_waits(served: Served) -> None:
    """For its next interval: the timer of the claims is the other one."""
    while sum(not timer.cancelled for timer in served.clock._timers) < 2:
        await settled(1)


@pytest.mark.parametrize("interval", [{"nanos": 99_000_000}, {"seconds": 61}])
async def test_a_stream_has_a_bounded_rate(interval):
    async with two() as served:
        call = served.sampled.StreamTelemetry(telemetry_pb2.StreamTelemetryRequest(interval=interval))
        assert (await refused(read(call)))[:2] == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT")


async def test_the_ring_is_told_for_those_who_read_it_themselves():
    async with two() as served:
        ring = await served.sampled.GetRingInfo(telemetry_pb2.GetRingInfoRequest())
    assert (ring.path, ring.epoch, ring.version, ring.size_bytes, ring.writer_pid) == ("/dev/shm/r", 3, 1, 1 << 20, 77)
    assert next((f.name, f.unit, f.cadence.ToMilliseconds()) for f in ring.fields) == ("temperature", "C", 200)
    assert list(ring.device_ids) == [A, B] and ring.depth.seconds == 600


def test_thinned_points_are_means_that_leave_nothing_out():
    points = [(float(n), float(n % 7)) for n in range(1000)]
    few = thinned(points, MAX_POINTS)
    assert len(few) == MAX_POINTS and thinned(points[:5], MAX_POINTS) == points[:5]
    assert [at for at, _ in few] == sorted(at for at, _ in few)
    sizes = [1000 * (n + 1) // MAX_POINTS - 1000 * n // MAX_POINTS for n in range(MAX_POINTS)]
    assert sum(size * value for size, (_, value) in zip(sizes, few, strict=True)) == pytest.approx(
        sum(value for _, value in points)
    )
