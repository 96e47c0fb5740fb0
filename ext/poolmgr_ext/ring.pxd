# The complete header of ring: a reader's view of one. The layout is in ringlayout.pxd.

from libc.stdint cimport int64_t, uint32_t, uint64_t

from poolmgr_ext.ringlayout cimport ring_view
from poolmgr_ext.stats cimport Percentiles

cdef class RingReader:
    cdef ring_view view
    cdef int descriptor
    cdef uint64_t mapped
    cdef uint64_t torn
    cdef uint32_t counter_bits[64]  # 0 for a gauge
    cdef readonly str path
    cdef readonly tuple fields
    cdef readonly tuple device_ids
    cdef int check(self) except -1
    cdef uint32_t column_of(self, object column) except? 4294967295
    cdef int field_of(self, object field) except -1
    cdef int group_of(self, int field) noexcept nogil
    cdef list many(self, double window_seconds)

cdef object text_of(const char *data, size_t room)
cdef object quantiles_tuple(const Percentiles *found)
cdef uint32_t ring_header_version(const void *mapped, uint64_t size) noexcept nogil
