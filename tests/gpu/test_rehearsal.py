"""The half for a real driver, rehearsed on the simulated one, and that it turns red for what is wrong."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu import checks, drivers, smi
from tests.gpu.drivers import HERE, REHEARSAL, ROOT, DriverUnderTest

pytestmark = pytest.mark.behaviour("SIM-4")
MODULES = "test_driver_*.py"
PATIENCE = 100.0
NOT_REHEARSED = "test_load_shows_in_utilisation_and_power"  # nothing computes on the simulated driver


@pytest.fixture
def stage(tmp_path: Path) -> DriverUnderTest:
    return drivers.simulated(tmp_path)


def rehearse(stage: DriverUnderTest, tmp_path: Path, **variables: str) -> tuple[int, str]:
    (tmp_path / "bin").mkdir()
    smi_path = tmp_path / "bin" / "nvidia-smi"
    smi_path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{HERE / "fake_smi.py"}" "$@"\n')
    smi_path.chmod(0o755)
    environment = {**os.environ, **stage.environment, REHEARSAL: "1", **variables}
    environment["PATH"] = f"{tmp_path / 'bin'}:{environment['PATH']}"
    modules = sorted(map(str, HERE.glob(MODULES)))  # not this one, which would rehearse rehearsals
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *modules, "-k", f"real and not {NOT_REHEARSED}", "-p", "no:cacheprovider",
         "-q", f"--basetemp={tmp_path / 'rehearsal'}"],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def failed(output: str) -> set[str]:
    return set(re.findall(r"^FAILED \S+::(\w+)\[real\]", output, re.MULTILINE))


def test_every_test_for_a_real_driver_passes_on_one_that_keeps_to_the_rules(stage, tmp_path):
    code, output = rehearse(stage, tmp_path)
    assert code == 0, output
    assert not re.search(r"\d+ skipped|" + drivers.REAL_LIBRARY, output), output
    names = set()
    for path in HERE.glob(MODULES):
        names |= set(re.findall(r"^(?:async )?def (test_\w+)\((?=.*\b(?:driver|library|peer|recording|running|hold)\b)",
                                path.read_text(), re.MULTILINE))  # fmt: skip
    assert f"{len(names - {NOT_REHEARSED})} passed" in output, output


def test_an_nvidia_smi_that_says_otherwise_is_noticed(stage, tmp_path):
    code, output = rehearse(stage, tmp_path, FAKE_SMI_ADDS="temperature.gpu=30")
    assert code == 1
    assert failed(output) == {"test_values_are_those_of_nvidia_smi_in_the_same_second"}, output


def test_a_driver_that_breaks_the_rules_is_noticed(stage, tmp_path):
    """A field that always fails for no reason, memory that a killed process keeps, a device of another model."""
    assert stage.host is not None
    for gpu in range(4):
        stage.host.fault("error", gpu, function="nvmlDeviceGetTemperature", code="UNKNOWN")
        stage.host.state.set(gpu, "release_delay_ns", 3600 * 10**9)
    stage.host.state.set(0, "capability_minor", 6)
    code, output = rehearse(stage, tmp_path)
    assert code == 1
    assert failed(output) >= {
        "test_every_field_is_read_at_its_cadence_or_known_to_be_unsupported",
        "test_a_process_that_holds_memory_is_listed_with_it_until_it_is_killed",
        "test_a_model_is_what_the_catalogue_says_of_it",
    }, output


GPU = {
    "device_id": "GPU-00000000-0000-0000-0000-000000000001", "index": 0, "name": "One",
    "pci_bus_id": "00000000:01:00.0",
    "compute_capability": [9, 0], "vram_total_bytes": 10, "vram_free_bytes": 10, "links": [],
}  # fmt: skip
MIG = GPU | {
    "device_id": "MIG-00000000-0000-0000-0000-000000000002",
    "parent_device_id": GPU["device_id"],
    "mig_slot": "0.0",
}
FOUND = {"driver_version": "580.95.05", "cuda_version": "13.0", "devices": [GPU, MIG]}


@pytest.mark.parametrize(
    "wrong",
    [
        {"driver_version": "580"},
        {"cuda_version": "13000"},
        {"devices": []},
        {"devices": [GPU, GPU]},
        {"devices": [GPU | {"index": 1}]},
        {"devices": [GPU | {"device_id": "GPU-1"}]},
        {"devices": [GPU | {"pci_bus_id": "1:0.0"}]},
        {"devices": [GPU | {"name": GPU["device_id"]}]},
        {"devices": [GPU | {"compute_capability": [0, 0]}]},
        {"devices": [GPU | {"vram_free_bytes": 11}]},
        {"devices": [GPU | {"links": [{"peer": "GPU-2"}]}]},
        {"devices": [GPU, MIG | {"parent_device_id": "GPU-2"}]},
        {"devices": [GPU, MIG | {"mig_slot": "0"}]},
    ],
)
def test_a_wrong_identity_is_noticed(wrong):
    assert list(checks.identity_faults(FOUND)) == []
    assert list(checks.identity_faults(FOUND | wrong))


def points(*values):
    return [(second * 10**9, value) for second, value in enumerate(values)]


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": points(40.0, 255.0)},
        {"temperature": [(5, 40.0), (5, 41.0)]},
        {"energy": points(5.0, 4.0)},
        {"pcie_replays": points(-1.0, 0.0)},
        {"utilization_gpu": points(101.0)},
        {"remapped_rows_failed": points(2.0)},
    ],
)
def test_a_value_that_no_device_has_is_noticed(wrong):
    assert list(checks.field_faults({"temperature": points(40.0, 41.0), "energy": points(1.0, 1.0), "power": []})) == []
    assert list(checks.field_faults(wrong))


def test_memory_and_energy_that_do_not_add_up_are_noticed():
    assert list(checks.memory_faults(100 << 30, 70 << 30, 29 << 30, 1 << 30)) == []
    assert list(checks.memory_faults(100 << 30, 70 << 30, 28 << 30, 1 << 30))
    assert list(checks.energy_faults(points(0.0, 100.0, 200.0), points(90.0, 110.0))) == []
    assert list(checks.energy_faults(points(0.0, 100.0, 200.0), points(300.0, 310.0)))
    assert list(checks.energy_faults(points(0.0, 0.0), points(300.0)))


def test_fields_that_are_read_too_seldom_or_left_in_doubt_are_noticed():
    def history(**of):
        return {field.name: [] for field in checks.FIELDS} | of

    every = {field.name for field in checks.FIELDS}
    assert list(checks.freshness_faults(history(), every, 110)) == []
    assert list(checks.freshness_faults(history(power=points(*[1.0] * 55)), every - {"power"}, 110)) == []
    assert list(checks.freshness_faults(history(power=points(*[1.0] * 30)), every - {"power"}, 110))
    assert list(checks.freshness_faults(history(power=points(1.0)), every, 110))
    assert list(checks.freshness_faults(history(), every - {"fan"}, 110))


def test_two_readers_that_differ_are_noticed():
    assert list(checks.told_by_both({"a": 1, "b": None, "c": 0.1}, {"a": 1, "b": None, "c": 0.1})) == []
    for theirs in ({"a": 2}, {"a": None}, {"a": 1, "b": 0}):
        assert list(checks.told_by_both({"a": 1, "b": None}, theirs))


def test_what_nvidia_smi_does_not_tell_is_absent_and_units_are_ours():
    told = {"uuid": "GPU-1", "index": "0", "memory.used": "2", "pstate": "P2", "mig.mode.current": "[N/A]"}
    row = smi.read_row([told.get(column.query, "[Not Supported]") for column in (smi.FACTS | smi.VALUES).values()])
    assert row == {"device_id": "GPU-1", "index": 0.0, "memory_used": 2 << 20, "performance_state": 2.0}
    assert list(smi.value_differences({"memory_used": [2.0 * (1 << 20)], "performance_state": [2.0]}, row)) == []
    assert list(smi.value_differences({"memory_used": [2.0 * (1 << 30)], "performance_state": [2.0]}, row))
    assert list(
        smi.value_differences({"memory_used": [2.0 * (1 << 20)], "performance_state": [2.0], "fan": [3.0]}, row)
    )
    assert list(smi.fact_differences({"device_id": "GPU-1", "index": 0}, row)) == []
    assert list(smi.fact_differences({"device_id": "GPU-2", "index": 0}, row))
    assert list(smi.fact_differences({"device_id": "GPU-1", "index": 0, "name": "One"}, row))
