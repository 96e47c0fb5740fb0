# cython: language_level=3, cdivision=True
"""Reads who holds memory of a device."""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free

from poolmgr_ext.driver cimport (
    NVML_ERROR_GPU_IS_LOST, NVML_ERROR_NOT_SUPPORTED, NVML_SUCCESS, NVML_VALUE_NOT_AVAILABLE_ULL, list_processes,
    nvmlProcessInfo_t, process_call)
from poolmgr_ext.ringlayout cimport RING_MAX_PROCESSES, RING_UNKNOWN


cdef nvmlReturn_t read_processes(const nvml_table *table, nvmlDevice_t device, int64_t at_ns,
                                 ProcessTable *into) noexcept nogil:
    """All three lists, each pid once; `total` counts those without room too. A success where one list is one."""
    cdef process_call[3] lists
    cdef nvmlProcessInfo_t *infos = NULL
    cdef nvmlReturn_t code, best = NVML_ERROR_NOT_SUPPORTED
    cdef unsigned int count, i
    cdef uint32_t kind
    lists[0], lists[1], lists[2] = table.compute_processes, table.graphics_processes, table.mps_processes
    into.total = into.count = 0
    into.at_ns = at_ns
    for kind in range(3):
        count = 0
        code = list_processes(lists[kind], device, &infos, &count)
        if kind == 0 or code == NVML_SUCCESS or code == NVML_ERROR_GPU_IS_LOST:
            best = code
        for i in range(count):
            add(&infos[i], kind, into)
        if best == NVML_ERROR_GPU_IS_LOST:
            break
    free(infos)
    return best


cdef void add(const nvmlProcessInfo_t *info, uint32_t kind, ProcessTable *into) noexcept nogil:
    cdef uint64_t place
    for place in range(into.count):
        if into.entries[place].pid == info.pid:
            return
    into.total += 1
    if into.count == RING_MAX_PROCESSES:
        return
    place = into.count
    into.entries[place].pid = info.pid
    into.entries[place].kind = kind
    into.entries[place].used = info.usedGpuMemory
    if info.usedGpuMemory == NVML_VALUE_NOT_AVAILABLE_ULL:
        into.entries[place].used = RING_UNKNOWN
    into.count = place + 1
