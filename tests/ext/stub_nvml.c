/* A driver of which a test sets every answer: no state file, no clock, no threads. Compiled by tests/ext/stub_driver.py.
 *
 * `stub_code[call][device]` is returned where it is not 0; `stub_value[call][device]` is what the call tells;
 * `stub_calls` counts. With -DBARE only what a library cannot do without, and the temperature.
 */
#include <string.h>
#include <unistd.h>

#include "nvml_abi.h"

#define DEVICES 72
#define CALLS(X) \
    X(uuid) X(name) X(temperature) X(power) X(memory) X(memory_v1) X(utilization) X(encoder) X(decoder) X(clock) \
    X(clock_reasons) X(pstate) X(fields) X(power_limit) X(energy) X(fan) X(replays) X(ecc) X(retired) X(remapped) \
    X(processes) X(throughput) X(mig_mode) X(capability) X(threshold) X(bus_width) X(events) X(pci) X(ancestor)

#define NUMBER(name) CALL_##name,
enum { CALLS(NUMBER) CALL_COUNT };
#define NAME(name) #name " "
const char stub_names[] = CALLS(NAME);

int stub_init, stub_devices = 2, stub_mig_instances, stub_nvlinks, stub_event_xid;
volatile int stub_hang; /* a temperature does not come back while it is set */
int stub_code[64][DEVICES];
unsigned long long stub_value[64][DEVICES], stub_calls[64][DEVICES];
unsigned int stub_process_count, stub_process_pids[4096];

static struct nvmlDevice_st { int number; } handles[DEVICES];

