"""Stories that nobody wrote: each seed draws what may happen in it, then lets it happen at random times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import inf
from random import Random

from poolmgr.model.pool import ReloadStrategy, RestartMode, SupervisionOverrides
from tests.sim import swarm_outside
from tests.sim.kernel import Script
from tests.sim.stage import USUAL, Stage

LENGTH = 150.0
ASKED = ("stop", "start", "start", "drain", "undrain", "update", "label", "delete", "reset", "reload", "rollback")
LIKELY, SELDOM, RARE = 0.45, 0.2, 0.06


class Swarm:
    """`has` draws whether a kind of thing happens in this seed at all: few kinds at once find more than all at once."""

    def __init__(self, stage: Stage, seed: int) -> None:
        self.s = stage
        self.world = stage.world
        self.seed = seed
        self.rng = Random(f"swarm {seed}")
        stage.length = LENGTH

    def has(self, p: float = LIKELY) -> bool:
        return self.rng.random() < p

    def now_and_then(self, mean: float, do: Callable, *args: object) -> None:
        when = 2.0
        while True:
            when += self.rng.expovariate(1 / mean)
            if when > LENGTH - 5:
                return
            self.s.at(when, do, *args)

    def tell(self) -> None:
        pools = ["a", "b", "c"][: self.rng.choice((1, 2, 2, 3, 3))]
        for pool_id in pools:
            self._pool(pool_id)
        self._daemon_and_host(pools)
        self._disk()
        self._weather()
        swarm_outside.tell(self.s, self.seed, LENGTH)

    # Pools and their people.

    def _pool(self, pool_id: str) -> None:
        rng = self.rng
        overrides = replace(
            USUAL,
            circuit_breaker_threshold=rng.choice((None, 3)),
            circuit_breaker_timeout_secs=rng.choice((10, 30, None)),
            stable_secs=rng.choice((None, 10)),
        )
        if self.has(RARE):
            overrides = SupervisionOverrides(backoff_initial_ms=0, backoff_floor_ms=0, circuit_breaker_threshold=100)
        self.s.pool(
            pool_id,
            self._scripts(),
            preload=self.has(0.8),
            when=0.2 + rng.random(),
            overrides=overrides,
            slots=rng.choice((1, 2, 2, 4)),
            drain_deadline=rng.choice((3.0, 10.0)),
            port=rng.choice((0, 0, 41000)),
            restart=rng.choice((RestartMode.ON_FAILURE,) * 6 + (RestartMode.ALWAYS, RestartMode.NEVER)),
        )
        if self.has(0.75):
            self._holders(pool_id)
        if self.has(0.7):
            self._administrator(pool_id)

    def _scripts(self) -> Callable[[int, int], Script]:
        kinds = [Script()] * 3
        if self.has():
            kinds += [Script(crash=self.rng.choice((0.3, 1.0, 6.0, 30.0, 70.0)), code=self.rng.choice((0, 1, 139)))] * 2
        if self.has(SELDOM):
            kinds += [Script(crash=self.rng.choice((2.0, 12.0)))] * 12
        if self.has(SELDOM):
            kinds.append(Script(hang=self.rng.choice((1.0, 15.0)), well_again=self.rng.choice((inf, 20.0))))
        if self.has(SELDOM):
            kinds.append(Script(load=self.rng.choice((4.0, 9.0, inf)), progress=self.has()))
        if self.has(SELDOM):
            kinds.append(Script(deaf=True, stubborn=self.rng.choice((0.0, 2.0))))
        if self.has(SELDOM):
            kinds.append(Script(crash=self.rng.choice((8.0, 25.0)), children=2, child_life=self.rng.choice((3.0, inf))))
        if self.has(RARE):
            kinds.append(Script(crash=0.2, log="unknown flag"))
        return lambda run, generation: self.world.rng.choice(kinds)

    def _holders(self, pool_id: str) -> None:
        rng = self.rng
        for _ in range(rng.choice((1, 2, 3))):
            self.s.holder(
                pool_id,
                rng.choice((1, 2)),
                ttl=rng.choice((3.0, 6.0, 15.0)),
                hold=rng.choice((2.0, 9.0, 40.0)),
                think=rng.choice((0.2, 2.0)),
                wait=rng.choice((0.0, 3.0, 20.0)),
                priority=rng.choice((0, 0, 3)),
                crash=0.15 if self.has(SELDOM) else 0.0,
                cancel=0.3 if self.has(SELDOM) else 0.0,
                late=0.2 if self.has(SELDOM) else 0.0,
                twice=0.3 if self.has(SELDOM) else 0.0,
            )

    def _administrator(self, pool_id: str) -> None:
        rng = self.rng
        when = 1.0
        while when < LENGTH - 20:
            when += rng.expovariate(1 / 14.0)
            self._ask(pool_id, when, rng.choice(ASKED))

    def _ask(self, pool_id: str, when: float, what: str) -> None:
        rng, s = self.rng, self.s
        strategies = tuple(ReloadStrategy)
        asks = {
            "stop": lambda: s.stop(when, pool_id, rng.choice((None, 0.5)), rng.choice((0.0, 8.0))),
            "start": lambda: s.preload(when, pool_id, rng.choice((0.0, 10.0))),
            "drain": lambda: s.drain(when, pool_id, rng.choice((2.0, 15.0)), rng.choice((0.0, 20.0))),
            "undrain": lambda: s.undrain(when, pool_id),
            "update": lambda: s.update(when, pool_id, args=(f"--at={when:.0f}",)),
            "reload": lambda: s.reload(when, pool_id, rng.choice(strategies), wait=rng.choice((0.0, 20.0))),
            "rollback": lambda: s.rollback(when, pool_id, rng.choice((0, 0, 1))),
            "label": lambda: s.update(when, pool_id, labels={"at": f"{when:.0f}"}, slots=rng.choice((1, 2, 3))),
            "delete": lambda: self._delete(pool_id, when),
            "reset": lambda: s.reset(when, pool_id),
        }
        asks[what]()

    def _delete(self, pool_id: str, when: float) -> None:
        """And makes it again soon."""
        if self.has(0.4):
            self.s.delete(when, pool_id, self.rng.choice((0.5, 6.0)))
            self.s.again(when + self.rng.random() * 3, pool_id)

    # What befalls them.

    def _daemon_and_host(self, pools: list[str]) -> None:
        world, rng = self.world, self.rng
        if self.has(0.7):
            self.now_and_then(rng.choice((4.0, 15.0, 40.0)), world.kill_daemon)
            world.restart_delay = rng.choice((0.05, 0.3, 3.0))
        if self.has(SELDOM):
            self.now_and_then(40.0, world.pause_daemon, rng.choice((1.5, 6.0, 40.0)))
        if self.has(SELDOM):
            self.now_and_then(50.0, world.stop_daemon, self.has(SELDOM))
        if self.has(SELDOM):
            self.now_and_then(25.0, world.kill_shims)
        if self.has(SELDOM):
            self.now_and_then(30.0, world.kill_engine, rng.choice(pools))
        world.reuse_pids = self.has()
        self._host(pools)

    def _host(self, pools: list[str]) -> None:
        world, rng = self.world, self.rng
        if self.has(RARE):
            for pool_id in pools:
                self.s.at(30.0 + rng.random(), world.kill_engine, pool_id)
        if self.has(RARE):
            self.now_and_then(70.0, world.power_cut)
        if self.has(RARE):
            self.now_and_then(50.0, world.hold_port, rng.choice((40000, 40001, 41000)), 12.0)

    def _disk(self) -> None:
        world, rng = self.world, self.rng
        if self.has(RARE):
            self.now_and_then(50.0, world.disk_full, rng.choice((1.0, 12.0)))
        if self.has(RARE):
            self.now_and_then(80.0, world.disk_fails, 3.0)
        if self.has(SELDOM):
            world.fault_rate = rng.choice((0.005, 0.03))
        if self.has(RARE):
            self._while_dead(world.damage_leases)
        if self.has(RARE):
            self._while_dead(world.lose_database)
        if self.has(RARE):
            self._while_dead(world.damage_ident, "a")

    def _while_dead(self, do: Callable, *args: object) -> None:
        def strike() -> None:
            self.world.kill_daemon("for what follows")
            if self.world.daemon is None:
                do(*args)

        self.s.at(40.0 + 60.0 * self.rng.random(), strike)

    def _weather(self) -> None:
        world, rng = self.world, self.rng
        if self.has(SELDOM):
            world.lost_replies = rng.choice((0.05, 0.3))
        if self.has(SELDOM):
            world.spikes = 0.05
        if self.has(SELDOM):
            world.drift = rng.choice((-1e-3, 1e-3))
            self.now_and_then(40.0, world.jump_wall, rng.choice((-3600.0, 30.0, 86400.0)))
        if self.has():
            self.s.stranger(2.0)
        if self.has(SELDOM):
            self.s.watcher(rng.choice((0.0, 1.0, 15.0)))
