# cython: language_level=3, boundscheck=False
"""Makes the file of a ring and writes its rows. What lies where is in ring.h; readers are in ring.pyx and in C."""

from libc.string cimport memcpy
from posix.mman cimport MAP_FAILED, MAP_POPULATE, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap
from posix.unistd cimport close as close_descriptor

import os
import time

from poolmgr_ext.ringlayout cimport (
    RING_GROUPS, RING_MAX_DEVICES, RING_MAX_FIELDS, RING_STATISTICS, RING_VERSION, RING_WINDOWS, ring_beat,
    ring_cell_words, ring_check, ring_commit_row, ring_device, ring_end, ring_field, ring_group, ring_header,
    ring_header_of, ring_process_words, ring_publish, ring_statistics_words, ring_write_cell)
from poolmgr_ext.stats cimport SERIES_BYTES, WINDOW_SECONDS

from poolmgr_ext.ring import Field

OFTEN = 0.5  # seconds: fields of at most this cadence share a row of every sweep, the others have rows of their own
SLOW_HZ = 1.0
LEAST_DEPTH = 2.0  # seconds; a ring that can keep less of what was asked for is refused
MOST_ROWS = 1 << 28
FIXED_STEP = 64  # areas begin on cache lines


def in_rows(fields):
    """Fields in the order of the ring: those that are read often, then the others."""
    return sorted(fields, key=lambda field: field.cadence > OFTEN)


def _checked(fields, device_ids):
    names = [field.name for field in fields]
    if not 1 <= len(names) <= RING_MAX_FIELDS or len(set(names)) != len(names):
        raise ValueError(f"a ring has 1 to {RING_MAX_FIELDS} fields of different names, not {len(names)}: {names}")
    if len(device_ids) > RING_MAX_DEVICES or len(set(device_ids)) != len(device_ids):
        raise ValueError(f"a ring has at most {RING_MAX_DEVICES} devices of different ids, not {len(device_ids)}")
    for text, room in [(f.name, 40) for f in fields] + [(f.unit, 16) for f in fields] + [(i, 96) for i in device_ids]:
        if not 1 <= len(text.encode()) < room:
            raise ValueError(f"{text!r} has to be 1 to {room - 1} bytes long")
    for field in fields:
        if field.kind not in ("gauge", "counter") or not field.cadence >= 0:
            raise ValueError(f"{field} is neither a gauge nor a counter, or has no cadence")


def _process_start(pid):
    """Clock ticks after boot: with the pid, the identity of a process (proc(5), field 22)."""
    with open(f"/proc/{pid}/stat", "rb") as stat:
        return int(stat.read().rpartition(b")")[2].split()[19])


cdef int put_text(char *to, str text) except -1:
    """Into zeroed memory; `_checked` has compared the length with the room."""
    cdef bytes encoded = text.encode()
    memcpy(to, <const char *> encoded, len(encoded))
    return 0


