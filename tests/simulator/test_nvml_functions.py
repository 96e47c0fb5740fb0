"""Every function that nvidia-ml-py offers out of our list, called against the simulated driver (SIM-1, SIM-3)."""

import os

import pynvml as nv
import pytest
from poolmgr_ext import simstate

MIXED = """
name = "everything"
[[gpu]]
model = "H100"
count = 2
utilization = 71
temperature = 61
power = 512.5
encoder = 5
decoder = 6
pcie_tx = 1000
nvlink_tx = 4096
[[gpu]]
model = "V100-32GB"
set = { retired_single = 2, retired_double = 1 }
[[gpu]]
model = "RTX3090"
fan = 55
[[gpu]]
model = "A100-40GB"
mig = ["3g.20gb", "1g.5gb"]
[[process]]
gpu = 0
memory = "10GiB"
load = 60
[[process]]
gpu = 0
memory = "1GiB"
kind = "graphics"
[[process]]
gpu = 0
memory = "2GiB"
kind = "mps"
[[process]]
gpu = 4
instance = 0
memory = "3GiB"
"""
HOPPER, OTHER, VOLTA, CONSUMER, PARTED = range(5)


# nvmlDeviceGet… that ask nothing but the device.
PLAIN = (
    "Name", "UUID", "Serial", "Index", "MinorNumber", "ModuleId", "Brand", "Architecture", "CudaComputeCapability",
    "NumaNodeId", "BoardId", "MultiGpuBoard", "BoardPartNumber", "VbiosVersion", "InforomImageVersion",
    "NumGpuCores", "MemoryBusWidth", "BusType", "IrqNum", "PersistenceMode", "ComputeMode", "VirtualizationMode",
    "DisplayMode", "DisplayActive", "AccountingMode", "AccountingBufferSize", "GspFirmwareVersion",
    "GspFirmwareMode", "MemoryInfo", "BAR1MemoryInfo", "UtilizationRates", "EncoderUtilization",
    "DecoderUtilization", "JpgUtilization", "OfaUtilization", "DynamicPstatesInfo", "MarginTemperature", "NumFans",
    "PowerUsage", "PowerManagementMode", "PowerManagementLimit", "PowerManagementLimitConstraints",
    "PowerManagementDefaultLimit", "EnforcedPowerLimit", "PowerSource", "TotalEnergyConsumption", "PerformanceState",
    "PowerState", "SupportedPerformanceStates", "SupportedMemoryClocks", "CurrentClocksEventReasons",
    "CurrentClocksThrottleReasons", "SupportedClocksEventReasons", "SupportedClocksThrottleReasons", "EccMode",
    "DefaultEccMode", "RemappedRows", "RowRemapperHistogram", "PcieReplayCounter", "CurrPcieLinkGeneration",
    "CurrPcieLinkWidth", "MaxPcieLinkGeneration", "MaxPcieLinkWidth", "GpuMaxPcieLinkGeneration", "PcieLinkMaxSpeed",
    "PcieSpeed", "MigMode", "MaxMigDeviceCount", "SupportedEventTypes",
)  # fmt: skip


def fabric(handle, kind, call):
    info = kind()
    call(handle, nv.byref(info))
    return info


def instance_handles(parted, profile):
    found = (nv.c_nvmlGpuInstance_t * 8)()
    count = nv.c_uint()
    nv.nvmlDeviceGetGpuInstances(parted, profile, nv.byref(found), nv.byref(count))
    return [found[i] for i in range(count.value)]


