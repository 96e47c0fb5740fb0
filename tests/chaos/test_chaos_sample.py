"""A few runs of every fault on real processes; `make chaos` is the whole of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.chaos import isolation
from tests.chaos.campaign import FAULTS, one_rig, show
from tests.chaos.design import Design
from tests.chaos.faults import crash_point, daemon_kill, exits, pause, state_loss
from tests.chaos.rig import ROOT
from tests.chaos.verdict import Figures

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(240)]

PHASES = list(daemon_kill.PHASES)
SAMPLED = ("idle", "starting", "draining", "stopping", "backoff", "recovery", "replacing", "rolling_back")
CRASHES = (9, 17)
LOSSES = [*state_loss.VARIANTS, state_loss.ORPHAN]
SEED = "sample"


def sound(figures: Figures, runs: int) -> None:
    """Every run was made, under load, and nothing is wrong."""
    assert [(run, v.rule, v.text, v.evidence) for run, v in figures.violations] == []
    assert figures.runs == runs and figures.operations > 4 * runs and figures.batched > runs, figures.summary()


def small(design: Design) -> Design:
    return replace(design, llamas=1, scripted=3)


@pytest.mark.behaviour("PROC-3", "PROC-6", "PROC-7", "LEASE-1", "LEASE-2", "LEASE-3", "LEASE-4", "DRN-3", "ENG-2")
def test_a_daemon_that_is_killed_in_any_phase_loses_doubles_and_harms_nothing() -> None:
    strikes = [(daemon_kill.strike, PHASES.index(phase)) for phase in SAMPLED]
    strikes += [(crash_point.strike, number) for number in CRASHES]
    figures = one_rig(small(daemon_kill.design()), strikes, SEED)
    sound(figures, len(strikes))
    assert {*SAMPLED} - {*figures.phases} == {"replacing"} and len(figures.crash_points) == len(CRASHES)
    assert len(figures.live_at_kill) > len(strikes) and max(figures.live_at_kill) >= 4


@pytest.mark.behaviour("PROC-5", "PROC-7", "LIVE-1", "LIVE-3", "LEASE-3", "LEASE-4")
def test_shims_that_die_a_daemon_that_is_paused_or_without_descriptors_and_lost_state_harm_nothing() -> None:
    ways = ["database flipped", "all files deleted", state_loss.ORPHAN]
    strikes = [(FAULTS["shim-kill"].strike, 2), (FAULTS["double-kill"].strike, 3)]
    strikes += [(FAULTS["fd-exhaustion"].strike, 1), (FAULTS["sigstop"].strike, 0)]
    strikes += [(state_loss.strike, LOSSES.index(way)) for way in ways]
    settings = {**pause.design().settings, **state_loss.design().settings}
    design = replace(state_loss.design(), settings=settings)
    sound(one_rig(small(design), strikes, SEED), len(strikes))


@pytest.mark.behaviour("LEASE-3", "RST-1")
def test_a_wall_clock_that_jumps_moves_no_lease_and_no_restart() -> None:
    fault = FAULTS["wall-jump"]
    sound(one_rig(small(fault.design()), [(fault.strike, n) for n in (0, 5)], SEED), 2)


@pytest.mark.behaviour("LIVE-3", "PROC-6")
def test_every_end_is_told_by_its_cause_whoever_is_left_to_see_it() -> None:
    fault = FAULTS["exits"]
    batches = [list(exits.CIRCUMSTANCES).index(name) for name in ("daemon_dead", "both_dead", "special")]
    figures = one_rig(fault.design(), [(fault.strike, batch * fault.step) for batch in batches], SEED)
    sound(figures, len(batches) * fault.step)
    assert {"EXIT_CODE", "SIGNAL", "GRACEFUL", "HEALTH_CHECK_FAILED", "STALLED"} <= set(figures.causes)


@pytest.mark.needs_root
@pytest.mark.behaviour("PROC-3", "PROC-6", "LEASE-3")
@pytest.mark.parametrize(("name", "count"), [("pid-reuse", 4), ("disk-full", 3)])
def test_a_pid_that_is_reused_and_a_disk_that_is_full_harm_nothing(name: str, count: int) -> None:
    if os.geteuid() != 0:
        pytest.skip("namespaces of its own, which only root can make")
    figures = isolation.run_apart(FAULTS[name].launcher, ["--fault", name, "--count", str(count), "--seed", SEED])
    show(figures)
    sound(figures, count)


# The whole of it can go red: a bug in a copy of the tree, and a command that fails.


def test_a_campaign_that_ends_without_figures_is_a_violation() -> None:
    ended = isolation.run_apart(["/bin/false"], ["--fault", "sigstop"])
    assert ended.runs == 0 and "ended with 1 and no figures" in ended.violations[0][1].text


def test_a_bug_that_is_planted_is_noticed() -> None:
    """What ends with its shim, which it should outlive."""
    argv = [sys.executable, "-m", "tests.chaos", "--bug", "shim-death-is-engine-death"]
    argv += ["--fault", "shim-kill", "--count", "1", "--seed", SEED]
    ended = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 1, ended.stderr
    figures = json.loads(ended.stdout.splitlines()[-1])
    assert figures["runs"] == 1 and figures["wrong_signals"] > 0 and "did not live through it" in ended.stderr


def test_a_bug_that_is_not_there_is_an_error_and_no_pass() -> None:
    argv = [sys.executable, "-m", "tests.chaos", "--bug", "no-such-bug"]
    ended = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2 and re.search("there is no .*no-such-bug.patch", ended.stderr)


def test_every_fault_has_its_count() -> None:
    asked = {"daemon-kill": 300, "shim-kill": 100, "double-kill": 100, "state-loss": 100, "pid-reuse": 100}
    assert {name: FAULTS[name].count for name in asked} == asked and FAULTS["exits"].count >= 300
    assert set(FAULTS) >= {"sigstop", "disk-full", "wall-jump", "fd-exhaustion", "crash-point"}
    assert all(Path(fault.launcher[0]).name == "unshare" for fault in FAULTS.values() if fault.launcher)
