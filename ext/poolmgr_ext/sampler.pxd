# The complete header of sampler: the loop that reads the driver into a ring.

from libc.stdint cimport int64_t, uint32_t, uint64_t

from poolmgr_ext.calls cimport MOST_VALUES
from poolmgr_ext.driver cimport nvmlDevice_t, nvmlReturn_t
from poolmgr_ext.nvml cimport Library
from poolmgr_ext.ringlayout cimport ProcessTable
from poolmgr_ext.ringwriter cimport RingWriter
from poolmgr_ext.stats cimport Series

cdef extern from "<time.h>" nogil:
    enum:
        CLOCK_BOOTTIME
        TIMER_ABSTIME
    struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec *now)
    int clock_nanosleep(int clock, int flags, const timespec *until, timespec *left)

cdef extern from "flag.h" nogil:
    ctypedef struct flag_t:
        pass
    void flag_set(flag_t *flag, int value)
    int flag_get(const flag_t *flag)
    int flag_take(flag_t *flag)

cdef enum:
    STRIKES = 3  # answers in a row that say "not supported", after which a call is made no more (TEL-2)
    NO_FIELD = -1

# One call for one device.
cdef struct Entry:
    int call, count, strikes
    bint dropped, heavy
    int64_t every, next  # sweeps
    int[MOST_VALUES] fields  # places in the ring, NO_FIELD for what is not sampled
    int[MOST_VALUES] bits  # of counters, 0 for gauges

cdef struct Column:
    nvmlDevice_t device
    nvmlDevice_t found  # by the last discovery; taken over between two sweeps
    bint lost
    int64_t asked_again  # the sweep in which a lost device is asked again
    int64_t slow_ns  # when a slow value was read last
    uint64_t[2] fresh  # by group: values that are newer than the last row

cdef struct Tally:
    uint64_t sweeps, skipped, calls, seconds
    int64_t second_ns  # time that went into statistics

cdef class Sampler:
    cdef Library library
    cdef RingWriter ring
    cdef flag_t stopping
    cdef flag_t renewed
    cdef flag_t running
    cdef Tally tally
    cdef Entry *entries  # per column: `per_column`, the frequent ones first
    cdef Column *columns
    cdef Series *series
    cdef double *held  # the last known value of every field, NaN for none
    cdef double *raw  # the last reading of every counter
    cdef double *record  # of one column's statistics
    cdef ProcessTable processes
    cdef int often, per_column
    cdef uint32_t devices, fields, fields_often
    cdef int64_t period_ns, sweep_number, second, slow_every, published
    cdef bint slow_waiting

    cdef int fill(self, object wanted, object rate_hz) except -1
    cdef void loop(self) noexcept nogil
    cdef void sweep_once(self) noexcept nogil
    cdef int64_t sweep_often(self, int64_t at_ns) noexcept nogil
    cdef int64_t sweep_slow(self, int64_t at_ns, int64_t until_ns, bint heavy) noexcept nogil
    cdef bint ask_again(self, Column *column, Entry *entries, int count) noexcept nogil
    cdef void ask(self, uint32_t number, Entry *entry, int64_t at_ns) noexcept nogil
    cdef void keep(self, uint32_t number, Entry *entry, const double *values, int64_t at_ns) noexcept nogil
    cdef void keep_none(self, uint32_t number, Entry *entry) noexcept nogil
    cdef void lose(self, uint32_t number) noexcept nogil
    cdef void pass_seconds(self, int64_t at_ns) noexcept nogil
    cdef void publish_slow(self, int64_t at_ns) noexcept nogil
    cdef void publish_statistics(self, int64_t at_ns) noexcept nogil
    cdef void renew(self) noexcept nogil

cdef void close_until(Series *series, int64_t first, int64_t end) noexcept nogil
cdef int64_t boottime() noexcept nogil
cdef bint unsupported(nvmlReturn_t code) noexcept nogil