def calls(h, mig, uuid):
    """Name of the C function, and the call that has to return data: (name, nullary)."""
    one, other, volta, consumer, parted = h
    same = lambda name, *args: (name, lambda: getattr(nv, name)(*args))  # noqa: E731
    yield from (
        ("nvmlErrorString", lambda: nv.nvmlErrorString(nv.NVML_ERROR_TIMEOUT)),
        same("nvmlSystemGetDriverVersion"), same("nvmlSystemGetNVMLVersion"), same("nvmlSystemGetCudaDriverVersion"),
        same("nvmlSystemGetCudaDriverVersion_v2"), same("nvmlSystemGetDriverBranch"),
        same("nvmlSystemGetProcessName", os.getpid()), same("nvmlSystemGetTopologyGpuSet", 0), same("nvmlUnitGetCount"),
        ("nvmlGetExcludedDeviceCount", nv.nvmlGetExcludedDeviceCount),
        ("nvmlDeviceGetCount_v2", nv.nvmlDeviceGetCount),
        ("nvmlDeviceGetHandleByIndex_v2", lambda: nv.nvmlDeviceGetHandleByIndex(1)),
        same("nvmlDeviceGetHandleByUUID", uuid.encode()),
        ("nvmlDeviceGetHandleByUUIDV", lambda: nv.nvmlDeviceGetHandleByUUIDV(uuid.encode(), nv.NVML_UUID_TYPE_ASCII)),
        same("nvmlDeviceGetHandleBySerial", nv.nvmlDeviceGetSerial(one).encode()),
        ("nvmlDeviceGetHandleByPciBusId_v2", lambda: nv.nvmlDeviceGetHandleByPciBusId(b"00000000:02:00.0")),
        ("nvmlDeviceGetPciInfo_v3", lambda: nv.nvmlDeviceGetPciInfo(one)),
        ("nvmlDeviceGetHandleByIndex_v2", lambda: nv.nvmlDeviceGetHandleByIndex(0)),
    )  # fmt: skip
    yield from (same(f"nvmlDeviceGet{name}", one) for name in PLAIN)
    yield from (
        ("nvmlDeviceGetPciInfoExt", lambda: pci_extended(one)),
        same("nvmlDeviceGetAPIRestriction", one, 0),
        ("nvmlDeviceGetMemoryInfo_v2", lambda: nv.nvmlDeviceGetMemoryInfo(one, nv.nvmlMemory_v2)),
        same("nvmlDeviceGetSamples", one, nv.NVML_GPU_UTILIZATION_SAMPLES, 0),
        same("nvmlDeviceGetFieldValues", one, [nv.NVML_FI_DEV_POWER_INSTANT]),
        same("nvmlDeviceGetTemperature", one, nv.NVML_TEMPERATURE_GPU),
        same("nvmlDeviceGetTemperatureV", one, nv.NVML_TEMPERATURE_GPU),
        same("nvmlDeviceGetTemperatureThreshold", one, nv.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN),
        same("nvmlDeviceGetThermalSettings", one, 0),
        same("nvmlDeviceGetFanSpeed", consumer), same("nvmlDeviceGetFanSpeed_v2", consumer, 1),
        same("nvmlDeviceGetTargetFanSpeed", consumer, 0), same("nvmlDeviceGetFanSpeedRPM", consumer),
        same("nvmlDeviceGetMinMaxFanSpeed", consumer),
        same("nvmlDeviceGetClockInfo", one, nv.NVML_CLOCK_SM),
        same("nvmlDeviceGetMaxClockInfo", one, nv.NVML_CLOCK_MEM),
        same("nvmlDeviceGetClock", one, nv.NVML_CLOCK_SM, nv.NVML_CLOCK_ID_CURRENT),
        same("nvmlDeviceGetMaxCustomerBoostClock", one, nv.NVML_CLOCK_SM),
        same("nvmlDeviceGetApplicationsClock", one, nv.NVML_CLOCK_SM),
        same("nvmlDeviceGetDefaultApplicationsClock", one, nv.NVML_CLOCK_SM),
        same("nvmlDeviceGetSupportedGraphicsClocks", one, 2619),
        same("nvmlDeviceGetViolationStatus", one, nv.NVML_PERF_POLICY_POWER),
        same("nvmlDeviceGetTotalEccErrors", one, 0, 0), same("nvmlDeviceGetDetailedEccErrors", one, 1, 1),
        same("nvmlDeviceGetMemoryErrorCounter", one, 0, 0, 2),
        same("nvmlDeviceGetRetiredPages", volta, 0), same("nvmlDeviceGetRetiredPages_v2", volta, 1),
        same("nvmlDeviceGetRetiredPagesPendingStatus", volta),
        same("nvmlDeviceGetPcieThroughput", one, nv.NVML_PCIE_UTIL_TX_BYTES),
        same("nvmlDeviceGetNvLinkState", one, 0), same("nvmlDeviceGetNvLinkVersion", one, 0),
        same("nvmlDeviceGetNvLinkCapability", one, 0, 0), same("nvmlDeviceGetNvLinkRemoteDeviceType", one, 0),
        ("nvmlDeviceGetNvLinkRemotePciInfo_v2", lambda: nv.nvmlDeviceGetNvLinkRemotePciInfo(one, 0)),
        same("nvmlDeviceGetNvLinkErrorCounter", one, 0, 0),
        ("nvmlDeviceGetGpuFabricInfo", lambda: fabric(one, nv.c_nvmlGpuFabricInfo_t, nv.nvmlDeviceGetGpuFabricInfo)),
        ("nvmlDeviceGetGpuFabricInfoV",
         lambda: fabric(one, nv.c_nvmlGpuFabricInfo_v2_t, nv.nvmlDeviceGetGpuFabricInfoV)),
        same("nvmlDeviceGetTopologyCommonAncestor", one, other), same("nvmlDeviceGetTopologyNearestGpus", one, 40),
        same("nvmlDeviceGetP2PStatus", one, other, nv.NVML_P2P_CAPS_INDEX_NVLINK),
        same("nvmlDeviceOnSameBoard", one, other),
        same("nvmlDeviceGetCpuAffinity", one, 2), same("nvmlDeviceGetCpuAffinityWithinScope", one, 2, 0),
        same("nvmlDeviceGetMemoryAffinity", one, 1, 0),
        same("nvmlDeviceGetRunningProcessDetailList", one, nv.nvmlProcessDetailList_v1, nv.NVML_PROCESS_MODE_ALL),
        same("nvmlDeviceGetProcessUtilization", one, 0), same("nvmlDeviceGetProcessesUtilizationInfo", one, 0),
        same("nvmlDeviceGetMigDeviceHandleByIndex", parted, 0),
        same("nvmlDeviceGetDeviceHandleFromMigDeviceHandle", mig), same("nvmlDeviceIsMigDeviceHandle", mig),
        same("nvmlDeviceGetGpuInstanceId", mig), same("nvmlDeviceGetComputeInstanceId", mig),
        ("nvmlDeviceGetAttributes_v2", lambda: nv.nvmlDeviceGetAttributes_v2(mig)),
        ("nvmlDeviceGetGpuInstanceProfileInfo", lambda: nv.nvmlDeviceGetGpuInstanceProfileInfo(parted, 2, version=1)),
        ("nvmlDeviceGetGpuInstanceProfileInfoV", lambda: nv.nvmlDeviceGetGpuInstanceProfileInfo(parted, 2)),
        same("nvmlDeviceGetGpuInstanceRemainingCapacity", parted, 19),
        ("nvmlDeviceGetGpuInstances", lambda: instance_handles(parted, 9)),
        same("nvmlDeviceGetGpuInstanceById", parted, 1),
        ("nvmlGpuInstanceGetInfo", lambda: nv.nvmlGpuInstanceGetInfo(instance_handles(parted, 9)[0])),
    )  # fmt: skip
    for kind in ("Compute", "Graphics", "MPSCompute"):
        yield from (same(f"nvmlDeviceGet{kind}RunningProcesses_v{version}", one) for version in (2, 3))


