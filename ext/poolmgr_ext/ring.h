/* The layout of the telemetry ring and its memory order: all that a reader in C needs. docs/ring.md explains both.
 *
 * One writer, many readers, no locks. Every record begins with a sequence word: odd while the writer is in it, even and
 * the record's own when it is whole. Data words are relaxed atomics between two fences, so that a reader that overlaps
 * with the writer gets a mixture that it can notice, and no undefined behaviour (Boehm, "Can seqlocks get along with
 * programming language memory models?", 2012). Little-endian, 64 bit.
 */
#ifndef POOLMGR_RING_H
#define POOLMGR_RING_H

#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

#define RING_MAGIC 0x474e49524c4f4f50ull /* the bytes "POOLRING" */
#define RING_VERSION 1u
#define RING_GROUPS 2u  /* fields that are read often, and those that are read once a second or slower */
#define RING_WINDOWS 4u
#define RING_MAX_DEVICES 256u
#define RING_MAX_FIELDS 64u /* as many as the mask of fresh values has bits */
#define RING_MAX_PROCESSES 128u
#define RING_STATISTICS 9u /* count, last, min, max, mean, standard deviation, slope, its standard error, integral */
#define RING_RETRIES 64u   /* a reader that has lost so often to the writer says so instead of spinning */
#define RING_CELL_HEAD 3u  /* words before a cell's values: sequence, time, mask of fresh values */
#define RING_UNKNOWN UINT64_MAX /* bytes of a process that the driver does not tell */

enum { RING_OK = 0, RING_EMPTY = 1, RING_TORN = 2, RING_NOT_A_RING = 3, RING_WRONG_VERSION = 4, RING_TRUNCATED = 5 };

typedef _Atomic uint64_t ring_word;

struct ring_field {
    char name[40];
    char unit[16];
    double cadence_seconds;
    uint32_t counter;      /* 1: it only rises; 0: a gauge */
    uint32_t counter_bits; /* where it wraps: 32 or 64 */
};

struct ring_device {
    char id[96];
};

/* Rows of a group: `rows` slots, row r in slot r % rows; a row is one cell per device, a cell one word per field. */
struct ring_group {
    _Alignas(64) ring_word head; /* rows that are whole: the newest is head - 1 */
    uint64_t rows, cells_at;
    double rate_hz;
    uint32_t first_field, fields;
};

struct ring_header {
    ring_word magic; /* written last, so that a file which is being made is no ring yet */
    uint32_t version, header_bytes;
    uint64_t total_bytes, epoch;
    uint64_t writer_start; /* clock ticks after boot, field 22 of /proc/<pid>/stat */
    int64_t created_ns;
    double rate_hz, depth_seconds, depth_asked_seconds; /* less than asked where the ring would have been too large */
    double window_seconds[RING_WINDOWS];
    uint32_t writer_pid, fields, devices, reserved;
    uint64_t fields_at, devices_at, statistics_at, processes_at, workspace_at;
    _Alignas(64) ring_word heartbeat; /* rises before and after every batch of driver calls */
    _Atomic int64_t heartbeat_ns;
    ring_word call; /* 0 outside of the driver, else 1 + number of the call + 256 * column */
    ring_word ended; /* 1: the writer has closed it and will write no more */
    struct ring_group groups[RING_GROUPS];
};

/* A ring that was checked: what a reader trusts afterwards is this copy. */
struct ring_view {
    unsigned char *base;
    uint64_t bytes;
    uint32_t fields, devices;
    uint64_t statistics_at, processes_at;
    struct {
        uint64_t rows, cells_at;
        uint32_t first_field, fields;
    } groups[RING_GROUPS];
};

static inline struct ring_header *ring_header_of(const struct ring_view *view)
{
    return (struct ring_header *)(void *)view->base;
}

static inline uint64_t ring_cell_words(uint32_t fields) { return RING_CELL_HEAD + fields; }
static inline uint64_t ring_statistics_words(uint32_t fields) { return 2 + (uint64_t)RING_WINDOWS * fields * RING_STATISTICS; }
static inline uint64_t ring_process_words(void) { return 4 + 2 * (uint64_t)RING_MAX_PROCESSES; }

static inline int ring_fits(uint64_t at, uint64_t count, uint64_t each, uint64_t total)
{
    return at % 8 == 0 && at <= total && each > 0 && count <= (total - at) / each;
}

