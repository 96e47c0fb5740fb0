# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
"""Window statistics of one series, and what takes a look at every sample: percentiles and the robust slope."""

from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

from collections import namedtuple

WINDOW_SECONDS[:] = [1, 10, 60, 600]
cdef double COUNTER_32 = 4294967296.0

Statistics = namedtuple(
    "Statistics", "count last minimum maximum mean standard_deviation slope slope_error integral")


cdef object known(double value):
    return None if value != value else value


cdef object statistics_tuple(const Statistic *found):
    """None where the window has no sample."""
    if found.count == 0:
        return None
    return Statistics(<int64_t> found.count, found.last, found.lowest, found.highest, found.mean, found.deviation,
                      known(found.slope), known(found.slope_error), found.area)


def counter_difference(double before, double now, int bits):
    return counter_step(before, now, bits)


def percentiles(const double[::1] values not None):
    """p50, p95 and p99 of what is at least one value."""
    cdef Percentiles found
    cdef Py_ssize_t i
    if values.shape[0] == 0:
        raise ValueError("percentiles of nothing")
    cdef double *copy = <double *> malloc(values.shape[0] * sizeof(double))
    if copy == NULL:
        raise MemoryError
    for i in range(values.shape[0]):
        copy[i] = values[i]
    with nogil:
        percentiles_of(copy, values.shape[0], &found)
    free(copy)
    return found.p50, found.p95, found.p99


def theil_sen(const double[::1] times not None, const double[::1] values not None, double begin, double width):
    """The robust slope over block means of `width` seconds from `begin`; None below two blocks. Times rise."""
    cdef double[MOST_POINTS] mean_times
    cdef double[MOST_POINTS] mean_values
    cdef double[MOST_PAIRS] slopes
    cdef Py_ssize_t points
    if times.shape[0] != values.shape[0] or times.shape[0] == 0 or width <= 0 or times[0] < begin:
        raise ValueError("times and values have to be as many, at least one, and lie after `begin`")
    with nogil:
        points = block_means(&times[0], &values[0], times.shape[0], begin, width, mean_times, mean_values)
    return known(robust_slope(mean_times, mean_values, points, slopes))


cdef void series_begin(Series *series, Packed *seconds, Sum *decades, double longest_gap) noexcept nogil:
    memset(series, 0, sizeof(Series))
    series.seconds = seconds
    series.decades = decades
    series.longest_gap = longest_gap
    series_forget(series)


cdef void series_forget(Series *series) noexcept nogil:
    """As if nothing had been added yet."""
    memset(&series.running, 0, sizeof(Running))
    memset(&series.decade, 0, sizeof(Sum))
    memset(series.middle, 0, sizeof(series.middle))
    memset(&series.newest, 0, sizeof(Sum))
    memset(series.seconds, 0, SECONDS_KEPT * sizeof(Packed))
    memset(series.decades, 0, DECADES_KEPT * sizeof(Sum))
    series.last_ns = -(<int64_t> 1 << 62)  # so long ago that no area reaches over it
    series.last = series.shift = NAN


cdef void series_close(Series *series, int64_t second) noexcept nogil:
    """Ends `second`. Every second has to be ended, in order, those without a sample too."""
    cdef int64_t decade = second // DECADE
    if series.shift != series.shift:
        series.shift = series.running.x0 if series.running.n > 0 else NAN
    running_close(&series.running, series.shift, &series.newest)
    pack(&series.newest, &series.seconds[second % SECONDS_KEPT])
    if second % DECADE == 0:
        sum_clear(&series.decade)
        middle_close(series, decade)
    sum_merge(&series.decade, &series.newest, <double> (second - decade * DECADE))
    if second % DECADE == DECADE - 1:
        series.decades[decade % DECADES_KEPT] = series.decade


cdef void pack(const Sum *whole, Packed *into) noexcept nogil:
    into.x, into.lowest, into.highest = whole.x, whole.lowest, whole.highest
    into.n, into.t, into.tt = <float> whole.n, <float> whole.t, <float> whole.tt
    into.xx, into.tx, into.area = <float> whole.xx, <float> whole.tx, <float> whole.area


cdef void unpack(const Packed *packed, Sum *into) noexcept nogil:
    into.x, into.lowest, into.highest = packed.x, packed.lowest, packed.highest
    into.n, into.t, into.tt = packed.n, packed.t, packed.tt
    into.xx, into.tx, into.area = packed.xx, packed.tx, packed.area


