"""What each device's memory is promised to (MEM-2), and what earlier runs have taught of estimates (MEM-3).

Bytes; None is unknown and is never taken for zero or for free. Of one device the numbers hang together so:

    used    = total - what the driver reports as free
    pending = sum over the reservations of max(0, reserved - measured): promised, and not yet seen in `used`
    free    = total - pending - max(used, measured)

The last line says both halves of MEM-2 at once: reported free less what is pending, and never more than what the
reservations leave of the total, which counts where the driver's free memory lags behind its list of processes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from poolmgr.model.memory import LedgerEntry, Reserved
from poolmgr.model.names import EngineName
from poolmgr.model.plan import MAX_DEVICES

VERSION: Final = 1
MAX_LEARNED: Final = 1024  # rows; the ones that were learned from longest ago go first
MAX_KEY_CHARACTERS: Final = 4096  # of each part of a key, as any text of a pool's spec
# An estimate that is off by more is a defect of the estimator: no factor mends that.
MIN_FACTOR: Final = 0.5
MAX_FACTOR: Final = 2.0
SMOOTHING: Final = 0.5  # share of the way down that one smaller measurement moves the factor
MISS_PERCENT: Final = 10  # SPLIT-6: a share that is further off is an event


# The ledger.


def entry(
    device_id: str,
    total_bytes: int | None,
    reported_free_bytes: int | None,
    reservations: Sequence[Reserved],
    claimed_bytes: int | None = 0,
) -> LedgerEntry:
    """One device's memory.

    `reservations`: of whoever is known to hold or to be about to hold memory, each once. `measured_bytes` of them must
    be no newer than `reported_free_bytes`: ask for the list of processes first, then for the free memory; the other
    way round, memory that is taken in between is in neither. A reservation ends with the first look at both that is
    taken after its engine was READY: from then on its reserved bytes are its measured ones.

    `claimed_bytes`: measured of known holders that are not among the reservations; None where that is not told.
    A reading that contradicts itself (more free than there is, less than none) is no reading.
    """
    total, used = _reading(total_bytes, reported_free_bytes)
    measured = sum(one.measured_bytes for one in reservations) + (claimed_bytes or 0)
    pending = sum(max(0, one.reserved_bytes - one.measured_bytes) for one in reservations)
    return LedgerEntry(
        device_id,
        total,
        used,
        sum(one.reserved_bytes for one in reservations),
        measured,
        None if used is None or claimed_bytes is None else max(0, used - measured),
        None if total is None or used is None else max(0, total - max(used, measured) - pending),
        pending,
    )


def _reading(total: int | None, free: int | None) -> tuple[int | None, int | None]:
    """(total, used)."""
    if total is None or total <= 0:
        return None, None
    return total, None if free is None or not 0 <= free <= total else total - free


def room(memory: LedgerEntry) -> int | None:
    """As `free_bytes`, but below zero by what is promised and not there."""
    if memory.free_bytes is None or memory.total_bytes is None or memory.used_bytes is None:
        return memory.free_bytes
    left = memory.total_bytes - max(memory.used_bytes, memory.measured_bytes) - memory.pending_bytes
    return memory.free_bytes if memory.free_bytes > 0 else min(0, left)


def after_stop(memory: LedgerEntry, freed_bytes: int) -> LedgerEntry:
    """What it will be once a known holder of `freed_bytes` is gone. What is unknown stays so."""
    left = room(memory)
    if left is None:
        return memory
    most = left + freed_bytes if memory.total_bytes is None else min(memory.total_bytes, left + freed_bytes)
    return replace(
        memory,
        used_bytes=None if memory.used_bytes is None else max(0, memory.used_bytes - freed_bytes),
        measured_bytes=max(0, memory.measured_bytes - freed_bytes),
        free_bytes=max(0, most),
    )


# What is learned.


@dataclass(frozen=True, slots=True, order=True)
class LearnedKey:
    """`model`: digest, else path. `settings`: whatever else memory depends on, as the caller writes it."""

    engine: EngineName
    engine_version: str
    model: str
    settings: str


@dataclass(frozen=True, slots=True)
class Learned:
    """`predicted` and `measured`: each device's share in the last run, in the mask's order. `at`: Unix seconds.

    `factor`: by which the estimator's own bytes are to be multiplied. `count`: of runs.
    """

    predicted: tuple[int, ...]
    measured: tuple[int, ...]
    factor: float
    count: int
    at: float


@dataclass(frozen=True, slots=True)
class MemoryMiss:
    """A device's share was more than 10 % off (SPLIT-6)."""

    device_id: str
    predicted_bytes: int
    measured_bytes: int


Table = Mapping[LearnedKey, Learned]


