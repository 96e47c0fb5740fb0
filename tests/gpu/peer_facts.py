"""What nvidia-ml-py tells of a device, under the names that ours have. What it refuses is absent."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

MEMORY_NODES = 64
NOT_AVAILABLE = (2**32 - 1, 2**64 - 1)
RECOVERY = ("NONE", "RESET", "REBOOT", "DRAIN_P2P", "DRAIN_AND_RESET")
REFUSED = ("NotSupported", "FunctionNotFound", "NoPermission", "InvalidArgument", "NotFound", "Deprecated")


def ask(nv: ModuleType, call: str, *arguments: Any) -> Any:
    """None where the driver says that this device has no such thing."""
    refusals = tuple(getattr(nv, f"NVMLError_{name}") for name in REFUSED if hasattr(nv, f"NVMLError_{name}"))
    try:
        found = getattr(nv, call)(*arguments)
    except refusals:
        return None
    return None if found in NOT_AVAILABLE else found


def text(found: Any) -> Any:
    return found.decode() if isinstance(found, bytes) else found


def field(nv: ModuleType, handle: Any, number: int) -> float | None:
    answer = ask(nv, "nvmlDeviceGetFieldValues", handle, [number])
    if answer is None or answer[0].nvmlReturn != nv.NVML_SUCCESS:
        return None
    (found,) = answer
    kinds = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")
    return float(getattr(found.value, kinds[found.valueType]))


def identity(nv: ModuleType, handle: Any) -> dict[str, Any]:
    capability = ask(nv, "nvmlDeviceGetCudaComputeCapability", handle)
    memory = ask(nv, "nvmlDeviceGetMemoryInfo", handle, nv.nvmlMemory_v2)
    return {
        "device_id": text(nv.nvmlDeviceGetUUID(handle)),
        "name": text(nv.nvmlDeviceGetName(handle)),
        "compute_capability": list(capability) if capability else None,
        "vram_total_bytes": memory.total if memory else None,
    }


def gpu(nv: ModuleType, handle: Any) -> dict[str, Any]:
    """Every static fact of a whole GPU but its links."""
    pci = ask(nv, "nvmlDeviceGetPciInfo", handle)
    mig, ecc = ask(nv, "nvmlDeviceGetMigMode", handle), ask(nv, "nvmlDeviceGetEccMode", handle)
    limit = ask(nv, "nvmlDeviceGetEnforcedPowerLimit", handle)
    bits = ask(nv, "nvmlDeviceGetMemoryBusWidth", handle)
    clock = ask(nv, "nvmlDeviceGetMaxClockInfo", handle, nv.NVML_CLOCK_MEM)
    action = field(nv, handle, nv.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION)
    threshold = "nvmlDeviceGetTemperatureThreshold"
    slowdown = ask(nv, threshold, handle, nv.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN)
    shutdown = ask(nv, threshold, handle, nv.NVML_TEMPERATURE_THRESHOLD_SHUTDOWN)
    return identity(nv, handle) | {
        "index": nv.nvmlDeviceGetIndex(handle),
        "pci_bus_id": text(pci.busId) if pci else None,
        "numa_node": numa_node(nv, handle),
        "mig_mode": mig[0] == nv.NVML_DEVICE_MIG_ENABLE if mig else None,
        "ecc_mode": ecc[0] == nv.NVML_FEATURE_ENABLED if ecc else None,
        "power_limit_watts": limit / 1000 if limit else None,
        "slowdown_celsius": float(slowdown) if slowdown else None,
        "shutdown_celsius": float(shutdown) if shutdown else None,
        "memory_bandwidth_bytes": bits / 8 * clock * 1e6 * 2 if bits and clock else None,
        "recovery_action": RECOVERY[int(action)] if action is not None else None,
    }


def numa_node(nv: ModuleType, handle: Any) -> int | None:
    words = ask(nv, "nvmlDeviceGetMemoryAffinity", handle, MEMORY_NODES, nv.NVML_AFFINITY_SCOPE_NODE)
    for place, word in enumerate(words or ()):
        if word:
            return 64 * place + (int(word) & -int(word)).bit_length() - 1
    return None


def system(nv: ModuleType) -> dict[str, Any]:
    cuda = nv.nvmlSystemGetCudaDriverVersion_v2()
    return {
        "driver_version": text(nv.nvmlSystemGetDriverVersion()),
        "nvml_version": text(nv.nvmlSystemGetNVMLVersion()),
        "cuda_version": f"{cuda // 1000}.{cuda % 1000 // 10}",
    }


def active_links(nv: ModuleType, handle: Any) -> int:
    """NVLinks that are up."""
    count = 0
    for link in range(nv.NVML_NVLINK_MAX_LINKS):
        state = ask(nv, "nvmlDeviceGetNvLinkState", handle, link)
        if state is None:
            break
        count += state
    return count


def _scaled(call: str, factor: float, *arguments: Any) -> Callable[[ModuleType, Any], float | None]:
    def asked(nv: ModuleType, handle: Any) -> float | None:
        found = ask(nv, call, handle, *arguments)
        return None if found is None else found * factor

    return asked


def _part(call: str, part: int | str) -> Callable[[ModuleType, Any], float | None]:
    def asked(nv: ModuleType, handle: Any) -> float | None:
        found = ask(nv, call, handle)
        return None if found is None else float(found[part] if isinstance(part, int) else getattr(found, part))

    return asked


def _field(number: str) -> Callable[[ModuleType, Any], float | None]:
    return lambda nv, handle: field(nv, handle, getattr(nv, number))


def _ecc(kind: str, counter: str) -> Callable[[ModuleType, Any], float | None]:
    return lambda nv, handle: ask(nv, "nvmlDeviceGetTotalEccErrors", handle, getattr(nv, kind), getattr(nv, counter))


def _retired(cause: str) -> Callable[[ModuleType, Any], float | None]:
    def asked(nv: ModuleType, handle: Any) -> float | None:
        pages = ask(nv, "nvmlDeviceGetRetiredPages", handle, getattr(nv, cause))
        return None if pages is None else len(pages)

    return asked


_CORRECTED, _UNCORRECTED = "NVML_MEMORY_ERROR_TYPE_CORRECTED", "NVML_MEMORY_ERROR_TYPE_UNCORRECTED"
# What does not move by itself, so that two readers have to agree to the digit.
STEADY: dict[str, Callable[[ModuleType, Any], float | None]] = {
    "power_limit": _scaled("nvmlDeviceGetEnforcedPowerLimit", 1e-3),
    "pcie_replays": _scaled("nvmlDeviceGetPcieReplayCounter", 1),
    "ecc_corrected_volatile": _ecc(_CORRECTED, "NVML_VOLATILE_ECC"),
    "ecc_uncorrected_volatile": _ecc(_UNCORRECTED, "NVML_VOLATILE_ECC"),
    "ecc_corrected_aggregate": _ecc(_CORRECTED, "NVML_AGGREGATE_ECC"),
    "ecc_uncorrected_aggregate": _ecc(_UNCORRECTED, "NVML_AGGREGATE_ECC"),
    "retired_pages_single": _retired("NVML_PAGE_RETIREMENT_CAUSE_MULTIPLE_SINGLE_BIT_ECC_ERRORS"),
    "retired_pages_double": _retired("NVML_PAGE_RETIREMENT_CAUSE_DOUBLE_BIT_ECC_ERROR"),
    "retired_pages_pending": _scaled("nvmlDeviceGetRetiredPagesPendingStatus", 1),
    "remapped_rows_corrected": _part("nvmlDeviceGetRemappedRows", 0),
    "remapped_rows_uncorrected": _part("nvmlDeviceGetRemappedRows", 1),
    "remapped_rows_pending": _part("nvmlDeviceGetRemappedRows", 2),
    "remapped_rows_failed": _part("nvmlDeviceGetRemappedRows", 3),
    "memory_total": lambda nv, handle: identity(nv, handle)["vram_total_bytes"],
}
# What moves: only whether it is told at all has to be the same.
MOVING: dict[str, Callable[[ModuleType, Any], float | None]] = {
    "temperature": _scaled("nvmlDeviceGetTemperature", 1, 0),
    "temperature_memory": lambda nv, handle: _field("NVML_FI_DEV_MEMORY_TEMP")(nv, handle) or None,
    "power": _scaled("nvmlDeviceGetPowerUsage", 1e-3),
    "energy": _scaled("nvmlDeviceGetTotalEnergyConsumption", 1e-3),
    "utilization_gpu": _part("nvmlDeviceGetUtilizationRates", "gpu"),
    "utilization_memory": _part("nvmlDeviceGetUtilizationRates", "memory"),
    "utilization_encoder": _part("nvmlDeviceGetEncoderUtilization", 0),
    "utilization_decoder": _part("nvmlDeviceGetDecoderUtilization", 0),
    "clock_sm": _scaled("nvmlDeviceGetClockInfo", 1, 1),
    "clock_memory": _scaled("nvmlDeviceGetClockInfo", 1, 2),
    "clock_graphics": _scaled("nvmlDeviceGetClockInfo", 1, 0),
    "clock_video": _scaled("nvmlDeviceGetClockInfo", 1, 3),
    "throttle_reasons": _scaled("nvmlDeviceGetCurrentClocksEventReasons", 1),
    "performance_state": _scaled("nvmlDeviceGetPerformanceState", 1),
    "fan": _scaled("nvmlDeviceGetFanSpeed", 1),
    "pcie_tx": _scaled("nvmlDeviceGetPcieThroughput", 1000, 0),
    "pcie_rx": _scaled("nvmlDeviceGetPcieThroughput", 1000, 1),
    "pcie_tx_bytes": _field("NVML_FI_DEV_PCIE_COUNT_TX_BYTES"),
    "pcie_rx_bytes": _field("NVML_FI_DEV_PCIE_COUNT_RX_BYTES"),
    "nvlink_crc_errors": _field("NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL"),
    "nvlink_replays": _field("NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL"),
    "nvlink_recoveries": _field("NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL"),
}