def pci_extended(handle):
    info = nv.nvmlPciInfoExt_v1_t()
    info.version = nv.nvmlPciInfoExt_v1
    assert nv.nvmlLib.nvmlDeviceGetPciInfoExt(handle, nv.byref(info)) == 0
    return info


@pytest.fixture
def handles(simulate):
    host = simulate(MIXED)
    h = [nv.nvmlDeviceGetHandleByIndex(i) for i in range(nv.nvmlDeviceGetCount())]
    return host, h, nv.nvmlDeviceGetMigDeviceHandleByIndex(h[PARTED], 0)


@pytest.mark.behaviour("SIM-1", "SIM-3")
def test_at_least_sixty_functions_return_data_through_nvidia_ml_py(handles):
    host, h, mig = handles
    returned = set()
    for name, call in calls(h, mig, host.uuid(0)):
        assert call() is not None, name
        returned.add(name)
    events = nv.nvmlEventSetCreate()
    nv.nvmlDeviceRegisterEvents(h[0], nv.nvmlEventTypeXidCriticalError, events)
    host.xid(0, 31)
    assert nv.nvmlEventSetWait_v2(events, 0).eventData == 31
    nv.nvmlEventSetFree(events)
    counted = set(host.calls())
    assert len(returned) >= 60
    assert returned - {"nvmlErrorString"} <= counted, "each call reached its own function in the library"
    # Older versions of a call, Windows' ones, and one that ended with Pascal: nvidia-ml-py does not ask for these.
    left = set(simstate.FUNCTIONS) - counted
    assert {name for name in left if not name.endswith(("_v2", "_v3", "PciInfo"))} <= {
        "nvmlInit", "nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex", "nvmlDeviceGetHandleByPciBusId",
        "nvmlDeviceGetNvLinkRemotePciInfo", "nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetAttributes",
        "nvmlDeviceGetGraphicsRunningProcesses", "nvmlDeviceGetMPSComputeRunningProcesses", "nvmlEventSetWait",
        "nvmlDeviceGetAutoBoostedClocksEnabled", "nvmlDeviceGetDriverModel", "nvmlShutdown",
    }  # fmt: skip


