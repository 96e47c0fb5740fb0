"""Engines that register themselves: leased, probed and observed like ours, never started or ended by us."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from poolmgr.core import registered
from poolmgr.core.effects import Discard, Forget, KillTree, NoteName, RecordLeases, Rest, RunProbe, Start, Terminate
from poolmgr.core.memo import Memo, RegisteredEngine
from poolmgr.core.messages import (
    Acquire,
    ChangeSpec,
    Delete,
    Drain,
    Exited,
    Heartbeat,
    HostFault,
    LeasesKept,
    Preload,
    Probed,
    Recovered,
    Register,
    Release,
    Renew,
    ResetBreaker,
    Spawned,
    Stop,
    Tick,
    TreeEmpty,
    Undrain,
)
from poolmgr.core.registration import desired, heartbeat_interval, introduced, retold
from poolmgr.core.settle import next_deadline
from poolmgr.core.state import Pool, memo_of, new_pool, remembering
from poolmgr.core.view import engine_views, fingerprint, view
from poolmgr.errors import ClientError, Reason
from poolmgr.model.engine import ProbeResult, Usage
from poolmgr.model.lease import EndedLease, Lease, LeaseOutcome, Refusal, RefusalReason
from poolmgr.model.pool import EngineName, Origin, PoolRecord, PoolState, PoolView
from poolmgr.model.registration import Beat, DesiredState, Registration
from poolmgr.model.settings import LeaseSettings, SupervisionSettings
from tests.core.helpers import EXIT_1, FAILED, LOADING, OK, Driver, an_ask, hunting, notes, of, only, searching

S = PoolState
FIRST = Registration("e1", "p", "10.0.0.7:8000", EngineName.COMMAND, "v1", slots_total=4, device_mask="0,1", pid=77)
OURS_ONLY = (Start, Terminate, KillTree, Rest, Discard)
QUIET = SupervisionSettings(health_check_interval=1e9)  # for tests that are not about liveness probes
MOST_TICKS = 1000


def enrolled(said: Registration = FIRST, settings: SupervisionSettings | None = None, **memo: Any) -> Pool:
    """The pool as the store has it, before anything has been heard in this daemon's life."""
    engine, spec = introduced(said)
    record = PoolRecord("p", spec, 1, Origin.REGISTERED, 0.0)
    fresh = Memo(1, 1, wanted=True, good=(1,), registered=engine)
    return remembering(new_pool(record, settings or SupervisionSettings(), LeaseSettings()), replace(fresh, **memo))


@dataclass
class Registered(Driver):
    """A driver of one registered pool."""

    pool: Pool = field(default_factory=enrolled)

    def register(self, **said: Any) -> list[Any]:
        """The first registration, or what is said anew."""
        if not said:
            assert self.pool.registered is not None
            return self.do(Register(self.pool.registered.engine, self.pool.spec, self.pool.generation))
        again = Registration("e1", **said)
        engine, spec = retold(self.pool, again)
        generation = self.pool.generation + (spec != self.pool.spec)
        return self.do(Register(engine, spec, generation, again.slots_free, again.endpoint is not None))

    def beat(self, **said: Any) -> list[Any]:
        return self.do(Heartbeat(Beat("e1", **said)))

    def told(self, result: ProbeResult, serial: int | None = None) -> list[Any]:
        """The answer to the probe that is under way."""
        run = self.pool.registered
        assert run is not None
        return self.do(Probed("e1", run.probe.serial if serial is None else serial, result, Usage()))

    def to_ready(self) -> Registered:
        self.register()
        self.told(OK)
        assert self.state is S.READY
        return self

    def pass_time(self, seconds: float, answer: ProbeResult | None = None) -> list[Any]:
        end, effects, ticks = self.now + seconds, [], 0
        while (due := next_deadline(self.pool)) is not None and due <= end:
            ticks += 1
            assert ticks < MOST_TICKS, "a deadline that has passed is announced again and again"
            self.now = max(due, self.now)
            happened = self.do(Tick())
            if answer is not None and of(RunProbe, happened):
                happened += self.told(answer)
            effects += happened
        self.now = end
        return effects

    def lose(self) -> Registered:
        self.pass_time(self.pool.settings.heartbeat_ttl)
        assert self.state is S.LOST
        return self

    @property
    def seen(self) -> PoolView:
        return view(fingerprint(self.pool), 1, 0.0)

    @property
    def desired(self) -> DesiredState:
        return desired(self.pool)


