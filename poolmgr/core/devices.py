"""All devices of the host as a fold over what the driver shows, what it tells, and what operators say.

`step(host, event, now, settings)` gives the next state, and what is to be told or done. Nothing here is remembered of
claims: they are observed anew by the daemon that runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from poolmgr.core import cordons, remembered_devices
from poolmgr.core.device_states import RESETS, TIMED, Record, Signal, admits, credited, due, moved, shown, with_claims
from poolmgr.core.remembered_devices import Remembered, first_seen
from poolmgr.errors import ClientError, Reason
from poolmgr.model.claim import Claim
from poolmgr.model.device import Absence, Device, DeviceState, Discovery, DriverEvent, DriverEventKind, RecoveryAction
from poolmgr.model.device_health import (
    Cordon,
    DeviceNote,
    DeviceNoteName,
    DeviceSettings,
    DeviceView,
    Severity,
    Verdict,
)
from poolmgr.model.xid import XidOrigin, XidSeverity, lookup

MAX_OFFLINE: Final = 64  # devices that are gone and still shown; the longest gone are forgotten first
# A look that failed says nothing of the devices: they are as they were.
UNSEEN: Final = frozenset({Absence.STALLED, Absence.NOT_LOOKED, Absence.NO_PERMISSION, Absence.FAILED})


@dataclass(frozen=True, slots=True)
class Host:
    """`records` by device id. `remembered`: of devices that this daemon has not seen yet. `offset`: Unix time minus
    boot time."""

    offset: float
    records: Mapping[str, Record] = field(default_factory=dict)
    remembered: Mapping[str, Remembered] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Discovered:
    discovery: Discovery


@dataclass(frozen=True, slots=True)
class Happened:
    event: DriverEvent
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Reported:
    """Somebody else than the driver has found a fault with a device."""

    device_id: str
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Claimed:
    """All claims that there are now, by device id."""

    claims: Mapping[str, tuple[Claim, ...]]


@dataclass(frozen=True, slots=True)
class Cordoned:
    device_id: str
    cordon: Cordon | None


@dataclass(frozen=True, slots=True)
class Due:
    """Time has passed."""


Event = Discovered | Happened | Reported | Claimed | Cordoned | Due


@dataclass(frozen=True, slots=True)
class MoveAway:
    """Work on this device is to go elsewhere."""

    device_id: str
    reason: str


Effect = DeviceNote | MoveAway
Stepped = tuple[Host, tuple[Effect, ...]]


def step(host: Host, event: Event, now: float, settings: DeviceSettings) -> Stepped:
    """Raises ClientError(DEVICE_NOT_FOUND) for a cordon of what is not known."""
    before = host
    match event:
        case Discovered(discovery):
            host, effects = _discovered(host, discovery, now, settings)
        case Happened():
            host, effects = _happened(host, event, now, settings)
        case Reported(device_id, verdict):
            host, effects = _judged(host, device_id, verdict, verdict.meaning, now, settings)
        case Claimed(claims):
            host, effects = _claimed(host, claims, now), []
        case Cordoned():
            host, effects = _cordoned(host, event, now), []
        case Due():
            effects = []
    host = _timed(host, now, settings)
    effects += _cordon_effects(before, host)
    notes = _transitions(before, host)
    if notes:
        changed = {note.device_id: replace(host.records[note.device_id], since=now) for note in notes}
        host = replace(host, records={**host.records, **changed})
    return host, (*effects, *notes)


def judge(event: DriverEvent) -> Verdict:
    """What an event means for its device, by NVIDIA's catalogue. A code that nobody knows is not harmless."""
    if event.kind is DriverEventKind.ECC_DOUBLE:
        return Verdict(Severity.FAULT, "an uncorrectable memory error")
    if event.kind is not DriverEventKind.XID or event.code is None:
        return Verdict(Severity.HARMLESS, event.text)
    xid = lookup(event.code)
    if xid.severity is XidSeverity.CRITICAL:
        return Verdict(Severity.FAULT, xid.meaning)
    strains = xid.severity is XidSeverity.UNKNOWN or (
        xid.severity is XidSeverity.WARNING and xid.origin is XidOrigin.HARDWARE
    )
    return Verdict(Severity.STRAIN if strains else Severity.HARMLESS, xid.meaning)


def next_due(host: Host, settings: DeviceSettings) -> float | None:
    """When `Due` should come, in boot-time seconds."""
    times = [due(record, settings) for record in host.records.values()]
    windows = [cordons.due(record) for record in host.records.values()]
    times += [None if when is None else when - host.offset for when in windows]
    return min((when for when in times if when is not None), default=None)


def to_leave(host: Host, record: Record) -> str:
    """Why work is to leave this device, also work that comes to be there only now; empty when it may stay."""
    for one in (record, parent_of(host, record)):
        if one is None:
            continue
        if one.health is DeviceState.QUARANTINED:
            return one.reason
        if one.cordon is not None and one.cordon.drain:
            return f"cordoned: {one.cordon.reason}"
        if one.action in RESETS:
            return f"the driver asks: {one.action}"
    return ""


