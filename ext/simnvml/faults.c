/* Faults, at once or planned, the events that they post, MIG instances. All but sim_apply_due with the lock held. */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../include/nvml_abi.h"
#include "state.h"

#define XID_DOUBLE_BIT_ECC 48
#define XID_FALLEN_OFF_BUS 79

void sim_post(SimState *state, int device, int instance, uint64_t type, uint64_t data, int64_t now) {
    SimInstance *of = instance < 0 ? NULL : &state->devices[device].instances[instance];
    SimEvent event = {state->event_count,
                      type,
                      data,
                      now,
                      (uint32_t)device,
                      of ? (uint32_t)of->gpu_instance : UINT32_MAX,
                      of ? (uint32_t)of->compute_instance : UINT32_MAX};
    state->events[state->event_count % SIM_MAX_EVENTS] = event;
    state->event_count++;
    atomic_fetch_add(&state->event_futex, 1);
    syscall(SYS_futex, &state->event_futex, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

static void add_ecc(SimState *state, int device, const SimFault *fault, int64_t now) {
    SimDevice *d = &state->devices[device];
    int location = fault->c >= 0 && fault->c < 8 ? (int)fault->c : NVML_MEMORY_LOCATION_DEVICE_MEMORY;
    int type = fault->a != 0;
    for (int counter = 0; counter < 2; counter++) d->ecc[type][counter][location] += (uint64_t)fault->b;
    sim_post(state, device, -1, type ? nvmlEventTypeDoubleBitEccError : nvmlEventTypeSingleBitEccError,
             (uint64_t)fault->b, now);
    if (type) sim_post(state, device, -1, nvmlEventTypeXidCriticalError, XID_DOUBLE_BIT_ECC, now);
}

static void give_result(SimState *state, int device, int64_t function, uint16_t code) {
    uint16_t *results = state->devices[device].results;
    for (int i = 0; i < SIM_MAX_FUNCTIONS; i++)
        if (function == SIM_UNKNOWN || function == i) results[i] = code;
}

static void give_cost(SimState *state, int64_t function, int64_t nanoseconds) {
    if (function == SIM_UNKNOWN)
        state->cost_ns = nanoseconds;
    else if (function >= 0 && function < SIM_MAX_FUNCTIONS)
        state->costs_ns[function] = nanoseconds;
}

static void harm_link(SimDevice *device, const SimFault *fault) {
    if (fault->a < 0 || fault->a >= SIM_MAX_LINKS) return;
    SimLink *link = &device->links[fault->a];
    if (fault->b == SIM_UNKNOWN)
        link->active = 0;
    else if (fault->b < 5)
        link->errors[fault->b] += (uint64_t)fault->c;
}

static void set_mig_mode(SimState *state, int device, int64_t mode, int64_t now) {
    SimDevice *d = &state->devices[device];
    if (d->mig_mode < 0) return;
    for (int slot = 0; mode == 0 && slot < SIM_MAX_INSTANCES; slot++) d->instances[slot].used = 0;
    d->mig_mode = d->mig_pending = mode;
    sim_post(state, device, -1, nvmlEventMigConfigChange, 0, now);
}

static void lose(SimState *state, int device, int64_t now) {
    state->devices[device].lost = 1;
    sim_post(state, device, -1, nvmlEventTypeXidCriticalError, XID_FALLEN_OFF_BUS, now);
}

static void apply_to_host(SimState *state, const SimFault *fault, int64_t now) {
    switch (fault->kind) {
    case SIM_FAULT_INIT: state->init_result = fault->a; break;
    case SIM_FAULT_NO_DEVICES: state->no_devices = fault->a; break;
    case SIM_FAULT_COST: give_cost(state, fault->a, fault->b); break;
    case SIM_FAULT_HANG:
        state->hang_from_ns = now;
        state->hang_until_ns = now + fault->a;
        break;
    default: break;
    }
}

static void apply_to_device(SimState *state, const SimFault *fault, int device, int64_t now) {
    SimDevice *d = &state->devices[device];
    int64_t *number;
    switch (fault->kind) {
    case SIM_FAULT_XID:
        if (fault->b != SIM_UNKNOWN) d->recovery_action = fault->b;
        sim_post(state, device, -1, nvmlEventTypeXidCriticalError, (uint64_t)fault->a, now);
        break;
    case SIM_FAULT_ECC: add_ecc(state, device, fault, now); break;
    case SIM_FAULT_LOST: lose(state, device, now); break;
    case SIM_FAULT_FOUND:
        d->lost = 0;
        d->present = 1;
        break;
    case SIM_FAULT_REMOVED: d->present = 0; break;
    case SIM_FAULT_HANG:
        d->hang_from_ns = now;
        d->hang_until_ns = now + fault->a;
        break;
    case SIM_FAULT_RESULT: give_result(state, device, fault->a, (uint16_t)fault->b); break;
    case SIM_FAULT_FIELD:
        if (fault->a >= 0 && fault->a < SIM_MAX_FIELD_IDS) d->field_results[fault->a] = (uint16_t)fault->b;
        break;
    case SIM_FAULT_COST: d->cost_ns = fault->b; break;
    case SIM_FAULT_MIG_CREATE: sim_mig_create(state, device, (int)fault->a, now); break;
    case SIM_FAULT_MIG_DESTROY:
        for (int slot = 0; slot < SIM_MAX_INSTANCES; slot++)
            if (fault->a == SIM_UNKNOWN || fault->a == slot) sim_mig_destroy(state, device, slot, now);
        break;
    case SIM_FAULT_MIG_MODE: set_mig_mode(state, device, fault->a, now); break;
    case SIM_FAULT_NUMBER:
        number = sim_device_number(d, (int)fault->a);
        if (number != NULL) *number = fault->b;
        break;
    case SIM_FAULT_NVLINK: harm_link(d, fault); break;
    default: break;
    }
}

/* INIT, NO_DEVICES, and HANG and COST of every device, belong to the host; all others go to each device. */
void sim_apply(SimState *state, const SimFault *fault, int64_t now) {
    int each = fault->device == SIM_EVERY_DEVICE;
    if (fault->kind == SIM_FAULT_INIT || fault->kind == SIM_FAULT_NO_DEVICES ||
        (each && (fault->kind == SIM_FAULT_HANG || fault->kind == SIM_FAULT_COST))) {
        apply_to_host(state, fault, now);
        return;
    }
    for (int device = 0; device < state->device_count; device++)
        if (each || fault->device == device) apply_to_device(state, fault, device, now);
}

int sim_plan(SimState *state, const SimFault *fault) {
    for (int i = 0; i < SIM_MAX_FAULTS; i++) {
        if (state->faults[i].kind) continue;
        state->faults[i] = *fault;
        if (fault->at_ns < atomic_load(&state->next_fault_ns)) atomic_store(&state->next_fault_ns, fault->at_ns);
        return 0;
    }
    return -ENOSPC;
}

/* The earliest planned fault that is due, or NULL; `next`: when the first one after is. */
static SimFault *earliest(SimState *state, int64_t now, int64_t *next) {
    SimFault *found = NULL;
    *next = INT64_MAX;
    for (int i = 0; i < SIM_MAX_FAULTS; i++) {
        SimFault *fault = &state->faults[i];
        if (!fault->kind) continue;
        if (fault->at_ns > now) {
            if (fault->at_ns < *next) *next = fault->at_ns;
        } else if (found == NULL || fault->at_ns < found->at_ns) {
            found = fault;
        }
    }
    return found;
}

void sim_apply_due(SimState *state, int64_t now) {
    if (now < atomic_load_explicit(&state->next_fault_ns, memory_order_relaxed)) return;
    sim_lock(state);
    int64_t next;
    for (SimFault *due = earliest(state, now, &next); due != NULL; due = earliest(state, now, &next)) {
        SimFault fault = *due;
        due->kind = 0;
        sim_apply(state, &fault, fault.at_ns);
    }
    atomic_store(&state->next_fault_ns, next);
    sim_unlock(state);
}

/* A UUID out of the GPU's and a running number: another one for each instance that is ever made. */
static void instance_uuid(const SimDevice *device, char *uuid) {
    uint64_t halves[2] = {0xcbf29ce484222325ULL, 0x84222325cbf29ce4ULL};
    for (int half = 0; half < 2; half++) {
        for (const char *c = device->uuid; *c; c++) halves[half] = (halves[half] ^ (uint8_t)*c) * 0x100000001b3ULL;
        halves[half] = (halves[half] ^ (uint64_t)device->mig_serial) * 0x100000001b3ULL;
        halves[half] ^= halves[half] >> 29;
    }
    snprintf(uuid, SIM_TEXT, "MIG-%08x-%04x-5%03x-%04x-%012llx", (unsigned)(halves[0] >> 32),
             (unsigned)(halves[0] >> 16 & 0xffff), (unsigned)(halves[0] & 0xfff),
             (unsigned)(halves[1] >> 48 & 0x3fff) | 0x8000, (unsigned long long)(halves[1] & 0xffffffffffffULL));
}

static unsigned occupied(const SimDevice *device) {
    unsigned taken = 0;
    for (int slot = 0; slot < SIM_MAX_INSTANCES; slot++) {
        const SimInstance *instance = &device->instances[slot];
        if (instance->used) taken |= ((1u << device->profiles[instance->profile].memory_slices) - 1) << instance->start;
    }
    return taken;
}

static int compute_slices_left(const SimDevice *device) {
    int left = (int)device->mig_maximum;
    for (int slot = 0; slot < SIM_MAX_INSTANCES; slot++)
        if (device->instances[slot].used) left -= device->profiles[device->instances[slot].profile].slices;
    return left;
}

static int made_of(const SimDevice *device, int profile) {
    int count = 0;
    for (int slot = 0; slot < SIM_MAX_INSTANCES; slot++)
        if (device->instances[slot].used && device->instances[slot].profile == profile) count++;
    return count;
}

/* The driver numbers instances by their size: halves from 1, quarters from 3, eighths from 7 on; 0 is the whole GPU. */
static int free_id(const SimDevice *device, const SimProfile *profile) {
    int share = (int)device->mig_maximum / profile->memory_slices;
    if (profile->memory_slices >= device->mig_maximum) return 0;
    for (int id = share <= 2 ? 1 : share <= 3 ? 3 : 7;; id++) {
        int taken = 0;
        for (int slot = 0; slot < SIM_MAX_INSTANCES; slot++)
            taken |= device->instances[slot].used && device->instances[slot].gpu_instance == id;
        if (!taken) return id;
    }
}

/* The first placement that is free of `taken`, in memory slices, or -1. */
static int placement(const SimProfile *profile, unsigned taken) {
    unsigned wanted = (1u << profile->memory_slices) - 1;
    for (int i = 0; i < profile->starts; i++)
        if (!(taken & (wanted << profile->start[i]))) return profile->start[i];
    return -1;
}

int sim_mig_room(const SimDevice *device, int profile) {
    const SimProfile *p = &device->profiles[profile];
    unsigned taken = occupied(device);
    int slices = compute_slices_left(device), room = p->maximum - made_of(device, profile), count = 0;
    for (int at = placement(p, taken); at >= 0 && count < room && slices >= p->slices; at = placement(p, taken)) {
        taken |= ((1u << p->memory_slices) - 1) << at;
        slices -= p->slices;
        count++;
    }
    return count;
}

int sim_mig_create(SimState *state, int device, int profile, int64_t now) {
    SimDevice *d = &state->devices[device];
    if (d->mig_mode != 1 || profile < 0 || profile >= SIM_MAX_PROFILES || !d->profiles[profile].used) return -EINVAL;
    const SimProfile *p = &d->profiles[profile];
    int slot = 0, at = placement(p, occupied(d));
    while (slot < SIM_MAX_INSTANCES && d->instances[slot].used) slot++;
    if (slot == SIM_MAX_INSTANCES || sim_mig_room(d, profile) == 0) return -ENOSPC;
    SimInstance made = {1, profile, free_id(d, p), 0, at, ""};
    d->mig_serial++;
    instance_uuid(d, made.uuid);
    d->instances[slot] = made;
    sim_post(state, device, slot, nvmlEventMigConfigChange, 0, now);
    return slot;
}

int sim_mig_destroy(SimState *state, int device, int slot, int64_t now) {
    SimDevice *d = &state->devices[device];
    if (slot < 0 || slot >= SIM_MAX_INSTANCES || !d->instances[slot].used) return -ENOENT;
    for (int i = 0; i < SIM_MAX_PROCESSES; i++)
        if (d->processes[i].used && (int)d->processes[i].instance == slot + 1) d->processes[i].used = 0;
    sim_post(state, device, slot, nvmlEventMigConfigChange, 0, now);
    d->instances[slot].used = 0;
    return 0;
}
