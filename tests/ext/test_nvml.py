"""The driver's library, by a driver whose every answer is set: errors, absent values, MIG, links, processes, events."""

from __future__ import annotations

import inspect
import json
import subprocess
from pathlib import Path

import pynvml
import pytest
from poolmgr_ext import nvml
from poolmgr_ext.nvml import Library, NvmlError

from poolmgr.model.device import Device
from tests.ext import stub_driver
from tests.ext.stub_driver import GPU_IS_LOST, NOT_SUPPORTED, Stub


def test_every_return_code_has_the_name_that_nvidia_gives_it() -> None:
    names = {
        value: name.removeprefix("NVML_ERROR_")
        for name, value in vars(pynvml).items()
        if name.startswith("NVML_ERROR_") and isinstance(value, int)
    }
    assert {code: nvml.ERRORS.get(code) for code in names if code <= 29 or code == 999} == {
        code: name for code, name in names.items() if code <= 29 or code == 999
    }


@pytest.mark.behaviour("DEV-4")
def test_a_library_that_is_not_there_and_one_that_is_no_driver_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(NvmlError) as absent:
        Library(tmp_path / "libnvidia-ml.so.1")
    assert absent.value.reason == nvml.NO_LIBRARY and "cannot open shared object" in str(absent.value)
    source = tmp_path / "empty.c"
    source.write_text("int nothing;\n")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", tmp_path / "empty.so", source], check=True)
    with pytest.raises(NvmlError) as other:
        Library(tmp_path / "empty.so")
    assert (other.value.name, other.value.call) == ("FUNCTION_NOT_FOUND", "nvmlInit_v2")


@pytest.mark.behaviour("DEV-4")
@pytest.mark.parametrize(
    ("code", "reason"),
    [(9, nvml.NO_DRIVER), (18, nvml.DRIVER_MISMATCH), (4, nvml.NO_PERMISSION), (999, nvml.FAILED), (1234, nvml.FAILED)],
)
def test_a_driver_that_does_not_begin_says_why(stub: Stub, code: int, reason: str) -> None:
    stub.number("init", code)
    with pytest.raises(NvmlError) as refused:
        Library(stub.path)
    assert (refused.value.code, refused.value.reason, refused.value.call) == (code, reason, "nvmlInit_v2")


@pytest.mark.behaviour("DEV-4")
def test_a_driver_without_devices_is_no_error(stub: Stub) -> None:
    stub.number("devices", 0)
    assert Library(stub.path).discover()["devices"] == []


@pytest.mark.behaviour("DEV-1")
def test_a_device_has_what_the_driver_tells_under_the_names_of_the_model(stub: Stub) -> None:
    for call, value in {
        "memory": 5 << 30,
        "power_limit": 700_000,
        "threshold": 95,
        "bus_width": 5120,
        "clock": 1213,
    }.items():
        stub.value(call, 0, value)
    stub.value("fields", 0, 1)
    found = stub.library().discover()
    assert (found["driver_version"], found["cuda_version"], found["simulated"]) == ("570.00", "12.8", False)
    device = json.loads(json.dumps(found))["devices"][0]
    assert device.keys() <= set(inspect.signature(Device).parameters)
    assert device == {
        "device_id": "GPU-00", "name": "Stub 9000", "index": 0, "compute_capability": [9, 0], "mig_mode": False,
        "vram_total_bytes": 80 << 30, "vram_free_bytes": 75 << 30, "pci_bus_id": "00000000:00:00.0",
        "power_limit_watts": 700.0, "shutdown_celsius": 95.0, "slowdown_celsius": 90.0,
        "memory_bandwidth_bytes": 5120 / 8 * 1215e6 * 2, "recovery_action": "RESET", "links": device["links"],
    }  # fmt: skip


@pytest.mark.behaviour("DEV-1")
@pytest.mark.parametrize("unknown", [0, 2**32 - 1])
def test_zeros_and_sentinels_are_absent_and_so_is_what_fails(stub: Stub, unknown: int) -> None:
    for call in ("power_limit", "threshold", "bus_width"):
        stub.value(call, 0, unknown)
    for call in ("memory", "capability", "pci", "mig_mode", "fields", "name"):
        stub.code(call, 0, NOT_SUPPORTED)
    device = stub.library().discover()["devices"][0]
    assert {key for key in device if key != "links"} == {"device_id", "name", "index"}
    assert device["name"] == "GPU-00"  # a device is called something


@pytest.mark.behaviour("DEV-1")
def test_a_library_that_has_next_to_no_function_still_shows_its_devices(tmp_path: Path) -> None:
    library = Library(stub_driver.compiled(tmp_path, "-DBARE"))
    assert library.discover()["devices"] == [
        {"device_id": f"GPU-0{i}", "name": f"GPU-0{i}", "index": i, "links": []} for i in range(2)
    ]
    for ask in (library.memory, library.processes):
        with pytest.raises(NvmlError) as refused:
            ask("GPU-00")
        assert refused.value.reason == nvml.NOT_SUPPORTED


@pytest.mark.behaviour("DEV-2")
def test_two_devices_of_one_name_and_sixty_four_of_it_are_told_apart_by_their_ids(stub: Stub) -> None:
    devices = stub.library(64).discover()["devices"]
    assert len({device["device_id"] for device in devices}) == 64
    assert {device["name"] for device in devices} == {"Stub 9000"}
    assert all(len(device["links"]) == 63 for device in devices)


