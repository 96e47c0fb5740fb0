# The complete header of processlist: a device's processes as the ring's side table has them.

from libc.stdint cimport int64_t, uint32_t

from poolmgr_ext.driver cimport nvml_table, nvmlDevice_t, nvmlProcessInfo_t, nvmlReturn_t
from poolmgr_ext.ringlayout cimport ProcessTable

cdef nvmlReturn_t read_processes(const nvml_table *table, nvmlDevice_t device, int64_t at_ns,
                                 ProcessTable *into) noexcept nogil
cdef void add(const nvmlProcessInfo_t *info, uint32_t kind, ProcessTable *into) noexcept nogil
