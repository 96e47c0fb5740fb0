/* What every call of the simulated library has in common. */
#ifndef POOLMGR_SIM_CORE_H
#define POOLMGR_SIM_CORE_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "../include/nvml_abi.h"
#include "state.h"

#define ON_INSTANCE 1
#define NOT_PARTITIONED 2

#define SIM_FUNCTION(name, flags) SIM_CALL_##name,
enum {
#include "functions.def"
    SIM_CALL_COUNT
};
#undef SIM_FUNCTION

struct nvmlDevice_st {
    int device, slot; /* slot -1: the GPU itself */
};
struct nvmlGpuInstance_st {
    int device, slot;
};

/* What a call sees of its device. */
typedef struct {
    SimState *state;
    SimDevice *device;
    SimInstance *instance; /* NULL: the GPU itself */
    int number, slot;
    int64_t now;
} View;

/* Counts the call, waits its turn and its cost, and answers what stands in its way. Both have to be paired. */
nvmlReturn_t sim_enter(int call, nvmlDevice_t handle, View *view);
nvmlReturn_t sim_enter_system(int call, View *view);
nvmlReturn_t sim_leave(nvmlReturn_t code);
nvmlDevice_t sim_handle(int device, int slot);
nvmlGpuInstance_t sim_instance_handle(int device, int slot);
int sim_handle_device(nvmlDevice_t handle);                              /* -1: not one of ours */
struct nvmlGpuInstance_st *sim_known_instance(nvmlGpuInstance_t handle); /* NULL: not one of ours */
nvmlReturn_t sim_text(const char *text, char *out, unsigned int length);
/* A series as a whole number: SUCCESS, or NOT_SUPPORTED where the device does not tell. */
nvmlReturn_t sim_whole(const View *view, int series, unsigned int *out);
uint64_t sim_used_bytes_locked(const View *view); /* by processes and others, without what is reserved */
uint64_t sim_energy_mj(const View *view);
unsigned long long sim_clock_reasons(const View *view);
uint64_t sim_nvlink_errors(const View *view, int kind);
unsigned long long sim_epoch_us(void);

/* For programs that hold simulated memory (running.c). */
int poolmgr_sim_take(const char *uuid, unsigned int pid, unsigned long long bytes);
int poolmgr_sim_release(const char *uuid, unsigned int pid);

/* A number of the device that may be SIM_UNKNOWN. */
#define SIM_TELL(out, value) ((value) < 0 ? NVML_ERROR_NOT_SUPPORTED : (*(out) = (value), NVML_SUCCESS))

/* One call: `body` is an expression that fills *out and gives the return code; `v` is the view. */
#define DEVICE_CALL(function, parameters, invalid, body)                                   \
    nvmlReturn_t function parameters {                                                     \
        View view, *v = &view;                                                             \
        nvmlReturn_t code = sim_enter(SIM_CALL_##function, device, v);                     \
        if (code == NVML_SUCCESS) code = (invalid) ? NVML_ERROR_INVALID_ARGUMENT : (body); \
        return sim_leave(code);                                                            \
    }

#define NUMBER_CALL(function, type, body) DEVICE_CALL(function, (nvmlDevice_t device, type * out), out == NULL, body)
#define TEXT_CALL(function, text)                                                             \
    DEVICE_CALL(function, (nvmlDevice_t device, char *out, unsigned int length), out == NULL, \
                sim_text(text, out, length))
#endif
