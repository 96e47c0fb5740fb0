# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
"""Reads a telemetry ring without a lock and without the writer's help. The layout and the memory order are in ring.h."""

from libc.stdlib cimport free, malloc
from libc.string cimport memset
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, mmap, munmap
from posix.stat cimport fstat, struct_stat
from posix.unistd cimport close as close_descriptor

from poolmgr_ext.ringlayout cimport (
    Cell, ProcessTable, RING_EMPTY, RING_GROUPS, RING_MAX_PROCESSES, RING_OK, RING_STATISTICS, RING_TORN,
    RING_TRUNCATED, RING_UNKNOWN, RING_VERSION, RING_WINDOWS, RING_WRONG_VERSION, ring_check, ring_device, ring_ended,
    ring_field, ring_header, ring_header_of, ring_heartbeat, ring_process_record, ring_process_words, ring_read_latest,
    ring_read_record, ring_statistics_record)
from poolmgr_ext.samples cimport Gathered, gather, summarise
from poolmgr_ext.stats cimport WINDOW_SECONDS, Percentiles, Statistic, counter_step, known, statistics_tuple

import os
from collections import namedtuple

UNREADABLE = "UNREADABLE"  # no permission, no regular file, no memory for it
WRONG_VERSION = "WRONG_VERSION"
NOT_A_RING = "NOT_A_RING"  # another file, a file that is not ready, a layout that contradicts itself
TORN = "TORN"  # every attempt met the writer, or the writer died in this record
GONE = "GONE"  # there is no such file, it has become shorter, or this reader is closed

Field = namedtuple("Field", "name unit kind cadence counter_bits", defaults=(64,))
Quantiles = namedtuple("Quantiles", "count p50 p95 p99 robust_slope")


class RingError(Exception):
    def __init__(self, reason, message):
        super().__init__(reason, message)
        self.reason = reason
        self.message = message

    def __str__(self):
        return f"{self.reason}: {self.message}"


cdef object text_of(const char *data, size_t room):
    """Text that may fill its room without a zero at its end."""
    cdef size_t length = 0
    while length < room and data[length] != 0:
        length += 1
    return data[:length].decode("utf-8", "replace")


def _open(path):
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        return os.open(path, flags)
    except FileNotFoundError as error:
        raise RingError(GONE, f"there is no {path}") from error
    except OSError as error:
        raise RingError(UNREADABLE, f"{path}: {error.strerror}") from error


