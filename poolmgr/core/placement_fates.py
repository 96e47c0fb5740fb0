"""What became of each candidate, in words and numbers (PLACE-1), and why an ask was refused. Reasons are stable."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from poolmgr.core import split_answer
from poolmgr.errors import Number
from poolmgr.model.memory import LedgerEntry
from poolmgr.model.placement import Candidate, Fate
from poolmgr.model.plan import SplitPlan

MAX_LISTED: Final = 12  # devices in one sentence; the rest are counted
UNKNOWN: Final = "unknown"


class Why(StrEnum):
    """Of one candidate. One that takes no work now has its `Inadmissible` instead."""

    CHOSEN = "CHOSEN"
    NOT_IN_MASK = "NOT_IN_MASK"
    ABSENT = "ABSENT"  # the mask names it, and nothing shows it
    STATE_UNKNOWN = "STATE_UNKNOWN"
    PARTITIONED = "PARTITIONED"
    COMPUTE_CAPABILITY = "COMPUTE_CAPABILITY"
    MIG_NOT_ALLOWED = "MIG_NOT_ALLOWED"
    MIG_PROFILE = "MIG_PROFILE"
    MIG_ALONE = "MIG_ALONE"  # a process sees one instance and nothing beside it
    MEMORY_UNKNOWN = "MEMORY_UNKNOWN"
    DOES_NOT_FIT = "DOES_NOT_FIT"
    NUMA = "NUMA"
    UNUSED = "UNUSED"  # the plan is better without it
    OUTSCORED = "OUTSCORED"
    LAST_RESORT = "LAST_RESORT"  # degraded or on probation, and something better fits
    ONE_TRIAL = "ONE_TRIAL"  # another device of this plan would be on probation as well
    HELD_BACK = "HELD_BACK"  # it would have done; what was asked for needs more than it


class Refused(StrEnum):
    """Of an ask. A split's own reasons (`poolmgr.model.plan.Refusal`) stand beside these."""

    NO_DEVICES = "NO_DEVICES"
    MASK_EMPTY = "MASK_EMPTY"
    NONE_ADMISSIBLE = "NONE_ADMISSIBLE"
    NOT_ENOUGH_DEVICES = "NOT_ENOUGH_DEVICES"
    MEMORY_UNKNOWN = "MEMORY_UNKNOWN"
    DOES_NOT_FIT = "DOES_NOT_FIT"
    NUMA_SPLIT = "NUMA_SPLIT"


@dataclass(frozen=True, slots=True)
class Choice:
    """`device_ids` in the order in which the engine sees them, with the bytes that each is to hold."""

    device_ids: tuple[str, ...]
    bytes_by_device: Mapping[str, int]
    fates: tuple[Fate, ...] = ()
    split: SplitPlan | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Lost:
    """Nothing could be chosen. `missing_bytes`: with at least so much more memory it could."""

    refusal: Fate
    missing_bytes: int = 0
    fates: tuple[Fate, ...] = ()
    notes: tuple[str, ...] = ()


def fate(candidate: Candidate, reason: str, message: str, numbers: Mapping[str, Number] | None = None) -> Fate:
    return Fate(candidate.device.device_id, reason, message, dict(numbers or {}))


def refusal(reason: str, message: str, numbers: Mapping[str, Number] | None = None) -> Fate:
    """Of the ask as a whole: its device id is empty."""
    return Fate("", reason, message, dict(numbers or {}))


def ledger_numbers(memory: LedgerEntry) -> Mapping[str, Number]:
    """Every number of a device's memory (MEM-2); what is not known says so."""
    numbers: Mapping[str, int | None] = {
        "total_bytes": memory.total_bytes,
        "used_bytes": memory.used_bytes,
        "reserved_bytes": memory.reserved_bytes,
        "pending_bytes": memory.pending_bytes,
        "measured_bytes": memory.measured_bytes,
        "unmanaged_bytes": memory.unmanaged_bytes,
        "free_bytes": memory.free_bytes,
    }
    return {name: UNKNOWN if number is None else number for name, number in numbers.items()}


def too_small(candidate: Candidate, need_bytes: int) -> Fate:
    memory = candidate.memory
    message = (
        f"needs {in_gib(need_bytes)}, has {in_gib(memory.free_bytes)} for it: of {in_gib(memory.total_bytes)} are "
        f"{in_gib(memory.used_bytes)} in use ({in_gib(memory.unmanaged_bytes)} by strangers) and "
        f"{in_gib(memory.pending_bytes)} promised beside that"
    )
    return fate(candidate, Why.DOES_NOT_FIT, message, {"need_bytes": need_bytes, **ledger_numbers(memory)})


def taken(candidate: Candidate, need_bytes: int) -> Fate:
    numbers = {"need_bytes": need_bytes, **ledger_numbers(candidate.memory)}
    return fate(candidate, Why.CHOSEN, f"takes {in_gib(need_bytes)} of {in_gib(candidate.memory.free_bytes)}", numbers)


def held_back(candidate: Candidate) -> Fate:
    message = "it would do, and not all that is asked for can be had"
    return fate(candidate, Why.HELD_BACK, message, ledger_numbers(candidate.memory))


def memory_unknown(candidate: Candidate, need_bytes: int) -> Fate:
    message = "the driver does not tell how much of its memory is free, and unknown is not free"
    return fate(candidate, Why.MEMORY_UNKNOWN, message, {"need_bytes": need_bytes, **ledger_numbers(candidate.memory)})


def in_gib(count: int | None) -> str:
    """For people; the exact bytes are in the numbers."""
    return "an unknown amount" if count is None else split_answer.in_gib(count)


def listed(parts: Iterable[str]) -> str:
    """`a, b and 3 more`."""
    every = list(parts)
    more = f" and {len(every) - MAX_LISTED} more" if len(every) > MAX_LISTED else ""
    return ", ".join(every[:MAX_LISTED]) + more


def ids(candidates: Sequence[Candidate]) -> tuple[str, ...]:
    return tuple(one.device.device_id for one in candidates)
