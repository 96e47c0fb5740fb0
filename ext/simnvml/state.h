/* The state of a simulated host: one memory-mapped file, read by the library in every process that uses it and changed
 * live by poolmgr_ext.simstate. Nothing else knows the layout. Times are CLOCK_BOOTTIME nanoseconds.
 *
 * A number that is SIM_UNKNOWN is one that this device does not tell: the call answers NVML_ERROR_NOT_SUPPORTED.
 */
#ifndef POOLMGR_SIM_STATE_H
#define POOLMGR_SIM_STATE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

#define SIM_MAGIC 0x4c4d564e4d495350ULL
#define SIM_VERSION 1
#define SIM_UNKNOWN (-1LL)

#define SIM_MAX_DEVICES 64
#define SIM_MAX_INSTANCES 8
#define SIM_MAX_PROFILES 16
#define SIM_MAX_PROCESSES 64 /* on a device */
#define SIM_MAX_EVENTS 256   /* the newest; a set that waits for longer loses the oldest, as with the driver */
#define SIM_MAX_FAULTS 256   /* planned ones */
#define SIM_MAX_POINTS 65536 /* of all replayed traces */
#define SIM_MAX_LINKS 36
#define SIM_MAX_FUNCTIONS 256
#define SIM_MAX_FIELD_IDS 320
#define SIM_TEXT 96
#define SIM_CPU_WORDS 16

/* What a waveform can drive; units beside it. */
#define SIM_SERIES(X)                                            \
    X(temperature)        /* degrees Celsius */                  \
    X(memory_temperature) /* degrees Celsius */                  \
    X(power)              /* watts */                            \
    X(utilization)        /* percent */                          \
    X(memory_utilization) /* percent */                          \
    X(encoder)            /* percent */                          \
    X(decoder)            /* percent */                          \
    X(jpeg)               /* percent */                          \
    X(ofa)                /* percent */                          \
    X(clock_graphics)     /* MHz */                              \
    X(clock_sm)           /* MHz */                              \
    X(clock_memory)       /* MHz */                              \
    X(clock_video)        /* MHz */                              \
    X(fan)                /* percent */                          \
    X(pcie_tx)            /* KB a second */                      \
    X(pcie_rx)            /* KB a second */                      \
    X(nvlink_tx)          /* KiB a second, all links together */ \
    X(nvlink_rx)          /* KiB a second, all links together */ \
    X(memory_used)        /* bytes beside those of processes */  \
    X(bar1_used)          /* bytes */

#define SIM_SYSTEM_NUMBERS(X)                                 \
    X(device_count)                                           \
    X(init_result)   /* what nvmlInit returns */              \
    X(no_devices)    /* 1: the driver runs and shows none */  \
    X(hang_until_ns) /* every call blocks until then */       \
    X(hang_from_ns)                                           \
    X(cost_ns) /* of each call that has no cost of its own */ \
    X(cuda_version)

#define SIM_SYSTEM_TEXTS(X) X(scenario) X(driver_version) X(nvml_version) X(driver_branch)

/* clang-format off */
#define SIM_DEVICE_NUMBERS(X)                                                                                    \
    X(present) X(lost) X(hang_from_ns) X(hang_until_ns) X(cost_ns) X(release_delay_ns) X(brand) X(architecture)  \
    X(capability_major) X(capability_minor) X(cores) X(sm_count) X(bus_width) X(pci_domain) X(pci_bus)           \
    X(pci_device) X(pci_device_id) X(pci_subsystem_id) X(minor_number) X(module_id) X(board_id) X(numa_node)     \
    X(memory_total) X(memory_reserved) X(bar1_total) X(power_limit_mw) X(power_default_mw) X(power_minimum_mw)   \
    X(power_maximum_mw) X(threshold_shutdown) X(threshold_slowdown) X(threshold_memory) X(threshold_gpu)         \
    X(clock_max_graphics) X(clock_max_memory) X(clock_max_video) X(clock_application) X(fan_count) X(pstate)     \
    X(throttle) X(recovery_action) X(energy_mj) X(ecc_current) X(ecc_pending) X(retired_single)                  \
    X(retired_double) X(retired_pending) X(remapped_corrected) X(remapped_uncorrected) X(remap_pending)          \
    X(remap_failure) X(pcie_generation) X(pcie_maximum_generation) X(pcie_width) X(pcie_replays) X(nvlink_count) \
    X(nvlink_version) X(nvlink_mbps) X(fabric) X(persistence) X(compute_mode) X(display_mode) X(display_active)  \
    X(mig_mode) X(mig_pending) X(mig_maximum) X(mig_serial)
