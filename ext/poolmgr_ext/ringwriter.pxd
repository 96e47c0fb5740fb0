# The complete header of ringwriter: the one writer of a ring.

from libc.stdint cimport int64_t, uint32_t, uint64_t

from poolmgr_ext.ringlayout cimport ring_view

cdef int put_text(char *to, str text) except -1

cdef class RingWriter:
    cdef ring_view view
    cdef int descriptor
    cdef readonly str path
    cdef readonly tuple fields
    cdef readonly tuple device_ids
    cdef readonly double depth_seconds
    cdef readonly double rate_hz
    cdef unsigned char *workspace  # SERIES_BYTES for every field of every device, zeroed
    cdef uint64_t rows_written[2]
    cdef int lay_out(self, uint64_t epoch, double depth_asked, uint64_t fixed, uint64_t total, object rows) except -1
    cdef int describe(self) except -1