static inline int ring_check_groups(const struct ring_header *header, struct ring_view *view)
{
    uint32_t next = 0;
    for (uint32_t g = 0; g < RING_GROUPS; g++) {
        const struct ring_group *group = &header->groups[g];
        if (group->first_field != next || group->fields > header->fields - next || group->rows < 2 || group->rows > (1u << 30))
            return RING_NOT_A_RING;
        if (!ring_fits(group->cells_at, group->rows * header->devices, 8 * ring_cell_words(group->fields), view->bytes))
            return RING_NOT_A_RING;
        view->groups[g].rows = group->rows;
        view->groups[g].cells_at = group->cells_at;
        view->groups[g].first_field = group->first_field;
        view->groups[g].fields = group->fields;
        next += group->fields;
    }
    return next == header->fields ? RING_OK : RING_NOT_A_RING;
}

/* Checks everything that a later access relies on. `bytes`: the size of the file. */
static inline int ring_check(const void *base, uint64_t bytes, struct ring_view *view)
{
    const struct ring_header *header = (const struct ring_header *)base;
    uint64_t total;
    memset(view, 0, sizeof(*view));
    if (bytes < sizeof(uint64_t) * 2)
        return RING_NOT_A_RING;
    if (atomic_load_explicit(&((struct ring_header *)(uintptr_t)base)->magic, memory_order_acquire) != RING_MAGIC)
        return RING_NOT_A_RING;
    if (header->version != RING_VERSION)
        return RING_WRONG_VERSION;
    if (bytes < sizeof(*header) || bytes < header->total_bytes)
        return RING_TRUNCATED;
    total = header->total_bytes;
    if (header->header_bytes != sizeof(*header) || header->fields > RING_MAX_FIELDS || header->devices > RING_MAX_DEVICES)
        return RING_NOT_A_RING;
    if (!ring_fits(header->fields_at, header->fields, sizeof(struct ring_field), total) ||
        !ring_fits(header->devices_at, header->devices, sizeof(struct ring_device), total) ||
        !ring_fits(header->statistics_at, header->devices, 8 * ring_statistics_words(header->fields), total) ||
        !ring_fits(header->processes_at, header->devices, 8 * ring_process_words(), total))
        return RING_NOT_A_RING;
    view->base = (unsigned char *)(uintptr_t)base;
    view->bytes = total;
    view->fields = header->fields;
    view->devices = header->devices;
    view->statistics_at = header->statistics_at;
    view->processes_at = header->processes_at;
    return ring_check_groups(header, view);
}

static inline ring_word *ring_cell(const struct ring_view *view, uint32_t group, uint64_t row, uint32_t column)
{
    uint64_t slot = row % view->groups[group].rows;
    uint64_t words = ring_cell_words(view->groups[group].fields);
    return (ring_word *)(void *)(view->base + view->groups[group].cells_at) + (slot * view->devices + column) * words;
}

static inline ring_word *ring_statistics_record(const struct ring_view *view, uint32_t column)
{
    return (ring_word *)(void *)(view->base + view->statistics_at) + column * ring_statistics_words(view->fields);
}

static inline ring_word *ring_process_record(const struct ring_view *view, uint32_t column)
{
    return (ring_word *)(void *)(view->base + view->processes_at) + column * ring_process_words();
}

static inline void ring_copy_out(void *to, const ring_word *from, uint64_t words)
{
    for (uint64_t i = 0; i < words; i++) {
        uint64_t word = atomic_load_explicit((ring_word *)(uintptr_t)&from[i], memory_order_relaxed);
        memcpy((unsigned char *)to + 8 * i, &word, 8);
    }
}

static inline void ring_copy_in(ring_word *to, const void *from, uint64_t words)
{
    for (uint64_t i = 0; i < words; i++) {
        uint64_t word;
        memcpy(&word, (const unsigned char *)from + 8 * i, 8);
        atomic_store_explicit(&to[i], word, memory_order_relaxed);
    }
}

/* Words [skip, skip + words) of a record, if its sequence is `wanted` before and after. */
static inline int ring_read_if(const ring_word *record, uint64_t wanted, uint64_t skip, void *to, uint64_t words)
{
    ring_word *sequence = (ring_word *)(uintptr_t)record;
    if (atomic_load_explicit(sequence, memory_order_acquire) != wanted)
        return 0;
    ring_copy_out(to, record + skip, words);
    atomic_thread_fence(memory_order_acquire);
    return atomic_load_explicit(sequence, memory_order_relaxed) == wanted;
}

static inline uint64_t ring_head(const struct ring_view *view, uint32_t group)
{
    return atomic_load_explicit(&ring_header_of(view)->groups[group].head, memory_order_acquire);
}