def learn(
    table: Table,
    key: LearnedKey,
    predicted: Mapping[str, int],
    measured: Mapping[str, int | None],
    now: float,
    applied: float = 1.0,
) -> tuple[Table, tuple[MemoryMiss, ...]]:
    """The table after a run that became READY, and what was missed. `now`: Unix seconds.

    `predicted`: by device, in the mask's order, after correction by `applied`, the estimate's factor. Devices whose
    use is not told teach nothing, nor do those on which nothing is in use: the engine went elsewhere. Nothing is
    learned under a key that is too long to be kept.
    """
    told = [(name, bytes_, seen) for name, bytes_ in predicted.items() if (seen := measured.get(name)) is not None]
    misses = tuple(MemoryMiss(*share) for share in told if missed(share[1], share[2]))
    taught = [(bytes_, seen) for _, bytes_, seen in told if bytes_ > 0 and seen > 0][:MAX_DEVICES]
    if not taught or not _keepable((key.engine_version, key.model, key.settings)):
        return table, misses
    known = table.get(key)
    factor_ = _moved(known, _clamped(applied * _ratio(taught)))
    count = 1 if known is None else known.count + 1
    row = Learned(tuple(p for p, _ in taught), tuple(m for _, m in taught), factor_, count, now)
    return _bounded({**table, key: row}), misses


def missed(predicted_bytes: int, measured_bytes: int) -> bool:
    """Whether a share was more than 10 % off."""
    return 100 * abs(measured_bytes - predicted_bytes) > MISS_PERCENT * predicted_bytes


def factor(table: Table, key: LearnedKey, fallback: float = 1.0) -> float:
    """By which the estimator's bytes are to be multiplied; `fallback` where nothing has been learned."""
    known = table.get(key)
    return fallback if known is None else known.factor


def _ratio(shares: Sequence[tuple[int, int]]) -> float:
    """Measured to predicted. What one device took less does not make up for what another took more: that one would run
    out of memory again."""
    predicted = sum(p for p, _ in shares)
    over = sum(max(0, m - p) for p, m in shares)
    return 1.0 + over / predicted if over else sum(m for _, m in shares) / predicted


def _moved(known: Learned | None, observed: float) -> float:
    """Up at once, for too little ends in an out-of-memory; down by steps, for too much only wastes."""
    if known is None or observed >= known.factor:
        return observed
    return known.factor + SMOOTHING * (observed - known.factor)


def _clamped(value: float) -> float:
    return min(MAX_FACTOR, max(MIN_FACTOR, value))


def _bounded(table: Table) -> Table:
    newest = sorted(table.items(), key=lambda row: (row[1].at, row[0]))[-MAX_LEARNED:]
    return dict(newest)


# As text, for the store.


def encode(table: Table) -> str:
    rows = [
        {
            "engine": key.engine.value,
            "engine_version": key.engine_version,
            "model": key.model,
            "settings": key.settings,
            "predicted": list(row.predicted),
            "measured": list(row.measured),
            "factor": row.factor,
            "count": row.count,
            "at": row.at,
        }
        for key, row in sorted(_bounded(table).items())
    ]
    return json.dumps({"version": VERSION, "learned": rows}, sort_keys=True)


def decode(text: str) -> Table | None:
    """None for what is not ours to read; an empty table for no text."""
    if not text:
        return {}
    try:
        document = json.loads(text)
        if document["version"] != VERSION:
            return None
        return _bounded(dict(_row(row) for row in document["learned"]))
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None


def _row(row: dict[str, Any]) -> tuple[LearnedKey, Learned]:
    """Raises ValueError and its like for a row that `encode` would not have written."""
    texts = [row[name] for name in ("engine_version", "model", "settings")]
    if not _keepable(texts):
        raise ValueError("a key is no text, or too long")
    predicted, measured = _shares(row["predicted"]), _shares(row["measured"])
    factor_, count, at = float(row["factor"]), int(row["count"]), float(row["at"])
    if len(predicted) != len(measured) or count < 1 or not math.isfinite(at):
        raise ValueError("a row that says nothing")
    if not MIN_FACTOR <= factor_ <= MAX_FACTOR:
        raise ValueError("a factor beyond its limits")
    return LearnedKey(EngineName(row["engine"]), *texts), Learned(predicted, measured, factor_, count, at)


def _keepable(texts: Sequence[object]) -> bool:
    return all(isinstance(text, str) and len(text) <= MAX_KEY_CHARACTERS for text in texts)


def _shares(values: list[Any]) -> tuple[int, ...]:
    shares = tuple(int(value) for value in values)
    if not 0 < len(shares) <= MAX_DEVICES or min(shares) <= 0:
        raise ValueError("shares without bytes")
    return shares
