# The complete header of splitbeam: a bounded search where there are too many states to look at each.

from libc.stdint cimport int16_t, int64_t, uint64_t

from poolmgr_ext.splitcost cimport Plan, Problem
from poolmgr_ext.splitlattice cimport Measure, Sweep

cdef enum:
    BEAM = 24  # partial plans that are kept of each number of devices
    MOST_ASKED = 32  # values of a bound that are tried

# A partial plan. `devices`: bits, each class has as many in a row as members.
cdef struct Node:
    uint64_t devices
    double seconds
    double score  # less is better
    int parent
    int16_t prefix
    int16_t klass  # of its last stage, -1 at the start

cdef struct Beam:
    const Problem *p
    Sweep *sweep  # bounds, and for stages without links how far they go
    bint adds  # seconds are added and score; else how much room is left behind scores
    int64_t *most_cost  # [slot][class] under the bounds, with links
    int64_t *one_device  # [class] bytes read per token, at most, under the bounds
    double hop  # the least
    Node *nodes
    int64_t steps

cdef int beam_begin(Beam *beam, Sweep *sweep, bint adds) noexcept nogil
cdef void beam_end(Beam *beam) noexcept nogil
cdef void prepare(Beam *beam) noexcept nogil
cdef int last_within(const int64_t *sums, int first, int layers, int64_t most) noexcept nogil
cdef int farthest(const Beam *beam, const Node *node, int klass) noexcept nogil
cdef double rest_seconds(const Beam *beam, uint64_t devices, int prefix, double hop) noexcept nogil
cdef double least_sum(const Beam *beam) noexcept nogil
cdef double waste(const Beam *beam, int klass, int first, int end) noexcept nogil
cdef int insert(Node *kept, int count, const Node *node, bint linked) noexcept nogil
cdef int expand(Beam *beam, int parent, Node *kept, int count) noexcept nogil
cdef bint beam_attempt(Beam *beam, int most, Plan *plan) noexcept nogil
cdef void beam_narrow(Beam *beam, Measure measure, int64_t low, int most, Plan *plan) noexcept nogil
cdef int recut(const Problem *p, Plan *plan) noexcept nogil
