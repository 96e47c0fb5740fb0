/* PCIe, NVLink, fabric, topology, affinity. */
#define _GNU_SOURCE
#include "core.h"

#define WORD_BITS (8 * sizeof(unsigned long))

/* Gb/s of a lane by PCIe generation, as megabits. */
static const unsigned int PCIE_MBPS[] = {0, 2500, 5000, 8000, 16000, 32000, 64000};

DEVICE_CALL(nvmlDeviceGetPcieThroughput, (nvmlDevice_t device, nvmlPcieUtilCounter_t counter, unsigned int *out),
            out == NULL || (unsigned)counter >= NVML_PCIE_UTIL_COUNT,
            sim_whole(v, counter == NVML_PCIE_UTIL_TX_BYTES ? SIM_SERIES_pcie_tx : SIM_SERIES_pcie_rx, out))
NUMBER_CALL(nvmlDeviceGetPcieReplayCounter, unsigned int, SIM_TELL(out, v->device->pcie_replays))
NUMBER_CALL(nvmlDeviceGetCurrPcieLinkGeneration, unsigned int, SIM_TELL(out, v->device->pcie_generation))
NUMBER_CALL(nvmlDeviceGetCurrPcieLinkWidth, unsigned int, SIM_TELL(out, v->device->pcie_width))
NUMBER_CALL(nvmlDeviceGetMaxPcieLinkGeneration, unsigned int, SIM_TELL(out, v->device->pcie_maximum_generation))
NUMBER_CALL(nvmlDeviceGetGpuMaxPcieLinkGeneration, unsigned int, SIM_TELL(out, v->device->pcie_maximum_generation))
NUMBER_CALL(nvmlDeviceGetMaxPcieLinkWidth, unsigned int, SIM_TELL(out, v->device->pcie_width))
NUMBER_CALL(nvmlDeviceGetPcieLinkMaxSpeed, unsigned int, SIM_TELL(out, v->device->pcie_maximum_generation))

static nvmlReturn_t pcie_speed(const View *v, unsigned int *out) {
    int64_t generation = v->device->pcie_generation;
    if (generation < 1 || generation > 6) return NVML_ERROR_NOT_SUPPORTED;
    *out = PCIE_MBPS[generation];
    return NVML_SUCCESS;
}
NUMBER_CALL(nvmlDeviceGetPcieSpeed, unsigned int, pcie_speed(v, out))

static const SimLink *link_of(const View *v, unsigned int link) {
    return link < v->device->nvlink_count ? &v->device->links[link] : NULL;
}
#define LINK_CALL(function, type, body)                                        \
    DEVICE_CALL(function, (nvmlDevice_t device, unsigned int link, type *out), \
                out == NULL || link >= NVML_NVLINK_MAX_LINKS,                  \
                link_of(v, link) == NULL ? NVML_ERROR_NOT_SUPPORTED : (body))
LINK_CALL(nvmlDeviceGetNvLinkState, nvmlEnableState_t,
          (*out = (nvmlEnableState_t)link_of(v, link)->active, NVML_SUCCESS))
LINK_CALL(nvmlDeviceGetNvLinkVersion, unsigned int, SIM_TELL(out, v->device->nvlink_version))

/* The kind of the other end is told of links that are up. */
LINK_CALL(nvmlDeviceGetNvLinkRemoteDeviceType, nvmlIntNvLinkDeviceType_t,
          !link_of(v, link)->active
              ? NVML_ERROR_NOT_SUPPORTED
              : (*out = link_of(v, link)->peer >= 0 ? NVML_NVLINK_DEVICE_TYPE_GPU : NVML_NVLINK_DEVICE_TYPE_SWITCH,
                 NVML_SUCCESS))

static nvmlReturn_t capability(const View *v, unsigned int link, unsigned int which, unsigned int *out) {
    const SimLink *found = link_of(v, link);
    if (found == NULL) return NVML_ERROR_NOT_SUPPORTED;
    *out = which == NVML_NVLINK_CAP_SLI_BRIDGE ? 0 : which == NVML_NVLINK_CAP_VALID ? 1 : (unsigned int)found->active;
    return NVML_SUCCESS;
}
DEVICE_CALL(nvmlDeviceGetNvLinkCapability,
            (nvmlDevice_t device, unsigned int link, nvmlNvLinkCapability_t which, unsigned int *out),
            out == NULL || link >= NVML_NVLINK_MAX_LINKS || (unsigned)which >= NVML_NVLINK_CAP_COUNT,
            capability(v, link, (unsigned)which, out))
