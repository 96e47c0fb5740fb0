# cython: language_level=3, cdivision=True
"""What there is: every GPU and MIG instance with what the driver tells of it, as plain values (DEV-1).

What it does not tell is absent: a call that fails, a value with all bits set, a zero where zero means nothing.
"""

from libc.math cimport NAN
from libc.string cimport memset, strncmp

from poolmgr_ext.driver cimport (
    NVML_AFFINITY_SCOPE_NODE, NVML_CLOCK_MEM, NVML_DEVICE_MIG_ENABLE, NVML_FEATURE_ENABLED,
    NVML_FI_DEV_GET_GPU_RECOVERY_ACTION, NVML_FI_DEV_NVLINK_GET_SPEED, NVML_FI_DEV_NVLINK_LINK_COUNT,
    NVML_FI_DEV_NVLINK_SPEED_MBPS_COMMON, NVML_NVLINK_DEVICE_TYPE_SWITCH, NVML_SUCCESS,
    NVML_TEMPERATURE_THRESHOLD_SHUTDOWN, NVML_TEMPERATURE_THRESHOLD_SLOWDOWN, NVML_TOPOLOGY_NODE,
    NVML_VALUE_NOT_AVAILABLE_UINT, NVML_VALUE_NOT_AVAILABLE_ULL, nvmlDeviceAttributes_t, nvmlEnableState_t, nvmlMemory_t,
    nvmlPciInfo_t, one_field, read_memory)

from libc.stdint cimport uintptr_t

_RECOVERY = {0: "NONE", 1: "RESET", 2: "REBOOT", 3: "DRAIN_P2P", 4: "DRAIN_AND_RESET"}
# One way, by lane, after the line code: PCI Express Base Specification 6.0, table of link rates (8b/10b, 128b/130b,
# and 242 of 256 bytes of a flit).
_LANE_BYTES = {1: 250e6, 2: 500e6, 3: 8e9 / 8 * 128 / 130, 4: 16e9 / 8 * 128 / 130, 5: 32e9 / 8 * 128 / 130,
               6: 64e9 / 8 * 242 / 256}
WORDS = 64  # of a set of NUMA nodes: 4,096 of them


cdef void gather_system(const nvml_table *table, System *found) noexcept nogil:
    memset(found, 0, sizeof(System))
    if table.driver_version(found.driver_version, ID_BYTES - 1) != NVML_SUCCESS:
        found.driver_version[0] = 0
    if table.nvml_version(found.nvml_version, ID_BYTES - 1) != NVML_SUCCESS:
        found.nvml_version[0] = 0
    if table.cuda_version(&found.cuda_version) != NVML_SUCCESS:
        found.cuda_version = 0


cdef void gather_facts(const nvml_table *table, unsigned int count, Facts *facts) noexcept nogil:
    """`facts` is zeroed."""
    cdef unsigned int index
    for index in range(count):
        facts[index].fault = table.by_index(index, &facts[index].identity.handle)
        if facts[index].fault == NVML_SUCCESS:
            facts[index].fault = identify(table, &facts[index].identity)
        if facts[index].fault == NVML_SUCCESS:
            gather_one(table, &facts[index])
            gather_instances(table, &facts[index])


cdef nvmlReturn_t identify(const nvml_table *table, Identity *found) noexcept nogil:
    cdef nvmlMemory_t memory
    cdef nvmlReturn_t code = table.uuid(found.handle, found.uuid, ID_BYTES - 1)
    if code != NVML_SUCCESS:
        return code
    if table.name(found.handle, found.name, ID_BYTES - 1) != NVML_SUCCESS:
        found.name[0] = 0
    if table.compute_capability(found.handle, &found.major, &found.minor) != NVML_SUCCESS:
        found.major = -1
    found.total = found.free = NAN
    if read_memory(table, found.handle, &memory) == NVML_SUCCESS:
        found.total = <double> memory.total
        found.free = <double> memory.free if memory.free != NVML_VALUE_NOT_AVAILABLE_ULL else NAN
    return NVML_SUCCESS