def parent_of(host: Host, record: Record) -> Record | None:
    return host.records.get(record.device.parent_device_id or "")


# What the driver shows.


def _discovered(host: Host, discovery: Discovery, now: float, settings: DeviceSettings) -> tuple[Host, list[Effect]]:
    if discovery.absence in UNSEEN:
        return host, []
    records, effects, remembered = dict(host.records), list[Effect](), dict(host.remembered)
    for device in discovery.devices:
        known = host.records.get(device.device_id)
        if device.recovery_action in RESETS and (known is None or known.action not in RESETS):
            effects.append(MoveAway(device.device_id, f"the driver asks: {device.recovery_action}"))
        if known is None:
            records[device.device_id] = first_seen(device, remembered.pop(device.device_id, None), host.offset, now)
            effects.append(_note(DeviceNoteName.FOUND, device.device_id, name=device.name))
            continue
        if known.gone is not None:
            away = round(now - known.gone, 3)
            effects.append(_note(DeviceNoteName.RETURNED, device.device_id, name=device.name, away_seconds=away))
        records[device.device_id] = _seen_again(known, device, now, settings)
    there = {device.device_id for device in discovery.devices}
    for device_id, record in host.records.items():
        if device_id not in there and record.gone is None:
            records[device_id] = replace(with_claims(record, (), now), gone=now)
            effects.append(_note(DeviceNoteName.MISSING, device_id, **_missing(record)))
    return replace(host, records=_bounded(records), remembered=remembered), effects


def _seen_again(known: Record, device: Device, now: float, settings: DeviceSettings) -> Record:
    record = replace(known, device=device, gone=None)
    if known.action in RESETS and record.action is RecoveryAction.NONE:
        reason = f"the driver no longer asks for {known.action.value.lower()}; one trial workload at a time"
        return moved(record, Signal.REPAIRED, reason, now, settings)
    return record


def _missing(record: Record) -> Mapping[str, str]:
    device = record.device
    fields = {"name": device.name, "index": "" if device.index is None else str(device.index)}
    return {**fields, "parent": device.parent_device_id} if device.parent_device_id else fields


def _bounded(records: dict[str, Record]) -> Mapping[str, Record]:
    gone = sorted((record.gone, device_id) for device_id, record in records.items() if record.gone is not None)
    for _, device_id in gone[: max(0, len(gone) - MAX_OFFLINE)]:
        del records[device_id]
    return records


# What the driver tells.


def _happened(host: Host, event: Happened, now: float, settings: DeviceSettings) -> tuple[Host, list[Effect]]:
    told, verdict = event.event, event.verdict
    note = _note(DeviceNoteName.DRIVER_EVENT, told.device_id or "", **_evidence(told, verdict))
    reason = f"XID {told.code}: {verdict.meaning}" if told.code is not None else verdict.meaning
    host, effects = _judged(host, told.device_id or "", verdict, reason, now, settings)
    return host, [note, *effects]


def _judged(
    host: Host, device_id: str, verdict: Verdict, reason: str, now: float, settings: DeviceSettings
) -> tuple[Host, list[Effect]]:
    effects: list[Effect] = []
    record = host.records.get(device_id)
    if record is None or verdict.severity is Severity.HARMLESS:
        return host, effects
    signal = Signal.STRAINED
    if verdict.severity is Severity.FAULT:
        signal = Signal.FAULTED if _may_quarantine(host, record, settings) else Signal.SPARED
    if signal is Signal.SPARED:
        effects.append(_budget_note(host, record, reason))
        reason += "; not quarantined, for too many GPUs are: a person has to decide"
    elif signal is Signal.STRAINED and record.health is DeviceState.QUARANTINED:
        return host, effects  # it is out already, for worse
    after = moved(record, signal, reason, now, settings)
    if after.health is DeviceState.QUARANTINED and record.health is not DeviceState.QUARANTINED:
        effects.append(_note(DeviceNoteName.QUARANTINED, device_id, reason=reason, seconds=after.length))
        effects += [MoveAway(member, reason) for member in _family(host, record)]
    return replace(host, records={**host.records, record.device.device_id: after}), effects


def _evidence(event: DriverEvent, verdict: Verdict) -> Mapping[str, str | int]:
    fields: dict[str, str | int] = {
        "kind": event.kind.value,
        "source": event.source,
        "severity": verdict.severity.value,
    }
    optional: Mapping[str, str | int | None] = {"code": event.code, "pid": event.pid, "text": event.text or None}
    return {**fields, "meaning": verdict.meaning, **{k: v for k, v in optional.items() if v is not None}}


def _gpu_id(record: Record) -> str:
    return record.device.parent_device_id or record.device.device_id


def _quarantined_gpus(host: Host) -> set[str]:
    return {_gpu_id(r) for r in host.records.values() if r.health is DeviceState.QUARANTINED}


def _gpu_count(host: Host) -> int:
    return sum(1 for record in host.records.values() if not record.device.is_instance)


def _may_quarantine(host: Host, record: Record, settings: DeviceSettings) -> bool:
    """STATE-3: never more than the share of the host's GPUs; the instances of one GPU count once."""
    out = _quarantined_gpus(host) | {_gpu_id(record)}
    return len(out) <= settings.quarantine_share * _gpu_count(host) or record.health is DeviceState.QUARANTINED


