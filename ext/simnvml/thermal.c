/* Temperature, fans, power, clocks. */
#define _GNU_SOURCE
#include "core.h"

#define PERFORMANCE_IDLE 8
#define CLOCK_STEP_MHZ 15
#define SUPPORTED_CLOCK_STEPS 64

static nvmlReturn_t temperature(const View *v, unsigned int sensor, unsigned int *out) {
    if (sensor != NVML_TEMPERATURE_GPU) return NVML_ERROR_INVALID_ARGUMENT;
    return sim_whole(v, SIM_SERIES_temperature, out);
}
DEVICE_CALL(nvmlDeviceGetTemperature, (nvmlDevice_t device, nvmlTemperatureSensors_t sensor, unsigned int *out),
            out == NULL, temperature(v, sensor, out))

static nvmlReturn_t temperature_v(const View *v, nvmlTemperature_v1_t *out) {
    if (out->version != nvmlTemperature_v1) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    unsigned int celsius = 0;
    nvmlReturn_t code = temperature(v, out->sensorType, &celsius);
    if (code == NVML_SUCCESS) out->temperature = (int)celsius;
    return code;
}
NUMBER_CALL(nvmlDeviceGetTemperatureV, nvmlTemperature_v1_t, temperature_v(v, out))

static nvmlReturn_t threshold(const View *v, nvmlTemperatureThresholds_t type, unsigned int *out) {
    const SimDevice *d = v->device;
    switch (type) {
    case NVML_TEMPERATURE_THRESHOLD_SHUTDOWN: return SIM_TELL(out, d->threshold_shutdown);
    case NVML_TEMPERATURE_THRESHOLD_SLOWDOWN: return SIM_TELL(out, d->threshold_slowdown);
    case NVML_TEMPERATURE_THRESHOLD_MEM_MAX: return SIM_TELL(out, d->threshold_memory);
    case NVML_TEMPERATURE_THRESHOLD_GPU_MAX: return SIM_TELL(out, d->threshold_gpu);
    default: return type < NVML_TEMPERATURE_THRESHOLD_COUNT ? NVML_ERROR_NOT_SUPPORTED : NVML_ERROR_INVALID_ARGUMENT;
    }
}
DEVICE_CALL(nvmlDeviceGetTemperatureThreshold,
            (nvmlDevice_t device, nvmlTemperatureThresholds_t type, unsigned int *out), out == NULL,
            threshold(v, type, out))

static nvmlReturn_t margin(const View *v, nvmlMarginTemperature_v1_t *out) {
    unsigned int celsius;
    if (out->version != nvmlMarginTemperature_v1) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    if (v->device->threshold_slowdown < 0 || v->device->architecture < NVML_DEVICE_ARCH_HOPPER)
        return NVML_ERROR_NOT_SUPPORTED;
    nvmlReturn_t code = sim_whole(v, SIM_SERIES_temperature, &celsius);
    if (code == NVML_SUCCESS) out->marginTemperature = (int)v->device->threshold_slowdown - (int)celsius;
    return code;
}
NUMBER_CALL(nvmlDeviceGetMarginTemperature, nvmlMarginTemperature_v1_t, margin(v, out))

static nvmlReturn_t thermal_settings(const View *v, nvmlGpuThermalSettings_t *out) {
    unsigned int celsius;
    nvmlReturn_t code = sim_whole(v, SIM_SERIES_temperature, &celsius);
    if (code != NVML_SUCCESS) return code;
    memset(out, 0, sizeof(*out));
    out->count = 1;
    out->sensor[0] = (nvmlGpuThermalSensor_t){1, 0, (int)v->device->threshold_shutdown, (int)celsius, 1};
    return NVML_SUCCESS;
}
DEVICE_CALL(nvmlDeviceGetThermalSettings, (nvmlDevice_t device, unsigned int sensor, nvmlGpuThermalSettings_t *out),
            out == NULL || (sensor != 0 && sensor != 15), thermal_settings(v, out))

