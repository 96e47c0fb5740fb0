/* Process lists, and the door for programs that hold simulated memory. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>

#include "core.h"

enum { COMPUTE, GRAPHICS, MPS, EVERY_KIND };

typedef struct {
    unsigned int count;
    SimProcess of[SIM_MAX_PROCESSES];
} List;

/* What runs now, on the GPU or on the instance that was asked. Those that are gone but whose memory is not yet free are
 * in no list. */
static void list_running(const View *v, unsigned int kind, List *list) {
    list->count = 0;
    sim_lock(v->state);
    sim_sweep(v->state, v->number, v->now);
    for (int i = 0; i < SIM_MAX_PROCESSES; i++) {
        const SimProcess *process = &v->device->processes[i];
        if (!process->used || process->gone_ns || v->now < process->from_ns || v->now >= process->until_ns) continue;
        if (kind != EVERY_KIND && process->kind != kind) continue;
        if (v->instance != NULL && (int)process->instance != v->slot + 1) continue;
        list->of[list->count++] = *process;
    }
    sim_unlock(v->state);
}

static unsigned long long told_bytes(const View *v, const SimProcess *process) {
    return process->hidden ? NVML_VALUE_NOT_AVAILABLE_ULL : sim_process_bytes(process, v->now);
}

static void told_instance(const View *v, const SimProcess *process, unsigned int *gpu, unsigned int *compute) {
    const SimInstance *instance = process->instance ? &v->device->instances[process->instance - 1] : NULL;
    *gpu = instance ? (unsigned int)instance->gpu_instance : NVML_VALUE_NOT_AVAILABLE_UINT;
    *compute = instance ? (unsigned int)instance->compute_instance : NVML_VALUE_NOT_AVAILABLE_UINT;
}

static nvmlReturn_t room_for(const List *list, unsigned int *count, const void *out) {
    unsigned int room = *count;
    *count = list->count;
    return list->count > 0 && (out == NULL || room < list->count) ? NVML_ERROR_INSUFFICIENT_SIZE : NVML_SUCCESS;
}

static nvmlReturn_t running_v1(const View *v, unsigned int kind, unsigned int *count, nvmlProcessInfo_v1_t *out) {
    List list;
    list_running(v, kind, &list);
    nvmlReturn_t code = room_for(&list, count, out);
    for (unsigned int i = 0; code == NVML_SUCCESS && i < list.count; i++) {
        out[i].pid = list.of[i].pid;
        out[i].usedGpuMemory = told_bytes(v, &list.of[i]);
    }
    return code;
}

static nvmlReturn_t running(const View *v, unsigned int kind, unsigned int *count, nvmlProcessInfo_t *out) {
    List list;
    list_running(v, kind, &list);
    nvmlReturn_t code = room_for(&list, count, out);
    for (unsigned int i = 0; code == NVML_SUCCESS && i < list.count; i++) {
        out[i].pid = list.of[i].pid;
        out[i].usedGpuMemory = told_bytes(v, &list.of[i]);
        told_instance(v, &list.of[i], &out[i].gpuInstanceId, &out[i].computeInstanceId);
    }
    return code;
}

#define LIST_CALL(function, type, body) \
    DEVICE_CALL(function, (nvmlDevice_t device, unsigned int *count, type *out), count == NULL, body)
