"""What bounds restarts over minutes and days (RST-4, RST-5), what is the host's and not a pool's (RST-6), and that
whoever waits for a pool that ends is told so (LEASE-5).

A failure counts here when nothing can be said against it: the engine of a pool that is READY ended by itself, and the
daemon that saw it could make that durable. The daemon counts more, never fewer.
"""

from __future__ import annotations

from collections import defaultdict, deque
from typing import TYPE_CHECKING

from poolmgr.model.engine import LaunchSpec
from poolmgr.model.pool import BreakerState, PoolState, PoolView, RestartMode
from poolmgr.model.settings import SupervisionSettings
from tests.sim.kernel import Process

if TYPE_CHECKING:
    from tests.sim.daemon import Daemon
    from tests.sim.oracle import Oracle

SURE_AFTER = 1.0
STORE_WELL_FOR = 5.0  # a store that failed may be left alone for so long
TOGETHER = 31.0  # seconds within which deaths may be one fault of the host
QUIET = 362.0  # for so long after a fault of the host no second one may be seen
AT_ONCE = 1.0
SEEN_AFTER = 3.0
NEARLY = 0.9
FORGIVES = frozenset({"create", "update", "delete", "reset", "reload", "rollback", "preload", "undrain"})
OVER = (PoolState.PARKED, PoolState.STOPPED)
HOST = SupervisionSettings()
MAX_FAILURES = 64


