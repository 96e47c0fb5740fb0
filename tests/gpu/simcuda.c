/* CUDA's driver interface, as much of it as cuda.py calls, over the simulated driver: what a program holds here is in that
 * driver's process lists. The devices are those of CUDA_VISIBLE_DEVICES; as with CUDA, the first that is none ends them. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "nvml_abi.h"

#define MOST 64
#define CONTEXT (384ULL << 20) /* what a context takes: some hundred MiB on data centre GPUs */
#define MOST_BLOCKS 4096
enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100, INVALID_DEVICE = 101 };
enum { CAPABILITY_MAJOR = 75, CAPABILITY_MINOR = 76 };

typedef struct {
    char uuid[96];
    nvmlDevice_t handle;
    unsigned long long held;
    int retained;
} Device;

static Device devices[MOST];
static int count, begun, current = -1;
static unsigned long long blocks[MOST_BLOCKS]; /* bytes; the address is the place */
static int owners[MOST_BLOCKS];
static void *driver;

static void *find(const char *name) { return dlsym(driver, name); }
#define CALL(name) ((__typeof__(&name))find(#name))

static int by_name(const char *name, char *uuid, nvmlDevice_t *handle) {
    char *end;
    unsigned int total = 0;
    long index = strtol(name, &end, 10);
    if (end != name && *end == 0) {
        if (index < 0 || CALL(nvmlDeviceGetHandleByIndex_v2)((unsigned int)index, handle) != NVML_SUCCESS) return 0;
        return CALL(nvmlDeviceGetUUID)(*handle, uuid, 96) == NVML_SUCCESS;
    }
    if (CALL(nvmlDeviceGetHandleByUUID)(name, handle) == NVML_SUCCESS) return snprintf(uuid, 96, "%s", name) > 0;
    if (CALL(nvmlDeviceGetCount_v2)(&total) != NVML_SUCCESS) return 0;
    for (unsigned int i = 0; i < total; i++) { /* the beginning of one */
        if (CALL(nvmlDeviceGetHandleByIndex_v2)(i, handle) == NVML_SUCCESS &&
            CALL(nvmlDeviceGetUUID)(*handle, uuid, 96) == NVML_SUCCESS && strncasecmp(uuid, name, strlen(name)) == 0)
            return 1;
    }
    return 0;
}

int cuInit(unsigned int flags) {
    char names[8192] = "", *rest = names, *name;
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    unsigned int total = 0;
    if (flags != 0) return INVALID_VALUE;
    driver = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    if (driver == NULL || CALL(nvmlInit_v2)() != NVML_SUCCESS) return NO_DEVICE;
    if (CALL(nvmlDeviceGetCount_v2)(&total) != NVML_SUCCESS) return NO_DEVICE;
    if (visible != NULL) {
        snprintf(names, sizeof names, "%s", visible);
    } else {
        for (unsigned int i = 0; i < total; i++) sprintf(names + strlen(names), "%u,", i);
    }
    while (count < MOST && (name = strsep(&rest, ",")) != NULL && *name != 0) {
        if (!by_name(name, devices[count].uuid, &devices[count].handle)) break;
        count++;
    }
    begun = 1;
    return count > 0 ? OK : NO_DEVICE;
}

int cuDriverGetVersion(int *version) {
    int found = 0;
    if (driver == NULL) return NOT_INITIALIZED;
    CALL(nvmlSystemGetCudaDriverVersion_v2)(&found);
    *version = found;
    return OK;
}

int cuGetErrorName(int code, const char **name) {
    *name = code == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : code == NO_DEVICE ? "CUDA_ERROR_NO_DEVICE" : "CUDA_ERROR";
    return OK;
}

int cuDeviceGetCount(int *found) {
    *found = count;
    return begun ? OK : NOT_INITIALIZED;
}

int cuDeviceGet(int *device, int ordinal) {
    *device = ordinal;
    return ordinal >= 0 && ordinal < count ? OK : INVALID_DEVICE;
}

int cuDeviceGetUuid_v2(unsigned char *uuid, int device) {
    const char *text = strchr(devices[device].uuid, '-');
    for (int i = 0; i < 16; i++) {
        unsigned int byte = 0;
        while (*text == '-') text++;
        sscanf(text, "%2x", &byte);
        uuid[i] = (unsigned char)byte;
        text += 2;
    }
    return OK;
}

int cuDeviceGetName(char *name, int length, int device) {
    return CALL(nvmlDeviceGetName)(devices[device].handle, name, (unsigned int)length) == NVML_SUCCESS ? OK : INVALID_DEVICE;
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    int major = 0, minor = 0;
    CALL(nvmlDeviceGetCudaComputeCapability)(devices[device].handle, &major, &minor);
    *value = attribute == CAPABILITY_MAJOR ? major : minor;
    return attribute == CAPABILITY_MAJOR || attribute == CAPABILITY_MINOR ? OK : INVALID_VALUE;
}

/* CUDA counts without what the driver keeps for itself. */
int cuDeviceTotalMem_v2(size_t *bytes, int device) {
    nvmlMemory_v2_t memory = {.version = nvmlMemory_v2};
    if (CALL(nvmlDeviceGetMemoryInfo_v2)(devices[device].handle, &memory) != NVML_SUCCESS) return INVALID_DEVICE;
    *bytes = memory.total - memory.reserved;
    return OK;
}

static int hold(int device, unsigned long long bytes) {
    int (*take)(const char *, unsigned int, unsigned long long) = find("poolmgr_sim_take");
    if (take == NULL || take(devices[device].uuid, (unsigned int)getpid(), bytes) != 0) return OUT_OF_MEMORY;
    devices[device].held = bytes;
    return OK;
}

int cuDevicePrimaryCtxRetain(void **context, int device) {
    *context = &devices[device];
    return devices[device].retained++ > 0 ? OK : hold(device, CONTEXT);
}

int cuCtxSetCurrent(void *context) {
    current = (int)((Device *)context - devices);
    return OK;
}

int cuCtxSynchronize(void) { return current < 0 ? NOT_INITIALIZED : OK; }

int cuMemAlloc_v2(unsigned long long *address, size_t bytes) {
    int place = 1;
    while (place < MOST_BLOCKS && blocks[place] != 0) place++;
    if (current < 0 || bytes == 0) return INVALID_VALUE;
    if (place == MOST_BLOCKS || hold(current, devices[current].held + bytes) != OK) return OUT_OF_MEMORY;
    blocks[place] = bytes;
    owners[place] = current;
    *address = (unsigned long long)place;
    return OK;
}

int cuMemFree_v2(unsigned long long address) {
    if (address == 0 || address >= MOST_BLOCKS || blocks[address] == 0) return INVALID_VALUE;
    int device = owners[address], code = hold(device, devices[device].held - blocks[address]);
    blocks[address] = 0;
    return code;
}

int cuMemsetD8Async(unsigned long long address, unsigned char value, size_t bytes, void *stream) {
    (void)value, (void)stream;
    return address < MOST_BLOCKS && bytes <= blocks[address] ? OK : INVALID_VALUE;
}
