"""Engines that register themselves, judged by what they did and were told (ENG-1 to ENG-3).

What is there, what was sent and what was answered each engine knows itself (`tests.sim.registered`); the state of its
pool is what watchers are shown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poolmgr.model.engine import LaunchSpec
from poolmgr.model.pool import PoolState, PoolView
from poolmgr.model.registration import EngineView
from poolmgr.model.settings import SupervisionSettings
from tests.sim.kernel import Process

if TYPE_CHECKING:
    from tests.sim.daemon import Daemon
    from tests.sim.oracle import Oracle
    from tests.sim.registered import Registered

SETTINGS = SupervisionSettings()
SOON = 1.0
SLACK = 3.0
JITTER = 1.1
LATELY = 5.0
UNHEALTHY_FOR = (SETTINGS.health_check_failures + 1) * (
    SETTINGS.health_check_interval * JITTER + SETTINGS.health_check_timeout
) + SLACK
SERVES = (PoolState.READY, PoolState.DRAINING)


class RegisteredOracle:
    def __init__(self, oracle: Oracle) -> None:
        self._oracle = oracle
        self.engines: dict[str, Registered] = {}  # by pool
        self._states: dict[str, PoolState | None] = {}
        self._woke = -1.0
        self._lost_database = -1.0

    @property
    def _now(self) -> float:
        return self._oracle.now

    def owns(self, pool_id: str) -> bool:
        return pool_id in self.engines and not self.engines[pool_id].gone

    def left(self, engine: Registered) -> None:
        """It has deregistered, and was told that it has."""
        truth = self._oracle.pools.truth(engine.pool_id)
        truth.exists, truth.want = False, "stop"
        self._oracle.pools.deleted.add(engine.pool_id)

    def booted(self) -> None:
        for engine in self.engines.values():
            if not engine.leaving:
                engine.booted()

    def paused(self, seconds: float) -> None:
        self._woke = max(self._woke, self._now + seconds)

    def database_lost(self) -> None:
        self._lost_database = self._now

    def _view(self, engine: Registered) -> PoolView | None:
        return self._oracle.stream.views.get(engine.pool_id)

    def _watches_since(self, daemon: Daemon | None, when: float) -> bool:
        """Whether this daemon has served and been scheduled all the time since then."""
        here = daemon is not None and self._oracle.world.daemon is daemon and daemon.serving and not daemon.paused
        return here and daemon.served_at <= when and self._woke < when

    # ENG-1: what was registered is kept, and what was not said is left alone.

    def registered(self, engine: Registered, view: EngineView) -> None:
        """As lists show it after each registration."""
        known = (view.engine_id, view.endpoint, view.slots_total, view.pid, view.registered)
        process = engine.process
        if process is not None and known != (engine.engine_id, engine.endpoint, engine.slots, process.pid, True):
            self._oracle.violate("ENG-1", f"engine {engine.engine_id} is known as {known}, which it did not say")
        if not 0 <= view.slots_free <= view.slots_total:
            self._oracle.violate("ENG-1", f"{view.slots_free} of {view.slots_total} slots are free")

    def unknown(self, engine: Registered, since: float) -> None:
        """A heartbeat is answered: no such engine; `since`: when it was told that it is registered."""
        if self._lost_database < since:
            self._oracle.violate("ENG-1", f"engine {engine.engine_id} was registered, and is unknown")

    # ENG-2: observed like ours, and never started or ended.

    def start_asked(self, launch: LaunchSpec) -> None:
        if self.owns(launch.pool_id):
            self._oracle.violate("ENG-2", f"pool {launch.pool_id} has an engine that registered, and one is started")

    def signalled(self, process: Process, number: int) -> None:
        if any(process is engine.process for engine in self.engines.values()):
            self._oracle.violate("ENG-2", f"signal {number} to {process.pid}, which registered itself")

    def viewed(self, pool_id: str, view: PoolView | None) -> None:
        engine, state = self.engines.get(pool_id), view.state if view is not None else None
        before, self._states[pool_id] = self._states.get(pool_id), state
        if engine is None or state is not PoolState.READY or before in SERVES:  # out of a drain it needs no new probe
            return
        if engine.well_at < self._now - LATELY and not engine.well():
            self._oracle.violate("ENG-2", f"pool {pool_id} is READY, its engine is not: {engine.process}")

    def ill(self, engine: Registered) -> None:
        """From now on it answers no probe: within some probes its pool is not READY."""
        self._oracle.world.timeline.after(UNHEALTHY_FOR, self._noticed, self._oracle.world.daemon, engine, self._now)

    def _noticed(self, daemon: Daemon, engine: Registered, since: float) -> None:
        ill = engine.well_at <= since and not engine.well()
        if ill and self._watches_since(daemon, since) and self._serves(engine, since):
            self._oracle.violate("LIVE-1", f"engine {engine.engine_id} answers no more, and its pool serves")

    def _serves(self, engine: Registered, since: float) -> bool:
        """And nobody has asked for anything else."""
        view = self._view(engine)
        return view is not None and view.state in SERVES and not engine.commanded_since(since)

    # ENG-1, ENG-3: silent for its time it is lost, and the next heartbeat brings it back.

    def beat(self, engine: Registered) -> None:
        """A heartbeat was answered."""
        world, now = self._oracle.world, self._now
        world.timeline.after(SOON, self._heard, world.daemon, engine, now)
        world.timeline.after(engine.ttl + SLACK, self._silent, world.daemon, engine, now)

    def _heard(self, daemon: Daemon, engine: Registered, at: float) -> None:
        view = self._view(engine)
        well = engine.well() and self._now - engine.well_since > LATELY
        if well and self._watches_since(daemon, at) and view is not None and view.state is PoolState.LOST:
            self._oracle.violate("ENG-3", f"engine {engine.engine_id} told of itself, and its pool is LOST")

    def _silent(self, daemon: Daemon, engine: Registered, at: float) -> None:
        silent = engine.heard_at <= at and engine.sent_at <= at
        if silent and self._watches_since(daemon, at) and self._serves(engine, at):
            self._oracle.violate("ENG-1", f"engine {engine.engine_id} is silent, and its pool serves")

    # The end.

    def settled(self) -> None:
        """Whoever tells of itself, is well and is wanted serves again, without a registration (ENG-3)."""
        for engine in self.engines.values():
            view = self._view(engine)
            well = engine.is_at_rest() and engine.wanted and not engine.leaving
            if well and (view is None or view.state is not PoolState.READY):
                state = "gone" if view is None else f"{view.state} ({view.state_reason})"
                self._oracle.violate("ENG-3", f"engine {engine.engine_id} is well and tells so, its pool is {state}")