class LimitOracle:
    def __init__(self, oracle: Oracle) -> None:
        self._oracle = oracle
        self._failures: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=MAX_FAILURES))
        self._deaths: deque[tuple[float, str]] = deque(maxlen=MAX_FAILURES)
        self._heard: deque[tuple[float, str]] = deque(maxlen=MAX_FAILURES)  # when the daemon was told of a death
        self._served: deque[tuple[float, str, BreakerState]] = deque(maxlen=MAX_FAILURES)
        self._ends: deque[tuple[float, str]] = deque(maxlen=MAX_FAILURES)

    @property
    def _now(self) -> float:
        return self._oracle.now

    # What forgives.

    def asked(self, pool_id: str, op: str) -> None:
        if op in FORGIVES:
            self._failures.pop(pool_id, None)

    def forget(self) -> None:
        """The host was booted, or the database lost."""
        self._failures.clear()

    # What happens.

    def engine_ended(self, process: Process) -> None:
        now, pool_id = self._now, process.pool_id
        self._ends.append((now, pool_id))
        if process.told:
            return
        self._deaths.append((now, pool_id))
        if self._of_account(process):
            self._served.append((now, pool_id, self._oracle.stream.views[pool_id].breaker_state))
            self._expect_host_fault(process)

    def exit_told(self, process: Process) -> None:
        """From now on the daemon may count it, together with what it was told of others."""
        now, pool_id, world = self._now, process.pool_id, self._oracle.world
        if process.told:
            return
        others = any(p != pool_id and now - t < TOGETHER for t, p in self._heard)
        self._heard.append((now, pool_id))
        if others:
            self._refund(now)
        elif self._of_account(process):
            world.timeline.after(SURE_AFTER, self._sure, world.daemon, process, now)

    def _refund(self, now: float) -> None:
        """These failures may be the host's (RST-6)."""
        for pool_id, failures in self._failures.items():
            self._failures[pool_id] = deque((t for t in failures if now - t >= TOGETHER), MAX_FAILURES)

    def _of_account(self, process: Process) -> bool:
        """The one engine of a pool that serves ends, and it is not its own wish."""
        daemon, view = self._oracle.world.daemon, self._oracle.stream.views.get(process.pool_id)
        truth = self._oracle.pools.truth(process.pool_id)
        if daemon is None or not daemon.serving or daemon.paused or daemon.ending or view is None or truth.pending:
            return False
        serves = view.state is PoolState.READY and not view.reload_phase and view.pid == process.pid
        return serves and process.exit_code != 0 and view.spec.restart is not RestartMode.NEVER

    def _sure(self, daemon: Daemon, process: Process, at: float) -> None:
        """No other engine died meanwhile, and the daemon that saw it has lived on with a store that can write."""
        oracle, pool_id = self._oracle, process.pool_id
        alone = not any(p != pool_id and t >= at for t, p in self._heard)
        if (
            oracle.world.daemon is daemon
            and not daemon.paused
            and alone
            and oracle.store_ill_until < at - STORE_WELL_FOR
        ):
            self._failures[pool_id].append(at)

    # Starts.

    def start_asked(self, launch: LaunchSpec) -> None:
        failures, now = self._failures.get(launch.pool_id), self._now
        if not failures:
            return
        settings = self._oracle.pools.truth(launch.pool_id).settings()
        recent = sum(1 for t in failures if failures[-1] - t < settings.restart_window)
        waited = now - failures[-1]
        if recent > settings.restart_rate_limit and waited < settings.breaker_timeout * NEARLY:
            self._oracle.violate(
                "RST-4",
                f"pool {launch.pool_id} failed {recent} times within {settings.restart_window:g} s "
                f"and is started after {waited:.1f} s",
            )
        counted = sum(1 for t in failures if now - t < settings.slow_loop_window)
        if counted >= settings.slow_loop_limit:
            self._oracle.violate("RST-5", f"pool {launch.pool_id} failed {counted} times and is started once more")

    # Faults of the host.

    def _expect_host_fault(self, process: Process) -> None:
        """Half of the engines, all of which served, are gone at once: no pool's breaker opens for it."""
        world, now, daemon = self._oracle.world, self._now, self._oracle.world.daemon
        dead = {p: breaker for t, p, breaker in self._served if now - t < AT_ONCE}
        alive = sum(1 for p in world.kernel.engines() if p is not process)
        if daemon is None or len(dead) < max(HOST.host_fault_engines, (len(dead) + alive) / 2):
            return
        since = max(daemon.served_at, now - QUIET)
        quiet = all((p in dead and now - t < AT_ONCE) or t < since for t, p in self._ends)
        if quiet and now - daemon.served_at >= TOGETHER:
            closed = [p for p in sorted(dead) if dead[p] is BreakerState.CLOSED]
            faults = sum(world.faults_hit.values())
            world.timeline.after(SEEN_AFTER, self._charged_nobody, daemon, closed, now, faults)

    def _charged_nobody(self, daemon: Daemon, pools: list[str], at: float, faults: int) -> None:
        world = self._oracle.world
        if world.daemon is not daemon or daemon.paused or faults != sum(world.faults_hit.values()):
            return
        for pool_id in pools:
            view = self._oracle.stream.views.get(pool_id)
            again = any(p == pool_id and t > at for t, p in self._deaths)
            if view is not None and view.breaker_state is BreakerState.OPEN and not again:
                self._oracle.violate(
                    "RST-6", f"the engines of {pools} died at once, and the breaker of pool {pool_id} is open for it"
                )

    # Who waits.

    def viewed(self, pool_id: str, view: PoolView | None) -> None:
        if view is None or view.state not in OVER or view.reload_phase:
            return
        world = self._oracle.world
        waiting = [c for c in world.calls.values() if c.pool_id == pool_id and c.waits]
        if waiting:
            world.timeline.after(SURE_AFTER, self._all_told, world.daemon, view, waiting)

    def _all_told(self, daemon: Daemon, view: PoolView, waiting: list) -> None:
        oracle, pool_id = self._oracle, view.pool_id
        if oracle.world.daemon is not daemon or daemon.paused or daemon.ending:
            return
        now = oracle.stream.views.get(pool_id)
        late = [c for c in waiting if c.waits]
        if late and now is not None and now.state is view.state:
            oracle.violate("LEASE-5", f"{len(late)} wait for pool {pool_id}, which is {view.state}")