static nvmlReturn_t fan(const View *v, unsigned int number, unsigned int *out) {
    if (v->device->fan_count <= 0) return NVML_ERROR_NOT_SUPPORTED;
    return number < v->device->fan_count ? sim_whole(v, SIM_SERIES_fan, out) : NVML_ERROR_INVALID_ARGUMENT;
}
#define FANS(result) (v->device->fan_count <= 0 ? NVML_ERROR_NOT_SUPPORTED : (result))
NUMBER_CALL(nvmlDeviceGetFanSpeed, unsigned int, fan(v, 0, out))
NUMBER_CALL(nvmlDeviceGetNumFans, unsigned int, SIM_TELL(out, v->device->fan_count))
DEVICE_CALL(nvmlDeviceGetFanSpeed_v2, (nvmlDevice_t device, unsigned int number, unsigned int *out), out == NULL,
            fan(v, number, out))
DEVICE_CALL(nvmlDeviceGetTargetFanSpeed, (nvmlDevice_t device, unsigned int number, unsigned int *out), out == NULL,
            fan(v, number, out))
DEVICE_CALL(nvmlDeviceGetMinMaxFanSpeed, (nvmlDevice_t device, unsigned int *minimum, unsigned int *maximum),
            minimum == NULL || maximum == NULL, FANS((*minimum = 30, *maximum = 100, NVML_SUCCESS)))

static nvmlReturn_t fan_rpm(const View *v, nvmlFanSpeedInfo_t *out) {
    if (out->version != nvmlFanSpeedInfo_v1) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    nvmlReturn_t code = fan(v, out->fan, &out->speed);
    out->speed *= 30; /* 3,000 a minute at full speed */
    return code;
}
NUMBER_CALL(nvmlDeviceGetFanSpeedRPM, nvmlFanSpeedInfo_t, fan_rpm(v, out))

static nvmlReturn_t power(const View *v, unsigned int *out) {
    double watts = sim_series(v->state, v->number, SIM_SERIES_power, v->now);
    if (isnan(watts)) return NVML_ERROR_NOT_SUPPORTED;
    *out = watts > 0 ? (unsigned int)lrint(watts * 1000) : 0;
    return NVML_SUCCESS;
}
NUMBER_CALL(nvmlDeviceGetPowerUsage, unsigned int, power(v, out))
NUMBER_CALL(nvmlDeviceGetPowerManagementMode, nvmlEnableState_t,
            v->device->power_limit_mw < 0 ? NVML_ERROR_NOT_SUPPORTED : (*out = NVML_FEATURE_ENABLED, NVML_SUCCESS))
NUMBER_CALL(nvmlDeviceGetPowerManagementLimit, unsigned int, SIM_TELL(out, v->device->power_limit_mw))
NUMBER_CALL(nvmlDeviceGetEnforcedPowerLimit, unsigned int, SIM_TELL(out, v->device->power_limit_mw))
NUMBER_CALL(nvmlDeviceGetPowerManagementDefaultLimit, unsigned int, SIM_TELL(out, v->device->power_default_mw))
NUMBER_CALL(nvmlDeviceGetPowerSource, unsigned int, (*out = 0, NVML_SUCCESS))
DEVICE_CALL(nvmlDeviceGetPowerManagementLimitConstraints,
            (nvmlDevice_t device, unsigned int *minimum, unsigned int *maximum), minimum == NULL || maximum == NULL,
            v->device->power_minimum_mw < 0 ? NVML_ERROR_NOT_SUPPORTED
                                            : (*minimum = (unsigned int)v->device->power_minimum_mw,
                                               *maximum = (unsigned int)v->device->power_maximum_mw, NVML_SUCCESS))

/* `energy_mj` is what had been used before the scenario began. */
uint64_t sim_energy_mj(const View *v) {
    double joules = sim_series_total(v->state, v->number, SIM_SERIES_power, v->now);
    return (uint64_t)v->device->energy_mj + (uint64_t)(1000 * joules);
}
NUMBER_CALL(nvmlDeviceGetTotalEnergyConsumption, unsigned long long,
            v->device->energy_mj < 0 ? NVML_ERROR_NOT_SUPPORTED : (*out = sim_energy_mj(v), NVML_SUCCESS))

