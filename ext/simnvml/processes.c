/* Processes that hold a device's memory. A pid alone names nobody for long: it goes with its start time. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "state.h"

uint64_t sim_start_ticks(uint32_t pid) {
    char path[32], line[1024];
    snprintf(path, sizeof(path), "/proc/%u/stat", pid);
    FILE *file = fopen(path, "re");
    if (file == NULL) return 0;
    size_t length = fread(line, 1, sizeof(line) - 1, file);
    fclose(file);
    line[length] = 0;
    char *at = strrchr(line, ')'); /* the name before it may contain anything */
    if (at == NULL || at[1] != ' ' || at[2] == 'Z' || at[2] == 'X') return 0; /* a zombie holds no memory any more */
    for (int field = 2; field < 22 && at != NULL; field++) at = strchr(at + 1, ' ');
    return at == NULL ? 0 : strtoull(at + 1, NULL, 10);
}

uint64_t sim_process_bytes(const SimProcess *process, int64_t now) {
    if (!process->used || now < process->from_ns || now >= process->until_ns) return 0;
    double grown = process->growth * (double)(now - process->from_ns) / 1e9;
    double bytes = (double)process->bytes + (grown > 0 ? grown : 0);
    return process->maximum_bytes && bytes > (double)process->maximum_bytes ? process->maximum_bytes : (uint64_t)bytes;
}

static SimProcess *slot_for(SimDevice *device, const SimProcess *process) {
    SimProcess *empty = NULL;
    for (int i = 0; i < SIM_MAX_PROCESSES; i++) {
        SimProcess *held = &device->processes[i];
        if (!held->used) {
            if (empty == NULL) empty = held;
        } else if (!held->gone_ns && held->pid == process->pid && held->start_ticks == process->start_ticks &&
                   held->instance == process->instance && held->kind == process->kind) {
            return held;
        }
    }
    return empty;
}

/* Of a process that already has an entry the new one takes the place. -ENOSPC: the table is full. */
int sim_take(SimState *state, int device, const SimProcess *process) {
    SimProcess *held = slot_for(&state->devices[device], process);
    if (held == NULL) return -ENOSPC;
    *held = *process;
    held->used = 1;
    held->gone_ns = 0;
    return 0;
}

static void leave(SimDevice *device, SimProcess *process, int64_t now) {
    process->gone_ns = now;
    process->growth = 0;
    if (device->release_delay_ns <= 0) process->used = 0;
}

int sim_release(SimState *state, int device, uint32_t pid, int64_t now) {
    int found = -ESRCH;
    for (int i = 0; i < SIM_MAX_PROCESSES; i++) {
        SimProcess *process = &state->devices[device].processes[i];
        if (!process->used || process->pid != pid || process->gone_ns) continue;
        leave(&state->devices[device], process, now);
        found = 0;
    }
    return found;
}

void sim_sweep(SimState *state, int device, int64_t now) {
    SimDevice *d = &state->devices[device];
    for (int i = 0; i < SIM_MAX_PROCESSES; i++) {
        SimProcess *process = &d->processes[i];
        if (!process->used) continue;
        if (process->gone_ns) {
            if (now - process->gone_ns >= d->release_delay_ns) process->used = 0;
        } else if (process->start_ticks && sim_start_ticks(process->pid) != process->start_ticks) {
            leave(d, process, now);
        }
    }
}
