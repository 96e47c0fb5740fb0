"""`poolmgr devices` and `poolmgr telemetry`, and the client's calls of both services."""

from __future__ import annotations

import json

import grpc
import pytest

from poolmgr.cli.show_devices import BLOCKS, PLOT_WIDTH, spark
from poolmgr.client import Client
from poolmgr.v1 import admin_pb2, device_pb2, telemetry_pb2
from tests.cli.scripted_daemon import refusing

GIB = 1 << 30
FREE = device_pb2.Device(
    device_id="GPU-aa",
    index=0,
    name="NVIDIA T4",
    state=device_pb2.Device.AVAILABLE,
    vram_total_bytes=16 * GIB,
    vram_free_bytes=0,
    revision=7,
    admits=True,
    usable=True,
    links=[device_pb2.Device.Link(peer_device_id="GPU-bb", kind=device_pb2.Device.Link.NVLINK, lanes=4)],
)
OUT = device_pb2.Device(
    device_id="GPU-bb",
    index=1,
    name="NVIDIA T4",
    state=device_pb2.Device.QUARANTINED,
    state_reason="XID 79: \x1b[2Jgone",
    state_since={"seconds": 1_700_000_000},
    recovery_action=device_pb2.Device.REBOOT,
    inadmissible=device_pb2.Device.DEVICE_QUARANTINED,
    cordon=device_pb2.Device.Cordon(reason="new fan", at={"seconds": 1_700_000_000}),
    revision=8,
)
BOTH = device_pb2.ListDevicesResponse(devices=[FREE, OUT])
STATUS = admin_pb2.Status(driver=admin_pb2.Driver(devices=2, driver_version="570", cuda_version="12.8"))
NOTHING = admin_pb2.Status(
    driver=admin_pb2.Driver(absence=admin_pb2.Driver.NO_LIBRARY, message="no libnvidia-ml", advice="install the driver")
)
TEMPERATURE = telemetry_pb2.FieldTelemetry(
    name="temperature",
    unit="C",
    value=41.0,
    statistics=[
        telemetry_pb2.WindowStatistics(
            window={"seconds": 60}, count=9, minimum=40, maximum=44, mean=42, slope=0.5, p95=43.5
        )
    ],
    points=[telemetry_pb2.FieldTelemetry.Point(value=value) for value in (40, 42, 44)],
)
UNKNOWN = telemetry_pb2.FieldTelemetry(name="fan", unit="%")
SAMPLED = telemetry_pb2.DeviceTelemetry(
    device_id="GPU-aa", index=0, age={"nanos": 200_000_000}, fields=[TEMPERATURE, UNKNOWN]
)


def test_devices_are_listed_on_one_line_each_and_zero_is_told_from_unknown(daemon, run):
    daemon.script.update(ListDevices=BOTH, GetStatus=STATUS)
    header, free, out = run("devices", "list").out.splitlines()
    assert header.split() == ["INDEX", "DEVICE", "NAME", "STATE", "FREE", "TOTAL", "CLAIMS", "REASON"]
    assert free.split() == [*["0", "GPU-aa", "NVIDIA", "T4", "AVAILABLE", "0", "MiB", "16,384.0", "MiB", "0"]]
    assert out.split()[:8] == [*["1", "GPU-bb", "NVIDIA", "T4", "QUARANTINED+CORDONED", "unknown", "unknown", "0"]]
    assert "\x1b" not in out and "XID 79" in out


@pytest.mark.behaviour("DEV-4")
def test_no_devices_says_why_and_what_to_do(daemon, run):
    daemon.script.update(ListDevices=device_pb2.ListDevicesResponse(), GetStatus=NOTHING)
    assert run("devices", "list").out == "no devices: no libnvidia-ml. install the driver\n"
    assert run("status").out.splitlines()[-1].split(maxsplit=1) == [
        "devices",
        "none: no libnvidia-ml. install the driver",
    ]


