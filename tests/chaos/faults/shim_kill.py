"""SIGKILL to shims: alone, with the daemon, and what follows when such an engine ends (PROC-5, PROC-7)."""

from __future__ import annotations

import os
import signal

from tests.chaos.design import Design
from tests.chaos.faults.common import (
    any_ending,
    await_no_shim,
    check_cause,
    check_same,
    end_engine,
    engines,
    kill_shim,
)
from tests.chaos.rig import Rig


def design() -> Design:
    return Design(llamas=2, scripted=6)


def scripted(rig: Rig, number: int) -> str:
    """The pools of scripted engines take turns."""
    ids = [plan.pool_id for plan in rig.pools if plan.pool_id.startswith("load")]
    return ids[number % len(ids)]


def strike(rig: Rig, number: int) -> None:
    """The shim dies, the engine goes on; then it ends with a known cause, and its successor has a new shim."""
    pool_id, adopted = scripted(rig, number), number % 3 == 2
    where = "shim dead, daemon restarted" if adopted else "shim dead"
    rig.deeds.write("run", fault="shim-kill", run=number, detail=where)
    before = engines(rig)
    if not kill_shim(rig, before[pool_id]):
        rig.fail("PROC-5", f"the engine of {pool_id} has no shim", [before[pool_id]])
    rig.pause(0.1, 0.4)
    if adopted:
        rig.kill_daemon("shim-dead")
        rig.start_daemon()
    rig.await_ready(rig.pools)
    check_same(rig, before, "PROC-5")
    finish(rig, pool_id, any_ending(rig.rng), where)


def strike_both(rig: Rig, number: int) -> None:
    """Daemon and shim die at one instant; sometimes the engine ends before anybody is back to see it."""
    pool_id, unseen = scripted(rig, number), number % 4 == 3
    where = "daemon and shim dead" if unseen else "after a double kill"
    rig.deeds.write("run", fault="double-kill", run=number, detail=where)
    before, ending = engines(rig), any_ending(rig.rng)
    shim = rig.shim_of(before[pool_id])
    if shim is None:
        rig.fail("PROC-5", f"the engine of {pool_id} has no shim", [before[pool_id]])
    else:
        rig.deeds.write("kill-shim", pid=shim, engine=before[pool_id]["engine"])
        os.kill(shim, signal.SIGKILL)
    rig.kill_daemon("double-kill")
    await_no_shim(rig, before[pool_id])
    if unseen:
        end_engine(rig, pool_id, ending)
    rig.pause(0.0, 0.2)
    rig.start_daemon()
    if unseen:
        check_cause(rig, pool_id, before[pool_id], ending, where, witnessed=False)
        rig.await_ready(rig.pools)
        return
    rig.await_ready(rig.pools)
    check_same(rig, before, "PROC-7")
    finish(rig, pool_id, ending, where)


def finish(rig: Rig, pool_id: str, ending: object, where: str) -> None:
    engine = end_engine(rig, pool_id, ending)  # type: ignore[arg-type]
    check_cause(rig, pool_id, engine, ending, where)  # type: ignore[arg-type]
    if rig.shim_of(rig.engine_of(pool_id)) is None:
        rig.fail("PROC-5", f"the new engine of {pool_id} has no shim")