/* Not set: full speed under load, P8 when idle. */
static nvmlReturn_t pstate(const View *v, nvmlPstates_t *out) {
    double load = sim_series(v->state, v->number, SIM_SERIES_utilization, v->now);
    *out = (nvmlPstates_t)(v->device->pstate >= 0 ? v->device->pstate : load >= 0.5 ? 0 : PERFORMANCE_IDLE);
    return NVML_SUCCESS;
}
NUMBER_CALL(nvmlDeviceGetPerformanceState, nvmlPstates_t, pstate(v, out))
NUMBER_CALL(nvmlDeviceGetPowerState, nvmlPstates_t, pstate(v, out))

static nvmlReturn_t pstates(nvmlPstates_t *out, unsigned int size) {
    unsigned int room = size / sizeof(*out);
    if (room < 3) return NVML_ERROR_INSUFFICIENT_SIZE;
    for (unsigned int i = 0; i < room; i++) out[i] = NVML_PSTATE_UNKNOWN;
    out[0] = NVML_PSTATE_0;
    out[1] = NVML_PSTATE_2;
    out[2] = NVML_PSTATE_8;
    return NVML_SUCCESS;
}
DEVICE_CALL(nvmlDeviceGetSupportedPerformanceStates, (nvmlDevice_t device, nvmlPstates_t *out, unsigned int size),
            out == NULL, pstates(out, size))

static nvmlReturn_t clock_now(const View *v, unsigned int type, unsigned int *out) {
    static const int SERIES[] = {SIM_SERIES_clock_graphics, SIM_SERIES_clock_sm, SIM_SERIES_clock_memory,
                                 SIM_SERIES_clock_video};
    return type < NVML_CLOCK_COUNT ? sim_whole(v, SERIES[type], out) : NVML_ERROR_INVALID_ARGUMENT;
}

static nvmlReturn_t clock_maximum(const View *v, unsigned int type, unsigned int *out) {
    if (type >= NVML_CLOCK_COUNT) return NVML_ERROR_INVALID_ARGUMENT;
    if (type == NVML_CLOCK_MEM) return SIM_TELL(out, v->device->clock_max_memory);
    return type == NVML_CLOCK_VIDEO ? SIM_TELL(out, v->device->clock_max_video)
                                    : SIM_TELL(out, v->device->clock_max_graphics);
}

/* Consumer cards have no application clocks. */
static nvmlReturn_t clock_application(const View *v, unsigned int type, unsigned int *out) {
    if (type >= NVML_CLOCK_COUNT) return NVML_ERROR_INVALID_ARGUMENT;
    if (v->device->clock_application < 0 || type == NVML_CLOCK_VIDEO) return NVML_ERROR_NOT_SUPPORTED;
    return type == NVML_CLOCK_MEM ? SIM_TELL(out, v->device->clock_max_memory)
                                  : SIM_TELL(out, v->device->clock_application);
}

static nvmlReturn_t clock_by(const View *v, unsigned int type, unsigned int id, unsigned int *out) {
    switch (id) {
    case NVML_CLOCK_ID_CURRENT: return clock_now(v, type, out);
    case NVML_CLOCK_ID_APP_CLOCK_TARGET:
    case NVML_CLOCK_ID_APP_CLOCK_DEFAULT: return clock_application(v, type, out);
    case NVML_CLOCK_ID_CUSTOMER_BOOST_MAX: return clock_maximum(v, type, out);
    default: return NVML_ERROR_INVALID_ARGUMENT;
    }
}
#define CLOCK_CALL(function, body) \
    DEVICE_CALL(function, (nvmlDevice_t device, nvmlClockType_t type, unsigned int *out), out == NULL, body)
CLOCK_CALL(nvmlDeviceGetClockInfo, clock_now(v, type, out))
CLOCK_CALL(nvmlDeviceGetMaxClockInfo, clock_maximum(v, type, out))
CLOCK_CALL(nvmlDeviceGetMaxCustomerBoostClock, clock_maximum(v, type, out))
CLOCK_CALL(nvmlDeviceGetApplicationsClock, clock_application(v, type, out))
CLOCK_CALL(nvmlDeviceGetDefaultApplicationsClock, clock_application(v, type, out))
DEVICE_CALL(nvmlDeviceGetClock, (nvmlDevice_t device, nvmlClockType_t type, nvmlClockId_t id, unsigned int *out),
            out == NULL, clock_by(v, type, id, out))

