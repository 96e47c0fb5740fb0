/* What a device is and which way it is set. */
#define _GNU_SOURCE
#include <stdio.h>

#include "core.h"

#define NVSWITCH_ID 0x22a310de
#define NVSWITCH_BUS 0xc0
#define NVSWITCHES 4

static nvmlReturn_t name(const View *v, char *out, unsigned int length) {
    char text[2 * SIM_TEXT];
    if (v->instance == NULL) return sim_text(v->device->name, out, length);
    snprintf(text, sizeof(text), "%s MIG %s", v->device->name, v->device->profiles[v->instance->profile].name);
    return sim_text(text, out, length);
}
TEXT_CALL(nvmlDeviceGetUUID, v->instance ? v->instance->uuid : v->device->uuid)
TEXT_CALL(nvmlDeviceGetSerial, v->device->serial)
TEXT_CALL(nvmlDeviceGetBoardPartNumber, v->device->part_number)
TEXT_CALL(nvmlDeviceGetVbiosVersion, v->device->vbios)
TEXT_CALL(nvmlDeviceGetInforomImageVersion, v->device->ecc_current >= 0 ? "G001.0000.01.04" : "")
DEVICE_CALL(nvmlDeviceGetName, (nvmlDevice_t device, char *out, unsigned int length), out == NULL, name(v, out, length))

/* As the driver counts: devices that are there; of an instance its place among the instances. */
static nvmlReturn_t index_of(const View *v, unsigned int *out) {
    *out = 0;
    if (v->instance == NULL)
        for (int i = 0; i < v->number; i++) *out += v->state->devices[i].present != 0;
    else
        *out = (unsigned int)v->slot;
    return NVML_SUCCESS;
}
NUMBER_CALL(nvmlDeviceGetIndex, unsigned int, index_of(v, out))
NUMBER_CALL(nvmlDeviceGetMinorNumber, unsigned int, SIM_TELL(out, v->device->minor_number))
NUMBER_CALL(nvmlDeviceGetModuleId, unsigned int, SIM_TELL(out, v->device->module_id))
NUMBER_CALL(nvmlDeviceGetBoardId, unsigned int, SIM_TELL(out, v->device->board_id))
NUMBER_CALL(nvmlDeviceGetMultiGpuBoard, unsigned int, (*out = 0, NVML_SUCCESS))
NUMBER_CALL(nvmlDeviceGetBrand, nvmlBrandType_t, SIM_TELL(out, v->device->brand))
NUMBER_CALL(nvmlDeviceGetArchitecture, nvmlDeviceArchitecture_t, SIM_TELL(out, v->device->architecture))
NUMBER_CALL(nvmlDeviceGetNumGpuCores, unsigned int, SIM_TELL(out, v->device->cores))
NUMBER_CALL(nvmlDeviceGetMemoryBusWidth, unsigned int, SIM_TELL(out, v->device->bus_width))
NUMBER_CALL(nvmlDeviceGetNumaNodeId, unsigned int, SIM_TELL(out, v->device->numa_node))
NUMBER_CALL(nvmlDeviceGetBusType, nvmlBusType_t, (*out = NVML_BUS_TYPE_PCIE, NVML_SUCCESS))
NUMBER_CALL(nvmlDeviceGetIrqNum, unsigned int, (*out = 64 + (unsigned int)v->number, NVML_SUCCESS))
NUMBER_CALL(nvmlDeviceGetPersistenceMode, nvmlEnableState_t, SIM_TELL(out, v->device->persistence))
NUMBER_CALL(nvmlDeviceGetComputeMode, nvmlComputeMode_t, SIM_TELL(out, v->device->compute_mode))
NUMBER_CALL(nvmlDeviceGetVirtualizationMode, nvmlGpuVirtualizationMode_t,
            (*out = NVML_GPU_VIRTUALIZATION_MODE_NONE, NVML_SUCCESS))
NUMBER_CALL(nvmlDeviceGetDisplayMode, nvmlEnableState_t, SIM_TELL(out, v->device->display_mode))
NUMBER_CALL(nvmlDeviceGetDisplayActive, nvmlEnableState_t, SIM_TELL(out, v->device->display_active))
NUMBER_CALL(nvmlDeviceGetAccountingMode, nvmlEnableState_t, (*out = NVML_FEATURE_DISABLED, NVML_SUCCESS))
NUMBER_CALL(nvmlDeviceGetAccountingBufferSize, unsigned int, (*out = 4000, NVML_SUCCESS))
DEVICE_CALL(nvmlDeviceGetAPIRestriction, (nvmlDevice_t device, unsigned int api, nvmlEnableState_t *out),
            out == NULL || api > 1, (*out = NVML_FEATURE_ENABLED, NVML_SUCCESS))
DEVICE_CALL(nvmlDeviceGetCudaComputeCapability, (nvmlDevice_t device, int *major, int *minor),
            major == NULL || minor == NULL,
            (*major = (int)v->device->capability_major, *minor = (int)v->device->capability_minor, NVML_SUCCESS))

