"""The rules about limits, health, versions and registered engines notice a daemon that breaks them, nothing else."""

from __future__ import annotations

import pytest

from poolmgr.model.pool import PoolState
from tests.sim import planted_limits as planted
from tests.sim import runner
from tests.sim.runner import Job

PLANTED = [
    (planted.claims_are_forgotten, "PRE-5", "engine-that-loads-is-adopted-and-another-starts"),
    (planted.rate_is_not_limited, "RST-4", "many-restarts-within-a-minute"),
    (planted.nothing_parks, "RST-5", "slow-loop-is-parked"),
    (planted.deaths_are_each_pools_own, "RST-6", "half-of-the-engines-die-at-once"),
    (planted.waiters_are_left_waiting, "LEASE-5", "waiters-are-told-of-a-pool-that-parks"),
    (planted.hung_is_well, "LIVE-1", "engine-hangs-for-good"),
    (planted.well_is_hung, "LIVE-1", "engine-that-loads-is-adopted-and-another-starts"),
    (planted.commits_are_shown_first, "DRN-3", "daemon-dies-as-soon-as-a-commit-is-shown"),
    (planted.edits_change_no_engine, "DRN-4", "reload-under-leases"),
    (planted.registrations_are_forgotten, "ENG-1", "engine-registers-and-serves"),
    (planted.what_is_not_said_is_lost, "ENG-1", "engine-registers-and-serves"),
    (planted.silence_is_nothing, "ENG-1", "registered-engine-falls-silent-and-comes-back"),
    (planted.heartbeats_bring_nothing_back, "ENG-3", "registered-engine-falls-silent-and-comes-back"),
    (planted.registered_and_hung_is_well, "LIVE-1", "registered-engine-hangs"),
    (planted.registered_is_ready_unasked, "ENG-2", "registered-engine-crashes-and-comes-back"),
    (planted.registered_is_told_to_end, "ENG-2", "registered-engine-hangs"),
]


@pytest.mark.behaviour(
    "PRE-5", "RST-4", "RST-5", "RST-6", "LEASE-5", "LIVE-1", "DRN-3", "DRN-4", "ENG-1", "ENG-2", "ENG-3"
)
@pytest.mark.parametrize(("plant", "rule", "name"), PLANTED, ids=lambda v: getattr(v, "__name__", None))
def test_a_rule_is_silent_on_the_clean_tree_and_notices_a_planted_bug(monkeypatch, plant, rule, name):
    assert runner.run(runner.clean(name)).violations == []
    plant(monkeypatch.setattr)
    assert {violation.rule for violation in runner.run(runner.clean(name)).violations} >= {rule}


@pytest.mark.behaviour("ENG-1", "ENG-3")
def test_a_registered_engine_is_leased_is_lost_in_its_silence_and_comes_back():
    world, stage = runner.world_of(Job(scenario="registered-engine-falls-silent-and-comes-back"))
    states, viewed = [], world.oracle.viewed

    def seen(pool_id, view):
        viewed(pool_id, view)
        if view is not None and states[-1:] != [view.state]:
            states.append(view.state)

    world.oracle.viewed = seen
    stage.play()
    assert world.oracle.violations == []
    lost = states.index(PoolState.LOST)
    assert PoolState.READY in states[:lost] and PoolState.READY in states[lost:]
    assert world.oracle.leases.acknowledged > 0 and stage.outsiders[0].gone


@pytest.mark.behaviour("RST-5")
def test_the_story_of_a_slow_loop_ends_in_a_pool_that_is_parked():
    world, stage = runner.world_of(Job(scenario="slow-loop-is-parked"))
    stage.play()
    assert world.events["state-PARKED"] == 1 and world.oracle.violations == []
