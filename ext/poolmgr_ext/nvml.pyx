# cython: language_level=3, cdivision=True
"""The driver's library: opened at run time, every function optional, every call without the GIL."""

from libc.stdlib cimport free, malloc
from libc.string cimport memset
from posix.dlfcn cimport RTLD_LOCAL, RTLD_NOW, dlclose, dlerror, dlopen, dlsym

from poolmgr_ext.driver cimport (
    ID_BYTES, MOST_GPUS, NVML_ERROR_GPU_IS_LOST, NVML_ERROR_LIBRARY_NOT_FOUND,
    NVML_ERROR_NOT_FOUND, NVML_ERROR_NOT_SUPPORTED, NVML_ERROR_TIMEOUT, NVML_SUCCESS, NVML_VALUE_NOT_AVAILABLE_UINT,
    NVML_VALUE_NOT_AVAILABLE_ULL, list_processes, nvmlEventData_t, nvmlEventMigConfigChange,
    nvmlEventTypeClock, nvmlEventTypeDoubleBitEccError, nvmlEventTypePowerSourceChange, nvmlEventTypePState,
    nvmlEventTypeSingleBitEccError, nvmlEventTypeXidCriticalError, nvmlMemory_t, nvmlProcessInfo_t, nvmlReturn_t,
    nvml_table_load, process_call, read_memory)
from poolmgr_ext.facts cimport Facts, System, devices_of, gather_facts, gather_links, gather_system

import os
import time

NO_LIBRARY = "NO_LIBRARY"
NO_DRIVER = "NO_DRIVER"
DRIVER_MISMATCH = "DRIVER_MISMATCH"
NO_PERMISSION = "NO_PERMISSION"
GPU_LOST = "GPU_LOST"
NOT_SUPPORTED = "NOT_SUPPORTED"
TIMEOUT = "TIMEOUT"
NO_SUCH_DEVICE = "NO_SUCH_DEVICE"
FAILED = "FAILED"

# NVML's return codes by name (NVML API reference, nvmlReturn_t).
ERRORS = {
    0: "SUCCESS", 1: "UNINITIALIZED", 2: "INVALID_ARGUMENT", 3: "NOT_SUPPORTED", 4: "NO_PERMISSION",
    5: "ALREADY_INITIALIZED", 6: "NOT_FOUND", 7: "INSUFFICIENT_SIZE", 8: "INSUFFICIENT_POWER", 9: "DRIVER_NOT_LOADED",
    10: "TIMEOUT", 11: "IRQ_ISSUE", 12: "LIBRARY_NOT_FOUND", 13: "FUNCTION_NOT_FOUND", 14: "CORRUPTED_INFOROM",
    15: "GPU_IS_LOST", 16: "RESET_REQUIRED", 17: "OPERATING_SYSTEM", 18: "LIB_RM_VERSION_MISMATCH", 19: "IN_USE",
    20: "MEMORY", 21: "NO_DATA", 22: "VGPU_ECC_NOT_SUPPORTED", 23: "INSUFFICIENT_RESOURCES", 24: "FREQ_NOT_SUPPORTED",
    25: "ARGUMENT_VERSION_MISMATCH", 26: "DEPRECATED", 27: "NOT_READY", 28: "GPU_NOT_FOUND", 29: "INVALID_STATE",
    30: "RESET_TYPE_NOT_SUPPORTED", 999: "UNKNOWN",
}  # fmt: skip
_REASONS = {
    3: NOT_SUPPORTED, 4: NO_PERMISSION, 6: NO_SUCH_DEVICE, 9: NO_DRIVER, 10: TIMEOUT, 12: NO_LIBRARY,
    13: NOT_SUPPORTED, 15: GPU_LOST, 18: DRIVER_MISMATCH, 26: NOT_SUPPORTED, 28: NO_SUCH_DEVICE,
}  # fmt: skip
_EVENTS = {
    nvmlEventTypeXidCriticalError: "XID", nvmlEventTypeSingleBitEccError: "ECC_SINGLE",
    nvmlEventTypeDoubleBitEccError: "ECC_DOUBLE", nvmlEventTypePState: "PSTATE", nvmlEventTypeClock: "CLOCK",
    nvmlEventTypePowerSourceChange: "POWER_SOURCE", nvmlEventMigConfigChange: "MIG_CONFIG",
}  # fmt: skip
# Clocks and performance states change all the time, and the ring has them.
_WANTED = (nvmlEventTypeXidCriticalError | nvmlEventTypeSingleBitEccError | nvmlEventTypeDoubleBitEccError
           | nvmlEventTypePowerSourceChange | nvmlEventMigConfigChange)