cdef class RingReader:
    def __cinit__(self, path):
        self.descriptor = -1
        self.path = os.fspath(path)
        self.descriptor = _open(self.path)
        self._map()
        self._describe()

    def __dealloc__(self):
        self._release()

    def _map(self):
        cdef struct_stat status
        cdef void *mapped
        cdef int fault
        if fstat(self.descriptor, &status) != 0 or (status.st_mode & 0o170000) != 0o100000:
            raise RingError(UNREADABLE, f"{self.path} is no regular file")
        if status.st_size == 0:
            raise RingError(NOT_A_RING, f"{self.path} is empty")
        mapped = mmap(NULL, status.st_size, PROT_READ, MAP_SHARED, self.descriptor, 0)
        if mapped == MAP_FAILED:
            raise RingError(UNREADABLE, f"{self.path} cannot be mapped")
        self.mapped = status.st_size
        self.view.base = <unsigned char *> mapped
        fault = ring_check(mapped, self.mapped, &self.view)
        if fault != RING_OK:
            version = ring_header_version(mapped, self.mapped)
            munmap(mapped, self.mapped)
            self.view.base = NULL
            raise self._refusal(fault, version)

    def _refusal(self, int fault, version):
        if fault == RING_WRONG_VERSION:
            return RingError(WRONG_VERSION, f"{self.path} has version {version}, this reader knows {RING_VERSION}")
        if fault == RING_TRUNCATED:
            return RingError(NOT_A_RING, f"{self.path} is truncated: {self.mapped} bytes are less than its header says")
        return RingError(NOT_A_RING, f"{self.path} is no ring, or is not ready")

    def _describe(self):
        cdef const ring_header *header = ring_header_of(&self.view)
        cdef const ring_field *fields = <const ring_field *> (self.view.base + header.fields_at)
        cdef const ring_device *devices = <const ring_device *> (self.view.base + header.devices_at)
        found = []
        for i in range(self.view.fields):
            kind = "counter" if fields[i].counter else "gauge"
            found.append(Field(text_of(fields[i].name, 40), text_of(fields[i].unit, 16), kind,
                               fields[i].cadence_seconds, fields[i].counter_bits))
            self.counter_bits[i] = fields[i].counter_bits if fields[i].counter else 0
        self.fields = tuple(found)
        self.device_ids = tuple([text_of(devices[i].id, 96) for i in range(self.view.devices)])

    def _release(self):
        if self.view.base != NULL:
            munmap(self.view.base, self.mapped)
            self.view.base = NULL
        if self.descriptor >= 0:
            close_descriptor(self.descriptor)
            self.descriptor = -1

    def close(self):
        self._release()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._release()

    cdef int check(self) except -1:
        """A file that was cut would end this process at the next access."""
        cdef struct_stat status
        if self.view.base == NULL:
            raise RingError(GONE, f"the reader of {self.path} is closed")
        if fstat(self.descriptor, &status) != 0 or <uint64_t> status.st_size < self.view.bytes:
            raise RingError(GONE, f"{self.path} has become shorter than its ring")
        return 0

    cdef uint32_t column_of(self, object column) except? 4294967295:
        self.check()
        number = self.device_ids.index(column) if isinstance(column, str) else column
        if not 0 <= number < <int64_t> self.view.devices:
            raise IndexError(f"no column {column}; there are {self.view.devices}")
        return number

    cdef int field_of(self, object field) except -1:
        if isinstance(field, str):
            for number, each in enumerate(self.fields):
                if each.name == field:
                    return number
            raise KeyError(field)
        if not 0 <= field < <int64_t> self.view.fields:
            raise IndexError(f"no field {field}; there are {self.view.fields}")
        return field

    cdef int group_of(self, int field) noexcept nogil:
        return 0 if <uint32_t> field < self.view.groups[1].first_field else 1

    # What the header says.

    @property
    def version(self):
        return RING_VERSION

    @property
    def epoch(self):
        self.check()
        return ring_header_of(&self.view).epoch

    @property
    def writer_pid(self):
        self.check()
        return ring_header_of(&self.view).writer_pid

    @property
    def writer_start(self):
        self.check()
        return ring_header_of(&self.view).writer_start

    @property
    def created_ns(self):
        self.check()
        return ring_header_of(&self.view).created_ns

    @property
    def rate_hz(self):
        self.check()
        return ring_header_of(&self.view).rate_hz

    @property
    def depth(self):
        self.check()
        return ring_header_of(&self.view).depth_seconds

    @property
    def depth_asked(self):
        self.check()
        return ring_header_of(&self.view).depth_asked_seconds

    @property
    def bytes(self):
        return self.view.bytes

    @property
    def ended(self):
        self.check()
        return bool(ring_ended(&self.view))

    @property
    def retries(self):
        """How often this reader's `latest` met the writer and read again."""
        return self.torn

    def heartbeat(self):
        cdef int64_t at_ns = 0
        cdef uint64_t call = 0
        cdef uint64_t sequence
        self.check()
        sequence = ring_heartbeat(&self.view, &at_ns, &call)
        return sequence, at_ns

    def call(self):
        cdef int64_t at_ns = 0
        cdef uint64_t call = 0
        self.check()
        ring_heartbeat(&self.view, &at_ns, &call)
        return None if call == 0 else ((call - 1) >> 8, (call - 1) & 255)

    # Records.

    def latest(self, column):
        cdef uint32_t number = self.column_of(column)
        cdef Cell cell
        cdef uint32_t group, i
        cdef int outcome
        cdef object newest = None
        cdef list values = []
        for group in range(RING_GROUPS):
            if self.view.groups[group].fields == 0:
                continue
            outcome = ring_read_latest(&self.view, group, number, &cell, &self.torn)
            if outcome == RING_TORN:
                raise RingError(TORN, f"no whole row of {self.path}")
            if outcome == RING_OK and newest is None:
                newest = cell.at_ns
            for i in range(self.view.groups[group].fields):
                values.append(None if outcome == RING_EMPTY or cell.values[i] != cell.values[i] else cell.values[i])
        return None if newest is None else (newest, values)

    def statistics(self, column, field, window_seconds):
        cdef uint32_t number = self.column_of(column)
        cdef int which = self.field_of(field)
        cdef uint32_t window
        cdef Statistic found
        cdef int outcome
        for window in range(RING_WINDOWS):
            if WINDOW_SECONDS[window] == window_seconds:
                break
        else:
            raise ValueError(f"no window of {window_seconds} s; there are {list(WINDOW_SECONDS)}")
        outcome = ring_read_record(ring_statistics_record(&self.view, number),
                                   2 + (window * self.view.fields + which) * RING_STATISTICS, &found, RING_STATISTICS)
        if outcome == RING_TORN:
            raise RingError(TORN, f"no whole statistics in {self.path}")
        return None if outcome == RING_EMPTY else statistics_tuple(&found)

    def processes(self, column):
        cdef uint32_t number = self.column_of(column)
        cdef ProcessTable table
        cdef uint64_t i
        cdef int outcome
        cdef list found = []
        outcome = ring_read_record(ring_process_record(&self.view, number), 1, &table, ring_process_words() - 1)
        if outcome == RING_TORN:
            raise RingError(TORN, f"no whole process table in {self.path}")
        if outcome == RING_OK:
            for i in range(min(table.count, <uint64_t> RING_MAX_PROCESSES)):
                used = table.entries[i].used
                found.append((table.entries[i].pid, None if used == RING_UNKNOWN else used))
        return found

    # Everything of a window.

    def history(self, column, field, double seconds):
        cdef uint32_t number = self.column_of(column)
        cdef int which = self.field_of(field)
        cdef uint32_t group = self.group_of(which)
        cdef Py_ssize_t place = which - self.view.groups[group].first_field
        cdef Py_ssize_t i
        cdef Gathered samples
        cdef int outcome
        with nogil:
            outcome = gather(&self.view, group, number, seconds, &samples)
        try:
            if outcome != 0:
                raise MemoryError
            return [(<int64_t> (samples.base_ns + <int64_t> (samples.times[place * samples.room + i] * 1e9 + 0.5)),
                     samples.values[place * samples.room + i]) for i in range(samples.counts[place])]
        finally:
            free(samples.times)

    def increase(self, column, field, double seconds):
        """How far a counter came in the last `seconds` (TEL-5); None below two samples."""
        bits = self.fields[self.field_of(field)].counter_bits
        if bits == 0:
            raise ValueError(f"{field} is no counter")
        values = [value for _, value in self.history(column, field, seconds)]
        steps = [counter_step(before, now, bits) for before, now in zip(values, values[1:])]
        return sum(steps) if steps else None

    def quantiles(self, double window_seconds):
        self.check()
        if not 0 < window_seconds <= 86400 * 7:
            raise ValueError(f"no window of {window_seconds} s")
        return self.many(window_seconds)

    cdef list many(self, double window_seconds):
        cdef size_t series = self.view.devices * self.view.fields
        cdef Percentiles *found = <Percentiles *> malloc((series + 1) * sizeof(Percentiles))
        cdef Gathered samples
        cdef uint32_t group, column
        cdef int outcome = 0
        if found == NULL:
            raise MemoryError
        memset(found, 0, (series + 1) * sizeof(Percentiles))
        with nogil:
            for column in range(self.view.devices):
                for group in range(RING_GROUPS):
                    if self.view.groups[group].fields > 0:
                        outcome |= gather(&self.view, group, column, window_seconds, &samples)
                        if outcome == 0:
                            summarise(&self.view, group, self.counter_bits, window_seconds, &samples,
                                      &found[column * self.view.fields + self.view.groups[group].first_field])
                        free(samples.times)
        try:
            if outcome != 0:
                raise MemoryError
            return [[quantiles_tuple(&found[column * self.view.fields + i]) for i in range(self.view.fields)]
                    for column in range(self.view.devices)]
        finally:
            free(found)


cdef object quantiles_tuple(const Percentiles *found):
    if found.count == 0:
        return None
    return Quantiles(found.count, found.p50, found.p95, found.p99, known(found.slope))


cdef uint32_t ring_header_version(const void *mapped, uint64_t size) noexcept nogil:
    return (<const ring_header *> mapped).version if size >= sizeof(ring_header) else 0
