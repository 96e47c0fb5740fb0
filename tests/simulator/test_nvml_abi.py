"""ext/include/nvml_abi.h against nvidia-ml-py's structures and numbers."""

import ctypes
import re
import subprocess
from pathlib import Path

import pynvml
import pytest

INCLUDE = Path(__file__).parents[2] / "ext" / "include"
STRUCTURES = {
    "nvmlPciInfo_t": pynvml.nvmlPciInfo_t,
    "nvmlPciInfoExt_v1_t": pynvml.nvmlPciInfoExt_v1_t,
    "nvmlMemory_t": pynvml.c_nvmlMemory_t,
    "nvmlMemory_v2_t": pynvml.c_nvmlMemory_v2_t,
    "nvmlBAR1Memory_t": pynvml.c_nvmlBAR1Memory_t,
    "nvmlUtilization_t": pynvml.c_nvmlUtilization_t,
    "nvmlProcessInfo_v2_t": pynvml.c_nvmlProcessInfo_v2_t,
    "nvmlProcessDetail_v1_t": pynvml.c_nvmlProcessDetail_v1_t,
    "nvmlProcessDetailList_v1_t": pynvml.c_nvmlProcessDetailList_v1_t,
    "nvmlProcessUtilizationSample_t": pynvml.c_nvmlProcessUtilizationSample_t,
    "nvmlProcessUtilizationInfo_v1_t": pynvml.c_nvmlProcessUtilizationInfo_v1_t,
    "nvmlProcessesUtilizationInfo_v1_t": pynvml.c_nvmlProcessesUtilizationInfo_v1_t,
    "nvmlEccErrorCounts_t": pynvml.c_nvmlEccErrorCounts_t,
    "nvmlValue_t": pynvml.c_nvmlValue_t,
    "nvmlSample_t": pynvml.c_nvmlSample_t,
    "nvmlViolationTime_t": pynvml.c_nvmlViolationTime_t,
    "nvmlFieldValue_t": pynvml.c_nvmlFieldValue_t,
    "nvmlRowRemapperHistogramValues_t": pynvml.c_nvmlRowRemapperHistogramValues,
    "nvmlDeviceAttributes_t": pynvml.c_nvmlDeviceAttributes,
    "nvmlEventData_t": pynvml.c_nvmlEventData_t,
    "nvmlTemperature_v1_t": pynvml.c_nvmlTemperature_v1_t,
    "nvmlMarginTemperature_v1_t": pynvml.c_nvmlMarginTemperature_v1_t,
    "nvmlFanSpeedInfo_t": pynvml.c_nvmlFanSpeedInfo_t,
    "nvmlGpuThermalSensor_t": pynvml.c_nvmlGpuThermalSensor_t,
    "nvmlGpuThermalSettings_t": pynvml.c_nvmlGpuThermalSettings_t,
    "nvmlGpuDynamicPstatesInfo_t": pynvml.c_nvmlGpuDynamicPstatesInfo_t,
    "nvmlGpuInstancePlacement_t": pynvml.c_nvmlGpuInstancePlacement_t,
    "nvmlGpuInstanceProfileInfo_t": pynvml.c_nvmlGpuInstanceProfileInfo_t,
    "nvmlGpuInstanceProfileInfo_v2_t": pynvml.c_nvmlGpuInstanceProfileInfo_v2_t,
    "nvmlGpuInstanceInfo_t": pynvml.c_nvmlGpuInstanceInfo_t,
    "nvmlComputeInstanceProfileInfo_t": pynvml.c_nvmlComputeInstanceProfileInfo_t,
    "nvmlComputeInstanceInfo_t": pynvml.c_nvmlComputeInstanceInfo_t,
    "nvmlGpuFabricInfo_t": pynvml.c_nvmlGpuFabricInfo_t,
    "nvmlGpuFabricInfo_v2_t": pynvml.c_nvmlGpuFabricInfo_v2_t,
    "nvmlGpuFabricInfo_v3_t": pynvml.c_nvmlGpuFabricInfo_v3_t,
    "nvmlUUID_t": pynvml.c_nvmlUUID_t,
    "nvmlSystemDriverBranchInfo_v1_t": pynvml.c_nvmlSystemDriverBranchInfo_v1_t,
}
# Structure versions: ours, and where nvidia-ml-py's name is another.
VERSIONS = {
    "nvmlMemory_v2": pynvml.nvmlMemory_v2,
    "nvmlPciInfoExt_v1": pynvml.nvmlPciInfoExt_v1,
    "nvmlProcessDetailList_v1": pynvml.nvmlProcessDetailList_v1,
    "nvmlProcessesUtilizationInfo_v1": pynvml.ProcessesUtilizationInfo_v1,
    "nvmlTemperature_v1": pynvml.nvmlTemperature_v1,
    "nvmlMarginTemperature_v1": pynvml.nvmlMarginTemperature_v1,
    "nvmlFanSpeedInfo_v1": pynvml.nvmlFanSpeedInfo_v1,
    "nvmlGpuInstanceProfileInfo_v2": pynvml.nvmlGpuInstanceProfileInfo_v2,
    "nvmlGpuFabricInfo_v2": pynvml.nvmlGpuFabricInfo_v2,
    "nvmlGpuFabricInfo_v3": pynvml.nvmlGpuFabricInfo_v3,
    "nvmlUUID_v1": pynvml.nvmlUUID_v1,
    "nvmlSystemDriverBranchInfo_v1": pynvml.SystemDriverBranchInfo_v1,
}


