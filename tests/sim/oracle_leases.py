"""Leases as their holders see them: what was acknowledged is honoured, and never more of it than there are slots."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING

from poolmgr.model.lease import Lease, LeaseOutcome
from tests.sim.kernel import Process

if TYPE_CHECKING:
    from tests.sim.calls import Call
    from tests.sim.daemon import Daemon
    from tests.sim.oracle import Oracle

GRACE = 0.95  # of the second for which an expired slot is nobody's
TOLERANCE = 0.001


@dataclass(eq=False, slots=True)
class Held:
    """One acknowledged lease. `expires`, `promised`: on the boot-time clock, as told and as LEASE-3 promises."""

    pool_id: str
    lease: Lease
    engine: Process | None
    boot_id: str
    expires: float
    promised: float = 0.0
    release_sent: bool = False
    tried: bool = False  # an earlier release reached the daemon, and its answer was lost
    released: bool = False
    unsure: bool = False  # it was released while the store was ill: that goes on, and may be lost with the daemon
    over: bool = False


class LeaseOracle:
    def __init__(self, oracle: Oracle) -> None:
        self._oracle = oracle
        self.held: dict[str, Held] = {}
        self._fences: dict[int, str] = {}
        self._ack_times: list[float] = []
        self._highest: list[int] = []
        self._last_recorded = 0
        self._requests: dict[tuple[str, str, str], Lease] = {}
        self._cancelled: dict[str, float] = {}
        self._damaged_at = -1.0
        self._died_at = -1.0
        self._woke = self._booted_at = -1.0
        self.lost = 0
        self.doubled = 0
        self.acknowledged = 0

    @property
    def _boot_now(self) -> float:
        return self._oracle.world.kernel.boot_time()

    # What is live, as far as its holder can tell.

    def _live(self, held: Held, grace: float = 0.0) -> bool:
        engine = held.engine
        return (
            not held.over
            and not held.release_sent
            and held.boot_id == self._oracle.world.kernel.boot_id
            and held.expires + grace > self._boot_now
            and engine is not None
            and engine.alive
            and not engine.told
        )

    def live_count(self) -> int:
        return sum(1 for held in self.held.values() if self._live(held))

    def live_on(self, engine: Process) -> int:
        return sum(1 for held in self.held.values() if held.engine is engine and self._live(held))

    # Grants.

    def granted(self, pool_id: str, lease: Lease, call: Call) -> None:
        """The holder has got it."""
        world = self._oracle.world
        if lease.lease_id in self.held:  # a retry: the same lease again
            return
        self.acknowledged += 1
        self._check_fence(lease, call)
        port = int(lease.endpoint.rpartition(":")[2] or 0)
        engine = world.kernel.listener(port)
        if engine is not None and engine.pool_id != pool_id:
            self._oracle.violate("PRE-4", f"lease {lease.lease_id} leads to {lease.endpoint}, which is not its pool's")
        held = Held(pool_id, lease, engine, world.kernel.boot_id, lease.expires)
        self.held[lease.lease_id] = held
        truth = self._oracle.pools.truth(pool_id)
        if truth.drained_at is not None and call.first_sent > truth.drained_at and not truth.pending:
            self._oracle.violate("DRN-1", f"pool {pool_id} drains and grants {lease.lease_id}")
        live = [h for h in self.held.values() if h.pool_id == pool_id and self._live(h, GRACE)]
        # A reply can come when its daemon is no more: what that one published last is what it granted by.
        shown = self._oracle.stream.views.get(pool_id) or self._oracle.stream.last_view(pool_id)
        slots = truth.slots(call.first_sent, shown)
        if len(live) > slots > 0 and engine is not None:
            self.doubled += 1
            self._oracle.violate(
                "LEASE-1", f"{len(live)} live leases of pool {pool_id}, which has {slots} slots: "
                f"{[h.lease.lease_id for h in live]}"
            )  # fmt: skip

    def _check_fence(self, lease: Lease, call: Call) -> None:
        fence = lease.fencing_token
        if fence in self._fences:
            self._oracle.violate("LEASE-2", f"fencing number {fence} was given to {self._fences[fence]} too")
        self._fences[fence] = lease.lease_id
        before = bisect_left(self._ack_times, call.first_sent)
        if before and self._highest[before - 1] >= fence:
            self._oracle.violate("LEASE-2", f"fencing number {fence} after {self._highest[before - 1]}")
        self._ack_times.append(self._oracle.now)
        self._highest.append(max(fence, self._highest[-1] if self._highest else 0))

    def recorded(self, granted, ended) -> None:
        """What the disk was told, in its order."""
        now = self._boot_now
        for pool_id, lease in granted:
            self._record_grant(pool_id, lease, now)
        for one in ended:
            for key in [k for k, lease in self._requests.items() if lease.lease_id == one.lease_id]:
                del self._requests[key]

    def _record_grant(self, pool_id: str, lease: Lease, now: float) -> None:
        key = (pool_id, lease.holder, lease.request_id)
        first = self._requests.get(key) if lease.request_id else None
        if first is not None and first.lease_id == lease.lease_id:
            self._requests[key] = lease  # a renewal
            return
        if first is not None and first.expires > now:
            self.doubled += 1
            self._oracle.violate("LEASE-4", f"request {lease.request_id} of {lease.holder} has two leases")
        if lease.request_id:
            self._requests[key] = lease
        if lease.fencing_token <= self._last_recorded and lease.lease_id not in self.held:
            self._oracle.violate("LEASE-2", f"fencing number {lease.fencing_token} after {self._last_recorded}")
        self._last_recorded = max(self._last_recorded, lease.fencing_token)
        gone = self._cancelled.get(lease.holder)
        if gone is not None and gone < self._oracle.now - 0.2:
            self._oracle.violate("LEASE-5", f"{lease.holder} went away and is granted a slot")

    def cancelled(self, holder: str) -> None:
        self._cancelled[holder] = self._oracle.now

    # Renewals and releases.

    def renewed(self, held: Held, outcome: LeaseOutcome, expires: float | None, call: Call) -> None:
        lease = held.lease
        if outcome is LeaseOutcome.RENEWED and held.boot_id != self._oracle.world.kernel.boot_id:
            if call.arrived is not None and call.arrived >= self._booted_at:  # else its answer was on its way
                self._oracle.violate("LEASE-3", f"lease {lease.lease_id} is of another boot and was renewed")
            held.over = True
            return
        if outcome is LeaseOutcome.RENEWED:
            if held.over or held.released:
                self._oracle.violate("LEASE-6", f"lease {lease.lease_id} is over and was renewed")
            if expires is None or expires > self._boot_now + lease.ttl + TOLERANCE:
                self._oracle.violate("LEASE-3", f"lease {lease.lease_id} was renewed until {expires}, ttl {lease.ttl}")
            held.expires = max(held.expires, expires or 0.0)
            return
        if not held.over and not held.release_sent and not self._excused(held, call):
            self.lost += 1
            self._oracle.violate("LEASE-4", f"lease {lease.lease_id} was acknowledged, is live, and is {outcome}")
        held.over = True

    def released(self, held: Held, outcome: LeaseOutcome, call: Call) -> None:
        lease = held.lease
        if outcome is LeaseOutcome.RELEASED:
            if held.released and not held.unsure:
                self._oracle.violate("LEASE-6", f"lease {lease.lease_id} was released twice")
            held.released = True
            held.unsure = self._oracle.store_ill_until >= self._oracle.now
        elif not held.released and not held.over and not self._excused(held, call):
            if held.tried and outcome is LeaseOutcome.UNKNOWN:
                self._oracle.violate("LEASE-6", f"lease {lease.lease_id} was released before, and is {outcome}")
            elif outcome is not LeaseOutcome.ALREADY_RELEASED:
                self.lost += 1
                self._oracle.violate("LEASE-4", f"lease {lease.lease_id} is live, and its release says {outcome}")
        elif held.released and outcome is not LeaseOutcome.ALREADY_RELEASED and self._remembers(held):
            self._oracle.violate("LEASE-6", f"lease {lease.lease_id} was released before, and is {outcome}")

    def _remembers(self, held: Held) -> bool:
        """Whether the daemon should still know how this lease ended."""
        if held.unsure:
            return False
        same_boot = held.boot_id == self._oracle.world.kernel.boot_id
        pools = self._oracle.pools
        forgotten = held.pool_id in pools.lost or held.pool_id in pools.deleted
        return same_boot and self._damaged_at < 0 and not forgotten

    def foreign(self, what: str, outcome: LeaseOutcome) -> None:
        """Somebody tried with a token that is not the lease's."""
        if outcome is not LeaseOutcome.UNKNOWN:
            self._oracle.violate("LEASE-6", f"{what} with a wrong token is {outcome}")

    def _excused(self, held: Held, call: Call) -> bool:
        """Whether the lease may have been over when the daemon looked."""
        world, engine = self._oracle.world, held.engine
        if held.boot_id != world.kernel.boot_id or engine is None or not engine.alive or engine.told:
            return True
        if self._boot_now >= max(held.expires, held.promised) - TOLERANCE:
            return True
        return (
            self._damaged_at >= 0
            or held.pool_id in self._oracle.pools.lost
            or self._oracle.pools.doubted_pool(held.pool_id)
            or not engine.healthy(self._oracle.now)
        )

    # Daemons and hosts.

    def daemon_lost(self, daemon: Daemon) -> None:
        self._died_at = self._boot_now

    def serving(self, daemon: Daemon) -> None:
        """Each lease that was live when the last daemon died has one full ttl from this one's begin (LEASE-3)."""
        kernel = self._oracle.world.kernel
        for held in self.held.values():
            if not held.over and held.boot_id == kernel.boot_id and held.expires > self._died_at > 0:
                held.promised = max(held.promised, daemon.began - kernel.booted_at + held.lease.ttl)

    def booted(self) -> None:
        self._died_at = -1.0
        self._booted_at = self._oracle.now
        self._requests.clear()

    def resumed(self) -> None:
        self._woke = self._oracle.now

    def log_damaged(self) -> None:
        self._damaged_at = self._oracle.now

    def settled(self) -> None:
        """Every waiting client has got its answer. A daemon that was not scheduled hears of them when it goes on."""
        since = self._oracle.now - 30.0
        waiting = (c for c in self._oracle.world.calls.values() if c.kind == "acquire")
        late = [c for c in waiting if max(c.sent, self._woke) < since]
        if late:
            self._oracle.violate("LEASE-5", f"{len(late)} waiters have no answer, the first since {late[0].sent:.1f}")
