"""The pool's lifecycle: the one place where its transitions stand.

`TRANSITIONS` says where a trigger leads from each state; what is not in it cannot happen, and `advance` raises.
`COMMANDS` says what each command means in each state: act on it, answer that it is so already, or refuse.
`ADMISSION` couples the pool's state with its breaker: what somebody who asks for a slot is told.
`docs/lifecycle.md` is drawn from these three tables.

A failed or stopping engine leaves through STOPPING, which lasts until no process of its tree is left. That is why
BACKOFF, PARKED and STOPPED never own a process (PRE-8), and why a start can never meet the engine before it (PROC-7).
An engine that registers itself has no process of ours: its pool passes through STOPPING within one step.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from poolmgr.errors import InternalError
from poolmgr.model.lease import RefusalReason
from poolmgr.model.pool import BreakerState, PoolState

S = PoolState


class Trigger(StrEnum):
    START = "START"  # asked to run
    SPAWNED = "SPAWNED"  # the process exists
    ADOPTED = "ADOPTED"  # found alive at the daemon's start
    DOUBTED = "DOUBTED"  # found at the daemon's start, identity in doubt
    BECAME_READY = "BECAME_READY"  # every gate of PRE-1 passed
    DRAIN = "DRAIN"
    UNDRAIN = "UNDRAIN"
    STOP = "STOP"  # asked to end; processes remain
    FAIL = "FAIL"  # ended or was found unfit; processes may remain
    HALT = "HALT"  # no process is left, none is wanted
    RETRY = "RETRY"  # no process is left, another start is due later
    PARK = "PARK"  # no process is left, no start without an operator or a trial
    RESUME = "RESUME"  # the time of the next start has come
    # Of engines that register themselves, which take these and BECAME_READY, DRAIN, UNDRAIN, STOP and HALT only.
    HEARD = "HEARD"  # it told of itself
    UNREADY = "UNREADY"  # it says that it is not ready, or is to be probed anew
    LOSE = "LOSE"  # it is silent, or its probes failed


TRANSITIONS: Mapping[tuple[PoolState, Trigger], PoolState] = {
    (S.PENDING, Trigger.START): S.PROVISIONING,
    (S.PENDING, Trigger.ADOPTED): S.STARTING,
    (S.PENDING, Trigger.DOUBTED): S.UNKNOWN,
    (S.PENDING, Trigger.HALT): S.STOPPED,
    (S.PENDING, Trigger.RETRY): S.BACKOFF,
    (S.PENDING, Trigger.PARK): S.PARKED,
    (S.PROVISIONING, Trigger.SPAWNED): S.STARTING,
    (S.PROVISIONING, Trigger.STOP): S.STOPPING,
    (S.PROVISIONING, Trigger.RETRY): S.BACKOFF,
    (S.PROVISIONING, Trigger.PARK): S.PARKED,
    (S.PROVISIONING, Trigger.HALT): S.STOPPED,
    (S.STARTING, Trigger.BECAME_READY): S.READY,
    (S.STARTING, Trigger.STOP): S.STOPPING,
    (S.STARTING, Trigger.FAIL): S.STOPPING,
    (S.READY, Trigger.DRAIN): S.DRAINING,
    (S.READY, Trigger.STOP): S.STOPPING,
    (S.READY, Trigger.FAIL): S.STOPPING,
    (S.DRAINING, Trigger.UNDRAIN): S.READY,
    (S.DRAINING, Trigger.STOP): S.STOPPING,
    (S.DRAINING, Trigger.FAIL): S.STOPPING,
    (S.STOPPING, Trigger.HALT): S.STOPPED,
    (S.STOPPING, Trigger.RETRY): S.BACKOFF,
    (S.STOPPING, Trigger.PARK): S.PARKED,
    (S.STOPPING, Trigger.RESUME): S.PROVISIONING,
    (S.STOPPED, Trigger.START): S.PROVISIONING,
    (S.BACKOFF, Trigger.RESUME): S.PROVISIONING,
    (S.BACKOFF, Trigger.HALT): S.STOPPED,
    (S.PARKED, Trigger.RESUME): S.PROVISIONING,
    (S.PARKED, Trigger.HALT): S.STOPPED,
    (S.UNKNOWN, Trigger.HALT): S.STOPPED,
    (S.PENDING, Trigger.HEARD): S.STARTING,
    (S.PENDING, Trigger.LOSE): S.LOST,
    (S.STARTING, Trigger.LOSE): S.LOST,
    (S.READY, Trigger.UNREADY): S.STARTING,
    (S.READY, Trigger.LOSE): S.LOST,
    (S.DRAINING, Trigger.UNREADY): S.STARTING,
    (S.DRAINING, Trigger.LOSE): S.LOST,
    (S.STOPPED, Trigger.LOSE): S.LOST,
    (S.LOST, Trigger.HEARD): S.STARTING,
    (S.LOST, Trigger.STOP): S.STOPPING,
}


def advance(state: PoolState, trigger: Trigger) -> PoolState:
    """Where `trigger` leads from `state`. InternalError for what the table does not hold."""
    try:
        return TRANSITIONS[state, trigger]
    except KeyError:
        raise InternalError(f"no transition from {state} by {trigger}") from None


class Command(StrEnum):
    PRELOAD = "preload"
    DRAIN = "drain"
    UNDRAIN = "undrain"
    STOP = "stop"


class Verdict(StrEnum):
    ACT = "act"
    DONE = "done"  # it is so already, or becomes so by itself: idempotent
    REFUSE = "refuse"


def _row(act: set[PoolState], done: set[PoolState]) -> dict[PoolState, Verdict]:
    return {s: Verdict.ACT if s in act else Verdict.DONE if s in done else Verdict.REFUSE for s in PoolState}


COMMANDS: Mapping[Command, Mapping[PoolState, Verdict]] = {
    Command.PRELOAD: _row({S.PENDING, S.STOPPED}, {S.PROVISIONING, S.STARTING, S.READY, S.BACKOFF, S.LOST}),
    Command.DRAIN: _row(
        {S.PROVISIONING, S.STARTING, S.READY, S.BACKOFF, S.PARKED, S.LOST},
        {S.PENDING, S.STOPPED, S.STOPPING, S.DRAINING},
    ),
    Command.UNDRAIN: _row({S.DRAINING}, {S.READY}),
    Command.STOP: _row(
        {S.PROVISIONING, S.STARTING, S.READY, S.DRAINING, S.BACKOFF, S.PARKED, S.LOST},
        {S.PENDING, S.STOPPED, S.STOPPING},
    ),
}


class Admission(StrEnum):
    GRANT = "grant"  # while a slot is free; else queue
    QUEUE = "queue"  # no slot yet, but one can come without anybody's help
    REFUSE = "refuse"


_NOT_READY = RefusalReason.POOL_NOT_READY

# What is told to somebody who asks for a slot; the reason counts where the ask is not granted.
ADMISSION: Mapping[PoolState, tuple[Admission, RefusalReason]] = {
    S.PENDING: (Admission.REFUSE, _NOT_READY),
    S.PROVISIONING: (Admission.QUEUE, _NOT_READY),
    S.STARTING: (Admission.QUEUE, _NOT_READY),
    S.READY: (Admission.GRANT, RefusalReason.POOL_FULL),
    S.DRAINING: (Admission.REFUSE, RefusalReason.POOL_DRAINING),
    S.STOPPING: (Admission.REFUSE, _NOT_READY),
    S.STOPPED: (Admission.REFUSE, _NOT_READY),
    S.BACKOFF: (Admission.QUEUE, _NOT_READY),
    S.PARKED: (Admission.REFUSE, _NOT_READY),
    S.UNKNOWN: (Admission.REFUSE, _NOT_READY),
    S.LOST: (Admission.REFUSE, _NOT_READY),
}


def admission(state: PoolState, breaker: BreakerState) -> tuple[Admission, RefusalReason]:
    """As the table says; but where an open breaker parked the pool, that is the reason."""
    if state is S.PARKED and breaker is BreakerState.OPEN:
        return Admission.REFUSE, RefusalReason.BREAKER_OPEN
    return ADMISSION[state]
