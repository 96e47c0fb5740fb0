"""What a driver says that there is: identities, errors, and the same as nvidia-ml-py is told (SIM-4, DEV-1)."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from poolmgr_ext import nvml
from poolmgr_ext.nvml import NvmlError

from poolmgr.adapters.simulator.catalogue import find
from tests.gpu import peer_facts
from tests.gpu.checks import identity_faults, memory_faults, told_by_both
from tests.gpu.drivers import ROOT, DriverUnderTest

pytestmark = pytest.mark.behaviour("SIM-4")
FIGURES_SLACK = 0.03  # of a model's figures: drivers differ in what they tell, data sheets round


@pytest.mark.gpu
def test_a_real_driver_is_tested_where_this_host_has_one(driver: DriverUnderTest, library):
    """The one line that says so where it has none."""
    assert library.discover()["devices"]


@pytest.mark.behaviour("DEV-1", "DEV-2")
def test_every_device_has_an_id_a_place_and_a_name_of_the_right_form(library):
    found = library.discover()
    assert list(identity_faults(found)) == []
    assert found["unreadable"] == []
    assert json.loads(json.dumps(found)) == found


def test_a_second_discovery_shows_the_same_devices_under_the_same_ids(library):
    moving = ("vram_free_bytes", "recovery_action")

    def lasting():
        return [{k: v for k, v in each.items() if k not in moving} for each in library.discover()["devices"]]

    assert lasting() == lasting()


def test_every_static_fact_is_the_one_that_nvidia_ml_py_is_told(library, peer):
    found = library.discover()
    assert list(told_by_both({k: found.get(k) for k in peer_facts.system(peer)}, peer_facts.system(peer))) == []
    for ours in found["devices"]:
        handle = peer.nvmlDeviceGetHandleByUUID(ours["device_id"].encode())
        facts = peer_facts.identity if "parent_device_id" in ours else peer_facts.gpu
        theirs = facts(peer, handle)
        assert list(told_by_both({key: ours.get(key) for key in theirs}, theirs)) == [], ours["name"]


def test_links_to_others_are_no_more_than_are_up(library, peer):
    for ours in library.discover()["devices"]:
        up = peer_facts.active_links(peer, peer.nvmlDeviceGetHandleByUUID(ours["device_id"].encode()))
        for link in ours.get("links", ()):
            assert link["kind"] != "NVLINK" or 0 < link["lanes"] <= up
            assert link.get("bytes_per_second", 1) > 0


def test_a_model_is_what_the_catalogue_says_of_it(library, driver, remark):
    for ours in library.discover()["devices"]:
        if "parent_device_id" in ours:
            continue
        try:
            model = find(ours["name"])
        except KeyError:
            remark(f"{ours['name']} is not in the catalogue")
            continue
        assert ours["compute_capability"] == list(model.compute_capability)
        assert ours["vram_total_bytes"] == pytest.approx(model.memory_mib << 20, rel=FIGURES_SLACK)
        if driver.host is None:
            told = {
                "memory (MiB)": (ours["vram_total_bytes"] / (1 << 20), model.memory_mib),
                "power limit (W)": (ours.get("power_limit_watts"), model.power_watts["default"]),
                "bandwidth (GB/s)": (ours.get("memory_bandwidth_bytes", 0) / 1e9, model.bandwidth_gbs),
                "slowdown (C)": (ours.get("slowdown_celsius"), model.thermal.get("slowdown")),
                "shutdown (C)": (ours.get("shutdown_celsius"), model.thermal.get("shutdown")),
            }
            for what, (real, simulated) in told.items():
                known = real is not None and simulated is not None
                if not (real == pytest.approx(simulated, rel=FIGURES_SLACK) if known else real is simulated):
                    remark(f"{ours['name']}: {what} is {real}, {simulated} in the catalogue")


def test_total_memory_is_what_is_free_used_and_reserved(library, peer):
    for ours in library.discover()["devices"]:
        if ours.get("mig_mode"):
            continue  # what its instances have is counted in both
        handle = peer.nvmlDeviceGetHandleByUUID(ours["device_id"].encode())
        theirs = peer.nvmlDeviceGetMemoryInfo(handle, peer.nvmlMemory_v2)
        found = library.memory(ours["device_id"])
        assert list(memory_faults(found["total"], found["free"], found["used"], theirs.reserved)) == []
        assert found["total"] == theirs.total


def test_a_device_that_there_is_not_is_an_error_and_no_value(library, peer):
    library.discover()
    absent = "GPU-00000000-0000-0000-0000-000000000000"
    for ask in (library.memory, library.processes):
        with pytest.raises(NvmlError) as refused:
            ask(absent)
        assert refused.value.reason == nvml.NO_SUCH_DEVICE
    count = peer.nvmlDeviceGetCount()
    for call, argument, error in (
        (peer.nvmlDeviceGetHandleByIndex, count, peer.NVMLError_InvalidArgument),
        (peer.nvmlDeviceGetHandleByUUID, absent.encode(), peer.NVMLError_NotFound),
        (peer.nvmlDeviceGetHandleByPciBusId, b"00000000:FE:1F.0", peer.NVMLError_NotFound),
    ):
        with pytest.raises(error):
            call(argument)


def test_a_wrong_argument_and_a_wrong_version_are_told_apart_from_what_is_not_supported(peer):
    handle = peer.nvmlDeviceGetHandleByIndex(0)
    with pytest.raises(peer.NVMLError_InvalidArgument):
        peer.nvmlDeviceGetClockInfo(handle, 99)
    memory = peer.c_nvmlMemory_v2_t()
    memory.version = 0x7F000000
    function = peer._nvmlGetFunctionPointer("nvmlDeviceGetMemoryInfo_v2")
    assert function(handle, peer.byref(memory)) == peer.NVML_ERROR_ARGUMENT_VERSION_MISMATCH
    (unknown,) = peer.nvmlDeviceGetFieldValues(handle, [60_000])
    assert unknown.nvmlReturn != peer.NVML_SUCCESS


def test_a_wait_for_an_event_ends_without_one(library):
    library.discover()
    without = library.listen()
    assert set(without) <= set(library_ids(library))
    assert library.wait_event(1) is None


def library_ids(library):
    return [device["device_id"] for device in library.discover()["devices"]]


def test_a_call_before_the_beginning_is_refused(driver):
    """In a process of its own: here the library has begun."""
    program = (
        "import ctypes, sys; library = ctypes.CDLL(sys.argv[1]); count = ctypes.c_uint(0);"
        "print(library.nvmlDeviceGetCount_v2(ctypes.byref(count)), count.value)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, driver.library], cwd=ROOT, capture_output=True, text=True, check=True,
        env={"PATH": "/usr/bin", **driver.environment},
    )  # fmt: skip
    assert done.stdout.split() == ["1", "0"]  # NVML_ERROR_UNINITIALIZED