def a_ready(**settings: Any) -> Registered:
    return Registered(enrolled(settings=replace(QUIET, **settings))).to_ready()


def refusal(answer: Lease | Refusal | None) -> RefusalReason:
    assert isinstance(answer, Refusal), answer
    return answer.reason


# What a registration says.


@pytest.mark.behaviour("ENG-1")
def test_the_first_registration_names_what_it_lacks():
    with pytest.raises(ClientError, match="needs endpoint, slots_total") as refused:
        introduced(Registration("e1", "p", engine=EngineName.VLLM))
    assert (refused.value.reason, refused.value.numbers["field"]) == (Reason.INVALID_ARGUMENT, "endpoint")


@pytest.mark.behaviour("ENG-1")
def test_a_partial_registration_leaves_the_other_fields_alone():
    driver = Registered().to_ready()
    before, spec = driver.pool.registered, driver.pool.spec
    assert before is not None
    driver.register(engine_version="v2")
    after = driver.pool.registered
    assert after is not None and after.engine == replace(before.engine, version="v2")
    assert driver.pool.spec == spec and driver.state is S.READY
    driver.register(slots_total=2, device_mask="1")
    assert driver.pool.spec == replace(spec, slots=2, device_mask="1")
    assert driver.pool.registered is not None and driver.pool.registered.engine == after.engine


@pytest.mark.behaviour("ENG-1")
def test_the_same_registration_again_changes_nothing_that_is_seen():
    driver = Registered().to_ready()
    before = driver.seen
    driver.register(**{name: getattr(FIRST, name) for name in ("endpoint", "engine", "slots_total", "pid")})
    assert driver.seen == before


@pytest.mark.behaviour("ENG-1", "ENG-2")
def test_an_engine_that_moved_is_probed_anew_and_the_answer_from_its_old_place_counts_for_nothing():
    driver = Registered(enrolled())
    driver.register()
    old = driver.pool.probes
    effects = driver.register(endpoint="10.0.0.8:9000")
    assert only(RunProbe, effects).readiness and driver.state is S.STARTING
    driver.told(OK, serial=old)
    assert driver.state is S.STARTING
    driver.told(OK)
    assert driver.state is S.READY and driver.seen.endpoint == "10.0.0.8:9000"
    assert of(RunProbe, driver.register(endpoint="10.0.0.8:9000", pid=78)) and driver.state is S.STARTING


@pytest.mark.behaviour("ENG-1")
def test_a_process_that_begins_anew_is_not_held_to_what_its_forerunner_said():
    driver = a_ready()
    driver.beat(draining=True)
    assert driver.state is S.DRAINING
    driver.register(slots_total=3)
    assert driver.state is S.DRAINING  # it said nothing of that
    driver.register(endpoint=FIRST.endpoint)
    assert driver.state is S.READY


@pytest.mark.behaviour("ENG-1", "LEASE-1")
@pytest.mark.parametrize(("said", "free"), [(-3, 0), (0, 0), (3, 3), (9, 4)])
def test_free_slots_are_clamped_to_the_total(said, free):
    driver = a_ready()
    driver.beat(slots_free=said)
    assert (driver.seen.slots_total, driver.seen.slots_free) == (4, free)
    granted = [driver.ask(str(n)) for n in range(9)]
    assert [isinstance(x, Lease) for x in granted] == [n < free for n in range(9)]


@pytest.mark.behaviour("ENG-1", "LEASE-1")
def test_fewer_slots_in_all_are_never_exceeded_by_new_leases():
    driver = a_ready()
    held = [driver.lease(str(n)) for n in range(3)]
    driver.register(slots_total=2)
    assert driver.seen.slots_free == 0 and refusal(driver.ask("x")) is RefusalReason.POOL_FULL
    for lease in held[:2]:
        driver.do(Release(lease.lease_id, lease.token))
    assert isinstance(driver.ask("y"), Lease) and refusal(driver.ask("z")) is RefusalReason.POOL_FULL


