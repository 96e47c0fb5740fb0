/* Initialisation, the lock, handles, and the way into every call. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>

#include "core.h"

#define HANG_SLICE_NS 5000000L /* how soon a hang that was lifted is noticed */

#define SIM_FUNCTION(name, flags) flags,
static const uint8_t FLAGS[] = {
#include "functions.def"
};
#undef SIM_FUNCTION

/* The driver serialises its calls; so does this lock, within a process. */
static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
static int references;
static SimState *current;
static struct stat current_file;
static struct nvmlDevice_st handles[SIM_MAX_DEVICES][SIM_MAX_INSTANCES + 1];
static struct nvmlGpuInstance_st instance_handles[SIM_MAX_DEVICES][SIM_MAX_INSTANCES];

nvmlDevice_t sim_handle(int device, int slot) {
    struct nvmlDevice_st *handle = &handles[device][slot + 1];
    handle->device = device;
    handle->slot = slot;
    return handle;
}

nvmlGpuInstance_t sim_instance_handle(int device, int slot) {
    struct nvmlGpuInstance_st *handle = &instance_handles[device][slot];
    handle->device = device;
    handle->slot = slot;
    return handle;
}

int sim_handle_device(nvmlDevice_t handle) {
    uintptr_t at = (uintptr_t)handle, first = (uintptr_t)&handles[0][0];
    if (at < first || at >= first + sizeof(handles) || (at - first) % sizeof(struct nvmlDevice_st) != 0) return -1;
    return (int)((at - first) / sizeof(handles[0]));
}

struct nvmlGpuInstance_st *sim_known_instance(nvmlGpuInstance_t handle) {
    uintptr_t at = (uintptr_t)handle, first = (uintptr_t)&instance_handles[0][0];
    int ours = at >= first && at < first + sizeof(instance_handles) && (at - first) % sizeof(*handle) == 0;
    return ours ? handle : NULL;
}

/* A mapping that another state file has replaced is kept: a thread may still wait for its events. */
static nvmlReturn_t attach(void) {
    const char *path = getenv("POOLMGR_SIM_STATE");
    struct stat found;
    SimState *state;
    if (path == NULL || *path == 0) return NVML_ERROR_DRIVER_NOT_LOADED;
    if (current != NULL && stat(path, &found) == 0 && found.st_ino == current_file.st_ino &&
        found.st_dev == current_file.st_dev)
        return NVML_SUCCESS;
    int code = sim_open(path, &state);
    if (code == -EACCES || code == -EPERM) return NVML_ERROR_NO_PERMISSION;
    if (code == -EPROTO) return NVML_ERROR_LIB_RM_VERSION_MISMATCH;
    if (code < 0) return NVML_ERROR_DRIVER_NOT_LOADED;
    stat(path, &current_file);
    current = state;
    return NVML_SUCCESS;
}

/* All return the time that it is then. */
static int64_t spend(int64_t nanoseconds, int64_t now) {
    int64_t until = now + nanoseconds;
    while (nanoseconds > 0 && now < until) now = sim_now();
    return now;
}

/* Until the time, or until somebody lifts it. The thread can be killed meanwhile, but does not come back sooner. */
static int64_t hang(const int64_t *from, const int64_t *until, int64_t now) {
    const struct timespec slice = {0, HANG_SLICE_NS};
    while (now >= __atomic_load_n(from, __ATOMIC_RELAXED) && now < __atomic_load_n(until, __ATOMIC_RELAXED)) {
        nanosleep(&slice, NULL);
        now = sim_now();
    }
    return now;
}

static int64_t take_time(int call, const SimDevice *device) {
    int64_t now = sim_now(), cost = current->costs_ns[call];
    sim_apply_due(current, now);
    if (cost < 0) cost = device != NULL && device->cost_ns >= 0 ? device->cost_ns : current->cost_ns;
    now = spend(cost, now);
    now = hang(&current->hang_from_ns, &current->hang_until_ns, now);
    return device == NULL ? now : hang(&device->hang_from_ns, &device->hang_until_ns, now);
}

