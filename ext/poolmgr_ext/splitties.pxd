# The complete header of splitties: which of the plans with the least seconds is meant.

from libc.stdint cimport int64_t, uint16_t

from poolmgr_ext.splitcost cimport Plan, Problem
from poolmgr_ext.splitrows cimport Row, Rows

cdef struct Ties:
    Rows *rows
    int count  # the fewest devices
    double best  # the least seconds
    int64_t refused  # the most headroom that a floor above it kept from a stage
    uint16_t *reach  # as of Rows, under a floor of headroom
    double *frontier  # [place][prefix] least seconds up to there in the order that is being made, NaN: not part of it
    double *tail  # [place][prefix] most seconds up to there that still make a best plan in that order, below 0: none

cdef int settle(Rows *rows, Plan *plan) noexcept nogil
cdef double highest(const Rows *rows, double value, double stage, double most) noexcept nogil
cdef void thresholds(Ties *ties) noexcept nogil
cdef void lower(Ties *ties, const Row *row, Row *before, int from_slot, int klass) noexcept nogil
cdef int least_under_floor(Ties *ties) noexcept nogil
cdef void spread(Ties *ties, int state, int slot) noexcept nogil
cdef int64_t headroom_of(const Problem *p, const Plan *plan) noexcept nogil
cdef void most_headroom(Ties *ties, Plan *plan) noexcept nogil
cdef bint first_order(Ties *ties, Plan *plan) noexcept nogil
cdef bint leads_on(Ties *ties, int place, int state, int slot, int klass) noexcept nogil
cdef bint longest_cuts(Ties *ties, Plan *plan) noexcept nogil
cdef void tails(Ties *ties, const Plan *plan) noexcept nogil
