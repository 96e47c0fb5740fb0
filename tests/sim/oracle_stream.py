"""The stream of changes: each once, in order, without a gap that is not told; and true when it is told."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from poolmgr.model.pool import BreakerState, PoolState, PoolView
from poolmgr.runtime.bus import EPOCH_SHIFT, Resync

if TYPE_CHECKING:
    from tests.sim.daemon import Daemon
    from tests.sim.oracle import Oracle

EMPTY_STATES = (PoolState.BACKOFF, PoolState.PARKED, PoolState.STOPPED)
PHASES = {
    PoolState.PROVISIONING: "starting",
    PoolState.STARTING: "starting",
    PoolState.DRAINING: "draining",
    PoolState.STOPPING: "stopping",
    PoolState.BACKOFF: "backoff",
    PoolState.PARKED: "parked",
}


class StreamOracle:
    def __init__(self, oracle: Oracle) -> None:
        self._oracle = oracle
        self._epochs: set[int] = set()
        self._last = 0
        self.views: dict[str, PoolView] = {}
        self._before: dict[str, PoolView] = {}
        self.seen: dict[int, str] = {}
        self.changes = 0

    def phase(self) -> str:
        phases = {PHASES[v.state] for v in self.views.values() if v.state in PHASES}
        for name in ("stopping", "starting", "draining", "backoff", "parked"):
            if name in phases:
                return name
        return "serving"

    def last_view(self, pool_id: str) -> PoolView | None:
        """As it was published last by the daemon before."""
        return self._before.get(pool_id)

    def daemon_lost(self) -> None:
        self._before, self.views = self.views, {}

    def serving(self, daemon: Daemon) -> None:
        epoch = daemon.bus.epoch
        if epoch in self._epochs:
            self._oracle.violate("WATCH", f"epoch {epoch} is used again")
        self._epochs.add(epoch)
        if daemon.bus.revision <= self._last:
            self._oracle.violate("WATCH", f"revision {daemon.bus.revision} after {self._last}")
        self.views = {p.pool_id: p.view for p in daemon.facade.pools()}
        self._last = daemon.bus.revision
        daemon.loop.create_task(self._audit(daemon), name="audit")

    async def _audit(self, daemon: Daemon) -> None:
        async for batch in daemon.facade.watch(self._last):
            if isinstance(batch, Resync):
                self._oracle.violate("WATCH", f"the auditor is told to resync: {batch.reason}")
                return
            for change in batch:
                self._change(change)

    def _change(self, change) -> None:
        self.changes += 1
        if change.revision != self._last + 1:
            self._oracle.violate("WATCH", f"revision {change.revision} after {self._last}")
        self._last = change.revision
        if change.pool is None:
            self.views.pop(change.pool_id, None)
            self._oracle.viewed(change.pool_id, None)
            return
        view, before = change.pool.view, self.views.get(change.pool_id)
        # That a pool is being deleted is no field of a view: its one change may look like none.
        deleting = self._oracle.pools.truth(change.pool_id).exists is None
        if before is not None and not deleting and replace(view, revision=before.revision) == before:
            self._oracle.violate("WATCH", f"revision {change.revision} changes nothing of pool {change.pool_id}")
        self.views[change.pool_id] = view
        self._oracle.viewed(change.pool_id, view)
        if before is None or before.state is not view.state:
            self._oracle.world.trace("state", view.pool_id, view.state, view.state_reason)
            self._oracle.world.event(f"state-{view.state}")
            if not self._oracle.registered.owns(view.pool_id):
                self._judge(view)
        if view.reload_phase and (before is None or before.reload_phase != view.reload_phase):
            self._oracle.world.trace("reload", view.pool_id, view.reload_phase, str(view.reload_generation))
            self._oracle.world.event(f"reload-{view.reload_phase}")
        if view.breaker_state is not BreakerState.CLOSED:
            self._oracle.world.event(f"breaker-{view.breaker_state}")

    def _judge(self, view: PoolView) -> None:
        world, oracle = self._oracle.world, self._oracle
        directory = world.disk.engine_dirs.get(view.engine_id)
        if view.state is PoolState.READY:
            main = directory.main if directory else None
            if main is None or main.pid != view.pid or not main.was_ready(oracle.now):
                oracle.violate("PRE-4", f"pool {view.pool_id} is READY, its engine is not: {main}")
        elif view.state in EMPTY_STATES and not view.reload_phase:
            left = world.kernel.leaf(view.engine_id)
            if left:
                oracle.violate("PRE-8", f"pool {view.pool_id} is {view.state}, and {left} are left")
        if view.state is PoolState.BACKOFF and view.backoff_until is not None:
            wait = view.backoff_until - world.wall()
            limit = oracle.pools.truth(view.pool_id).settings().backoff_max
            if wait > limit + 0.1:
                oracle.violate("RST-1", f"pool {view.pool_id} backs off for {wait:.1f} s, the limit is {limit:g} s")

    def settled(self) -> None:
        """What a read shows is what the stream told last."""
        daemon = self._oracle.world.daemon
        if daemon is None or not daemon.serving:
            return
        for published in daemon.facade.pools():
            seen = self.views.get(published.pool_id)
            if seen is None or seen.revision != published.revision:
                self._oracle.violate("WATCH", f"pool {published.pool_id} changed and no watcher was told")


class Watcher:
    """A client that watches, falls behind and comes back; it knows what it may miss: nothing, without a resync."""

    def __init__(self, oracle: Oracle) -> None:
        self._oracle = oracle
        self.after = -1
        self.resyncs = 0

    def begin(self, daemon: Daemon, slow: float) -> None:
        if self.after < 0:
            self.after = daemon.bus.revision
        daemon.loop.create_task(self._watch(daemon, slow), name="watcher")

    async def _watch(self, daemon: Daemon, slow: float) -> None:
        while True:
            async for batch in daemon.facade.watch(self.after):
                if isinstance(batch, Resync):
                    self._resync(batch, daemon)
                    break
                for change in batch:
                    if change.revision != self.after + 1:
                        self._oracle.violate("WATCH", f"a watcher got {change.revision} after {self.after}")
                    self.after = change.revision
                if slow:
                    await self._oracle.world.sleep(slow)

    def _resync(self, resync: Resync, daemon: Daemon) -> None:
        self.resyncs += 1
        self._oracle.world.event(f"resync-{resync.reason}")
        changed = self.after >> EPOCH_SHIFT != daemon.bus.epoch
        if (resync.reason == "EPOCH_CHANGED") is not changed:
            self._oracle.violate("WATCH", f"a watcher of epoch {self.after >> EPOCH_SHIFT} is told {resync.reason}")
        self.after = daemon.bus.revision