/* One device's cell of row `row`: `to` gets time (ns), mask of fresh values, values. 0: not whole, or overwritten. */
static inline int ring_read_cell(const struct ring_view *view, uint32_t group, uint64_t row, uint32_t column, void *to)
{
    return ring_read_if(ring_cell(view, group, row, column), 2 * row + 2, 1, to, view->groups[group].fields + 2);
}

/* The newest cell. `*retries` counts what was read in vain. The row in which a writer died is never the newest. */
static inline int ring_read_latest(const struct ring_view *view, uint32_t group, uint32_t column, void *to, uint64_t *retries)
{
    for (uint32_t attempt = 0; attempt < RING_RETRIES; attempt++) {
        uint64_t head = ring_head(view, group);
        if (head == 0)
            return RING_EMPTY;
        if (ring_read_cell(view, group, head - 1, column, to))
            return RING_OK;
        ++*retries;
    }
    return RING_TORN;
}

/* Words of a record that is overwritten in place. A writer that died in it leaves it odd: then RING_TORN. */
static inline int ring_read_record(const ring_word *record, uint64_t skip, void *to, uint64_t words)
{
    for (uint32_t attempt = 0; attempt < RING_RETRIES; attempt++) {
        uint64_t sequence = atomic_load_explicit((ring_word *)(uintptr_t)record, memory_order_acquire);
        if (sequence == 0)
            return RING_EMPTY;
        if (sequence % 2 == 0 && ring_read_if(record, sequence, skip, to, words))
            return RING_OK;
    }
    return RING_TORN;
}

static inline uint64_t ring_heartbeat(const struct ring_view *view, int64_t *at_ns, uint64_t *call)
{
    struct ring_header *header = ring_header_of(view);
    uint64_t sequence = atomic_load_explicit(&header->heartbeat, memory_order_acquire);
    *at_ns = atomic_load_explicit(&header->heartbeat_ns, memory_order_relaxed);
    *call = atomic_load_explicit(&header->call, memory_order_relaxed);
    return sequence;
}

/* The writer's side. */

static inline void ring_open_record(ring_word *record, uint64_t odd)
{
    atomic_store_explicit(record, odd, memory_order_relaxed);
    atomic_thread_fence(memory_order_release); /* nobody sees new data under the old, even number */
}

static inline void ring_close_record(ring_word *record, uint64_t even)
{
    atomic_store_explicit(record, even, memory_order_release);
}

static inline void ring_write_cell(const struct ring_view *view, uint32_t group, uint64_t row, uint32_t column, int64_t at_ns,
                                   uint64_t fresh, const double *values)
{
    ring_word *cell = ring_cell(view, group, row, column);
    ring_open_record(cell, 2 * row + 1);
    atomic_store_explicit(&cell[1], (uint64_t)at_ns, memory_order_relaxed);
    atomic_store_explicit(&cell[2], fresh, memory_order_relaxed);
    ring_copy_in(&cell[RING_CELL_HEAD], values, view->groups[group].fields);
    ring_close_record(cell, 2 * row + 2);
}

/* After a cell for every device. */
static inline void ring_commit_row(const struct ring_view *view, uint32_t group, uint64_t row)
{
    atomic_store_explicit(&ring_header_of(view)->groups[group].head, row + 1, memory_order_release);
}

static inline void ring_write_record(ring_word *record, uint64_t skip, const void *from, uint64_t words)
{
    uint64_t sequence = atomic_load_explicit(record, memory_order_relaxed);
    ring_open_record(record, sequence + 1);
    ring_copy_in(record + skip, from, words);
    ring_close_record(record, sequence + 2);
}

static inline void ring_beat(const struct ring_view *view, int64_t at_ns)
{
    struct ring_header *header = ring_header_of(view);
    uint64_t sequence = atomic_load_explicit(&header->heartbeat, memory_order_relaxed);
    atomic_store_explicit(&header->heartbeat_ns, at_ns, memory_order_relaxed);
    atomic_store_explicit(&header->heartbeat, sequence + 1, memory_order_release);
}

static inline void ring_calling(const struct ring_view *view, uint64_t call)
{
    atomic_store_explicit(&ring_header_of(view)->call, call, memory_order_relaxed);
}

static inline void ring_end(const struct ring_view *view)
{
    atomic_store_explicit(&ring_header_of(view)->ended, 1, memory_order_release);
}

static inline int ring_ended(const struct ring_view *view)
{
    return atomic_load_explicit(&ring_header_of(view)->ended, memory_order_acquire) == 1;
}

static inline void ring_publish(const struct ring_view *view)
{
    atomic_store_explicit(&ring_header_of(view)->magic, RING_MAGIC, memory_order_release);
}

#endif
