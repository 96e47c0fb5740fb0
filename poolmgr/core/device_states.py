"""The states of one device: how its health moves, what is shown of it, and whether it takes work (STATE-1, STATE-2).

Four facts are kept apart, so that no one of them can hide or lift another:

- *health* moves by the table HEALTH below and by nothing else: what the driver told, and time;
- *presence*: whether the last look showed the device;
- the driver's *recovery action*, as the last look showed it;
- the operator's *cordon*.

What is shown is the first of these that says anything (`shown`); an operator's uncordon therefore never ends a
quarantine, and a device that comes back is where it was (DEV-2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from poolmgr.errors import InternalError
from poolmgr.model.claim import Claim, ClaimKind
from poolmgr.model.device import Device, DeviceState, RecoveryAction
from poolmgr.model.device_health import Cordon, DeviceSettings, Inadmissible, Inadmission

S = DeviceState


class Signal(StrEnum):
    """What moves a device's health."""

    STRAINED = "STRAINED"  # something is wrong with it, and it works
    FAULTED = "FAULTED"  # it is not to be trusted with work
    SPARED = "SPARED"  # the same, and too many are out already: a person has to decide (STATE-3)
    EASED = "EASED"  # nothing more was wrong for the whole time of a degradation
    SERVED = "SERVED"  # the quarantine's time is over
    PROVED = "PROVED"  # it has worked well for the whole time of a probation
    REPAIRED = "REPAIRED"  # the driver asks for no recovery any more


HEALTH: Final[Mapping[DeviceState, Mapping[Signal, DeviceState]]] = {
    S.AVAILABLE: {
        Signal.STRAINED: S.DEGRADED,
        Signal.FAULTED: S.QUARANTINED,
        Signal.SPARED: S.DEGRADED,
        Signal.REPAIRED: S.PROBATION,
    },
    S.DEGRADED: {
        Signal.STRAINED: S.DEGRADED,
        Signal.FAULTED: S.QUARANTINED,
        Signal.SPARED: S.DEGRADED,
        Signal.EASED: S.AVAILABLE,
        Signal.REPAIRED: S.PROBATION,
    },
    S.QUARANTINED: {
        Signal.STRAINED: S.QUARANTINED,
        Signal.FAULTED: S.QUARANTINED,
        Signal.SERVED: S.PROBATION,
        Signal.REPAIRED: S.PROBATION,
    },
    S.PROBATION: {
        Signal.STRAINED: S.PROBATION,
        Signal.FAULTED: S.QUARANTINED,
        Signal.SPARED: S.DEGRADED,
        Signal.PROVED: S.AVAILABLE,
        Signal.REPAIRED: S.PROBATION,
    },
}

# What the driver asks for that ends in a reset: the device is shown as RESETTING until it no longer asks.
RESETS: Final = frozenset({RecoveryAction.RESET, RecoveryAction.REBOOT, RecoveryAction.DRAIN_AND_RESET})
_ASKS: Final[Mapping[RecoveryAction, str]] = {
    RecoveryAction.RESET: "the driver asks for a reset of it: end its work, then `nvidia-smi --gpu-reset`",
    RecoveryAction.REBOOT: "the driver asks for a reboot of the host",
    RecoveryAction.DRAIN_AND_RESET: "the driver asks to let its work end and then to reset it",
    RecoveryAction.DRAIN_P2P: "the driver asks to end all peer-to-peer traffic with it",
}


@dataclass(frozen=True, slots=True)
class Record:
    """One device, as last seen. Times in boot-time seconds.

    `since`: of what is shown. `until`: when a quarantine or degradation ends. `length`: of the last quarantine, from
    which a failure in probation makes the next; 0 when the device is trusted again. `proved`: seconds of healthy work
    in this probation, counted up to `counted`, None while nothing runs. `gone`: when it was found missing.
    """

    device: Device
    health: DeviceState = S.AVAILABLE
    reason: str = ""
    since: float = 0.0
    until: float | None = None
    length: float = 0.0
    proved: float = 0.0
    counted: float | None = None
    gone: float | None = None
    cordon: Cordon | None = None  # in force
    planned: Cordon | None = None
    claims: tuple[Claim, ...] = ()

    @property
    def action(self) -> RecoveryAction:
        return self.device.recovery_action or RecoveryAction.NONE

    @property
    def at_work(self) -> bool:
        return bool(self.claims)


def moved(record: Record, signal: Signal, reason: str, now: float, settings: DeviceSettings) -> Record:
    """The device after `signal`. Raises InternalError for one that the table does not have: that is a defect."""
    to = HEALTH[record.health].get(signal)
    if to is None:
        raise InternalError(f"device {record.device.device_id}: no transition from {record.health} by {signal}")
    fresh = to is not record.health
    since = now if fresh else record.since
    record = replace(record, health=to, reason=reason, since=since, until=None, proved=0.0, counted=None)
    match to:
        case S.QUARANTINED:
            return _quarantined(record, fresh, now, settings)
        case S.DEGRADED:
            return replace(record, until=now + settings.degraded)
        case S.PROBATION:
            return replace(record, counted=now if record.at_work else None)
    return replace(record, reason="", length=0.0)