DEVICE_CALL(nvmlDeviceGetNvLinkErrorCounter,
            (nvmlDevice_t device, unsigned int link, nvmlNvLinkErrorCounter_t counter, unsigned long long *out),
            out == NULL || link >= NVML_NVLINK_MAX_LINKS || (unsigned)counter >= NVML_NVLINK_ERROR_COUNT,
            link_of(v, link) == NULL ? NVML_ERROR_NOT_SUPPORTED
                                     : (*out = link_of(v, link)->errors[counter], NVML_SUCCESS))

uint64_t sim_nvlink_errors(const View *v, int kind) {
    uint64_t sum = 0;
    for (int link = 0; link < v->device->nvlink_count; link++) sum += v->device->links[link].errors[kind];
    return sum;
}

/* One domain for all: its name is as good as any. */
static void cluster(unsigned char *uuid) {
    for (int i = 0; i < NVML_GPU_FABRIC_UUID_LEN; i++) uuid[i] = (unsigned char)(0x50 + i);
}

static nvmlReturn_t fabric(const View *v, nvmlGpuFabricInfo_t *out) {
    if (v->device->fabric < 0) return NVML_ERROR_NOT_SUPPORTED;
    memset(out, 0, sizeof(*out));
    out->state = (unsigned int)v->device->fabric;
    if (out->state == NVML_GPU_FABRIC_STATE_COMPLETED) cluster(out->clusterUuid);
    return NVML_SUCCESS;
}
NUMBER_CALL(nvmlDeviceGetGpuFabricInfo, nvmlGpuFabricInfo_t, fabric(v, out))

/* Versions 2 and 3 begin alike. */
static nvmlReturn_t fabric_v(const View *v, nvmlGpuFabricInfo_v3_t *out) {
    nvmlGpuFabricInfo_t plain;
    if (out->version != nvmlGpuFabricInfo_v2 && out->version != nvmlGpuFabricInfo_v3)
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    nvmlReturn_t code = fabric(v, &plain);
    if (code != NVML_SUCCESS) return code;
    memcpy(out->clusterUuid, plain.clusterUuid, sizeof(plain.clusterUuid));
    out->status = plain.status;
    out->cliqueId = plain.cliqueId;
    out->state = plain.state;
    out->healthMask = 0;
    if (out->version == nvmlGpuFabricInfo_v3) out->healthSummary = plain.state == NVML_GPU_FABRIC_STATE_COMPLETED;
    return NVML_SUCCESS;
}
DEVICE_CALL(nvmlDeviceGetGpuFabricInfoV, (nvmlDevice_t device, void *out), out == NULL, fabric_v(v, out))

static int other_of(const View *v, nvmlDevice_t handle) {
    int other = sim_handle_device(handle);
    return other >= v->state->device_count ? -1 : other;
}

static nvmlReturn_t ancestor(const View *v, int other, nvmlGpuTopologyLevel_t *out) {
    if (other < 0) return NVML_ERROR_INVALID_ARGUMENT;
    *out = (nvmlGpuTopologyLevel_t)(other == v->number ? NVML_TOPOLOGY_INTERNAL : v->device->ancestor[other]);
    return NVML_SUCCESS;
}
DEVICE_CALL(nvmlDeviceGetTopologyCommonAncestor, (nvmlDevice_t device, nvmlDevice_t other, nvmlGpuTopologyLevel_t *out),
            out == NULL, ancestor(v, other_of(v, other), out))

/* Without an array only the number is asked for. */
static nvmlReturn_t nearest(const View *v, unsigned int level, unsigned int *count, nvmlDevice_t *out) {
    unsigned int found = 0;
    for (int i = 0; i < v->state->device_count; i++) {
        if (i == v->number || !v->state->devices[i].present || v->device->ancestor[i] != level) continue;
        if (out != NULL && found < *count) out[found] = sim_handle(i, -1);
        found++;
    }
    *count = found;
    return NVML_SUCCESS;
}
DEVICE_CALL(nvmlDeviceGetTopologyNearestGpus,
            (nvmlDevice_t device, nvmlGpuTopologyLevel_t level, unsigned int *count, nvmlDevice_t *out), count == NULL,
            nearest(v, (unsigned)level, count, out))