cdef void middle_close(Series *series, int64_t decade) noexcept nogil:
    """What lies between the running decade and the oldest, partly expired one of each window."""
    cdef int window
    cdef int64_t each
    for window in range(WINDOWS):
        sum_clear(&series.middle[window])
        for each in range(decade - WINDOW_SECONDS[window] // DECADE + 1, decade):
            if each >= 0:
                sum_merge(&series.middle[window], &series.decades[each % DECADES_KEPT],
                          <double> ((each - decade) * DECADE))


cdef void series_window(const Series *series, int64_t second, int window, Statistic *found) noexcept nogil:
    """The window that ends with `second`, which was closed last."""
    cdef Sum whole, expiring
    cdef int64_t length = WINDOW_SECONDS[window]
    cdef int64_t begin = second // DECADE * DECADE
    cdef int64_t each
    if length < DECADE:
        whole = series.newest
    else:
        whole = series.decade
        sum_merge(&whole, &series.middle[window], 0)
        # The rest of the oldest decade; none where the running decade is complete.
        for each in range(second - length + 1, begin - length + DECADE):
            if each >= 0:
                unpack(&series.seconds[each % SECONDS_KEPT], &expiring)
                sum_merge(&whole, &expiring, <double> (each - begin))
    statistic_of(&whole, series, found)


cdef void statistic_of(const Sum *whole, const Series *series, Statistic *found) noexcept nogil:
    cdef double left
    found.count = whole.n
    found.last = found.lowest = found.highest = found.mean = found.deviation = NAN
    found.slope = found.slope_error = found.area = NAN
    if whole.n == 0:
        return
    found.last = series.last
    found.lowest = whole.lowest
    found.highest = whole.highest
    found.mean = series.shift + whole.x
    found.deviation = sqrt(whole.xx / whole.n)
    found.area = whole.area
    if whole.n >= 2 and whole.tt > 0:
        found.slope = whole.tx / whole.tt
        if whole.n >= 3:
            left = whole.xx - found.slope * whole.tx
            found.slope_error = sqrt((left if left > 0 else 0) / (whole.n - 2) / whole.tt)


cdef double counter_step(double before, double now, int bits) noexcept nogil:
    """How far a counter came (TEL-5). A fall is a wrap of 32 bits where it fell from the upper to the lower half."""
    if now >= before:
        return now - before
    if bits == 32 and before >= COUNTER_32 / 2 and now < COUNTER_32 / 2 and before < COUNTER_32:
        return now + COUNTER_32 - before
    return now  # it was reset, and has counted this much since


cdef double select(double *values, Py_ssize_t count, Py_ssize_t rank) noexcept nogil:
    """The value of `rank` (from 0) in order; `values` is parted around it. Hoare's quickselect, Lomuto's partition
    without a branch on data, in two passes because most columns are full of equal values."""
    cdef Py_ssize_t low = 0, high = count - 1, store, i
    cdef double pivot, value
    cdef uint64_t dice = 88172645463325252u
    while low < high:
        pivot = pivot_of(values + low, high - low + 1, rank - low, &dice)
        store = low
        for i in range(low, high + 1):
            value = values[i]
            values[i] = values[store]
            values[store] = value
            store += value < pivot
        if rank < store:
            high = store - 1
            continue
        low = store
        for i in range(low, high + 1):
            value = values[i]
            values[i] = values[store]
            values[store] = value
            store += value <= pivot
        if rank < store:
            return pivot
        low = store
    return values[low]


cdef double pivot_of(const double *values, Py_ssize_t count, Py_ssize_t rank, uint64_t *dice) noexcept nogil:
    """The value of the same rank in a small sample, so that most of what is not looked for goes in the first passes
    (Floyd and Rivest: Expected time bounds for selection, 1975)."""
    cdef double[SAMPLE] sample
    cdef double value
    cdef Py_ssize_t size = SAMPLE if count > 8 * SAMPLE else 3
    cdef Py_ssize_t i, j
    for i in range(size):
        dice[0] ^= dice[0] << 13
        dice[0] ^= dice[0] >> 7
        dice[0] ^= dice[0] << 17
        value = values[<Py_ssize_t> (dice[0] % <uint64_t> count)]
        j = i
        while j > 0 and sample[j - 1] > value:
            sample[j] = sample[j - 1]
            j -= 1
        sample[j] = value
    return sample[size * rank // count]


cdef Py_ssize_t nearest_rank(Py_ssize_t count, int percent) noexcept nogil:
    """Index of the smallest value that at least `percent` of all values do not exceed."""
    return (count * percent + 99) // 100 - 1


cdef void percentiles_of(double *values, Py_ssize_t count, Percentiles *found) noexcept nogil:
    """p50, p95, p99 by nearest rank; `values` is put into another order. `count` at least 1."""
    cdef Py_ssize_t first = nearest_rank(count, 50)
    cdef Py_ssize_t second = nearest_rank(count, 95)
    cdef Py_ssize_t third = nearest_rank(count, 99)
    found.count = count
    found.p50 = select(values, count, first)
    # What lies above one rank is already known to be no smaller.
    found.p95 = select(values + first, count - first, second - first)
    found.p99 = select(values + second, count - second, third - second)


cdef Py_ssize_t block_means(const double *times, const double *values, Py_ssize_t count, double begin, double width,
                            double *mean_times, double *mean_values) noexcept nogil:
    """Means over blocks of `width` seconds from `begin`, at most MOST_POINTS; times rise. Returns how many."""
    cdef Py_ssize_t found = 0, i, first = 0
    cdef int64_t block, current = -1
    cdef double sum_t = 0, sum_x = 0
    for i in range(count):
        block = <int64_t> ((times[i] - begin) / width)
        block = MOST_POINTS - 1 if block >= MOST_POINTS else block
        if block != current and i > first:
            mean_times[found] = times[first] + sum_t / <double> (i - first)
            mean_values[found] = values[first] + sum_x / <double> (i - first)
            found += 1
            first = i
            sum_t = sum_x = 0
        current = block
        sum_t += times[i] - times[first]
        sum_x += values[i] - values[first]
    if count > first:
        mean_times[found] = times[first] + sum_t / <double> (count - first)
        mean_values[found] = values[first] + sum_x / <double> (count - first)
        found += 1
    return found


cdef double robust_slope(const double *times, const double *values, Py_ssize_t count, double *slopes) noexcept nogil:
    """Theil and Sen: the median of the slopes of all pairs. `slopes`: room for count * (count - 1) / 2."""
    cdef Py_ssize_t i, j, pairs = 0
    cdef double upper, lower
    for i in range(count):
        for j in range(i + 1, count):
            slopes[pairs + j - i - 1] = (values[j] - values[i]) / (times[j] - times[i])
        pairs += count - i - 1
    if pairs == 0:
        return NAN
    upper = select(slopes, pairs, pairs // 2)
    if pairs % 2:
        return upper
    lower = slopes[0]
    for i in range(1, pairs // 2):
        lower = slopes[i] if slopes[i] > lower else lower
    return 0.5 * (lower + upper)


cdef class Windows:
    """One series by itself. The sampler does the same for every field and device."""

    def __cinit__(self, *, double longest_gap=3.0):
        cdef Sum *decades = <Sum *> calloc(1, SERIES_BYTES)
        if decades == NULL:
            raise MemoryError
        series_begin(&self.series, <Packed *> (decades + DECADES_KEPT), decades, longest_gap)

    def __dealloc__(self):
        free(self.series.decades)

    def add(self, int64_t boottime_ns, double value):
        cdef int64_t second = boottime_ns // SECOND
        if value != value:
            raise ValueError("a value that is unknown is not added")
        if boottime_ns < 0 or boottime_ns <= self.series.last_ns:
            raise ValueError(f"time {boottime_ns} ns does not rise")
        self.close_to(second)
        series_add(&self.series, boottime_ns, <double> (boottime_ns - second * SECOND) * 1e-9, value)

    def close_to(self, int64_t second):
        """Ends every second before `second`."""
        if not self.begun or second - self.second > SECONDS_KEPT:
            if self.begun:
                series_forget(&self.series)
            self.begun = True
            self.second = second
        while self.second < second:
            series_close(&self.series, self.second)
            self.second += 1

    def statistics(self, int window_seconds):
        """Of the last whole seconds, or None where they have no sample."""
        cdef Statistic found
        cdef int window
        for window in range(WINDOWS):
            if WINDOW_SECONDS[window] == window_seconds:
                break
        else:
            raise ValueError(f"no window of {window_seconds} s; there are {list(WINDOW_SECONDS)}")
        if not self.begun:
            return None
        series_window(&self.series, self.second - 1, window, &found)
        return statistics_tuple(&found)