nvmlReturn_t sim_enter_system(int call, View *view) {
    pthread_mutex_lock(&turn);
    if (references == 0) return NVML_ERROR_UNINITIALIZED;
    atomic_fetch_add_explicit(&current->calls[call], 1, memory_order_relaxed);
    memset(view, 0, sizeof(*view));
    view->state = current;
    view->now = take_time(call, NULL);
    return NVML_SUCCESS;
}

static nvmlReturn_t check_instance(int call, const View *view) {
    if (view->slot >= 0 && !view->device->instances[view->slot].used) return NVML_ERROR_NOT_FOUND;
    if (view->slot >= 0 && !(FLAGS[call] & ON_INSTANCE)) return NVML_ERROR_NOT_SUPPORTED;
    if (view->slot < 0 && view->device->mig_mode == 1 && (FLAGS[call] & NOT_PARTITIONED))
        return NVML_ERROR_NOT_SUPPORTED;
    return NVML_SUCCESS;
}

nvmlReturn_t sim_enter(int call, nvmlDevice_t handle, View *view) {
    pthread_mutex_lock(&turn);
    if (references == 0) return NVML_ERROR_UNINITIALIZED;
    atomic_fetch_add_explicit(&current->calls[call], 1, memory_order_relaxed);
    int device = sim_handle_device(handle);
    if (device < 0 || device >= current->device_count) return NVML_ERROR_INVALID_ARGUMENT;
    view->state = current;
    view->device = &current->devices[device];
    view->number = device;
    view->slot = handle->slot;
    view->instance = handle->slot < 0 ? NULL : &view->device->instances[handle->slot];
    view->now = take_time(call, view->device);
    if (!view->device->present || view->device->lost) return NVML_ERROR_GPU_IS_LOST;
    if (view->device->results[call]) return (nvmlReturn_t)view->device->results[call];
    return check_instance(call, view);
}

nvmlReturn_t sim_leave(nvmlReturn_t code) {
    pthread_mutex_unlock(&turn);
    return code;
}

static nvmlReturn_t init(int call) {
    pthread_mutex_lock(&turn);
    nvmlReturn_t code = attach();
    if (code == NVML_SUCCESS) {
        atomic_fetch_add_explicit(&current->calls[call], 1, memory_order_relaxed);
        take_time(call, NULL);
        code = (nvmlReturn_t)current->init_result;
    }
    if (code == NVML_SUCCESS) references++;
    return sim_leave(code);
}

nvmlReturn_t nvmlInit(void) { return init(SIM_CALL_nvmlInit); }
nvmlReturn_t nvmlInit_v2(void) { return init(SIM_CALL_nvmlInit_v2); }

nvmlReturn_t nvmlInitWithFlags(unsigned int flags) {
    (void)flags;
    return init(SIM_CALL_nvmlInitWithFlags);
}

nvmlReturn_t nvmlShutdown(void) {
    View view;
    nvmlReturn_t code = sim_enter_system(SIM_CALL_nvmlShutdown, &view);
    if (code == NVML_SUCCESS) references--;
    return sim_leave(code);
}

nvmlReturn_t sim_text(const char *text, char *out, unsigned int length) {
    size_t needed = strlen(text) + 1;
    if (needed == 1) return NVML_ERROR_NOT_SUPPORTED;
    if (length < needed) return NVML_ERROR_INSUFFICIENT_SIZE;
    memcpy(out, text, needed);
    return NVML_SUCCESS;
}

nvmlReturn_t sim_whole(const View *view, int series, unsigned int *out) {
    double value = sim_series(view->state, view->number, series, view->now);
    if (isnan(value)) return NVML_ERROR_NOT_SUPPORTED;
    *out = value <= 0 ? 0 : (unsigned int)lrint(value);
    return NVML_SUCCESS;
}

unsigned long long sim_epoch_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (unsigned long long)now.tv_sec * 1000000ULL + (unsigned long long)now.tv_nsec / 1000;
}
