"""Named stories of what administrators ask for, and of daemons, hosts and disks. Times are seconds of the world."""

from __future__ import annotations

from dataclasses import replace

from tests.sim.kernel import Script
from tests.sim.stage import Stage
from tests.sim.telling import QUICK_BREAKER, first, scenario

# What an administrator asks for.


@scenario
def stop_and_start(s: Stage) -> None:
    s.pool(preload=False)
    s.preload(1.0)
    s.stop(8.0, wait=10.0)
    s.kill(12.0)
    s.preload(20.0)


@scenario
def stop_outlives_the_daemon(s: Stage) -> None:
    s.pool(preload=True, script=Script(deaf=True))
    s.stop(8.0)
    s.kill(8.5, 16.0)


@scenario
def stop_meets_a_start(s: Stage) -> None:
    s.pool(preload=False, script=Script(load=6.0))
    s.preload(1.0)
    s.stop(1.006)
    s.preload(9.0)
    s.stop(11.0)


@scenario
def drain_waits_for_holders(s: Stage) -> None:
    s.pool(slots=2)
    s.holder(count=2, hold=6.0)
    s.drain(8.0, deadline=30.0, wait=30.0)
    s.kill(10.0)


@scenario
def drain_is_forced(s: Stage) -> None:
    s.pool(slots=2, script=Script(term=2.0))
    s.holder(count=2, hold=200.0)
    s.drain(8.0, deadline=6.0)
    s.length = 30.0


@scenario
def drain_goes_on_under_a_daemon_that_begins_slowly(s: Stage) -> None:
    """Which has the engine at once, and its leases once it is done with what is left of the other pool's."""
    s.pool("a", slots=2)
    s.pool("b", script=Script(children=1, stubborn=1.0))
    s.holder("a", count=2, hold=30.0)
    s.drain(8.0, "a", deadline=20.0)
    s.kill(10.0)
    s.at(10.01, s.world.kill_engine, "b")


@scenario
def drain_is_undone(s: Stage) -> None:
    s.pool(slots=2)
    s.holder(count=2, hold=100.0)
    s.drain(8.0, deadline=30.0)
    s.undrain(12.0)
    s.holder(count=1, hold=3.0, wait=5.0)


@scenario
def delete_meets_holders(s: Stage) -> None:
    s.pool(slots=2)
    s.holder(count=3, hold=5.0, wait=4.0)
    s.delete(8.0, deadline=10.0)
    s.kill(9.0)


@scenario
def delete_meets_a_start(s: Stage) -> None:
    s.pool(script=Script(load=5.0))
    s.delete(0.23)
    s.pool(when=10.0)
    s.delete(11.0)
    s.kill(11.02)


@scenario
def labels_change(s: Stage) -> None:
    s.pool(slots=2)
    s.holder(count=2, hold=30.0)
    s.update(8.0, labels={"a": "b"})
    s.kill(12.0)


@scenario
def arguments_change(s: Stage) -> None:
    s.pool(slots=2, drain_deadline=10.0)
    s.holder(count=2, hold=6.0, wait=10.0)
    s.update(8.0, args=("--more",))
    s.kill(9.0, 20.0)
    s.length = 50.0


@scenario
def slots_change(s: Stage) -> None:
    s.pool(slots=4)
    s.holder(count=4, hold=9.0, wait=6.0)
    s.update(8.0, slots=2)
    s.kill(14.0)


@scenario
def an_edit_meets_a_failing_pool(s: Stage) -> None:
    s.pool(script=lambda run, generation: Script(crash=0.7) if generation < 2 else Script(), overrides=QUICK_BREAKER)
    s.update(15.0, args=("--better",))


@scenario
def pools_come_and_go(s: Stage) -> None:
    for n, pool_id in enumerate("abcde"):
        s.pool(pool_id, when=0.5 * n, port=42000)
        s.delete(6.0 + n, pool_id)
    s.pool("c", when=16.0)
    s.kill(8.01, 17.0)


@scenario
def pools_are_declared(s: Stage) -> None:
    made = s.pool("a", slots=2)
    s.world.declared["f"] = replace(made, args=("--file",))
    s.oracle_knows_declared("f")
    s.kill(8.0)


# Daemons, hosts, disks.


@scenario
def daemon_ends_and_leaves_engines(s: Stage) -> None:
    s.pool(slots=2)
    s.holder(count=2, ttl=6.0, hold=20.0)
    s.at(10.0, s.world.stop_daemon)


@scenario
def daemon_ends_and_stops_engines(s: Stage) -> None:
    s.pool(slots=2)
    s.pool("b", script=Script(deaf=True))
    s.at(10.0, s.world.stop_daemon, True)


@scenario
def daemon_is_paused(s: Stage) -> None:
    s.pool(slots=2)
    s.holder(count=2, ttl=30.0, hold=30.0)
    s.at(9.0, s.world.pause_daemon, 4.0)
    s.at(20.0, s.world.pause_daemon, 45.0)
    s.length = 90.0


