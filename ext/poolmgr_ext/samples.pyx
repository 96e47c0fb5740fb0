# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
"""Every sample of a window: taken out of the rows of a ring, and made into percentiles and the robust slope."""

from libc.stdint cimport int32_t
from libc.stdlib cimport malloc
from libc.string cimport memset

from poolmgr_ext.ringlayout cimport Cell, RING_OK, ring_head, ring_read_cell, ring_read_latest
from poolmgr_ext.stats cimport MOST_PAIRS, MOST_POINTS, block_means, counter_step, percentiles_of, robust_slope


cdef uint64_t first_row(const ring_view *view, uint32_t group, uint32_t column, uint64_t head, int64_t begin_ns) noexcept nogil:
    """The oldest row after `begin_ns`; what is overwritten meanwhile counts as older than anything."""
    cdef uint64_t rows = view.groups[group].rows
    cdef uint64_t low = head - rows + 1 if head >= rows else 0
    cdef uint64_t high = head
    cdef uint64_t middle
    cdef Cell cell
    while low < high:
        middle = low + (high - low) // 2
        if ring_read_cell(view, group, middle, column, &cell) and cell.at_ns > begin_ns:
            high = middle
        else:
            low = middle + 1
    return low


cdef int gather(const ring_view *view, uint32_t group, uint32_t column, double seconds, Gathered *into) noexcept nogil:
    """Every value that was new in its row, oldest first; times in seconds since `base_ns`. -1: no memory.

    The caller frees `times`, with which the values were allocated."""
    cdef uint64_t fields = view.groups[group].fields
    cdef uint64_t head = ring_head(view, group)
    cdef uint64_t row, field
    cdef Py_ssize_t place
    cdef double at
    cdef uint64_t retries = 0
    cdef Cell cell
    memset(into, 0, sizeof(Gathered))
    if head == 0 or ring_read_latest(view, group, column, &cell, &retries) != RING_OK:
        return 0
    into.base_ns = cell.at_ns - <int64_t> (seconds * 1e9)
    row = first_row(view, group, column, head, into.base_ns)
    into.room = <Py_ssize_t> (head - row)
    into.times = <double *> malloc(2 * fields * <uint64_t> into.room * sizeof(double) + 1)
    if into.times == NULL:
        return -1
    into.values = into.times + fields * <uint64_t> into.room
    for row in range(row, head):
        if not ring_read_cell(view, group, row, column, &cell):
            continue
        at = <double> (cell.at_ns - into.base_ns) * 1e-9
        for field in range(fields):
            if (cell.fresh >> field) & 1 and cell.values[field] == cell.values[field]:
                place = into.counts[field]
                into.times[field * <uint64_t> into.room + <uint64_t> place] = at
                into.values[field * <uint64_t> into.room + <uint64_t> place] = cell.values[field]
                into.counts[field] = place + 1
    return 0


cdef void summarise(const ring_view *view, uint32_t group, const uint32_t *counter_bits, double seconds,
                    Gathered *samples, Percentiles *found) noexcept nogil:
    cdef double[MOST_POINTS] mean_times
    cdef double[MOST_POINTS] mean_values
    cdef double[MOST_PAIRS] slopes
    cdef uint32_t field
    cdef Py_ssize_t points, count
    cdef double *times
    cdef double *values
    cdef uint32_t bits
    for field in range(view.groups[group].fields):
        count = samples.counts[field]
        times = samples.times + field * samples.room
        values = samples.values + field * samples.room
        if count == 0:
            continue
        bits = counter_bits[view.groups[group].first_field + field]
        if bits != 0:
            unwrap(values, count, <int32_t> bits)
        points = block_means(times, values, count, 0, seconds / MOST_POINTS, mean_times, mean_values)
        found[field].slope = robust_slope(mean_times, mean_values, points, slopes)
        percentiles_of(values, count, &found[field])


cdef void unwrap(double *values, Py_ssize_t count, int bits) noexcept nogil:
    """A counter's readings as one count that goes on over wraps and resets."""
    cdef Py_ssize_t i
    cdef double raw = values[0]
    cdef double now
    for i in range(1, count):
        now = values[i]
        values[i] = values[i - 1] + counter_step(raw, now, bits)
        raw = now
