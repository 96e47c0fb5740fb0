"""What a pool does about an engine that is alive and may not work (LIVE-2, LIVE-3)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from poolmgr.core.effects import AskWork, CountDeath, KillTree, NoteName, RunProbe, Terminate
from poolmgr.core.hang import stall_text
from poolmgr.core.messages import Drain, Tick, WorkAnswered
from poolmgr.core.progress import Evidence
from poolmgr.core.settle import next_deadline
from poolmgr.core.state import Pool, ReloadPhase, owner
from poolmgr.model.engine import CrashCause, ProbeOutcome, ProbeResult, Progress, Usage
from poolmgr.model.pool import PoolState, ProbeSpec
from poolmgr.model.settings import SupervisionSettings
from tests.core.helpers import ENGINE, FAILED, NEXT, OK, Driver, a_pool, a_spec, notes, of, only, only_note

S = SupervisionSettings()
NO_ANSWER = ProbeResult(ProbeOutcome.FAILED, "no answer within 60 s")
WRONG = ProbeResult(ProbeOutcome.FAILED, "HTTP 500")
NOT_ASKED = ProbeResult(ProbeOutcome.NOT_ASKED, "too many open files")

pytestmark = pytest.mark.behaviour("LIVE-2")


@dataclass
class Watched(Driver):
    """A ready pool whose engine says how it gets on; each look is answered with what the fields say."""

    pool: Pool = field(default_factory=lambda: a_pool(a_spec(slots=2)))
    in_flight: int | None = 0
    free: int = 1
    done: int = 0
    works: bool = True  # counters move and its processes compute
    computes: bool = True
    gpu: bool | None = False
    cpu: float = 0.0
    asked: list[AskWork] = field(default_factory=list)

    def begin(self, in_flight: int = 1) -> Watched:
        self.make_ready()
        self.in_flight = in_flight
        self.pass_looks(60.0)
        assert self.state is PoolState.READY and not self.asked
        return self

    def pass_looks(self, seconds: float, engine_id: str = "", result: ProbeResult = OK) -> list[Any]:
        """Lets time go by, and answers every probe at once."""
        end, effects = self.now + seconds, []
        while (due := next_deadline(self.pool)) is not None and due <= end:
            before, self.now = self.now, max(due, self.now)
            self.cpu += (self.now - before) if self.computes else 0.0
            self.done += self.works
            happened = self.do(Tick())
            for probe in of(RunProbe, happened):
                happened += self.look(probe.engine_id, result)
            effects += happened
        self.now = end
        self.asked += of(AskWork, effects)
        return effects

    def look(self, engine_id: str = "", result: ProbeResult = OK) -> list[Any]:
        told = None if self.in_flight is None else Progress(self.in_flight, str(self.done), self.free)
        return self.answer(result, engine_id, progress=told, gpu_busy=self.gpu, usage=Usage(cpu_seconds=self.cpu))

    def stops(self, *, computes: bool = False) -> Watched:
        self.works, self.computes = False, computes
        return self

    def answers(self, result: ProbeResult, after: float = 0.0) -> list[Any]:
        """To the last request of ours, `after` so long."""
        self.pass_looks(after)
        return self.do(WorkAnswered(self.asked[-1].engine_id, self.asked[-1].serial, result))


def suspected() -> Watched:
    """Computes and counts nothing, and has just been asked."""
    driver = Watched().begin().stops(computes=True)
    driver.pass_looks(S.stall_window + 5.0)
    assert driver.asked
    return driver


@pytest.mark.behaviour("LIVE-3", "RST-1")
def test_an_engine_that_stops_with_a_request_in_flight_is_ended_as_hung_with_the_numbers_and_started_again():
    driver = Watched().begin(in_flight=2).stops()
    assert not of(Terminate, driver.pass_looks(S.stall_window - 6.0))
    effects = driver.pass_looks(12.0)
    assert of(Terminate, effects) == [Terminate(ENGINE)] and driver.state is PoolState.STOPPING
    error = driver.pool.last_error
    assert error is not None and error.reason is CrashCause.HUNG and not driver.asked
    for number in ("2 requests in flight", "no counter moved for 60 s", "the limit is 60 s", "worked for 60 s"):
        assert number in error.message
    assert only_note(effects, NoteName.ENGINE_HUNG).fields["in_flight"] == 2
    driver.pass_looks(S.stop_grace)
    assert of(KillTree, driver.log)  # it hears no signal
    assert not of(CountDeath, driver.crash())
    assert driver.state in (PoolState.BACKOFF, PoolState.PROVISIONING) and driver.pool.restart_count == 1


def test_busy_is_not_hung():
    driver = Watched().begin(in_flight=2)
    driver.pass_looks(3600.0)
    assert driver.state is PoolState.READY and not driver.asked


def test_idle_is_not_hung():
    driver = Watched().begin().stops()
    driver.in_flight = 0
    driver.pass_looks(3600.0)
    assert driver.state is PoolState.READY and not driver.asked


def test_a_lease_alone_is_no_request_in_flight():
    driver = Watched().begin().stops()
    driver.in_flight = 0
    driver.lease("held", ttl=300.0)
    driver.pass_looks(290.0)
    assert driver.state is PoolState.READY and not driver.asked


def test_one_that_computes_and_counts_nothing_is_asked_once_on_a_free_slot_and_told_of_once():
    driver = Watched().begin().stops(computes=True)
    effects = driver.pass_looks(S.stall_window + 30.0)
    ask = only(AskWork, effects)
    assert (ask.engine_id, ask.timeout) == (ENGINE, S.synthetic_timeout)
    assert "no counter moved for 60 s" in str(only_note(effects, NoteName.ENGINE_SUSPECTED).fields["detail"])
    assert driver.state is PoolState.READY


def test_the_request_of_ours_has_three_of_the_longest_measured_batch():
    driver = Watched().begin()
    driver.works = False
    driver.pass_looks(40.0)
    driver.works = True
    driver.pass_looks(10.0)
    driver.stops(computes=True).pass_looks(200.0)
    assert 3 * 35.0 <= driver.asked[0].timeout <= 3 * 50.0


def test_a_request_of_ours_that_gets_no_answer_is_hung():
    driver = suspected()
    effects = driver.answers(NO_ANSWER, after=55.0)
    assert of(Terminate, effects) and driver.state is PoolState.STOPPING
    assert driver.pool.last_error is not None and driver.pool.last_error.reason is CrashCause.HUNG
    assert "a synthetic request had no answer within 60 s" in driver.pool.last_error.message


def test_one_that_is_answered_begins_the_evidence_anew():
    driver = suspected()
    driver.answers(OK, after=2.0)
    assert not of(AskWork, driver.pass_looks(S.stall_window - 6.0)) and driver.state is PoolState.READY
    assert of(AskWork, driver.pass_looks(12.0))


def test_a_wrong_answer_is_nobody_who_hangs_until_it_comes_as_often_as_a_failed_probe():
    driver = suspected()
    for _ in range(S.health_check_failures - 1):
        before = len(driver.asked)
        driver.answers(WRONG, after=0.1)
        driver.pass_looks(6.0)
        assert driver.state is PoolState.READY and len(driver.asked) == before + 1
    driver.answers(WRONG, after=0.1)
    assert driver.pool.last_error is not None and driver.pool.last_error.reason is CrashCause.HUNG
    assert "HTTP 500" in driver.pool.last_error.message


def test_a_daemon_that_could_not_ask_asks_again():
    driver = suspected()
    driver.answers(NOT_ASKED, after=55.0)
    assert driver.state is PoolState.READY and len(driver.asked) == 1
    driver.pass_looks(6.0)
    assert len(driver.asked) == 2


@pytest.mark.behaviour("LIVE-1")
@pytest.mark.parametrize("pause", [20.0, 300.0])
def test_what_comes_of_a_request_while_the_daemon_is_paused_convicts_nobody(pause: float):
    driver = suspected()
    driver.pass_looks(10.0)
    driver.at(driver.now + pause)
    driver.look()
    driver.answers(NO_ANSWER, after=max(0.0, 45.0 - pause))
    assert driver.state is PoolState.READY
    driver.pass_looks(6.0)
    assert len(driver.asked) == 2


def test_a_request_that_fails_after_the_engine_has_worked_again_convicts_nobody():
    driver = suspected()
    driver.done += 1
    driver.answers(NO_ANSWER, after=55.0)
    assert driver.state is PoolState.READY


@pytest.mark.behaviour("LIVE-1")
def test_a_paused_daemon_accuses_nobody():
    driver = Watched().begin().stops()
    for _ in range(20):
        driver.at(driver.now + 600.0)
        driver.look()
    assert driver.state is PoolState.READY and not driver.asked


def test_an_answer_to_another_request_or_of_another_engine_changes_nothing():
    driver = suspected()
    before = driver.pool
    driver.do(WorkAnswered(ENGINE, driver.asked[-1].serial - 1, NO_ANSWER))
    driver.do(WorkAnswered(NEXT, driver.asked[-1].serial, NO_ANSWER))
    assert driver.pool == before
    driver.answers(OK)
    before = driver.pool
    driver.answers(NO_ANSWER)
    assert driver.pool == before


def test_while_no_slot_is_free_nobody_is_asked_and_only_the_long_limit_decides():
    driver = Watched(free=0).begin(in_flight=2).stops(computes=True)
    driver.pass_looks(S.stall_limit - 12.0)
    assert driver.state is PoolState.READY and not driver.asked
    driver.pass_looks(18.0)
    assert driver.pool.last_error is not None and "no slot is free to ask it on" in driver.pool.last_error.message


def test_one_that_was_suspect_while_full_is_asked_as_soon_as_a_slot_is_free():
    driver = Watched(free=0).begin(in_flight=2).stops(computes=True)
    driver.pass_looks(120.0)
    driver.free = 1
    driver.pass_looks(6.0)
    assert len(driver.asked) == 1


def test_a_gpu_that_nobody_reads_may_be_working_so_the_engine_is_asked():
    driver = Watched().begin().stops()
    driver.gpu = None
    driver.pass_looks(2 * S.stall_window)
    assert driver.state is PoolState.READY and len(driver.asked) == 1


def test_counters_that_cannot_be_read_any_more_lead_to_a_request_and_alone_to_nothing():
    driver = Watched().begin().stops()
    driver.in_flight = None
    driver.pass_looks(10 * S.stall_window)
    assert driver.state is PoolState.READY and len(driver.asked) == 1
    driver.answers(NO_ANSWER)
    assert driver.state is PoolState.READY  # far too late to be an answer


def test_a_failing_probe_between_looks_does_not_hide_a_hang():
    driver = Watched().begin().stops()
    for _ in range(9):
        driver.pass_looks(5.0, result=FAILED)
        driver.pass_looks(5.0)
    assert driver.pool.last_error is not None and driver.pool.last_error.reason is CrashCause.HUNG


def test_a_drain_of_an_engine_that_hangs_ends_with_it():
    driver = Watched().begin()
    driver.lease("held", ttl=300.0)
    driver.do(Drain(290.0))
    driver.stops().pass_looks(70.0)
    assert driver.state is PoolState.STOPPING
    driver.crash()
    assert driver.state is PoolState.STOPPED and driver.pool.restart_count == 0


def test_the_engine_that_retires_is_watched_as_the_pools_own():
    driver = Watched().begin()
    driver.lease("held", ttl=300.0)
    driver.change()
    driver.reload_to(ReloadPhase.RETIRING)
    assert owner(driver.pool, ENGINE) is driver.pool.beside
    driver.stops()
    driver.gpu = None
    for _ in range(26):
        driver.pass_looks(2.5)
    asks = [ask for ask in driver.asked if ask.engine_id == ENGINE]
    assert len(asks) == 1
    run = owner(driver.pool, ENGINE).engine
    assert run is not None and run.suspicion is not None and run.suspicion.asked is not None
    driver.pass_looks(run.suspicion.asked + asks[0].timeout - driver.now)
    driver.do(WorkAnswered(ENGINE, asks[0].serial, NO_ANSWER))
    assert driver.pool.beside is not None and driver.pool.beside.state is PoolState.STOPPING
    assert driver.state is PoolState.READY


def test_an_engine_without_counters_is_asked_while_leased_where_that_is_configured():
    driver = Watched(pool=a_pool(a_spec(slots=2), replace(S, synthetic_interval=60.0)))
    driver.make_ready()
    driver.in_flight = None
    driver.pass_looks(300.0)
    assert not driver.asked
    driver.lease("held", ttl=300.0)
    driver.pass_looks(120.0)
    assert len(driver.asked) == 1 and not notes(driver.log, NoteName.ENGINE_HUNG)


def test_an_answer_to_a_request_that_is_yet_to_come_changes_nothing():
    driver = suspected()
    before = driver.pool
    driver.do(WorkAnswered(ENGINE, driver.asked[-1].serial + 1, NO_ANSWER))
    assert driver.pool == before


@pytest.mark.parametrize(
    ("evidence", "text"),
    [
        (Evidence(), "leased for 0 s without a sign of work"),
        (Evidence(stalled=1000.0), "leased for 4000 s without a sign of work"),
        (
            Evidence(looked=5000.0, read=1000.0, in_flight=2),
            "2 requests in flight when its counters could last be read, 4000 s ago "
            "(the limit is 60 s, its longest batch 0.0 s)",
        ),
        (
            Evidence(looked=5000.0, read=5000.0, in_flight=3, stalled=1000.0, longest=40.0, measured=5000.0),
            "3 requests in flight, no counter moved for 4000 s (the limit is 120 s, its longest batch 40.0 s)",
        ),
        (
            Evidence(looked=5000.0, read=5000.0, in_flight=0),
            "0 requests in flight, no counter moved for 0 s (the limit is 60 s, its longest batch 0.0 s)",
        ),
    ],
)
def test_a_verdict_is_told_with_the_numbers_that_it_rests_on(evidence, text):
    assert stall_text(evidence, 5000.0, S) == text


@pytest.mark.behaviour("LIVE-1")
@pytest.mark.parametrize(
    ("liveness", "interval", "pace"),
    [
        (ProbeSpec(), 5.0, 5.0 * 1.1 + 3.0 + 1.0),
        (ProbeSpec(interval=20.0, timeout=10.0), 20.0, 20.0 * 1.1 + 10.0 + 1.0),
    ],
)
@pytest.mark.parametrize("late", [-0.1, 0.1])
def test_a_look_counts_what_it_did_not_see_up_to_the_time_that_a_look_may_take_and_no_longer(
    liveness, interval, pace, late
):
    driver = Watched(pool=a_pool(a_spec(slots=2, liveness=liveness))).begin().stops()
    driver.pass_looks(2 * interval)
    before = owner(driver.pool, ENGINE).engine.evidence
    assert before.stalled is not None and before.looked is not None
    driver.now = before.looked + interval
    assert of(RunProbe, driver.do(Tick()))
    driver.now = before.looked + pace + late
    driver.look()
    after = owner(driver.pool, ENGINE).engine.evidence
    assert after.looked == driver.now
    assert after.stalled == pytest.approx(before.stalled + (pace + late if late > 0 else 0.0))


def test_a_look_that_comes_while_nothing_is_suspected_leaves_no_suspicion():
    driver = suspected()
    driver.answers(WRONG, after=0.1)
    run = owner(driver.pool, ENGINE).engine
    assert (run.suspicion.asked, run.suspicion.failures) == (None, 1)
    driver.works = True
    driver.pass_looks(12.0)
    assert owner(driver.pool, ENGINE).engine.suspicion is None


def test_while_a_request_of_ours_is_under_way_it_alone_decides_also_past_the_long_limit():
    driver = Watched(free=0).begin(in_flight=2).stops(computes=True)
    driver.pass_looks(S.stall_limit - 15.0)
    assert driver.state is PoolState.READY and not driver.asked
    driver.free = 1
    driver.pass_looks(6.0)
    assert len(driver.asked) == 1
    driver.free = 0
    driver.pass_looks(40.0)
    assert driver.state is PoolState.READY
    driver.answers(NO_ANSWER, after=16.0)
    assert driver.pool.last_error is not None and "a synthetic request had no answer" in driver.pool.last_error.message


def test_counters_that_cannot_be_read_while_no_slot_is_free_convict_nobody_however_long():
    driver = Watched(free=0).begin(in_flight=2).stops(computes=True)
    driver.pass_looks(120.0)
    driver.in_flight = None
    driver.pass_looks(3 * S.stall_limit)
    assert driver.state is PoolState.READY and not driver.asked


def test_an_engine_that_does_not_say_what_is_free_is_asked_where_a_slot_is_not_leased():
    for leases, asked in ((1, True), (2, False)):
        driver = Watched().begin()
        driver.free = None
        for number in range(leases):
            driver.lease(str(number), ttl=300.0)
        driver.stops(computes=True).pass_looks(S.stall_window + 12.0)
        assert bool(driver.asked) is asked


def test_wrong_answers_in_a_row_are_told_with_their_number_and_the_last():
    driver = suspected()
    for number in range(S.health_check_failures):
        driver.pass_looks(6.0)
        driver.answers(ProbeResult(ProbeOutcome.FAILED, f"HTTP {500 + number}"), after=0.1)
    assert driver.pool.last_error is not None
    assert driver.pool.last_error.message.endswith("3 synthetic requests in a row failed; the last: HTTP 502")
