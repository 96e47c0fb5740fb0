# The complete header of splitsearch: which search answers which objective.

from libc.stdint cimport int64_t

from poolmgr_ext.splitcost cimport Plan, Problem
from poolmgr_ext.splitlattice cimport Sweep
from poolmgr_ext.splitrows cimport Rows

cdef enum Objective:
    MIN_LATENCY
    MIN_BOTTLENECK
    MAX_CONTEXT
    BALANCED

# By layer, `memory` as running sums (layers + 1). `asked`: tokens that `kv` stands for, 0 unknown.
cdef struct Model:
    int layers
    int64_t asked
    int64_t limit  # tokens, 0: as asked
    const int64_t *resident
    const int64_t *kv
    const int64_t *window
    const int64_t *memory
    int64_t *memory_then  # room for the same at another context

# `plan.count` 0: nothing fits. `proved`: that, or that no plan is better in what the objective is first about.
# `bound`: seconds below which no plan is, 0 where the objective is not about seconds.
cdef struct Answer:
    Plan plan
    bint proved
    double bound
    int64_t context
    int64_t steps  # that were taken

cdef int find(Problem *p, const Model *model, Objective objective, int64_t most_steps, Answer *answer) noexcept nogil
cdef int by_bounds(Sweep *sweep, Objective objective, Answer *answer) noexcept nogil
cdef bint at_context(const Model *model, int64_t context) noexcept nogil
cdef int by_context(Problem *p, Sweep *sweep, const Model *model, Answer *answer) noexcept nogil
cdef bint fits(Sweep *sweep, Plan *plan) noexcept nogil
cdef int by_rows(const Problem *p, bint slowest, int64_t most_steps, Answer *answer) noexcept nogil
cdef int relaxed(Rows *rows, Answer *answer) noexcept nogil
cdef int any_plan(const Problem *p, Plan *plan) noexcept nogil
cdef double root_bound(Rows *rows) noexcept nogil
cdef int by_beam(Sweep *sweep, Objective objective, Answer *answer) noexcept nogil