@pytest.mark.behaviour("DEV-1")
def test_a_gpu_that_does_not_say_who_it_is_is_listed_beside_the_others(stub: Stub) -> None:
    stub.code("uuid", 0, GPU_IS_LOST)
    found = stub.library().discover()
    assert found["unreadable"] == [{"index": 0, "code": GPU_IS_LOST}]
    assert [(d["device_id"], d["index"]) for d in found["devices"]] == [("GPU-01", 1)]


@pytest.mark.behaviour("DEV-3")
def test_mig_instances_follow_their_gpu_and_holes_between_them_are_no_end(stub: Stub) -> None:
    stub.value("mig_mode", 0, 1)
    library = stub.library()
    assert [d["device_id"] for d in library.discover()["devices"]] == ["GPU-00", "GPU-01"]
    stub.number("mig_instances", 3)
    found = library.discover()["devices"]
    assert [d["device_id"] for d in found] == ["GPU-00", "MIG-64", "MIG-65", "MIG-66", "GPU-01"]
    assert found[0]["mig_mode"] is True and found[4]["mig_mode"] is False
    assert {key: found[2][key] for key in ("mig_slot", "mig_profile", "parent_device_id")} == {
        "mig_slot": "0.1", "mig_profile": "1g.10gb", "parent_device_id": "GPU-00",
    }  # fmt: skip
    assert library.memory("MIG-65")["total"] == 80 << 30
    stub.number("mig_instances", 0)
    library.discover()
    with pytest.raises(NvmlError) as gone:
        library.memory("MIG-65")
    assert gone.value.reason == nvml.NO_SUCH_DEVICE


@pytest.mark.behaviour("DEV-1")
def test_links_are_counted_by_peer_directly_and_through_a_switch(stub: Stub) -> None:
    stub.number("nvlinks", 3)  # one to the neighbour, two to a switch that all four are on
    for device in range(4):
        stub.value("fields", device, 25_000)
    links = {link["peer"]: link for link in stub.library(4).discover()["devices"][0]["links"]}
    assert links["GPU-01"] == {"peer": "GPU-01", "kind": "NVLINK", "lanes": 3, "bytes_per_second": 75e9}
    for peer in ("GPU-02", "GPU-03"):
        assert links[peer] == {"peer": peer, "kind": "NVLINK", "lanes": 2, "bytes_per_second": 50e9}


@pytest.mark.behaviour("DEV-1")
def test_without_nvlink_the_common_ancestor_says_what_lies_between_two_gpus(stub: Stub) -> None:
    stub.code("ancestor", 3, NOT_SUPPORTED)
    links = {link["peer"]: link for link in stub.library(4).discover()["devices"][0]["links"]}
    assert links["GPU-01"]["kind"] == "PCIE" and links["GPU-01"]["lanes"] == 16
    assert links["GPU-01"]["bytes_per_second"] == pytest.approx(16e9 / 8 * 128 / 130 * 16)
    assert links["GPU-02"] == {"peer": "GPU-02", "kind": "SYSTEM"}
    assert "GPU-03" not in links


def test_memory_is_by_the_second_version_and_by_the_first_where_there_is_no_second(stub: Stub) -> None:
    stub.value("memory", 0, 7)
    library = stub.library()
    assert library.memory("GPU-00") == {"total": 80 << 30, "free": (80 << 30) - 7, "used": 7}
    stub.code("memory", 0, 13)
    assert library.memory("GPU-00")["total"] == 40 << 30
    stub.code("memory", 0, GPU_IS_LOST)
    with pytest.raises(NvmlError) as lost:
        library.memory("GPU-00")
    assert lost.value.reason == nvml.GPU_LOST


@pytest.mark.behaviour("TEL-6")
def test_each_process_is_listed_once_with_what_is_known_of_its_memory(stub: Stub) -> None:
    library = stub.library()
    assert library.processes("GPU-00") == []
    stub.processes([41, 42])
    assert library.processes("GPU-00") == [
        {"pid": 41, "used_bytes": None, "kind": "compute"},
        {"pid": 42, "used_bytes": 1000, "kind": "compute"},
        {"pid": 99999, "used_bytes": 7, "kind": "graphics"},
    ]
    stub.processes(list(range(1, 3001)))  # more than there was room for at first
    assert len(library.processes("GPU-00")) == 3001
    stub.code("processes", 0, NOT_SUPPORTED)
    with pytest.raises(NvmlError) as refused:
        library.processes("GPU-00")
    assert refused.value.reason == nvml.NOT_SUPPORTED


@pytest.mark.behaviour("TEL-4")
def test_an_xid_comes_with_its_device_and_code_and_a_wait_ends_without_one(stub: Stub) -> None:
    stub.code("events", 0, NOT_SUPPORTED)
    library = stub.library()
    assert library.listen() == ["GPU-00"]  # the other one is registered
    assert library.wait_event(1) is None
    stub.number("event_xid", 79)
    event = library.wait_event(1)
    assert event is not None and event["at_ns"] > 0
    assert (event["kind"], event["code"], event["device_id"]) == ("XID", 79, "GPU-01")
    assert "gpu_instance" not in event
    stub.number("event_xid", 48)
    stub.code("uuid", 1, GPU_IS_LOST)
    event = library.wait_event(1)
    assert event is not None and event["device_id"] == "GPU-01"  # known from before it was lost


def test_a_closed_library_and_a_device_that_nobody_saw_are_errors(stub: Stub) -> None:
    library = stub.library()
    with pytest.raises(NvmlError) as unknown:
        library.memory("GPU-99")
    assert unknown.value.reason == nvml.NO_SUCH_DEVICE
    library.close()
    library.close()
    with pytest.raises(NvmlError, match="closed"):
        library.discover()
