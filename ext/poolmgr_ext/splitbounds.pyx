# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
"""What no split can be better than, from relaxations: layers divided at will, over devices that all work together."""

from libc.math cimport INFINITY

from poolmgr_ext.splitcost cimport MOST_DEVICES, bits_of, uint64_t


cdef int64_t most_of_one(const Problem *p, int klass) noexcept nogil:
    """The most bytes read per token that one device has room for."""
    cdef int first, end = 0
    cdef int64_t most = 0, one
    for first in range(p.layers):
        end = end if end > first else first
        while end < p.layers and p.memory[end + 1] - p.memory[first] <= p.room[klass]:
            end += 1
        one = p.cost[end] - p.cost[first]
        most = one if one > most else most
    return most


cdef double least_hop(const Problem *p) noexcept nogil:
    cdef int place
    cdef double hop = INFINITY
    for place in range(p.slots * p.classes):
        hop = p.hop[place] if p.hop[place] < hop else hop
    return hop


cdef double shared(const Problem *p) noexcept nogil:
    """Seconds that all devices together take at least, layers divided at will, each no more than it has room for."""
    cdef double[MOST_DEVICES] most
    cdef double rest = <double> p.cost[p.layers], seconds = 0, together
    cdef uint64_t full = 0, before
    cdef int klass
    for klass in range(p.classes):
        most[klass] = <double> most_of_one(p, klass)
    while True:
        together, before = 0, full
        for klass in range(p.classes):
            if not full >> klass & 1:
                together += p.size[klass] * p.bandwidth[klass]
        if together <= 0 or rest <= 0:
            return seconds
        seconds = rest / together
        for klass in range(p.classes):
            if not full >> klass & 1 and most[klass] / p.bandwidth[klass] < seconds:
                full |= <uint64_t> 1 << klass
                rest -= p.size[klass] * most[klass]
        if full == before:
            return seconds


cdef int64_t fastest_possible(const Problem *p) noexcept nogil:
    """A bound on the bottleneck as a rank, from relaxations; a little less, so that rounding never lifts it."""
    cdef double together = 0, bound, other
    cdef int klass, member, left = p.most
    for klass in range(p.classes):  # the fastest first
        for member in range(p.size[klass]):
            if left > 0:
                together += p.bandwidth[klass]
                left -= 1
    bound = <double> p.cost[p.layers] / together
    other = shared(p)
    bound = ((other if other > bound else bound) + least_hop(p)) * (1 - 1e-9)
    return bits_of(bound if bound < 1e308 else 0)
