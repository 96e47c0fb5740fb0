"""Stands in for nvidia-smi where the driver is simulated, by nvidia-ml-py: `--query-gpu=…` only.

FAKE_SMI_ADDS ("temperature.gpu=30") makes it lie, for the test that this is seen.
"""

import os
import sys

import pynvml as nv

MIB = 1 << 20


def ecc(kind, counter):
    return lambda h: nv.nvmlDeviceGetTotalEccErrors(h, kind, counter)


def switch(call):
    return lambda h: ("Disabled", "Enabled")[call(h)[0]]


def memory(h):
    return nv.nvmlDeviceGetMemoryInfo(h, nv.nvmlMemory_v2)


def memory_temperature(h):
    (found,) = nv.nvmlDeviceGetFieldValues(h, [nv.NVML_FI_DEV_MEMORY_TEMP])
    if found.nvmlReturn != nv.NVML_SUCCESS:
        raise nv.NVMLError(found.nvmlReturn)
    return found.value.uiVal


def clock(kind):
    return lambda h: nv.nvmlDeviceGetClockInfo(h, kind)


COLUMNS = {
    "uuid": nv.nvmlDeviceGetUUID,
    "name": nv.nvmlDeviceGetName,
    "pci.bus_id": lambda h: nv.nvmlDeviceGetPciInfo(h).busId,
    "index": nv.nvmlDeviceGetIndex,
    "driver_version": lambda h: nv.nvmlSystemGetDriverVersion(),
    "compute_cap": lambda h: ".".join(map(str, nv.nvmlDeviceGetCudaComputeCapability(h))),
    "memory.total": lambda h: memory(h).total // MIB,
    "memory.used": lambda h: memory(h).used // MIB,
    "memory.free": lambda h: memory(h).free // MIB,
    "enforced.power.limit": lambda h: f"{nv.nvmlDeviceGetEnforcedPowerLimit(h) / 1000:.2f}",
    "power.draw": lambda h: f"{nv.nvmlDeviceGetPowerUsage(h) / 1000:.2f}",
    "ecc.mode.current": switch(nv.nvmlDeviceGetEccMode),
    "mig.mode.current": switch(nv.nvmlDeviceGetMigMode),
    "temperature.gpu": lambda h: nv.nvmlDeviceGetTemperature(h, 0),
    "temperature.memory": memory_temperature,
    "utilization.gpu": lambda h: nv.nvmlDeviceGetUtilizationRates(h).gpu,
    "utilization.memory": lambda h: nv.nvmlDeviceGetUtilizationRates(h).memory,
    "clocks.gr": clock(0),
    "clocks.sm": clock(1),
    "clocks.mem": clock(2),
    "clocks.video": clock(3),
    "pstate": lambda h: f"P{nv.nvmlDeviceGetPerformanceState(h)}",
    "fan.speed": nv.nvmlDeviceGetFanSpeed,
    "ecc.errors.corrected.volatile.total": ecc(0, 0),
    "ecc.errors.uncorrected.volatile.total": ecc(1, 0),
    "ecc.errors.corrected.aggregate.total": ecc(0, 1),
    "ecc.errors.uncorrected.aggregate.total": ecc(1, 1),
}


def cell(column, handle, adds):
    try:
        found = COLUMNS[column](handle)
    except nv.NVMLError_NotSupported:
        return "[N/A]"
    return str(found if column not in adds else float(found) + adds[column])


def main():
    (wanted,) = (a.partition("=")[2].split(",") for a in sys.argv[1:] if a.startswith("--query-gpu="))
    lies = (part.split("=") for part in os.environ.get("FAKE_SMI_ADDS", "").split(",") if part)
    adds = {column: float(number) for column, number in lies}
    nv.nvmlInit()
    for index in range(nv.nvmlDeviceGetCount()):
        handle = nv.nvmlDeviceGetHandleByIndex(index)
        print(", ".join(cell(column, handle, adds) for column in wanted))
    nv.nvmlShutdown()


if __name__ == "__main__":
    main()
