"""Named stories of reloads and rollbacks. Times are seconds of the world."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from poolmgr.model.pool import ReloadStrategy
from tests.sim.kernel import Script
from tests.sim.stage import Stage
from tests.sim.telling import scenario


def later(script: Script) -> Callable[[int, int], Script]:
    """Engines of every generation but the first go like that."""
    return lambda run, generation: script if generation > 1 else Script()


@scenario
def reload_under_leases(s: Stage) -> None:
    s.pool(slots=3)
    s.holder(count=3, hold=6.0, wait=10.0)
    s.reload(8.0, args=("--second",), wait=20.0)
    s.rollback(25.0, wait=20.0)
    s.length = 45.0


@scenario
def reload_breaks_before_it_makes(s: Stage) -> None:
    s.pool(slots=2, drain_deadline=20.0)
    s.holder(count=2, hold=5.0, wait=15.0)
    s.reload(8.0, strategy=ReloadStrategy.BREAK_BEFORE_MAKE, args=("--second",))
    s.kill(14.0, 16.0)


@scenario
def reload_aborts_at_the_drains_deadline(s: Stage) -> None:
    s.pool(slots=1)
    s.holder(count=1, hold=300.0)
    s.reload(6.0, strategy=ReloadStrategy.BREAK_BEFORE_MAKE, deadline=5.0, args=("--second",), wait=20.0)


@scenario
def reload_meets_an_engine_that_does_not_come_up(s: Stage) -> None:
    s.pool(slots=2, script=later(Script(load=inf, listen=inf)))
    s.holder(count=2, hold=8.0, ttl=6.0)
    s.reload(6.0, args=("--bad",))
    s.kill(12.0)
    s.length = 60.0


@scenario
def reload_meets_an_engine_that_answers_wrongly(s: Stage) -> None:
    s.pool(script=later(Script(wrong=True)))
    s.holder(count=1, hold=8.0)
    for when in (6.0, 12.0, 18.0):
        s.reload(when, args=("--wrong",))
    s.length = 30.0


@scenario
def reload_breaks_and_does_not_make(s: Stage) -> None:
    s.pool(port=41000, script=later(Script(crash=0.3)))
    s.holder(count=1, hold=2.0, wait=10.0)
    s.reload(6.0, args=("--bad",), wait=15.0)
    s.kill(8.2)


@scenario
def engine_crashes_while_it_is_replaced(s: Stage) -> None:
    s.pool(slots=2, script=lambda run, generation: Script(crash=7.5) if run == 0 else Script(load=2.0))
    s.holder(count=2, hold=20.0)
    s.reload(6.0)
    s.length = 30.0


@scenario
def new_engine_crashes_after_the_commit(s: Stage) -> None:
    s.pool(slots=2, script=lambda run, generation: Script(crash=3.0, signal=6, code=None) if run == 1 else Script())
    s.holder(count=2, hold=20.0, ttl=6.0)
    s.reload(6.0, args=("--second",), deadline=15.0)
    s.kill(8.0, 9.5)
    s.length = 35.0


@scenario
def pool_is_stopped_while_it_reloads(s: Stage) -> None:
    s.pool(script=Script(load=3.0))
    s.reload(6.0, args=("--second",))
    s.stop(7.0)
    s.kill(7.01)
    s.preload(15.0)


@scenario
def pool_is_deleted_while_its_old_engine_retires(s: Stage) -> None:
    s.pool(slots=2, drain_deadline=60.0)
    s.holder(count=1, hold=300.0, ttl=6.0)
    s.reload(6.0, args=("--second",))
    s.delete(9.0, deadline=3.0)
    s.kill(9.5, 11.0)
    s.pool(when=30.0)
    s.length = 40.0


@scenario
def power_is_cut_in_a_reload(s: Stage) -> None:
    s.pool(slots=2, script=Script(load=2.0))
    s.holder(count=2, hold=20.0)
    s.reload(6.0, args=("--second",))
    s.at(8.05, s.world.power_cut)
    s.length = 30.0


@scenario
def shims_die_in_a_reload(s: Stage) -> None:
    s.pool(slots=2)
    s.holder(count=2, hold=5.0)
    s.reload(6.0)
    s.at(6.3, s.world.kill_shims)
    s.kill(6.4)
