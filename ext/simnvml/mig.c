/* MIG: mode, instances, profiles. Each GPU instance carries one compute instance of its whole size. */
#define _GNU_SOURCE
#include <stdio.h>

#include "core.h"

/* Where there are instances. */
static int partitioned(const View *v) { return v->device->mig_mode == 1; }

static const SimProfile *profile_of(const View *v, const SimInstance *instance) {
    return &v->device->profiles[instance->profile];
}

static nvmlReturn_t mode(const View *v, unsigned int *current, unsigned int *pending) {
    if (v->device->mig_mode < 0) return NVML_ERROR_NOT_SUPPORTED;
    *current = (unsigned int)v->device->mig_mode;
    *pending = (unsigned int)v->device->mig_pending;
    return NVML_SUCCESS;
}
DEVICE_CALL(nvmlDeviceGetMigMode, (nvmlDevice_t device, unsigned int *current, unsigned int *pending),
            current == NULL || pending == NULL, mode(v, current, pending))
NUMBER_CALL(nvmlDeviceGetMaxMigDeviceCount, unsigned int,
            (*out = partitioned(v) ? (unsigned int)v->device->mig_maximum : 0, NVML_SUCCESS))

static nvmlReturn_t by_index(const View *v, unsigned int index, nvmlDevice_t *out) {
    if (!partitioned(v)) return NVML_ERROR_NOT_SUPPORTED;
    if (index >= v->device->mig_maximum) return NVML_ERROR_INVALID_ARGUMENT;
    if (!v->device->instances[index].used) return NVML_ERROR_NOT_FOUND;
    *out = sim_handle(v->number, (int)index);
    return NVML_SUCCESS;
}
DEVICE_CALL(nvmlDeviceGetMigDeviceHandleByIndex, (nvmlDevice_t device, unsigned int index, nvmlDevice_t *out),
            out == NULL, by_index(v, index, out))
NUMBER_CALL(nvmlDeviceIsMigDeviceHandle, unsigned int, (*out = v->instance != NULL, NVML_SUCCESS))
NUMBER_CALL(nvmlDeviceGetDeviceHandleFromMigDeviceHandle, nvmlDevice_t,
            v->instance == NULL ? NVML_ERROR_INVALID_ARGUMENT : (*out = sim_handle(v->number, -1), NVML_SUCCESS))
NUMBER_CALL(nvmlDeviceGetGpuInstanceId, unsigned int,
            v->instance == NULL ? NVML_ERROR_NOT_SUPPORTED
                                : (*out = (unsigned int)v->instance->gpu_instance, NVML_SUCCESS))
NUMBER_CALL(nvmlDeviceGetComputeInstanceId, unsigned int,
            v->instance == NULL ? NVML_ERROR_NOT_SUPPORTED
                                : (*out = (unsigned int)v->instance->compute_instance, NVML_SUCCESS))

static nvmlReturn_t attributes(const View *v, nvmlDeviceAttributes_t *out) {
    if (v->instance == NULL) return NVML_ERROR_NOT_SUPPORTED;
    const SimProfile *p = profile_of(v, v->instance);
    out->multiprocessorCount = (unsigned int)p->sm_count;
    out->sharedCopyEngineCount = (unsigned int)p->copy;
    out->sharedDecoderCount = (unsigned int)p->decoder;
    out->sharedEncoderCount = (unsigned int)p->encoder;
    out->sharedJpegCount = (unsigned int)p->jpeg;
    out->sharedOfaCount = (unsigned int)p->ofa;
    out->gpuInstanceSliceCount = (unsigned int)p->slices;
    out->computeInstanceSliceCount = (unsigned int)p->slices;
    out->memorySizeMB = (unsigned long long)p->memory_mb;
    return NVML_SUCCESS;
}
NUMBER_CALL(nvmlDeviceGetAttributes, nvmlDeviceAttributes_t, attributes(v, out))
NUMBER_CALL(nvmlDeviceGetAttributes_v2, nvmlDeviceAttributes_t, attributes(v, out))

static const SimProfile *by_ordinal(const View *v, unsigned int ordinal) {
    for (int i = 0; i < SIM_MAX_PROFILES; i++)
        if (v->device->profiles[i].used && v->device->profiles[i].ordinal == (int)ordinal)
            return &v->device->profiles[i];
    return NULL;
}

static nvmlReturn_t profile(const View *v, unsigned int ordinal, nvmlGpuInstanceProfileInfo_t *out) {
    const SimProfile *p = by_ordinal(v, ordinal);
    if (v->device->mig_mode < 0 || p == NULL) return NVML_ERROR_NOT_SUPPORTED;
    *out = (nvmlGpuInstanceProfileInfo_t){(unsigned int)p->profile_id,     0,
                                          (unsigned int)p->slices,         (unsigned int)p->maximum,
                                          (unsigned int)p->sm_count,       (unsigned int)p->copy,
                                          (unsigned int)p->decoder,        (unsigned int)p->encoder,
                                          (unsigned int)p->jpeg,           (unsigned int)p->ofa,
                                          (unsigned long long)p->memory_mb};
    return NVML_SUCCESS;
}
DEVICE_CALL(nvmlDeviceGetGpuInstanceProfileInfo,
            (nvmlDevice_t device, unsigned int ordinal, nvmlGpuInstanceProfileInfo_t *out),
            out == NULL || ordinal >= NVML_GPU_INSTANCE_PROFILE_COUNT, profile(v, ordinal, out))