cdef void gather_one(const nvml_table *table, Facts *found) noexcept nogil:
    cdef nvmlDevice_t device = found.identity.handle
    cdef nvmlPciInfo_t pci
    cdef nvmlEnableState_t current, pending
    cdef unsigned int number, mode
    cdef double action
    memset(&pci, 0, sizeof(pci))
    if table.pci(device, &pci) == NVML_SUCCESS:
        found.bus_id = pci.busId
    found.numa_node = numa_node(table, device)
    found.mig_mode = -1
    if table.mig_mode(device, &mode, &number) == NVML_SUCCESS:
        found.mig_mode = mode == NVML_DEVICE_MIG_ENABLE
    found.ecc_mode = -1
    if table.ecc_mode(device, &current, &pending) == NVML_SUCCESS:
        found.ecc_mode = current == NVML_FEATURE_ENABLED
    found.recovery = -1
    if one_field(table, device, NVML_FI_DEV_GET_GPU_RECOVERY_ACTION, 0, &action) == NVML_SUCCESS:
        found.recovery = <int> action
    found.power_limit = NAN
    if table.power_limit(device, &number) == NVML_SUCCESS and number not in (0, NVML_VALUE_NOT_AVAILABLE_UINT):
        found.power_limit = number * 1e-3
    found.slowdown = threshold(table, device, NVML_TEMPERATURE_THRESHOLD_SLOWDOWN)
    found.shutdown = threshold(table, device, NVML_TEMPERATURE_THRESHOLD_SHUTDOWN)
    found.bandwidth = bandwidth(table, device)
    if table.pcie_generation(device, &found.pcie_generation) != NVML_SUCCESS:
        found.pcie_generation = 0
    if table.pcie_width(device, &found.pcie_lanes) != NVML_SUCCESS:
        found.pcie_lanes = 0


cdef double threshold(const nvml_table *table, nvmlDevice_t device, int which) noexcept nogil:
    cdef unsigned int celsius = 0
    if table.threshold(device, which, &celsius) != NVML_SUCCESS or celsius in (0, NVML_VALUE_NOT_AVAILABLE_UINT):
        return NAN
    return celsius


cdef double bandwidth(const nvml_table *table, nvmlDevice_t device) noexcept nogil:
    """Bytes a second: the bus carries two bits per line and cycle of the clock that NVML tells, whatever the memory."""
    cdef unsigned int bits = 0, mhz = 0
    if table.memory_bus_width(device, &bits) != NVML_SUCCESS or bits in (0, NVML_VALUE_NOT_AVAILABLE_UINT):
        return NAN
    if table.max_clock(device, NVML_CLOCK_MEM, &mhz) != NVML_SUCCESS or mhz in (0, NVML_VALUE_NOT_AVAILABLE_UINT):
        return NAN
    return bits / 8.0 * mhz * 1e6 * 2


cdef int numa_node(const nvml_table *table, nvmlDevice_t device) noexcept nogil:
    """The lowest node whose memory is nearest; -1 where the driver does not tell."""
    cdef unsigned long[64] nodes
    cdef int word, bit
    memset(nodes, 0, sizeof(nodes))
    if table.memory_affinity(device, 64, nodes, NVML_AFFINITY_SCOPE_NODE) != NVML_SUCCESS:
        return -1
    for word in range(64):
        for bit in range(64):
            if (nodes[word] >> bit) & 1:
                return 64 * word + bit
    return -1


cdef void gather_instances(const nvml_table *table, Facts *found) noexcept nogil:
    cdef unsigned int most = 0, number
    cdef Instance *instance
    cdef nvmlDeviceAttributes_t attributes
    if found.mig_mode != 1 or table.mig_count(found.identity.handle, &most) != NVML_SUCCESS:
        return
    for number in range(most):
        if found.instances == MOST_INSTANCES:
            return
        instance = &found.instance[found.instances]
        memset(instance, 0, sizeof(Instance))
        # Places without an instance are NOT_FOUND, also between others.
        if table.mig_by_index(found.identity.handle, number, &instance.identity.handle) != NVML_SUCCESS:
            continue
        if identify(table, &instance.identity) != NVML_SUCCESS:
            continue
        memset(&attributes, 0, sizeof(attributes))
        if table.attributes(instance.identity.handle, &attributes) == NVML_SUCCESS:
            instance.gpu_slices = <int> attributes.gpuInstanceSliceCount
            instance.compute_slices = <int> attributes.computeInstanceSliceCount
            instance.gibibytes = <double> attributes.memorySizeMB / 1024.0
        instance.slot = <int> found.instances
        found.instances += 1