# Heartbeats.


@pytest.mark.behaviour("ENG-1", "ENG-2")
def test_an_engine_that_says_it_has_no_slot_gives_none_and_one_that_is_given_back_is_free_at_once():
    driver = a_ready()
    mine = driver.lease("mine")
    driver.beat(slots_free=0)
    refused = driver.ask("x")
    assert refusal(refused) is RefusalReason.POOL_FULL and "says that it has no free slot" in refused.message
    assert (driver.seen.slots_free, driver.seen.active_leases) == (0, 1)
    driver.do(Release(mine.lease_id, mine.token))
    assert driver.seen.slots_free == 1 and isinstance(driver.ask("y"), Lease)


@pytest.mark.behaviour("ENG-1", "LEASE-5")
def test_a_waiter_gets_the_slot_that_a_heartbeat_frees():
    driver = a_ready()
    driver.beat(slots_free=0)
    assert driver.ask("w", wait=60.0) is None
    effects = driver.beat(slots_free=1)
    assert only(RecordLeases, effects).granted[0].lease_id == "p.w" and driver.seen.slots_free == 0


@pytest.mark.behaviour("ENG-1")
def test_a_heartbeat_that_says_nothing_new_is_no_change_for_watchers_and_nothing_to_store():
    driver = a_ready()
    driver.beat(slots_free=3, in_flight=1, progress_counter=10)
    seen, kept = fingerprint(driver.pool), memo_of(driver.pool)
    driver.now += 5
    driver.beat(in_flight=2, progress_counter=99)
    assert fingerprint(driver.pool) == seen and memo_of(driver.pool) == kept
    (shown,) = engine_views(driver.pool, 100.0, str)
    assert (shown.last_heartbeat, shown.in_flight, shown.progress_counter) == (driver.now + 100.0, 2, 99)
    driver.beat(progress_counter=100)
    (shown,) = engine_views(driver.pool, 100.0, str)
    assert (shown.in_flight, shown.progress_counter, shown.slots_free) == (2, 100, 3)


@pytest.mark.behaviour("ENG-1", "ENG-3")
@pytest.mark.parametrize(("ttl", "seconds"), [(None, 30.0), (3.0, 3.0), (300.0, 300.0)])
def test_an_engine_that_is_silent_for_its_ttl_is_lost_and_not_before(ttl, seconds):
    said = replace(FIRST, ttl=ttl)
    driver = Registered(enrolled(said, QUIET)).to_ready()
    driver.now += 1.0
    driver.beat()
    driver.pass_time(seconds - 0.25)
    assert driver.state is S.READY
    driver.pass_time(0.25)
    assert driver.state is S.LOST and f"no heartbeat for {seconds:g} s" in driver.seen.state_reason
    assert not driver.seen.live and driver.pool.last_error is not None
    assert heartbeat_interval(driver.pool) == min(10.0, seconds / 3)


@pytest.mark.behaviour("ENG-3")
def test_a_lost_engine_comes_back_by_its_next_heartbeat_with_its_leases():
    driver = a_ready()
    lease = driver.lease("a", ttl=300.0)
    driver.lose()
    refused = driver.ask("x", wait=5.0)
    assert refusal(refused) is RefusalReason.POOL_NOT_READY and lease.lease_id in driver.pool.leases.live
    driver.do(Renew(lease.lease_id, lease.token))
    assert driver.pool.leases.live[lease.lease_id].expires == driver.now + 300.0
    assert only(RunProbe, driver.beat()).readiness
    driver.told(OK)
    assert driver.state is S.READY and driver.pool.registered is not None
    assert driver.pool.registered.engine.endpoint == FIRST.endpoint
    driver.do(Release(lease.lease_id, lease.token))
    assert driver.seen.slots_free == 4


@pytest.mark.behaviour("LEASE-3", "ENG-2")
def test_leases_on_a_lost_engine_expire_by_their_ttl():
    driver = a_ready()
    driver.lease("a", ttl=100.0)
    driver.lose()
    driver.pass_time(80.0)
    assert driver.state is S.LOST and driver.seen.active_leases == 0


