"""Leases, refusals and the answers to renew and release."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

TTL_DEFAULT = 15.0
TTL_MIN = 3.0
TTL_MAX = 300.0
WAIT_MAX = 3600.0


class RefusalReason(StrEnum):
    POOL_NOT_FOUND = "POOL_NOT_FOUND"
    POOL_NOT_READY = "POOL_NOT_READY"
    POOL_DRAINING = "POOL_DRAINING"
    POOL_FULL = "POOL_FULL"
    BREAKER_OPEN = "BREAKER_OPEN"
    OVERLOADED = "OVERLOADED"


class LeaseOutcome(StrEnum):
    RENEWED = "RENEWED"
    RELEASED = "RELEASED"
    ALREADY_RELEASED = "ALREADY_RELEASED"
    EXPIRED = "EXPIRED"
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True, slots=True)
class LeaseAsk:
    """A request for a slot. `lease_id` and `token` are drawn by the caller's edge, so that a grant needs no randomness.

    `ttl` and `wait` in seconds; `request_id` makes a retry get the same lease.
    """

    lease_id: str
    token: str
    holder: str
    ttl: float = TTL_DEFAULT
    wait: float = 0.0
    priority: int = 0
    request_id: str = ""


class Lease(NamedTuple):
    """A granted slot. `expires` is on the boot-time clock, in seconds."""

    lease_id: str
    token: str
    holder: str
    ttl: float
    generation: int
    fencing_token: int
    endpoint: str
    expires: float
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why no slot was given, and when another try may help (seconds; None: nobody knows)."""

    reason: RefusalReason
    message: str
    retry_after: float | None = None


def pool_of(lease_id: str) -> str:
    """The pool that a lease is of: its id names it, so that nothing needs to remember where it is."""
    return lease_id.rpartition(".")[0]


class EndedLease(NamedTuple):
    """A lease that is over, remembered so that a late renew or release gets a true answer."""

    lease_id: str
    token: str
    outcome: LeaseOutcome


@dataclass(frozen=True, slots=True)
class KeptLeases:
    """What was recorded of leases in this boot. `live` as (pool id, lease), `ended` oldest first.

    `known` False: the record is missing or damaged, so that leases may be out that nobody here knows of.
    """

    known: bool
    live: tuple[tuple[str, Lease], ...] = ()
    ended: tuple[EndedLease, ...] = ()
