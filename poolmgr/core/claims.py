"""Whose memory it is: the driver's processes put down to engines of ours, to containers, to users (TEL-6, MASK-3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from poolmgr.model.claim import Claim, ClaimKind, ProcessFacts, RunningEngine
from poolmgr.model.device import Device, DeviceProcess

MAX_CLAIMS: Final = 4096  # of the host; what is over is counted, not listed


@dataclass(frozen=True, slots=True)
class Violation:
    """An engine of ours holds memory of a device that its mask does not have."""

    pool_id: str
    engine_id: str
    device_id: str
    used_bytes: int | None
    pids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Seen:
    """One look. `processes` lacks the devices for which the driver did not answer; `facts` by pid."""

    processes: Mapping[str, Sequence[DeviceProcess]] = field(default_factory=dict)
    facts: Mapping[int, ProcessFacts] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Attribution:
    """`claims` by device and claim id. `left_out`: how many more there would be."""

    claims: tuple[Claim, ...] = ()
    violations: tuple[Violation, ...] = ()
    left_out: int = 0


def attribute(
    seen: Seen,
    engines: Sequence[RunningEngine],
    devices: Sequence[Device],
    before: Sequence[Claim],
    now: float,
    reserved: Sequence[Claim] = (),
) -> Attribution:
    """An engine claims what its mask has from its start on, and what it is seen on besides. What the driver shows and
    nobody has announced is a PROCESS. A device for which there is no answer keeps the processes that it had.
    `reserved`: what is set aside for engines that do not run yet.
    """
    parents = {device.device_id: device.parent_device_id or "" for device in devices}
    found: dict[str, Claim] = {claim.claim_id: claim for claim in _announced(engines, parents)}
    found.update((claim.claim_id, claim) for claim in reserved if claim.device_id in parents)
    violations: list[Violation] = []
    by_engine = {engine.engine_id: engine for engine in engines}
    for device_id, processes in seen.processes.items():
        groups = _by_engine(processes, seen.facts, by_engine)
        for engine_id, used in groups.items():
            claim = _used(by_engine[engine_id], device_id, used)
            found[claim.claim_id] = claim
            if _outside(by_engine[engine_id], device_id, parents.get(device_id, "")):
                pool_id = by_engine[engine_id].pool_id
                violations.append(Violation(pool_id, engine_id, device_id, claim.measured_bytes, claim.pids))
        strangers = (p for p in processes if _engine_of(p, seen.facts, by_engine) is None)
        found.update((c.claim_id, c) for c in (_process(p, device_id, seen.facts.get(p.pid), now) for p in strangers))
    found.update(_kept([c for c in before if _may_last(c, by_engine)], found, seen, parents))
    return _bounded(_with_begin(found, before), violations)


def _may_last(claim: Claim, engines: Mapping[str, RunningEngine]) -> bool:
    if claim.kind is ClaimKind.RESERVATION:
        return False
    return not claim.engine_id or claim.engine_id in engines


def _announced(engines: Sequence[RunningEngine], parents: Mapping[str, str]) -> list[Claim]:
    return [
        _engine_claim(engine, device_id)
        for engine in engines
        for device_id in engine.device_ids or ()
        if device_id in parents
    ]


def _engine_claim(engine: RunningEngine, device_id: str) -> Claim:
    return Claim(
        f"engine/{engine.engine_id}/{device_id}",
        device_id,
        ClaimKind.ENGINE,
        engine.pool_id,
        engine.since,
        reserved_bytes=engine.reserved.get(device_id),
        engine_id=engine.engine_id,
    )


def _by_engine(
    processes: Sequence[DeviceProcess], facts: Mapping[int, ProcessFacts], engines: Mapping[str, RunningEngine]
) -> Mapping[str, list[DeviceProcess]]:
    groups: dict[str, list[DeviceProcess]] = {}
    for process in processes:
        engine_id = _engine_of(process, facts, engines)
        if engine_id is not None:
            groups.setdefault(engine_id, []).append(process)
    return groups


def _engine_of(
    process: DeviceProcess, facts: Mapping[int, ProcessFacts], engines: Mapping[str, RunningEngine]
) -> str | None:
    known = facts.get(process.pid)
    if known is not None and known.engine_id in engines:
        return known.engine_id
    return next((engine.engine_id for engine in engines.values() if engine.pid and engine.pid == process.pid), None)


def _used(engine: RunningEngine, device_id: str, processes: Sequence[DeviceProcess]) -> Claim:
    pids = tuple(sorted({process.pid for process in processes}))
    return replace(_engine_claim(engine, device_id), measured_bytes=_sum(processes), pids=pids)


def _sum(processes: Sequence[DeviceProcess]) -> int | None:
    known = [process.used_bytes for process in processes if process.used_bytes is not None]
    return sum(known) if known else None


def _outside(engine: RunningEngine, device_id: str, parent: str) -> bool:
    return engine.device_ids is not None and not {device_id, parent} & set(engine.device_ids)


def _process(process: DeviceProcess, device_id: str, known: ProcessFacts | None, now: float) -> Claim:
    known = known or ProcessFacts(process.pid, 0)
    return Claim(
        f"process/{process.pid}-{known.start_ticks}/{device_id}",
        device_id,
        ClaimKind.PROCESS,
        known.command or f"pid {process.pid}",
        now,
        user=known.user,
        measured_bytes=process.used_bytes,
        pids=(process.pid,),
        container_id=known.container_id,
    )


def _kept(
    before: Sequence[Claim], found: Mapping[str, Claim], seen: Seen, parents: Mapping[str, str]
) -> Mapping[str, Claim]:
    """What was measured on devices that did not answer now."""
    kept: dict[str, Claim] = {}
    for claim in before:
        if claim.device_id in seen.processes or claim.device_id not in parents:
            continue
        if claim.claim_id in found:
            again = replace(found[claim.claim_id], measured_bytes=claim.measured_bytes, pids=claim.pids)
            kept[claim.claim_id] = again
        elif claim.kind is not ClaimKind.ENGINE or claim.pids:  # else it was never seen, and is announced no more
            kept[claim.claim_id] = claim
    return kept


def _with_begin(found: Mapping[str, Claim], before: Sequence[Claim]) -> list[Claim]:
    since = {claim.claim_id: claim.since for claim in before}
    began = [replace(claim, since=since.get(claim.claim_id, claim.since)) for claim in found.values()]
    return sorted(began, key=lambda claim: (claim.device_id, claim.claim_id))


def _bounded(claims: Sequence[Claim], violations: Sequence[Violation]) -> Attribution:
    return Attribution(tuple(claims[:MAX_CLAIMS]), tuple(violations), max(0, len(claims) - MAX_CLAIMS))