@pytest.mark.behaviour("LIVE-1", "ENG-1")
def test_a_daemon_that_was_not_scheduled_does_not_lose_an_engine_for_its_own_pause():
    driver = a_ready()
    driver.at(driver.now + 45.0)
    assert driver.state is S.READY
    driver.pass_time(29.0)
    assert driver.state is S.READY
    driver.pass_time(1.0)
    assert driver.state is S.LOST


@pytest.mark.behaviour("ENG-1")
def test_an_engine_that_says_it_is_not_ready_is_leased_to_nobody_until_it_says_so_and_a_probe_agrees():
    driver = a_ready()
    lease = driver.lease("a", ttl=300.0)
    driver.beat(ready=False)
    assert (driver.state, driver.seen.ready, driver.seen.ready_time) == (S.STARTING, False, None)
    assert driver.ask("w", wait=60.0) is None and lease.lease_id in driver.pool.leases.live
    effects = driver.beat(ready=True)
    assert of(RunProbe, effects) and driver.state is S.STARTING
    effects = driver.told(OK)
    assert driver.state is S.READY and only(RecordLeases, effects).granted[0].lease_id == "p.w"


@pytest.mark.behaviour("ENG-1")
def test_a_probe_that_answers_does_not_make_ready_what_says_that_it_is_not():
    driver = Registered()
    driver.register()
    driver.beat(ready=False)
    driver.told(OK)
    assert driver.state is S.STARTING and "says that it is not ready" in driver.seen.state_reason


@pytest.mark.behaviour("ENG-1")
def test_an_engine_that_drains_refuses_new_leases_as_draining_and_serves_on_when_it_says_so():
    driver = a_ready()
    driver.beat(draining=True)
    assert driver.state is S.DRAINING and driver.seen.draining
    assert refusal(driver.ask("x", wait=9.0)) is RefusalReason.POOL_DRAINING
    driver.pass_time(20.0)
    driver.beat()
    assert driver.state is S.DRAINING  # without leases, and for as long as it likes
    assert driver.desired is DesiredState.SERVE
    driver.beat(draining=False)
    assert driver.state is S.READY and isinstance(driver.ask("y"), Lease)


# Probes.


@pytest.mark.behaviour("ENG-2", "PRE-1")
def test_a_registered_engine_is_ready_only_once_it_answered_a_probe():
    driver = Registered()
    effects = driver.register()
    assert only(RunProbe, effects).readiness and driver.state is S.STARTING
    assert driver.ask("w", wait=60.0) is None
    driver.told(LOADING)
    assert driver.state is S.STARTING and driver.seen.state_reason == "loading model"
    effects = driver.pass_time(driver.pool.settings.readiness_interval, OK)
    assert driver.state is S.READY and driver.ask("x") is not None
    lease = only(RecordLeases, effects).granted[0]
    assert (lease.lease_id, lease.endpoint, lease.generation) == ("p.w", FIRST.endpoint, 1)


@pytest.mark.behaviour("ENG-2", "LIVE-1")
def test_three_failed_probes_in_a_row_lose_an_engine_that_goes_on_sending_heartbeats():
    driver = Registered().to_ready()
    driver.pass_time(12.0, FAILED)
    driver.beat()
    driver.pass_time(1.0, OK)
    assert driver.state is S.READY and driver.pool.registered is not None
    driver.pass_time(6.0, OK)
    driver.beat()
    assert driver.pool.registered.probe.failures == 0
    effects = driver.pass_time(17.0, FAILED)
    assert driver.state is S.LOST and notes(effects, NoteName.HEALTH_CHECK_FAILED)
    assert driver.pool.last_error is not None and driver.pool.last_error.reason == "HEALTH_CHECK_FAILED"
    driver.beat()
    assert driver.state is S.STARTING
    driver.told(FAILED)
    driver.pass_time(5.0, FAILED)
    driver.beat()
    assert driver.state is S.STARTING  # heard of, but not well: it does not flap between the two
    driver.pass_time(0.5, OK)
    assert driver.state is S.READY


