# The complete header of ring.h, which says what the layout and the memory order are. Nothing stands behind it but C.

from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef extern from "ring.h" nogil:
    enum:
        RING_VERSION
        RING_GROUPS
        RING_WINDOWS
        RING_MAX_DEVICES
        RING_MAX_FIELDS
        RING_MAX_PROCESSES
        RING_STATISTICS
        RING_OK
        RING_EMPTY
        RING_TORN
        RING_NOT_A_RING
        RING_WRONG_VERSION
        RING_TRUNCATED
    uint64_t RING_UNKNOWN
    ctypedef uint64_t ring_word
    struct ring_field:
        char name[40]
        char unit[16]
        double cadence_seconds
        uint32_t counter
        uint32_t counter_bits
    struct ring_device:
        char id[96]
    struct ring_group:
        uint64_t rows
        uint64_t cells_at
        double rate_hz
        uint32_t first_field
        uint32_t fields
    struct ring_header:
        uint32_t version
        uint32_t header_bytes
        uint64_t total_bytes
        uint64_t epoch
        uint64_t writer_start
        int64_t created_ns
        double rate_hz
        double depth_seconds
        double depth_asked_seconds
        double window_seconds[4]
        uint32_t writer_pid
        uint32_t fields
        uint32_t devices
        uint64_t fields_at
        uint64_t devices_at
        uint64_t statistics_at
        uint64_t processes_at
        uint64_t workspace_at
        ring_group groups[2]
    struct ring_view_group:
        uint64_t rows
        uint64_t cells_at
        uint32_t first_field
        uint32_t fields
    struct ring_view:
        unsigned char *base
        uint64_t bytes
        uint32_t fields
        uint32_t devices
        uint64_t statistics_at
        uint64_t processes_at
        ring_view_group groups[2]
    ring_header *ring_header_of(const ring_view *view)
    uint64_t ring_cell_words(uint32_t fields)
    uint64_t ring_statistics_words(uint32_t fields)
    uint64_t ring_process_words()
    int ring_check(const void *base, uint64_t size, ring_view *view)
    ring_word *ring_statistics_record(const ring_view *view, uint32_t column)
    ring_word *ring_process_record(const ring_view *view, uint32_t column)
    uint64_t ring_head(const ring_view *view, uint32_t group)
    int ring_read_cell(const ring_view *view, uint32_t group, uint64_t row, uint32_t column, void *to)
    int ring_read_latest(const ring_view *view, uint32_t group, uint32_t column, void *to, uint64_t *retries)
    int ring_read_record(const ring_word *record, uint64_t skip, void *to, uint64_t words)
    uint64_t ring_heartbeat(const ring_view *view, int64_t *at_ns, uint64_t *call)
    void ring_write_cell(const ring_view *view, uint32_t group, uint64_t row, uint32_t column, int64_t at_ns,
                         uint64_t fresh, const double *values)
    void ring_commit_row(const ring_view *view, uint32_t group, uint64_t row)
    void ring_write_record(ring_word *record, uint64_t skip, const void *data, uint64_t words)
    void ring_beat(const ring_view *view, int64_t at_ns)
    void ring_calling(const ring_view *view, uint64_t call)
    void ring_end(const ring_view *view)
    int ring_ended(const ring_view *view)
    void ring_publish(const ring_view *view)

cdef struct Cell:
    int64_t at_ns
    uint64_t fresh
    double values[64]

cdef struct ProcessEntry:
    uint32_t pid
    uint32_t kind  # 0: compute, 1: graphics, 2: MPS
    uint64_t used

cdef struct ProcessTable:
    int64_t at_ns
    uint64_t total  # as the driver counts them, even where they are more than fit
    uint64_t count
    ProcessEntry entries[128]