@pytest.mark.behaviour("SIM-1")
def test_values_are_those_of_the_scenario(handles):
    _, h, _ = handles
    one = h[HOPPER]
    assert nv.nvmlDeviceGetName(one) == "NVIDIA H100 80GB HBM3"
    assert nv.nvmlDeviceGetUtilizationRates(one).gpu == 71
    assert nv.nvmlDeviceGetTemperature(one, 0) == 61
    assert nv.nvmlDeviceGetPowerUsage(one) == 512_500
    assert nv.nvmlDeviceGetEncoderUtilization(one)[0] == 5
    assert nv.nvmlDeviceGetPcieThroughput(one, nv.NVML_PCIE_UTIL_TX_BYTES) == 1000
    memory = nv.nvmlDeviceGetMemoryInfo(one, nv.nvmlMemory_v2)
    assert memory.used == 13 << 30
    assert memory.total == memory.used + memory.free + memory.reserved
    assert nv.nvmlDeviceGetMemoryInfo(one).used == memory.used + memory.reserved
    assert [p.usedGpuMemory for p in nv.nvmlDeviceGetComputeRunningProcesses(one)] == [10 << 30]
    assert nv.nvmlDeviceGetComputeRunningProcesses(one)[0].gpuInstanceId == 0xFFFFFFFF
    assert len(nv.nvmlDeviceGetRetiredPages(h[VOLTA], 0)) == 2
    assert nv.nvmlDeviceGetFanSpeed(h[CONSUMER]) == 55
    assert nv.nvmlDeviceGetIndex(h[CONSUMER]) == CONSUMER
    assert nv.nvmlDeviceGetCudaComputeCapability(h[VOLTA]) == (7, 0)
    assert nv.nvmlSystemGetCudaDriverVersion() == 13_000


@pytest.mark.behaviour("SIM-1")
def test_instances_answer_for_themselves_and_the_parted_gpu_tells_no_load(handles):
    _, h, mig = handles
    assert nv.nvmlDeviceGetName(mig) == "NVIDIA A100-SXM4-40GB MIG 3g.20gb"
    assert nv.nvmlDeviceGetUUID(mig).startswith("MIG-")
    assert nv.nvmlDeviceGetUUID(
        nv.nvmlDeviceGetHandleByUUID(nv.nvmlDeviceGetUUID(mig).encode())
    ) == nv.nvmlDeviceGetUUID(mig)
    memory = nv.nvmlDeviceGetMemoryInfo(mig)
    assert (memory.total, memory.used) == (19968 << 20, 3 << 30)
    assert nv.nvmlDeviceGetAttributes_v2(mig).multiprocessorCount == 42
    assert nv.nvmlDeviceGetComputeRunningProcesses(mig)[0].gpuInstanceId == nv.nvmlDeviceGetGpuInstanceId(mig) == 1
    for call in (nv.nvmlDeviceGetUtilizationRates, nv.nvmlDeviceGetPowerUsage):
        with pytest.raises(nv.NVMLError_NotSupported):
            call(mig)
    with pytest.raises(nv.NVMLError_NotSupported):
        nv.nvmlDeviceGetUtilizationRates(h[PARTED])
    with pytest.raises(nv.NVMLError_NotFound):
        nv.nvmlDeviceGetMigDeviceHandleByIndex(h[PARTED], 5)
    with pytest.raises(nv.NVMLError_InvalidArgument):
        nv.nvmlDeviceGetMigDeviceHandleByIndex(h[PARTED], 7)