cdef void gather_links(const nvml_table *table, unsigned int count, Facts *facts) noexcept nogil:
    cdef unsigned int one, other, level
    for one in range(count):
        memset(facts[one].level, UNKNOWN_LEVEL, MOST_GPUS)
        if facts[one].fault == NVML_SUCCESS:
            gather_nvlinks(table, &facts[one])
    for one in range(count):
        for other in range(one):
            if facts[one].fault == NVML_SUCCESS and facts[other].fault == NVML_SUCCESS:
                if table.common_ancestor(facts[one].identity.handle, facts[other].identity.handle,
                                         &level) == NVML_SUCCESS:
                    facts[one].level[other] = facts[other].level[one] = <unsigned char> level


cdef void gather_nvlinks(const nvml_table *table, Facts *found) noexcept nogil:
    """The links that are up, each with its peer and speed."""
    cdef nvmlDevice_t device = found.identity.handle
    cdef unsigned int link, kind, most = MOST_LINKS
    cdef nvmlEnableState_t active
    cdef nvmlPciInfo_t pci
    cdef double number
    if one_field(table, device, NVML_FI_DEV_NVLINK_LINK_COUNT, 0, &number) == NVML_SUCCESS:
        most = <unsigned int> number if 0 <= number < MOST_LINKS else MOST_LINKS
    for link in range(most):
        active = 0
        if table.nvlink_state(device, link, &active) != NVML_SUCCESS:
            return  # no NVLink at all, or no more links
        if active != NVML_FEATURE_ENABLED:
            continue
        memset(&pci, 0, sizeof(pci))
        kind = 0
        if table.nvlink_peer_type(device, link, &kind) == NVML_SUCCESS and kind == NVML_NVLINK_DEVICE_TYPE_SWITCH:
            pci.busId[0] = 0
        elif table.nvlink_peer(device, link, &pci) != NVML_SUCCESS:
            continue
        found.link[found.links].peer = pci.busId
        number = NAN
        if one_field(table, device, NVML_FI_DEV_NVLINK_GET_SPEED, link, &number) != NVML_SUCCESS or not number > 0:
            if one_field(table, device, NVML_FI_DEV_NVLINK_SPEED_MBPS_COMMON, link, &number) != NVML_SUCCESS:
                number = NAN
        found.link[found.links].bytes_per_second = number * 1e6 if number > 0 else NAN
        found.links += 1


# As Python values.

cdef object text(const char *data):
    return data.decode("utf-8", "replace") or None


cdef object number(double value):
    return None if value != value else value


cdef object whole(double value):
    return None if value != value else int(value)


cdef dict known(dict values):
    return {name: value for name, value in values.items() if value is not None}


cdef dict identity_of(const Identity *found):
    return {
        "device_id": text(found.uuid), "name": text(found.name) or text(found.uuid),
        "compute_capability": [found.major, found.minor] if found.major >= 0 else None,
        "vram_total_bytes": whole(found.total), "vram_free_bytes": whole(found.free),
    }  # fmt: skip


cdef dict gpu_of(const Facts *found, unsigned int index):
    return known({
        **identity_of(&found.identity), "index": index, "pci_bus_id": text(found.bus_id),
        "numa_node": found.numa_node if found.numa_node >= 0 else None,
        "mig_mode": bool(found.mig_mode) if found.mig_mode >= 0 else None,
        "ecc_mode": bool(found.ecc_mode) if found.ecc_mode >= 0 else None,
        "power_limit_watts": number(found.power_limit), "slowdown_celsius": number(found.slowdown),
        "shutdown_celsius": number(found.shutdown), "memory_bandwidth_bytes": number(found.bandwidth),
        "recovery_action": _RECOVERY.get(found.recovery),
    })  # fmt: skip


cdef dict instance_of(const Instance *found, const Facts *parent, unsigned int index):
    identity = identity_of(&found.identity)
    if identity["compute_capability"] is None and parent.identity.major >= 0:
        identity["compute_capability"] = [parent.identity.major, parent.identity.minor]
    return known({
        **identity, "mig_slot": f"{index}.{found.slot}", "mig_profile": profile_of(found),
        "parent_device_id": text(parent.identity.uuid), "pci_bus_id": text(parent.bus_id),
        "numa_node": parent.numa_node if parent.numa_node >= 0 else None,
        "ecc_mode": bool(parent.ecc_mode) if parent.ecc_mode >= 0 else None,
    })  # fmt: skip