/* The second version has the fields of the first after its number, and a name after them. */
static nvmlReturn_t profile_v(const View *v, unsigned int ordinal, nvmlGpuInstanceProfileInfo_v2_t *out) {
    nvmlGpuInstanceProfileInfo_t plain;
    if (out->version != nvmlGpuInstanceProfileInfo_v2) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    nvmlReturn_t code = profile(v, ordinal, &plain);
    if (code != NVML_SUCCESS) return code;
    out->id = plain.id;
    out->isP2pSupported = plain.isP2pSupported;
    out->sliceCount = plain.sliceCount;
    out->instanceCount = plain.instanceCount;
    out->multiprocessorCount = plain.multiprocessorCount;
    out->copyEngineCount = plain.copyEngineCount;
    out->decoderCount = plain.decoderCount;
    out->encoderCount = plain.encoderCount;
    out->jpegCount = plain.jpegCount;
    out->ofaCount = plain.ofaCount;
    out->memorySizeMB = plain.memorySizeMB;
    snprintf(out->name, sizeof(out->name), "MIG %s", by_ordinal(v, ordinal)->name);
    return NVML_SUCCESS;
}
DEVICE_CALL(nvmlDeviceGetGpuInstanceProfileInfoV,
            (nvmlDevice_t device, unsigned int ordinal, nvmlGpuInstanceProfileInfo_v2_t *out),
            out == NULL || ordinal >= NVML_GPU_INSTANCE_PROFILE_COUNT, profile_v(v, ordinal, out))

static nvmlReturn_t instances(const View *v, unsigned int profile_id, nvmlGpuInstance_t *out, unsigned int *count) {
    if (!partitioned(v)) return NVML_ERROR_NOT_SUPPORTED;
    *count = 0;
    for (int slot = 0; slot < SIM_MAX_INSTANCES; slot++) {
        const SimInstance *instance = &v->device->instances[slot];
        if (instance->used && profile_of(v, instance)->profile_id == (int)profile_id)
            out[(*count)++] = sim_instance_handle(v->number, slot);
    }
    return NVML_SUCCESS;
}
DEVICE_CALL(nvmlDeviceGetGpuInstances,
            (nvmlDevice_t device, unsigned int profile_id, nvmlGpuInstance_t *out, unsigned int *count),
            out == NULL || count == NULL, instances(v, profile_id, out, count))

static nvmlReturn_t by_id(const View *v, unsigned int id, nvmlGpuInstance_t *out) {
    if (!partitioned(v)) return NVML_ERROR_NOT_SUPPORTED;
    for (int slot = 0; slot < SIM_MAX_INSTANCES; slot++) {
        if (!v->device->instances[slot].used || v->device->instances[slot].gpu_instance != (int)id) continue;
        *out = sim_instance_handle(v->number, slot);
        return NVML_SUCCESS;
    }
    return NVML_ERROR_NOT_FOUND;
}
DEVICE_CALL(nvmlDeviceGetGpuInstanceById, (nvmlDevice_t device, unsigned int id, nvmlGpuInstance_t *out), out == NULL,
            by_id(v, id, out))

static nvmlReturn_t remaining(const View *v, unsigned int profile_id, unsigned int *out) {
    if (!partitioned(v)) return NVML_ERROR_NOT_SUPPORTED;
    for (int i = 0; i < SIM_MAX_PROFILES; i++) {
        if (!v->device->profiles[i].used || v->device->profiles[i].profile_id != (int)profile_id) continue;
        *out = (unsigned int)sim_mig_room(v->device, i);
        return NVML_SUCCESS;
    }
    return NVML_ERROR_NOT_SUPPORTED;
}
DEVICE_CALL(nvmlDeviceGetGpuInstanceRemainingCapacity,
            (nvmlDevice_t device, unsigned int profile_id, unsigned int *out), out == NULL,
            remaining(v, profile_id, out))

static nvmlReturn_t information(const View *v, int slot, nvmlGpuInstanceInfo_t *out) {
    const SimInstance *instance = &v->device->instances[slot];
    if (!instance->used) return NVML_ERROR_NOT_FOUND;
    const SimProfile *p = profile_of(v, instance);
    out->device = sim_handle(v->number, -1);
    out->id = (unsigned int)instance->gpu_instance;
    out->profileId = (unsigned int)p->profile_id;
    out->placement = (nvmlGpuInstancePlacement_t){(unsigned int)instance->start, (unsigned int)p->memory_slices};
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlGpuInstanceGetInfo(nvmlGpuInstance_t instance, nvmlGpuInstanceInfo_t *info) {
    View view;
    struct nvmlGpuInstance_st *known = sim_known_instance(instance);
    nvmlReturn_t code =
        sim_enter(SIM_CALL_nvmlGpuInstanceGetInfo, known == NULL ? NULL : sim_handle(known->device, -1), &view);
    if (code == NVML_SUCCESS) code = info == NULL ? NVML_ERROR_INVALID_ARGUMENT : information(&view, known->slot, info);
    return sim_leave(code);
}