@pytest.mark.behaviour("SIM-1")
def test_what_a_model_does_not_have_is_not_supported(handles):
    _, h, _ = handles
    for call in (
        lambda: nv.nvmlDeviceGetFanSpeed(h[HOPPER]),
        lambda: nv.nvmlDeviceGetEccMode(h[CONSUMER]),
        lambda: nv.nvmlDeviceGetSerial(h[CONSUMER]),
        lambda: nv.nvmlDeviceGetMigMode(h[VOLTA]),
        lambda: nv.nvmlDeviceGetRetiredPages(h[HOPPER], 0),
        lambda: nv.nvmlDeviceGetRemappedRows(h[VOLTA]),
        lambda: nv.nvmlDeviceGetNvLinkState(h[VOLTA], 30),
        lambda: nv.nvmlDeviceGetDriverModel(h[HOPPER]),
    ):
        with pytest.raises(nv.NVMLError_NotSupported):
            call()


@pytest.mark.behaviour("SIM-1")
def test_each_field_value_has_a_code_and_a_type_of_its_own(handles):
    _, h, _ = handles
    ids = [nv.NVML_FI_DEV_MEMORY_TEMP, nv.NVML_FI_DEV_POWER_INSTANT, nv.NVML_FI_DEV_NVLINK_LINK_COUNT,
           nv.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION, nv.NVML_FI_DEV_RETIRED_SBE, 9999,
           (nv.NVML_FI_DEV_NVLINK_GET_SPEED, 3)]  # fmt: skip
    values = nv.nvmlDeviceGetFieldValues(h[HOPPER], ids)
    assert [v.nvmlReturn for v in values] == [
        0,
        0,
        0,
        0,
        nv.NVML_ERROR_NOT_SUPPORTED,
        nv.NVML_ERROR_INVALID_ARGUMENT,
        0,
    ]
    assert [values[i].value.uiVal for i in (0, 1, 2, 3, 6)] == [38, 512_500, 18, 0, 26562]
    assert values[1].valueType == nv.NVML_VALUE_TYPE_UNSIGNED_INT and values[0].timestamp > 0


@pytest.mark.behaviour("SIM-1")
def test_wrong_arguments_are_refused_as_the_driver_does(handles, library):
    _, h, _ = handles
    bad = nv.c_nvmlMemory_v2_t()
    bad.version = 1
    assert library.nvmlDeviceGetMemoryInfo_v2(h[0], nv.byref(bad)) == nv.NVML_ERROR_ARGUMENT_VERSION_MISMATCH
    assert library.nvmlDeviceGetPowerUsage(h[0], None) == nv.NVML_ERROR_INVALID_ARGUMENT
    assert library.nvmlDeviceGetPowerUsage(nv.c_void_p(1234), nv.byref(nv.c_uint())) == nv.NVML_ERROR_INVALID_ARGUMENT
    short = nv.create_string_buffer(4)
    assert library.nvmlDeviceGetName(h[0], short, 4) == nv.NVML_ERROR_INSUFFICIENT_SIZE
    with pytest.raises(nv.NVMLError_InvalidArgument):
        nv.nvmlDeviceGetHandleByIndex(5)
    with pytest.raises(nv.NVMLError_NotFound):
        nv.nvmlDeviceGetHandleByUUID(b"GPU-nobody")
    with pytest.raises(nv.NVMLError_InvalidArgument):
        nv.nvmlDeviceGetClockInfo(h[0], 9)
