"""What outlives the daemon on disk: engine directories, the database, the log of leases.

A write is *cached* once it is made and *durable* once it is synced; a kill of the daemon loses neither, a power cut
loses what is not durable, or tears it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

from poolmgr.model.engine import ExitRecord, LaunchSpec, ProcessIdentity
from poolmgr.model.lease import EndedLease, Lease, LeaseOutcome
from poolmgr.model.pool import StoredPool
from tests.sim.kernel import Process

FENCES_AT_ONCE = 1000
KEPT_GENERATIONS = 20
KEPT_ENDED = 1024
UNKNOWN_SECONDS = 360.0  # TTL_MAX and a minute: as long as a lease can be out that nobody renews


@dataclass(eq=False)
class EngineDir:
    """`damaged`: its `spec` cannot be read. `synced`: what a power cut leaves of `identity` and `exit`."""

    engine_id: str
    launch: LaunchSpec | None = None
    identity: ProcessIdentity | None = None
    main: Process | None = None
    exit: ExitRecord | None = None
    damaged: bool = False
    synced: tuple[ProcessIdentity | None, ExitRecord | None] = (None, None)
    log: list[str] = field(default_factory=list)


@dataclass
class Disk:
    """`pools` as cached, `durable` as synced. `full`, `failing`: what every further write meets."""

    engine_dirs: dict[str, EngineDir] = field(default_factory=dict)
    pools: dict[str, StoredPool] = field(default_factory=dict)
    durable: dict[str, StoredPool] = field(default_factory=dict)
    epoch: int = 0
    fence: int = 1
    full: bool = False
    failing: bool = False
    leases_boot: str = ""
    leases: dict[str, tuple[str, Lease]] = field(default_factory=dict)
    ended: dict[str, EndedLease] = field(default_factory=dict)
    leases_unknown: float = -inf  # found lost at this boot time

    def power_cut(self, keep: float) -> None:
        """`keep` in 0..1 decides whether what is written but not synced survives."""
        if keep < 0.5:
            self.pools = dict(self.durable)
        for directory in self.engine_dirs.values():
            if keep < 0.5:
                directory.identity, directory.exit = directory.synced
        self.durable = dict(self.pools)

    def record_leases(self, boot_id: str, granted: list[tuple[str, Lease]], ended: list[EndedLease]) -> None:
        if self.leases_boot != boot_id:
            self.leases_boot, self.leases, self.ended, self.leases_unknown = boot_id, {}, {}, -inf
        for pool_id, lease in granted:
            self.leases[lease.lease_id] = (pool_id, lease)
        for one in ended:
            self.leases.pop(one.lease_id, None)
            self.ended[one.lease_id] = one
        while len(self.ended) > KEPT_ENDED:
            del self.ended[next(iter(self.ended))]

    def lose_database(self) -> None:
        """Deleted, or damaged and put aside. Epochs and fencing numbers are kept elsewhere (LEASE-2)."""
        self.pools, self.durable = {}, {}

    def damage_leases(self, boot_id: str, boot_time: float) -> None:
        self.leases_boot, self.leases, self.ended, self.leases_unknown = boot_id, {}, {}, boot_time


def was_released(ended: EndedLease) -> bool:
    return ended.outcome in (LeaseOutcome.RELEASED, LeaseOutcome.ALREADY_RELEASED)
