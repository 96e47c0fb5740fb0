"""A world with pools, people and a plot, and the way in which every story ends: faults stop, all settles, all goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from poolmgr.model.pool import EngineName, PoolSpec, PoolState, ReloadStrategy, SupervisionOverrides
from poolmgr.runtime import bus, pool_actor
from tests.sim.clients import Admin, Habits, Holder, Op, Stranger
from tests.sim.kernel import Script
from tests.sim.oracle_stream import Watcher
from tests.sim.registered import Registered
from tests.sim.world import World

CAPACITY = 48  # changes that the bus keeps: few, so that watchers fall behind
SETTLE_STEPS = 14
SETTLE_SECONDS = 10.0
EMPTY_SECONDS = 90.0
ON_THE_WAY = (PoolState.PROVISIONING, PoolState.STARTING, PoolState.STOPPING, PoolState.DRAINING)
WELL = Script()
USUAL = SupervisionOverrides(start_timeout_secs=20, stall_timeout_secs=15)


class Stage:
    def __init__(self, world: World) -> None:
        self.world = world
        self.admins: dict[str, Admin] = {}
        self.specs: dict[str, PoolSpec] = {}
        self.holders: list[Holder] = []
        self.strangers: list[Stranger] = []
        self.watchers: list[tuple[Watcher, float]] = []
        self.outsiders: list[Registered] = []
        self.length = 40.0

    # The cast.

    def admin(self, pool_id: str) -> Admin:
        return self.admins.setdefault(pool_id, Admin(self.world, pool_id))

    def at(self, when: float, do: Callable, *args: object) -> None:
        self.world.timeline.at(when, do, *args)

    def pool(
        self,
        pool_id: str = "a",
        script: Script | Callable[[int, int], Script] | None = None,
        preload: bool = True,
        when: float = 0.2,
        overrides: SupervisionOverrides = USUAL,
        **spec: object,
    ) -> PoolSpec:
        """Made at `when`; its engines behave as `script` says, for every run or by (run, generation)."""
        made = PoolSpec(EngineName.COMMAND, command="/bin/engine", supervision=overrides, preload=preload, **spec)
        if isinstance(script, Script):
            self.world.scripts[pool_id] = lambda run, generation: script
        elif script is not None:
            self.world.scripts[pool_id] = script
        self.specs[pool_id] = made
        self.do(when, "create", pool_id, lambda f: f.create_pool(pool_id, made), made)
        return made

    def do(
        self,
        when: float,
        name: str,
        pool_id: str,
        work: Callable,
        spec: PoolSpec | None = None,
        deadline: float = 0.0,
        beside: bool = False,
    ) -> None:
        op = Op(name, pool_id, work, spec, deadline, beside=beside)
        self.at(when, lambda: self.admin(pool_id).do(op))

    def again(self, when: float, pool_id: str) -> None:
        """Made once more, as it was asked for last."""
        made = self.specs[pool_id]
        self.do(when, "create", pool_id, lambda f: f.create_pool(pool_id, made), made)

    def oracle_knows_declared(self, pool_id: str) -> None:
        """A pool of the file: it is there from the daemon's first start on."""
        truth = self.world.oracle.pools.truth(pool_id)
        truth.exists, truth.want, truth.spec = None, "run", self.world.declared[pool_id]
        self.specs[pool_id] = truth.spec
        self.admin(pool_id)

    def preload(self, when: float, pool_id: str = "a", wait: float = 0.0) -> None:
        self.do(when, "preload", pool_id, lambda f: f.preload(pool_id, wait))

    def stop(self, when: float, pool_id: str = "a", grace: float | None = None, wait: float = 0.0) -> None:
        self.do(when, "stop", pool_id, lambda f: f.stop(pool_id, grace, wait))

    def drain(self, when: float, pool_id: str = "a", deadline: float = 20.0, wait: float = 0.0) -> None:
        self.do(when, "drain", pool_id, lambda f: f.drain(pool_id, deadline, wait), deadline=deadline)

    def undrain(self, when: float, pool_id: str = "a") -> None:
        self.do(when, "undrain", pool_id, lambda f: f.undrain(pool_id))

    def reset(self, when: float, pool_id: str = "a") -> None:
        self.do(when, "reset", pool_id, lambda f: f.reset_breaker(pool_id))

    def delete(self, when: float, pool_id: str = "a", deadline: float | None = 5.0) -> None:
        self.do(when, "delete", pool_id, lambda f: f.delete(pool_id, deadline), deadline=deadline or 0.0)

    def update(self, when: float, pool_id: str = "a", **changes: object) -> None:
        made = replace(self.specs[pool_id], **changes)
        self.specs[pool_id] = made
        self.do(when, "update", pool_id, lambda f: f.update_pool(pool_id, lambda current: made), made)

    def reload(
        self,
        when: float,
        pool_id: str = "a",
        strategy: ReloadStrategy = ReloadStrategy.AUTO,
        deadline: float | None = None,
        wait: float = 0.0,
        **changes: object,
    ) -> None:
        """Without changes: the same spec again, on another engine."""
        made = replace(self.specs[pool_id], **changes) if changes else None
        self.specs[pool_id] = made or self.specs[pool_id]
        beside = strategy is ReloadStrategy.MAKE_BEFORE_BREAK
        self.do(
            when, "reload", pool_id, lambda f: f.reload_pool(pool_id, made, strategy, deadline, wait), made,
            beside=beside,
        )  # fmt: skip

    def rollback(self, when: float, pool_id: str = "a", generation: int = 0, wait: float = 0.0) -> None:
        self.do(when, "rollback", pool_id, lambda f: f.rollback_pool(pool_id, generation, None, wait))

    def holder(self, pool_id: str = "a", count: int = 1, **habits: object) -> None:
        for _ in range(count):
            name = f"h{len(self.holders)}"
            self.holders.append(Holder(self.world, pool_id, name, Habits(**habits)))

    def stranger(self, every: float = 2.0) -> None:
        self.strangers.append(Stranger(self.world, every))

    def watcher(self, slow: float = 0.0) -> None:
        self.watchers.append((Watcher(self.world.oracle), slow))

    def outsider(self, pool_id: str = "r", script: Script = WELL, slots: int = 2, ttl: float = 30.0) -> Registered:
        """An engine that registers itself as this pool."""
        engine = Registered(self.world, pool_id, script, slots, ttl)
        self.outsiders.append(engine)
        return engine

    def kill(self, *times: float) -> None:
        for when in times:
            self.at(when, self.world.kill_daemon)

    # The plot.

    def play(self) -> None:
        with instrumented(self.world):
            try:
                self._play()
            finally:
                self.world.close()

    def _play(self) -> None:
        world = self.world
        world.start_daemon()
        self._attach_watchers()
        world.run(self.length)
        self._calm_down()
        for _ in range(SETTLE_STEPS):
            world.run(SETTLE_SECONDS)
            if world.oracle.violations or self._settled():
                break
        if not world.oracle.violations:
            world.oracle.settled()
        self._clear_away()

    def _attach_watchers(self) -> None:
        serving = self.world.daemon_serves

        def serves(daemon: object) -> None:
            serving(daemon)
            for watcher, slow in self.watchers:
                watcher.begin(daemon, slow)

        self.world.daemon_serves = serves

    def _calm_down(self) -> None:
        """No more faults; engines are well; holders end; the daemon is started if it is not there."""
        world = self.world
        world.trace("calm")
        world.faults_on, world.fault_rate, world.spikes, world.lost_replies = False, 0.0, 0.0, 0.0
        world.restarts, world.restart_delay = True, 0.3
        world.missing.clear()
        world.disk.full = world.disk.failing = False
        world.scripts = dict.fromkeys(world.scripts, _well)
        for engine in self.outsiders:
            engine.calm()
        for one in (*self.holders, *self.strangers):
            one.stop() if isinstance(one, Holder) else setattr(one, "stopped", True)
        world.resume_daemon()
        daemon = world.daemon
        if daemon is not None and hasattr(daemon, "store") and daemon.store._handle_dead and not daemon.ending:
            world.kill_daemon("its store is dead")
        if world.daemon is None:
            world.start_daemon()

    def _settled(self) -> bool:
        daemon = self.world.daemon
        if daemon is None or not daemon.serving or not all(a.idle for a in self.admins.values()):
            return False
        if not all(engine.leaving or engine.is_at_rest() for engine in self.outsiders):
            return False
        if any(call.kind == "acquire" for call in self.world.calls.values()):
            return False
        return all(p.view.state not in ON_THE_WAY and not p.view.reload_phase for p in daemon.facade.pools())

    def _clear_away(self) -> None:
        world = self.world
        if world.oracle.violations:
            return
        for pool_id in sorted(self.admins):
            self.admin(pool_id).drop()
            if world.oracle.pools.truth(pool_id).exists is not False:
                self.delete(world.timeline.now, pool_id, 1.0)
        for engine in self.outsiders:
            engine.leave()
        deadline = world.timeline.now + EMPTY_SECONDS
        while world.timeline.now < deadline and not world.oracle.violations:
            world.run(5.0)
            if all(a.idle for a in self.admins.values()) and all(engine.gone for engine in self.outsiders):
                break
        world.run(5.0)
        if not world.oracle.violations:
            world.oracle.emptied()


def _well(run: int, generation: int) -> Script:
    return Script()


@contextmanager
def instrumented(world: World) -> Iterator[None]:
    """Counts events applied to actors, which are this simulator's steps, and keeps the bus short."""
    step, capacity = pool_actor.step, bus.CAPACITY

    def counted(pool: object, event: object, at: object) -> object:
        world.steps += 1
        name = type(event).__name__
        world.events[name] = world.events.get(name, 0) + 1
        return step(pool, event, at)

    pool_actor.step, bus.CAPACITY = counted, CAPACITY
    try:
        yield
    finally:
        pool_actor.step, bus.CAPACITY = step, capacity
