# The complete header of planner: the door to the native search for splits (SPLIT-4). It checks and packs numbers; what
# stands behind it is splitsearch.

from libc.stdint cimport int64_t

from poolmgr_ext.splitcost cimport Problem
from poolmgr_ext.splitsearch cimport Answer, Model, Objective

cdef struct Device:
    int64_t free
    int64_t room
    double bandwidth
    int place

cdef class Layers:
    cdef Model model
    cdef int64_t *cost  # the block of memory of all
    cdef int64_t smallest  # bytes that some layer holds

cdef int devices_of(list devices, Objective objective, int64_t smallest, Device *into) except -1
cdef bint precedes(const Device *one, const Device *other, Objective objective) noexcept nogil
cdef bint alike(const Device *one, const Device *other, Objective objective) noexcept nogil
cdef void classes_of(Problem *p, const Device *devices, int count, Objective objective) noexcept nogil
cdef int hops_of(Problem *p, list links, double default_hop, int devices) except -1
cdef object told(const Problem *p, const Answer *answer)