@scenario
def daemon_is_paused_while_an_engine_loads(s: Stage) -> None:
    s.pool(script=Script(load=12.0))
    s.at(2.0, s.world.pause_daemon, 30.0)
    s.length = 60.0


@scenario
def daemon_dies_again_and_again(s: Stage) -> None:
    s.pool("a", slots=2, script=Script(load=4.0))
    s.pool("b", script=first(1, Script(crash=9.0)))
    s.holder(count=2, ttl=12.0)
    s.world.restart_delay = 0.1
    s.kill(*(1.0 + 0.37 * n for n in range(30)))


@scenario
def wall_clock_jumps(s: Stage) -> None:
    s.world.drift = 1e-3
    s.pool(slots=2, script=first(3, Script(crash=6.0)))
    s.holder(count=2, ttl=6.0, hold=9.0)
    s.at(8.0, s.world.jump_wall, -7200.0)
    s.at(20.0, s.world.jump_wall, 86400.0)
    s.kill(21.0)
    s.length = 50.0


@scenario
def shim_dies_and_then_its_engine(s: Stage) -> None:
    s.pool()
    s.at(8.0, s.world.kill_shims)
    s.at(12.0, s.world.kill_engine, "a")


@scenario
def shim_and_daemon_die(s: Stage) -> None:
    s.pool(slots=2, script=first(1, Script(children=1, child_life=2.0)))
    s.holder(count=2, ttl=6.0, hold=30.0)
    s.at(8.0, s.world.kill_shims)
    s.kill(8.0)
    s.at(14.0, s.world.kill_engine, "a")


@scenario
def engine_dies_while_no_daemon_runs(s: Stage) -> None:
    s.pool(slots=2)
    s.holder(count=2, ttl=6.0, hold=30.0)
    s.at(9.0, lambda: setattr(s.world, "restart_delay", 2.0))
    s.kill(9.5)
    s.at(10.0, s.world.kill_engine, "a", None, 7)


@scenario
def pid_of_a_dead_engine_is_used_again(s: Stage) -> None:
    s.world.reuse_pids = True
    s.pool(script=first(3, Script(crash=7.0)))
    s.at(6.0, lambda: setattr(s.world, "restart_delay", 2.0))
    s.kill(7.0)
    s.stop(30.0)


@scenario
def pids_run_out(s: Stage) -> None:
    def hog() -> None:
        for pid in range(2, 66):
            s.world.kernel.take_pid(pid, 12.0)

    s.at(3.0, hog)
    s.pool(when=4.0)
    s.length = 50.0


@scenario
def power_is_cut(s: Stage) -> None:
    s.pool(slots=2)
    s.pool("b", preload=False)
    s.holder(count=2, hold=30.0)
    s.preload(5.0, "b")
    s.stop(9.0, "b", wait=8.0)
    s.at(16.0, s.world.power_cut)
    s.at(25.0, s.world.power_cut)


@scenario
def power_is_cut_in_a_crash_loop(s: Stage) -> None:
    s.pool(script=Script(crash=1.0), overrides=QUICK_BREAKER)
    s.at(20.0, s.world.power_cut)
    s.length = 60.0


@scenario
def database_is_lost(s: Stage) -> None:
    s.pool(slots=2)
    s.holder(count=2, hold=30.0)
    s.kill(12.0)
    s.at(12.05, s.world.lose_database)


@scenario
def database_is_lost_and_the_pool_made_again(s: Stage) -> None:
    s.pool(slots=2)
    s.holder(count=2, hold=30.0)
    s.kill(12.0)
    s.at(12.05, s.world.lose_database)
    s.pool(slots=2, when=20.0)


@scenario
def log_of_leases_is_damaged(s: Stage) -> None:
    s.pool(slots=2)
    s.holder(count=3, ttl=8.0, hold=20.0, wait=30.0)
    s.kill(12.0)
    s.at(12.05, s.world.damage_leases)
    s.length = 60.0


@scenario
def disk_is_full(s: Stage) -> None:
    s.pool(slots=2, script=first(1, Script(crash=12.0)))
    s.holder(count=2, ttl=6.0, hold=5.0)
    s.at(8.0, s.world.disk_full, 14.0)
    s.update(10.0, labels={"x": "y"})
    s.stop(15.0)
    s.preload(16.0)


@scenario
def fsync_fails(s: Stage) -> None:
    s.pool(slots=2)
    s.holder(count=2, ttl=6.0, hold=5.0)
    s.at(8.0, s.world.disk_fails, 6.0)
    s.update(9.0, labels={"x": "y"})
    s.kill(18.0)


@scenario
def record_of_an_engine_is_damaged(s: Stage) -> None:
    s.pool("a")
    s.pool("b")
    s.at(9.0, lambda: setattr(s.world, "restart_delay", 2.0))
    s.kill(10.0)
    s.at(10.01, s.world.damage_ident, "a")


@scenario
def watchers_fall_behind(s: Stage) -> None:
    s.pool("a", slots=4)
    s.pool("b", script=Script(crash=3.0))
    s.holder("a", 6, hold=1.0, think=0.3, wait=2.0)
    s.watcher(0.0)
    s.watcher(12.0)
    s.kill(25.0)