@pytest.mark.behaviour("DEV-4")
def test_a_simulated_driver_is_shown_in_every_status(daemon, run):
    simulated = admin_pb2.Status(driver=admin_pb2.Driver(devices=2, simulated="2xT4"))
    daemon.script.update(ListDevices=BOTH, GetStatus=simulated)
    assert run("devices", "list").out.splitlines()[-1] == "simulated: 2xT4"
    assert ["simulated", "2xT4"] in [line.split() for line in run("status").out.splitlines()]


def test_the_status_tells_of_the_ring_and_of_a_driver_that_hangs(daemon, run):
    driver = admin_pb2.Driver(
        devices=1,
        driver_version="570",
        cuda_version="12.8",
        ring_depth={"seconds": 600},
        ring_bytes=1 << 20,
        ring_rate_hz=10,
        heartbeat_age={"seconds": 3},
        stalled={"seconds": 3},
        stalls=2,
    )
    daemon.script["GetStatus"] = admin_pb2.Status(driver=driver)
    out = run("status").out
    assert "1; driver 570, CUDA 12.8" in out and "600 s at 10 Hz, 1.0 MiB" in out
    assert "has not answered for 3.0 s" in out and "2 since the daemon's start" in out


def test_json_has_the_names_of_the_protos_and_tells_zero_from_absent(daemon, run):
    daemon.script.update(ListDevices=BOTH, GetStatus=STATUS)
    free, out = json.loads(run("devices", "list", "--json").out)["devices"]
    assert free["vram_free_bytes"] == "0" and "vram_free_bytes" not in out
    assert (free["admits"], out["admits"], out["state"]) == (True, False, "QUARANTINED")


def test_one_device_is_shown_with_all_that_is_known(daemon, run):
    daemon.script["GetDevice"] = OUT
    out = run("devices", "show", "1").out
    assert daemon.requests("GetDevice")[0].device_id == "1"
    for text in ("GPU-bb", "no: quarantined", "new fan, 2023-11-", "reboot"):
        assert text in out, text
    assert "ECC" not in out  # not known


def test_a_cordon_takes_its_reason_along_and_shows_what_became(daemon, run):
    daemon.script.update(CordonDevice=OUT, UncordonDevice=FREE)
    assert "new fan" in run("devices", "cordon", "1", "--reason", "new fan").out
    assert "takes work  yes" in " ".join(run("devices", "uncordon", "GPU-aa").out.split(" ")).replace("   ", "  ")
    assert daemon.requests("CordonDevice") == [device_pb2.CordonDeviceRequest(device_id="1", reason="new fan")]
    assert daemon.requests("UncordonDevice")[0].device_id == "GPU-aa"


def test_a_cordon_takes_its_window_along_and_shows_it(daemon, run):
    window = {"reason": "new fan", "at": {"seconds": 1_700_000_000}, "start_time": {"seconds": 1_900_000_000}}
    until = {"seconds": 1_900_003_600}
    planned = device_pb2.Device(device_id="GPU-aa", admits=True)
    planned.cordon.CopyFrom(device_pb2.Device.Cordon(**window, end_time=until, drain=True))
    daemon.script["CordonDevice"] = planned
    shown = run("devices", "cordon", "0", "--drain", "--start", "2030-03-17T17:46:40", "--end", "2030-03-17 18:46")
    request = daemon.requests("CordonDevice")[0]
    assert (request.start_time.seconds, request.end_time.seconds) == (1_900_000_000, 1_900_003_560) and request.drain
    assert "drains" in shown.out and "from 2030-03-17" in shown.out and "until 2030-03-17" in shown.out
    assert run("devices", "cordon", "0", "--start", "tomorrow").code == 2


def test_an_unknown_device_says_what_to_do(daemon, run):
    daemon.script["GetDevice"] = refusing(grpc.StatusCode.NOT_FOUND, "DEVICE_NOT_FOUND", "no device '9'")
    ran = run("devices", "show", "9")
    assert ran.code == 1 and "hint: `poolmgr devices list`" in ran.err


