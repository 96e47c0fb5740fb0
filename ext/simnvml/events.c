/* Event sets. A wait holds no lock: it sleeps on the state file's futex until an event, its end, or a planned fault. */
#define _GNU_SOURCE
#include <linux/futex.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "core.h"

#define SET_MARK 0x5e7e5e7eU
#define SECOND 1000000000LL
#define ALWAYS \
    (nvmlEventTypePState | nvmlEventTypeXidCriticalError | nvmlEventTypeClock | nvmlEventTypeGpuUnavailableError)
#define WITH_ECC (nvmlEventTypeSingleBitEccError | nvmlEventTypeDoubleBitEccError)

struct nvmlEventSet_st {
    unsigned int mark;
    SimState *state;
    uint64_t next; /* number of the first event that it has not seen */
    unsigned long long types[SIM_MAX_DEVICES];
};

static int is_set(nvmlEventSet_t set) { return set != NULL && set->mark == SET_MARK; }

nvmlReturn_t nvmlEventSetCreate(nvmlEventSet_t *out) {
    View view;
    nvmlReturn_t code = sim_enter_system(SIM_CALL_nvmlEventSetCreate, &view);
    if (code != NVML_SUCCESS) return sim_leave(code);
    struct nvmlEventSet_st *set = out == NULL ? NULL : calloc(1, sizeof(*set));
    if (out == NULL) return sim_leave(NVML_ERROR_INVALID_ARGUMENT);
    if (set == NULL) return sim_leave(NVML_ERROR_MEMORY);
    set->mark = SET_MARK;
    set->state = view.state;
    sim_lock(view.state);
    set->next = view.state->event_count;
    sim_unlock(view.state);
    *out = set;
    return sim_leave(NVML_SUCCESS);
}

nvmlReturn_t nvmlEventSetFree(nvmlEventSet_t set) {
    View view;
    nvmlReturn_t code = sim_enter_system(SIM_CALL_nvmlEventSetFree, &view);
    if (code == NVML_SUCCESS && !is_set(set)) code = NVML_ERROR_INVALID_ARGUMENT;
    if (code == NVML_SUCCESS) {
        set->mark = 0;
        free(set);
    }
    return sim_leave(code);
}

static unsigned long long supported(const SimDevice *device) {
    return ALWAYS | (device->ecc_current >= 0 ? WITH_ECC : 0) | (device->mig_mode >= 0 ? nvmlEventMigConfigChange : 0);
}
NUMBER_CALL(nvmlDeviceGetSupportedEventTypes, unsigned long long, (*out = supported(v->device), NVML_SUCCESS))

static nvmlReturn_t enrol(const View *v, unsigned long long types, nvmlEventSet_t set) {
    if (types & ~supported(v->device)) return NVML_ERROR_NOT_SUPPORTED;
    set->types[v->number] |= types;
    return NVML_SUCCESS;
}
DEVICE_CALL(nvmlDeviceRegisterEvents, (nvmlDevice_t device, unsigned long long types, nvmlEventSet_t set), !is_set(set),
            enrol(v, types, set))

/* The next event that the set asked for. Events that were overwritten before anybody looked are lost. */
static int take_event(nvmlEventSet_t set, SimEvent *out) {
    SimState *state = set->state;
    int found = 0;
    sim_lock(state);
    if (state->event_count - set->next > SIM_MAX_EVENTS) set->next = state->event_count - SIM_MAX_EVENTS;
    while (!found && set->next < state->event_count) {
        *out = state->events[set->next++ % SIM_MAX_EVENTS];
        found = (out->type & set->types[out->device]) != 0;
    }
    sim_unlock(state);
    return found;
}

static void sleep_until(SimState *state, uint32_t seen, int64_t end) {
    int64_t due = atomic_load(&state->next_fault_ns), now = sim_now();
    int64_t left = (due < end ? due : end) - now;
    if (left <= 0) return;
    struct timespec timeout = {left / SECOND, left % SECOND};
    syscall(SYS_futex, &state->event_futex, FUTEX_WAIT, seen, &timeout, NULL, 0);
}

static nvmlReturn_t await(nvmlEventSet_t set, unsigned int timeout_ms, SimEvent *event) {
    int64_t end = sim_now() + (int64_t)timeout_ms * 1000000;
    for (;;) {
        uint32_t seen = atomic_load(&set->state->event_futex);
        sim_apply_due(set->state, sim_now());
        if (take_event(set, event)) return NVML_SUCCESS;
        if (sim_now() >= end) return NVML_ERROR_TIMEOUT;
        sleep_until(set->state, seen, end);
    }
}

static nvmlReturn_t wait(int call, nvmlEventSet_t set, nvmlEventData_t *data, unsigned int timeout_ms,
                         int with_instances) {
    View view;
    SimEvent event;
    nvmlReturn_t code = sim_enter_system(call, &view);
    if (code == NVML_SUCCESS && (!is_set(set) || data == NULL)) code = NVML_ERROR_INVALID_ARGUMENT;
    sim_leave(code);
    if (code == NVML_SUCCESS) code = await(set, timeout_ms, &event);
    if (code != NVML_SUCCESS) return code;
    data->device = sim_handle((int)event.device, -1);
    data->eventType = event.type;
    data->eventData = event.data;
    if (with_instances) {
        data->gpuInstanceId = event.gpu_instance;
        data->computeInstanceId = event.compute_instance;
    }
    return NVML_SUCCESS;
}

/* The structure of the first version ends before the instance ids. */
nvmlReturn_t nvmlEventSetWait(nvmlEventSet_t set, nvmlEventData_t *data, unsigned int timeout_ms) {
    return wait(SIM_CALL_nvmlEventSetWait, set, data, timeout_ms, 0);
}

nvmlReturn_t nvmlEventSetWait_v2(nvmlEventSet_t set, nvmlEventData_t *data, unsigned int timeout_ms) {
    return wait(SIM_CALL_nvmlEventSetWait_v2, set, data, timeout_ms, 1);
}