@pytest.mark.behaviour("LIVE-1")
def test_a_probe_that_the_daemon_itself_was_late_with_is_not_held_against_the_engine():
    driver = Registered().to_ready()
    for _ in range(5):
        driver.at(driver.now + 9.0)
        driver.told(FAILED)
        driver.beat()
    assert driver.state is S.READY


def test_an_engine_that_stays_unready_is_asked_less_often_after_its_start_time():
    driver = Registered(enrolled(settings=SupervisionSettings(start_timeout=20.0)))
    driver.register()
    driver.told(FAILED)
    early = len(of(RunProbe, driver.pass_time(10.0, FAILED)))
    driver.beat()
    driver.pass_time(15.0, FAILED)
    driver.beat()
    assert early >= 19 and len(of(RunProbe, driver.pass_time(10.0, FAILED))) <= 3


# Commands.


@pytest.mark.behaviour("ENG-2", "DRN-1")
def test_a_drain_tells_the_engine_and_ends_in_stopped_with_the_last_lease():
    driver = a_ready()
    lease = driver.lease("a", ttl=300.0)
    driver.do(Drain())
    assert (driver.state, driver.desired) == (S.DRAINING, DesiredState.DRAIN)
    driver.do(Release(lease.lease_id, lease.token))
    assert (driver.state, driver.desired, driver.seen.state_reason) == (S.STOPPED, DesiredState.GONE, "drained")


@pytest.mark.behaviour("ENG-2", "DRN-1")
@pytest.mark.parametrize("state", [S.READY, S.STARTING, S.LOST, S.DRAINING])
def test_a_drain_revokes_at_its_deadline_in_whatever_state_the_engine_is(state):
    driver = a_ready()
    driver.lease("a", ttl=300.0)
    if state is S.LOST:
        driver.lose()
    elif state is not S.READY:
        driver.beat(ready=state is not S.STARTING, draining=state is S.DRAINING)
    assert driver.state is state
    driver.do(Drain(5.0))
    assert refusal(driver.ask("x", wait=9.0)) is RefusalReason.POOL_DRAINING
    driver.pass_time(4.9)
    assert driver.seen.active_leases == 1
    effects = driver.pass_time(0.1)
    assert driver.state is S.STOPPED and driver.desired is DesiredState.GONE
    assert only(RecordLeases, effects).ended[0] == EndedLease("p.a", "token-a", LeaseOutcome.EXPIRED)


@pytest.mark.behaviour("ENG-2", "DRN-1")
def test_undrain_cancels_the_operators_drain_and_not_the_engines_own():
    driver = a_ready()
    driver.lease("a", ttl=300.0)
    driver.do(Drain())
    driver.do(Undrain())
    assert (driver.state, driver.desired) == (S.READY, DesiredState.SERVE)
    driver.beat(draining=True)
    driver.do(Drain())
    assert driver.seen.state_reason == "draining"
    driver.do(Undrain())
    assert (driver.state, driver.desired) == (S.DRAINING, DesiredState.SERVE)
    assert driver.seen.state_reason == "the engine says that it drains"
    driver.pass_time(25.0)
    assert driver.state is S.DRAINING


@pytest.mark.behaviour("ENG-2", "ENG-3")
def test_a_lost_engine_that_comes_back_into_a_drain_goes_on_draining():
    driver = a_ready()
    driver.lease("a", ttl=300.0)
    driver.do(Drain(200.0))
    driver.lose()
    driver.beat()
    effects = driver.told(OK)
    assert (driver.state, driver.desired) == (S.DRAINING, DesiredState.DRAIN)
    assert notes(effects, NoteName.DRAIN_STARTED)
    driver.do(Preload()) if driver.state is S.STARTING else driver.do(Undrain())
    assert driver.state is S.READY


@pytest.mark.behaviour("ENG-2")
def test_a_stop_revokes_leases_tells_the_engine_to_be_gone_and_touches_no_process():
    driver = a_ready()
    driver.lease("a")
    effects = driver.do(Stop())
    assert (driver.state, driver.desired, driver.seen.active_leases) == (S.STOPPED, DesiredState.GONE, 0)
    assert not of(object, [e for e in effects if isinstance(e, OURS_ONLY)])
    driver.beat(slots_free=4)
    assert (driver.state, driver.desired) == (S.STOPPED, DesiredState.GONE)
    driver.register()
    assert driver.state is S.STOPPED  # what an operator ended, no engine begins again
    assert next_deadline(driver.pool) is None


