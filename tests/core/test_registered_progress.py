"""Engines that somebody else runs, and that do not get on with what they have (LIVE-2, ENG-1, ENG-2)."""

from __future__ import annotations

from typing import Any

import pytest

from poolmgr.core.effects import Discard, KillTree, NoteName, Rest, RunProbe, Start, Terminate
from poolmgr.model.engine import CrashCause
from poolmgr.model.lease import Lease, Refusal
from poolmgr.model.pool import PoolState
from poolmgr.model.settings import SupervisionSettings
from tests.core.helpers import OK, notes, of
from tests.core.test_registered import Registered

S = SupervisionSettings()
BEAT = S.heartbeat_interval

pytestmark = pytest.mark.behaviour("LIVE-2", "ENG-1")


class Beating(Registered):
    """Tells of itself every 10 s, and answers every probe."""

    def beats(self, seconds: float, **said: Any) -> list[Any]:
        effects: list[Any] = []
        for _ in range(round(seconds / BEAT)):
            effects += self.pass_time(BEAT, OK)
            told = self.beat(**said)
            effects += told
            if of(RunProbe, told):
                effects += self.told(OK)
        return effects


def beating() -> Beating:
    driver = Beating()
    driver.to_ready()
    return driver


def hung() -> Beating:
    driver = beating()
    driver.beats(10.0, in_flight=0, progress_counter=7)
    driver.beats(10.0, in_flight=1, progress_counter=7)
    driver.beats(S.stall_window, in_flight=1, progress_counter=7)
    return driver


@pytest.mark.behaviour("ENG-2", "LIVE-3")
def test_one_whose_counter_stands_with_a_request_in_flight_is_lost_as_hung_and_gets_no_lease() -> None:
    driver = hung()
    error = driver.pool.last_error
    assert driver.state is PoolState.LOST
    assert error is not None and error.reason is CrashCause.HUNG
    assert "1 requests in flight, no counter moved for 60 s" in error.message
    assert isinstance(driver.ask("late"), Refusal)


@pytest.mark.behaviour("ENG-2")
def test_nothing_is_done_to_it_and_its_leases_stay() -> None:
    driver = beating()
    lease = driver.lease("held", ttl=300.0)
    driver.beats(10.0, in_flight=1, progress_counter=7)
    driver.beats(S.stall_window + 30.0, in_flight=1, progress_counter=7)
    assert notes(driver.log, NoteName.ENGINE_HUNG) and lease.lease_id in driver.pool.leases.live
    assert not [e for kind in (Start, Terminate, KillTree, Rest, Discard) for e in of(kind, driver.log)]


@pytest.mark.behaviour("ENG-3")
def test_heartbeats_and_answers_alone_do_not_bring_it_back_and_it_is_told_of_once() -> None:
    driver = hung()
    driver.beats(300.0, in_flight=1, progress_counter=7)
    assert driver.state is PoolState.STARTING and "HUNG" in driver.pool.reason
    assert len(notes(driver.log, NoteName.ENGINE_HUNG)) == len(notes(driver.log, NoteName.ENGINE_LOST)) == 1


@pytest.mark.behaviour("ENG-3")
@pytest.mark.parametrize("said", [{"in_flight": 1, "progress_counter": 8}, {"in_flight": 0, "progress_counter": 7}])
def test_a_counter_that_moves_or_a_request_that_ends_brings_it_back(said: dict[str, int]) -> None:
    driver = hung()
    driver.beats(30.0, in_flight=1, progress_counter=7)
    driver.beats(10.0, **said)
    assert driver.state is PoolState.READY
    assert isinstance(driver.ask("next"), Lease)


@pytest.mark.parametrize(
    "said",
    [
        {"in_flight": 1},
        {"progress_counter": 7},
        {"in_flight": 0, "progress_counter": 7},
        {"slots_free": 1},
    ],
)
def test_one_that_counts_nothing_or_has_nothing_is_never_hung(said: dict[str, int]) -> None:
    driver = beating()
    driver.lease("held", ttl=300.0)
    driver.beats(10 * S.stall_window, **said)
    assert driver.state is PoolState.READY


def test_one_that_gets_on_is_never_hung_however_slowly() -> None:
    driver = beating()
    for counter in range(20):
        driver.beats(S.stall_window - BEAT, in_flight=3, progress_counter=counter)
        assert driver.state is PoolState.READY


@pytest.mark.behaviour("LIVE-1")
def test_a_daemon_that_was_paused_has_not_heard_what_moved_meanwhile() -> None:
    driver = beating()
    for _ in range(10):
        driver.now += 600.0
        driver.beat(in_flight=1, progress_counter=7)
        assert not notes(driver.log, NoteName.ENGINE_HUNG)


def test_another_process_in_its_place_is_not_blamed() -> None:
    driver = hung()
    driver.register(endpoint="10.0.0.8:9000", pid=78)
    driver.told(OK)
    assert driver.state is PoolState.READY