#define ANSWER(call, device) \
    int at = (device)->number; \
    stub_calls[CALL_##call][at]++; \
    if (stub_code[CALL_##call][at] != 0) \
        return (nvmlReturn_t)stub_code[CALL_##call][at]; \
    unsigned long long value = stub_value[CALL_##call][at]; \
    (void)value;

nvmlReturn_t nvmlInit_v2(void) { return (nvmlReturn_t)stub_init; }
nvmlReturn_t nvmlShutdown(void) { return NVML_SUCCESS; }

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *count)
{
    *count = (unsigned int)stub_devices;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device)
{
    handles[index].number = (int)index;
    *device = &handles[index];
    return NVML_SUCCESS;
}

static void number_text(char *to, const char *prefix, int number)
{
    strcpy(to, prefix);
    to += strlen(to);
    *to++ = (char)('0' + number / 10);
    *to++ = (char)('0' + number % 10);
    *to = 0;
}

nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *uuid, unsigned int length)
{
    ANSWER(uuid, device)
    (void)length;
    number_text(uuid, at >= 64 ? "MIG-" : "GPU-", at);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, nvmlTemperatureSensors_t sensor, unsigned int *celsius)
{
    ANSWER(temperature, device)
    (void)sensor;
    while (stub_hang)
        usleep(100);
    *celsius = (unsigned int)value;
    return NVML_SUCCESS;
}

#ifndef BARE

nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned int length)
{
    (void)length;
    strcpy(version, "570.00");
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *version)
{
    *version = 12080;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *name, unsigned int length)
{
    ANSWER(name, device)
    (void)length;
    strcpy(name, at >= 64 ? "Stub 9000 MIG 1g.10gb" : "Stub 9000");
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t *pci)
{
    ANSWER(pci, device)
    memset(pci, 0, sizeof(*pci));
    number_text(pci->busId, "00000000:", at);
    strcat(pci->busId, ":00.0");
    return NVML_SUCCESS;
}

#define NUMBERS(function, call, type) \
    nvmlReturn_t function(nvmlDevice_t device, type *number) \
    { \
        ANSWER(call, device) \
        *number = (type)value; \
        return NVML_SUCCESS; \
    }
NUMBERS(nvmlDeviceGetPowerUsage, power, unsigned int)
NUMBERS(nvmlDeviceGetEnforcedPowerLimit, power_limit, unsigned int)
NUMBERS(nvmlDeviceGetTotalEnergyConsumption, energy, unsigned long long)
NUMBERS(nvmlDeviceGetFanSpeed, fan, unsigned int)
NUMBERS(nvmlDeviceGetPcieReplayCounter, replays, unsigned int)
NUMBERS(nvmlDeviceGetCurrentClocksEventReasons, clock_reasons, unsigned long long)
NUMBERS(nvmlDeviceGetPerformanceState, pstate, nvmlPstates_t)
NUMBERS(nvmlDeviceGetMemoryBusWidth, bus_width, unsigned int)

nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory)
{
    ANSWER(memory, device)
    if (memory->version != nvmlMemory_v2)
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    memory->total = 80ULL << 30;
    memory->used = value;
    memory->reserved = 1 << 20;
    memory->free = memory->total - value;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory)
{
    ANSWER(memory_v1, device)
    memory->total = 40ULL << 30;
    memory->used = value;
    memory->free = memory->total - value;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *utilization)
{
    ANSWER(utilization, device)
    utilization->gpu = (unsigned int)value;
    utilization->memory = (unsigned int)(value >> 32);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetEncoderUtilization(nvmlDevice_t device, unsigned int *percent, unsigned int *period)
{
    ANSWER(encoder, device)
    *percent = (unsigned int)value;
    *period = 0;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetDecoderUtilization(nvmlDevice_t device, unsigned int *percent, unsigned int *period)
{
    ANSWER(decoder, device)
    *percent = (unsigned int)value;
    *period = 0;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetClockInfo(nvmlDevice_t device, nvmlClockType_t type, unsigned int *mhz)
{
    ANSWER(clock, device)
    *mhz = (unsigned int)value + (unsigned int)type;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMaxClockInfo(nvmlDevice_t device, nvmlClockType_t type, unsigned int *mhz)
{
    return nvmlDeviceGetClockInfo(device, type, mhz);
}

nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t device, int count, nvmlFieldValue_t *values)
{
    ANSWER(fields, device)
    for (int i = 0; i < count; i++) {
        values[i].nvmlReturn = value == 0 ? NVML_ERROR_NOT_SUPPORTED : NVML_SUCCESS;
        values[i].valueType = NVML_VALUE_TYPE_UNSIGNED_LONG_LONG;
        values[i].value.ullVal = values[i].fieldId == NVML_FI_DEV_GET_GPU_RECOVERY_ACTION ? 1 : value;
    }
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetTotalEccErrors(nvmlDevice_t device, nvmlMemoryErrorType_t type, nvmlEccCounterType_t counter,
                                         unsigned long long *count)
{
    ANSWER(ecc, device)
    *count = value + 10 * (unsigned int)type + 100 * (unsigned int)counter;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetRetiredPages(nvmlDevice_t device, nvmlPageRetirementCause_t cause, unsigned int *count,
                                       unsigned long long *addresses)
{
    ANSWER(retired, device)
    (void)cause, (void)addresses;
    *count = (unsigned int)value;
    return value == 0 ? NVML_SUCCESS : NVML_ERROR_INSUFFICIENT_SIZE;
}

nvmlReturn_t nvmlDeviceGetRemappedRows(nvmlDevice_t device, unsigned int *corrected, unsigned int *uncorrected,
                                       unsigned int *pending, unsigned int *failed)
{
    ANSWER(remapped, device)
    *corrected = (unsigned int)value;
    *uncorrected = 2, *pending = 1, *failed = 0;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPcieThroughput(nvmlDevice_t device, nvmlPcieUtilCounter_t counter, unsigned int *kb)
{
    ANSWER(throughput, device)
    *kb = (unsigned int)value + (unsigned int)counter;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t device, int *major, int *minor)
{
    ANSWER(capability, device)
    *major = 9, *minor = 0;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetTemperatureThreshold(nvmlDevice_t device, nvmlTemperatureThresholds_t type, unsigned int *celsius)
{
    ANSWER(threshold, device)
    *celsius = (unsigned int)value - (value > 0 && value < 1000 ? 5 * (unsigned int)type : 0);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device, unsigned int *count, nvmlProcessInfo_t *infos)
{
    ANSWER(processes, device)
    unsigned int room = *count;
    *count = stub_process_count;
    if (room < stub_process_count)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    for (unsigned int i = 0; i < stub_process_count; i++) {
        infos[i].pid = stub_process_pids[i];
        infos[i].usedGpuMemory = i == 0 ? NVML_VALUE_NOT_AVAILABLE_ULL : 1000 * i;
    }
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v3(nvmlDevice_t device, unsigned int *count, nvmlProcessInfo_t *infos)
{
    ANSWER(processes, device)
    if (stub_process_count == 0 || *count < 2)
        return *count = 0, NVML_SUCCESS;
    infos[0].pid = stub_process_pids[0];
    infos[0].usedGpuMemory = infos[1].usedGpuMemory = 7;
    infos[1].pid = 99999;
    *count = 2;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned int *current, unsigned int *pending)
{
    ANSWER(mig_mode, device)
    *current = *pending = at < 64 && value != 0;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t device, unsigned int *count)
{
    (void)device;
    *count = 7;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t device, unsigned int index, nvmlDevice_t *instance)
{
    (void)device;
    if (index % 2 == 0 || (int)index / 2 >= stub_mig_instances) /* holes between instances, as after a deletion */
        return NVML_ERROR_NOT_FOUND;
    handles[64 + index / 2].number = 64 + (int)index / 2;
    *instance = &handles[64 + index / 2];
    return NVML_SUCCESS;
}

/* Links of every GPU: the first goes to the next GPU, the others to a switch. */
nvmlReturn_t nvmlDeviceGetNvLinkState(nvmlDevice_t device, unsigned int link, nvmlEnableState_t *active)
{
    (void)device;
    if ((int)link >= stub_nvlinks)
        return NVML_ERROR_INVALID_ARGUMENT;
    *active = NVML_FEATURE_ENABLED;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetNvLinkRemoteDeviceType(nvmlDevice_t device, unsigned int link, nvmlIntNvLinkDeviceType_t *type)
{
    (void)device;
    *type = link == 0 ? NVML_NVLINK_DEVICE_TYPE_GPU : NVML_NVLINK_DEVICE_TYPE_SWITCH;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetNvLinkRemotePciInfo_v2(nvmlDevice_t device, unsigned int link, nvmlPciInfo_t *pci)
{
    (void)link;
    memset(pci, 0, sizeof(*pci));
    number_text(pci->busId, "0000:", device->number ^ 1); /* some calls write a shorter domain */
    strcat(pci->busId, ":00.0");
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetTopologyCommonAncestor(nvmlDevice_t device, nvmlDevice_t other, nvmlGpuTopologyLevel_t *level)
{
    ANSWER(ancestor, device)
    *level = device->number / 2 == other->number / 2 ? NVML_TOPOLOGY_SINGLE : NVML_TOPOLOGY_SYSTEM;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMaxPcieLinkGeneration(nvmlDevice_t device, unsigned int *generation)
{
    (void)device;
    *generation = 4;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMaxPcieLinkWidth(nvmlDevice_t device, unsigned int *lanes)
{
    (void)device;
    *lanes = 16;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlEventSetCreate(nvmlEventSet_t *set)
{
    *set = (nvmlEventSet_t)&stub_event_xid;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlEventSetFree(nvmlEventSet_t set)
{
    (void)set;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetSupportedEventTypes(nvmlDevice_t device, unsigned long long *types)
{
    ANSWER(events, device)
    *types = nvmlEventTypeXidCriticalError | nvmlEventTypePState;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceRegisterEvents(nvmlDevice_t device, unsigned long long types, nvmlEventSet_t set)
{
    (void)device, (void)set;
    return types == nvmlEventTypeXidCriticalError ? NVML_SUCCESS : NVML_ERROR_INVALID_ARGUMENT;
}

nvmlReturn_t nvmlEventSetWait_v2(nvmlEventSet_t set, nvmlEventData_t *data, unsigned int timeout_ms)
{
    (void)set, (void)timeout_ms;
    if (stub_event_xid == 0)
        return NVML_ERROR_TIMEOUT;
    memset(data, 0, sizeof(*data));
    data->device = &handles[1];
    data->eventType = nvmlEventTypeXidCriticalError;
    data->eventData = (unsigned long long)stub_event_xid;
    data->gpuInstanceId = data->computeInstanceId = NVML_VALUE_NOT_AVAILABLE_UINT;
    stub_event_xid = 0;
    return NVML_SUCCESS;
}

#endif
