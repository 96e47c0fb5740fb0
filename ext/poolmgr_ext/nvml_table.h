/* The functions of a driver library that was opened at run time; nothing here is linked against it.
 *
 * Each line: our name, the symbol, and an older symbol of the same signature (or the same one again). What the library
 * does not have answers NVML_ERROR_FUNCTION_NOT_FOUND, as a driver does that knows the name and no more.
 */
#ifndef POOLMGR_NVML_TABLE_H
#define POOLMGR_NVML_TABLE_H

#include <dlfcn.h>

#include "nvml_abi.h"

#define NVML_TABLE(X) \
    X(init, nvmlInit_v2, nvmlInit) \
    X(shutdown, nvmlShutdown, nvmlShutdown) \
    X(driver_version, nvmlSystemGetDriverVersion, nvmlSystemGetDriverVersion) \
    X(nvml_version, nvmlSystemGetNVMLVersion, nvmlSystemGetNVMLVersion) \
    X(cuda_version, nvmlSystemGetCudaDriverVersion_v2, nvmlSystemGetCudaDriverVersion) \
    X(count, nvmlDeviceGetCount_v2, nvmlDeviceGetCount) \
    X(by_index, nvmlDeviceGetHandleByIndex_v2, nvmlDeviceGetHandleByIndex) \
    X(name, nvmlDeviceGetName, nvmlDeviceGetName) \
    X(uuid, nvmlDeviceGetUUID, nvmlDeviceGetUUID) \
    X(compute_capability, nvmlDeviceGetCudaComputeCapability, nvmlDeviceGetCudaComputeCapability) \
    X(pci, nvmlDeviceGetPciInfo_v3, nvmlDeviceGetPciInfo_v2) \
    X(memory_affinity, nvmlDeviceGetMemoryAffinity, nvmlDeviceGetMemoryAffinity) \
    X(memory_bus_width, nvmlDeviceGetMemoryBusWidth, nvmlDeviceGetMemoryBusWidth) \
    X(memory, nvmlDeviceGetMemoryInfo_v2, nvmlDeviceGetMemoryInfo_v2) \
    X(memory_v1, nvmlDeviceGetMemoryInfo, nvmlDeviceGetMemoryInfo) \
    X(utilization, nvmlDeviceGetUtilizationRates, nvmlDeviceGetUtilizationRates) \
    X(encoder, nvmlDeviceGetEncoderUtilization, nvmlDeviceGetEncoderUtilization) \
    X(decoder, nvmlDeviceGetDecoderUtilization, nvmlDeviceGetDecoderUtilization) \
    X(field_values, nvmlDeviceGetFieldValues, nvmlDeviceGetFieldValues) \
    X(temperature, nvmlDeviceGetTemperature, nvmlDeviceGetTemperature) \
    X(threshold, nvmlDeviceGetTemperatureThreshold, nvmlDeviceGetTemperatureThreshold) \
    X(fan, nvmlDeviceGetFanSpeed, nvmlDeviceGetFanSpeed) \
    X(power, nvmlDeviceGetPowerUsage, nvmlDeviceGetPowerUsage) \
    X(power_limit, nvmlDeviceGetEnforcedPowerLimit, nvmlDeviceGetPowerManagementLimit) \
    X(energy, nvmlDeviceGetTotalEnergyConsumption, nvmlDeviceGetTotalEnergyConsumption) \
    X(performance_state, nvmlDeviceGetPerformanceState, nvmlDeviceGetPowerState) \
    X(clock, nvmlDeviceGetClockInfo, nvmlDeviceGetClockInfo) \
    X(max_clock, nvmlDeviceGetMaxClockInfo, nvmlDeviceGetMaxClockInfo) \
    X(clock_reasons, nvmlDeviceGetCurrentClocksEventReasons, nvmlDeviceGetCurrentClocksThrottleReasons) \
    X(ecc_mode, nvmlDeviceGetEccMode, nvmlDeviceGetEccMode) \
    X(ecc_errors, nvmlDeviceGetTotalEccErrors, nvmlDeviceGetTotalEccErrors) \
    X(retired_pages, nvmlDeviceGetRetiredPages, nvmlDeviceGetRetiredPages) \
    X(retired_pending, nvmlDeviceGetRetiredPagesPendingStatus, nvmlDeviceGetRetiredPagesPendingStatus) \
    X(remapped_rows, nvmlDeviceGetRemappedRows, nvmlDeviceGetRemappedRows) \
    X(pcie_throughput, nvmlDeviceGetPcieThroughput, nvmlDeviceGetPcieThroughput) \
    X(pcie_replays, nvmlDeviceGetPcieReplayCounter, nvmlDeviceGetPcieReplayCounter) \
    X(pcie_generation, nvmlDeviceGetMaxPcieLinkGeneration, nvmlDeviceGetMaxPcieLinkGeneration) \
    X(pcie_width, nvmlDeviceGetMaxPcieLinkWidth, nvmlDeviceGetMaxPcieLinkWidth) \
    X(nvlink_state, nvmlDeviceGetNvLinkState, nvmlDeviceGetNvLinkState) \
    X(nvlink_peer, nvmlDeviceGetNvLinkRemotePciInfo_v2, nvmlDeviceGetNvLinkRemotePciInfo) \
    X(nvlink_peer_type, nvmlDeviceGetNvLinkRemoteDeviceType, nvmlDeviceGetNvLinkRemoteDeviceType) \
    X(common_ancestor, nvmlDeviceGetTopologyCommonAncestor, nvmlDeviceGetTopologyCommonAncestor) \
    X(compute_processes, nvmlDeviceGetComputeRunningProcesses_v3, nvmlDeviceGetComputeRunningProcesses_v2) \
    X(graphics_processes, nvmlDeviceGetGraphicsRunningProcesses_v3, nvmlDeviceGetGraphicsRunningProcesses_v2) \
    X(mps_processes, nvmlDeviceGetMPSComputeRunningProcesses_v3, nvmlDeviceGetMPSComputeRunningProcesses_v2) \
    X(mig_mode, nvmlDeviceGetMigMode, nvmlDeviceGetMigMode) \
    X(mig_count, nvmlDeviceGetMaxMigDeviceCount, nvmlDeviceGetMaxMigDeviceCount) \
    X(mig_by_index, nvmlDeviceGetMigDeviceHandleByIndex, nvmlDeviceGetMigDeviceHandleByIndex) \
    X(attributes, nvmlDeviceGetAttributes_v2, nvmlDeviceGetAttributes) \
    X(event_set_create, nvmlEventSetCreate, nvmlEventSetCreate) \
    X(event_register, nvmlDeviceRegisterEvents, nvmlDeviceRegisterEvents) \
    X(event_types, nvmlDeviceGetSupportedEventTypes, nvmlDeviceGetSupportedEventTypes) \
    X(event_wait, nvmlEventSetWait_v2, nvmlEventSetWait) \
    X(event_set_free, nvmlEventSetFree, nvmlEventSetFree)

struct nvml_table {
#define NVML_TABLE_POINTER(name, symbol, older) __typeof__(&symbol) name;
    NVML_TABLE(NVML_TABLE_POINTER)
#undef NVML_TABLE_POINTER
};

/* Called with the arguments of the function it stands for, which the calling conventions of x86-64 and aarch64 allow. */
static nvmlReturn_t nvml_missing(void) { return NVML_ERROR_FUNCTION_NOT_FOUND; }

static inline void *nvml_find(void *library, const char *symbol, const char *older)
{
    void *found = dlsym(library, symbol);
    if (found == 0)
        found = dlsym(library, older);
    return found != 0 ? found : (void *)(size_t)&nvml_missing;
}

static inline void nvml_table_load(struct nvml_table *table, void *library)
{
#define NVML_TABLE_FIND(name, symbol, older) table->name = (__typeof__(&symbol))nvml_find(library, #symbol, #older);
    NVML_TABLE(NVML_TABLE_FIND)
#undef NVML_TABLE_FIND
}

static inline int nvml_is_missing(const void *function) { return function == (void *)(size_t)&nvml_missing; }

#endif