cdef object profile_of(const Instance *found):
    """As the name tells it ("… MIG 1g.5gb"), or made of its slices as NVIDIA names profiles."""
    name = text(found.identity.name) or ""
    if " MIG " in name:
        return name.rpartition(" MIG ")[2]
    if found.gpu_slices == 0:
        return None
    profile = f"{found.gpu_slices}g.{round(found.gibibytes)}gb"
    return profile if found.compute_slices == found.gpu_slices else f"{found.compute_slices}c.{profile}"


cdef list nvlinks_of(const Facts *facts, unsigned int count, unsigned int index):
    """Lanes and speeds by peer. Links to a switch lead to every GPU that has such links, as many as both have."""
    switched = [0] * count
    for other in range(count):
        for i in range(facts[other].links):
            switched[other] += facts[other].link[i].peer[0] == 0
    places = {bus_key(facts[other].bus_id): other for other in range(count) if facts[other].fault == NVML_SUCCESS}
    speeds = {}
    through = [0] * count
    for i in range(facts[index].links):
        speed = number(facts[index].link[i].bytes_per_second)
        peer = places.get(bus_key(facts[index].link[i].peer))
        if facts[index].link[i].peer[0] != 0:
            reached = [peer] if peer is not None else []
        else:
            reached = [other for other in range(count) if other != index and switched[other] > through[other]]
            for other in reached:
                through[other] += 1
        for other in reached:
            speeds.setdefault(other, []).append(speed)
    return [
        known({"peer": text(facts[other].identity.uuid), "kind": "NVLINK", "lanes": len(each),
               "bytes_per_second": None if None in each else sum(each)})
        for other, each in sorted(speeds.items())
    ]  # fmt: skip


cdef object bus_key(const char *bus_id):
    """Some calls write the domain with four digits and some with eight, in either case."""
    domain, _, rest = bus_id.decode("ascii", "replace").lower().partition(":")
    return domain.lstrip("0"), rest


cdef list links_of(const Facts *facts, unsigned int count, unsigned int index):
    found = nvlinks_of(facts, count, index)
    linked = {each["peer"] for each in found}
    for other in range(count):
        peer = text(facts[other].identity.uuid)
        level = facts[index].level[other]
        if other == index or peer in linked or level == UNKNOWN_LEVEL:
            continue
        lanes = min(facts[index].pcie_lanes, facts[other].pcie_lanes)
        lane = _LANE_BYTES.get(min(facts[index].pcie_generation, facts[other].pcie_generation))
        if level > NVML_TOPOLOGY_NODE:  # what lies between the nodes is not known
            found.append({"peer": peer, "kind": "SYSTEM"})
        else:
            found.append(known({"peer": peer, "kind": "PCIE", "lanes": lanes or None,
                                "bytes_per_second": lane * lanes if lane and lanes else None}))
    return found


cdef tuple devices_of(const Facts *facts, unsigned int count, const System *system):
    """What `Library.discover` tells, and the handles by device id."""
    devices, unreadable, handles = [], [], {}
    for index in range(count):
        if facts[index].fault != NVML_SUCCESS:
            unreadable.append({"index": index, "code": facts[index].fault})
            continue
        gpu = gpu_of(&facts[index], index)
        gpu["links"] = links_of(facts, count, index)
        handles[gpu["device_id"]] = <uintptr_t> facts[index].identity.handle
        devices.append(gpu)
        for i in range(facts[index].instances):
            instance = instance_of(&facts[index].instance[i], &facts[index], index)
            handles[instance["device_id"]] = <uintptr_t> facts[index].instance[i].identity.handle
            devices.append(instance)
    version = system.cuda_version
    found = known({
        "driver_version": text(system.driver_version), "nvml_version": text(system.nvml_version),
        "cuda_version": f"{version // 1000}.{version % 1000 // 10}" if version else None,
        "devices": devices, "unreadable": unreadable,
    })  # fmt: skip
    return found, handles
