"""Which engines a supervisor ends, and which it has to end (LIVE-1); and that no two engines share a port (PRE-5).

All of it is about the time in which a pool serves: its state is READY, no reload is under way, and nobody has asked
for its end. What an engine does in that time the kernel knows; that it was asked to end, the client who asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from poolmgr.model.pool import PoolState, PoolView
from tests.sim.kernel import Process

if TYPE_CHECKING:
    from tests.sim.daemon import Daemon
    from tests.sim.oracle import Oracle

ENDS = frozenset({"stop", "drain", "delete", "update", "reload", "rollback"})
ON_ITS_WAY = 2.0  # seconds that what was asked may take until the host sees it
JITTER = 1.1  # of the interval between probes
SLACK = 3.0


@dataclass(frozen=True, slots=True)
class Served:
    """The engine that a pool served with when it was published last, and since when."""

    pid: int
    since: float


class HealthOracle:
    def __init__(self, oracle: Oracle) -> None:
        self._oracle = oracle
        self._serving: dict[str, Served] = {}
        self._asked: dict[str, float] = {}
        self._woke = -1.0  # when the daemon went on after it had not been scheduled

    @property
    def _now(self) -> float:
        return self._oracle.now

    # What is known.

    def asked(self, pool_id: str, op: str) -> None:
        if op in ENDS:
            self._asked[pool_id] = self._now

    def paused(self, seconds: float) -> None:
        self._woke = max(self._woke, self._now + seconds)

    def daemon_lost(self) -> None:
        self._serving.clear()

    def viewed(self, pool_id: str, view: PoolView | None) -> None:
        serves = view is not None and view.state is PoolState.READY and not view.reload_phase
        if not serves:
            if view is None or view.state is not PoolState.STOPPING:  # which may be shown before the signal is sent
                self._serving.pop(pool_id, None)
            return
        before = self._serving.get(pool_id)
        if before is None or before.pid != view.pid:
            self._serving[pool_id] = Served(view.pid, self._now)
            self._expect_end_of_hang(view)

    def _quiet(self, process: Process) -> bool:
        """Nobody has asked for anything that could end this engine since it was started."""
        oracle, pool_id = self._oracle, process.pool_id
        truth = oracle.pools.truth(pool_id)
        asked = self._asked.get(pool_id, -1e9) >= process.started - ON_ITS_WAY
        left_alone = not truth.pending and not oracle.world.stopping_engines and pool_id not in oracle.pools.lost
        return left_alone and not asked

    def _seconds_of_failures(self, pool_id: str, more: int = 0) -> float:
        """How long probes have to fail for until the engine is given up."""
        s = self._oracle.pools.truth(pool_id).settings()
        return (s.health_check_failures + more) * (s.health_check_interval * JITTER + s.health_check_timeout)

    # An engine that is well stays.

    def signalled(self, process: Process) -> None:
        served = self._serving.get(process.pool_id)
        if process.kind != "engine" or served is None or served.pid != process.pid or process.told:
            return
        if self._well_lately(process) and self._quiet(process):
            self._oracle.violate(
                "LIVE-1", f"pool {process.pool_id} serves by {process.pid}, which is well, and it is ended"
            )

    def _well_lately(self, process: Process) -> bool:
        """Not one of the probes that could be held against it failed."""
        s, now = process.script, self._now
        span = self._seconds_of_failures(process.pool_id)
        hung = s.hang <= now - process.started <= s.well_again + span + max(0.0, self._woke - process.started)
        taken = process.port and self._oracle.world.kernel.listener(process.port) is not process
        return process.alive and process.was_ready(now) and not hung and not s.wrong and not taken

    # An engine that hangs goes.

    def _expect_end_of_hang(self, view: PoolView) -> None:
        directory = self._oracle.world.disk.engine_dirs.get(view.engine_id)
        main = directory.main if directory is not None else None
        if main is None or main.pid != view.pid or main.script.hang == float("inf"):
            return
        begins = max(self._now, main.started + main.script.hang)
        self._look_at_end_of_hang(self._oracle.world.daemon, main, begins)

    def _look_at_end_of_hang(self, daemon: Daemon | None, main: Process, begins: float) -> None:
        due = begins + self._seconds_of_failures(main.pool_id, more=1) + SLACK
        self._oracle.world.timeline.at(due, self._still_there, daemon, main, begins)

    def _still_there(self, daemon: Daemon | None, main: Process, begins: float) -> None:
        oracle, served = self._oracle, self._serving.get(main.pool_id)
        if daemon is None or oracle.world.daemon is not daemon or daemon.ending or not main.alive or main.told:
            return
        if self._now >= main.started + main.script.well_again or served is None or served.pid != main.pid:
            return
        if self._woke > begins:
            self._look_at_end_of_hang(daemon, main, max(self._woke, self._now))
            return
        oracle.violate("LIVE-1", f"the engine {main.pid} of pool {main.pool_id} answers no more, and the pool is READY")

    # Ports.

    def spawned(self, process: Process) -> None:
        """Two engines never have one port (PRE-5). What is in doubt, or nobody's, holds none that a daemon knows of."""
        pools, world = self._oracle.pools, self._oracle.world
        twins = [
            p
            for p in world.kernel.engines()
            if p is not process and p.port == process.port and p.pool_id != process.pool_id and not p.dying
        ]
        known = [
            p for p in twins
            if pools.truth(p.pool_id).exists and not pools.doubted_pool(p.pool_id) and p.pool_id not in pools.lost
        ]  # fmt: skip
        if process.port and known and "runtime.attach" not in world.faults_hit:  # which leaves an engine in doubt
            self._oracle.violate("PRE-5", f"{process} is started on the port of {known}")
