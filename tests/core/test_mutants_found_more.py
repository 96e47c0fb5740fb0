"""Rules of views, reloads and restarts at their edges, which the other tests of core took for granted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from poolmgr.core.device_states import Record
from poolmgr.core.effects import (
    Discard,
    KillTree,
    LeaseAnswered,
    NoteName,
    RecordLeases,
    Rest,
    RunProbe,
    Start,
    Terminate,
    Verify,
)
from poolmgr.core.leases import LeaseTable
from poolmgr.core.memo import Judged
from poolmgr.core.messages import (
    Acquire,
    Adopted,
    AdoptedBeside,
    ChangeSpec,
    Committed,
    Delete,
    Drain,
    Evacuate,
    Exited,
    Found,
    InDoubt,
    LeasesKept,
    Moment,
    Preload,
    Probed,
    Queued,
    Recovered,
    Register,
    Release,
    Spawned,
    StartRefused,
    Stop,
    TreeEmpty,
    Undrain,
    Verified,
    WorkAnswered,
)
from poolmgr.core.progress import Evidence, Suspicion
from poolmgr.core.registered import ITS_OWN_DRAIN
from poolmgr.core.remembered_devices import Remembered
from poolmgr.core.settle import next_deadline
from poolmgr.core.state import ProbeTimer, RegisteredRun, ReloadPhase, changed, memo_of
from poolmgr.core.view import ShownRun, engine_views, fingerprint, view
from poolmgr.errors import ClientError, Reason
from poolmgr.model.device import DeviceState
from poolmgr.model.engine import CrashCause, EngineFacts, Usage
from poolmgr.model.lease import Refusal, RefusalReason
from poolmgr.model.pool import PoolState, PoolView, ReloadStrategy, RestartMode
from poolmgr.model.settings import SupervisionSettings
from poolmgr.testing.devices import a_gpu
from tests.core.helpers import (
    BAD_ARGUMENTS,
    ENGINE,
    EXIT_0,
    EXIT_1,
    KILLED,
    LOADING,
    NEXT,
    OK,
    QUIET,
    Driver,
    a_pool,
    a_remembering_pool,
    a_spec,
    an_ask,
    answers,
    in_state,
    notes,
    of,
    only,
    only_note,
    ready,
)
from tests.core.test_hang import Watched
from tests.core.test_registered import Registered, a_ready, enrolled

S, P = PoolState, ReloadPhase
MAKE, BREAK = ReloadStrategy.MAKE_BEFORE_BREAK, ReloadStrategy.BREAK_BEFORE_MAKE
WALL = 1e6  # Unix time minus boot time, in what is shown


def seen(driver: Driver) -> PoolView:
    return view(fingerprint(driver.pool), 1, WALL)


def retiring(leases: int = 1, mode: RestartMode | None = None) -> Driver:
    """After a commit: NEXT is the pool's engine, and so many leases are left on ENGINE."""
    driver = ready(QUIET if mode is None else replace(QUIET, restart=mode))
    for number in range(leases):
        driver.lease(str(number), ttl=300.0)
    driver.change(MAKE)
    driver.reload_to(P.RETIRING)
    return driver


# What is not said.


