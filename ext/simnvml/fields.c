/* nvmlDeviceGetFieldValues: each entry has a return code and a type of its own. */
#define _GNU_SOURCE
#include "core.h"

#define EVERY_LINK 0xffffffffU
#define POWER_SCOPE_MEMORY 2

typedef nvmlReturn_t (*Filler)(const View *v, nvmlFieldValue_t *out);

static nvmlReturn_t whole(nvmlFieldValue_t *out, int64_t value) {
    out->valueType = NVML_VALUE_TYPE_UNSIGNED_INT;
    if (value < 0) return NVML_ERROR_NOT_SUPPORTED;
    out->value.ullVal = (unsigned int)value;
    return NVML_SUCCESS;
}

static nvmlReturn_t large(nvmlFieldValue_t *out, uint64_t value) {
    out->valueType = NVML_VALUE_TYPE_UNSIGNED_LONG_LONG;
    out->value.ullVal = value;
    return NVML_SUCCESS;
}

static nvmlReturn_t series(const View *v, nvmlFieldValue_t *out, int which, double scale) {
    double value = sim_series(v->state, v->number, which, v->now);
    return isnan(value) ? NVML_ERROR_NOT_SUPPORTED : whole(out, value > 0 ? lrint(value * scale) : 0);
}

static nvmlReturn_t ecc_field(const View *v, nvmlFieldValue_t *out, int type, int counter) {
    uint64_t sum = 0;
    if (v->device->ecc_current != 1) return NVML_ERROR_NOT_SUPPORTED;
    for (int location = 0; location < NVML_MEMORY_LOCATION_COUNT; location++)
        sum += v->device->ecc[type][counter][location];
    return large(out, sum);
}

static nvmlReturn_t memory_errors(const View *v, nvmlFieldValue_t *out) {
    const SimDevice *d = v->device;
    switch (out->fieldId) {
    case NVML_FI_DEV_ECC_CURRENT: return whole(out, d->ecc_current);
    case NVML_FI_DEV_ECC_PENDING: return whole(out, d->ecc_pending);
    case NVML_FI_DEV_ECC_SBE_VOL_TOTAL: return ecc_field(v, out, 0, 0);
    case NVML_FI_DEV_ECC_DBE_VOL_TOTAL: return ecc_field(v, out, 1, 0);
    case NVML_FI_DEV_ECC_SBE_AGG_TOTAL: return ecc_field(v, out, 0, 1);
    case NVML_FI_DEV_ECC_DBE_AGG_TOTAL: return ecc_field(v, out, 1, 1);
    case NVML_FI_DEV_RETIRED_SBE: return whole(out, d->retired_single);
    case NVML_FI_DEV_RETIRED_DBE: return whole(out, d->retired_double);
    case NVML_FI_DEV_RETIRED_PENDING:
    case NVML_FI_DEV_RETIRED_PENDING_SBE:
    case NVML_FI_DEV_RETIRED_PENDING_DBE: return whole(out, d->retired_pending);
    case NVML_FI_DEV_REMAPPED_COR: return whole(out, d->remapped_corrected);
    case NVML_FI_DEV_REMAPPED_UNC: return whole(out, d->remapped_uncorrected);
    case NVML_FI_DEV_REMAPPED_PENDING: return whole(out, d->remap_pending);
    case NVML_FI_DEV_REMAPPED_FAILURE: return whole(out, d->remap_failure);
    default: return NVML_ERROR_NOT_SUPPORTED;
    }
}

static nvmlReturn_t power(const View *v, nvmlFieldValue_t *out) {
    const SimDevice *d = v->device;
    if (out->scopeId == POWER_SCOPE_MEMORY) return NVML_ERROR_NOT_SUPPORTED;
    switch (out->fieldId) {
    case NVML_FI_DEV_POWER_AVERAGE:
    case NVML_FI_DEV_POWER_INSTANT: return series(v, out, SIM_SERIES_power, 1000);
    case NVML_FI_DEV_POWER_MIN_LIMIT: return whole(out, d->power_minimum_mw);
    case NVML_FI_DEV_POWER_MAX_LIMIT: return whole(out, d->power_maximum_mw);
    case NVML_FI_DEV_POWER_DEFAULT_LIMIT: return whole(out, d->power_default_mw);
    case NVML_FI_DEV_POWER_REQUESTED_LIMIT:
    case NVML_FI_DEV_POWER_CURRENT_LIMIT: return whole(out, d->power_limit_mw);
    case NVML_FI_DEV_ENERGY:
    case NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION:
        return d->energy_mj < 0 ? NVML_ERROR_NOT_SUPPORTED : large(out, sim_energy_mj(v));
    default: return NVML_ERROR_NOT_SUPPORTED;
    }
}

