/* A reader of poolmgr's telemetry ring in C: no call to the daemon, no lock. See ring.md.
 *
 * cc -O2 -std=c11 -I ext/poolmgr_ext -o ring_reader docs/ring_reader.c
 *
 *   ring_reader RING                      every device's newest row
 *   ring_reader RING time COUNT           nanoseconds for reading a device's newest row
 *   ring_reader RING compare COUNT        reads COUNT rows of a ring in which all values of a cell are alike; prints how
 *                                         many reads were torn, in vain and right
 *   ring_reader RING compare-blind COUNT  the same without looking at the sequence: what a careless reader gets
 *
 * Exit status: 0; 1 for a ring that cannot be read; 2 for a wrong call.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "ring.h"

struct cell {
    int64_t at_ns;
    uint64_t fresh;
    double values[RING_MAX_FIELDS];
};

static int64_t boottime_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_BOOTTIME, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

static int open_ring(const char *path, struct ring_view *view)
{
    static const char *const faults[] = {"", "", "", "no ring, or not ready", "of another version", "truncated"};
    struct stat status;
    int fault, descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    void *base = MAP_FAILED;
    if (descriptor >= 0 && fstat(descriptor, &status) == 0 && status.st_size > 0)
        base = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_SHARED, descriptor, 0);
    if (base == MAP_FAILED) {
        perror(path);
        return 0;
    }
    close(descriptor);
    fault = ring_check(base, (uint64_t)status.st_size, view);
    if (fault != RING_OK)
        fprintf(stderr, "%s: %s\n", path, faults[fault]);
    return fault == RING_OK;
}

/* Time 0 or a value that is NaN: not known. The age is what says whether a number is of now. */
static void show(const struct ring_view *view)
{
    const struct ring_header *header = ring_header_of(view);
    const struct ring_field *fields = (const void *)(view->base + header->fields_at);
    const struct ring_device *devices = (const void *)(view->base + header->devices_at);
    uint64_t retries = 0;
    for (uint32_t column = 0; column < view->devices; column++)
        for (uint32_t group = 0; group < RING_GROUPS; group++) {
            struct cell cell;
            if (ring_read_latest(view, group, column, &cell, &retries) != RING_OK)
                continue;
            printf("%.96s, %.3f s old:", devices[column].id, (double)(boottime_ns() - cell.at_ns) * 1e-9);
            for (uint32_t i = 0; i < view->groups[group].fields; i++) {
                const struct ring_field *field = &fields[view->groups[group].first_field + i];
                if (!isnan(cell.values[i]))
                    printf(" %.40s=%.10g %.16s", field->name, cell.values[i], field->unit);
            }
            printf("\n");
        }
}

static void measure(const struct ring_view *view, uint64_t count)
{
    struct cell cell;
    uint64_t retries = 0;
    int64_t begin = boottime_ns();
    for (uint64_t i = 0; i < count; i++)
        for (uint32_t group = 0; group < RING_GROUPS; group++)
            ring_read_latest(view, group, (uint32_t)(i % view->devices), &cell, &retries);
    printf("ns %.1f\n", (double)(boottime_ns() - begin) / (double)count);
}

static int alike(const struct cell *cell, uint32_t fields)
{
    for (uint32_t i = 1; i < fields; i++)
        if (cell->values[i] != cell->values[0])
            return 0;
    return 1;
}

static int read_blind(const struct ring_view *view, uint32_t column, struct cell *cell)
{
    uint64_t head = ring_head(view, 0);
    ring_copy_out(cell, ring_cell(view, 0, head - 1, column) + 1, view->groups[0].fields + 2);
    return RING_OK;
}

static void compare(const struct ring_view *view, uint64_t count, int blind)
{
    uint64_t torn = 0, retries = 0, right = 0, refused = 0;
    while (ring_head(view, 0) == 0)
        ;
    for (uint64_t i = 0; i < count; i++) {
        struct cell cell;
        uint32_t column = (uint32_t)(i % view->devices);
        int outcome = blind ? read_blind(view, column, &cell) : ring_read_latest(view, 0, column, &cell, &retries);
        if (outcome != RING_OK)
            refused++;
        else if (alike(&cell, view->groups[0].fields))
            right++;
        else
            torn++;
    }
    printf("torn %" PRIu64 " retries %" PRIu64 " right %" PRIu64 " refused %" PRIu64 "\n", torn, retries, right, refused);
}

int main(int argc, char **argv)
{
    struct ring_view view;
    uint64_t count = argc == 4 ? strtoull(argv[3], NULL, 10) : 0;
    if (argc != 2 && (argc != 4 || count == 0))
        return 2;
    if (!open_ring(argv[1], &view))
        return 1;
    if (argc == 2)
        show(&view);
    else if (view.devices == 0)
        return 1;
    else if (strcmp(argv[2], "time") == 0)
        measure(&view, count);
    else if (strcmp(argv[2], "compare") == 0 || strcmp(argv[2], "compare-blind") == 0)
        compare(&view, count, argv[2][7] == '-');
    else
        return 2;
    return 0;
}