def test_changes_are_printed_one_a_line(daemon, run):
    def watch(_request, _context):
        yield device_pb2.WatchDevicesResponse(
            snapshot=device_pb2.WatchDevicesResponse.Snapshot(devices=[FREE], revision=7)
        )
        yield device_pb2.WatchDevicesResponse(bookmark=8)
        yield device_pb2.WatchDevicesResponse(upsert=OUT)
        yield device_pb2.WatchDevicesResponse(resync={"reason": "TOO_OLD", "revision": 9})
        yield device_pb2.WatchDevicesResponse(delete={"device_id": "GPU-bb", "revision": 10})

    daemon.script["WatchDevices"] = watch
    lines = run("devices", "watch", "1", "--from-revision", "7").out.splitlines()
    assert [line.split()[0] for line in lines] == ["7", "8", "9", "10"]
    assert lines[1].startswith("8 GPU-bb QUARANTINED+CORDONED XID 79")
    assert "TOO_OLD" in lines[2] and lines[3] == "10 GPU-bb no longer shown"
    (request,) = daemon.requests("WatchDevices")
    assert (request.device_id, request.from_revision) == ("1", 7)
    assert len(run("devices", "watch", "--json").out.splitlines()) == 5


def test_claims_and_masks_are_shown(daemon, run):
    claim = device_pb2.Claim(
        device_id="GPU-aa", kind=device_pb2.Claim.PROCESS, holder="train", user="ada", pids=[7], container_id="f" * 64
    )
    daemon.script["ListClaims"] = device_pb2.ListClaimsResponse(claims=[claim])
    assert run("devices", "claims").out.splitlines()[1].split() == [
        *["GPU-aa", "PROCESS", "train", "ada", "unknown", "7"],
        "f" * 12,
    ]
    daemon.script["ListClaims"] = device_pb2.ListClaimsResponse()
    assert run("devices", "claims", "0").out == "nobody holds a device\n"
    daemon.script["ParseMask"] = device_pb2.ParseMaskResponse(
        mask="GPU-aa", device_ids=["GPU-aa"], cuda_visible_devices="GPU-aa", cdi_names=["nvidia.com/gpu=GPU-aa"]
    )
    out = run("devices", "mask", "0").out
    assert "CUDA_VISIBLE_DEVICES=GPU-aa" in out and "nvidia.com/gpu=GPU-aa" in out


# Telemetry.


def test_telemetry_shows_values_statistics_and_a_plot(daemon, run):
    daemon.script["GetTelemetry"] = telemetry_pb2.GetTelemetryResponse(devices=[SAMPLED])
    heading, _, temperature, fan = run("telemetry", "0", "--field", "temperature", "--window", "10").out.splitlines()
    assert heading == "GPU-aa (0): 0.2 s ago"
    assert temperature.split() == [
        *["temperature", "41", "C", "40", "C", "42", "C", "44", "C", "43.5", "C", "0.5", "C"],
        "▁▅█",
    ]
    assert fan.split() == ["fan", "unknown"]
    (request,) = daemon.requests("GetTelemetry")
    assert (request.device_id, list(request.fields), request.quantiles) == ("0", ["temperature"], True)
    assert [one.seconds for one in request.windows] == [10] and request.history.seconds == 10


@pytest.mark.behaviour("TEL-7")
def test_stale_telemetry_is_called_stale(daemon, run):
    old = telemetry_pb2.DeviceTelemetry(device_id="GPU-aa", age={"seconds": 9}, stale=True)
    never = telemetry_pb2.DeviceTelemetry(device_id="GPU-bb", stale=True)
    daemon.script["GetTelemetry"] = telemetry_pb2.GetTelemetryResponse(devices=[old, never])
    out = run("telemetry").out
    assert "GPU-aa: STALE, 9.0 s ago" in out and "GPU-bb: nothing sampled yet" in out