/* clang-format on */

#define SIM_DEVICE_TEXTS(X) X(name) X(uuid) X(serial) X(part_number) X(vbios)

#define SIM_ENUM(name) SIM_SERIES_##name,
#define SIM_NUMBER(name) int64_t name;
#define SIM_CHARS(name) char name[SIM_TEXT];
enum { SIM_SERIES(SIM_ENUM) SIM_SERIES_COUNT };

enum { SIM_CONSTANT = 0, SIM_RAMP, SIM_STEP, SIM_NOISE, SIM_SINE, SIM_REPLAY, SIM_ABSENT };

/* value(t), t in seconds since from_ns:
 * CONSTANT a; RAMP a to b within `period`, then b; STEP a, then b from `period` on (`repeat`: a and b in turn);
 * NOISE a, evenly +/- b; SINE a +/- b in `period`; REPLAY of `count` points that hold until the next, over and over.
 * `noise` is added to each kind. Clamped to [low, high]. The driver renews the value every update_ns. */
typedef struct {
    int32_t kind, repeat;
    double a, b, period, noise, low, high;
    int64_t from_ns, update_ns;
    uint32_t first, count;
} SimWave;

/* `sum`: integral of the trace up to this point. */
typedef struct {
    double at, value, sum;
} SimPoint;

/* `start_ticks` is field 22 of /proc/<pid>/stat: with the pid, one process for ever. 0: an invented process. */
typedef struct {
    uint32_t used, pid, kind, instance; /* kind: 0 compute, 1 graphics, 2 MPS; instance: slot + 1, or 0 */
    uint64_t start_ticks, bytes, maximum_bytes;
    double growth; /* bytes a second */
    int64_t from_ns, until_ns, gone_ns;
    uint32_t sm, memory, encoder, decoder;
    uint32_t hidden; /* the driver does not tell how much it holds */
} SimProcess;

/* `profile_id` is what calls report; `ordinal` the NVML_GPU_INSTANCE_PROFILE_ number. */
typedef struct {
    char name[32];
    int32_t used, ordinal, profile_id, slices, memory_slices, maximum, sm_count, copy, decoder, encoder, jpeg, ofa;
    int32_t starts, start[8]; /* possible placements, in memory slices */
    int64_t memory_mb;
} SimProfile;

typedef struct {
    int32_t used, profile, gpu_instance, compute_instance, start;
    char uuid[SIM_TEXT];
} SimInstance;

enum { SIM_PEER_NONE = -1, SIM_PEER_SWITCH = -2 };

typedef struct {
    int32_t peer, active;
    uint64_t errors[5];
} SimLink;

typedef struct {
    SIM_DEVICE_NUMBERS(SIM_NUMBER)
    SIM_DEVICE_TEXTS(SIM_CHARS)
    _Atomic uint32_t sequence; /* odd while a waveform is being written */
    SimWave waves[SIM_SERIES_COUNT];
    double totals[SIM_SERIES_COUNT]; /* integrals up to total_ns: what counters count stays when a waveform changes */
    int64_t total_ns[SIM_SERIES_COUNT];
    uint64_t ecc[2][2][8]; /* type, counter, location */
    uint64_t cpus[SIM_CPU_WORDS];
    uint8_t ancestor[SIM_MAX_DEVICES]; /* nvmlGpuTopologyLevel_t */
    SimLink links[SIM_MAX_LINKS];
    SimProfile profiles[SIM_MAX_PROFILES];
    SimInstance instances[SIM_MAX_INSTANCES];
    SimProcess processes[SIM_MAX_PROCESSES];
    uint16_t results[SIM_MAX_FUNCTIONS];       /* a code that a function has to return, or 0 */
    uint16_t field_results[SIM_MAX_FIELD_IDS]; /* the same for nvmlDeviceGetFieldValues */
} SimDevice;

typedef struct {
    uint64_t number, type, data;
    int64_t at_ns;
    uint32_t device, gpu_instance, compute_instance;
} SimEvent;