@pytest.mark.behaviour("ENG-2", "ENG-3")
def test_a_preload_wants_a_stopped_engine_again():
    driver = a_ready()
    driver.do(Stop())
    driver.do(Preload())
    assert (driver.state, driver.desired) == (S.STARTING, DesiredState.SERVE)  # it was heard of a moment ago
    driver.do(Stop())
    driver.pass_time(60.0)
    driver.do(Preload())
    assert (driver.state, driver.desired) == (S.LOST, DesiredState.SERVE)
    driver.beat()
    driver.told(OK)
    assert driver.state is S.READY


@pytest.mark.behaviour("ENG-2", "DRN-5")
def test_a_delete_drains_then_forgets_and_a_shorter_deadline_hurries_it():
    driver = a_ready()
    driver.lease("a", ttl=300.0)
    driver.do(Delete())
    assert driver.desired is DesiredState.DRAIN and not driver.pool.forgotten
    with pytest.raises(ClientError, match="being deleted"):
        driver.register(slots_total=2)
    assert only(Forget, driver.do(Delete(0.0))) and driver.desired is DesiredState.GONE
    assert only(Forget, driver.do(Delete()))  # the store may have failed the first time


@pytest.mark.behaviour("ENG-2")
def test_its_spec_is_changed_by_nobody_but_the_engine():
    driver = a_ready()
    before = driver.pool
    with pytest.raises(ClientError, match="registered itself") as refused:
        driver.do(ChangeSpec(replace(before.spec, slots=9), 2))
    assert refused.value.reason is Reason.POOL_STATE and driver.pool is before


# A later daemon.


def next_daemon(driver: Registered, *kept: Lease, known: bool = True) -> Registered:
    """As another daemon finds the pool after a SIGKILL."""
    record = PoolRecord("p", driver.pool.spec, driver.pool.generation, Origin.REGISTERED, 0.0)
    pool = remembering(new_pool(record, QUIET, LeaseSettings()), memo_of(driver.pool))
    later = Registered(pool, now=driver.now + 10.0, fence=1000)
    later.do(LeasesKept(kept, known=known))
    later.do(Recovered())
    return later


@pytest.mark.behaviour("ENG-3", "LEASE-3")
def test_after_the_daemons_death_the_next_heartbeat_is_enough_and_leases_have_lived_on():
    driver = a_ready()
    lease = driver.lease("a")
    later = next_daemon(driver, lease)
    assert later.state is S.LOST and refusal(later.ask("x", wait=9.0)) is RefusalReason.POOL_NOT_READY
    assert later.pool.leases.live[lease.lease_id].expires == later.now + lease.ttl
    later.beat()
    later.told(OK)
    assert later.state is S.READY and later.seen.slots_free == 3
    later.do(Release(lease.lease_id, lease.token))
    assert later.seen.slots_free == 4


@pytest.mark.behaviour("LEASE-1", "ENG-3")
def test_after_a_lost_record_of_leases_none_is_granted_before_the_longest_could_be_over():
    driver = a_ready()
    later = next_daemon(driver, known=False)
    later.beat()
    later.told(OK)
    assert later.state is S.READY and later.ask("x") is not None and later.seen.slots_free == 0
    while later.now < driver.now + 10.0 + 301.0:
        later.pass_time(20.0)
        later.beat()
    assert isinstance(later.ask("y"), Lease)


@pytest.mark.behaviour("ENG-2", "RST-8")
def test_a_later_daemon_knows_what_an_operator_and_the_engine_wanted():
    driver = a_ready()
    lease = driver.lease("a", ttl=300.0)
    driver.do(Drain(100.0))
    later = next_daemon(driver, lease)
    assert (later.state, later.desired) == (S.LOST, DesiredState.DRAIN)
    later.pass_time(90.0)
    assert (later.state, later.seen.active_leases) == (S.STOPPED, 0)
    stopped = next_daemon(later)
    assert (stopped.state, stopped.desired) == (S.STOPPED, DesiredState.GONE)
    driver = a_ready()
    driver.beat(draining=True)
    later = next_daemon(driver)
    later.beat()
    later.told(OK)
    assert later.state is S.DRAINING and later.desired is DesiredState.SERVE


