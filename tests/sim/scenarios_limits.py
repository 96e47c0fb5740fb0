"""Named stories of what bounds restarts and of engines that hang, and of those that somebody else runs (ENG)."""

from __future__ import annotations

from dataclasses import replace

from poolmgr.model.pool import PoolView, SupervisionOverrides
from tests.sim.kernel import Script
from tests.sim.stage import USUAL, Stage
from tests.sim.telling import QUICK_BREAKER, first, scenario

LOOP = SupervisionOverrides(
    backoff_initial_ms=500, backoff_max_ms=1000, circuit_breaker_threshold=500, stable_secs=5,
    health_check_interval_ms=2000,
)  # fmt: skip

# Restarts.


@scenario
def slow_loop_is_parked(s: Stage) -> None:
    """Each run is long enough to count as stable, so that neither breaker nor rate notices."""
    s.pool(script=Script(crash=8.0, code=4), overrides=LOOP)
    s.length = 280.0


@scenario
def restarts_within_a_minute_outlive_a_daemon(s: Stage) -> None:
    often = SupervisionOverrides(backoff_initial_ms=0, backoff_floor_ms=0, circuit_breaker_threshold=500)
    s.pool(script=Script(crash=1.2), overrides=often)
    s.kill(8.0)
    s.length = 60.0


@scenario
def half_of_the_engines_die_at_once(s: Stage) -> None:
    for pool_id in "abcd":
        s.pool(pool_id, overrides=replace(USUAL, circuit_breaker_threshold=1))
    for n, pool_id in enumerate("ab"):
        s.at(40.0 + n * 0.3, s.world.kill_engine, pool_id)
    s.length = 60.0


@scenario
def waiters_are_told_of_a_pool_that_parks(s: Stage) -> None:
    s.pool(slots=1, script=Script(load=2.0, crash=2.5), overrides=QUICK_BREAKER)
    s.holder(count=3, wait=20.0, hold=9.0)
    s.length = 60.0


# Health.


@scenario
def engine_hangs_for_good(s: Stage) -> None:
    s.pool("a", script=first(1, Script(hang=4.0, deaf=True)))
    s.pool("b", script=first(2, Script(hang=12.0)))
    s.length = 70.0


@scenario
def daemon_is_paused_for_many_probes(s: Stage) -> None:
    s.pool("a", slots=2)
    s.pool("b", script=Script(hang=30.0, well_again=33.0))
    for when, seconds in ((70.0, 20.0), (100.0, 45.0), (160.0, 2.5)):
        s.at(when, s.world.pause_daemon, seconds)
    s.length = 180.0


@scenario
def engine_that_loads_is_adopted_and_another_starts(s: Stage) -> None:
    """It has its port, and does not listen there yet."""
    s.pool("a", script=Script(listen=6.0, load=7.0))
    s.kill(2.0)
    s.pool("b", when=3.5)
    s.pool("c", when=3.6, script=Script(listen=0.5))
    s.length = 30.0


# Reloads.


@scenario
def daemon_dies_as_soon_as_a_commit_is_shown(s: Stage) -> None:
    """What one client has seen, the next daemon does not take back (DRN-3)."""
    s.pool(slots=2)
    s.holder(count=1, hold=4.0)
    viewed, deaths = s.world.oracle.viewed, iter((2, 3, 4, 5, 6))
    waits_for = [next(deaths)]

    def seen(pool_id: str, view: PoolView | None) -> None:
        viewed(pool_id, view)
        if view is not None and view.generation == waits_for[0]:
            waits_for[0] = next(deaths, 0)
            s.world.timeline.after(0.0005, s.world.kill_daemon)

    s.world.oracle.viewed = seen
    for n in range(5):
        s.reload(6.0 + 7.0 * n, args=(f"--{n}",))
    s.length = 45.0


# Engines that register themselves.


@scenario
def engine_registers_and_serves(s: Stage) -> None:
    engine = s.outsider()
    s.holder("r", 3, hold=5.0)
    s.at(12.0, engine.register_partly)
    s.at(14.0, engine.register)
    s.at(16.0, lambda: engine.say(slots_free=1))
    s.kill(20.0)


@scenario
def registered_engine_falls_silent_and_comes_back(s: Stage) -> None:
    engine = s.outsider(ttl=12.0)
    s.holder("r", 2, hold=30.0)
    s.at(10.0, engine.hush, 25.0)
    s.at(60.0, engine.hush, 20.0)
    s.kill(65.0)
    s.length = 100.0


@scenario
def registered_engine_hangs(s: Stage) -> None:
    s.outsider(script=Script(hang=8.0, well_again=60.0))
    s.pool("a")
    s.holder("r", 2, hold=6.0)
    s.length = 90.0


@scenario
def registered_engine_crashes_and_comes_back(s: Stage) -> None:
    engine = s.outsider(script=Script(load=3.0))
    s.holder("r", 2, hold=9.0, wait=8.0)
    s.at(12.0, engine.crash, 4.0)
    s.at(30.0, engine.crash, 45.0)
    s.kill(31.0)
    s.length = 100.0


@scenario
def registered_engine_drains_and_leaves(s: Stage) -> None:
    engine = s.outsider(slots=3)
    s.holder("r", 3, hold=4.0)
    s.at(10.0, lambda: engine.say(draining=True))
    s.at(20.0, lambda: engine.say(draining=False))
    s.at(24.0, lambda: engine.say(ready=False))
    s.at(28.0, lambda: engine.say(ready=True))
    s.at(34.0, engine.leave)


@scenario
def operator_ends_a_registered_engine(s: Stage) -> None:
    engine = s.outsider()
    s.holder("r", 2, hold=6.0)
    for when, name in ((8.0, "drain"), (10.0, "undrain"), (15.0, "stop"), (22.0, "preload"), (30.0, "drain")):
        s.at(when, engine.command, name)
    s.kill(16.0, 31.0)
    s.at(45.0, engine.command, "preload")
    s.length = 60.0


@scenario
def registered_engines_and_their_host(s: Stage) -> None:
    s.outsider("r")
    s.outsider("q", script=Script(crash=9.0), ttl=6.0)
    s.pool("a")
    s.holder("r", 2, hold=20.0)
    s.at(14.0, s.world.power_cut)
    s.kill(26.0)
    s.at(26.05, s.world.lose_database)
    s.at(34.0, s.world.pause_daemon, 50.0)
    s.length = 100.0
