"""Runs of one fault, rig after rig, and what they showed together."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import grpc

from poolmgr.client import CallError, LeaseRefused
from tests.chaos.design import Design
from tests.chaos.faults import (
    crash_point,
    daemon_kill,
    descriptors,
    disk_full,
    exits,
    pause,
    pid_reuse,
    shim_kill,
    state_loss,
    wall_jump,
)
from tests.chaos.isolation import MOUNTS, PIDS
from tests.chaos.procs import NANOSECONDS
from tests.chaos.rig import Rig
from tests.chaos.verdict import Figures, judge

# A history is checked as a whole: shorter rigs are checked sooner, longer ones see more restarts of one state.
RUNS_PER_RIG = 40
SHOWN_OF_A_SORT = 3


Strike = Callable[[Rig, int], None]


@dataclass(frozen=True, slots=True)
class Fault:
    """`count`: how often it is tried unless told; `design` and `strike` of its module."""

    count: int
    design: Callable[[], Design]
    strike: Strike
    runs_per_rig: int = RUNS_PER_RIG
    step: int = 1  # runs that one strike makes
    launcher: Sequence[str] = ()  # puts the whole campaign into namespaces of its own


FAULTS: Mapping[str, Fault] = {
    "daemon-kill": Fault(300, daemon_kill.design, daemon_kill.strike),
    "crash-point": Fault(len(crash_point.POINTS) * 2, crash_point.design, crash_point.strike),
    "shim-kill": Fault(100, shim_kill.design, shim_kill.strike),
    "double-kill": Fault(100, shim_kill.design, shim_kill.strike_both),
    "sigstop": Fault(20, pause.design, pause.strike),
    "fd-exhaustion": Fault(20, descriptors.design, descriptors.strike),
    "state-loss": Fault(100, state_loss.design, state_loss.strike),
    "pid-reuse": Fault(100, pid_reuse.design, pid_reuse.strike, launcher=PIDS),
    "disk-full": Fault(20, disk_full.design, disk_full.strike, launcher=MOUNTS),
    "wall-jump": Fault(24, wall_jump.design, wall_jump.strike),
    "exits": Fault(320, exits.design, exits.strike, runs_per_rig=160, step=exits.BATCH),
}


def campaign(name: str, count: int, seed: str) -> Figures:
    """`count` runs of a fault; the seed decides what is random on our side."""
    fault, total, done = FAULTS[name], Figures(), 0
    while done < count:
        runs = range(done, min(count, done + fault.runs_per_rig))
        strikes = [(fault.strike, number) for number in runs[:: fault.step]]
        total.add(one_rig(fault.design(), strikes, f"{seed}/{name}/{done}"))
        done = runs.stop
        said = f"{name}: {total.runs} runs ({done}/{count} tried), {len(total.violations)} violations"
        print(said, file=sys.stderr, flush=True)
    return total


def one_rig(design: Design, strikes: Iterable[tuple[Strike, int]], seed: str) -> Figures:
    """What these strikes, one after the other, showed. A rig that shows a violation is kept to be looked at."""
    rig = Rig(design, seed)
    try:
        try:
            rig.build()
            for strike, number in strikes:
                strike(rig, number)
            rig.close()
        except (AssertionError, CallError, LeaseRefused, grpc.RpcError, OSError) as error:
            # What stops the harness is a finding: the daemon did not do what every run rests on.
            rig.fail("PROC-7", f"the run could not go on: {type(error).__name__}: {error}", [rig.tail()])
            rig.abandon()
    finally:
        rig.destroy()
    figures = judge(rig.directory)
    show(figures)
    if figures.violations:
        print(f"kept: {rig.directory}", file=sys.stderr, flush=True)
    else:
        rig.remove()
    return figures


def show(figures: Figures) -> None:
    """The first of each sort with their evidence, and how many there are."""
    shown: Counter[tuple[str, str]] = Counter()
    for run, violation in figures.violations:
        sort = (violation.rule, violation.kind)
        shown[sort] += 1
        if shown[sort] <= SHOWN_OF_A_SORT:
            print(f"{violation.rule} {run} at {violation.at / NANOSECONDS:.6f}: {violation.text}", file=sys.stderr)
            for line in violation.evidence:
                print(f"    {line}", file=sys.stderr)
    for (rule, kind), count in shown.items():
        print(f"{rule} {kind}: {count}", file=sys.stderr)
