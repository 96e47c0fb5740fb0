# The complete header of splitlattice: bounds on every stage, swept over all multisets of device classes (no links).

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint64_t

from poolmgr_ext.splitcost cimport MOST_DEVICES, Plan, Problem

cdef enum Measure:
    SECONDS  # of a stage: less is better
    HEADROOM  # that it leaves: more is better
    EVENNESS  # the share of its device's free memory that it leaves: more is better

# What every stage has to keep to, and what that means in bytes. `next`[class][first]: one past the last layer that a
# stage may take, 0 where it may take none; `first` up to layers + 1, which is a prefix that is not reached.
# `reached`[state]: the longest prefix, layers + 1 where there is none.
cdef struct Sweep:
    const Problem *p
    double seconds
    int64_t headroom
    double evenness
    int64_t[MOST_DEVICES] most_cost
    int64_t[MOST_DEVICES] most_memory  # by evenness alone
    uint16_t *next
    uint16_t *reached
    uint8_t *seen
    uint16_t *back  # [class][end]: the first layer of the longest stage that ends there
    uint16_t *missing  # [state]: from which layer on the devices that it may still use are enough
    int64_t steps

cdef int lattice_begin(Problem *p) noexcept nogil
cdef void lattice_end(Problem *p) noexcept nogil
cdef int sweep_begin(Sweep *sweep, const Problem *p) noexcept nogil
cdef void sweep_end(Sweep *sweep) noexcept nogil
cdef int64_t rank(const Problem *p, Measure measure, int slot, int klass, int first, int end) noexcept nogil
cdef int64_t worst(const Problem *p, Measure measure, const Plan *plan) noexcept nogil
cdef bint keeps(const Sweep *sweep, Measure measure, int slot, int klass, int64_t bytes) noexcept nogil
cdef int64_t most_bytes(const Sweep *sweep, Measure measure, int slot, int klass, int64_t most) noexcept nogil
cdef void ask(Sweep *sweep, Measure measure, int64_t value) noexcept nogil
cdef void extensions(Sweep *sweep) noexcept nogil
cdef int reach(Sweep *sweep, int most, bint fewest) noexcept nogil
cdef void trace(const Sweep *sweep, int state, Plan *plan) noexcept nogil
cdef bint attempt(Sweep *sweep, int most, bint fewest, Plan *plan) noexcept nogil
cdef int64_t refused(Sweep *sweep, Measure measure, int most) noexcept nogil
cdef int64_t narrow(Sweep *sweep, Measure measure, int64_t low, int most, Plan *plan) noexcept nogil
cdef void backward(Sweep *sweep, int count) noexcept nogil
cdef void first_order(Sweep *sweep, int count, Plan *plan) noexcept nogil
