"""The slots of one pool: who holds them, who waits for them, whose time is over (LEASE-1, 3, 5, 6).

A slot is taken from the grant until the release, or until the grace after the expiry has passed: between the two
the lease is void for its holder and the slot is nobody else's yet. The last `tombstones` ended leases are remembered,
so that a late release or renew gets a true answer at bounded cost.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

from poolmgr.model.lease import EndedLease, Lease, LeaseAsk, LeaseOutcome, Refusal, RefusalReason
from poolmgr.model.settings import LeaseSettings

# A release copies the newest leaf only, and an old revision of the pool that a watcher may still want keeps that copy.
TOMBSTONES_PER_LEAF = 16


@dataclass(frozen=True, slots=True)
class Waiter:
    """An ask in the queue until `deadline` (boot-time seconds). `serial` keeps first come, first served."""

    ask: LeaseAsk
    deadline: float
    serial: int

    @property
    def rank(self) -> tuple[int, int]:
        return (-self.ask.priority, self.serial)


class Answer(NamedTuple):
    """What an ask is told: exactly one per ask, at once or later."""

    lease_id: str
    result: Lease | Refusal


class Tombstone(NamedTuple):
    token: str
    outcome: LeaseOutcome


class Grantor(NamedTuple):
    """What a grant needs from around the table: the serving engine, and the first fencing number to use."""

    endpoint: str
    generation: int
    fence: int


NO_LEASES: Mapping[str, Lease] = {}


class LeaseTable(NamedTuple):
    """Immutable; every function below returns a new one. `slots` is the limit that holds now.

    `quiet_until`: no slot and no waiter falls due before (boot-time seconds); it may be too early, never too late.
    `ended`: leaves of tombstones, newest first. `elsewhere`: slots of the pool that are leased on its other engine.
    """

    slots: int
    live: Mapping[str, Lease] = NO_LEASES
    waiters: tuple[Waiter, ...] = ()
    asked: int = 0
    quiet_until: float = inf
    ended: tuple[Mapping[str, Tombstone], ...] = ()
    elsewhere: int = 0

    @property
    def free(self) -> int:
        """Never below zero, also when the limit was lowered under what is leased."""
        return max(0, self.slots - self.elsewhere - len(self.live))


def find(table: LeaseTable, ask: LeaseAsk, now: float) -> Lease | None:
    """The live lease that an earlier try of the same request got."""
    if not ask.request_id:
        return None
    for lease in table.live.values():
        if lease.request_id == ask.request_id and lease.holder == ask.holder and lease.expires > now:
            return lease
    return None


def knows(table: LeaseTable, lease_id: str) -> bool:
    """Whether this lease is, or was, one of the table's."""
    return lease_id in table.live or any(lease_id in leaf for leaf in table.ended)


def grant(table: LeaseTable, ask: LeaseAsk, by: Grantor, now: float) -> tuple[LeaseTable, Lease]:
    """Gives a free slot. The caller has seen that one is free."""
    lease = Lease(
        ask.lease_id,
        ask.token,
        ask.holder,
        ask.ttl,
        by.generation,
        by.fence,
        by.endpoint,
        now + ask.ttl,
        ask.request_id,
    )
    live, quiet_until = {**table.live, lease.lease_id: lease}, min(table.quiet_until, lease.expires)
    return LeaseTable(table.slots, live, table.waiters, table.asked, quiet_until, table.ended, table.elsewhere), lease


def enqueue(table: LeaseTable, ask: LeaseAsk, now: float, settings: LeaseSettings) -> tuple[LeaseTable, list[Answer]]:
    """Queues the ask, in the place of an earlier try of the same request, which is refused: the retry has taken over.

    Refuses the ask itself when the queue is full.
    """
    replaced = [w for w in table.waiters if ask.request_id and _same_request(w.ask, ask)]
    others = [w for w in table.waiters if w not in replaced]
    if len(others) >= settings.max_waiters:
        message = f"{len(others)} requests wait already, the limit is {settings.max_waiters}"
        return table, [Answer(ask.lease_id, Refusal(RefusalReason.OVERLOADED, message))]
    serial = min((w.serial for w in replaced), default=table.asked)
    waiters = sorted([*others, Waiter(ask, now + ask.wait, serial)], key=lambda w: w.rank)
    superseded = Refusal(RefusalReason.POOL_FULL, f"a later try of request {ask.request_id} waits in its place")
    answers = [Answer(w.ask.lease_id, superseded) for w in replaced]
    quiet_until = min(table.quiet_until, now + ask.wait)
    return table._replace(waiters=tuple(waiters), asked=table.asked + 1, quiet_until=quiet_until), answers


def _same_request(one: LeaseAsk, other: LeaseAsk) -> bool:
    return one.request_id == other.request_id and one.holder == other.holder


def forget_waiter(table: LeaseTable, lease_id: str) -> LeaseTable:
    """The client went away."""
    return table._replace(waiters=tuple(w for w in table.waiters if w.ask.lease_id != lease_id))


def serve(table: LeaseTable, by: Grantor, now: float) -> tuple[LeaseTable, list[Answer]]:
    """Gives free slots to waiters, best rank first; fencing numbers rise from `by.fence` in that order."""
    answers: list[Answer] = []
    while table.free and table.waiters:
        first, *rest = table.waiters
        table, lease = grant(
            table._replace(waiters=tuple(rest)), first.ask, by._replace(fence=by.fence + len(answers)), now
        )
        answers.append(Answer(lease.lease_id, lease))
    return table, answers


