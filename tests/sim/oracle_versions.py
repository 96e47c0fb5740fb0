"""Which version of a pool serves: the one that was shown, also after a crash (DRN-3), by an engine of that (DRN-4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from poolmgr.model.pool import PoolState, PoolView

if TYPE_CHECKING:
    from tests.sim.daemon import Daemon
    from tests.sim.oracle import Oracle

CHANGES = frozenset({"create", "delete", "update", "reload", "rollback"})
SOON = 2.0


class VersionOracle:
    def __init__(self, oracle: Oracle) -> None:
        self._oracle = oracle
        self._shown: dict[str, tuple[int, float]] = {}  # generation, and since when it is shown
        self._asked: dict[str, float] = {}
        self._last: dict[str, int] = {}  # of the daemon before, where nothing was asked for since it was shown

    def asked(self, pool_id: str, op: str) -> None:
        if op in CHANGES:
            self._asked[pool_id] = self._oracle.now

    def viewed(self, pool_id: str, view: PoolView | None) -> None:
        if view is None:
            self._shown.pop(pool_id, None)
            return
        before = self._shown.get(pool_id)
        if before is None or before[0] != view.generation:
            self._shown[pool_id] = (view.generation, self._oracle.now)
        if view.state is PoolState.READY and not view.reload_phase:
            self._oracle.world.timeline.after(SOON, self._still, self._oracle.world.daemon, view)

    # What was shown was durable.

    def daemon_lost(self) -> None:
        """What is asked for now, the next daemon hears only after it has shown what it found."""
        self._last = {
            pool_id: generation
            for pool_id, (generation, since) in self._shown.items()
            if self._asked.get(pool_id, -1e9) < since
        }
        self._shown.clear()

    def database_lost(self) -> None:
        self._last.clear()

    def serving(self) -> None:
        for pool_id, view in self._oracle.stream.views.items():
            last = self._last.get(pool_id)
            if last is not None and view.generation != last and pool_id not in self._oracle.world.declared:
                self._oracle.violate(
                    "DRN-3", f"generation {last} of pool {pool_id} was shown, and {view.generation} came back"
                )
        self._last.clear()

    # Who serves was launched for it.

    def _still(self, daemon: Daemon, view: PoolView) -> None:
        now = self._oracle.stream.views.get(view.pool_id)
        if self._oracle.world.daemon is not daemon or daemon.paused or now is None:
            return
        if now.state is view.state and now.spec == view.spec and not now.reload_phase:
            self.judge(now)

    def judge(self, view: PoolView) -> None:
        directory = self._oracle.world.disk.engine_dirs.get(view.engine_id)
        if directory is None or directory.launch is None:
            return
        arguments = directory.launch.argv[1:-1]  # between the command and the port
        if arguments != view.spec.args:
            self._oracle.violate(
                "DRN-4", f"pool {view.pool_id} asks for {view.spec.args}, its engine was started with {arguments}"
            )