@pytest.mark.behaviour("ENG-1")
def test_a_pool_whose_memory_was_lost_waits_for_its_engine_to_tell_again_who_it_is():
    record = PoolRecord("p", introduced(FIRST)[1], 3, Origin.REGISTERED, 0.0)
    pool = remembering(new_pool(record, QUIET, LeaseSettings()), Memo(3, 3, wanted=record.spec.preload))
    driver = Registered(pool)
    driver.do(Recovered())
    assert driver.state is S.LOST
    with pytest.raises(ClientError, match="needs endpoint"):
        driver.register(slots_total=2)
    driver.register(endpoint="10.0.0.7:8000")
    driver.told(OK)
    assert driver.state is S.READY and driver.seen.engine_id == "e1"


# Whatever happens.


class AnyLife(RuleBasedStateMachine):
    """Random events, in an order that no engine and no operator would think of."""

    def __init__(self) -> None:
        super().__init__()
        self.driver = Registered()
        self.driver.register()
        self.asked = 0

    def command(self, event: Any) -> None:
        before = self.driver.pool
        try:
            self.driver.do(event)
        except ClientError:
            assert self.driver.pool is before

    @rule(
        free=st.none() | st.integers(-1, 9),
        ready=st.none() | st.booleans(),
        draining=st.none() | st.booleans(),
    )
    def heartbeat(self, free: int | None, ready: bool | None, draining: bool | None) -> None:
        before = self.driver.state
        self.driver.beat(slots_free=free, ready=ready, draining=draining)
        assert before is not S.LOST or self.driver.state is not S.LOST  # ENG-3

    @rule(slots=st.none() | st.integers(1, 6), endpoint=st.sampled_from([None, "10.0.0.7:8000", "10.0.0.8:8000"]))
    def register(self, slots: int | None, endpoint: str | None) -> None:
        engine, spec = retold(self.driver.pool, Registration("e1", slots_total=slots, endpoint=endpoint))
        generation = self.driver.pool.newest + (spec != self.driver.pool.spec)
        self.command(Register(engine, spec, generation, anew=endpoint is not None))

    @rule(result=st.sampled_from([OK, FAILED, LOADING]), stale=st.booleans())
    def answer(self, result: ProbeResult, stale: bool) -> None:
        self.driver.told(result, serial=self.driver.pool.probes - stale)

    @rule(seconds=st.sampled_from([0.5, 4.0, 11.0, 31.0]))
    def time(self, seconds: float) -> None:
        self.driver.pass_time(seconds)

    @rule(event=st.sampled_from([Preload(), Drain(), Drain(3.0), Undrain(), Stop(), ResetBreaker(), HostFault()]))
    def operate(self, event: Any) -> None:
        self.command(event)

    @rule(event=st.sampled_from([None] * 8 + [Delete(), Delete(2.0)]))
    def delete(self, event: Delete | None) -> None:
        """Seldom: nothing comes after it."""
        if event is not None:
            self.command(event)

    @precondition(lambda self: not self.driver.pool.deleting)
    @rule()
    def all_is_well(self) -> None:
        self.command(Undrain() if self.driver.state is S.DRAINING else Preload())
        self.driver.beat(ready=True, draining=False)
        self.driver.told(OK)

    @rule(many=st.integers(1, 7), wait=st.sampled_from([0.0, 7.0]), ttl=st.sampled_from([3.0, 40.0]))
    def ask(self, many: int, wait: float, ttl: float) -> None:
        for _ in range(many):
            self.asked += 1
            self.driver.do(Acquire(an_ask(str(self.asked), wait=wait, ttl=ttl)))

    @precondition(lambda self: self.driver.pool.leases.live)
    @rule(data=st.data(), renew=st.booleans())
    def hold(self, data: st.DataObject, renew: bool) -> None:
        lease = data.draw(st.sampled_from(sorted(self.driver.pool.leases.live.values())))
        self.driver.do((Renew if renew else Release)(lease.lease_id, lease.token))

    @rule(
        event=st.sampled_from([Spawned("x", 5, 80), Exited("e1", EXIT_1), TreeEmpty("e1"), Exited("x", EXIT_1), Tick()])
    )
    def stray(self, event: Any) -> None:
        self.driver.do(event)

    @invariant()
    def holds(self) -> None:
        pool, log = self.driver.pool, self.driver.log
        assert [e for e in log if isinstance(e, OURS_ONLY)] == [], "something was done to a process"
        assert pool.engine is None and pool.home is None and pool.restart_count == 0
        for record in of(RecordLeases, log):
            if record.granted:
                assert len(pool.leases.live) <= pool.spec.slots, "more leases than slots"
        assert pool.state in (S.STARTING, S.READY, S.DRAINING, S.LOST, S.STOPPED)
        assert pool.state is not S.STOPPED or not pool.leases.live
        if pool.state in (S.STARTING, S.READY, S.DRAINING):
            assert pool.registered is not None and pool.registered.heard is not None
            ttl = pool.settings.heartbeat_ttl
            assert self.driver.now < pool.registered.heard + ttl, "a silent engine is not lost"
        if pool.state is S.READY:
            assert pool.wanted and pool.registered is not None and pool.registered.engine.ready
        log.clear()


