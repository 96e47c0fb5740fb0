/* The state file: made, opened, locked. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "state.h"

#define SECOND 1000000000LL
/* A holder that is stopped (SIGSTOP) keeps the lock; the tables are then read without it rather than never. */
#define LOCK_WAIT_NS 200000000L

int64_t sim_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_BOOTTIME, &now);
    return now.tv_sec * SECOND + now.tv_nsec;
}

static int map(int fd, SimState **state) {
    void *at = mmap(NULL, sizeof(SimState), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED) return -errno;
    *state = at;
    return 0;
}

static void init_lock(SimState *state) {
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(&state->lock, &attributes);
    pthread_mutexattr_destroy(&attributes);
}

static void blank(SimState *state, int devices) {
    state->version = SIM_VERSION;
    state->size = sizeof(SimState);
    state->device_count = devices;
    state->next_fault_ns = INT64_MAX;
    init_lock(state);
    for (int i = 0; i < SIM_MAX_FUNCTIONS; i++) state->costs_ns[i] = SIM_UNKNOWN;
    for (int d = 0; d < devices; d++) {
        SimDevice *device = &state->devices[d];
        for (int i = 0; sim_device_number_name(i) != NULL; i++) *sim_device_number(device, i) = SIM_UNKNOWN;
        device->present = 1;
        device->lost = device->hang_from_ns = device->hang_until_ns = device->release_delay_ns = 0;
        for (int i = 0; i < SIM_SERIES_COUNT; i++) {
            device->waves[i].kind = SIM_ABSENT;
            device->total_ns[i] = sim_now();
        }
        for (int i = 0; i < SIM_MAX_LINKS; i++) device->links[i].peer = SIM_PEER_NONE;
    }
}

int sim_create(const char *path, int devices, SimState **state) {
    if (devices < 0 || devices > SIM_MAX_DEVICES) return -EINVAL;
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0) return -errno;
    int code = ftruncate(fd, sizeof(SimState)) < 0 ? -errno : map(fd, state);
    close(fd);
    if (code < 0) return code;
    blank(*state, devices);
    atomic_thread_fence(memory_order_release);
    (*state)->magic = SIM_MAGIC; /* last: whoever opens it sooner takes it for no state */
    return 0;
}

int sim_open(const char *path, SimState **state) {
    struct stat found;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) return -errno;
    int code = fstat(fd, &found) < 0 ? -errno : found.st_size != sizeof(SimState) ? -EPROTO : map(fd, state);
    close(fd);
    if (code < 0) return code;
    SimState *s = *state;
    if (s->magic == SIM_MAGIC && s->version == SIM_VERSION && s->size == sizeof(SimState)) return 0;
    sim_close(s);
    return -EPROTO;
}

void sim_close(SimState *state) { munmap(state, sizeof(SimState)); }

void sim_lock(SimState *state) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += LOCK_WAIT_NS;
    until.tv_sec += until.tv_nsec / SECOND;
    until.tv_nsec %= SECOND;
    if (pthread_mutex_timedlock(&state->lock, &until) == EOWNERDEAD) pthread_mutex_consistent(&state->lock);
}

/* Unlocking what another holds (see LOCK_WAIT_NS) is refused by the robust mutex with EPERM, and does nothing. */
void sim_unlock(SimState *state) { pthread_mutex_unlock(&state->lock); }
