"""Named stories of holders and of engines that fail. Times are seconds of the world."""

from __future__ import annotations

from dataclasses import replace
from math import inf

from poolmgr.model.pool import RestartMode, SupervisionOverrides
from tests.sim.kernel import Script
from tests.sim.stage import Stage
from tests.sim.telling import QUICK_BREAKER, first, scenario

# Leases.


@scenario
def leases_come_and_go(s: Stage) -> None:
    s.pool(slots=3)
    s.holder(count=3, ttl=6.0, hold=5.0)


@scenario
def waiters_queue_by_priority(s: Stage) -> None:
    s.pool(slots=1)
    s.holder(count=2, hold=3.0, wait=20.0)
    s.holder(count=2, hold=3.0, wait=20.0, priority=5)


@scenario
def waiters_go_away(s: Stage) -> None:
    s.pool(slots=1)
    s.holder(count=4, hold=4.0, wait=8.0, cancel=0.5)
    s.kill(21.0)


@scenario
def holders_crash(s: Stage) -> None:
    s.pool(slots=2)
    s.holder(count=4, ttl=4.0, hold=3.0, wait=10.0, crash=0.4)


@scenario
def renewals_come_late(s: Stage) -> None:
    s.pool(slots=2)
    s.holder(count=3, ttl=4.0, hold=20.0, wait=3.0, late=0.4)
    s.kill(18.0)


@scenario
def strangers_try_other_peoples_leases(s: Stage) -> None:
    s.pool(slots=2)
    s.holder(count=2, hold=6.0, twice=0.5)
    s.stranger(0.7)
    s.kill(15.0)


@scenario
def replies_are_lost(s: Stage) -> None:
    s.world.lost_replies = 0.3
    s.pool(slots=2)
    s.holder(count=3, hold=4.0, wait=6.0, ttl=6.0)
    s.kill(12.0, 25.0)


@scenario
def daemon_dies_under_leases(s: Stage) -> None:
    s.pool(slots=4)
    s.pool("b", slots=2)
    s.holder("a", 4, ttl=9.0, hold=15.0)
    s.holder("b", 3, ttl=9.0, hold=15.0, wait=9.0)
    s.kill(10.0, 10.8, 19.0, 27.0)


@scenario
def daemon_is_away_for_longer_than_a_lease(s: Stage) -> None:
    s.pool(slots=2)
    s.holder(count=3, ttl=3.0, hold=30.0, wait=2.0)
    s.at(15.0, lambda: setattr(s.world, "restart_delay", 5.0))
    s.kill(15.1)


# Engines that fail.


@scenario
def engine_crashes_once(s: Stage) -> None:
    s.pool(script=first(1, Script(crash=12.0, code=3)))
    s.holder(count=1)


@scenario
def engine_is_killed_by_a_signal(s: Stage) -> None:
    s.pool(script=first(1, Script(crash=12.0, code=None, signal=11)))


@scenario
def engine_is_killed_for_memory(s: Stage) -> None:
    s.pool()
    s.at(10.0, s.world.oom_kill, "a")
    s.kill(10.0015)


@scenario
def engine_crashes_in_a_loop(s: Stage) -> None:
    s.pool(script=Script(crash=1.0), overrides=QUICK_BREAKER)
    s.length = 120.0


@scenario
def crash_loop_outlives_daemons(s: Stage) -> None:
    s.pool(script=Script(crash=1.5), overrides=replace(QUICK_BREAKER, circuit_breaker_timeout_secs=60))
    s.kill(5.0, 9.0, 16.0, 30.0, 44.0)
    s.length = 100.0


@scenario
def crash_loop_is_reset(s: Stage) -> None:
    s.pool(script=first(4, Script(crash=0.8)), overrides=QUICK_BREAKER)
    s.reset(14.0)
    s.stop(30.0)


