"""SIGSTOP to the daemon: a paused daemon must not kill good engines once it runs on (LIVE-1)."""

from __future__ import annotations

import os
import signal

from tests.chaos.design import Design
from tests.chaos.faults.common import check_same, engines
from tests.chaos.rig import Rig

LEAST_SECONDS, MOST_SECONDS = 2.0, 10.0


def design() -> Design:
    # One probe that is taken for failed would be enough.
    return Design(settings={"supervision.health_check_failures": 1, "supervision.health_check_timeout_ms": 1000})


def strike(rig: Rig, number: int) -> None:
    before = engines(rig)
    length = rig.rng.uniform(LEAST_SECONDS, MOST_SECONDS)
    rig.deeds.write("run", fault="sigstop", run=number, detail=f"{length:.1f} s")
    rig.pause(0.0, 1.0)
    os.kill(rig.pid, signal.SIGSTOP)
    try:
        rig.pause(length, length)
    finally:
        os.kill(rig.pid, signal.SIGCONT)
    rig.pause(1.5, 2.5)  # two probes of each engine
    rig.await_ready(rig.pools)
    check_same(rig, before, "LIVE-1")
