/* ECC, retired pages, remapped rows. */
#define _GNU_SOURCE
#include "core.h"

#define PAGE 0x10000
#define ROW_BANKS 640

/* Volatile counters exist only while ECC is on. */
static int ecc_off(const View *v) { return v->device->ecc_current != 1; }

static nvmlReturn_t modes(const View *v, nvmlEnableState_t *current, nvmlEnableState_t *pending) {
    if (v->device->ecc_current < 0) return NVML_ERROR_NOT_SUPPORTED;
    *current = (nvmlEnableState_t)v->device->ecc_current;
    *pending = (nvmlEnableState_t)v->device->ecc_pending;
    return NVML_SUCCESS;
}
DEVICE_CALL(nvmlDeviceGetEccMode, (nvmlDevice_t device, nvmlEnableState_t *current, nvmlEnableState_t *pending),
            current == NULL || pending == NULL, modes(v, current, pending))
NUMBER_CALL(nvmlDeviceGetDefaultEccMode, nvmlEnableState_t,
            v->device->ecc_current < 0 ? NVML_ERROR_NOT_SUPPORTED : (*out = NVML_FEATURE_ENABLED, NVML_SUCCESS))

#define BAD_ECC \
    (out == NULL || (unsigned)type >= NVML_MEMORY_ERROR_TYPE_COUNT || (unsigned)counter >= NVML_ECC_COUNTER_TYPE_COUNT)

static nvmlReturn_t total(const View *v, int type, int counter, unsigned long long *out) {
    if (ecc_off(v)) return NVML_ERROR_NOT_SUPPORTED;
    *out = 0;
    for (int location = 0; location < NVML_MEMORY_LOCATION_COUNT; location++)
        *out += v->device->ecc[type][counter][location];
    return NVML_SUCCESS;
}
DEVICE_CALL(nvmlDeviceGetTotalEccErrors,
            (nvmlDevice_t device, nvmlMemoryErrorType_t type, nvmlEccCounterType_t counter, unsigned long long *out),
            BAD_ECC, total(v, (int)type, (int)counter, out))

static nvmlReturn_t detailed(const View *v, int type, int counter, nvmlEccErrorCounts_t *out) {
    if (ecc_off(v)) return NVML_ERROR_NOT_SUPPORTED;
    const uint64_t *counts = v->device->ecc[type][counter];
    out->l1Cache = counts[NVML_MEMORY_LOCATION_L1_CACHE];
    out->l2Cache = counts[NVML_MEMORY_LOCATION_L2_CACHE];
    out->deviceMemory = counts[NVML_MEMORY_LOCATION_DEVICE_MEMORY];
    out->registerFile = counts[NVML_MEMORY_LOCATION_REGISTER_FILE];
    return NVML_SUCCESS;
}
DEVICE_CALL(nvmlDeviceGetDetailedEccErrors,
            (nvmlDevice_t device, nvmlMemoryErrorType_t type, nvmlEccCounterType_t counter, nvmlEccErrorCounts_t *out),
            BAD_ECC, detailed(v, (int)type, (int)counter, out))
DEVICE_CALL(nvmlDeviceGetMemoryErrorCounter,
            (nvmlDevice_t device, nvmlMemoryErrorType_t type, nvmlEccCounterType_t counter,
             nvmlMemoryLocation_t location, unsigned long long *out),
            BAD_ECC || (unsigned)location >= NVML_MEMORY_LOCATION_COUNT,
            ecc_off(v) ? NVML_ERROR_NOT_SUPPORTED : (*out = v->device->ecc[type][counter][location], NVML_SUCCESS))

/* Addresses are invented: only how many there are comes from the state. */
static nvmlReturn_t pages(const View *v, int cause, unsigned int *count, unsigned long long *addresses,
                          unsigned long long *times) {
    int64_t retired = cause == NVML_PAGE_RETIREMENT_CAUSE_DOUBLE_BIT_ECC_ERROR ? v->device->retired_double
                                                                               : v->device->retired_single;
    unsigned int room = *count;
    if (retired < 0) return NVML_ERROR_NOT_SUPPORTED;
    *count = (unsigned int)retired;
    if (retired > 0 && (addresses == NULL || room < *count)) return NVML_ERROR_INSUFFICIENT_SIZE;
    for (unsigned int i = 0; i < *count; i++) {
        addresses[i] = (0x1000ULL + i + ((unsigned long long)cause << 8)) * PAGE;
        if (times != NULL) times[i] = sim_epoch_us() / 1000000;
    }
    return NVML_SUCCESS;
}
#define BAD_PAGES (count == NULL || (unsigned)cause >= NVML_PAGE_RETIREMENT_CAUSE_COUNT)
DEVICE_CALL(nvmlDeviceGetRetiredPages,
            (nvmlDevice_t device, nvmlPageRetirementCause_t cause, unsigned int *count, unsigned long long *addresses),
            BAD_PAGES, pages(v, (int)cause, count, addresses, NULL))
DEVICE_CALL(nvmlDeviceGetRetiredPages_v2,
            (nvmlDevice_t device, nvmlPageRetirementCause_t cause, unsigned int *count, unsigned long long *addresses,
             unsigned long long *times),
            BAD_PAGES, pages(v, (int)cause, count, addresses, times))
NUMBER_CALL(nvmlDeviceGetRetiredPagesPendingStatus, nvmlEnableState_t, SIM_TELL(out, v->device->retired_pending))

static nvmlReturn_t rows(const View *v, unsigned int *corrected, unsigned int *uncorrected, unsigned int *pending,
                         unsigned int *failed) {
    const SimDevice *d = v->device;
    if (d->remapped_corrected < 0) return NVML_ERROR_NOT_SUPPORTED;
    *corrected = (unsigned int)d->remapped_corrected;
    *uncorrected = (unsigned int)d->remapped_uncorrected;
    *pending = (unsigned int)d->remap_pending;
    *failed = (unsigned int)d->remap_failure;
    return NVML_SUCCESS;
}
DEVICE_CALL(nvmlDeviceGetRemappedRows,
            (nvmlDevice_t device, unsigned int *corrected, unsigned int *uncorrected, unsigned int *pending,
             unsigned int *failed),
            corrected == NULL || uncorrected == NULL || pending == NULL || failed == NULL,
            rows(v, corrected, uncorrected, pending, failed))

/* Each remapped row takes a spare of another bank; a failure leaves a bank without any. */
static nvmlReturn_t histogram(const View *v, nvmlRowRemapperHistogramValues_t *out) {
    const SimDevice *d = v->device;
    if (d->remapped_corrected < 0) return NVML_ERROR_NOT_SUPPORTED;
    unsigned int remapped = (unsigned int)(d->remapped_corrected + d->remapped_uncorrected);
    memset(out, 0, sizeof(*out));
    out->none = d->remap_failure == 1;
    out->high = remapped < ROW_BANKS - out->none ? remapped : ROW_BANKS - out->none;
    out->max = ROW_BANKS - out->none - out->high;
    return NVML_SUCCESS;
}
NUMBER_CALL(nvmlDeviceGetRowRemapperHistogram, nvmlRowRemapperHistogramValues_t, histogram(v, out))