@scenario
def open_breaker_is_not_passed_by_a_preload(s: Stage) -> None:
    s.pool(script=Script(crash=0.9), overrides=replace(QUICK_BREAKER, circuit_breaker_timeout_secs=60))
    s.stop(20.0)
    s.preload(22.0)
    s.preload(30.0)
    s.length = 70.0


@scenario
def trial_heals(s: Stage) -> None:
    s.pool(script=first(3, Script(crash=1.0)), overrides=replace(QUICK_BREAKER, stable_secs=10))
    s.length = 70.0


@scenario
def many_restarts_within_a_minute(s: Stage) -> None:
    often = SupervisionOverrides(
        backoff_initial_ms=0, backoff_floor_ms=0, circuit_breaker_threshold=500, circuit_breaker_timeout_secs=30
    )
    s.pool(script=Script(crash=0.6), overrides=often)
    s.length = 90.0


@scenario
def all_engines_die_at_once(s: Stage) -> None:
    for pool_id in "abcd":
        s.pool(pool_id)
    for when in (10.0, 30.0):
        for n, pool_id in enumerate("abcd"):
            s.at(when + n * 0.3, s.world.kill_engine, pool_id)
    s.length = 60.0


@scenario
def engine_exits_with_zero(s: Stage) -> None:
    s.pool(script=first(1, Script(crash=10.0, code=0)))


@scenario
def engine_exits_with_zero_and_is_always_restarted(s: Stage) -> None:
    s.pool(script=first(2, Script(crash=8.0, code=0)), restart=RestartMode.ALWAYS)


@scenario
def engine_is_never_restarted(s: Stage) -> None:
    s.pool(script=Script(crash=8.0, code=2), restart=RestartMode.NEVER)


@scenario
def engine_never_becomes_ready(s: Stage) -> None:
    s.pool(script=first(1, Script(load=inf, listen=0.1)))
    s.length = 60.0


@scenario
def engine_makes_no_progress(s: Stage) -> None:
    s.pool(script=first(1, Script(load=inf, listen=inf, progress=False, deaf=True)))
    s.kill(7.0)
    s.length = 50.0


@scenario
def engine_hangs(s: Stage) -> None:
    s.pool(script=first(1, Script(hang=8.0)))
    s.holder(count=1, ttl=5.0)
    s.length = 60.0


@scenario
def engine_hangs_briefly(s: Stage) -> None:
    s.pool(script=Script(hang=8.0, well_again=17.0))
    s.length = 60.0


@scenario
def engine_is_deaf(s: Stage) -> None:
    s.pool(script=Script(deaf=True))
    s.stop(8.0)
    s.kill(9.0)


@scenario
def children_outlive_their_engine(s: Stage) -> None:
    s.pool(script=first(1, Script(crash=6.0, children=2)))
    s.stop(25.0)


@scenario
def children_outlive_their_engine_while_no_daemon_runs(s: Stage) -> None:
    s.pool(script=first(1, Script(crash=10.2, children=2, stubborn=0.5)))
    s.at(9.0, lambda: setattr(s.world, "restart_delay", 3.0))
    s.kill(9.5)


@scenario
def processes_that_take_long_to_die(s: Stage) -> None:
    s.pool(script=Script(deaf=True, stubborn=4.0, children=1))
    s.stop(8.0, grace=1.0)
    s.preload(9.5)
    s.kill(10.0)


@scenario
def somebody_else_holds_the_port(s: Stage) -> None:
    s.pool(port=41000, script=first(1, Script(listen=0.4, load=1.0)))
    s.at(0.45, s.world.hold_port, 41000, 15.0)


@scenario
def bad_arguments(s: Stage) -> None:
    s.pool(script=Script(crash=0.2, code=1, log="error: unknown flag --frob"))
    s.update(12.0, args=("--good",))
    s.length = 40.0


@scenario
def executable_is_missing(s: Stage) -> None:
    s.pool(preload=False)
    s.at(2.0, s.world.missing.add, "/bin/engine")
    s.preload(3.0, wait=5.0)
    s.at(8.0, s.world.missing.clear)
    s.reset(9.0)
