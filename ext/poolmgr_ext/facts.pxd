# The complete header of facts: what a discovery asks of every device (DEV-1), as the driver answered.

from poolmgr_ext.driver cimport ID_BYTES, MOST_GPUS, MOST_INSTANCES, nvml_table, nvmlDevice_t, nvmlReturn_t

cdef enum:
    MOST_LINKS = 36
    UNKNOWN_LEVEL = 255

# Numbers are NaN, integers -1 where the driver does not tell.
cdef struct Identity:
    nvmlDevice_t handle
    char uuid[ID_BYTES]
    char name[ID_BYTES]
    int major, minor
    double total, free

cdef struct Instance:
    Identity identity
    int slot  # its number in the driver's order: 1 is the second instance
    int gpu_slices, compute_slices
    double gibibytes

cdef struct Nvlink:
    char peer[32]  # PCI bus id, empty for a switch
    double bytes_per_second

cdef struct Facts:
    nvmlReturn_t fault  # why there is no handle or no identity
    Identity identity
    char bus_id[32]
    int numa_node, mig_mode, ecc_mode, recovery
    double power_limit, slowdown, shutdown, bandwidth
    unsigned int pcie_generation, pcie_lanes  # 0: unknown
    unsigned int instances
    Instance instance[MOST_INSTANCES]
    unsigned int links
    Nvlink link[MOST_LINKS]
    unsigned char level[MOST_GPUS]  # common ancestor with each other GPU

cdef struct System:
    char driver_version[ID_BYTES]
    char nvml_version[ID_BYTES]
    int cuda_version

cdef void gather_system(const nvml_table *table, System *found) noexcept nogil
cdef void gather_facts(const nvml_table *table, unsigned int count, Facts *facts) noexcept nogil
cdef void gather_links(const nvml_table *table, unsigned int count, Facts *facts) noexcept nogil
cdef nvmlReturn_t identify(const nvml_table *table, Identity *found) noexcept nogil
cdef void gather_one(const nvml_table *table, Facts *found) noexcept nogil
cdef double threshold(const nvml_table *table, nvmlDevice_t device, int which) noexcept nogil
cdef int numa_node(const nvml_table *table, nvmlDevice_t device) noexcept nogil
cdef void gather_instances(const nvml_table *table, Facts *found) noexcept nogil
cdef void gather_nvlinks(const nvml_table *table, Facts *found) noexcept nogil
cdef tuple devices_of(const Facts *facts, unsigned int count, const System *system)
