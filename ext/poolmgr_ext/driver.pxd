# The complete header of driver: NVML's ABI as far as it is called (ext/include/nvml_abi.h), the table of functions that
# were found at run time (nvml_table.h), and the calls that need more than one line.

cdef extern from "nvml_table.h" nogil:
    ctypedef int nvmlReturn_t
    ctypedef void *nvmlDevice_t
    ctypedef void *nvmlEventSet_t
    ctypedef unsigned int nvmlEnableState_t
    enum:
        NVML_SUCCESS
        NVML_ERROR_INVALID_ARGUMENT
        NVML_ERROR_NOT_SUPPORTED
        NVML_ERROR_NO_PERMISSION
        NVML_ERROR_NOT_FOUND
        NVML_ERROR_INSUFFICIENT_SIZE
        NVML_ERROR_DRIVER_NOT_LOADED
        NVML_ERROR_TIMEOUT
        NVML_ERROR_LIBRARY_NOT_FOUND
        NVML_ERROR_FUNCTION_NOT_FOUND
        NVML_ERROR_GPU_IS_LOST
        NVML_ERROR_LIB_RM_VERSION_MISMATCH
        NVML_ERROR_ARGUMENT_VERSION_MISMATCH
        NVML_ERROR_DEPRECATED
        NVML_ERROR_GPU_NOT_FOUND
        NVML_ERROR_UNKNOWN
        NVML_FEATURE_ENABLED
        NVML_TEMPERATURE_GPU
        NVML_TEMPERATURE_THRESHOLD_SHUTDOWN
        NVML_TEMPERATURE_THRESHOLD_SLOWDOWN
        NVML_CLOCK_GRAPHICS
        NVML_CLOCK_SM
        NVML_CLOCK_MEM
        NVML_CLOCK_VIDEO
        NVML_MEMORY_ERROR_TYPE_CORRECTED
        NVML_MEMORY_ERROR_TYPE_UNCORRECTED
        NVML_VOLATILE_ECC
        NVML_AGGREGATE_ECC
        NVML_PAGE_RETIREMENT_CAUSE_MULTIPLE_SINGLE_BIT_ECC_ERRORS
        NVML_PAGE_RETIREMENT_CAUSE_DOUBLE_BIT_ECC_ERROR
        NVML_PCIE_UTIL_TX_BYTES
        NVML_PCIE_UTIL_RX_BYTES
        NVML_PSTATE_UNKNOWN
        NVML_NVLINK_DEVICE_TYPE_GPU
        NVML_NVLINK_DEVICE_TYPE_SWITCH
        NVML_NVLINK_MAX_LINKS
        NVML_TOPOLOGY_NODE
        NVML_DEVICE_MIG_ENABLE
        NVML_AFFINITY_SCOPE_NODE
        NVML_VALUE_TYPE_DOUBLE
        NVML_VALUE_TYPE_UNSIGNED_INT
        NVML_VALUE_TYPE_UNSIGNED_LONG
        NVML_VALUE_TYPE_UNSIGNED_LONG_LONG
        NVML_VALUE_TYPE_SIGNED_LONG_LONG
        NVML_VALUE_TYPE_SIGNED_INT
        NVML_VALUE_TYPE_UNSIGNED_SHORT
        NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL
        NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL
        NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL
        NVML_FI_DEV_MEMORY_TEMP
        NVML_FI_DEV_NVLINK_SPEED_MBPS_COMMON
        NVML_FI_DEV_NVLINK_LINK_COUNT
        NVML_FI_DEV_NVLINK_GET_SPEED
        NVML_FI_DEV_PCIE_COUNT_TX_BYTES
        NVML_FI_DEV_PCIE_COUNT_RX_BYTES
        NVML_FI_DEV_GET_GPU_RECOVERY_ACTION
    unsigned int NVML_VALUE_NOT_AVAILABLE_UINT
    unsigned long long NVML_VALUE_NOT_AVAILABLE_ULL
    unsigned int nvmlMemory_v2
    unsigned long long nvmlEventTypeSingleBitEccError
    unsigned long long nvmlEventTypeDoubleBitEccError
    unsigned long long nvmlEventTypePState
    unsigned long long nvmlEventTypeXidCriticalError
    unsigned long long nvmlEventTypeClock
    unsigned long long nvmlEventTypePowerSourceChange
    unsigned long long nvmlEventMigConfigChange
    ctypedef struct nvmlPciInfo_t:
        unsigned int domain, bus, device
        char busId[32]
    ctypedef struct nvmlMemory_t:
        unsigned long long total, free, used
    ctypedef struct nvmlMemory_v2_t:
        unsigned int version
        unsigned long long total, reserved, free, used
    ctypedef struct nvmlUtilization_t:
        unsigned int gpu, memory
    ctypedef struct nvmlProcessInfo_t:
        unsigned int pid
        unsigned long long usedGpuMemory
        unsigned int gpuInstanceId, computeInstanceId
    ctypedef union nvmlValue_t:
        double dVal
        unsigned int uiVal
        unsigned long ulVal
        unsigned long long ullVal
        long long sllVal
        int siVal
        unsigned short usVal
    ctypedef struct nvmlFieldValue_t:
        unsigned int fieldId, scopeId
        long long timestamp, latencyUsec
        int valueType
        nvmlReturn_t nvmlReturn
        nvmlValue_t value
    ctypedef struct nvmlDeviceAttributes_t:
        unsigned int gpuInstanceSliceCount, computeInstanceSliceCount
        unsigned long long memorySizeMB
    ctypedef struct nvmlEventData_t:
        nvmlDevice_t device
        unsigned long long eventType, eventData
        unsigned int gpuInstanceId, computeInstanceId
    # Functions that take an enumeration are declared with the integer that it is passed as.
    struct nvml_table:
        nvmlReturn_t (*init)() noexcept nogil
        nvmlReturn_t (*shutdown)() noexcept nogil
        nvmlReturn_t (*driver_version)(char *version, unsigned int length) noexcept nogil
        nvmlReturn_t (*nvml_version)(char *version, unsigned int length) noexcept nogil
        nvmlReturn_t (*cuda_version)(int *version) noexcept nogil
        nvmlReturn_t (*count)(unsigned int *count) noexcept nogil
        nvmlReturn_t (*by_index)(unsigned int index, nvmlDevice_t *device) noexcept nogil
        nvmlReturn_t (*name)(nvmlDevice_t device, char *name, unsigned int length) noexcept nogil
        nvmlReturn_t (*uuid)(nvmlDevice_t device, char *uuid, unsigned int length) noexcept nogil
        nvmlReturn_t (*compute_capability)(nvmlDevice_t device, int *major, int *minor) noexcept nogil
        nvmlReturn_t (*pci)(nvmlDevice_t device, nvmlPciInfo_t *pci) noexcept nogil
        nvmlReturn_t (*memory_affinity)(nvmlDevice_t device, unsigned int words, unsigned long *set,
                                        unsigned int scope) noexcept nogil
        nvmlReturn_t (*memory_bus_width)(nvmlDevice_t device, unsigned int *bits) noexcept nogil
        nvmlReturn_t (*memory)(nvmlDevice_t device, nvmlMemory_v2_t *memory) noexcept nogil
        nvmlReturn_t (*memory_v1)(nvmlDevice_t device, nvmlMemory_t *memory) noexcept nogil
        nvmlReturn_t (*utilization)(nvmlDevice_t device, nvmlUtilization_t *utilization) noexcept nogil
        nvmlReturn_t (*encoder)(nvmlDevice_t device, unsigned int *percent, unsigned int *period_us) noexcept nogil
        nvmlReturn_t (*decoder)(nvmlDevice_t device, unsigned int *percent, unsigned int *period_us) noexcept nogil
        nvmlReturn_t (*field_values)(nvmlDevice_t device, int count, nvmlFieldValue_t *values) noexcept nogil
        nvmlReturn_t (*temperature)(nvmlDevice_t device, int sensor, unsigned int *celsius) noexcept nogil
        nvmlReturn_t (*threshold)(nvmlDevice_t device, int type, unsigned int *celsius) noexcept nogil
        nvmlReturn_t (*fan)(nvmlDevice_t device, unsigned int *percent) noexcept nogil
        nvmlReturn_t (*power)(nvmlDevice_t device, unsigned int *milliwatts) noexcept nogil
        nvmlReturn_t (*power_limit)(nvmlDevice_t device, unsigned int *milliwatts) noexcept nogil
        nvmlReturn_t (*energy)(nvmlDevice_t device, unsigned long long *millijoules) noexcept nogil
        nvmlReturn_t (*performance_state)(nvmlDevice_t device, unsigned int *state) noexcept nogil
        nvmlReturn_t (*clock)(nvmlDevice_t device, int type, unsigned int *mhz) noexcept nogil
        nvmlReturn_t (*max_clock)(nvmlDevice_t device, int type, unsigned int *mhz) noexcept nogil
        nvmlReturn_t (*clock_reasons)(nvmlDevice_t device, unsigned long long *reasons) noexcept nogil
        nvmlReturn_t (*ecc_mode)(nvmlDevice_t device, nvmlEnableState_t *current, nvmlEnableState_t *pending) noexcept nogil
        nvmlReturn_t (*ecc_errors)(nvmlDevice_t device, int type, int counter, unsigned long long *count) noexcept nogil
        nvmlReturn_t (*retired_pages)(nvmlDevice_t device, int cause, unsigned int *count,
                                      unsigned long long *addresses) noexcept nogil
        nvmlReturn_t (*retired_pending)(nvmlDevice_t device, nvmlEnableState_t *pending) noexcept nogil
        nvmlReturn_t (*remapped_rows)(nvmlDevice_t device, unsigned int *corrected, unsigned int *uncorrected,
                                      unsigned int *pending, unsigned int *failed) noexcept nogil
        nvmlReturn_t (*pcie_throughput)(nvmlDevice_t device, int counter, unsigned int *kb_per_second) noexcept nogil
        nvmlReturn_t (*pcie_replays)(nvmlDevice_t device, unsigned int *count) noexcept nogil
        nvmlReturn_t (*pcie_generation)(nvmlDevice_t device, unsigned int *generation) noexcept nogil
        nvmlReturn_t (*pcie_width)(nvmlDevice_t device, unsigned int *lanes) noexcept nogil
        nvmlReturn_t (*nvlink_state)(nvmlDevice_t device, unsigned int link, nvmlEnableState_t *active) noexcept nogil
        nvmlReturn_t (*nvlink_peer)(nvmlDevice_t device, unsigned int link, nvmlPciInfo_t *pci) noexcept nogil
        nvmlReturn_t (*nvlink_peer_type)(nvmlDevice_t device, unsigned int link, unsigned int *type) noexcept nogil
        nvmlReturn_t (*common_ancestor)(nvmlDevice_t one, nvmlDevice_t other, unsigned int *level) noexcept nogil
        nvmlReturn_t (*compute_processes)(nvmlDevice_t device, unsigned int *count, nvmlProcessInfo_t *infos) noexcept nogil
        nvmlReturn_t (*graphics_processes)(nvmlDevice_t device, unsigned int *count, nvmlProcessInfo_t *infos) noexcept nogil
        nvmlReturn_t (*mps_processes)(nvmlDevice_t device, unsigned int *count, nvmlProcessInfo_t *infos) noexcept nogil
        nvmlReturn_t (*mig_mode)(nvmlDevice_t device, unsigned int *current, unsigned int *pending) noexcept nogil
        nvmlReturn_t (*mig_count)(nvmlDevice_t device, unsigned int *count) noexcept nogil
        nvmlReturn_t (*mig_by_index)(nvmlDevice_t device, unsigned int index, nvmlDevice_t *instance) noexcept nogil
        nvmlReturn_t (*attributes)(nvmlDevice_t device, nvmlDeviceAttributes_t *attributes) noexcept nogil
        nvmlReturn_t (*event_set_create)(nvmlEventSet_t *set) noexcept nogil
        nvmlReturn_t (*event_register)(nvmlDevice_t device, unsigned long long types, nvmlEventSet_t set) noexcept nogil
        nvmlReturn_t (*event_types)(nvmlDevice_t device, unsigned long long *types) noexcept nogil
        nvmlReturn_t (*event_wait)(nvmlEventSet_t set, nvmlEventData_t *data, unsigned int timeout_ms) noexcept nogil
        nvmlReturn_t (*event_set_free)(nvmlEventSet_t set) noexcept nogil
    void nvml_table_load(nvml_table *table, void *library)

cdef enum:
    MOST_GPUS = 256
    MOST_INSTANCES = 8  # per GPU: compute instances of one slice
    ID_BYTES = 96
    PROCESS_ROOM = 256
    MOST_PROCESSES = 65536
    ATTEMPTS = 3  # at a list that grows while it is read

ctypedef nvmlReturn_t (*process_call)(nvmlDevice_t device, unsigned int *count, nvmlProcessInfo_t *infos) noexcept nogil

cdef double field_number(const nvmlFieldValue_t *field) noexcept nogil
cdef nvmlReturn_t one_field(const nvml_table *table, nvmlDevice_t device, unsigned int which, unsigned int scope,
                            double *found) noexcept nogil
cdef nvmlReturn_t read_memory(const nvml_table *table, nvmlDevice_t device, nvmlMemory_t *found) noexcept nogil
cdef nvmlReturn_t list_processes(process_call call, nvmlDevice_t device, nvmlProcessInfo_t **infos,
                                 unsigned int *count) noexcept nogil