/* From Hopper on thresholds are told as distances to the limit, which is where the GPU slows down by itself. */
static nvmlReturn_t limit(const View *v, nvmlFieldValue_t *out, int64_t threshold) {
    if (v->device->architecture < NVML_DEVICE_ARCH_HOPPER || threshold < 0 || v->device->threshold_gpu < 0)
        return NVML_ERROR_NOT_SUPPORTED;
    out->valueType = NVML_VALUE_TYPE_SIGNED_INT;
    out->value.ullVal = 0;
    out->value.siVal = (int)(v->device->threshold_gpu - threshold);
    return NVML_SUCCESS;
}

static nvmlReturn_t thermal(const View *v, nvmlFieldValue_t *out) {
    const SimDevice *d = v->device;
    switch (out->fieldId) {
    case NVML_FI_DEV_MEMORY_TEMP: return series(v, out, SIM_SERIES_memory_temperature, 1);
    case NVML_FI_DEV_TEMPERATURE_SHUTDOWN_TLIMIT: return limit(v, out, d->threshold_shutdown);
    case NVML_FI_DEV_TEMPERATURE_SLOWDOWN_TLIMIT: return limit(v, out, d->threshold_slowdown);
    case NVML_FI_DEV_TEMPERATURE_GPU_MAX_TLIMIT: return limit(v, out, d->threshold_gpu);
    default: return NVML_ERROR_NOT_SUPPORTED;
    }
}

/* KiB over all links since the scenario began, or over one of them. */
static nvmlReturn_t traffic(const View *v, nvmlFieldValue_t *out, int which) {
    if (v->device->nvlink_count <= 0) return NVML_ERROR_NOT_SUPPORTED;
    if (out->scopeId != EVERY_LINK && out->scopeId >= v->device->nvlink_count) return NVML_ERROR_INVALID_ARGUMENT;
    double kib = sim_series_total(v->state, v->number, which, v->now);
    return large(out, (uint64_t)(out->scopeId == EVERY_LINK ? kib : kib / (double)v->device->nvlink_count));
}

static nvmlReturn_t link_speed(const View *v, nvmlFieldValue_t *out, unsigned int link) {
    if (link >= v->device->nvlink_count) return NVML_ERROR_NOT_SUPPORTED;
    return whole(out, v->device->links[link].active ? v->device->nvlink_mbps : 0);
}

static nvmlReturn_t switch_links(const View *v, nvmlFieldValue_t *out) {
    int count = 0;
    for (int i = 0; i < v->device->nvlink_count; i++)
        count += v->device->links[i].active && v->device->links[i].peer == SIM_PEER_SWITCH;
    return whole(out, v->device->nvlink_count > 0 ? count : SIM_UNKNOWN);
}

static nvmlReturn_t link_state(const View *v, nvmlFieldValue_t *out) {
    if (out->scopeId >= v->device->nvlink_count) return NVML_ERROR_NOT_SUPPORTED;
    return whole(out, v->device->links[out->scopeId].active);
}

static nvmlReturn_t link_errors(const View *v, nvmlFieldValue_t *out, int kind) {
    return v->device->nvlink_count <= 0 ? NVML_ERROR_NOT_SUPPORTED : large(out, sim_nvlink_errors(v, kind));
}

