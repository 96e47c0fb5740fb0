# The complete header of nvml: the driver's library as Python sees it. What is called is in driver.pxd.

from libc.stdint cimport uintptr_t

from poolmgr_ext.driver cimport nvmlDevice_t, nvmlEventSet_t, nvml_table

cdef class Library:
    cdef nvml_table table
    cdef void *library
    cdef nvmlEventSet_t events
    cdef bint begun
    cdef dict handles  # device id -> address
    cdef set registered  # ids of the GPUs whose events are asked for
    cdef readonly str path
    cdef readonly bint simulated
    cdef nvmlDevice_t handle(self, str device_id) except NULL
