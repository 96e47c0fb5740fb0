/* The limit that bench.telemetry measures against: the same 17 calls per device, and nothing done with the answers.
 *
 * A shared library: `prepare` opens the driver, `sweep` reads every device `count` times.
 */
#include <dlfcn.h>
#include <string.h>
#include <time.h>

#include "nvml_abi.h"

#define MOST 64

static nvmlDevice_t devices[MOST];
static unsigned int device_count;
volatile unsigned long long sink;

#define CALLS(X) \
    X(nvmlInit_v2) X(nvmlDeviceGetCount_v2) X(nvmlDeviceGetHandleByIndex_v2) X(nvmlDeviceGetMemoryInfo_v2) \
    X(nvmlDeviceGetClockInfo) X(nvmlDeviceGetTemperature) X(nvmlDeviceGetPowerUsage) X(nvmlDeviceGetUtilizationRates) \
    X(nvmlDeviceGetEncoderUtilization) X(nvmlDeviceGetDecoderUtilization) X(nvmlDeviceGetCurrentClocksEventReasons) \
    X(nvmlDeviceGetPerformanceState) X(nvmlDeviceGetEnforcedPowerLimit) X(nvmlDeviceGetTotalEnergyConsumption) \
    X(nvmlDeviceGetFanSpeed) X(nvmlDeviceGetPcieReplayCounter) X(nvmlDeviceGetTotalEccErrors)
#define POINTER(name) static __typeof__(&name) p_##name;
CALLS(POINTER)

int prepare(const char *path)
{
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == 0)
        return -1;
#define FIND(name) if ((p_##name = (__typeof__(&name))dlsym(library, #name)) == 0) return -1;
    CALLS(FIND)
    if (p_nvmlInit_v2() != NVML_SUCCESS || p_nvmlDeviceGetCount_v2(&device_count) != NVML_SUCCESS || device_count > MOST)
        return -1;
    for (unsigned int i = 0; i < device_count; i++)
        if (p_nvmlDeviceGetHandleByIndex_v2(i, &devices[i]) != NVML_SUCCESS)
            return -1;
    return (int)device_count;
}

/* 0, or the first code that was no success: whoever does less is no limit. */
static int sweep_one(nvmlDevice_t device)
{
    nvmlMemory_v2_t memory = {.version = nvmlMemory_v2};
    nvmlUtilization_t utilization;
    nvmlPstates_t state;
    unsigned int n[9], period;
    unsigned long long l[4];
    int bad = p_nvmlDeviceGetMemoryInfo_v2(device, &memory);
    bad |= p_nvmlDeviceGetClockInfo(device, NVML_CLOCK_SM, &n[0]);
    bad |= p_nvmlDeviceGetClockInfo(device, NVML_CLOCK_MEM, &n[1]);
    bad |= p_nvmlDeviceGetClockInfo(device, NVML_CLOCK_GRAPHICS, &n[2]);
    bad |= p_nvmlDeviceGetClockInfo(device, NVML_CLOCK_VIDEO, &n[3]);
    bad |= p_nvmlDeviceGetTemperature(device, NVML_TEMPERATURE_GPU, &n[4]);
    bad |= p_nvmlDeviceGetPowerUsage(device, &n[5]);
    bad |= p_nvmlDeviceGetUtilizationRates(device, &utilization);
    bad |= p_nvmlDeviceGetEncoderUtilization(device, &n[6], &period);
    bad |= p_nvmlDeviceGetDecoderUtilization(device, &n[7], &period);
    bad |= p_nvmlDeviceGetCurrentClocksEventReasons(device, &l[0]);
    bad |= p_nvmlDeviceGetPerformanceState(device, &state);
    bad |= p_nvmlDeviceGetEnforcedPowerLimit(device, &n[8]);
    bad |= p_nvmlDeviceGetTotalEnergyConsumption(device, &l[1]);
    bad |= p_nvmlDeviceGetFanSpeed(device, &period);
    sink += period;
    bad |= p_nvmlDeviceGetPcieReplayCounter(device, &period);
    bad |= p_nvmlDeviceGetTotalEccErrors(device, NVML_MEMORY_ERROR_TYPE_CORRECTED, NVML_VOLATILE_ECC, &l[2]);
    sink += memory.used + n[5] + l[0] + l[1] + l[2] + utilization.gpu;
    return bad;
}

int sweep(int count)
{
    int bad = 0;
    for (int round = 0; round < count; round++)
        for (unsigned int i = 0; i < device_count; i++)
            bad |= sweep_one(devices[i]);
    return bad;
}
