# The complete header of stats: sums of samples, merged without loss of digits, and what is told of a window (TEL-3).
#
# A sum is kept centred (means, and squares about them), because sums of squares of bytes or of boot times cancel to
# nothing. Values count from the first value of their series. Times are relative to the sum's own origin, a whole
# second; merging sums of different origins takes the difference as `shift`.

from libc.math cimport NAN, sqrt
from libc.stdint cimport int64_t, uint64_t

cdef enum:
    SECOND = 1000000000  # nanoseconds
    SECONDS_KEPT = 600  # one-second sums kept per series: the longest window
    DECADE = 10  # seconds in a sum of the second level
    DECADES_KEPT = 60
    WINDOWS = 4
    MOST_POINTS = 60  # block means for the robust slope
    MOST_PAIRS = 1770
    SAMPLE = 25
    SERIES_BYTES = 33120  # DECADES_KEPT sums of 72 bytes, then SECONDS_KEPT packed ones of 48

# `n` samples: mean time and value (above the series' `shift`), sums of squares and products about them, extremes, and the area under the line
# through the samples (each with the one before it, which may lie in an earlier sum).
cdef struct Sum:
    double n, t, x, tt, xx, tx, lowest, highest, area

# A sum of one second as it is kept for the expiring end of a window: a third smaller, and single precision where a
# second's own share of its window's sum is small. 48 bytes.
cdef struct Packed:
    double x, lowest, highest
    float n, t, tt, xx, tx, area

# Sums of the running second about its first sample, so that adding one takes no division.
cdef struct Running:
    double n, t0, x0, t, x, tt, xx, tx, lowest, highest, area

# One field of one device. `seconds` and `decades` have SECONDS_KEPT and DECADES_KEPT slots.
cdef struct Series:
    Running running
    int64_t last_ns
    double last
    double longest_gap  # seconds; no area over a longer one
    double shift  # the first value: means about it keep the digits that a large value would take
    Sum newest  # the second that ended last
    Sum decade  # the seconds so far of the running decade
    Sum middle[WINDOWS]  # the whole decades of a window, made when a decade ends
    Packed *seconds
    Sum *decades

cdef struct Statistic:
    double count, last, lowest, highest, mean, deviation, slope, slope_error, area

cdef struct Percentiles:
    double p50, p95, p99, slope
    uint64_t count


cdef inline void sum_clear(Sum *into) noexcept nogil:
    into.n = into.t = into.x = into.tt = into.xx = into.tx = into.lowest = into.highest = into.area = 0


cdef inline void sum_merge(Sum *into, const Sum *other, double shift) noexcept nogil:
    """Chan, Golub, LeVeque: Updating formulae and a pairwise algorithm for computing sample variances (1979)."""
    cdef double n, share, weight, dt, dx
    if other.n == 0:
        return
    if into.n == 0:
        into[0] = other[0]
        into.t += shift
        return
    n = into.n + other.n
    share = other.n / n
    weight = into.n * share
    dt = other.t + shift - into.t
    dx = other.x - into.x
    into.n = n
    into.t += dt * share
    into.x += dx * share
    into.tt += other.tt + dt * dt * weight
    into.xx += other.xx + dx * dx * weight
    into.tx += other.tx + dt * dx * weight
    into.lowest = other.lowest if other.lowest < into.lowest else into.lowest
    into.highest = other.highest if other.highest > into.highest else into.highest
    into.area += other.area


cdef inline void series_add(Series *series, int64_t at_ns, double offset, double value) noexcept nogil:
    """`offset`: seconds since the running second began."""
    cdef Running *now = &series.running
    cdef double dt, dx, gap
    if now.n == 0:
        now.t0 = offset
        now.x0 = now.lowest = now.highest = value
    dt = offset - now.t0
    dx = value - now.x0
    now.n += 1
    now.t += dt
    now.x += dx
    now.tt += dt * dt
    now.xx += dx * dx
    now.tx += dt * dx
    now.lowest = value if value < now.lowest else now.lowest
    now.highest = value if value > now.highest else now.highest
    gap = <double> (at_ns - series.last_ns) * 1e-9
    if gap <= series.longest_gap:
        now.area += 0.5 * (value + series.last) * gap
    series.last_ns = at_ns
    series.last = value


cdef inline void running_close(Running *now, double shift, Sum *into) noexcept nogil:
    """The sum of the second that ends, about its means; `now` is empty then."""
    cdef double mean_t, mean_x
    sum_clear(into)
    if now.n > 0:
        mean_t = now.t / now.n
        mean_x = now.x / now.n
        into.n = now.n
        into.t = now.t0 + mean_t
        into.x = now.x0 - shift + mean_x
        into.tt = now.tt - now.t * mean_t
        into.xx = now.xx - now.x * mean_x
        into.tx = now.tx - now.t * mean_x
        into.lowest = now.lowest
        into.highest = now.highest
        into.area = now.area
        if into.tt < 0:
            into.tt = 0
        if into.xx < 0:
            into.xx = 0
    now.n = now.t = now.x = now.tt = now.xx = now.tx = now.area = 0


cdef int64_t[WINDOWS] WINDOW_SECONDS

cdef object known(double value)
cdef object statistics_tuple(const Statistic *found)
cdef void series_begin(Series *series, Packed *seconds, Sum *decades, double longest_gap) noexcept nogil
cdef void series_forget(Series *series) noexcept nogil
cdef void series_close(Series *series, int64_t second) noexcept nogil
cdef void series_window(const Series *series, int64_t second, int window, Statistic *found) noexcept nogil
cdef void pack(const Sum *whole, Packed *into) noexcept nogil
cdef void unpack(const Packed *packed, Sum *into) noexcept nogil
cdef void middle_close(Series *series, int64_t decade) noexcept nogil
cdef void statistic_of(const Sum *whole, const Series *series, Statistic *found) noexcept nogil
cdef double counter_step(double before, double now, int bits) noexcept nogil
cdef double pivot_of(const double *values, Py_ssize_t count, Py_ssize_t rank, uint64_t *dice) noexcept nogil
cdef double select(double *values, Py_ssize_t count, Py_ssize_t rank) noexcept nogil
cdef Py_ssize_t nearest_rank(Py_ssize_t count, int percent) noexcept nogil
cdef double robust_slope(const double *times, const double *values, Py_ssize_t count, double *slopes) noexcept nogil
cdef Py_ssize_t block_means(const double *times, const double *values, Py_ssize_t count, double begin, double width,
                            double *mean_times, double *mean_values) noexcept nogil
cdef void percentiles_of(double *values, Py_ssize_t count, Percentiles *found) noexcept nogil

cdef class Windows:
    cdef Series series
    cdef int64_t second
    cdef bint begun