cdef class RingWriter:
    def __cinit__(self, str path, *, uint64_t epoch, fields, device_ids, double rate_hz=10.0,
                  double depth_seconds=600.0, uint64_t max_bytes=128 << 20):
        self.descriptor = -1
        self.path = path
        self.rate_hz = rate_hz
        self.fields = tuple(Field(*field) for field in in_rows([Field(*field) for field in fields]))
        self.device_ids = tuple(device_ids)
        _checked(self.fields, self.device_ids)
        if not 0.01 <= rate_hz <= 10000 or not 1 <= depth_seconds <= 86400 * 7:
            raise ValueError(f"{rate_hz} Hz for {depth_seconds} s is no ring")
        often = sum(field.cadence <= OFTEN for field in self.fields)
        rates = (rate_hz, min(rate_hz, SLOW_HZ))
        widths = [8 * ring_cell_words(count) * len(self.device_ids) for count in (often, len(self.fields) - often)]
        fixed = self._fixed_bytes()
        per_second = sum(rate * width for rate, width in zip(rates, widths, strict=True))
        spare = max_bytes - fixed - 2 * FIXED_STEP
        self.depth_seconds = min(depth_seconds, spare / per_second) if per_second else depth_seconds
        if self.depth_seconds < min(depth_seconds, LEAST_DEPTH):
            raise ValueError(f"a ring of {len(self.device_ids)} devices does not fit into {max_bytes} bytes")
        rows = [min(MOST_ROWS, max(2, int(self.depth_seconds * rate))) for rate in rates]
        total = fixed + sum(count * width + FIXED_STEP for count, width in zip(rows, widths, strict=True))
        self._make_file(total)
        self.lay_out(epoch, depth_seconds, fixed, total, list(zip(rates, rows, (often, len(self.fields) - often))))
        self.describe()

    def __dealloc__(self):
        if self.view.base != NULL:
            munmap(self.view.base, self.view.bytes)
        if self.descriptor >= 0:
            close_descriptor(self.descriptor)

    def _areas(self):
        """Where each area begins that does not depend on the depth, and where the last one ends."""
        devices, fields = len(self.device_ids), len(self.fields)
        sizes = (sizeof(ring_header), fields * sizeof(ring_field), devices * sizeof(ring_device),
                 8 * devices * ring_statistics_words(fields), 8 * devices * ring_process_words(),
                 devices * fields * SERIES_BYTES)
        areas = [0]
        for size in sizes:
            areas.append((areas[-1] + size + FIXED_STEP - 1) // FIXED_STEP * FIXED_STEP)
        return areas

    def _fixed_bytes(self):
        return self._areas()[-1]

    def _make_file(self, total):
        """All of it is allocated here: a write into memory that the file system cannot give ends a process."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self.descriptor = os.open(self.path, flags, 0o600)
        try:
            os.posix_fallocate(self.descriptor, 0, total)
            self._map(total)
        except OSError:
            os.unlink(self.path)
            raise

    def _map(self, total):
        cdef void *mapped = mmap(NULL, total, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, self.descriptor, 0)
        if mapped == MAP_FAILED:
            raise MemoryError(f"cannot map {total} bytes of {self.path}")
        self.view.base = <unsigned char *> mapped
        self.view.bytes = total

    cdef int lay_out(self, uint64_t epoch, double depth_asked, uint64_t fixed, uint64_t total, object rows) except -1:
        cdef ring_header *header = ring_header_of(&self.view)
        cdef ring_group *group
        cdef int number
        cdef uint64_t at = fixed
        cdef uint32_t first = 0
        areas = self._areas()
        header.version, header.header_bytes, header.total_bytes, header.epoch = \
            RING_VERSION, sizeof(ring_header), total, epoch
        header.writer_pid, header.writer_start = os.getpid(), _process_start(os.getpid())
        header.created_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        header.rate_hz, header.depth_seconds, header.depth_asked_seconds = self.rate_hz, self.depth_seconds, depth_asked
        header.fields, header.devices = len(self.fields), len(self.device_ids)
        header.fields_at, header.devices_at, header.statistics_at, header.processes_at, header.workspace_at = areas[1:6]
        for number in range(RING_WINDOWS):
            header.window_seconds[number] = <double> WINDOW_SECONDS[number]
        for number, (rate, count, fields) in enumerate(rows):
            group = &header.groups[number]
            group.rate_hz, group.rows, group.cells_at, group.first_field, group.fields = rate, count, at, first, fields
            at += (8 * ring_cell_words(fields) * header.devices * group.rows + FIXED_STEP - 1) // FIXED_STEP * FIXED_STEP
            first += <uint32_t> fields
        return 0

    cdef int describe(self) except -1:
        """Names of fields and devices; then the layout goes through the check that every reader makes."""
        cdef ring_header *header = ring_header_of(&self.view)
        cdef ring_field *field
        cdef ring_device *device
        cdef int i
        for i, given in enumerate(self.fields):
            field = <ring_field *> (self.view.base + header.fields_at) + i
            put_text(field.name, given.name)
            put_text(field.unit, given.unit)
            field.cadence_seconds = given.cadence
            field.counter = given.kind == "counter"
            field.counter_bits = given.counter_bits if field.counter else 0
        for i, device_id in enumerate(self.device_ids):
            device = <ring_device *> (self.view.base + header.devices_at) + i
            put_text(device.id, device_id)
        self.workspace = self.view.base + header.workspace_at
        ring_publish(&self.view)
        if ring_check(self.view.base, self.view.bytes, &self.view) != 0:
            raise AssertionError("the layout of a ring contradicts its own check")
        return 0

    @property
    def bytes(self):
        return self.view.bytes

    def append(self, int group, const int64_t[::1] times not None, const uint64_t[::1] fresh not None,
               const double[:, ::1] values not None):
        """A row: per device its time, the mask of values that are new, and the values of the group's fields."""
        cdef uint32_t column
        cdef uint64_t row
        if not 0 <= group < <int> RING_GROUPS:
            raise ValueError(f"there is no group {group}")
        cdef uint32_t devices = self.view.devices
        cdef uint32_t fields = self.view.groups[group].fields
        if times.shape[0] != devices or fresh.shape[0] != devices or \
                values.shape[0] != devices or values.shape[1] != fields or fields == 0:
            raise ValueError(f"a row of group {group} is {devices} devices by {fields} fields")
        with nogil:
            row = self.rows_written[group]
            for column in range(devices):
                ring_write_cell(&self.view, group, row, column, times[column], fresh[column], &values[column, 0])
            ring_commit_row(&self.view, group, row)
            self.rows_written[group] = row + 1

    def beat(self, int64_t boottime_ns):
        ring_beat(&self.view, boottime_ns)

    def end(self):
        """Tells readers that nothing will follow."""
        ring_end(&self.view)
