"""The daemon runs out of descriptors, and gets them back (prlimit)."""

from __future__ import annotations

import os
import resource

from poolmgr.client import CallError
from tests.chaos.design import Design
from tests.chaos.faults.common import Ending, check_same, end_engine, engines, forget, made_ready
from tests.chaos.faults.shim_kill import scripted
from tests.chaos.rig import Rig


def design() -> Design:
    # A probe for which the daemon has no descriptor tells nothing of the engine: one alone would be enough to end it.
    return Design(settings={"supervision.health_check_failures": 1})


def strike(rig: Rig, number: int) -> None:
    """While it has none left an engine may end and a pool may be asked for; both are mended or refused, none harmed."""
    pool_id, crash = scripted(rig, number), number % 2 == 1
    rig.deeds.write("run", fault="fd-exhaustion", run=number, detail="an engine ends" if crash else "")
    before, pid = engines(rig), rig.pid
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    room = rig.rng.choice((0, 1, 3))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(os.listdir(f"/proc/{pid}/fd")) + room, hard))
    try:
        if crash:
            end_engine(rig, pool_id, Ending("exit", 3))
        ask_in_vain(rig)
        rig.pause(0.5, 2.0)
    finally:
        if not rig.dead():
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
    if rig.dead():
        rig.fail("PROC-6", "the daemon ended for want of descriptors", [rig.tail()])
        rig.start_daemon()
    if crash:
        rig.await_again(pool_id, before[pool_id])
        with rig.client() as client:
            client.reset_breaker(pool_id)
        rig.must_live(pool_id)
    rig.await_ready(rig.pools)
    check_same(rig, before, "PROC-7", frozenset([pool_id] if crash else []))
    forget(rig, made_ready(rig))


def ask_in_vain(rig: Rig) -> None:
    """A new pool: whatever is answered, a refusal or a start that fails, must not harm the others."""
    plan = rig.subject()
    try:
        with rig.client(2.0) as client:
            client.create_pool(plan.pool_id, plan.spec)
    except CallError as refused:
        rig.deeds.write("refused", pool=plan.pool_id, reason=refused.reason)
