# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
"""Reads the driver into a ring, at a cadence per field, without the GIL and without an allocation (TEL-1 to TEL-5).

A sweep reads what is due of every device. What is read often gets a row per sweep; the rest follows after that row, so
that a call that blocks delays no other value, and gets a row once a second. Statistics are made when a second ends.
"""

from libc.errno cimport EINTR
from libc.math cimport NAN
from libc.stdint cimport uintptr_t
from libc.stdlib cimport calloc, free

from poolmgr_ext.calls cimport CALLS, READERS
from poolmgr_ext.processlist cimport read_processes
from poolmgr_ext.driver cimport (
    NVML_ERROR_DEPRECATED, NVML_ERROR_FUNCTION_NOT_FOUND, NVML_ERROR_GPU_IS_LOST, NVML_ERROR_INVALID_ARGUMENT,
    NVML_ERROR_NO_PERMISSION, NVML_ERROR_NOT_FOUND, NVML_ERROR_NOT_SUPPORTED, NVML_SUCCESS,
    NVML_VALUE_NOT_AVAILABLE_ULL, list_processes, nvml_table, nvmlProcessInfo_t, process_call)
from poolmgr_ext.ringlayout cimport (
    RING_MAX_PROCESSES, RING_STATISTICS, RING_UNKNOWN, ring_beat, ring_calling, ring_commit_row, ring_end,
    ring_process_record, ring_process_words, ring_statistics_record, ring_statistics_words, ring_write_cell,
    ring_write_record)
from poolmgr_ext.stats cimport (
    DECADES_KEPT, SECOND, SECONDS_KEPT, SERIES_BYTES, WINDOWS, Packed, Statistic, Sum, counter_step, series_add,
    series_begin, series_close, series_forget, series_window)

from poolmgr_ext.calls import FIELDS, PROCESSES, TABLE, chosen, plan_of

CALL_NAMES = tuple(call.name for call in TABLE)
cdef int PROCESS_CALL = PROCESSES
GAP_CADENCES = 3  # an integral goes over two readings that failed, and no more


