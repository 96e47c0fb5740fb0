"""The evidence of forward progress and what it amounts to (LIVE-2)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from poolmgr.core.progress import (
    HALF_LIFE,
    LONGEST_WINDOWS,
    Evidence,
    Observation,
    Verdict,
    longest_batch,
    observe,
    stall_limit,
    vouched,
)
from poolmgr.model.engine import Progress
from poolmgr.model.settings import SupervisionSettings

S = SupervisionSettings()
LOOK = 5.0
PACE = 9.5
IDLE, WORKING, SUSPECT, HUNG = Verdict.IDLE, Verdict.WORKING, Verdict.SUSPECT, Verdict.HUNG

pytestmark = pytest.mark.behaviour("LIVE-2")


@dataclass
class Watch:
    """Looks every 5 s at an engine that does what the test says."""

    evidence: Evidence = Evidence()
    now: float = 1000.0
    done: int = 0
    cpu: float = 0.0
    settings: SupervisionSettings = S
    verdict: Verdict = IDLE

    def look(
        self,
        in_flight: int | None = 0,
        gpu: bool | None = False,
        cpu: bool = True,
        leased: bool = False,
        mark: bool = True,
    ) -> Verdict:
        told = None if in_flight is None else Progress(in_flight, str(self.done) if mark else None, 1)
        seen = Observation(told, self.cpu if cpu else None, gpu, leased, PACE)
        self.evidence, self.verdict = observe(self.evidence, seen, self.now, self.settings)
        return self.verdict

    def go(self, seconds: float, moves: float = 0.0, computes: float = 0.0, **look: object) -> list[Verdict]:
        """A look every 5 s for so long; counters and CPU seconds by the second."""
        verdicts = []
        for _ in range(round(seconds / LOOK)):
            self.now += LOOK
            self.done += round(LOOK * moves)
            self.cpu += LOOK * computes
            verdicts.append(self.look(**look))  # type: ignore[arg-type]
        return verdicts


def busy(**changes: object) -> Watch:
    """An engine that has worked on two requests for a minute, a counter moving at each look."""
    watch = Watch(**changes)  # type: ignore[arg-type]
    watch.look()
    assert watch.go(60.0, moves=1.0, computes=1.0, in_flight=2)[-1] is WORKING
    return watch


def test_an_engine_with_nothing_in_flight_is_idle_for_ever():
    watch = busy()
    assert set(watch.go(10 * S.stall_window)) == {IDLE}


def test_one_that_stops_with_requests_in_flight_is_hung_after_the_window_and_not_before():
    watch = busy()
    assert watch.go(S.stall_window - LOOK, in_flight=2) == [WORKING] * 11
    assert watch.go(LOOK, in_flight=2) == [HUNG]


def test_any_counter_that_moves_within_the_window_is_work():
    watch = busy()
    for _ in range(10):
        assert set(watch.go(S.stall_window - 2 * LOOK, in_flight=2)) == {WORKING}
        watch.done += 1


@pytest.mark.parametrize("active", [{"computes": 0.1}, {"gpu": True}])
def test_one_that_computes_and_counts_nothing_is_suspect_and_hung_only_a_window_after_the_last_work(active: dict):
    watch = busy()
    assert watch.go(2 * S.stall_window, in_flight=2, **active)[12:] == [SUSPECT] * 12
    verdicts = watch.go(S.stall_window, in_flight=2)
    assert verdicts[:-1] == [SUSPECT] * 11 and verdicts[-1] is HUNG


@pytest.mark.parametrize("unknown", [{"gpu": None}, {"cpu": False}, {"gpu": None, "cpu": False}])
def test_activity_that_cannot_be_seen_is_not_idleness(unknown: dict):
    watch = busy()
    assert watch.go(10 * S.stall_window, in_flight=2, **unknown)[-1] is SUSPECT


def test_what_a_tree_uses_to_answer_probes_is_no_work():
    watch = busy()
    assert watch.go(S.stall_window, computes=0.9 * S.stall_cpu_ratio, in_flight=1)[-1] is HUNG
    watch = busy()
    assert watch.go(S.stall_window, computes=1.1 * S.stall_cpu_ratio, in_flight=1)[-1] is SUSPECT


def test_a_tree_whose_sum_shrank_may_have_worked():
    watch = busy()
    watch.go(S.stall_window - LOOK, in_flight=1)
    watch.cpu = 0.0
    assert watch.go(LOOK, in_flight=1) == [SUSPECT]


def test_the_window_is_never_under_three_of_the_longest_measured_batch():
    watch = busy()
    watch.go(45.0, computes=1.0, in_flight=1)
    watch.go(LOOK, moves=1.0, in_flight=1)
    assert 45.0 <= longest_batch(watch.evidence, watch.now) <= 55.0
    assert set(watch.go(130.0, in_flight=1)) == {WORKING}
    assert HUNG in watch.go(30.0, in_flight=1)


def test_a_request_that_was_cancelled_without_a_move_measures_no_batch():
    watch = busy()
    before = watch.evidence.longest
    watch.go(50.0, computes=1.0, in_flight=1)
    watch.go(LOOK)
    assert watch.verdict is IDLE and watch.evidence.longest == before


def test_a_freak_batch_counts_for_ten_windows_at_most_and_fades_by_half_an_hour_by_hour():
    watch = busy()
    watch.evidence = replace(watch.evidence, stalled=watch.now - 1e6)
    watch.go(LOOK, moves=1.0, in_flight=1)
    assert longest_batch(watch.evidence, watch.now) == LONGEST_WINDOWS * S.stall_window
    assert longest_batch(watch.evidence, watch.now + HALF_LIFE) == LONGEST_WINDOWS * S.stall_window / 2
    assert stall_limit(watch.evidence, watch.now + 8 * HALF_LIFE, S) == S.stall_window


def test_a_shorter_batch_does_not_refresh_a_longer_one():
    watch = busy()
    watch.evidence = replace(watch.evidence, longest=50.0, measured=watch.now)
    watch.go(60.0, moves=1.0, in_flight=1)
    assert (watch.evidence.longest, watch.evidence.measured) == (50.0, watch.now - 60.0)


def test_time_in_which_nobody_looked_does_not_count():
    watch = busy()
    watch.go(S.stall_window - LOOK, in_flight=1)
    for _ in range(20):  # a daemon that is scheduled once in ten minutes
        watch.now += 600.0
        assert watch.look(in_flight=1) is WORKING
    assert watch.go(LOOK, in_flight=1) == [HUNG]  # and goes on where it was


def test_a_gap_in_which_a_counter_moved_is_no_batch():
    watch = busy()
    watch.now, watch.done = watch.now + 600.0, watch.done + 1
    assert watch.look(in_flight=1) is WORKING
    assert longest_batch(watch.evidence, watch.now) <= 2 * LOOK


def test_a_look_that_shows_no_counter_changes_nothing_and_alone_convicts_nobody():
    watch = busy()
    verdicts = watch.go(10 * S.stall_window, in_flight=None)
    assert set(verdicts[:11]) == {WORKING} and set(verdicts[11:]) == {SUSPECT}
    assert watch.go(LOOK, moves=1.0, in_flight=2) == [WORKING]


def test_counters_that_are_read_again_and_have_not_moved_meanwhile_count_for_all_that_time():
    watch = busy()
    watch.go(S.stall_window - LOOK, in_flight=None)
    assert watch.go(LOOK, in_flight=2) == [HUNG]


def test_an_engine_that_was_idle_and_cannot_be_asked_any_more_is_suspect_only_while_it_is_leased():
    watch = busy()
    watch.go(LOOK)
    assert set(watch.go(2 * S.stall_window, in_flight=None)) == {IDLE}
    assert watch.go(LOOK, in_flight=None, leased=True) == [SUSPECT]


def test_without_lease_and_request_an_engine_is_never_hung():
    watch = Watch()
    assert set(watch.go(1000.0, in_flight=None)) | set(watch.go(1000.0)) == {IDLE}


@pytest.mark.parametrize("told", [{"in_flight": None}, {"in_flight": 1, "mark": False}])
def test_an_engine_without_counters_is_asked_only_where_that_is_configured_and_somebody_leases_it(told: dict):
    assert set(Watch().go(1000.0, leased=True, **told)) == {IDLE}
    watch = Watch(settings=replace(S, synthetic_interval=120.0))
    assert set(watch.go(1000.0, **told)) == {IDLE}
    verdicts = watch.go(200.0, leased=True, **told)
    assert set(verdicts[:24]) == {WORKING} and set(verdicts[24:]) == {SUSPECT}
    watch.evidence = vouched(watch.evidence, watch.now)
    assert set(watch.go(115.0, leased=True, **told)) == {WORKING}


def test_an_answer_to_a_request_of_ours_begins_all_evidence_anew():
    watch = busy()
    assert watch.go(S.stall_window, computes=1.0, in_flight=1)[-1] is SUSPECT
    watch.evidence = vouched(watch.evidence, watch.now)
    assert set(watch.go(S.stall_window - LOOK, computes=1.0, in_flight=1)) == {WORKING}
