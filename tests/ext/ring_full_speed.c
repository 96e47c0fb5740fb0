/* Writes rows into a ring that exists, as fast as memory takes them, until its standard input ends. All values of a cell
 * are alike: the number of the row. usage: ring_full_speed RING
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ring.h"

int main(int argc, char **argv)
{
    struct ring_view view;
    struct stat status;
    struct pollfd input = {0, POLLIN, 0};
    int descriptor = argc == 2 ? open(argv[1], O_RDWR) : -1;
    void *base;
    uint64_t row = 0;
    double values[RING_MAX_FIELDS];
    if (descriptor < 0 || fstat(descriptor, &status) != 0)
        return 1;
    base = mmap(NULL, (size_t)status.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    if (base == MAP_FAILED || ring_check(base, (uint64_t)status.st_size, &view) != RING_OK)
        return 1;
    while (row % 4096 != 0 || poll(&input, 1, 0) == 0) {
        for (uint32_t i = 0; i < RING_MAX_FIELDS; i++)
            values[i] = (double)row;
        for (uint32_t column = 0; column < view.devices; column++)
            ring_write_cell(&view, 0, row, column, (int64_t)row, ~UINT64_C(0), values);
        ring_commit_row(&view, 0, row++);
    }
    printf("%llu\n", (unsigned long long)row);
    return 0;
}