/* Driver models are of Windows. */
DEVICE_CALL(nvmlDeviceGetDriverModel, (nvmlDevice_t device, unsigned int *current, unsigned int *pending),
            current == NULL || pending == NULL, NVML_ERROR_NOT_SUPPORTED)
DEVICE_CALL(nvmlDeviceGetDriverModel_v2, (nvmlDevice_t device, unsigned int *current, unsigned int *pending),
            current == NULL || pending == NULL, NVML_ERROR_NOT_SUPPORTED)

/* The firmware of the GPU's own processor exists from Turing on, and carries the driver's version. */
DEVICE_CALL(nvmlDeviceGetGspFirmwareVersion, (nvmlDevice_t device, char *out), out == NULL,
            v->device->architecture < NVML_DEVICE_ARCH_TURING ? NVML_ERROR_NOT_SUPPORTED
                                                              : sim_text(v->state->driver_version, out, 64))
DEVICE_CALL(nvmlDeviceGetGspFirmwareMode, (nvmlDevice_t device, unsigned int *enabled, unsigned int *by_default),
            enabled == NULL || by_default == NULL,
            (*enabled = *by_default = v->device->architecture >= NVML_DEVICE_ARCH_TURING, NVML_SUCCESS))

static void fill_pci(nvmlPciInfo_t *out, int64_t domain, int64_t bus, int64_t device, int64_t device_id,
                     int64_t subsystem) {
    memset(out, 0, sizeof(*out));
    out->domain = (unsigned int)domain;
    out->bus = (unsigned int)bus;
    out->device = (unsigned int)device;
    out->pciDeviceId = (unsigned int)device_id;
    out->pciSubSystemId = subsystem < 0 ? 0 : (unsigned int)subsystem;
    snprintf(out->busIdLegacy, sizeof(out->busIdLegacy), "%04X:%02X:%02X.0", out->domain & 0xffff, out->bus & 0xff,
             out->device & 0xff);
    snprintf(out->busId, sizeof(out->busId), "%08X:%02X:%02X.0", out->domain, out->bus, out->device);
}

static void pci_of(const SimDevice *d, nvmlPciInfo_t *out) {
    fill_pci(out, d->pci_domain, d->pci_bus, d->pci_device, d->pci_device_id, d->pci_subsystem_id);
}

static nvmlReturn_t pci(const View *v, nvmlPciInfo_t *out) {
    pci_of(v->device, out);
    return NVML_SUCCESS;
}
NUMBER_CALL(nvmlDeviceGetPciInfo, nvmlPciInfo_t, pci(v, out))
NUMBER_CALL(nvmlDeviceGetPciInfo_v2, nvmlPciInfo_t, pci(v, out))
NUMBER_CALL(nvmlDeviceGetPciInfo_v3, nvmlPciInfo_t, pci(v, out))

static nvmlReturn_t pci_extended(const View *v, nvmlPciInfoExt_v1_t *out) {
    nvmlPciInfo_t plain;
    if (out->version != nvmlPciInfoExt_v1) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    pci_of(v->device, &plain);
    out->domain = plain.domain;
    out->bus = plain.bus;
    out->device = plain.device;
    out->pciDeviceId = plain.pciDeviceId;
    out->pciSubSystemId = plain.pciSubSystemId;
    out->baseClass = 3; /* display controller */
    out->subClass = v->device->display_mode == 1 ? 0 : 2;
    memcpy(out->busId, plain.busId, sizeof(out->busId));
    return NVML_SUCCESS;
}
NUMBER_CALL(nvmlDeviceGetPciInfoExt, nvmlPciInfoExt_v1_t, pci_extended(v, out))

/* The other end of an NVLink: a GPU, or a switch, which is a PCI device of its own. */
static nvmlReturn_t remote(const View *v, unsigned int link, nvmlPciInfo_t *out) {
    if (link >= v->device->nvlink_count || !v->device->links[link].active) return NVML_ERROR_NOT_SUPPORTED;
    int peer = v->device->links[link].peer;
    if (peer >= 0) {
        pci_of(&v->state->devices[peer], out);
        return NVML_SUCCESS;
    }
    fill_pci(out, 0, NVSWITCH_BUS + link % NVSWITCHES, 0, NVSWITCH_ID, 0);
    return NVML_SUCCESS;
}
DEVICE_CALL(nvmlDeviceGetNvLinkRemotePciInfo, (nvmlDevice_t device, unsigned int link, nvmlPciInfo_t *out),
            out == NULL || link >= NVML_NVLINK_MAX_LINKS, remote(v, link, out))
DEVICE_CALL(nvmlDeviceGetNvLinkRemotePciInfo_v2, (nvmlDevice_t device, unsigned int link, nvmlPciInfo_t *out),
            out == NULL || link >= NVML_NVLINK_MAX_LINKS, remote(v, link, out))
