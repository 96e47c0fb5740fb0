"""The product in the simulated world: a sample of what `make sim` runs whole, and the oracle's own proof."""

from __future__ import annotations

import pytest

from tests.sim import planted, runner
from tests.sim.runner import Job, Outcome, Summary
from tests.sim.scenarios import SCENARIOS

SEEDS = 120
EVERY = 25  # of the crash points and faults of each scenario


def told(outcomes: list[Outcome]) -> str:
    """The violations, as a test shows them."""
    return "\n".join(str(v) for outcome in outcomes for v in outcome.violations)


@pytest.mark.behaviour(
    "PROC-3", "PROC-6", "PROC-7", "RST-1", "RST-2", "RST-4", "RST-8", "LEASE-1", "LEASE-2", "LEASE-3", "LEASE-4",
    "LEASE-5", "LEASE-6", "DRN-1", "DRN-5", "PRE-4", "PRE-8", "LIVE-1",
)  # fmt: skip
def test_random_stories_break_no_rule():
    summary, outcomes = Summary(), list(runner.run_all(runner.seeds(0, SEEDS)))
    for outcome in outcomes:
        summary.add(outcome, seed=True)
    figures = summary.figures()
    assert told(outcomes) == ""
    assert figures["steps_p50"] >= 200 and figures["replays_checked"] >= 1
    assert figures["kills"] > SEEDS and figures["engine_exits"] > SEEDS and figures["leases"] > SEEDS


def test_scenarios_break_no_rule_and_differ_in_their_events():
    outcomes = list(runner.run_all([runner.clean(name) for name in SCENARIOS]))
    assert told(outcomes) == ""
    assert len({outcome.events for outcome in outcomes}) >= 40


@pytest.mark.behaviour("PROC-6", "PROC-7", "LEASE-4", "DRN-3")
def test_a_daemon_that_dies_or_meets_an_error_at_any_call_of_a_port_breaks_no_rule():
    jobs: list[Job] = []
    for number, name in enumerate(SCENARIOS):
        calls = runner.run(runner.clean(name)).calls
        jobs += [j for n, j in enumerate(runner.crash_points(name, calls)) if n % EVERY == number % EVERY]
        jobs += [j for n, j in enumerate(runner.fault_points(name, calls)) if n % EVERY == number % EVERY]
    outcomes = list(runner.run_all(jobs))
    assert told(outcomes) == ""
    assert sum(outcome.counts["crash_points_hit"] for outcome in outcomes) >= len(SCENARIOS)
    assert sum(sum(outcome.faults.values()) for outcome in outcomes) >= len(SCENARIOS)


PLANTED = [
    (planted.adoption_forgotten, {"PROC-7"}, "daemon-dies-under-leases"),
    (planted.every_slot_is_free, {"LEASE-1"}, "waiters-queue-by-priority"),
    (planted.killed_by_bare_pid, {"PROC-3"}, "pid-of-a-dead-engine-is-used-again"),
    (planted.breaker_never_opens, {"RST-2"}, "engine-crashes-in-a-loop"),
    (planted.backoff_forgotten, {"RST-1"}, "engine-crashes-in-a-loop"),
    (planted.fences_from_one, {"LEASE-2"}, "daemon-dies-under-leases"),
    (planted.leases_not_recorded, {"LEASE-1", "LEASE-4"}, "daemon-dies-under-leases"),
    (planted.nothing_is_remembered, {"RST-1", "RST-2"}, "crash-loop-outlives-daemons"),
    (planted.nothing_is_remembered, {"PRE-8", "RST-8"}, "stop-outlives-the-daemon"),
    (planted.directories_are_left, {"DRN-5"}, "pools-come-and-go"),
    (planted.a_change_is_skipped, {"WATCH"}, "watchers-fall-behind"),
]


@pytest.mark.parametrize(("plant", "rules", "name"), PLANTED, ids=lambda v: getattr(v, "__name__", None))
def test_the_oracle_notices_a_planted_bug(monkeypatch, plant, rules, name):
    assert runner.run(runner.clean(name)).violations == []
    plant(monkeypatch.setattr)
    found = {violation.rule for violation in runner.run(runner.clean(name)).violations}
    assert found and found <= rules | {"DEFECT"}, found


def test_a_run_that_depends_on_more_than_its_seed_is_noticed(monkeypatch):
    job = Job(scenario="waiters-queue-by-priority", twice=True)
    assert runner.run_checked(job).violations == []
    job = Job(scenario="engine-crashes-in-a-loop", twice=True)
    assert runner.run_checked(job).violations == []
    planted.chance_from_outside(monkeypatch.setattr)
    assert "REPLAY" in {violation.rule for violation in runner.run_checked(job).violations}


def test_a_crash_point_is_the_same_call_as_in_the_clean_run():
    name = "daemon-dies-under-leases"
    calls = runner.run(runner.clean(name)).calls
    for job in list(runner.crash_points(name, calls))[::9]:
        outcome = runner.run(job)
        assert outcome.counts["crash_points_hit"] == 1
        assert outcome.calls[: job.crash.call] == calls[: job.crash.call]