enum {
    SIM_FAULT_XID = 1, /* a: code, b: recovery action or SIM_UNKNOWN */
    SIM_FAULT_ECC,     /* a: type (0 corrected, 1 uncorrected), b: count, c: location */
    SIM_FAULT_LOST,
    SIM_FAULT_FOUND,
    SIM_FAULT_REMOVED,     /* gone from the list of devices */
    SIM_FAULT_HANG,        /* a: nanoseconds */
    SIM_FAULT_RESULT,      /* a: function, or SIM_UNKNOWN for each; b: code */
    SIM_FAULT_FIELD,       /* a: field id, b: code */
    SIM_FAULT_COST,        /* a: function, or SIM_UNKNOWN for each; b: nanoseconds */
    SIM_FAULT_INIT,        /* a: code */
    SIM_FAULT_NO_DEVICES,  /* a: 1 or 0 */
    SIM_FAULT_MIG_CREATE,  /* a: index of the profile */
    SIM_FAULT_MIG_DESTROY, /* a: slot, or SIM_UNKNOWN for each */
    SIM_FAULT_MIG_MODE,    /* a: 1 or 0 */
    SIM_FAULT_NUMBER,      /* a: index among the device's numbers, b: value */
    SIM_FAULT_NVLINK       /* a: link, b: kind of error, c: count; b SIM_UNKNOWN: the link goes down */
};

enum { SIM_EVERY_DEVICE = -1 };

typedef struct {
    int32_t kind, device; /* device may be SIM_EVERY_DEVICE */
    int64_t at_ns, a, b, c;
} SimFault;

typedef struct {
    uint64_t magic;
    uint32_t version, size;
    pthread_mutex_t lock; /* shared and robust: of tables, held for microseconds */
    SIM_SYSTEM_NUMBERS(SIM_NUMBER)
    SIM_SYSTEM_TEXTS(SIM_CHARS)
    _Atomic uint64_t calls[SIM_MAX_FUNCTIONS];
    int64_t costs_ns[SIM_MAX_FUNCTIONS]; /* SIM_UNKNOWN: cost_ns */
    _Atomic int64_t next_fault_ns;
    SimFault faults[SIM_MAX_FAULTS]; /* kind 0: free */
    _Atomic uint32_t event_futex;
    uint64_t event_count;
    SimEvent events[SIM_MAX_EVENTS];
    uint32_t point_count;
    SimPoint points[SIM_MAX_POINTS];
    SimDevice devices[SIM_MAX_DEVICES];
} SimState;

/* world.c: the file. Each returns 0, or a negated errno; -EPROTO where the file is not a state of this version. */
int64_t sim_now(void);
int sim_create(const char *path, int devices, SimState **state);
int sim_open(const char *path, SimState **state);
void sim_close(SimState *state);
void sim_lock(SimState *state);
void sim_unlock(SimState *state);

/* wave.c */
double sim_wave_value(const SimState *state, const SimWave *wave, uint32_t seed, int64_t now);
double sim_wave_integral(const SimState *state, const SimWave *wave, int64_t from, int64_t until);
int sim_read_wave(const SimDevice *device, int series, SimWave *copy);
double sim_series(const SimState *state, int device, int series, int64_t now);       /* NaN: not told */
double sim_series_total(const SimState *state, int device, int series, int64_t now); /* units times seconds */
void sim_write_wave(SimState *state, int device, int series, const SimWave *wave, int64_t now);

/* faults.c. Those that change tables are called with the lock held. */
void sim_apply(SimState *state, const SimFault *fault, int64_t now);
int sim_plan(SimState *state, const SimFault *fault);
void sim_apply_due(SimState *state, int64_t now);
void sim_post(SimState *state, int device, int instance, uint64_t type, uint64_t data, int64_t now);
int sim_mig_create(SimState *state, int device, int profile, int64_t now); /* the slot; -ENOSPC, -EINVAL */
int sim_mig_destroy(SimState *state, int device, int slot, int64_t now);
int sim_mig_room(const SimDevice *device, int profile); /* how many more fit */

/* processes.c; with the lock held. */
int sim_take(SimState *state, int device, const SimProcess *process);
int sim_release(SimState *state, int device, uint32_t pid, int64_t now);
void sim_sweep(SimState *state, int device, int64_t now);           /* forgets processes that are gone */
uint64_t sim_process_bytes(const SimProcess *process, int64_t now); /* 0 outside of its time */
uint64_t sim_start_ticks(uint32_t pid);                             /* 0: there is no such process */

/* names.c: the tables by name. An index, or -1. */
int sim_function_index(const char *name);
const char *sim_function_name(int index);
int sim_series_index(const char *name);
const char *sim_series_name(int index);
int64_t *sim_device_number(SimDevice *device, int index);
const char *sim_device_number_name(int index);
char *sim_device_text(SimDevice *device, int index);
const char *sim_device_text_name(int index);
int64_t *sim_system_number(SimState *state, int index);
const char *sim_system_number_name(int index);
char *sim_system_text(SimState *state, int index);
const char *sim_system_text_name(int index);
#endif
