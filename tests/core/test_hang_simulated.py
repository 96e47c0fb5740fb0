"""Engines that work are never called hung, and those that hang always are: thousands of hours of them (LIVE-2).

HYPOTHESIS_EFFORT=100 watches 10,000 hours of busy engines instead of 100.
"""

from __future__ import annotations

import random

import pytest

from poolmgr.core.progress import stall_limit
from poolmgr.model.engine import CrashCause
from poolmgr.model.pool import PoolState
from poolmgr.model.settings import SupervisionSettings
from tests.core.busy_engine import CPU_OF_ANSWERING, SIGHTS, Sight, Watch
from tests.core.helpers import EFFORT

S = SupervisionSettings()
HOURS = 100 * EFFORT
SHARE = 3600.0 * HOURS / len(SIGHTS)
INTERVALS = 2 * S.health_check_interval * (1 + S.health_jitter) + S.loop_lag_limit
HANGS = 8

pytestmark = pytest.mark.behaviour("LIVE-2", "LIVE-1")


@pytest.mark.parametrize("name", SIGHTS)
def test_an_engine_that_works_is_never_called_hung(name: str) -> None:
    watch = Watch(random.Random(f"busy {name}"), SIGHTS[name], paused=True)
    watch.run(SHARE)
    assert watch.ready, watch.driver.pool.last_error
    assert watch.looks > 400 * SHARE / 3600.0


def hung(seed: str, sight: Sight, cpu: float, full: bool = False) -> tuple[Watch, float]:
    """A busy engine that hangs in the midst of a request, watched until its pool has seen it; and since when."""
    rng = random.Random(seed)
    watch = Watch(rng, sight)
    watch.run(rng.uniform(600.0, 7200.0))
    while not in_the_midst(watch, full):
        watch.run(1.0)
    assert watch.ready
    watch.engine.hang(cpu)
    since, watch.requests = watch.driver.now, len(watch.answers)
    watch.run(3600.0)
    return watch, since


def in_the_midst(watch: Watch, full: bool) -> bool:
    """Whether it has requests in flight, and was seen with some; with all slots taken, or with one free."""
    run = watch.driver.pool.engine
    assert run is not None
    seen, known = run.evidence.in_flight, run.evidence.read == run.evidence.looked
    now = watch.engine.in_flight
    return full == (watch.engine.free == 0) and now > 0 and (now == seen or known) and (seen > 0 or known)


@pytest.mark.behaviour("LIVE-3")
@pytest.mark.parametrize("number", range(HANGS))
@pytest.mark.parametrize("name", [name for name, sight in SIGHTS.items() if not sight.blocks and sight.gpu is not None])
def test_one_that_stops_is_found_within_the_window_and_two_probes(name: str, number: int) -> None:
    watch, since = hung(f"stops {name} {number}", SIGHTS[name], CPU_OF_ANSWERING)
    error, run = watch.driver.pool.last_error, watch.driver.pool.engine
    assert watch.driver.state is PoolState.STOPPING and run is not None
    assert error is not None and error.reason is CrashCause.HUNG
    assert watch.driver.now - since <= stall_limit(run.evidence, since, S) + INTERVALS


@pytest.mark.parametrize("number", range(HANGS))
@pytest.mark.parametrize("name", SIGHTS)
def test_one_that_computes_without_end_is_found_by_a_request_that_it_does_not_answer(name: str, number: int) -> None:
    watch, since = hung(f"spins {name} {number}", SIGHTS[name], 1.0)
    error, run = watch.driver.pool.last_error, watch.driver.pool.engine
    assert error is not None and error.reason is CrashCause.HUNG and run is not None
    assert "a synthetic request had no answer" in error.message and watch.requests == 1
    limit = stall_limit(run.evidence, since, S)
    assert watch.driver.now - since <= 2 * limit + 3 * INTERVALS


@pytest.mark.parametrize("number", range(HANGS))
def test_one_that_computes_without_end_with_all_its_slots_taken_is_found_by_the_long_limit(number: int) -> None:
    watch, since = hung(f"full {number}", SIGHTS["llama.cpp on a CPU"], 1.0, full=True)
    error = watch.driver.pool.last_error
    assert error is not None and "no slot is free" in error.message and watch.requests == 0
    assert S.stall_limit - INTERVALS <= watch.driver.now - since <= S.stall_limit + INTERVALS


def test_a_watch_that_took_every_still_counter_for_a_hang_would_be_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("poolmgr.core.progress.stall_limit", lambda evidence, now, settings: 30.0)
    watch = Watch(random.Random("busy"), SIGHTS["a GPU that is read"])
    watch.run(SHARE)
    assert watch.ready and watch.requests > 0  # its activity saves it
    monkeypatch.setattr("poolmgr.core.progress._was_active", lambda evidence, seen, now, settings: False)
    watch.run(SHARE)
    assert not watch.ready


def test_a_watch_that_counted_the_time_in_which_it_was_paused_would_be_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("poolmgr.core.progress.late", lambda evidence, pace, now: False)
    for number in range(20):
        watch = Watch(random.Random(f"paused {number}"), SIGHTS["a GPU that is read"], paused=True)
        watch.run(SHARE)
        if not watch.ready or watch.requests:
            return
    raise AssertionError("nothing was made of a pause")
