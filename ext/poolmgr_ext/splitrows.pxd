# The complete header of splitrows: the least sum of stages (or with links the least slowest one), for each multiset of
# classes (with links: and the last of them) and each prefix of layers.

from libc.stdint cimport int16_t, int64_t, uint8_t, uint16_t

from poolmgr_ext.splitcost cimport MOST_DEVICES, Plan, Problem

cdef enum:
    MOST_CELLS = 8000000  # of all rows: 64 MB of each kind

cdef enum Outcome:
    DONE = 0
    TOO_MUCH = 1  # steps or cells
    NO_MEMORY = -1
    CONTRADICTION = -2

# A row is what is kept of one state and slot: prefixes `low` to `high`, from `at` on in the arrays of cells. NaN is a
# prefix that is not reached, or whose best completion is worse than a plan that is known.
cdef struct Row:
    int64_t at
    int16_t low
    int16_t high  # below `low`: no row
    uint8_t alive  # has a cell that is part of a best plan

cdef struct Rows:
    const Problem *p
    bint slowest  # stages are compared by the slowest, not added
    double ceiling  # of the best plan that is known
    double better  # only plans below `ceiling` times this are looked for: 1, or less where that would be too much
    int64_t steps, most_steps
    Row *row  # [state * slots + slot]
    double *value  # [cell] least seconds up to there
    double *threshold  # [cell] most seconds up to there that still make a best plan, below 0 where none do
    double *least  # [cell] as value, under a floor of headroom
    int64_t cells, room_for
    double *seconds  # [class][first][end] of a stage without its hop, made when first used; NULL: too many
    uint8_t *made  # [class][first]
    double *scratch  # a row of layers + 1: of stage seconds
    double *filling  # the row that is being made
    double *bound  # [prefix] what its completion takes at least
    uint8_t *fewest  # [prefix] devices without which the rest has not enough room
    uint16_t *reach  # [class][first]: one past the last layer for which there is room
    int64_t[MOST_DEVICES] most_cost  # bytes read per token of one device, at most
    double hop  # the least

cdef inline double combined(const Rows *rows, double before, double stage) noexcept nogil:
    if rows.slowest:
        return stage if stage > before else before
    return before + stage

cdef int rows_begin(Rows *rows, const Problem *p, bint slowest, int64_t most_steps) noexcept nogil
cdef void rows_end(Rows *rows) noexcept nogil
cdef void reaches(const Problem *p, int64_t headroom, uint16_t *into) noexcept nogil
cdef void fewest_devices(Rows *rows) noexcept nogil
cdef const double *seconds_from(Rows *rows, int klass, int first) noexcept nogil
cdef bint exceeds(const Rows *rows, double seconds) noexcept nogil
cdef int left_of(const Problem *p, int state, int klass) noexcept nogil
cdef int64_t share_left(const Rows *rows, int state, int klass) noexcept nogil
cdef int suffix_bounds(Rows *rows, int state) noexcept nogil
cdef int suffix_bounds_slowest(Rows *rows, int state) noexcept nogil
cdef void extend(Rows *rows, const Row *before, int klass, double hop, int first) noexcept nogil
cdef int keep(Rows *rows, Row *row, int first) noexcept nogil
cdef bint has_before(const Rows *rows, int state) noexcept nogil
cdef int forward(Rows *rows) noexcept nogil
cdef int final_row(const Rows *rows, const double *cells, int count, double most) noexcept nogil
cdef bint walk_back(Rows *rows, const double *cells, const uint16_t *reach, int index, Plan *plan) noexcept nogil
cdef bint predecessor(Rows *rows, const double *cells, const uint16_t *reach, int klass, int state, int end,
                      double value, int *index, int *first) noexcept nogil
cdef void greedy(Rows *rows, Plan *plan) noexcept nogil