def _budget_note(host: Host, record: Record, reason: str) -> DeviceNote:
    out, gpus = len(_quarantined_gpus(host)), _gpu_count(host)
    return _note(DeviceNoteName.DISRUPTION_BUDGET, record.device.device_id, quarantined=out, gpus=gpus, reason=reason)


def _family(host: Host, record: Record) -> Iterator[str]:
    """The device, and the instances of it."""
    yield record.device.device_id
    for other in host.records.values():
        if other.device.parent_device_id == record.device.device_id:
            yield other.device.device_id


# Claims, operators, time.


def _claimed(host: Host, claims: Mapping[str, tuple[Claim, ...]], now: float) -> Host:
    """The claims of its instances are those of a GPU too."""
    held = {device_id: own for device_id, own in claims.items() if device_id in host.records}
    for device_id, own in list(held.items()):
        if (parent := host.records[device_id].device.parent_device_id) is not None:
            held[parent] = (*held.get(parent, ()), *own)
    records = {
        device_id: with_claims(record, held.get(device_id, ()) if record.gone is None else (), now)
        for device_id, record in host.records.items()
    }
    return replace(host, records=records)


def _cordoned(host: Host, event: Cordoned, now: float) -> Host:
    record = host.records.get(event.device_id)
    if record is None:
        message = f"there is no device {event.device_id!r}"
        raise ClientError(Reason.DEVICE_NOT_FOUND, message, numbers={"device_id": event.device_id})
    if cordons.same(record.cordon or record.planned, event.cordon):
        return host
    after = cordons.ordered(record, event.cordon, now + host.offset)
    return replace(host, records={**host.records, event.device_id: after})


def _cordon_effects(before: Host, after: Host) -> list[Effect]:
    """Whether an operator or time has changed them. One that a device is first seen with is told too."""
    effects: list[Effect] = []
    for device_id, record in after.records.items() if before.records is not after.records else ():
        old = before.records.get(device_id, Record(record.device))
        if not cordons.same(old.planned, record.planned) and record.planned is not None:
            effects.append(_note(DeviceNoteName.CORDON_PLANNED, device_id, reason=record.planned.reason))
        if cordons.same(old.cordon, record.cordon):
            continue
        if record.cordon is None:
            effects.append(_note(DeviceNoteName.UNCORDONED, device_id, reason=""))
            continue
        reason = record.cordon.reason
        effects.append(_note(DeviceNoteName.CORDONED, device_id, reason=reason, drain=record.cordon.drain))
        if record.cordon.drain:
            effects += [MoveAway(member, f"cordoned: {reason}") for member in _family(after, record)]
    return effects


def _timed(host: Host, now: float, settings: DeviceSettings) -> Host:
    wall = now + host.offset
    windows = {
        d: cordons.timed(r, wall)
        for d, r in host.records.items()
        if (t := cordons.due(r)) and t <= wall + cordons.ROUNDING
    }
    host = replace(host, records={**host.records, **windows}) if windows else host
    late = [d for d, r in host.records.items() if (when := due(r, settings)) is not None and when <= now]
    if not late:
        return host
    records = dict(host.records)
    for device_id in late:
        record = credited(records[device_id], now)
        signal, reason = TIMED[record.health]
        records[device_id] = moved(record, signal, reason, now, settings)
    return replace(host, records=records)


def _transitions(before: Host, after: Host) -> Sequence[DeviceNote]:
    """Also of an instance whose GPU has changed."""
    if before.records is after.records:
        return ()
    notes = []
    for device_id, record in after.records.items():
        old = before.records.get(device_id)
        was = shown(old, parent_of(before, old))[0] if old is not None else None
        state, reason = shown(record, parent_of(after, record))
        if was is not None and was is not state:
            fields = {"from": was.value, "to": state.value, "reason": reason}
            notes.append(DeviceNote(DeviceNoteName.TRANSITION, device_id, fields))
    return notes


def _note(what: DeviceNoteName, device_id: str, **fields: str | int | float) -> DeviceNote:
    return DeviceNote(what, device_id, fields)


# What is shown.


def view(host: Host, record: Record) -> DeviceView:
    """Of a record of this host."""
    parent = parent_of(host, record)
    state, reason = shown(record, parent)
    refused = admits(record, parent)
    until = record.until if state is record.health else None
    return DeviceView(
        record.device,
        state,
        reason,
        record.since + host.offset,
        None if until is None else until + host.offset,
        record.cordon or record.planned,
        len(record.claims),
        refused.reason if refused else None,
    )


def to_remember(host: Host) -> Mapping[str, Remembered]:
    """What the next daemon has to know."""
    return remembered_devices.to_remember(host.records, host.remembered, host.offset)


def by_device(claims: Iterable[Claim]) -> Mapping[str, tuple[Claim, ...]]:
    found: dict[str, tuple[Claim, ...]] = {}
    for claim in claims:
        found[claim.device_id] = (*found.get(claim.device_id, ()), claim)
    return found