def printed(tmp_path, expressions, header_folder=INCLUDE):
    """What a C program that includes the header prints for each expression."""
    lines = "\n".join(f'    printf("%llu\\n", (unsigned long long)({e}));' for e in expressions)
    source = tmp_path / "numbers.c"
    includes = '#include <stddef.h>\n#include <stdio.h>\n#include "nvml_abi.h"\n'
    source.write_text(f"{includes}int main(void) {{\n{lines}\n    return 0;\n}}\n")
    program = str(tmp_path / "numbers")
    subprocess.run(["gcc", "-Wall", "-Wextra", "-Werror", f"-I{header_folder}", str(source), "-o", program], check=True)
    output = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    return dict(zip(expressions, map(int, output.split()), strict=True))


def expected_layout():
    for name, structure in STRUCTURES.items():
        yield f"sizeof({name})", ctypes.sizeof(structure)
        for field, *_ in structure._fields_:
            descriptor = getattr(structure, field)
            if descriptor.size >> 16 == 0:  # no bit field
                yield f"offsetof({name}, {field})", descriptor.offset


def constants():
    text = "".join(path.read_text() for path in sorted(INCLUDE.glob("nvml_abi*.h")))
    named = set(re.findall(r"\b(NVML_[A-Z0-9_]+)\b(?= =)", text))
    named |= set(re.findall(r"#define (nvml(?:Clocks|Event)\w+|NVML_\w+)(?= )", text))
    return sorted(name for name in named if isinstance(getattr(pynvml, name, None), int))


@pytest.mark.behaviour("SIM-1")
def test_structures_have_the_sizes_and_offsets_of_nvidia_ml_py(tmp_path):
    expected = dict(expected_layout())
    assert printed(tmp_path, list(expected)) == expected
    assert len(STRUCTURES) >= 35


@pytest.mark.behaviour("SIM-1")
def test_structure_versions_are_those_of_nvidia_ml_py(tmp_path):
    assert printed(tmp_path, list(VERSIONS)) == VERSIONS


@pytest.mark.behaviour("SIM-1")
def test_constants_have_the_values_of_nvidia_ml_py(tmp_path):
    names = constants()
    assert len(names) > 200
    values = printed(tmp_path, names)
    # One name of nvidia-ml-py is a tuple by a stray comma; it is no int and is left out above.
    assert {name: value & 0xFFFFFFFFFFFFFFFF for name, value in values.items()} == {
        name: getattr(pynvml, name) & 0xFFFFFFFFFFFFFFFF for name in names
    }


def test_a_structure_with_a_field_too_many_is_noticed(tmp_path):
    folder = tmp_path / "include"
    folder.mkdir()
    for path in INCLUDE.glob("*.h"):
        planted = path.read_text().replace("unsigned int gpu, memory;", "unsigned int gpu, spare, memory;")
        (folder / path.name).write_text(planted)
    expected = dict(expected_layout())
    assert printed(tmp_path, list(expected), folder) != expected