static nvmlReturn_t memory_clocks(const View *v, unsigned int *count, unsigned int *out) {
    unsigned int room = *count;
    if (v->device->clock_application < 0) return NVML_ERROR_NOT_SUPPORTED;
    *count = 1;
    if (out == NULL || room < 1) return NVML_ERROR_INSUFFICIENT_SIZE;
    out[0] = (unsigned int)v->device->clock_max_memory;
    return NVML_SUCCESS;
}
DEVICE_CALL(nvmlDeviceGetSupportedMemoryClocks, (nvmlDevice_t device, unsigned int *count, unsigned int *out),
            count == NULL, memory_clocks(v, count, out))

static nvmlReturn_t graphics_clocks(const View *v, unsigned int memory, unsigned int *count, unsigned int *out) {
    unsigned int room = *count;
    if (v->device->clock_application < 0) return NVML_ERROR_NOT_SUPPORTED;
    if (memory != v->device->clock_max_memory) return NVML_ERROR_NOT_FOUND;
    *count = SUPPORTED_CLOCK_STEPS;
    if (out == NULL || room < *count) return NVML_ERROR_INSUFFICIENT_SIZE;
    for (int i = 0; i < SUPPORTED_CLOCK_STEPS; i++)
        out[i] = (unsigned int)v->device->clock_max_graphics - (unsigned int)i * CLOCK_STEP_MHZ;
    return NVML_SUCCESS;
}
DEVICE_CALL(nvmlDeviceGetSupportedGraphicsClocks,
            (nvmlDevice_t device, unsigned int memory, unsigned int *count, unsigned int *out), count == NULL,
            graphics_clocks(v, memory, count, out))
DEVICE_CALL(nvmlDeviceGetAutoBoostedClocksEnabled,
            (nvmlDevice_t device, nvmlEnableState_t *on, nvmlEnableState_t *by_default),
            on == NULL || by_default == NULL, NVML_ERROR_NOT_SUPPORTED) /* gone since Pascal */

/* Not set: from what the other series say. */
unsigned long long sim_clock_reasons(const View *v) {
    if (v->device->throttle >= 0) return (unsigned long long)v->device->throttle;
    unsigned long long reasons = 0;
    double load = sim_series(v->state, v->number, SIM_SERIES_utilization, v->now);
    double watts = sim_series(v->state, v->number, SIM_SERIES_power, v->now);
    double celsius = sim_series(v->state, v->number, SIM_SERIES_temperature, v->now);
    if (load < 0.5) reasons |= nvmlClocksEventReasonGpuIdle;
    if (v->device->power_limit_mw > 0 && watts * 1000 >= (double)v->device->power_limit_mw)
        reasons |= nvmlClocksEventReasonSwPowerCap;
    if (v->device->threshold_slowdown > 0 && celsius >= (double)v->device->threshold_slowdown)
        reasons |= nvmlClocksThrottleReasonHwSlowdown | nvmlClocksThrottleReasonHwThermalSlowdown;
    return reasons;
}
NUMBER_CALL(nvmlDeviceGetCurrentClocksEventReasons, unsigned long long, (*out = sim_clock_reasons(v), NVML_SUCCESS))
NUMBER_CALL(nvmlDeviceGetCurrentClocksThrottleReasons, unsigned long long, (*out = sim_clock_reasons(v), NVML_SUCCESS))
NUMBER_CALL(nvmlDeviceGetSupportedClocksEventReasons, unsigned long long, (*out = 0x1ff, NVML_SUCCESS))
NUMBER_CALL(nvmlDeviceGetSupportedClocksThrottleReasons, unsigned long long, (*out = 0x1ff, NVML_SUCCESS))

/* How long clocks were held down so far is not simulated: 0 ns. */
DEVICE_CALL(nvmlDeviceGetViolationStatus, (nvmlDevice_t device, nvmlPerfPolicyType_t policy, nvmlViolationTime_t *out),
            out == NULL || policy > NVML_PERF_POLICY_TOTAL_BASE_CLOCKS,
            (out->referenceTime = sim_epoch_us(), out->violationTime = 0, NVML_SUCCESS))
