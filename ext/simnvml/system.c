/* The library and the host: versions, error texts, the way to handles. */
#define _GNU_SOURCE
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <strings.h>

#include "core.h"

#define SYSTEM_CALL(function, parameters, invalid, body)                                   \
    nvmlReturn_t function parameters {                                                     \
        View view, *v = &view;                                                             \
        nvmlReturn_t code = sim_enter_system(SIM_CALL_##function, v);                      \
        if (code == NVML_SUCCESS) code = (invalid) ? NVML_ERROR_INVALID_ARGUMENT : (body); \
        return sim_leave(code);                                                            \
    }

static const struct {
    nvmlReturn_t code;
    const char *text;
} ERRORS[] = {
    {NVML_SUCCESS, "Success"},
    {NVML_ERROR_UNINITIALIZED, "Uninitialized"},
    {NVML_ERROR_INVALID_ARGUMENT, "Invalid Argument"},
    {NVML_ERROR_NOT_SUPPORTED, "Not Supported"},
    {NVML_ERROR_NO_PERMISSION, "Insufficient Permissions"},
    {NVML_ERROR_ALREADY_INITIALIZED, "Already Initialized"},
    {NVML_ERROR_NOT_FOUND, "Not Found"},
    {NVML_ERROR_INSUFFICIENT_SIZE, "Insufficient Size"},
    {NVML_ERROR_INSUFFICIENT_POWER, "Insufficient External Power"},
    {NVML_ERROR_DRIVER_NOT_LOADED, "Driver Not Loaded"},
    {NVML_ERROR_TIMEOUT, "Timeout"},
    {NVML_ERROR_IRQ_ISSUE, "Interrupt Request Issue"},
    {NVML_ERROR_LIBRARY_NOT_FOUND, "NVML Shared Library Not Found"},
    {NVML_ERROR_FUNCTION_NOT_FOUND, "Function Not Found"},
    {NVML_ERROR_CORRUPTED_INFOROM, "Corrupted infoROM"},
    {NVML_ERROR_GPU_IS_LOST, "GPU is lost"},
    {NVML_ERROR_RESET_REQUIRED, "GPU requires reset"},
    {NVML_ERROR_OPERATING_SYSTEM, "The operating system has blocked the request"},
    {NVML_ERROR_LIB_RM_VERSION_MISMATCH, "Driver/library version mismatch"},
    {NVML_ERROR_IN_USE, "In use by another client"},
    {NVML_ERROR_MEMORY, "Insufficient Memory"},
    {NVML_ERROR_NO_DATA, "No data"},
    {NVML_ERROR_INSUFFICIENT_RESOURCES, "Insufficient Resources"},
    {NVML_ERROR_ARGUMENT_VERSION_MISMATCH, "Argument version mismatch"},
    {NVML_ERROR_DEPRECATED, "API has been deprecated"},
    {NVML_ERROR_NOT_READY, "System is not ready"},
    {NVML_ERROR_GPU_NOT_FOUND, "No GPUs found"},
    {NVML_ERROR_INVALID_STATE, "Invalid State"},
};

const char *nvmlErrorString(nvmlReturn_t result) {
    for (size_t i = 0; i < sizeof(ERRORS) / sizeof(ERRORS[0]); i++)
        if (ERRORS[i].code == result) return ERRORS[i].text;
    return "Unknown Error";
}

SYSTEM_CALL(nvmlSystemGetDriverVersion, (char *out, unsigned int length), out == NULL,
            sim_text(v->state->driver_version, out, length))
SYSTEM_CALL(nvmlSystemGetNVMLVersion, (char *out, unsigned int length), out == NULL,
            sim_text(v->state->nvml_version, out, length))
SYSTEM_CALL(nvmlSystemGetCudaDriverVersion, (int *out), out == NULL, (*out = (int)v->state->cuda_version, NVML_SUCCESS))
SYSTEM_CALL(nvmlSystemGetCudaDriverVersion_v2, (int *out), out == NULL,
            (*out = (int)v->state->cuda_version, NVML_SUCCESS))
SYSTEM_CALL(nvmlUnitGetCount, (unsigned int *out), out == NULL, (*out = 0, NVML_SUCCESS))
SYSTEM_CALL(nvmlGetExcludedDeviceCount, (unsigned int *out), out == NULL, (*out = 0, NVML_SUCCESS))

static nvmlReturn_t branch(const View *v, nvmlSystemDriverBranchInfo_v1_t *info, unsigned int length) {
    if (info->version != nvmlSystemDriverBranchInfo_v1) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    return sim_text(v->state->driver_branch, info->branch, length);
}
SYSTEM_CALL(nvmlSystemGetDriverBranch, (nvmlSystemDriverBranchInfo_v1_t * info, unsigned int length),
            info == NULL || length > sizeof(info->branch), branch(v, info, length))

static nvmlReturn_t process_name(unsigned int pid, char *name, unsigned int length) {
    char path[32];
    snprintf(path, sizeof(path), "/proc/%u/cmdline", pid);
    FILE *file = fopen(path, "re");
    if (file == NULL) return NVML_ERROR_NOT_FOUND;
    size_t got = fread(name, 1, length - 1, file);
    fclose(file);
    name[got] = 0; /* arguments end with a zero byte: what is left is the program */
    return got == 0 ? NVML_ERROR_NOT_FOUND : NVML_SUCCESS;
}
SYSTEM_CALL(nvmlSystemGetProcessName, (unsigned int pid, char *out, unsigned int length), out == NULL || length == 0,
            process_name(pid, out, length))

static int counted(const SimState *state, int device) { return !state->no_devices && state->devices[device].present; }

static nvmlReturn_t count_devices(const View *v, unsigned int *out) {
    *out = 0;
    for (int i = 0; i < v->state->device_count; i++) *out += (unsigned int)counted(v->state, i);
    return NVML_SUCCESS;
}
SYSTEM_CALL(nvmlDeviceGetCount, (unsigned int *out), out == NULL, count_devices(v, out))
SYSTEM_CALL(nvmlDeviceGetCount_v2, (unsigned int *out), out == NULL, count_devices(v, out))

static nvmlReturn_t give(const View *v, int device, nvmlDevice_t *out) {
    if (v->state->devices[device].lost) return NVML_ERROR_GPU_IS_LOST;
    *out = sim_handle(device, -1);
    return NVML_SUCCESS;
}

static nvmlReturn_t by_index(const View *v, unsigned int index, nvmlDevice_t *out) {
    for (int i = 0; i < v->state->device_count; i++)
        if (counted(v->state, i) && index-- == 0) return give(v, i, out);
    return NVML_ERROR_INVALID_ARGUMENT;
}
SYSTEM_CALL(nvmlDeviceGetHandleByIndex, (unsigned int index, nvmlDevice_t *out), out == NULL, by_index(v, index, out))
SYSTEM_CALL(nvmlDeviceGetHandleByIndex_v2, (unsigned int index, nvmlDevice_t *out), out == NULL,
            by_index(v, index, out))

static nvmlReturn_t by_uuid(const View *v, const char *uuid, nvmlDevice_t *out) {
    for (int i = 0; i < v->state->device_count; i++) {
        SimDevice *device = &v->state->devices[i];
        if (!counted(v->state, i)) continue;
        if (strcmp(device->uuid, uuid) == 0) return give(v, i, out);
        for (int slot = 0; slot < SIM_MAX_INSTANCES; slot++) {
            if (!device->instances[slot].used || strcmp(device->instances[slot].uuid, uuid) != 0) continue;
            *out = sim_handle(i, slot);
            return device->lost ? NVML_ERROR_GPU_IS_LOST : NVML_SUCCESS;
        }
    }
    return NVML_ERROR_NOT_FOUND;
}
SYSTEM_CALL(nvmlDeviceGetHandleByUUID, (const char *uuid, nvmlDevice_t *out), uuid == NULL || out == NULL,
            by_uuid(v, uuid, out))

static nvmlReturn_t by_uuid_value(const View *v, const nvmlUUID_t *uuid, nvmlDevice_t *out) {
    char text[64] = "GPU-", *end = text + 4;
    if (uuid->version != nvmlUUID_v1) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    if (uuid->type == NVML_UUID_TYPE_ASCII) {
        memcpy(text, uuid->value.str, sizeof(uuid->value.str));
        text[sizeof(uuid->value.str)] = 0;
    } else if (uuid->type == NVML_UUID_TYPE_BINARY) {
        for (int i = 0; i < NVML_DEVICE_UUID_BINARY_LEN; i++)
            end += sprintf(end, "%s%02x", i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", uuid->value.bytes[i]);
    } else {
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    return by_uuid(v, text, out);
}
SYSTEM_CALL(nvmlDeviceGetHandleByUUIDV, (const nvmlUUID_t *uuid, nvmlDevice_t *out), uuid == NULL || out == NULL,
            by_uuid_value(v, uuid, out))

static nvmlReturn_t by_serial(const View *v, const char *serial, nvmlDevice_t *out) {
    for (int i = 0; i < v->state->device_count; i++)
        if (counted(v->state, i) && *serial && strcmp(v->state->devices[i].serial, serial) == 0) return give(v, i, out);
    return NVML_ERROR_NOT_FOUND;
}
SYSTEM_CALL(nvmlDeviceGetHandleBySerial, (const char *serial, nvmlDevice_t *out), serial == NULL || out == NULL,
            by_serial(v, serial, out))

/* "00000000:01:00.0", "0000:01:00.0" and "01:00.0" name one device; letters in either case. */
static nvmlReturn_t by_bus_id(const View *v, const char *text, nvmlDevice_t *out) {
    unsigned int domain = 0, bus = 0, device = 0, function = 0;
    if (sscanf(text, "%x:%x:%x.%x", &domain, &bus, &device, &function) < 3) {
        domain = 0;
        if (sscanf(text, "%x:%x.%x", &bus, &device, &function) < 2) return NVML_ERROR_INVALID_ARGUMENT;
    }
    for (int i = 0; i < v->state->device_count; i++) {
        const SimDevice *d = &v->state->devices[i];
        if (counted(v->state, i) && d->pci_domain == domain && d->pci_bus == bus && d->pci_device == device)
            return give(v, i, out);
    }
    return NVML_ERROR_NOT_FOUND;
}
SYSTEM_CALL(nvmlDeviceGetHandleByPciBusId, (const char *bus_id, nvmlDevice_t *out), bus_id == NULL || out == NULL,
            by_bus_id(v, bus_id, out))
SYSTEM_CALL(nvmlDeviceGetHandleByPciBusId_v2, (const char *bus_id, nvmlDevice_t *out), bus_id == NULL || out == NULL,
            by_bus_id(v, bus_id, out))

/* `devices` may be NULL: then only the number is asked for. */
static nvmlReturn_t of_cpu(const View *v, unsigned int cpu, unsigned int *count, nvmlDevice_t *devices) {
    unsigned int found = 0;
    for (int i = 0; i < v->state->device_count; i++) {
        if (!counted(v->state, i) || cpu / 64 >= SIM_CPU_WORDS ||
            !(v->state->devices[i].cpus[cpu / 64] >> cpu % 64 & 1))
            continue;
        if (devices != NULL && found < *count) devices[found] = sim_handle(i, -1);
        found++;
    }
    *count = found;
    return NVML_SUCCESS;
}
SYSTEM_CALL(nvmlSystemGetTopologyGpuSet, (unsigned int cpu, unsigned int *count, nvmlDevice_t *devices), count == NULL,
            of_cpu(v, cpu, count, devices))
