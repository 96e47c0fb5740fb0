"""The daemon's wall clock jumps: nothing that lives may hang on it (architecture, Two clocks).

The host's clock is left alone: a preloaded library adds an offset to what the daemon reads of CLOCK_REALTIME.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
import tempfile
import time
from pathlib import Path

from tests.chaos.design import Design
from tests.chaos.faults.common import Ending, check_cause, check_same, end_engine, engines, forget, made_ready
from tests.chaos.faults.shim_kill import scripted
from tests.chaos.rig import Rig

SOURCE = Path(__file__).parents[1] / "realtime.c"
JUMPS = (60.0, -60.0, 3600.0, -3600.0, 86_400.0, -86_400.0, 10 * 365 * 86_400.0, -365 * 86_400.0)
SEEN_SECONDS = 30.0


def design() -> Design:
    directory = Path(tempfile.mkdtemp(prefix="poolmgr-chaos-clock-"))
    library = directory / "realtime.so"
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(SOURCE)], check=True)
    clock = directory / "offset"
    clock.write_bytes(struct.pack("d", 0.0))
    environment = {"LD_PRELOAD": str(library), "CHAOS_CLOCK": str(clock)}
    return Design(environment=environment, undo=lambda: shutil.rmtree(directory))


def strike(rig: Rig, number: int) -> None:
    """A jump forth or back while it runs, while it is down, or while an engine waits for its restart."""
    where = ("running", "down", "backoff")[number % 3]
    jump = JUMPS[number // 3 % len(JUMPS)]
    rig.deeds.write("run", fault="wall-jump", run=number, detail=f"{jump:+.0f} s, {where}")
    before, pool_id = engines(rig), scripted(rig, number)
    ending, crash = Ending("exit", 3), where == "backoff"
    if where == "down":
        rig.kill_daemon("wall-jump")
    elif crash:
        end_engine(rig, pool_id, ending)
    set_offset(rig, jump)
    if where == "down":
        rig.start_daemon()
    rig.pause(0.5, 1.5)
    if crash:
        check_cause(rig, pool_id, before[pool_id], ending, where)
    rig.await_ready(rig.pools)
    check_same(rig, before, "LEASE-3", frozenset([pool_id] if crash else []))
    check_seen(rig, jump)
    set_offset(rig, 0.0)
    rig.pause(0.2, 0.5)


def set_offset(rig: Rig, offset: float) -> None:
    rig.deeds.write("wall-clock", offset=offset)
    with Path(rig.design.environment["CHAOS_CLOCK"]).open("r+b") as file:
        file.write(struct.pack("d", offset))


def check_seen(rig: Rig, jump: float) -> None:
    """The fault is real: what the daemon makes now bears the time of its own clock."""
    plan = made_ready(rig)
    with rig.client() as client:
        made = client.get_pool(plan.pool_id).create_time.ToMicroseconds() / 1e6
    if abs(made - jump - time.time()) > SEEN_SECONDS:
        off = made - time.time()
        rig.fail("LEASE-3", f"the clock was to be {jump:+.0f} s off, and the daemon's is {off:+.0f} s off")
    forget(rig, plan)
