/* Memory and load. */
#define _GNU_SOURCE
#include "core.h"

#define MIB (1024 * 1024)
#define SAMPLE_PERIOD_US 167000 /* utilisation is renewed six times a second */
#define SAMPLES 12

uint64_t sim_used_bytes_locked(const View *v) {
    double other = sim_series(v->state, v->number, SIM_SERIES_memory_used, v->now);
    uint64_t used = v->instance != NULL || isnan(other) ? 0 : (uint64_t)other;
    sim_sweep(v->state, v->number, v->now);
    for (int i = 0; i < SIM_MAX_PROCESSES; i++) {
        const SimProcess *process = &v->device->processes[i];
        if (v->instance == NULL || (int)process->instance == v->slot + 1) used += sim_process_bytes(process, v->now);
    }
    return used;
}

static uint64_t used_bytes(const View *v) {
    sim_lock(v->state);
    uint64_t used = sim_used_bytes_locked(v);
    sim_unlock(v->state);
    return used;
}

/* What is reserved belongs to the GPU: of an instance, its share is already taken out of its size. */
static void split(const View *v, nvmlMemory_v2_t *out) {
    int64_t reserved = v->instance != NULL || v->device->memory_reserved < 0 ? 0 : v->device->memory_reserved;
    out->total = v->instance != NULL ? (uint64_t)v->device->profiles[v->instance->profile].memory_mb * MIB
                                     : (uint64_t)v->device->memory_total;
    out->reserved = (uint64_t)reserved;
    uint64_t room = out->total - out->reserved;
    out->used = used_bytes(v);
    if (out->used > room) out->used = room;
    out->free = room - out->used;
}

static nvmlReturn_t memory(const View *v, nvmlMemory_t *out) {
    nvmlMemory_v2_t parts;
    split(v, &parts);
    out->total = parts.total;
    out->free = parts.free;
    out->used = parts.used + parts.reserved;
    return NVML_SUCCESS;
}
NUMBER_CALL(nvmlDeviceGetMemoryInfo, nvmlMemory_t, memory(v, out))

static nvmlReturn_t memory_v2(const View *v, nvmlMemory_v2_t *out) {
    if (out->version != nvmlMemory_v2) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    split(v, out);
    return NVML_SUCCESS;
}
NUMBER_CALL(nvmlDeviceGetMemoryInfo_v2, nvmlMemory_v2_t, memory_v2(v, out))

static nvmlReturn_t bar1(const View *v, nvmlBAR1Memory_t *out) {
    if (v->device->bar1_total < 0) return NVML_ERROR_NOT_SUPPORTED;
    double used = sim_series(v->state, v->number, SIM_SERIES_bar1_used, v->now);
    out->bar1Total = (uint64_t)v->device->bar1_total;
    out->bar1Used = isnan(used) ? 0 : (uint64_t)used;
    out->bar1Free = out->bar1Total - out->bar1Used;
    return NVML_SUCCESS;
}
NUMBER_CALL(nvmlDeviceGetBAR1MemoryInfo, nvmlBAR1Memory_t, bar1(v, out))

static nvmlReturn_t rates(const View *v, nvmlUtilization_t *out) {
    nvmlReturn_t code = sim_whole(v, SIM_SERIES_utilization, &out->gpu);
    return code == NVML_SUCCESS ? sim_whole(v, SIM_SERIES_memory_utilization, &out->memory) : code;
}
NUMBER_CALL(nvmlDeviceGetUtilizationRates, nvmlUtilization_t, rates(v, out))

#define PERIOD_CALL(function, series)                                                     \
    DEVICE_CALL(function, (nvmlDevice_t device, unsigned int *out, unsigned int *period), \
                out == NULL || period == NULL, (*period = SAMPLE_PERIOD_US, sim_whole(v, series, out)))
PERIOD_CALL(nvmlDeviceGetEncoderUtilization, SIM_SERIES_encoder)
PERIOD_CALL(nvmlDeviceGetDecoderUtilization, SIM_SERIES_decoder)
PERIOD_CALL(nvmlDeviceGetJpgUtilization, SIM_SERIES_jpeg)
PERIOD_CALL(nvmlDeviceGetOfaUtilization, SIM_SERIES_ofa)

/* Which series a buffer of samples is of, and by what its values are multiplied. -1: none that we have. */
static int sampled(nvmlSamplingType_t type, double *scale) {
    static const int SERIES[] = {SIM_SERIES_power,       SIM_SERIES_utilization, SIM_SERIES_memory_utilization,
                                 SIM_SERIES_encoder,     SIM_SERIES_decoder,     SIM_SERIES_clock_sm,
                                 SIM_SERIES_clock_memory};
    *scale = type == NVML_TOTAL_POWER_SAMPLES ? 1000 : 1;
    return (unsigned int)type < sizeof(SERIES) / sizeof(SERIES[0]) ? SERIES[type] : -1;
}

/* The newest values, at most two seconds of them; those that are not after `since` are left out. */
static nvmlReturn_t samples(const View *v, nvmlSamplingType_t type, unsigned long long since,
                            nvmlValueType_t *value_type, unsigned int *count, nvmlSample_t *out) {
    double scale;
    int series = sampled(type, &scale);
    if (series < 0) return NVML_ERROR_INVALID_ARGUMENT;
    unsigned long long newest = sim_epoch_us();
    unsigned int filled = 0;
    *value_type = NVML_VALUE_TYPE_UNSIGNED_INT;
    for (int back = SAMPLES - 1; back >= 0; back--) {
        unsigned long long at = newest - (unsigned long long)back * SAMPLE_PERIOD_US;
        double value = sim_series(v->state, v->number, series, v->now - (int64_t)back * SAMPLE_PERIOD_US * 1000);
        if (isnan(value)) return NVML_ERROR_NOT_SUPPORTED;
        if (at <= since) continue;
        if (out != NULL && filled < *count) {
            out[filled].timeStamp = at;
            out[filled].sampleValue.ullVal = (unsigned int)lrint(value * scale);
        }
        filled++;
    }
    if (out == NULL || filled < *count) *count = filled;
    return filled == 0 ? NVML_ERROR_NOT_FOUND : NVML_SUCCESS;
}
DEVICE_CALL(nvmlDeviceGetSamples,
            (nvmlDevice_t device, nvmlSamplingType_t type, unsigned long long since, nvmlValueType_t *value_type,
             unsigned int *count, nvmlSample_t *out),
            value_type == NULL || count == NULL, samples(v, type, since, value_type, count, out))

static nvmlReturn_t dynamic(const View *v, nvmlGpuDynamicPstatesInfo_t *out) {
    static const int SERIES[] = {SIM_SERIES_utilization, SIM_SERIES_memory_utilization, SIM_SERIES_decoder};
    memset(out, 0, sizeof(*out));
    out->flags = 1; /* dynamic states are on */
    for (int i = 0; i < 3; i++)
        out->utilization[i].bIsPresent = sim_whole(v, SERIES[i], &out->utilization[i].percentage) == NVML_SUCCESS;
    return NVML_SUCCESS;
}
NUMBER_CALL(nvmlDeviceGetDynamicPstatesInfo, nvmlGpuDynamicPstatesInfo_t, dynamic(v, out))