static int linked(const View *v, int other) {
    const SimDevice *peer = &v->state->devices[other];
    int mine = 0, theirs = 0;
    for (int i = 0; i < v->device->nvlink_count; i++) {
        if (!v->device->links[i].active) continue;
        if (v->device->links[i].peer == other) return 1;
        mine |= v->device->links[i].peer == SIM_PEER_SWITCH;
    }
    for (int i = 0; i < peer->nvlink_count; i++)
        theirs |= peer->links[i].active && peer->links[i].peer == SIM_PEER_SWITCH;
    return mine && theirs;
}

/* Consumer cards reach each other over NVLink only. */
static nvmlReturn_t p2p(const View *v, int other, unsigned int index, nvmlGpuP2PStatus_t *out) {
    if (other < 0 || other == v->number || index >= NVML_P2P_CAPS_INDEX_UNKNOWN) return NVML_ERROR_INVALID_ARGUMENT;
    int by_link = linked(v, other);
    if (by_link)
        *out = NVML_P2P_STATUS_OK;
    else if (index == NVML_P2P_CAPS_INDEX_NVLINK || index == NVML_P2P_CAPS_INDEX_ATOMICS)
        *out = NVML_P2P_STATUS_NOT_SUPPORTED;
    else if (v->device->brand == NVML_BRAND_GEFORCE)
        *out = NVML_P2P_STATUS_GPU_NOT_SUPPORTED;
    else
        *out = v->device->ancestor[other] >= NVML_TOPOLOGY_SYSTEM ? NVML_P2P_STATUS_CHIPSET_NOT_SUPPORTED
                                                                  : NVML_P2P_STATUS_OK;
    return NVML_SUCCESS;
}
DEVICE_CALL(nvmlDeviceGetP2PStatus,
            (nvmlDevice_t device, nvmlDevice_t other, nvmlGpuP2PCapsIndex_t index, nvmlGpuP2PStatus_t *out),
            out == NULL, p2p(v, other_of(v, other), (unsigned)index, out))
DEVICE_CALL(nvmlDeviceOnSameBoard, (nvmlDevice_t device, nvmlDevice_t other, int *out),
            out == NULL || other_of(v, other) < 0, (*out = other_of(v, other) == v->number, NVML_SUCCESS))

static nvmlReturn_t cpus(const View *v, unsigned int words, unsigned long *out) {
    memset(out, 0, words * sizeof(*out));
    for (unsigned int cpu = 0; cpu < SIM_CPU_WORDS * 64 && cpu < words * WORD_BITS; cpu++)
        if (v->device->cpus[cpu / 64] >> cpu % 64 & 1) out[cpu / WORD_BITS] |= 1UL << cpu % WORD_BITS;
    return NVML_SUCCESS;
}
DEVICE_CALL(nvmlDeviceGetCpuAffinity, (nvmlDevice_t device, unsigned int words, unsigned long *out),
            out == NULL || words == 0, cpus(v, words, out))
DEVICE_CALL(nvmlDeviceGetCpuAffinityWithinScope,
            (nvmlDevice_t device, unsigned int words, unsigned long *out, nvmlAffinityScope_t scope),
            out == NULL || words == 0 || scope > NVML_AFFINITY_SCOPE_SOCKET, cpus(v, words, out))

static nvmlReturn_t nodes(const View *v, unsigned int words, unsigned long *out) {
    if (v->device->numa_node < 0) return NVML_ERROR_NOT_SUPPORTED;
    memset(out, 0, words * sizeof(*out));
    if (v->device->numa_node < (int64_t)(words * WORD_BITS))
        out[v->device->numa_node / (int64_t)WORD_BITS] = 1UL << v->device->numa_node % (int64_t)WORD_BITS;
    return NVML_SUCCESS;
}
DEVICE_CALL(nvmlDeviceGetMemoryAffinity,
            (nvmlDevice_t device, unsigned int words, unsigned long *out, nvmlAffinityScope_t scope),
            out == NULL || words == 0 || scope > NVML_AFFINITY_SCOPE_SOCKET, nodes(v, words, out))