@pytest.mark.behaviour("ENG-1", "ENG-2", "ENG-3", "LEASE-1")
def test_whatever_happens_nothing_is_done_to_a_process_that_is_not_ours():
    run_state_machine_as_test(AnyLife, settings=searching(120))


def kills_what_it_ends(turn, reason):
    HALT(turn, reason)
    turn.do(KillTree("e1"))


def believes_any_number(turn):
    said = turn.pool.registered.slots_free
    turn.set(leases=turn.pool.leases._replace(slots=turn.pool.spec.slots if said is None else said + 1))


HALT = registered._halt
FAULTS = {
    "the engine is killed": ("_halt", kills_what_it_ends),
    "silence is not noticed": ("lose_silent", lambda turn: None),
    "a heartbeat brings nothing back": ("_heard", lambda turn: None),
    "free slots are not clamped": ("_limit_slots", believes_any_number),
    "an engine that is not ready is leased": ("_follow", lambda turn: None),
    "leases outlive a stop": ("take_leases", lambda turn, table: None),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault, monkeypatch):
    monkeypatch.setattr(registered, *FAULTS[fault])
    with pytest.raises(AssertionError):
        run_state_machine_as_test(AnyLife, settings=hunting(200))


@pytest.mark.behaviour("ENG-2")
def test_a_pool_of_ours_takes_no_registration_and_no_heartbeat():
    driver = Driver()
    driver.make_ready()
    for event in (Heartbeat(Beat("e1", ready=False)), Register(RegisteredEngine("e1"), driver.pool.spec, 9)):
        before = driver.pool
        assert driver.do(event) == [] and driver.pool == before


# What a heartbeat asks for, and what it does not.


@pytest.mark.behaviour("ENG-1")
def test_a_heartbeat_has_an_engine_probed_only_when_it_says_for_the_first_time_that_it_is_ready():
    driver = a_ready()
    assert not of(RunProbe, driver.beat(ready=True))
    assert not of(RunProbe, driver.beat())
    driver.beat(ready=False)
    assert not of(RunProbe, driver.beat(ready=False))
    assert not of(RunProbe, driver.beat())
    assert of(RunProbe, driver.beat(ready=True))
    assert not of(RunProbe, driver.beat(ready=True))


@pytest.mark.behaviour("DRN-5", "ENG-2")
def test_a_registered_pool_is_forgotten_once_and_again_only_when_that_is_asked_again():
    driver = a_ready()
    assert len(of(Forget, driver.do(Delete()))) == 1
    assert not of(Forget, driver.do(Tick()) + driver.pass_time(100.0))
    assert len(of(Forget, driver.do(Delete()))) == 1
    assert not of(Forget, a_ready().do(Drain()))