def _quarantined(record: Record, fresh: bool, now: float, settings: DeviceSettings) -> Record:
    """A device that failed its probation is out for twice as long; one that fails while it is out, again as long."""
    length = record.length or settings.quarantine
    if fresh and record.length:
        length = min(2 * record.length, max(settings.quarantine_max, settings.quarantine))
    return replace(record, length=length, until=now + length)


def with_claims(record: Record, claims: tuple[Claim, ...], now: float) -> Record:
    """Credits a probation with the work until now. An idle hour proves nothing."""
    record = replace(credited(record, now), claims=claims)
    if record.health is not S.PROBATION:
        return record
    return replace(record, counted=now if claims and record.gone is None else None)


def credited(record: Record, now: float) -> Record:
    if record.counted is None:
        return record
    return replace(record, proved=record.proved + max(0.0, now - record.counted), counted=now)


def due(record: Record, settings: DeviceSettings) -> float | None:
    """When time alone will move the device; None when it will not."""
    if record.health in (S.QUARANTINED, S.DEGRADED):
        return record.until
    if record.health is S.PROBATION and record.counted is not None:
        return record.counted + max(0.0, settings.probation - record.proved)
    return None


TIMED: Final[Mapping[DeviceState, tuple[Signal, str]]] = {
    S.QUARANTINED: (Signal.SERVED, "the quarantine is over; one trial workload at a time"),
    S.DEGRADED: (Signal.EASED, ""),
    S.PROBATION: (Signal.PROVED, ""),
}


def shown(record: Record, parent: Record | None = None) -> tuple[DeviceState, str]:
    """(state, reason). What is wrong with a GPU is wrong with its instances: `parent` is the record of theirs."""
    if record.gone is not None:
        return S.OFFLINE, "the driver no longer shows it"
    if record.action in RESETS:
        return S.RESETTING, _ASKS[record.action]
    if parent is not None:
        state, reason = shown(parent)
        if state not in (S.AVAILABLE, S.ALLOCATED) and record.health is not S.QUARANTINED:
            return state, f"its GPU {parent.device.device_id}: {reason}"
    if record.health is not S.AVAILABLE:
        return record.health, record.reason
    if record.action is RecoveryAction.DRAIN_P2P:
        return S.DEGRADED, _ASKS[record.action]
    if record.at_work:
        return S.ALLOCATED, _holders(record)
    return S.AVAILABLE, _idle_reason(record)


def _idle_reason(record: Record) -> str:
    if not record.device.usable:
        return "in MIG mode: only its instances can be used, if it has any"
    return f"cordoned: {record.cordon.reason}" if record.cordon else ""


def _holders(record: Record) -> str:
    names = sorted({claim.holder for claim in record.claims})
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"held by {', '.join(names[:3])}{more}"


def admits(record: Record, parent: Record | None = None, holder: str = "") -> Inadmission | None:
    """None when the device takes new work; else why not. `holder`: an engine id whose own claim is no obstacle."""
    checks = (_offline, _recovery, _quarantine, _cordoned)
    for one in (record, parent):
        for check in checks if one is not None else ():
            if one is not None and (refused := check(one)) is not None:
                return refused
    if not record.device.usable:
        return Inadmission(Inadmissible.PARTITIONED, f"{_id(record)} is in MIG mode: only its instances take work")
    for one in (record, parent):
        if one is not None and (refused := _busy(one, holder)) is not None:
            return refused
    return None


def _id(record: Record) -> str:
    return f"device {record.device.device_id}"


def _offline(record: Record) -> Inadmission | None:
    if record.gone is None:
        return None
    return Inadmission(Inadmissible.OFFLINE, f"{_id(record)} is gone: the driver no longer shows it")


def _recovery(record: Record) -> Inadmission | None:
    if record.action is RecoveryAction.NONE:
        return None
    return Inadmission(Inadmissible.RECOVERY_ACTION, f"{_id(record)} takes no work: {_ASKS[record.action]}")


def _quarantine(record: Record) -> Inadmission | None:
    if record.health is not S.QUARANTINED:
        return None
    return Inadmission(Inadmissible.QUARANTINED, f"{_id(record)} is quarantined: {record.reason}", record.until)


def _cordoned(record: Record) -> Inadmission | None:
    if record.cordon is None:
        return None
    why = record.cordon.reason or "no reason was given"
    message = f"{_id(record)} is cordoned: {why}; `poolmgr devices uncordon` ends that"
    return Inadmission(Inadmissible.CORDONED, message)


def _busy(record: Record, holder: str) -> Inadmission | None:
    others = [claim for claim in record.claims if claim.kind is not ClaimKind.PROCESS and claim.engine_id != holder]
    if record.health is not S.PROBATION or not others:
        return None
    message = f"{_id(record)} is on probation and has its one trial workload: {others[0].holder}"
    return Inadmission(Inadmissible.PROBATION_BUSY, message)
