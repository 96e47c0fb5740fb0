# The complete header of samples: every reading of a window.

from libc.stdint cimport int64_t, uint32_t, uint64_t

from poolmgr_ext.ringlayout cimport ring_view
from poolmgr_ext.stats cimport Percentiles

# The samples of one device and group, newest last: `values[f * room + i]`, `times` likewise, `counts[f]`.
cdef struct Gathered:
    int64_t base_ns
    Py_ssize_t room
    double *times
    double *values
    Py_ssize_t counts[64]

cdef uint64_t first_row(const ring_view *view, uint32_t group, uint32_t column, uint64_t head,
                        int64_t begin_ns) noexcept nogil
cdef int gather(const ring_view *view, uint32_t group, uint32_t column, double seconds, Gathered *into) noexcept nogil
cdef void summarise(const ring_view *view, uint32_t group, const uint32_t *counter_bits, double seconds,
                    Gathered *samples, Percentiles *found) noexcept nogil
cdef void unwrap(double *values, Py_ssize_t count, int bits) noexcept nogil
