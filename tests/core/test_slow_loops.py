"""Loops so slow that neither backoff nor breaker notices them (RST-5)."""

from __future__ import annotations

import pytest

from poolmgr.core.restart import RestartPolicy, became_healthy, became_stable, failed
from poolmgr.model.settings import SupervisionSettings

SETTINGS = SupervisionSettings()
HOUR = 3600.0


def lives(times: list[float]) -> list[tuple[int, bool]]:
    """(flapping, parked) of each failure, of an engine that ran well for long before each."""
    policy, seen = RestartPolicy(), []
    for at in times:
        policy = became_stable(became_healthy(policy, at - 900.0))
        decision = failed(policy, "SIGNAL", at, 0.5, 0, SETTINGS)
        policy = decision.policy
        assert not decision.opened and decision.backoff < 3.0
        seen.append((decision.flapping, decision.parked))
    return seen


@pytest.mark.behaviour("RST-5")
def test_the_sixth_counted_failure_within_six_hours_is_flapping_and_a_rarer_one_is_not():
    assert [flapping for flapping, _ in lives([1e6 + i * HOUR for i in range(8)])] == [0, 0, 0, 0, 0, 6, 6, 6]
    assert not any(flapping for flapping, _ in lives([1e6 + i * 1.21 * HOUR for i in range(8)]))


@pytest.mark.behaviour("RST-5")
def test_the_twenty_fourth_counted_failure_within_a_day_parks_and_a_rarer_one_does_not():
    parked = [parked for _, parked in lives([1e6 + i * 0.99 * HOUR for i in range(26)])]
    assert parked.index(True) == 23 and all(parked[23:])
    assert not any(parked for _, parked in lives([1e6 + i * 1.05 * HOUR for i in range(30)]))
