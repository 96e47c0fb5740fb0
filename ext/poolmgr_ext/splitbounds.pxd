# The complete header of splitbounds.

from libc.stdint cimport int64_t

from poolmgr_ext.splitcost cimport Problem

cdef int64_t most_of_one(const Problem *p, int klass) noexcept nogil
cdef double least_hop(const Problem *p) noexcept nogil
cdef double shared(const Problem *p) noexcept nogil
cdef int64_t fastest_possible(const Problem *p) noexcept nogil
