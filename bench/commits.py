"""How long it takes to record a batch of leases, and how long a commit with full sync on the same disk.

Both by the shipped store, as the daemon calls it, in this process: nothing else waits and no tracer slows it down. That
the daemon under load does record each batch, in one write, is counted by strace in a stretch that is not timed.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.common import percentile
from poolmgr.adapters.store.sqlite import SqliteStore, open_store
from poolmgr.adapters.system import ThreadWorkers
from poolmgr.model.lease import EndedLease, Lease, LeaseOutcome

# "PID SECONDS.MICROSECONDS pwrite64(9</x/state/leases.0>, ...": with strace -y
_WRITE = re.compile(r"^\d+ +\d+\.\d+ pwrite64\(\d+<[^>]*/leases\.[01]>")
_SYNC = re.compile(r"^\d+ +\d+\.\d+ (?:fsync|fdatasync)\(")
TRACED = ("pwrite64", "fsync", "fdatasync")


@dataclass(frozen=True, slots=True)
class Commits:
    """Milliseconds of every recording of a batch, and of every commit in SQLite with `synchronous=FULL`."""

    batch: list[float]
    full: list[float]

    @property
    def batch_p50(self) -> float:
        return percentile(self.batch, 50)

    @property
    def full_p50(self) -> float:
        return percentile(self.full, 50)


@dataclass(frozen=True, slots=True)
class Counted:
    """Of the daemon under load: writes to the lease log for each batch, and fsyncs for 1,000 grants."""

    writes_per_batch: float
    syncs_per_1000_grants: float


async def measure(directory: Path, pool_ids: Sequence[str], count: int) -> Commits:
    workers = ThreadWorkers("store", 1)
    store = await open_store(directory, workers, time.time)
    batch, full = [], []
    try:
        for number in range(count):
            batch += _record(store, [(pool_id, _lease(pool_id, number)) for pool_id in pool_ids])
        for _ in range(count):
            began = time.perf_counter()
            await store.reserve_fences()
            full.append(1000 * (time.perf_counter() - began))
    finally:
        store.close()
        workers.close()
    return Commits(batch, full)


def _lease(pool_id: str, number: int) -> Lease:
    """With ids as long as the daemon's."""
    own, token = f"{number:016x}", f"{number:032x}"
    return Lease(f"{pool_id}.{own}", token, "bench", 15.0, 1, number + 1, "127.0.0.1:30000", 1e6, token)


def _record(store: SqliteStore, leases: Sequence[tuple[str, Lease]]) -> list[float]:
    """Milliseconds for a batch that grants the leases, one by one as pools do, and for one that ends them."""
    ended = [EndedLease(lease.lease_id, lease.token, LeaseOutcome.ALREADY_RELEASED) for _, lease in leases]
    began = time.perf_counter()
    with store.batch():
        for grant in leases:
            store.record([grant], [])
    granted = time.perf_counter()
    with store.batch():
        for end in ended:
            store.record([], [end])
    return [1000 * (granted - began), 1000 * (time.perf_counter() - granted)]


def count(lines: Sequence[str], pairs: int, batch: int) -> Counted:
    """What strace has seen while `pairs` leases were taken and given back, `batch` operations at a time."""
    writes = sum(1 for line in lines if _WRITE.match(line))
    syncs = sum(1 for line in lines if _SYNC.match(line))
    return Counted(writes / (2 * pairs / batch), 1000 * syncs / pairs)