static nvmlReturn_t nvlink(const View *v, nvmlFieldValue_t *out) {
    unsigned int id = out->fieldId;
    if (id >= NVML_FI_DEV_NVLINK_SPEED_MBPS_L0 && id <= NVML_FI_DEV_NVLINK_SPEED_MBPS_L5)
        return link_speed(v, out, id - NVML_FI_DEV_NVLINK_SPEED_MBPS_L0);
    if (id >= NVML_FI_DEV_NVLINK_SPEED_MBPS_L6 && id <= NVML_FI_DEV_NVLINK_SPEED_MBPS_L11)
        return link_speed(v, out, id - NVML_FI_DEV_NVLINK_SPEED_MBPS_L6 + 6);
    switch (id) {
    case NVML_FI_DEV_NVLINK_LINK_COUNT:
        return whole(out, v->device->nvlink_count > 0 ? v->device->nvlink_count : SIM_UNKNOWN);
    case NVML_FI_DEV_NVLINK_SPEED_MBPS_COMMON: return link_speed(v, out, 0);
    case NVML_FI_DEV_NVLINK_GET_SPEED: return link_speed(v, out, out->scopeId);
    case NVML_FI_DEV_NVLINK_GET_STATE: return link_state(v, out);
    case NVML_FI_DEV_NVLINK_GET_VERSION: return whole(out, v->device->nvlink_version);
    case NVML_FI_DEV_NVSWITCH_CONNECTED_LINK_COUNT: return switch_links(v, out);
    case NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX:
    case NVML_FI_DEV_NVLINK_THROUGHPUT_RAW_TX: return traffic(v, out, SIM_SERIES_nvlink_tx);
    case NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX:
    case NVML_FI_DEV_NVLINK_THROUGHPUT_RAW_RX: return traffic(v, out, SIM_SERIES_nvlink_rx);
    case NVML_FI_DEV_NVLINK_ERROR_DL_REPLAY:
    case NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL: return link_errors(v, out, NVML_NVLINK_ERROR_DL_REPLAY);
    case NVML_FI_DEV_NVLINK_ERROR_DL_RECOVERY:
    case NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL: return link_errors(v, out, NVML_NVLINK_ERROR_DL_RECOVERY);
    case NVML_FI_DEV_NVLINK_ERROR_DL_CRC:
    case NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL: return link_errors(v, out, NVML_NVLINK_ERROR_DL_CRC_FLIT);
    case NVML_FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_TOTAL: return link_errors(v, out, NVML_NVLINK_ERROR_DL_CRC_DATA);
    case NVML_FI_DEV_NVLINK_ECC_DATA_ERROR_COUNT_TOTAL: return link_errors(v, out, NVML_NVLINK_ERROR_DL_ECC_DATA);
    default: return NVML_ERROR_NOT_SUPPORTED;
    }
}

static nvmlReturn_t others(const View *v, nvmlFieldValue_t *out) {
    int64_t action = v->device->recovery_action;
    switch (out->fieldId) {
    case NVML_FI_DEV_PCIE_REPLAY_COUNTER: return whole(out, v->device->pcie_replays);
    case NVML_FI_DEV_PCIE_REPLAY_ROLLOVER_COUNTER: return whole(out, 0);
    case NVML_FI_DEV_PCIE_COUNT_TX_BYTES:
        return large(out, (uint64_t)(1000 * sim_series_total(v->state, v->number, SIM_SERIES_pcie_tx, v->now)));
    case NVML_FI_DEV_PCIE_COUNT_RX_BYTES:
        return large(out, (uint64_t)(1000 * sim_series_total(v->state, v->number, SIM_SERIES_pcie_rx, v->now)));
    case NVML_FI_DEV_PERF_POLICY_POWER:
    case NVML_FI_DEV_PERF_POLICY_THERMAL: return large(out, 0);
    case NVML_FI_DEV_IS_RESETLESS_MIG_SUPPORTED:
        return whole(out, v->device->mig_mode < 0 ? SIM_UNKNOWN : v->device->architecture >= NVML_DEVICE_ARCH_HOPPER);
    case NVML_FI_DEV_GET_GPU_RECOVERY_ACTION: return whole(out, action);
    case NVML_FI_DEV_RESET_STATUS:
        return whole(out, action < 0 ? action : action == NVML_GPU_RECOVERY_ACTION_GPU_RESET);
    case NVML_FI_DEV_DRAIN_AND_RESET_STATUS:
        return whole(out, action < 0 ? action : action == NVML_GPU_RECOVERY_ACTION_DRAIN_AND_RESET);
    default: return NVML_ERROR_NOT_SUPPORTED;
    }
}

static void fill(const View *v, nvmlFieldValue_t *out, unsigned long long at) {
    static const Filler FILLERS[] = {memory_errors, power, thermal, nvlink, others};
    out->timestamp = (long long)at;
    out->latencyUsec = 0;
    out->value.ullVal = 0;
    out->nvmlReturn = NVML_ERROR_INVALID_ARGUMENT;
    if (out->fieldId == 0 || out->fieldId >= NVML_FI_MAX) return;
    out->nvmlReturn = (nvmlReturn_t)v->device->field_results[out->fieldId];
    if (out->nvmlReturn != NVML_SUCCESS) return;
    for (unsigned int i = 0; i < sizeof(FILLERS) / sizeof(FILLERS[0]); i++) {
        out->nvmlReturn = FILLERS[i](v, out);
        if (out->nvmlReturn != NVML_ERROR_NOT_SUPPORTED) return;
    }
}

static nvmlReturn_t values(const View *v, int count, nvmlFieldValue_t *out) {
    unsigned long long now = sim_epoch_us();
    for (int i = 0; i < count; i++) fill(v, &out[i], now);
    return NVML_SUCCESS;
}
DEVICE_CALL(nvmlDeviceGetFieldValues, (nvmlDevice_t device, int count, nvmlFieldValue_t *out),
            out == NULL || count <= 0, values(v, count, out))