def renew(table: LeaseTable, lease_id: str, token: str, now: float) -> tuple[LeaseTable, LeaseOutcome, float | None]:
    """Extends a live lease; (table, outcome, new expiry). Past its expiry it is EXPIRED, though its slot is held."""
    lease = table.live.get(lease_id)
    if lease is None or lease.token != token:
        return table, _outcome_of_ended(table, lease_id, token), None
    if lease.expires <= now:
        return table, LeaseOutcome.EXPIRED, None
    extended = lease._replace(expires=now + lease.ttl)
    return table._replace(live={**table.live, lease_id: extended}), LeaseOutcome.RENEWED, extended.expires


def release(
    table: LeaseTable, lease_id: str, token: str, now: float, settings: LeaseSettings
) -> tuple[LeaseTable, LeaseOutcome]:
    lease = table.live.get(lease_id)
    if lease is None or lease.token != token:
        return table, _outcome_of_ended(table, lease_id, token)
    outcome = LeaseOutcome.RELEASED if lease.expires > now else LeaseOutcome.EXPIRED
    remembered = LeaseOutcome.ALREADY_RELEASED if outcome is LeaseOutcome.RELEASED else LeaseOutcome.EXPIRED
    return _end(table, [lease], remembered, settings), outcome


def _outcome_of_ended(table: LeaseTable, lease_id: str, token: str) -> LeaseOutcome:
    tombstone = next((leaf[lease_id] for leaf in table.ended if lease_id in leaf), None)
    return tombstone.outcome if tombstone and tombstone.token == token else LeaseOutcome.UNKNOWN


def _end(table: LeaseTable, leases: Iterable[Lease], remembered: LeaseOutcome, settings: LeaseSettings) -> LeaseTable:
    per_leaf = max(1, min(TOMBSTONES_PER_LEAF, settings.tombstones // 2))
    live, newest, older = dict(table.live), dict(table.ended[0]) if table.ended else {}, table.ended[1:]
    for lease in leases:
        del live[lease.lease_id]
        if len(newest) >= per_leaf:
            newest, older = {}, (newest, *older)
        newest[lease.lease_id] = Tombstone(lease.token, remembered)
    ended = (newest, *older)[: max(1, settings.tombstones // per_leaf)]
    return LeaseTable(table.slots, live, table.waiters, table.asked, table.quiet_until, ended, table.elsewhere)


def restore(
    table: LeaseTable, live: Iterable[Lease], ended: Iterable[EndedLease], now: float, settings: LeaseSettings
) -> LeaseTable:
    """What an earlier daemon of this boot granted, each for one full ttl from now, also above the limit (LEASE-3)."""
    kept = {lease.lease_id: lease._replace(expires=now + lease.ttl) for lease in live}
    leaf = {e.lease_id: Tombstone(e.token, e.outcome) for e in ended}
    first = min((lease.expires for lease in kept.values()), default=inf)
    table = table._replace(live={**table.live, **kept}, quiet_until=min(table.quiet_until, first))
    return table._replace(ended=(leaf, *table.ended)) if leaf else table


def ended_since(before: LeaseTable, after: LeaseTable) -> tuple[EndedLease, ...]:
    """The leases of `before` that are over in `after`, with what is told of them from now on."""
    return tuple(
        EndedLease(lease.lease_id, lease.token, _outcome_of_ended(after, lease.lease_id, lease.token))
        for lease in before.live.values()
        if lease.lease_id not in after.live
    )


def remember(table: LeaseTable, other: LeaseTable, settings: LeaseSettings) -> LeaseTable:
    """`table` with the tombstones of the other engine's, which goes."""
    leaves = max(1, settings.tombstones // TOMBSTONES_PER_LEAF)
    return table._replace(ended=(*table.ended, *other.ended)[:leaves]) if other.ended else table


def revoke(table: LeaseTable, settings: LeaseSettings) -> LeaseTable:
    """The engine is gone, and every lease with it."""
    return _end(table, list(table.live.values()), LeaseOutcome.EXPIRED, settings) if table.live else table


def refuse_waiters(
    table: LeaseTable, reason: RefusalReason, message: str, retry_after: float | None
) -> tuple[LeaseTable, list[Answer]]:
    refusal = Refusal(reason, message, retry_after)
    return table._replace(waiters=()), [Answer(w.ask.lease_id, refusal) for w in table.waiters]


def expire(
    table: LeaseTable, now: float, reason: RefusalReason, settings: LeaseSettings
) -> tuple[LeaseTable, list[Answer]]:
    """Frees the slots whose grace has passed and answers the waiters whose time is over with `reason`."""
    if now < table.quiet_until:
        return table, []
    over = [lease for lease in table.live.values() if lease.expires + settings.grace <= now]
    if over:
        table = _end(table, over, LeaseOutcome.EXPIRED, settings)
    late = [w for w in table.waiters if w.deadline <= now]
    if late:
        table = table._replace(waiters=tuple(w for w in table.waiters if w.deadline > now))
    answers = [Answer(w.ask.lease_id, Refusal(reason, f"no slot within {w.ask.wait:g} s")) for w in late]
    return table._replace(quiet_until=_next_end(table, settings)), answers


def _next_end(table: LeaseTable, settings: LeaseSettings) -> float:
    first = min((lease.expires for lease in table.live.values()), default=inf) + settings.grace
    return min([first, *(w.deadline for w in table.waiters)])


def next_deadline(table: LeaseTable) -> float | None:
    """When to look for what is over. That may be too early: a lease that was renewed or released has moved nothing."""
    return table.quiet_until if table.live or table.waiters else None