#define LIST_CALLS(function, kind)                                               \
    LIST_CALL(function, nvmlProcessInfo_v1_t, running_v1(v, kind, count, out))   \
    LIST_CALL(function##_v2, nvmlProcessInfo_v2_t, running(v, kind, count, out)) \
    LIST_CALL(function##_v3, nvmlProcessInfo_t, running(v, kind, count, out))
LIST_CALLS(nvmlDeviceGetComputeRunningProcesses, COMPUTE)
LIST_CALLS(nvmlDeviceGetGraphicsRunningProcesses, GRAPHICS)
LIST_CALLS(nvmlDeviceGetMPSComputeRunningProcesses, MPS)

static nvmlReturn_t details(const View *v, nvmlProcessDetailList_v1_t *out) {
    List list;
    if (out->version != nvmlProcessDetailList_v1) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    if (out->mode > NVML_PROCESS_MODE_ALL) return NVML_ERROR_INVALID_ARGUMENT;
    if (v->device->architecture < NVML_DEVICE_ARCH_HOPPER) return NVML_ERROR_NOT_SUPPORTED;
    list_running(v, out->mode, &list);
    nvmlReturn_t code = room_for(&list, &out->numProcArrayEntries, out->procArray);
    for (unsigned int i = 0; code == NVML_SUCCESS && i < list.count; i++) {
        nvmlProcessDetail_v1_t *entry = &out->procArray[i];
        entry->pid = list.of[i].pid;
        entry->usedGpuMemory = told_bytes(v, &list.of[i]);
        told_instance(v, &list.of[i], &entry->gpuInstanceId, &entry->computeInstanceId);
        entry->usedGpuCcProtectedMemory = 0;
    }
    return code;
}
NUMBER_CALL(nvmlDeviceGetRunningProcessDetailList, nvmlProcessDetailList_v1_t, details(v, out))

/* Only what was sampled after `since` (microseconds since 1970); none is NOT_FOUND. */
static nvmlReturn_t load(const View *v, nvmlProcessUtilizationSample_t *out, unsigned int *count,
                         unsigned long long since) {
    List list;
    unsigned long long now = sim_epoch_us();
    list_running(v, EVERY_KIND, &list);
    if (list.count == 0 || since >= now) return NVML_ERROR_NOT_FOUND;
    nvmlReturn_t code = room_for(&list, count, out);
    for (unsigned int i = 0; code == NVML_SUCCESS && i < list.count; i++) {
        const SimProcess *p = &list.of[i];
        out[i] = (nvmlProcessUtilizationSample_t){p->pid, now, p->sm, p->memory, p->encoder, p->decoder};
    }
    return code;
}
DEVICE_CALL(nvmlDeviceGetProcessUtilization,
            (nvmlDevice_t device, nvmlProcessUtilizationSample_t *out, unsigned int *count, unsigned long long since),
            count == NULL, load(v, out, count, since))

static nvmlReturn_t loads(const View *v, nvmlProcessesUtilizationInfo_v1_t *info) {
    List list;
    unsigned long long now = sim_epoch_us();
    if (info->version != nvmlProcessesUtilizationInfo_v1) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    list_running(v, EVERY_KIND, &list);
    if (list.count == 0 || info->lastSeenTimeStamp >= now) return NVML_ERROR_NOT_FOUND;
    nvmlReturn_t code = room_for(&list, &info->processSamplesCount, info->procUtilArray);
    for (unsigned int i = 0; code == NVML_SUCCESS && i < list.count; i++) {
        const SimProcess *p = &list.of[i];
        info->procUtilArray[i] =
            (nvmlProcessUtilizationInfo_v1_t){now, p->pid, p->sm, p->memory, p->encoder, p->decoder, 0, 0};
    }
    return code;
}
DEVICE_CALL(nvmlDeviceGetProcessesUtilizationInfo, (nvmlDevice_t device, nvmlProcessesUtilizationInfo_v1_t *out),
            out == NULL, loads(v, out))

/* The GPU or instance of this UUID; `slot` is -1 for a GPU. */
static int find(const SimState *state, const char *uuid, int *slot) {
    for (int i = 0; i < state->device_count; i++) {
        *slot = -1;
        if (strcmp(state->devices[i].uuid, uuid) == 0) return i;
        for (*slot = 0; *slot < SIM_MAX_INSTANCES; ++*slot)
            if (state->devices[i].instances[*slot].used && strcmp(state->devices[i].instances[*slot].uuid, uuid) == 0)
                return i;
    }
    return -1;
}

static int with_state(const char *uuid, SimState **state, int *slot) {
    const char *path = getenv("POOLMGR_SIM_STATE");
    if (path == NULL || uuid == NULL) return -EINVAL;
    int code = sim_open(path, state);
    if (code < 0) return code;
    int device = find(*state, uuid, slot);
    if (device >= 0) return device;
    sim_close(*state);
    return -ENODEV;
}

/* A program holds `bytes` of the GPU or MIG instance `uuid`, in place of what it held, until it releases them or ends.
 * Needs no nvmlInit. 0, or a negated errno: -ENODEV, -ESRCH, -ENOMEM where it does not fit, -EIO on a lost device. */
int poolmgr_sim_take(const char *uuid, unsigned int pid, unsigned long long bytes) {
    SimState *state;
    int slot, device = with_state(uuid, &state, &slot);
    if (device < 0) return device;
    View v = {
        state,    &state->devices[device], slot < 0 ? NULL : &state->devices[device].instances[slot], device, slot,
        sim_now()};
    SimProcess process = {.pid = pid,
                          .instance = (uint32_t)(slot + 1),
                          .start_ticks = sim_start_ticks(pid),
                          .bytes = bytes,
                          .from_ns = v.now,
                          .until_ns = INT64_MAX};
    int64_t total = slot < 0 ? v.device->memory_total - (v.device->memory_reserved > 0 ? v.device->memory_reserved : 0)
                             : v.device->profiles[v.instance->profile].memory_mb << 20;
    int code = process.start_ticks == 0 ? -ESRCH : v.device->lost || !v.device->present ? -EIO : 0;
    sim_lock(state);
    uint64_t used = sim_used_bytes_locked(&v);
    for (int i = 0; i < SIM_MAX_PROCESSES; i++) { /* what it held already is given back first */
        const SimProcess *held = &v.device->processes[i];
        if (held->used && held->pid == pid && held->start_ticks == process.start_ticks &&
            held->instance == process.instance)
            used -= sim_process_bytes(held, v.now);
    }
    if (code == 0 && used + bytes > (uint64_t)total) code = -ENOMEM;
    if (code == 0) code = sim_take(state, device, &process);
    sim_unlock(state);
    sim_close(state);
    return code;
}

/* 0, or -ENODEV, -ESRCH where the program holds nothing there. */
int poolmgr_sim_release(const char *uuid, unsigned int pid) {
    SimState *state;
    int slot, device = with_state(uuid, &state, &slot);
    if (device < 0) return device;
    sim_lock(state);
    int code = sim_release(state, device, pid, sim_now());
    sim_unlock(state);
    sim_close(state);
    return code;
}