@pytest.mark.parametrize(
    ("short", "long"),
    [
        (Moment(7.0), Moment(7.0, 0.0, 0.5, 1, 0)),
        (Spawned(ENGINE, 1, 2), Spawned(ENGINE, 1, 2, slots=0, ticks=0, generation=0, plan=None)),
        (Adopted(ENGINE, 1, 2), Adopted(ENGINE, 1, 2, current=True, slots=0, ticks=0, plan=None)),
        (Found(ENGINE), Found(ENGINE, pid=0, ticks=0, exited=None)),
        (LeasesKept(), LeasesKept((), (), known=True)),
        (StartRefused("R", "m", permanent=True), StartRefused("R", "m", permanent=True, generation=0)),
        (ChangeSpec(QUIET, 2), ChangeSpec(QUIET, 2, ReloadStrategy.AUTO, None, anew=False, fits=True)),
        (Stop(), Stop(None, for_now=False)),
        (ProbeTimer(), ProbeTimer(0, None, None, 0.0, 0)),
        (Evidence(), Evidence(None, None, "", 0, None, None, None, 0.0, 0.0, 0.0)),
        (Suspicion(), Suspicion(0, None, 0.0, void=False, failures=0)),
        (LeaseTable(3), LeaseTable(3, {}, (), 0, float("inf"), (), 0)),
        (ShownRun(), ShownRun("", 0, 0, None, main_alive=False, adopted=False, ready_at=None, endpoint="", plan=None)),
        (Record(a_gpu()), Record(a_gpu(), DeviceState.AVAILABLE, "", 0.0, None, 0.0, 0.0, None, None, None, None, ())),
        (Remembered(), Remembered(DeviceState.AVAILABLE, "", 0.0, None, 0.0, 0.0, None)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_not_said_is_nothing_and_harms_nothing(short, long):
    assert short == long


def test_a_registration_that_does_not_say_otherwise_is_of_a_process_that_has_just_begun():
    driver = Registered()
    fact = Register(driver.pool.registered.engine, driver.pool.spec, 1)
    assert (fact.slots_free, fact.anew) == (None, True)
    assert driver.pool.registered == RegisteredRun(
        fact.engine, None, None, None, None, None, None, ProbeTimer(), Evidence(), ""
    )


# What is shown of a pool.


@pytest.mark.parametrize(
    ("state", "phase"),
    [
        (S.PENDING, ""),
        (S.PROVISIONING, "provisioning"),
        (S.STARTING, "loading"),
        (S.READY, ""),
        (S.DRAINING, "draining"),
        (S.STOPPING, "stopping"),
        (S.STOPPED, ""),
        (S.BACKOFF, "waiting"),
        (S.PARKED, ""),
        (S.UNKNOWN, ""),
    ],
)
def test_a_pool_that_is_on_its_way_shows_the_phase_and_why_and_one_that_rests_shows_neither(state, phase):
    driver = in_state(state)
    shown = seen(driver)
    assert shown.state_reason == driver.pool.reason != ""
    assert (shown.progress_phase, shown.progress_message) == (phase, driver.pool.reason if phase else "")


@pytest.mark.parametrize("state", [s for s in S if s is not S.LOST])
def test_an_engine_is_shown_with_its_place_while_it_serves_and_with_its_process_while_that_is_there(state):
    driver = in_state(state)
    shown = seen(driver)
    running = state in (S.STARTING, S.READY, S.DRAINING, S.STOPPING)
    assert shown.endpoint == ("127.0.0.1:8000" if state in (S.READY, S.DRAINING) else "")
    assert (shown.live, shown.pid) == (running, 100 if running else 0)
    assert shown.start_time == (driver.pool.engine.started + WALL if running else None)
    assert (shown.ready_time is not None) is (state in (S.READY, S.DRAINING, S.STOPPING))
    launched = state not in (S.PENDING, S.PROVISIONING)
    assert shown.engine_id == (ENGINE if launched else "")
    waits = state in (S.BACKOFF, S.PARKED)
    assert shown.backoff_until == (driver.pool.resume_at + WALL if waits else None)


def test_what_has_ended_is_not_live_while_the_rest_of_its_tree_goes():
    driver = ready(QUIET)
    driver.do(Exited(ENGINE, EXIT_1))
    assert (driver.state, seen(driver).live, seen(driver).pid) == (S.STOPPING, False, 100)


def test_the_time_of_a_load_is_told_of_a_start_that_was_seen_and_not_of_one_that_was_taken_over():
    driver = in_state(S.STARTING)
    assert seen(driver).load_time is None
    driver.now += 2.5
    driver.answer(OK)
    assert seen(driver).load_time == 2.5
    later = taken_over()
    assert later.answer(OK)
    assert (later.state, seen(later).load_time) == (S.READY, None)
    assert (seen(later).start_time, seen(later).ready_time) == (later.now + WALL,) * 2


def test_no_memory_is_told_of_an_engine_before_it_is_ready():
    driver = in_state(S.STARTING)
    driver.usage = Usage(rss_bytes=7)
    driver.answer(LOADING)
    assert seen(driver).memory_bytes is None
    driver.pass_time(0.6)
    driver.answer(OK)
    assert seen(driver).memory_bytes == 7


@pytest.mark.behaviour("PRE-7")
def test_a_place_in_the_queue_is_shown_while_the_start_waits_and_no_longer():
    driver = in_state(S.PROVISIONING)
    assert seen(driver).queue_position == 0
    driver.do(Queued(1, 3, "two start before it"))
    assert (seen(driver).queue_position, seen(driver).state_reason) == (3, "two start before it")
    driver.do(Queued(1, 2))
    assert (seen(driver).queue_position, seen(driver).state_reason) == (2, "two start before it")
    driver.do(Queued(1, 1, "it is the next"))
    driver.spawn()
    assert (seen(driver).queue_position, driver.pool.queued) == (0, 0)


@pytest.mark.behaviour("PRE-7")
@pytest.mark.parametrize("state", [s for s in S if s not in (S.LOST, S.PROVISIONING)])
def test_a_place_in_the_queue_that_is_told_of_a_pool_that_does_not_wait_for_one_changes_nothing(state):
    driver = in_state(state)
    before = driver.pool
    driver.do(Queued(1, 1, "too late"))
    assert driver.pool == before


@pytest.mark.behaviour("PRE-7")
def test_a_pool_that_is_stopped_in_the_queue_shows_no_place_in_it():
    driver = in_state(S.PROVISIONING)
    driver.do(Queued(1, 3))
    driver.do(Stop())
    assert seen(driver).queue_position == 0


@pytest.mark.behaviour("PROC-5")
def test_what_was_never_launched_leaves_no_place_behind_that_could_rest_or_be_given_up():
    driver = in_state(S.PROVISIONING)
    told = driver.do(StartRefused("MODEL_NOT_FOUND", "no file", permanent=True, generation=1))
    assert (driver.state, of(Rest, told)) == (S.PARKED, [])
    assert not of(Discard, driver.change(args=("--other",)))
    driver.spawn()
    driver.crash()
    assert of(Rest, driver.do(Stop())) == [Rest(ENGINE)]
    assert of(Discard, driver.do(Delete())) == [Discard(ENGINE)]


@pytest.mark.behaviour("LEASE-1")
def test_a_limit_below_what_is_leased_shows_no_slot_as_free():
    driver = ready(QUIET)
    driver.lease("one", ttl=300.0)
    driver.lease("two", ttl=300.0)
    driver.do(ChangeSpec(replace(QUIET, slots=1), 2))
    shown, (engine,) = seen(driver), engine_views(driver.pool, WALL, str)
    assert (shown.slots_total, shown.slots_free, shown.active_leases) == (1, 0, 2)
    assert (engine.slots_total, engine.slots_free) == (1, 0)


@pytest.mark.parametrize("state", [s for s in S if s is not S.LOST])
def test_an_engine_is_listed_while_it_is_there_and_gives_slots_when_it_is_ready_only(state):
    driver = in_state(state)
    shown = list(engine_views(driver.pool, WALL, lambda engine_id: f"/{engine_id[0]}"))
    if driver.pool.engine is None:
        assert shown == []
        return
    (one,) = shown
    assert (one.engine_id, one.state, one.slots_free) == (ENGINE, state, 2 if state is S.READY else 0)
    assert (one.pool_id, one.generation, one.engine_version, one.registered) == ("p", 1, "", False)
    assert (one.start_time, one.directory) == (driver.pool.engine.started + WALL, "/e")


@pytest.mark.parametrize(("port", "endpoint"), [(0, ""), (8123, "127.0.0.1:8123")])
def test_an_engine_of_which_no_port_is_known_is_shown_without_a_place(port, endpoint):
    driver = Driver(a_remembering_pool(QUIET))
    driver.do(Adopted(ENGINE, 77, port))
    driver.answer(OK)
    assert (driver.state, seen(driver).endpoint) == (S.READY, endpoint)
    (one,) = engine_views(driver.pool, WALL, str)
    assert one.endpoint == endpoint


@pytest.mark.behaviour("DRN-2")
def test_a_reload_is_shown_with_its_phase_and_its_generation_while_it_lasts():
    driver = ready(QUIET)
    assert (seen(driver).reload_phase, seen(driver).reload_generation) == ("", 0)
    driver.change(MAKE)
    for phase in (P.STARTING, P.VERIFYING, P.COMMITTING):
        driver.reload_to(phase)
        assert (seen(driver).reload_phase, seen(driver).reload_generation) == (phase, 2)
        assert (seen(driver).pid, seen(driver).generation) == (100, 1), "the old engine is what serves"
    driver.commit()
    assert (seen(driver).reload_phase, seen(driver).pid) == (P.RETIRING, 200)
    driver.end(ENGINE, EXIT_0)
    assert (seen(driver).reload_phase, seen(driver).reload_generation) == ("", 0)


@pytest.mark.behaviour("DRN-2", "LEASE-1")
def test_leases_on_both_engines_are_shown_as_the_pools():
    driver = retiring(leases=1)
    driver.lease("new")
    assert (seen(driver).active_leases, seen(driver).slots_free) == (2, 0)


@pytest.mark.behaviour("LEASE-3")
def test_a_pool_whose_leases_are_not_known_is_ready_and_shows_no_free_slot():
    driver = taken_over(known=False)
    driver.answer(OK)
    assert (seen(driver).ready, seen(driver).slots_free) == (True, 0)
    driver.pass_time(driver.pool.held_until - driver.now, OK)
    assert (seen(driver).ready, seen(driver).slots_free) == (True, 2)


@pytest.mark.behaviour("DRN-5")
@pytest.mark.parametrize("state", [s for s in S if s not in (S.LOST, S.UNKNOWN)])
def test_a_pool_that_is_being_deleted_is_never_ready(state):
    driver = in_state(state)
    driver.do(Delete())
    assert driver.pool.deleting and not seen(driver).ready and not seen(driver).slots_free


# What is shown of an engine that registered itself.


@pytest.mark.behaviour("ENG-1")
def test_a_registered_engine_gives_slots_while_it_is_ready_and_its_leases_are_known():
    driver = a_ready()
    (shown,) = engine_views(driver.pool, WALL, str)
    assert (shown.slots_total, shown.slots_free, shown.endpoint, shown.pid) == (4, 4, "10.0.0.7:8000", 77)
    assert (shown.start_time, shown.last_heartbeat, shown.engine_version) == (None, None, "v1")
    driver.beat(draining=True)
    (shown,) = engine_views(driver.pool, WALL, str)
    assert (shown.state, shown.slots_free, shown.endpoint) == (S.DRAINING, 0, "10.0.0.7:8000")
    assert (driver.seen.ready, driver.seen.slots_free, driver.seen.live) == (False, 0, True)
    driver.beat(draining=False)
    driver.lose()
    (shown,) = engine_views(driver.pool, WALL, str)
    assert (shown.state, shown.slots_free, shown.endpoint) == (S.LOST, 0, "10.0.0.7:8000")
    assert (driver.seen.endpoint, driver.seen.live) == ("", False)


@pytest.mark.behaviour("ENG-1", "LEASE-3")
def test_a_registered_engine_whose_leases_are_not_known_gives_no_slot_until_none_can_be_left():
    driver = Registered(enrolled())
    driver.do(LeasesKept(known=False))
    driver.do(Recovered())
    driver.to_ready()
    (shown,) = engine_views(driver.pool, WALL, str)
    assert (driver.seen.ready, driver.seen.slots_free, shown.slots_free) == (True, 0, 0)
    driver.now = driver.pool.held_until
    driver.beat()
    (shown,) = engine_views(driver.pool, WALL, str)
    assert (driver.seen.slots_free, shown.slots_free) == (4, 4)


@pytest.mark.behaviour("ENG-1")
def test_a_registered_engine_is_shown_as_live_from_its_first_word_on():
    driver = Registered(enrolled())
    assert not driver.seen.live
    driver.register()
    assert (driver.state, driver.seen.live, driver.seen.ready) == (S.STARTING, True, False)
    driver.told(OK)
    assert (driver.seen.live, driver.seen.ready) == (True, True)
    driver.do(Stop())
    assert not driver.seen.live


@pytest.mark.behaviour("ENG-1", "LEASE-1")
@pytest.mark.parametrize("said", [-3, -1, 0])
def test_less_than_no_free_slot_is_none_so_what_is_given_back_is_free_at_once(said):
    driver = a_ready()
    lease = driver.lease("one", ttl=300.0)
    driver.lease("two", ttl=300.0)
    driver.beat(slots_free=said)
    assert driver.pool.leases.slots == 2
    driver.do(Release(lease.lease_id, lease.token))
    assert driver.lease("three")


# Registered engines: what changes for them, and what does not.


@pytest.mark.behaviour("ENG-1")
def test_a_registered_engine_that_a_preload_wants_again_is_lost_until_it_is_heard_and_at_once_if_it_just_was():
    for age, state in ((29.9, S.STARTING), (30.0, S.LOST), (31.0, S.LOST)):
        driver = a_ready()
        driver.do(Stop())
        driver.now += age
        driver.do(Preload())
        assert (driver.state, driver.pool.wanted, driver.pool.drain_until) == (state, True, None)
        assert bool(driver.pool.registered.probe.sent) is (state is S.STARTING)


@pytest.mark.behaviour("ENG-2", "DRN-1")
def test_a_second_drain_of_a_registered_engine_changes_neither_its_time_nor_its_reason():
    driver = a_ready()
    driver.lease("one", ttl=300.0)
    driver.do(Drain(50.0))
    until = driver.now + 50.0
    driver.now += 1.0
    driver.do(Drain(9.0))
    assert (driver.state, driver.pool.drain_until, driver.pool.reason) == (S.DRAINING, until, "draining")


@pytest.mark.behaviour("ENG-2", "DRN-5")
@pytest.mark.parametrize(("second", "left"), [(None, 50.0), (60.0, 50.0), (9.0, 9.0)])
def test_a_deletion_of_a_registered_engine_that_is_asked_again_can_only_be_hurried(second, left):
    driver = a_ready()
    driver.lease("one", ttl=300.0)
    driver.do(Delete(50.0))
    driver.do(Delete(second))
    assert (driver.pool.deleting, driver.pool.drain_until) == (True, driver.now + left)


@pytest.mark.behaviour("ENG-2", "DRN-1")
def test_an_undrain_of_a_registered_engine_leaves_its_own_drain_to_it():
    driver = a_ready()
    driver.lease("one", ttl=300.0)
    driver.beat(draining=True)
    driver.do(Drain(50.0))
    driver.do(Undrain())
    assert (driver.state, driver.pool.reason) == (S.DRAINING, ITS_OWN_DRAIN)
    assert (driver.pool.wanted, driver.pool.drain_until) == (True, None)
    driver.beat(draining=False)
    assert (driver.state, driver.pool.reason) == (S.READY, "the drain is over")


@pytest.mark.behaviour("ENG-2", "DRN-1")
def test_a_registered_engine_that_nobody_wants_and_that_is_heard_all_the_same_drains_with_no_time():
    driver = Registered(enrolled(wanted=False))
    driver.register()
    note = only_note(driver.told(OK), NoteName.DRAIN_STARTED)
    assert (driver.state, note.fields) == (S.DRAINING, {"deadline_ms": 0, "active_leases": 0})


@pytest.mark.behaviour("ENG-1")
def test_a_registration_keeps_what_it_does_not_say_of_the_slots_unless_the_engine_moved():
    driver = a_ready()
    driver.beat(slots_free=1, in_flight=3, progress_counter=9)
    driver.register(engine_version="v2")
    run = driver.pool.registered
    assert (run.slots_free, run.in_flight, run.progress_counter, driver.pool.leases.slots) == (1, 3, 9, 1)
    driver.register(endpoint="10.0.0.8:9000")
    run = driver.pool.registered
    assert (run.slots_free, run.in_flight, run.progress_counter, driver.pool.leases.slots) == (None, None, None, 4)
    assert (run.heard, run.last_heartbeat) == (driver.now, None)


@pytest.mark.behaviour("DRN-4", "ENG-1")
def test_the_generations_of_a_registered_pool_are_kept_each_once_and_no_more_than_twenty():
    driver = Registered(enrolled()).to_ready()
    for number in range(2, 25):
        driver.register(slots_total=number + 10)
    assert driver.pool.good == tuple(range(5, 25))
    assert driver.pool.newest == driver.pool.generation == 24


@pytest.mark.behaviour("DRN-5", "ENG-2")
def test_an_engine_of_a_pool_that_is_being_deleted_registers_in_vain():
    driver = a_ready()
    driver.lease("one", ttl=300.0)
    driver.do(Delete(50.0))
    with pytest.raises(ClientError) as refused:
        driver.register(slots_total=2)
    assert refused.value.reason is Reason.POOL_DELETING


# Starts and those that were taken over.


def taken_over(known: bool = True, current: bool = True, slots: int = 0, **memo) -> Driver:
    """A wanted pool whose engine an earlier daemon has started."""
    driver = Driver(a_remembering_pool(QUIET, **memo))
    driver.do(Adopted(ENGINE, 77, 8123, current=current, slots=slots))
    driver.do(LeasesKept(known=known))
    driver.do(Recovered())
    return driver


@pytest.mark.behaviour("PROC-6")
def test_an_engine_that_was_taken_over_says_so_and_one_that_was_started_says_its_process():
    driver = Driver(a_remembering_pool(QUIET))
    driver.do(Adopted(ENGINE, 77, 8123))
    assert (driver.state, driver.pool.reason, driver.pool.engine.adopted) == (S.STARTING, "adopted process 77", True)
    driver = in_state(S.STARTING)
    assert (driver.pool.reason, driver.pool.engine.adopted) == ("process 100 runs", False)


@pytest.mark.behaviour("PROC-6")
@pytest.mark.parametrize("adopted", [False, True])
def test_a_start_asks_whether_it_is_ready_at_once(adopted):
    driver = Driver(a_remembering_pool(QUIET)) if adopted else in_state(S.PROVISIONING)
    told = driver.do(Adopted(ENGINE, 77, 8123)) if adopted else driver.spawn()
    probe = only(RunProbe, told)
    assert (probe.engine_id, probe.readiness) == (ENGINE, True)


@pytest.mark.behaviour("PROC-6", "RST-8")
@pytest.mark.parametrize("adopted", [False, True])
def test_the_end_of_a_run_is_judged_by_the_marks_of_its_process(adopted):
    driver = Driver(a_remembering_pool(replace(QUIET, restart=RestartMode.ON_FAILURE)))
    if not adopted:
        driver.do(Recovered())
    driver.do(Adopted(ENGINE, 77, 8123, ticks=9) if adopted else Spawned(ENGINE, 77, 8123, ticks=9, generation=1))
    driver.answer(OK)
    driver.do(Exited(ENGINE, EXIT_0))
    assert driver.pool.judged == memo_of(driver.pool).judged == Judged(ENGINE, 77, 9)
    assert (driver.state, driver.pool.wanted) == (S.STOPPING, False)


@pytest.mark.behaviour("PROC-5")
def test_what_a_start_is_launched_with_is_remembered_as_what_it_can_serve():
    for told, given, limit in ((0, 2, 2), (1, 1, 1), (5, 5, 2)):
        driver = in_state(S.PROVISIONING)
        driver.do(Spawned(ENGINE, 100, 8000, slots=told, generation=1))
        assert (driver.pool.home.engine_id, driver.pool.home.slots, driver.pool.home.fresh_port) == (
            ENGINE, given, False,
        )  # fmt: skip
        driver.answer(OK)
        assert driver.pool.leases.slots == limit


@pytest.mark.behaviour("PROC-5")
@pytest.mark.parametrize(("says", "slots"), [(None, 2), (0, 2), (1, 1), (2, 2), (9, 2)])
def test_slots_are_what_the_spec_asks_for_and_no_more_than_the_engine_says(says, slots):
    driver = Driver()
    driver.make_ready(None if says is None else EngineFacts(slots=says))
    assert driver.pool.leases.slots == slots


@pytest.mark.behaviour("PROC-6", "DRN-2")
@pytest.mark.parametrize("current", [False, True])
def test_an_engine_that_was_taken_over_is_replaced_when_its_spec_is_not_the_pools(current):
    driver = taken_over(current=current)
    assert driver.state is S.STARTING
    driver.answer(OK)
    assert driver.state is (S.READY if current else S.STOPPING)
    assert driver.pool.home.generation == (1 if current else 0)


@pytest.mark.behaviour("PROC-7")
def test_a_start_that_comes_after_its_stop_is_killed_and_not_shown_as_running():
    driver = in_state(S.PROVISIONING)
    driver.do(Stop())
    assert of(KillTree, driver.spawn()) == [KillTree(ENGINE)]
    assert driver.state is S.STOPPING
    assert not of(RunProbe, driver.pass_time(60.0))


@pytest.mark.behaviour("PRE-3", "LIVE-1")
def test_a_start_that_is_over_its_time_is_not_called_stalled_for_a_pause_of_the_daemon():
    s = SupervisionSettings(start_timeout=100.0, stall_timeout=120.0)
    driver = Driver(a_pool(QUIET, s))
    driver.start()
    driver.answer(LOADING)
    driver.pass_time(10.0, LOADING)
    driver.at(next_deadline(driver.pool) + 30.0)
    assert driver.pool.engine.paused == 30.0
    driver.answer(LOADING)
    driver.pass_time(90.0, LOADING)
    assert driver.state is S.STOPPING
    error = driver.pool.last_error
    assert (error.reason, error.message) == (
        CrashCause.START_FAILED, "not ready after 100.0 s, the limit is 100 s",
    )  # fmt: skip
    assert error.uptime == 100.0


@pytest.mark.behaviour("PRE-3")
@pytest.mark.parametrize(("measure", "least"), [("read_bytes", 65_536), ("rss_bytes", 262_144)])
def test_what_was_not_known_before_counts_as_progress_from_nothing_and_what_is_not_known_any_more_as_none(
    measure, least
):
    for before, after, progressed in ((None, least, True), (None, least - 1, False), (least, None, False)):
        driver = in_state(S.STARTING)
        driver.usage = Usage(**{measure: before})
        driver.answer(LOADING)
        driver.pass_time(0.6)
        last = driver.pool.engine.progressed
        driver.usage = Usage(**{measure: after})
        driver.answer(LOADING)
        assert (driver.pool.engine.progressed > last) is progressed


# Reloads.


@pytest.mark.behaviour("DRN-2", "DRN-4")
@pytest.mark.parametrize(("given", "seconds"), [(None, QUIET.drain_deadline), (7.5, 7.5), (0.0, 0.0)])
def test_the_way_back_gives_the_engine_that_retires_next_the_time_that_was_told_or_its_specs(given, seconds):
    driver = retiring()
    told = driver.do(ChangeSpec(QUIET, 1, drain_deadline=given))
    assert driver.pool.reload.drain_deadline == seconds
    assert driver.pool.reload.comeback
    assert only_note(told, NoteName.RELOAD_STARTED).fields == {
        "old_generation": 2, "new_generation": 1, "beside": True,
    }  # fmt: skip


@pytest.mark.behaviour("DRN-2")
@pytest.mark.parametrize("strategy", [MAKE, BREAK])
@pytest.mark.parametrize(("given", "seconds"), [(None, QUIET.drain_deadline), (7.5, 7.5)])
def test_a_reload_gives_the_old_engine_the_time_that_was_told_or_its_specs(strategy, given, seconds):
    driver = ready(QUIET)
    driver.lease("held", ttl=300.0)
    told = driver.do(ChangeSpec(replace(QUIET, args=("--new",)), 2, strategy, given))
    assert driver.pool.reload.drain_deadline == seconds
    if strategy is BREAK:
        assert (driver.pool.drain_until, driver.pool.reason) == (driver.now + seconds, "draining for generation 2")
        assert only_note(told, NoteName.DRAIN_STARTED).fields["deadline_ms"] == int(seconds * 1000)
    else:
        driver.reload_to(P.RETIRING)
        assert driver.pool.beside.drain_until == driver.now + seconds


@pytest.mark.behaviour("DRN-4")
def test_there_is_no_way_back_to_a_retiring_engine_while_the_pools_own_is_in_doubt():
    driver = Driver(a_remembering_pool(QUIET))
    driver.do(InDoubt(NEXT, "start time differs"))
    driver.do(AdoptedBeside(Adopted(ENGINE, 77, 8123), QUIET, 7, retiring=True))
    lease = ready(QUIET).lease("held", ttl=300.0)._replace(endpoint="127.0.0.1:8123")
    driver.do(LeasesKept((lease,)))
    driver.do(Recovered())
    assert (driver.state, driver.pool.beside.state, driver.pool.reload.phase) == (S.UNKNOWN, S.DRAINING, P.RETIRING)
    with pytest.raises(ClientError) as refused:
        driver.do(ChangeSpec(QUIET, 7))
    assert refused.value.reason is Reason.RELOAD_IN_PROGRESS


@pytest.mark.behaviour("DRN-4")
@pytest.mark.parametrize("change", [ChangeSpec(QUIET, 1, anew=True), ChangeSpec(QUIET, 3)])
def test_the_way_back_leads_through_the_retiring_engine_only_for_its_own_generation_as_it_is(change):
    driver = retiring()
    with pytest.raises(ClientError) as refused:
        driver.do(change)
    assert refused.value.reason is Reason.RELOAD_IN_PROGRESS


@pytest.mark.behaviour("DRN-3")
def test_an_engine_that_ends_while_its_commit_is_written_is_started_again_once_nothing_is_left_of_it():
    driver = ready(QUIET)
    driver.change(MAKE)
    driver.reload_to(P.COMMITTING)
    driver.do(Exited(NEXT, KILLED))
    assert not of(Start, driver.commit())
    assert (driver.state, driver.pool.generation, driver.pool.reason) == (
        S.STOPPING, 2, "SIGNAL: ended by signal 9 after 0.0 s",
    )  # fmt: skip
    again = only(Start, driver.do(TreeEmpty(NEXT)))
    assert (again.generation, driver.state, driver.pool.reason) == (2, S.PROVISIONING, "starting generation 2")


@pytest.mark.behaviour("DRN-2", "RST-8")
def test_a_daemon_that_ends_ends_the_engine_to_come_too_where_the_old_one_waits_for_its_next_start():
    driver = ready(QUIET)
    driver.change(MAKE)
    driver.reload_to(P.VERIFYING)
    driver.crash(KILLED)
    assert driver.state is S.BACKOFF
    told = driver.do(Stop(for_now=True))
    assert KillTree(NEXT) in told
    assert (driver.state, driver.pool.wanted, driver.pool.reload.phase) == (S.BACKOFF, True, P.ENDING)
    note = only_note(driver.end(NEXT), NoteName.RELOAD_FINISHED)
    assert (note.fields["outcome"], driver.state) == ("rolled_back", S.BACKOFF)


@pytest.mark.behaviour("LEASE-4", "LEASE-5", "DRN-2")
def test_slots_that_fall_free_on_both_engines_at_one_time_are_granted_with_rising_fencing_numbers():
    driver = ready(QUIET)
    driver.lease("old", ttl=50.0)
    driver.change(MAKE)
    driver.reload_to(P.RETIRING)
    driver.lease("new", ttl=50.0)
    for name in ("a", "b"):
        assert driver.ask(name, wait=500.0, ttl=300.0) is None
    told = answers(driver.at(driver.now + 50.0 + driver.pool.lease_settings.grace))
    assert set(told) == {"p.a", "p.b"}
    assert (told["p.a"].fencing_token, told["p.b"].fencing_token) == (3, 4)


@pytest.mark.behaviour("LEASE-5")
def test_a_request_that_is_tried_again_keeps_its_place_among_those_who_wait():
    driver = ready(QUIET)
    held = [driver.lease(name, ttl=300.0) for name in ("one", "two")]
    assert driver.ask("a", wait=100.0, request_id="r") is None
    assert driver.ask("b", wait=100.0) is None
    told = answers(driver.do(Acquire(an_ask("a2", wait=100.0, request_id="r"))))
    assert isinstance(told["p.a"], Refusal) and told["p.a"].reason is RefusalReason.POOL_FULL
    assert set(answers(driver.do(Release(held[0].lease_id, held[0].token)))) == {"p.a2"}


@pytest.mark.behaviour("DRN-2", "LEASE-1")
def test_when_the_retiring_engine_is_gone_its_slots_are_the_pools_again():
    driver = retiring(leases=2)
    assert (driver.pool.leases.elsewhere, driver.pool.leases.free) == (2, 0)
    driver.end(ENGINE)
    assert (driver.pool.leases.elsewhere, driver.pool.leases.free, driver.pool.beside) == (0, 2, None)


@pytest.mark.behaviour("DRN-2")
def test_a_preload_before_the_commit_of_a_reload_takes_back_that_the_pool_was_to_end():
    driver = ready(QUIET)
    driver.change(BREAK)
    driver.crash(EXIT_0)
    driver.start_next()
    driver.do(Stop())
    assert not driver.pool.wanted
    driver.do(Preload())
    assert driver.pool.wanted
    again = only(Start, driver.end(NEXT))
    assert again.generation == 1


@pytest.mark.behaviour("RST-8")
def test_a_preload_of_what_starts_already_takes_back_that_it_was_to_end():
    driver = taken_over(wanted=False, drain_until=5000.0)
    assert (driver.state, driver.pool.wanted) == (S.STARTING, False)
    driver.do(Preload())
    assert (driver.state, driver.pool.wanted) == (S.STARTING, True)
    driver.answer(OK)
    assert driver.state is S.READY


@pytest.mark.behaviour("DRN-2", "DRN-4")
@pytest.mark.parametrize("end", [Stop(), Drain(50.0), Delete(50.0)], ids=["stop", "drain", "delete"])
def test_an_end_that_is_asked_for_on_the_way_back_has_the_engine_that_was_to_come_back_retire_after_all(end):
    driver = retiring()
    driver.do(ChangeSpec(QUIET, 1))
    assert (driver.pool.reload.phase, driver.pool.beside.state) == (P.VERIFYING, S.READY)
    driver.do(end)
    assert (driver.pool.reload.phase, driver.pool.reload.comeback) == (P.RETIRING, False)
    assert (driver.pool.reload.generation, driver.pool.reload.spec) == (2, driver.pool.spec)
    assert (driver.state, driver.pool.beside.state) == (S.STOPPING, S.DRAINING)
    assert not driver.do(Verified(1))
    driver.end(NEXT, EXIT_0)
    driver.pass_time(400.0, OK)
    driver.end(ENGINE, EXIT_0)
    assert (driver.state, driver.pool.generation, driver.pool.beside) == (S.STOPPED, 2, None)


@pytest.mark.behaviour("STATE-1", "DRN-2")
def test_an_engine_whose_device_is_not_to_be_trusted_drains_and_is_started_again():
    driver = ready(QUIET)
    lease = driver.lease("held", ttl=300.0)
    told = driver.do(Evacuate("the GPU broke"))
    assert (driver.state, driver.pool.reason, driver.pool.wanted) == (S.DRAINING, "the GPU broke", True)
    assert only_note(told, NoteName.DRAIN_STARTED).fields == {
        "deadline_ms": int(QUIET.drain_deadline * 1000), "active_leases": 1,
    }  # fmt: skip
    assert driver.pool.drain_until == driver.now + QUIET.drain_deadline
    driver.do(Release(lease.lease_id, lease.token))
    assert only(Start, driver.crash(EXIT_0)).engine_id == ENGINE
    assert driver.state is S.PROVISIONING


@pytest.mark.behaviour("STATE-1", "DRN-2")
@pytest.mark.parametrize("state", [s for s in S if s not in (S.LOST, S.READY)])
def test_a_pool_that_does_not_serve_leaves_no_device(state):
    driver = in_state(state)
    before = driver.pool
    assert not driver.do(Evacuate("the GPU broke"))
    assert driver.pool == before


@pytest.mark.behaviour("STATE-1", "DRN-2")
@pytest.mark.parametrize("phase", [P.STARTING, P.VERIFYING, P.COMMITTING, P.RETIRING])
def test_a_reload_goes_on_also_from_a_device_that_is_not_to_be_trusted(phase):
    driver = ready(QUIET)
    driver.lease("held", ttl=300.0)
    driver.change(MAKE)
    driver.reload_to(phase)
    before = driver.pool
    assert not driver.do(Evacuate("the GPU broke"))
    assert driver.pool == before


# An engine that hangs.


def until_hung(driver: Watched) -> list[Any]:
    """What the look that found it told; with each look one more is in flight, which is no sign of work."""
    for _ in range(4000):
        told = driver.pass_looks(0.25)
        if notes(told, NoteName.ENGINE_HUNG):
            return told
        driver.in_flight = (driver.in_flight or 0) + 1
    raise AssertionError("it is never found")


@pytest.mark.behaviour("LIVE-2")
@pytest.mark.parametrize("by_the_long_limit", [False, True])
def test_an_engine_that_is_found_hung_is_told_with_what_the_last_look_showed_and_asked_nothing_more(by_the_long_limit):
    driver = Watched(free=0 if by_the_long_limit else 1).begin().stops(computes=by_the_long_limit)
    told = until_hung(driver)
    note = only_note(told, NoteName.ENGINE_HUNG)
    assert note.fields["in_flight"] == driver.in_flight
    assert f"{driver.in_flight} requests in flight" in note.fields["detail"] == driver.pool.last_error.message
    assert ("no slot is free" in note.fields["detail"]) is by_the_long_limit
    assert driver.state is S.STOPPING
    assert (driver.pool.engine.probe.due, driver.pool.engine.probe.sent) == (None, None)
    assert next_deadline(driver.pool) == driver.pool.engine.kill_at
    run = driver.pool.engine
    assert run.kill_at - driver.pool.settings.stop_grace == driver.pool.last_error.uptime + run.started


# Leases of an earlier daemon.


@pytest.mark.behaviour("LEASE-3")
def test_leases_of_an_earlier_daemon_that_are_all_known_hold_nothing_back():
    driver = Driver(a_remembering_pool(QUIET))
    driver.do(Adopted(ENGINE, 77, 8123))
    lease = ready(QUIET).lease("kept", ttl=300.0)._replace(endpoint="127.0.0.1:8123")
    told = driver.do(LeasesKept((lease,)))
    assert (driver.pool.held_until, notes(told, NoteName.LEASES_UNKNOWN)) == (None, [])
    driver.do(Recovered())
    granted = driver.answer(OK)
    assert not of(RecordLeases, granted) and not of(LeaseAnswered, granted)
    assert driver.lease("new").generation == 1


@pytest.mark.behaviour("LEASE-3", "LEASE-5")
def test_an_ask_of_a_pool_whose_leases_are_not_known_is_told_when_slots_are_given_again():
    driver = taken_over(known=False)
    driver.answer(OK)
    driver.now += 7.0
    refused = driver.ask("early")
    assert isinstance(refused, Refusal)
    assert (refused.reason, refused.retry_after) == (
        RefusalReason.POOL_NOT_READY, driver.pool.held_until - driver.now,
    )  # fmt: skip
    assert "the record of pool p's leases was lost" in refused.message
    driver.at(driver.pool.held_until)
    assert driver.lease("in time")


@pytest.mark.behaviour("LEASE-5")
def test_an_ask_of_a_pool_that_is_parked_for_good_is_told_of_no_time():
    driver = in_state(S.STARTING)
    driver.crash(EXIT_1, BAD_ARGUMENTS)
    assert driver.state is S.PARKED
    assert driver.ask("early").retry_after is None
    parked = in_state(S.PARKED)
    refused = parked.ask("early")
    assert (refused.reason, refused.retry_after) == (RefusalReason.BREAKER_OPEN, parked.pool.resume_at - parked.now)
    assert in_state(S.STOPPED).ask("early").retry_after is None


@pytest.mark.behaviour("LEASE-5")
def test_an_ask_that_comes_before_what_is_due_is_done_is_told_to_ask_again_at_once():
    waiting = in_state(S.BACKOFF)
    waiting.now = waiting.pool.resume_at + 5.0
    held = taken_over(known=False)
    held.answer(OK)
    held.now = held.pool.held_until + 5.0
    full = ready(QUIET)
    for name in ("one", "two"):
        full.lease(name, ttl=50.0)
    full.now += 50.0 + full.pool.lease_settings.grace + 5.0
    for driver in (waiting, held, full):
        assert driver.ask("early").retry_after == 0.0


@pytest.mark.behaviour("PROC-7", "RST-1")
def test_no_start_comes_before_nothing_is_left_of_the_engine_before_however_long_that_takes():
    driver = ready(QUIET)
    driver.do(Exited(ENGINE, EXIT_1))
    assert driver.pool.resume_at is not None
    assert not of(Start, driver.at(driver.pool.resume_at + 60.0))
    assert driver.state is S.STOPPING
    assert of(Start, driver.do(TreeEmpty(ENGINE)))


@pytest.mark.behaviour("RST-8")
@pytest.mark.parametrize("state", [S.BACKOFF, S.PARKED])
def test_what_falls_due_while_the_daemon_ends_is_left_to_the_next_one(state):
    driver = in_state(state)
    due = driver.pool.resume_at
    driver.do(Stop(for_now=True))
    assert (driver.state, driver.pool.resume_at, next_deadline(driver.pool)) == (state, due, None)
    assert not of(Start, driver.at(due + 60.0))
    memo = memo_of(driver.pool)
    assert (memo.wanted, memo.resting, memo.resume_at) == (True, state, due)


@pytest.mark.behaviour("DRN-4")
def test_there_is_no_way_back_to_an_engine_that_is_being_ended():
    driver = retiring(leases=0)
    assert driver.pool.beside.state is S.STOPPING
    with pytest.raises(ClientError) as refused:
        driver.do(ChangeSpec(QUIET, 1))
    assert refused.value.reason is Reason.RELOAD_IN_PROGRESS


# A daemon has died in a reload.


def left_in_a_reload(retires: bool, leases: int = 0, known: bool = True) -> Driver:
    """ENGINE is the pool's; NEXT stands beside it: one that retires with so many leases, or one that is to go."""
    driver = Driver(a_remembering_pool(QUIET))
    driver.do(Adopted(ENGINE, 77, 8123))
    driver.do(AdoptedBeside(Adopted(NEXT, 78, 8124), QUIET, 7, retiring=retires))
    lent = ready(QUIET)
    held = tuple(lent.lease(str(n), ttl=300.0)._replace(endpoint="127.0.0.1:8124") for n in range(leases))
    driver.do(LeasesKept(held, known=known))
    return driver


@pytest.mark.behaviour("DRN-3", "PROC-6")
def test_an_engine_that_was_to_come_when_the_daemon_died_goes_at_once():
    driver = left_in_a_reload(retires=False)
    told = driver.do(Recovered())
    assert (of(KillTree, told), of(Terminate, told)) == ([KillTree(NEXT)], [])
    assert (driver.pool.beside.state, driver.state) == (S.STOPPING, S.STARTING)


@pytest.mark.behaviour("DRN-2", "PROC-6")
def test_an_engine_that_was_retiring_without_leases_when_the_daemon_died_is_stopped_with_the_usual_grace():
    driver = left_in_a_reload(retires=True)
    told = driver.do(Recovered())
    assert (of(KillTree, told), of(Terminate, told)) == ([], [Terminate(NEXT)])
    assert driver.pool.beside.engine.kill_at == driver.now + driver.pool.settings.stop_grace


@pytest.mark.behaviour("DRN-2", "LEASE-3", "PROC-6")
@pytest.mark.parametrize(("leases", "known"), [(1, True), (0, False), (1, False)])
def test_an_engine_that_was_retiring_with_leases_when_the_daemon_died_drains_on(leases, known):
    driver = left_in_a_reload(True, leases, known)
    assert driver.pool.beside.state is S.STARTING
    told = driver.do(Recovered())
    assert (of(KillTree, told), of(Terminate, told)) == ([], [])
    assert (driver.pool.beside.state, driver.pool.beside.drain_until) == (S.DRAINING, driver.now + QUIET.drain_deadline)
    assert len(driver.pool.beside.leases.live) == leases
    moves = [note.fields for note in notes(told, NoteName.POOL_TRANSITION) if note.fields["generation"] == 7]
    assert [(move["new_state"], move["reason"]) for move in moves] == [
        (S.READY, "it served before"), (S.DRAINING, "draining"),
    ]  # fmt: skip


@pytest.mark.behaviour("DRN-2", "DRN-3")
def test_an_engine_that_fails_its_verification_or_is_cancelled_is_killed_without_grace():
    for last in ("wrong", "stop"):
        driver = ready(QUIET)
        driver.change(MAKE)
        driver.reload_to(P.VERIFYING)
        told = driver.verify_next("wrong") if last == "wrong" else driver.do(Stop())
        assert of(KillTree, told) == [KillTree(NEXT)]
        assert Terminate(NEXT) not in told
        assert (driver.pool.reload.phase, driver.pool.beside.state) == (P.ENDING, S.STOPPING)


# Numbers and names are compared by what they say.


def the_same(number: int) -> int:
    """Another object, where the number is large enough to be one."""
    return int(str(number))


def test_an_answer_counts_by_its_numbers_also_where_they_are_large():
    driver = Driver(changed(a_pool(QUIET), probes=1000))
    driver.start()
    driver.answer(OK, serial=the_same(driver.pool.engine.probe.serial))
    assert driver.state is S.READY
    driver.do(ChangeSpec(replace(QUIET, args=("--new",)), 5000, MAKE))
    driver.spawn(NEXT, 200, 8001, the_same(5000))
    driver.do(Probed("".join(list(NEXT)), the_same(driver.pool.beside.engine.probe.serial), OK, Usage(), owned=True))
    assert driver.pool.reload.phase is P.VERIFYING
    driver.do(Verified(the_same(5000)))
    assert driver.pool.reload.phase is P.COMMITTING
    driver.do(Committed(the_same(5000)))
    assert (driver.pool.generation, driver.pool.reload.phase) == (5000, P.RETIRING)
    driver.end("".join(list(ENGINE)))
    assert (driver.pool.beside, driver.pool.reload) == (None, None)


def test_the_way_back_is_known_by_its_number_also_where_that_is_large():
    driver = Driver(a_remembering_pool(QUIET, newest=5000))
    driver.do(Adopted(ENGINE, 77, 8123))
    driver.do(AdoptedBeside(Adopted(NEXT, 78, 8124), QUIET, 5000, retiring=True))
    lease = ready(QUIET).lease("held", ttl=300.0)._replace(endpoint="127.0.0.1:8124")
    driver.do(LeasesKept((lease,)))
    driver.do(Recovered())
    driver.answer(OK)
    assert (driver.state, driver.pool.beside.state) == (S.READY, S.DRAINING)
    told = driver.do(ChangeSpec(QUIET, the_same(5000)))
    assert only(Verify, told).engine_id == NEXT


@pytest.mark.behaviour("ENG-2")
def test_a_registered_engines_answer_counts_by_its_number_also_where_that_is_large():
    driver = Registered(changed(enrolled(), probes=1000))
    driver.register()
    driver.told(OK, serial=the_same(driver.pool.registered.probe.serial))
    assert driver.state is S.READY


@pytest.mark.behaviour("LIVE-2")
def test_the_answer_to_a_request_of_ours_counts_by_its_number_also_where_that_is_large():
    driver = Watched(pool=changed(a_pool(a_spec(slots=2)), probes=1000)).begin().stops(computes=True)
    driver.pass_looks(driver.pool.settings.stall_window + 6.0)
    (asked,) = driver.asked
    driver.do(WorkAnswered("".join(list(ENGINE)), the_same(asked.serial), OK))
    assert driver.pool.engine.suspicion is None
