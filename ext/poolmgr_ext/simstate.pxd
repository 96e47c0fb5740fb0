# cython: language_level=3
from libc.stdint cimport int32_t, int64_t, uint16_t, uint32_t, uint64_t, uint8_t


cdef extern from "state.h":
    enum:
        SIM_UNKNOWN
        SIM_MAX_DEVICES, SIM_MAX_INSTANCES, SIM_MAX_PROFILES, SIM_MAX_PROCESSES, SIM_MAX_POINTS, SIM_MAX_LINKS
        SIM_MAX_FUNCTIONS, SIM_MAX_FIELD_IDS, SIM_TEXT, SIM_CPU_WORDS
        SIM_EVERY_DEVICE
        SIM_CONSTANT, SIM_RAMP, SIM_STEP, SIM_NOISE, SIM_SINE, SIM_REPLAY, SIM_ABSENT
        SIM_FAULT_XID, SIM_FAULT_ECC, SIM_FAULT_LOST, SIM_FAULT_FOUND, SIM_FAULT_REMOVED, SIM_FAULT_HANG
        SIM_FAULT_RESULT, SIM_FAULT_FIELD, SIM_FAULT_COST, SIM_FAULT_INIT, SIM_FAULT_NO_DEVICES
        SIM_FAULT_MIG_CREATE, SIM_FAULT_MIG_DESTROY, SIM_FAULT_MIG_MODE, SIM_FAULT_NUMBER, SIM_FAULT_NVLINK

    ctypedef struct SimWave:
        int32_t kind, repeat
        double a, b, period, noise, low, high
        int64_t from_ns, update_ns
        uint32_t first, count

    ctypedef struct SimPoint:
        double at, value, sum

    ctypedef struct SimProcess:
        uint32_t used, pid, kind, instance
        uint64_t start_ticks, bytes, maximum_bytes
        double growth
        int64_t from_ns, until_ns, gone_ns
        uint32_t sm, memory, encoder, decoder, hidden

    ctypedef struct SimProfile:
        char name[32]
        int32_t used, ordinal, profile_id, slices, memory_slices, maximum, sm_count, copy, decoder, encoder, jpeg, ofa
        int32_t starts
        int32_t start[8]
        int64_t memory_mb

    ctypedef struct SimInstance:
        int32_t used, profile, gpu_instance, compute_instance, start
        char uuid[96]

    ctypedef struct SimLink:
        int32_t peer, active

    ctypedef struct SimDevice:
        uint64_t cpus[16]
        uint8_t ancestor[64]
        SimLink links[36]
        SimProfile profiles[16]
        SimInstance instances[8]
        SimProcess processes[64]

    ctypedef struct SimFault:
        int32_t kind, device
        int64_t at_ns, a, b, c

    ctypedef struct SimState:
        int64_t device_count
        int64_t hang_until_ns
        uint64_t calls[256]
        uint32_t point_count
        SimPoint points[65536]
        SimDevice devices[64]

    int64_t sim_now() noexcept nogil
    int sim_create(const char *path, int devices, SimState **state) noexcept nogil
    int sim_open(const char *path, SimState **state) noexcept nogil
    void sim_close(SimState *state) noexcept nogil
    void sim_lock(SimState *state) noexcept nogil
    void sim_unlock(SimState *state) noexcept nogil
    double sim_series(const SimState *state, int device, int series, int64_t now) noexcept nogil
    double sim_series_total(const SimState *state, int device, int series, int64_t now) noexcept nogil
    void sim_write_wave(SimState *state, int device, int series, const SimWave *wave, int64_t now) noexcept nogil
    void sim_apply(SimState *state, const SimFault *fault, int64_t now) noexcept nogil
    void sim_apply_due(SimState *state, int64_t now) noexcept nogil
    int sim_plan(SimState *state, const SimFault *fault) noexcept nogil
    int sim_mig_create(SimState *state, int device, int profile, int64_t now) noexcept nogil
    int sim_mig_destroy(SimState *state, int device, int slot, int64_t now) noexcept nogil
    int sim_take(SimState *state, int device, const SimProcess *process) noexcept nogil
    int sim_release(SimState *state, int device, uint32_t pid, int64_t now) noexcept nogil
    void sim_sweep(SimState *state, int device, int64_t now) noexcept nogil
    uint64_t sim_process_bytes(const SimProcess *process, int64_t now) noexcept nogil
    uint64_t sim_start_ticks(uint32_t pid) noexcept nogil
    int sim_function_index(const char *name) noexcept nogil
    const char *sim_function_name(int index) noexcept nogil
    int sim_series_index(const char *name) noexcept nogil
    const char *sim_series_name(int index) noexcept nogil
    int64_t *sim_device_number(SimDevice *device, int index) noexcept nogil
    const char *sim_device_number_name(int index) noexcept nogil
    char *sim_device_text(SimDevice *device, int index) noexcept nogil
    const char *sim_device_text_name(int index) noexcept nogil
    int64_t *sim_system_number(SimState *state, int index) noexcept nogil
    const char *sim_system_number_name(int index) noexcept nogil
    char *sim_system_text(SimState *state, int index) noexcept nogil
    const char *sim_system_text_name(int index) noexcept nogil


ctypedef const char *(*Namer)(int index) noexcept nogil


cdef class State:
    cdef SimState *state
    cdef readonly str path

    cdef SimDevice *device(self, int index) except NULL
    cdef int put_text(self, char *where, str text) except -1
