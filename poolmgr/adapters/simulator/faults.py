"""Faults that a scenario plans and `poolmgr sim fault` makes at once: names to what the state file understands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import poolmgr_ext.simstate as simstate

from poolmgr.adapters.simulator.reading import Table

SECOND = 1_000_000_000
XID_ACTIONS = ("none", "reset", "reboot", "drain-p2p", "drain-and-reset")
LOCATIONS = ("l1", "l2", "memory", "registers", "texture", "shared", "cbu", "sram")

# nvmlReturn_t by its names, those that a call may be made to return.
CODES = {
    "UNINITIALIZED": 1,
    "INVALID_ARGUMENT": 2,
    "NOT_SUPPORTED": 3,
    "NO_PERMISSION": 4,
    "NOT_FOUND": 6,
    "INSUFFICIENT_SIZE": 7,
    "DRIVER_NOT_LOADED": 9,
    "TIMEOUT": 10,
    "IRQ_ISSUE": 11,
    "FUNCTION_NOT_FOUND": 13,
    "CORRUPTED_INFOROM": 14,
    "GPU_IS_LOST": 15,
    "RESET_REQUIRED": 16,
    "OPERATING_SYSTEM": 17,
    "LIB_RM_VERSION_MISMATCH": 18,
    "IN_USE": 19,
    "NO_DATA": 21,
    "UNKNOWN": 999,
}
# Fields of nvmlDeviceGetFieldValues (NVML_FI_DEV_*) that a device may be made not to tell. Others go by number.
FIELDS = {
    "MEMORY_TEMP": 82,
    "TOTAL_ENERGY_CONSUMPTION": 83,
    "NVLINK_LINK_COUNT": 91,
    "PCIE_REPLAY_COUNTER": 94,
    "NVLINK_THROUGHPUT_DATA_TX": 138,
    "NVLINK_THROUGHPUT_DATA_RX": 139,
    "REMAPPED_COR": 142,
    "REMAPPED_UNC": 143,
    "REMAPPED_PENDING": 144,
    "REMAPPED_FAILURE": 145,
    "POWER_AVERAGE": 185,
    "POWER_INSTANT": 186,
    "GET_GPU_RECOVERY_ACTION": 230,
}


@dataclass(frozen=True, slots=True)
class Fault:
    """`kind`, `a`, `b`, `c` as ext/simnvml/state.h has them. `gpu` None: the host, or every GPU.

    `at`: seconds after the start of the scenario, None now. `profile`: the name that stands for `a` where an instance
    is made.
    """

    kind: str
    gpu: int | None = None
    at: float | None = None
    a: int | None = None
    b: int | None = None
    c: int | None = None
    profile: str = ""


def _function(table: Table) -> int | None:
    if "function" not in table.values:
        return None
    return simstate.FUNCTIONS.index(table.choice("function", simstate.FUNCTIONS))


def _number(name: str) -> int:
    return simstate.DEVICE_NUMBERS.index(name)


def _xid(table: Table) -> list[Fault]:
    action = table.choice("action", XID_ACTIONS, "none") if "action" in table.values else None
    return [Fault("xid", a=table.whole("code", low=1, high=1000), b=XID_ACTIONS.index(action) if action else None)]


def _ecc(table: Table) -> list[Fault]:
    return [
        Fault(
            "ecc",
            a=int(table.flag("uncorrected", False)),
            b=table.whole("count", 1, low=1),
            c=LOCATIONS.index(table.choice("location", LOCATIONS, "memory")),
        )
    ]


def _hang(table: Table) -> list[Fault]:
    return [Fault("hang", a=round(table.number("seconds", low=0, high=1e6) * SECOND))]


def _slow(table: Table) -> list[Fault]:
    cost = round(table.number("microseconds", low=0, high=60e6) * 1000)
    return [Fault("cost", a=_function(table), b=cost)]


def _error(table: Table) -> list[Fault]:
    return [Fault("result", a=_function(table), b=CODES[table.choice("code", CODES)])]


def unsupported(table: Table, key: str, name: str, code: int = CODES["NOT_SUPPORTED"]) -> Fault:
    """A call ("nvmlDeviceGetFanSpeed"), a field by name ("MEMORY_TEMP") or by number ("82") that answers `code`."""
    if name in simstate.FUNCTIONS:
        return Fault("result", a=simstate.FUNCTIONS.index(name), b=code)
    if name.isdecimal() and int(name) < simstate.MAX_FIELD_IDS:
        return Fault("field", a=int(name), b=code)
    if name not in FIELDS:
        raise table.wrong(key, f"{name!r} is neither a function of NVML nor one of {', '.join(FIELDS)}")
    return Fault("field", a=FIELDS[name], b=code)


def _unsupported(table: Table) -> list[Fault]:
    return [unsupported(table, "what", table.text("what"))]


def _supported(table: Table) -> list[Fault]:
    return [unsupported(table, "what", table.text("what"), 0)]


def _recovery(table: Table) -> list[Fault]:
    return [Fault("number", a=_number("recovery_action"), b=XID_ACTIONS.index(table.choice("action", XID_ACTIONS)))]


def _remap(table: Table) -> list[Fault]:
    named = {"pending": "remap_pending", "failure": "remap_failure", "uncorrected": "remapped_uncorrected"}
    given = [key for key in named if key in table.values]
    if not given:
        raise table.wrong("", f"needs one of {', '.join(named)}")
    return [Fault("number", a=_number(named[key]), b=table.whole(key, high=10_000)) for key in given]


def _mig_create(table: Table) -> list[Fault]:
    return [Fault("mig-create", profile=table.text("profile"))]


def _mig_destroy(table: Table) -> list[Fault]:
    return [Fault("mig-destroy", a=table.whole("instance", high=7) if "instance" in table.values else None)]


def _mig_mode(table: Table) -> list[Fault]:
    return [Fault("mig-mode", a=int(table.flag("on", True)))]


def _nvlink_down(table: Table) -> list[Fault]:
    return [Fault("nvlink", a=table.whole("link", high=35))]


def _nvlink_errors(table: Table) -> list[Fault]:
    return [Fault("nvlink", a=table.whole("link", 0, high=35), b=2, c=table.whole("count", 1, low=1))]


def _clear(_: Table) -> list[Fault]:
    """Ends a hang, slowness and forced answers, and finds the device again. Counters stay."""
    return [Fault("hang", a=0), Fault("cost", b=0), Fault("result", b=0), Fault("found")]


def _fixed(kind: str, a: int | None = None) -> Callable[[Table], list[Fault]]:
    return lambda table: [Fault(kind, a=a)]


KINDS: Mapping[str, Callable[[Table], list[Fault]]] = {
    "xid": _xid,
    "ecc": _ecc,
    "lost": _fixed("lost"),
    "found": _fixed("found"),
    "removed": _fixed("removed"),
    "hang": _hang,
    "slow": _slow,
    "error": _error,
    "unsupported": _unsupported,
    "supported": _supported,
    "recovery": _recovery,
    "remap": _remap,
    "mig-create": _mig_create,
    "mig-destroy": _mig_destroy,
    "mig-mode": _mig_mode,
    "nvlink-down": _nvlink_down,
    "nvlink-errors": _nvlink_errors,
    "mismatch": _fixed("init", CODES["LIB_RM_VERSION_MISMATCH"]),
    "no-driver": _fixed("init", CODES["DRIVER_NOT_LOADED"]),
    "driver-works": _fixed("init", 0),
    "no-devices": _fixed("no-devices", 1),
    "devices-back": _fixed("no-devices", 0),
    "clear": _clear,
}
HOST_KINDS = {"mismatch", "no-driver", "driver-works", "no-devices", "devices-back"}
NEED_GPU = {"mig-create", "mig-destroy", "nvlink-down", "nvlink-errors"}


def read_fault(table: Table, gpus: int) -> list[Fault]:
    """Of one table: `kind`, `gpu`, `at` and what the kind needs. ClientError INVALID_SCENARIO."""
    kind = table.choice("kind", KINDS)
    gpu = table.whole("gpu", high=gpus - 1) if "gpu" in table.values else None
    at = table.number("at", high=1e7) if "at" in table.values else None
    if gpu is not None and kind in HOST_KINDS:
        raise table.wrong("gpu", f"does not go with {kind!r}, which is of the whole host")
    if gpu is None and kind in NEED_GPU:
        raise table.wrong("gpu", f"is missing: {kind!r} is of one GPU")
    found = KINDS[kind](table)
    table.done()
    return [Fault(f.kind, gpu, at, f.a, f.b, f.c, f.profile) for f in found]
