# cython: language_level=3
"""The state file of the simulated driver (ext/simnvml/state.h): the only Python that knows its layout.

Devices are numbered from 0. Times are CLOCK_BOOTTIME nanoseconds. A number of None is one that is not told.
Every method may raise KeyError (no such name), IndexError (no such device, slot, link) and ValueError (out of range).
"""

from libc.math cimport isnan
from libc.string cimport memcpy, memset

import os

FAULTS = {
    "xid": SIM_FAULT_XID, "ecc": SIM_FAULT_ECC, "lost": SIM_FAULT_LOST, "found": SIM_FAULT_FOUND,
    "removed": SIM_FAULT_REMOVED, "hang": SIM_FAULT_HANG, "result": SIM_FAULT_RESULT, "field": SIM_FAULT_FIELD,
    "cost": SIM_FAULT_COST, "init": SIM_FAULT_INIT, "no-devices": SIM_FAULT_NO_DEVICES,
    "mig-create": SIM_FAULT_MIG_CREATE, "mig-destroy": SIM_FAULT_MIG_DESTROY, "mig-mode": SIM_FAULT_MIG_MODE,
    "number": SIM_FAULT_NUMBER, "nvlink": SIM_FAULT_NVLINK,
}
WAVES = {
    "constant": SIM_CONSTANT, "ramp": SIM_RAMP, "step": SIM_STEP, "noise": SIM_NOISE, "sine": SIM_SINE,
    "replay": SIM_REPLAY, "absent": SIM_ABSENT,
}
EVERY_DEVICE = SIM_EVERY_DEVICE
MAX_DEVICES = SIM_MAX_DEVICES
MAX_FIELD_IDS = SIM_MAX_FIELD_IDS
PEER_SWITCH = -2


cdef tuple names(Namer namer):
    found = []
    while namer(len(found)) != NULL:
        found.append(namer(len(found)).decode())
    return tuple(found)


FUNCTIONS = names(sim_function_name)
SERIES = names(sim_series_name)
DEVICE_NUMBERS = names(sim_device_number_name)
DEVICE_TEXTS = names(sim_device_text_name)
SYSTEM_NUMBERS = names(sim_system_number_name)
SYSTEM_TEXTS = names(sim_system_text_name)

cdef dict function_at = {name: i for i, name in enumerate(FUNCTIONS)}
cdef dict series_at = {name: i for i, name in enumerate(SERIES)}
cdef dict device_number_at = {name: i for i, name in enumerate(DEVICE_NUMBERS)}
cdef dict device_text_at = {name: i for i, name in enumerate(DEVICE_TEXTS)}
cdef dict system_number_at = {name: i for i, name in enumerate(SYSTEM_NUMBERS)}
cdef dict system_text_at = {name: i for i, name in enumerate(SYSTEM_TEXTS)}


def now() -> int:
    """CLOCK_BOOTTIME, nanoseconds."""
    return sim_now()


def start_ticks(pid: int) -> int:
    """Field 22 of /proc/<pid>/stat; 0 where there is no such process."""
    return sim_start_ticks(pid)


cdef object told(int64_t value):
    return None if value == SIM_UNKNOWN else value


cdef int64_t number(object value) except? -2:
    return SIM_UNKNOWN if value is None else value


cdef int checked(int code, str what) except -1:
    if code < 0:
        raise OSError(-code, f"{what}: {os.strerror(-code)}")
    return code