def test_telemetry_in_json_leaves_out_what_is_unknown(daemon, run):
    daemon.script["GetTelemetry"] = telemetry_pb2.GetTelemetryResponse(devices=[SAMPLED])
    temperature, fan = json.loads(run("telemetry", "--json").out)["devices"][0]["fields"]
    assert temperature["value"] == 41.0 and "value" not in fan


def test_watched_telemetry_goes_on_line_by_line_where_nobody_looks(daemon, run):
    def stream(_request, _context):
        for sequence in (1, 4):
            yield telemetry_pb2.StreamTelemetryResponse(sequence=sequence, skipped=sequence // 2, devices=[SAMPLED])

    daemon.script["StreamTelemetry"] = stream
    lines = run("telemetry", "--watch", "--interval", "0.5").out.splitlines()
    assert lines == ["1 GPU-aa temperature=41", "4 GPU-aa temperature=41"]
    assert daemon.requests("StreamTelemetry")[0].interval.nanos == 500_000_000
    json_lines = [json.loads(line) for line in run("telemetry", "--watch", "--json").out.splitlines()]
    assert [line["sequence"] for line in json_lines] == ["1", "4"] and json_lines[1]["skipped"] == "2"


@pytest.mark.parametrize("argv", [["--window", "7"], ["--interval", "0.01"], ["a", "b"]])
def test_what_telemetry_does_not_keep_is_wrong_usage(run, argv):
    assert run("telemetry", *argv).code == 2


@pytest.mark.parametrize(
    ("values", "plot"),
    [
        ([], ""),
        ([5.0], BLOCKS[0]),
        ([3.0] * 4, BLOCKS[0] * 4),
        ([0.0, 7.0], BLOCKS[0] + BLOCKS[7]),
        (list(range(8)), BLOCKS),
        ([float("nan"), 1.0, float("inf"), 2.0], BLOCKS[0] + BLOCKS[7]),
    ],
)
def test_a_plot_goes_from_the_lowest_to_the_highest_value(values, plot):
    assert spark(values) == plot


def test_a_long_plot_is_thinned_to_its_width_and_keeps_its_shape():
    plot = spark([float(n) for n in range(1000)])
    assert len(plot) == PLOT_WIDTH and list(plot) == sorted(plot) and set(plot) == set(BLOCKS)


def test_every_call_of_both_services_goes_through_the_client(daemon):
    daemon.script.update(
        ListDevices=BOTH,
        GetDevice=FREE,
        ParseMask=device_pb2.ParseMaskResponse(mask="none"),
        ListClaims=device_pb2.ListClaimsResponse(),
        CordonDevice=OUT,
        UncordonDevice=FREE,
        WatchDevices=lambda request, context: iter([device_pb2.WatchDevicesResponse(bookmark=3)]),
        GetTelemetry=telemetry_pb2.GetTelemetryResponse(devices=[SAMPLED]),
        StreamTelemetry=lambda request, context: iter([telemetry_pb2.StreamTelemetryResponse(sequence=1)]),
        GetRingInfo=telemetry_pb2.RingInfo(path="/r"),
    )
    with Client(daemon.address) as client:
        assert [one.device_id for one in client.list_devices()] == ["GPU-aa", "GPU-bb"]
        assert client.get_device("0").device_id == "GPU-aa"
        assert client.parse_mask("none", allow_partitioned=True).mask == "none"
        assert client.list_claims("0") == []
        assert client.cordon_device("1", reason="r").cordon.reason == "new fan"
        assert client.uncordon_device("1").admits
        assert [one.bookmark for one in client.watch_devices(from_revision=2)] == [3]
        assert client.get_telemetry(windows=(1, 60)).devices[0].device_id == "GPU-aa"
        assert [one.sequence for one in client.stream_telemetry(interval=2.0)] == [1]
        assert client.ring_info().path == "/r"
    assert daemon.requests("ParseMask")[0].allow_partitioned