cdef class Sampler:
    def __cinit__(self, Library library not None, ring_path, epoch, *, double rate_hz=10.0, double depth_seconds=600.0,
                  max_bytes=128 << 20, device_ids=None, fields=None, cadences=None):
        wanted = chosen(fields, cadences)
        ids = list(library.handles) if device_ids is None else list(device_ids)
        for device_id in ids:
            library.handle(device_id)
        self.library = library
        self.ring = RingWriter(ring_path, epoch=epoch, fields=wanted, device_ids=ids, rate_hz=rate_hz,
                               depth_seconds=depth_seconds, max_bytes=max_bytes)
        self.devices, self.fields = len(ids), len(self.ring.fields)
        self.fields_often = self.ring.view.groups[0].fields
        self.period_ns = <int64_t> (1e9 / rate_hz + 0.5)
        self.slow_every = max(1, round(rate_hz))
        self.published = -1
        count = self.devices * self.fields + 1  # never nothing
        self.columns = <Column *> calloc(self.devices + 1, sizeof(Column))
        self.entries = <Entry *> calloc((self.devices + 1) * CALLS, sizeof(Entry))
        self.series = <Series *> calloc(count, sizeof(Series))
        self.held = <double *> calloc(count, sizeof(double))
        self.raw = <double *> calloc(count, sizeof(double))
        self.record = <double *> calloc(ring_statistics_words(self.fields), sizeof(double))
        if NULL in (self.columns, self.entries, self.series, self.held, self.raw, self.record):
            raise MemoryError
        self.fill(self.ring.fields, rate_hz)
        self.second = boottime() // SECOND

    def __dealloc__(self):
        for memory in (<uintptr_t> self.columns, <uintptr_t> self.entries, <uintptr_t> self.series,
                       <uintptr_t> self.held, <uintptr_t> self.raw, <uintptr_t> self.record):
            free(<void *> <uintptr_t> memory)

    cdef int fill(self, object wanted, object rate_hz) except -1:
        cdef uint32_t number, i
        cdef Entry *entry
        cdef unsigned char *work
        plan = plan_of(wanted, rate_hz)
        self.per_column, self.often = len(plan), sum(not slow for slow, *_ in plan)
        for number in range(self.devices):
            self.columns[number].device = self.columns[number].found = self.library.handle(self.ring.device_ids[number])
            for place, (_, call, own, every, heavy) in enumerate(plan):
                entry = &self.entries[number * self.per_column + place]
                entry.call, entry.count, entry.every, entry.heavy = call, len(own), every, heavy
                for i in range(entry.count):
                    entry.fields[i] = own[i]
                    entry.bits[i] = wanted[own[i]].counter_bits if own[i] >= 0 and wanted[own[i]].kind == "counter" else 0
            for i in range(self.fields):
                work = self.ring.workspace + <uint64_t> (number * self.fields + i) * SERIES_BYTES
                gap = GAP_CADENCES * max(wanted[i].cadence, 1.0 / rate_hz)
                series_begin(&self.series[number * self.fields + i], <Packed *> (work + DECADES_KEPT * sizeof(Sum)),
                             <Sum *> work, gap)
                self.held[number * self.fields + i] = self.raw[number * self.fields + i] = NAN
        return 0

    # From other threads.

    def run(self):
        """Samples until `stop`."""
        if flag_get(&self.running):
            raise RuntimeError("this sampler runs already")
        flag_set(&self.running, 1)
        with nogil:
            self.loop()
            ring_end(&self.ring.view)
        flag_set(&self.running, 0)

    def sweep(self, int64_t count):
        """So many sweeps one after the other, as if each were due when the one before it ends."""
        cdef int64_t _
        if flag_get(&self.running):
            raise RuntimeError("this sampler runs already")
        with nogil:
            for _ in range(count):
                self.sweep_once()
                self.sweep_number += 1

    def stop(self):
        flag_set(&self.stopping, 1)

    def rediscovered(self):
        """Takes over the handles of the library's last discovery, and asks everything again that was not supported."""
        for number, device_id in enumerate(self.ring.device_ids):
            found = self.library.handles.get(device_id)
            if found is not None:
                self.columns[number].found = self.library.handle(device_id)
        flag_set(&self.renewed, 1)

    @property
    def tallies(self):
        return self.tally

    @property
    def device_ids(self):
        return self.ring.device_ids

    @property
    def depth_seconds(self):
        return self.ring.depth_seconds

    @property
    def ring_bytes(self):
        return self.ring.bytes

    def unsupported(self, column):
        """Names of the fields that are not asked any more."""
        cdef Entry *entry
        cdef int i, j
        cdef int number = self.ring.device_ids.index(column)
        found = []
        for i in range(self.per_column):
            entry = &self.entries[number * self.per_column + i]
            if entry.dropped:
                for j in range(entry.count):
                    if entry.fields[j] != NO_FIELD:
                        found.append(self.ring.fields[entry.fields[j]].name)
        return found

    # The loop. Nothing below has the GIL.

    cdef void loop(self) noexcept nogil:
        """Deadlines are absolute, so that a sweep that took long delays no later one; those it overran are skipped."""
        cdef timespec until
        cdef int64_t deadline = boottime()
        cdef int64_t behind
        while not flag_get(&self.stopping):
            self.sweep_once()
            self.sweep_number += 1
            deadline += self.period_ns
            behind = (boottime() - deadline) // self.period_ns
            if behind > 0:
                deadline += behind * self.period_ns
                self.sweep_number += behind
                self.tally.skipped += <uint64_t> behind
            until.tv_sec, until.tv_nsec = deadline // SECOND, deadline % SECOND
            while clock_nanosleep(CLOCK_BOOTTIME, TIMER_ABSTIME, &until, NULL) == EINTR and not flag_get(&self.stopping):
                pass

    cdef void sweep_once(self) noexcept nogil:
        cdef int64_t at_ns = boottime()
        cdef int64_t until_ns = at_ns + self.period_ns // 2
        if flag_take(&self.renewed):
            self.renew()
        at_ns = self.sweep_often(at_ns)
        if self.often < self.per_column:
            at_ns = self.sweep_slow(at_ns, until_ns, False)
            at_ns = self.sweep_slow(at_ns, until_ns, True)
            if self.sweep_number // self.slow_every != self.published and (
                    not self.slow_waiting or self.sweep_number % self.slow_every == self.slow_every - 1):
                self.published = self.sweep_number // self.slow_every
                self.publish_slow(at_ns)
        self.tally.sweeps += 1

    cdef int64_t sweep_often(self, int64_t at_ns) noexcept nogil:
        """Every device's frequent calls, then the row. Returns when they were done."""
        cdef uint32_t number
        cdef int i
        cdef Column *column
        cdef Entry *entries
        cdef uint64_t row = self.ring.rows_written[0]
        if self.fields_often == 0:
            return at_ns
        for number in range(self.devices):
            column = &self.columns[number]
            entries = &self.entries[number * self.per_column]
            if at_ns // SECOND != self.second:
                self.pass_seconds(at_ns)
            ring_beat(&self.ring.view, at_ns)
            if not column.lost or self.ask_again(column, entries, self.often):
                for i in range(self.often):
                    if entries[i].next <= self.sweep_number and not entries[i].dropped:
                        self.ask(number, &entries[i], at_ns)
                        if column.lost:
                            break
            ring_calling(&self.ring.view, 0)
            ring_write_cell(&self.ring.view, 0, row, number, at_ns, column.fresh[0], &self.held[number * self.fields])
            column.fresh[0] = 0
            at_ns = boottime()
            ring_beat(&self.ring.view, at_ns)
        ring_commit_row(&self.ring.view, 0, row)
        self.ring.rows_written[0] = row + 1
        return at_ns

    cdef int64_t sweep_slow(self, int64_t at_ns, int64_t until_ns, bint heavy) noexcept nogil:
        """What is due of the rest. Heavy calls at least one, then while there is time; the others wait a sweep."""
        cdef uint32_t number
        cdef int i
        cdef bint asked = False
        cdef Column *column
        cdef Entry *entries
        if not heavy:
            self.slow_waiting = False
        for number in range(self.devices):
            column = &self.columns[number]
            entries = &self.entries[number * self.per_column]
            for i in range(self.often, self.per_column):
                if entries[i].heavy != heavy or entries[i].dropped or entries[i].next > self.sweep_number:
                    continue
                if column.lost and (self.often > 0 or not self.ask_again(column, entries + i, 1)):
                    continue
                if heavy and asked and at_ns > until_ns:
                    self.slow_waiting = True
                    return at_ns
                if at_ns // SECOND != self.second:
                    self.pass_seconds(at_ns)
                ring_beat(&self.ring.view, at_ns)
                self.ask(number, &entries[i], at_ns)
                ring_calling(&self.ring.view, 0)
                column.slow_ns = at_ns
                asked = True
                at_ns = boottime()
                ring_beat(&self.ring.view, at_ns)
        return at_ns

    cdef bint ask_again(self, Column *column, Entry *entries, int count) noexcept nogil:
        """Whether a lost device is due for a question: once a second."""
        if self.sweep_number < column.asked_again:
            return False
        column.asked_again = self.sweep_number + self.slow_every
        column.lost = False
        return True

    cdef void ask(self, uint32_t number, Entry *entry, int64_t at_ns) noexcept nogil:
        cdef double[MOST_VALUES] values
        cdef nvmlReturn_t code
        cdef nvmlDevice_t device = self.columns[number].device
        # On the grid of its cadence, from wherever this sweep is.
        entry.next = self.sweep_number - self.sweep_number % entry.every + entry.every
        self.tally.calls += 1
        ring_calling(&self.ring.view, 1 + <uint64_t> entry.call + 256 * <uint64_t> number)
        if entry.call == PROCESS_CALL:
            code = read_processes(&self.library.table, device, boottime(), &self.processes)
            values[0] = <double> self.processes.total
            if code == NVML_SUCCESS:
                ring_write_record(ring_process_record(&self.ring.view, number), 1, &self.processes,
                                  3 + 2 * self.processes.count)
        else:
            code = READERS[entry.call](&self.library.table, device, values)
        if code == NVML_SUCCESS:
            self.keep(number, entry, values, at_ns)
        elif code == NVML_ERROR_GPU_IS_LOST:
            self.lose(number)
        else:
            self.keep_none(number, entry)
            entry.strikes = entry.strikes + 1 if unsupported(code) else 0
            entry.dropped = entry.strikes >= STRIKES

    cdef void keep(self, uint32_t number, Entry *entry, const double *values, int64_t at_ns) noexcept nogil:
        cdef double offset = <double> (at_ns - self.second * SECOND) * 1e-9
        cdef Series *series = self.series + <uint64_t> number * self.fields
        cdef double *held = self.held + <uint64_t> number * self.fields
        cdef double *raw = self.raw + <uint64_t> number * self.fields
        cdef uint64_t fresh = 0  # of both groups, in the order of the fields
        cdef double value, total
        cdef int i, field
        for i in range(entry.count):
            field = entry.fields[i]
            if field < 0:
                continue
            value = held[field] = values[i]
            if value != value:
                continue
            fresh |= <uint64_t> 1 << field
            if entry.bits[i] == 0:
                series_add(&series[field], at_ns, offset, value)
            else:
                # The statistics of a counter are those of what it has counted: its slope is a rate over any reset.
                total = series[field].last + counter_step(raw[field], value, entry.bits[i])
                raw[field] = value
                series_add(&series[field], at_ns, offset, total if total == total else value)
        self.columns[number].fresh[0] |= fresh & (((<uint64_t> 1) << self.fields_often) - 1)
        self.columns[number].fresh[1] |= fresh >> self.fields_often
        entry.strikes = 0 if fresh else entry.strikes + 1
        entry.dropped = entry.strikes >= STRIKES

    cdef void keep_none(self, uint32_t number, Entry *entry) noexcept nogil:
        cdef int i
        for i in range(entry.count):
            if entry.fields[i] >= 0:
                self.held[<uint64_t> number * self.fields + <uint64_t> entry.fields[i]] = NAN

    cdef void lose(self, uint32_t number) noexcept nogil:
        """Nothing of the device is known from here on; the others go on."""
        cdef Column *column = &self.columns[number]
        cdef uint32_t i
        column.lost = True
        column.asked_again = self.sweep_number + self.slow_every
        column.fresh[0] = column.fresh[1] = 0
        for i in range(self.fields):
            self.held[<uint64_t> number * self.fields + i] = NAN
        self.processes.total = self.processes.count = 0
        self.processes.at_ns = boottime()
        ring_write_record(ring_process_record(&self.ring.view, number), 1, &self.processes, 3)

    cdef void pass_seconds(self, int64_t at_ns) noexcept nogil:
        """Ends the running second, and those in which nothing was read; then the statistics are made."""
        cdef int64_t second = at_ns // SECOND
        cdef uint64_t i
        cdef int64_t begun = boottime()
        if second - self.second > SECONDS_KEPT:
            for i in range(<uint64_t> self.devices * self.fields):
                series_forget(&self.series[i])
            self.second = second - 1
        for i in range(<uint64_t> self.devices * self.fields):
            close_until(&self.series[i], self.second, second)
        self.second = second
        self.publish_statistics(at_ns)
        self.tally.seconds += 1
        self.tally.second_ns += boottime() - begun

    cdef void publish_slow(self, int64_t at_ns) noexcept nogil:
        cdef uint32_t number
        cdef uint64_t row = self.ring.rows_written[1]
        cdef Column *column
        for number in range(self.devices):
            column = &self.columns[number]
            ring_write_cell(&self.ring.view, 1, row, number, column.slow_ns if column.fresh[1] else at_ns,
                            column.fresh[1], &self.held[<uint64_t> number * self.fields + self.fields_often])
            column.fresh[1] = 0
        ring_commit_row(&self.ring.view, 1, row)
        self.ring.rows_written[1] = row + 1

    cdef void publish_statistics(self, int64_t at_ns) noexcept nogil:
        cdef uint32_t number, field
        cdef int window
        cdef Statistic *found
        for number in range(self.devices):
            found = <Statistic *> (self.record + 1)
            for window in range(WINDOWS):
                for field in range(self.fields):
                    series_window(&self.series[<uint64_t> number * self.fields + field], self.second - 1, window,
                                  &found[<uint32_t> window * self.fields + field])
            (<int64_t *> self.record)[0] = at_ns
            ring_write_record(ring_statistics_record(&self.ring.view, number), 1, self.record,
                              ring_statistics_words(self.fields) - 1)

    cdef void renew(self) noexcept nogil:
        cdef uint32_t number
        cdef int i
        for number in range(self.devices):
            self.columns[number].device = self.columns[number].found
            self.columns[number].lost = False
            for i in range(self.per_column):
                self.entries[number * self.per_column + i].strikes = 0
                self.entries[number * self.per_column + i].dropped = False


cdef void close_until(Series *series, int64_t first, int64_t end) noexcept nogil:
    cdef int64_t second
    for second in range(first, end):
        series_close(series, second)


cdef int64_t boottime() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_BOOTTIME, &now)
    return now.tv_sec * SECOND + now.tv_nsec


cdef bint unsupported(nvmlReturn_t code) noexcept nogil:
    """What will not get better by asking again soon. An instance that is gone says INVALID_ARGUMENT or NOT_FOUND."""
    return code in (NVML_ERROR_NOT_SUPPORTED, NVML_ERROR_FUNCTION_NOT_FOUND, NVML_ERROR_NO_PERMISSION,
                    NVML_ERROR_INVALID_ARGUMENT, NVML_ERROR_NOT_FOUND, NVML_ERROR_DEPRECATED)