cdef class State:
    """A state file, mapped. OSError where it cannot be made or opened; EPROTO: not a state of this version."""

    def __cinit__(self, path, devices=None):
        self.state = NULL
        self.path = os.fspath(path)
        native = os.fsencode(path)
        if devices is None:
            checked(sim_open(native, &self.state), self.path)
        else:
            checked(sim_create(native, devices, &self.state), self.path)

    def __dealloc__(self):
        if self.state != NULL:
            sim_close(self.state)

    cdef SimDevice *device(self, int index) except NULL:
        if index < 0 or index >= self.state.device_count:
            raise IndexError(f"there is no device {index}, of {self.state.device_count}")
        return &self.state.devices[index]

    cdef int put_text(self, char *where, str text) except -1:
        native = text.encode()
        if len(native) >= SIM_TEXT:
            raise ValueError(f"{text!r} is longer than {SIM_TEXT - 1} bytes")
        memset(where, 0, SIM_TEXT)
        memcpy(where, <char *> native, len(native))
        return 0

    @property
    def device_count(self) -> int:
        return self.state.device_count

    def system(self, name: str):
        if name in system_text_at:
            return sim_system_text(self.state, system_text_at[name]).decode()
        return told(sim_system_number(self.state, system_number_at[name])[0])

    def set_system(self, name: str, value) -> None:
        if name in system_text_at:
            self.put_text(sim_system_text(self.state, system_text_at[name]), value)
        else:
            sim_system_number(self.state, system_number_at[name])[0] = number(value)

    def get(self, device: int, name: str):
        cdef SimDevice *of = self.device(device)
        if name in device_text_at:
            return sim_device_text(of, device_text_at[name]).decode()
        return told(sim_device_number(of, device_number_at[name])[0])

    def set(self, device: int, name: str, value) -> None:
        cdef SimDevice *of = self.device(device)
        if name in device_text_at:
            self.put_text(sim_device_text(of, device_text_at[name]), value)
        else:
            sim_device_number(of, device_number_at[name])[0] = number(value)

    def series(self, device: int, name: str, at_ns: int | None = None) -> float | None:
        self.device(device)
        value = sim_series(self.state, device, series_at[name], sim_now() if at_ns is None else at_ns)
        return None if isnan(value) else value

    def total(self, device: int, name: str, at_ns: int | None = None) -> float:
        self.device(device)
        return sim_series_total(self.state, device, series_at[name], sim_now() if at_ns is None else at_ns)

    def set_wave(self, device: int, name: str, kind: str, *, a=0.0, b=0.0, period=0.0, noise=0.0, low=-1e18, high=1e18,
                 repeat=False, from_ns=None, update_ns=0, points=()) -> None:
        cdef SimWave wave
        self.device(device)
        memset(&wave, 0, sizeof(wave))
        wave.kind, wave.repeat = WAVES[kind], repeat
        wave.a, wave.b, wave.period, wave.noise, wave.low, wave.high = a, b, period, noise, low, high
        wave.from_ns = sim_now() if from_ns is None else from_ns
        wave.update_ns = update_ns
        series = series_at[name]
        sim_lock(self.state)
        try:
            wave.first, wave.count = self.add_points(points)
            sim_write_wave(self.state, device, series, &wave, sim_now())
        finally:
            sim_unlock(self.state)

    def add_points(self, points) -> tuple[int, int]:
        """Appends a trace of (seconds, value), rising. What an earlier trace used is not given back."""
        cdef SimPoint *point
        first = self.state.point_count
        if first + len(points) > SIM_MAX_POINTS:
            raise ValueError(f"the state holds at most {SIM_MAX_POINTS} points of traces")
        total = 0.0
        before = None
        for i, (at, value) in enumerate(points):
            if before is not None:
                total += before[1] * (at - before[0])
            point = &self.state.points[first + i]
            point.at, point.value, point.sum = at, value, total
            before = (at, value)
        self.state.point_count += len(points)
        return first, len(points)

    def fault(self, kind: str, device: int = EVERY_DEVICE, a=None, b=None, c=None, at_ns: int | None = None) -> None:
        """Now, or planned for `at_ns`: then it happens in whoever looks next. OSError ENOSPC: too many are planned."""
        cdef SimFault fault
        if device != EVERY_DEVICE:
            self.device(device)
        fault.kind, fault.device, fault.at_ns = FAULTS[kind], device, at_ns or 0
        fault.a, fault.b, fault.c = number(a), number(b), number(c)
        sim_lock(self.state)
        if at_ns is None:
            sim_apply(self.state, &fault, sim_now())
            code = 0
        else:
            code = sim_plan(self.state, &fault)
        sim_unlock(self.state)
        checked(code, "planned faults")

    def apply_due(self) -> None:
        sim_apply_due(self.state, sim_now())

    def function(self, name: str) -> int:
        return function_at[name]

    def device_number(self, name: str) -> int:
        return device_number_at[name]

    def calls(self) -> dict[str, int]:
        return {name: self.state.calls[i] for i, name in enumerate(FUNCTIONS) if self.state.calls[i]}

    def reset_calls(self) -> None:
        for i in range(SIM_MAX_FUNCTIONS):
            self.state.calls[i] = 0

    def take(self, device: int, pid: int, held: int, *, instance=None, kind=0, ticks=0, from_ns=None, until_ns=None,
             growth=0.0, maximum=0, sm=0, memory=0, encoder=0, decoder=0, hidden=False) -> None:
        cdef SimProcess process
        self.device(device)
        memset(&process, 0, sizeof(process))
        process.pid, process.kind, process.instance = pid, kind, 0 if instance is None else instance + 1
        process.start_ticks, process.bytes, process.maximum_bytes, process.growth = ticks, held, maximum, growth
        process.from_ns = sim_now() if from_ns is None else from_ns
        process.until_ns = 0x7fffffffffffffff if until_ns is None else until_ns
        process.sm, process.memory, process.encoder, process.decoder = sm, memory, encoder, decoder
        process.hidden = hidden
        sim_lock(self.state)
        code = sim_take(self.state, device, &process)
        sim_unlock(self.state)
        checked(code, f"processes of device {device}")

    def release(self, device: int, pid: int) -> None:
        self.device(device)
        sim_lock(self.state)
        code = sim_release(self.state, device, pid, sim_now())
        sim_unlock(self.state)
        checked(code, f"process {pid} on device {device}")

    def processes(self, device: int) -> list[dict]:
        cdef SimDevice *of = self.device(device)
        cdef SimProcess process
        at = sim_now()
        found = []
        sim_lock(self.state)
        sim_sweep(self.state, device, at)
        for i in range(SIM_MAX_PROCESSES):
            process = of.processes[i]
            if process.used and process.from_ns <= at < process.until_ns:
                found.append({"pid": process.pid, "bytes": sim_process_bytes(&process, at), "kind": process.kind,
                              "instance": process.instance - 1 if process.instance else None,
                              "gone": bool(process.gone_ns)})
        sim_unlock(self.state)
        return found

    def set_profile(self, device: int, index: int, name: str, starts, **numbers) -> None:
        cdef SimProfile profile
        cdef SimDevice *of = self.device(device)
        if not 0 <= index < SIM_MAX_PROFILES or len(starts) > 8:
            raise ValueError(f"profile {name}: too many profiles or placements")
        memset(&profile, 0, sizeof(profile))
        native = name.encode()[:31]
        memcpy(profile.name, <char *> native, len(native))
        profile.used, profile.starts = 1, len(starts)
        for i, start in enumerate(starts):
            profile.start[i] = start
        profile.ordinal, profile.profile_id = numbers["ordinal"], numbers["profile_id"]
        profile.slices, profile.memory_slices = numbers["slices"], numbers["memory_slices"]
        profile.maximum = numbers["maximum"]
        profile.sm_count, profile.memory_mb = numbers["sm_count"], numbers["memory_mb"]
        profile.copy, profile.decoder, profile.encoder = numbers["copy"], numbers["decoder"], numbers["encoder"]
        profile.jpeg, profile.ofa = numbers["jpeg"], numbers["ofa"]
        of.profiles[index] = profile

    def profiles(self, device: int) -> list[str]:
        cdef SimDevice *of = self.device(device)
        return [of.profiles[i].name.decode() for i in range(SIM_MAX_PROFILES) if of.profiles[i].used]

    def mig_create(self, device: int, profile: int) -> int:
        """The slot. OSError ENOSPC: there is no room; EINVAL: MIG is off, or no such profile."""
        self.device(device)
        sim_lock(self.state)
        code = sim_mig_create(self.state, device, profile, sim_now())
        sim_unlock(self.state)
        return checked(code, f"a MIG instance on device {device}")

    def mig_destroy(self, device: int, slot: int) -> None:
        self.device(device)
        sim_lock(self.state)
        code = sim_mig_destroy(self.state, device, slot, sim_now())
        sim_unlock(self.state)
        checked(code, f"MIG instance {slot} of device {device}")

    def instances(self, device: int) -> list[dict]:
        cdef SimDevice *of = self.device(device)
        return [
            {"slot": i, "uuid": of.instances[i].uuid.decode(),
             "profile": of.profiles[of.instances[i].profile].name.decode(),
             "gpu_instance": of.instances[i].gpu_instance, "start": of.instances[i].start}
            for i in range(SIM_MAX_INSTANCES) if of.instances[i].used
        ]

    def set_link(self, device: int, link: int, peer: int, active: bool = True) -> None:
        cdef SimDevice *of = self.device(device)
        if not 0 <= link < SIM_MAX_LINKS:
            raise IndexError(f"there is no NVLink {link}, of {SIM_MAX_LINKS}")
        of.links[link].peer, of.links[link].active = peer, active

    def set_ancestor(self, device: int, other: int, level: int) -> None:
        cdef SimDevice *of = self.device(device)
        self.device(other)
        of.ancestor[other] = level

    def set_cpus(self, device: int, cpus) -> None:
        cdef SimDevice *of = self.device(device)
        for word in range(SIM_CPU_WORDS):
            of.cpus[word] = sum(1 << cpu % 64 for cpu in cpus if cpu // 64 == word)