class NvmlError(Exception):
    def __init__(self, code, call, detail=""):
        super().__init__(code, call, detail)
        self.code = code
        self.name = ERRORS.get(code, "UNKNOWN")
        self.call = call
        self.detail = detail
        self.reason = _REASONS.get(code, FAILED)

    def __str__(self):
        return f"{self.call}: {self.name} ({self.code})" + (f": {self.detail}" if self.detail else "")


cdef class Library:
    def __cinit__(self, path):
        self.path = os.fspath(path)
        self.handles = {}
        self.registered = set()
        encoded = os.fsencode(self.path)
        cdef const char *name = encoded
        with nogil:
            self.library = dlopen(name, RTLD_NOW | RTLD_LOCAL)
        if self.library == NULL:
            raise NvmlError(NVML_ERROR_LIBRARY_NOT_FOUND, "dlopen", dlerror().decode("utf-8", "replace"))
        nvml_table_load(&self.table, self.library)
        self.simulated = dlsym(self.library, b"poolmgr_sim_take") != NULL
        cdef nvmlReturn_t code
        with nogil:
            code = self.table.init()
        if code != NVML_SUCCESS:
            self._unload()
            raise NvmlError(code, "nvmlInit_v2")
        self.begun = True

    def __dealloc__(self):
        # A call of another thread may still be inside: the library stays until `close`, or for good.
        pass

    def _unload(self):
        if self.library != NULL:
            dlclose(self.library)
            self.library = NULL

    def close(self):
        """Call it when no other thread is in the library."""
        if not self.begun:
            return
        self.begun = False
        self.handles.clear()
        with nogil:
            if self.events != NULL:
                self.table.event_set_free(self.events)
                self.events = NULL
            self.table.shutdown()
        self._unload()

    cdef nvmlDevice_t handle(self, str device_id) except NULL:
        if not self.begun:
            raise NvmlError(1, "handle", "the library is closed")
        found = self.handles.get(device_id)
        if found is None:
            raise NvmlError(NVML_ERROR_NOT_FOUND, "handle", f"no discovery has shown {device_id}")
        return <nvmlDevice_t> <uintptr_t> found

    def discover(self):
        cdef Facts *facts
        cdef System system
        cdef unsigned int count = 0
        cdef nvmlReturn_t code
        if not self.begun:
            raise NvmlError(1, "discover", "the library is closed")
        with nogil:
            code = self.table.count(&count)
        if code != NVML_SUCCESS:
            raise NvmlError(code, "nvmlDeviceGetCount_v2")
        count = min(count, <unsigned int> MOST_GPUS)
        facts = <Facts *> malloc((count + 1) * sizeof(Facts))
        if facts == NULL:
            raise MemoryError
        try:
            with nogil:
                memset(facts, 0, (count + 1) * sizeof(Facts))
                gather_system(&self.table, &system)
                gather_facts(&self.table, count, facts)
                gather_links(&self.table, count, facts)
            found, handles = devices_of(facts, count, &system)
        finally:
            free(facts)
        self.handles = handles
        found["simulated"] = self.simulated
        return found

    def memory(self, str device_id):
        cdef nvmlDevice_t device = self.handle(device_id)
        cdef nvmlMemory_t found
        cdef nvmlReturn_t code
        with nogil:
            code = read_memory(&self.table, device, &found)
        if code != NVML_SUCCESS:
            raise NvmlError(code, "nvmlDeviceGetMemoryInfo_v2")
        return {"total": found.total, "free": found.free, "used": found.used}

    def processes(self, str device_id):
        cdef nvmlDevice_t device = self.handle(device_id)
        found, refused = {}, []
        for kind, number in (("compute", 0), ("mps", 2), ("graphics", 1)):
            code = self._list(<uintptr_t> device, number, kind, found)
            if code != NVML_SUCCESS:
                refused.append(code)
        if len(refused) == 3 or NVML_ERROR_GPU_IS_LOST in refused:
            raise NvmlError(refused[0], "nvmlDeviceGetComputeRunningProcesses_v3")
        return list(found.values())

    def _list(self, uintptr_t device, int number, str kind, dict into):
        """Adds what one of the three lists has; a process that is in several is what the first one calls it."""
        cdef nvmlProcessInfo_t *infos = NULL
        cdef unsigned int count = 0
        cdef nvmlReturn_t code
        cdef process_call call
        call = (self.table.compute_processes if number == 0 else
                self.table.graphics_processes if number == 1 else self.table.mps_processes)
        with nogil:
            code = list_processes(call, <nvmlDevice_t> device, &infos, &count)
        try:
            for i in range(count):
                used = infos[i].usedGpuMemory
                known = None if used == NVML_VALUE_NOT_AVAILABLE_ULL else used
                into.setdefault(infos[i].pid, {"pid": infos[i].pid, "used_bytes": known, "kind": kind})
        finally:
            free(infos)
        return code

    def listen(self):
        """Asks for the events of every GPU that the last discovery showed; ids of those that have none."""
        cdef nvmlReturn_t code = NVML_SUCCESS
        cdef nvmlDevice_t device
        cdef unsigned long long wanted = _WANTED
        cdef unsigned long long types
        if self.events == NULL:
            with nogil:
                code = self.table.event_set_create(&self.events)
            if code != NVML_SUCCESS:
                self.events = NULL
                raise NvmlError(code, "nvmlEventSetCreate")
        self.registered &= self.handles.keys()
        without = []
        for device_id in self.handles.keys() - self.registered:
            if device_id.startswith("MIG-"):  # an instance's events come with its GPU's
                continue
            device = self.handle(device_id)
            with nogil:
                types = 0
                code = self.table.event_types(device, &types)
                if code == NVML_SUCCESS:
                    types = types & wanted
                    code = self.table.event_register(device, types, self.events) if types else NVML_ERROR_NOT_SUPPORTED
            if code == NVML_SUCCESS:
                self.registered.add(device_id)
            else:
                without.append(device_id)
        return sorted(without)

    def wait_event(self, unsigned int timeout_ms):
        cdef nvmlEventData_t data
        cdef nvmlReturn_t code
        cdef char[ID_BYTES] uuid
        if self.events == NULL:
            self.listen()
        with nogil:
            memset(&data, 0, sizeof(data))
            memset(uuid, 0, ID_BYTES)
            code = self.table.event_wait(self.events, &data, timeout_ms)
            if code == NVML_SUCCESS and data.device != NULL:
                if self.table.uuid(data.device, uuid, ID_BYTES) != NVML_SUCCESS:
                    uuid[0] = 0
        if code == NVML_ERROR_TIMEOUT:
            return None
        if code != NVML_SUCCESS:
            raise NvmlError(code, "nvmlEventSetWait_v2")
        at_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        event = {"kind": _EVENTS.get(data.eventType, "OTHER"), "type": data.eventType, "at_ns": at_ns,
                 "device_id": (<bytes> uuid).decode("utf-8", "replace") or self._id_of(<uintptr_t> data.device)}
        if data.eventType == nvmlEventTypeXidCriticalError:
            event["code"] = data.eventData
        if data.gpuInstanceId != NVML_VALUE_NOT_AVAILABLE_UINT:
            event["gpu_instance"] = data.gpuInstanceId
            event["compute_instance"] = data.computeInstanceId
        return event

    def _id_of(self, uintptr_t device):
        """For a GPU that no longer tells who it is."""
        return next((each for each, address in self.handles.items() if address == device), None)
