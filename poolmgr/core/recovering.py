"""What a pool makes of what an earlier daemon left: leases, intents, an engine or none (LEASE-3, RST-8, PROC-6)."""

from __future__ import annotations

from poolmgr.core import leases, reload
from poolmgr.core.effects import NoteName, RecordLeases
from poolmgr.core.lifecycle import Trigger
from poolmgr.core.messages import LeasesKept
from poolmgr.core.reload import Step
from poolmgr.core.settle import half_open
from poolmgr.core.starting import start
from poolmgr.core.state import Pool, ReloadPhase, Turn, may_serve
from poolmgr.model.lease import EndedLease, Lease, LeaseOutcome
from poolmgr.model.pool import BreakerState, PoolState


def take_leases(turn: Turn, step: Step, fact: LeasesKept) -> None:
    """Leases of the engines that were taken over; those of others are over (LEASE-3)."""
    fact = reload.kept_beside(turn, step, fact)
    pool, now = turn.pool, turn.at.now
    alive = may_serve(pool)
    here = tuple(lease for lease in fact.live if alive and _is_on(pool, lease))
    lost = tuple(EndedLease(x.lease_id, x.token, LeaseOutcome.EXPIRED) for x in fact.live if x not in here)
    table = leases.restore(pool.leases, here, (*fact.ended, *lost), now, pool.lease_settings)
    turn.set(leases=table)
    if lost:
        turn.do(RecordLeases(ended=lost))
    if not fact.known and alive:
        turn.set(held_until=now + pool.lease_settings.ttl_max + pool.lease_settings.grace)
        turn.note(
            NoteName.LEASES_UNKNOWN, hold_ms=int((pool.lease_settings.ttl_max + pool.lease_settings.grace) * 1000)
        )


def _is_on(pool: Pool, lease: Lease) -> bool:
    return pool.engine is None or lease.endpoint == reload.endpoint_of(pool)


def go_on(turn: Turn, step: Step) -> None:
    """Everything found has been told: what was wanted of the pool is wanted again."""
    turn.set(recovering=False)
    reload.recovered(turn, step)
    pool = turn.pool
    if pool.state is not PoolState.PENDING or pool.deleting:
        return
    if pool.reload is not None and pool.reload.phase is ReloadPhase.ENDING:
        turn.go(Trigger.HALT, f"generation {pool.reload.generation} ends first")  # then this one starts
        return
    open_breaker = pool.policy.breaker_state is BreakerState.OPEN
    if pool.then in (Trigger.RETRY, Trigger.PARK):
        turn.go(pool.then, pool.reason)
    elif not pool.wanted:
        if pool.home is not None:
            turn.go(Trigger.HALT, "not running when the daemon started")
    elif open_breaker and pool.policy.open_until > turn.at.now:
        turn.go(Trigger.PARK, "the breaker is open", resume_at=pool.policy.open_until)
    else:
        if open_breaker:
            half_open(turn)
        start(turn, Trigger.START, "wanted before the daemon's start")
