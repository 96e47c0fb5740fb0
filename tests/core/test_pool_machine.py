"""The whole pool under random commands, facts and time, in a small world that checks every step."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from poolmgr.core import ending, engine, leases, recovering, reload, restart, settle, starting
from poolmgr.core import pool as pool_module
from poolmgr.core import state as state_module
from poolmgr.core import view as view_module
from poolmgr.core.effects import KillTree, RecordLeases
from poolmgr.core.leases import LeaseTable
from poolmgr.core.messages import (
    Acquire,
    ChangeSpec,
    Committed,
    Delete,
    Drain,
    Exited,
    ForgetWaiter,
    Preload,
    Probed,
    Release,
    Renew,
    ResetBreaker,
    Stop,
    TreeEmpty,
    Undrain,
)
from poolmgr.core.settle import next_deadline
from poolmgr.core.state import ReloadPhase
from poolmgr.model.engine import Usage
from poolmgr.model.pool import BreakerState, PoolState, ProbeSpec, ReloadStrategy, RestartMode
from tests.core.helpers import (
    BAD_ARGUMENTS,
    CUDA,
    EXIT_0,
    EXIT_1,
    FAILED,
    KILLED,
    LOADING,
    OK,
    OOM,
    a_spec,
    an_ask,
    hunting,
    searching,
)
from tests.core.world import World

S = PoolState
COMMANDS = st.sampled_from(
    (Preload(), Preload(), Preload(), Drain(), Drain(0.0), Undrain(), Undrain(), Stop(), Stop(0.0), ResetBreaker())
)
# States that lead to READY by themselves when nothing fails.
BOUND = frozenset({S.PROVISIONING, S.STARTING, S.READY, S.BACKOFF})
SETTLED = frozenset({S.READY, S.STOPPED})
WAYS = st.tuples(
    st.sampled_from((*ReloadStrategy, ReloadStrategy.MAKE_BEFORE_BREAK)), st.sampled_from((None, 0.0, 20.0))
)
THEN = st.sampled_from(
    (None, None, "die", "die", "die unflushed", "own ends", "next ends", "commit fails", Stop(), Drain())
)
HOURS = 4 * 3600.0
SPEC = a_spec(slots=2, liveness=ProbeSpec(interval=20.0))


class PoolMachine(RuleBasedStateMachine):
    """Everything that can happen to a pool, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(SPEC)
        self.names = (str(i) for i in itertools.count())

    @property
    def alive(self) -> bool:
        return not self.world.forgets

    @initialize(how=st.sampled_from(("declared", "preloaded", "preloaded", "adopted", "adopted old")))
    def begin(self, how):
        if how == "preloaded":
            self.world.command(Preload())
        elif how.startswith("adopted"):
            self.world.adopt(current=how == "adopted")

    # Operators.

    @precondition(lambda self: self.alive)
    @rule(event=COMMANDS)
    def command(self, event):
        self.world.command(event)

    @precondition(lambda self: self.alive)
    @rule(rarely=st.integers(0, 31))
    def delete(self, rarely):
        if rarely == 21:
            self.world.command(Delete())

    @precondition(lambda self: self.alive and not self.world.pool.deleting)
    @rule(
        args=st.sampled_from(((), (), ("--a",), ("--b",))),
        slots=st.integers(1, 3),
        mode=st.sampled_from((*RestartMode, RestartMode.ON_FAILURE)),
        label=st.sampled_from("xy"),
        way=WAYS,
        anew=st.sampled_from((False, False, False, True)),
    )
    def change_spec(self, args, slots, mode, label, way, anew):
        spec = replace(self.world.pool.spec, args=args, slots=slots, restart=mode, labels={"l": label})
        if spec != self.world.pool.spec or anew:
            self.go_to(self.world.pool.newest + 1, spec, way, anew)

    @precondition(lambda self: self.alive and not self.world.pool.deleting)
    @rule(pick=st.integers(0, 9), way=WAYS)
    def roll_back(self, pick, way):
        kept = sorted(set(self.world.kept.generations) - {self.world.pool.generation})
        if kept:
            generation = kept[-1 - pick % len(kept)]
            self.go_to(generation, self.world.kept.generations[generation], way, anew=False)

    def go_to(self, generation, spec, way, anew):
        self.world.command(ChangeSpec(spec, generation, *way, anew))

    # A reload, taken as far as a phase; then anything can come.

    @precondition(lambda self: self.alive and not self.world.pool.deleting and self.world.pool.reload is None)
    @rule(way=WAYS, phase=st.sampled_from(ReloadPhase), leased=st.integers(0, 3), waits=st.integers(0, 2), then=THEN)
    def reload_as_far_as(self, way, phase, leased, waits, then):
        world = self.world
        world.cooperate(100.0, until=frozenset({S.READY}))
        if world.state is not S.READY or world.pool.reload is not None:
            return
        for wait in (0.0,) * leased + (60.0,) * waits:
            world.command(Acquire(an_ask(next(self.names), wait=wait, ttl=300.0)))
        args = (f"--{world.pool.newest + 1}",)
        self.go_to(world.pool.newest + 1, replace(world.pool.spec, args=args, slots=2), way, anew=False)
        for _ in range(30):
            if world.phase in (None, phase) or not world.one_good_thing():
                break
        self.and_then(then)

    def and_then(self, then):
        match then:
            case "die" | "die unflushed":
                self.daemon_dies_now(then == "die", known=True, started=True)
            case "own ends" | "next ends" if self.world.engines:
                picked = self.picked(0 if then == "own ends" else -1)
                self.world.end(picked, KILLED)
                self.world.report(picked)
            case "commit fails" if self.world.committing is not None:
                self.world.commit("no space left on device")
            case Stop() | Drain():
                self.world.command(then)

    @precondition(lambda self: self.world.phase is ReloadPhase.RETIRING)
    @rule(then=THEN, times=st.integers(0, 3))
    def come_back(self, then, times):
        generation = self.world.pool.beside.generation
        self.go_to(generation, self.world.kept.generations[generation], (ReloadStrategy.AUTO, None), anew=False)
        for _ in range(times):
            self.world.one_good_thing()
        self.and_then(then)

    @precondition(lambda self: self.world.pool.reload)
    @rule(times=st.integers(1, 3))
    def reload_goes_on(self, times):
        for _ in range(times):
            if not self.world.one_good_thing():
                self.world.to_next_deadline(self.world.now + 4000.0)

    @precondition(lambda self: self.world.pool.reload)
    @rule(event=st.sampled_from((Undrain(), Drain(), Drain(0.0), Stop(), Stop(0.0), Preload(), ResetBreaker())))
    def while_reloading(self, event):
        self.world.command(event)

    @precondition(lambda self: self.world.verifying)
    @rule(detail=st.sampled_from(("", "", "wrong answer")))
    def verification_ends(self, detail):
        self.world.verify(detail)

    @precondition(lambda self: self.world.committing)
    @rule(fault=st.sampled_from(("", "", "no space left on device")))
    def commit_ends(self, fault):
        self.world.commit(fault)

    # The daemon.

    @precondition(lambda self: self.alive)
    @rule(flushed=st.booleans(), known=st.sampled_from((True, True, False)), started=st.booleans())
    def daemon_dies(self, flushed, known, started):
        self.daemon_dies_now(flushed, known, started)

    def daemon_dies_now(self, flushed, known, started):
        if flushed:
            self.world.write_behind()
        self.world.die(known, started)

    # Clients.

    @precondition(lambda self: self.alive)
    @rule(
        wait=st.sampled_from((0.0, 30.0, 1000.0)),
        ttl=st.sampled_from((3.0, 300.0)),
        priority=st.integers(0, 1),
        request=st.sampled_from(("", "", "r")),
    )
    def acquire(self, wait, ttl, priority, request):
        ask = an_ask(next(self.names), wait=wait, ttl=ttl, priority=priority, request_id=request)
        self.world.command(Acquire(ask))

    @precondition(lambda self: self.alive)
    @rule(names=st.integers(1, 4), then=st.sampled_from((None, Drain(), Drain(), Drain(20.0), Stop(), Delete())))
    def be_busy(self, names, then):
        """A pool that is up has leases and waiters, and perhaps an operator who wants it down."""
        self.world.cooperate(100.0, until=frozenset({S.READY}))
        for _ in range(names):
            self.world.command(Acquire(an_ask(next(self.names), wait=60.0, ttl=300.0)))
        if then is not None and self.world.state is S.READY:
            self.world.command(then)

    @precondition(lambda self: self.world.state is S.DRAINING)
    @rule(event=st.sampled_from((Undrain(), Undrain(), Drain(), Stop(), Preload())))
    def while_draining(self, event):
        self.world.command(event)

    @precondition(lambda self: self.world.kept.leases)
    @rule(kind=st.sampled_from((Renew, Release)), pick=st.integers(0, 9))
    def use_lease(self, kind, pick):
        held = list(self.world.kept.leases.values())
        lease = held[pick % len(held)]
        self.world.command(kind(lease.lease_id, lease.token))

    @precondition(lambda self: self.world.pool.leases.waiters)
    @rule()
    def go_away(self):
        lease_id = self.world.pool.leases.waiters[0].ask.lease_id
        self.world.command(ForgetWaiter(lease_id))
        assert lease_id not in self.world.answered
        self.world.asked.remove(lease_id)

    # The engines.

    @precondition(lambda self: self.world.starting)
    @rule(luck=st.integers(0, 9), pick=st.integers(0, 1))
    def start_ends(self, luck, pick):
        if luck < 8:
            self.world.spawn(pick)
        else:
            self.world.refuse(luck == 9, pick)

    @precondition(lambda self: self.world.engines)
    @rule(
        record=st.sampled_from((EXIT_0, EXIT_1, KILLED, OOM)),
        diagnosis=st.sampled_from((None, None, CUDA, BAD_ARGUMENTS)),
        leaves=st.booleans(),
        at_once=st.booleans(),
        pick=st.integers(0, 1),
    )
    def engine_ends(self, record, diagnosis, leaves, at_once, pick):
        picked = self.picked(pick)
        self.world.end(picked, record, diagnosis, leaves)
        if at_once:
            self.world.report(picked)

    @rule(pick=st.integers(0, 1))
    def hear_of_the_end(self, pick):
        if self.world.engines:
            self.world.report(self.picked(pick))

    def picked(self, pick):
        return list(self.world.engines.values())[pick % len(self.world.engines)]

    @precondition(lambda self: self.world.probes)
    @rule(
        result=st.sampled_from((OK, OK, OK, LOADING, FAILED)),
        owned=st.sampled_from((True, True, True, None, False)),
        pick=st.integers(0, 1),
    )
    def probe_ends(self, result, owned, pick):
        self.world.answer(result, owned, pick)

    @precondition(lambda self: self.alive)
    @rule(times=st.sampled_from((1, 2, 6)))
    def crash_loop(self, times):
        for _ in range(times):
            self.world.cooperate(100.0, until=frozenset({S.READY}))
            mine = self.world.engine
            if mine is None:
                return
            self.world.end(mine, KILLED)
            self.world.report(mine)
            if mine.engine_id in self.world.engines:
                self.world.report(mine)

    @precondition(lambda self: self.alive)
    @rule(seconds=st.sampled_from((5.0, 70.0, 350.0)))
    def go_well(self, seconds):
        self.world.cooperate(seconds)

    # What is late or not ours.

    @precondition(lambda self: self.world.old_probes)
    @rule(result=st.sampled_from((OK, FAILED)), owned=st.sampled_from((True, False)), pick=st.integers(0, 9))
    def late_answer(self, result, owned, pick):
        engine_id, serial = self.world.old_probes[-1 - pick % len(self.world.old_probes)]
        self.unchanged(Probed(engine_id, serial, result, Usage(log_bytes=10**9), owned))

    @precondition(lambda self: self.alive)
    @rule(event=st.sampled_from((Exited("another", KILLED), TreeEmpty("another"))))
    def foreign_fact(self, event):
        self.unchanged(event)

    def unchanged(self, event):
        due = next_deadline(self.world.pool)
        before = self.world.pool
        if due is None or due > self.world.now:
            assert not self.world.fact(event)
            assert self.world.pool == before

    # Time.

    @precondition(lambda self: self.alive)
    @rule(seconds=st.sampled_from((0.1, 1.0, 4.0, 20.0, 61.0, 400.0)), jitter=st.sampled_from((0.0, 0.5, 0.99)))
    def a_late_tick(self, seconds, jitter):
        self.world.now += seconds
        self.world.jitter = jitter
        self.world.tick()

    @precondition(lambda self: self.alive)
    @rule(times=st.integers(1, 5))
    def ticks_on_time(self, times):
        for _ in range(times):
            self.world.to_next_deadline(self.world.now + 4000.0)

    # The end.

    def teardown(self):
        world = self.world
        if world.forgets:
            return
        bound = world.state in BOUND or (world.state is S.PARKED and world.pool.resume_at is not None)
        bound = bound and world.pool.wanted
        mine = world.engine
        if mine is not None and (mine.ended is not None or mine.asked_to_end):
            bound = False  # it has ended or is about to, perhaps for good; the pool has yet to hear of it
        for each in world.engines.values():
            each.left = each.left and each.ended is None
        world.cooperate(HOURS, until=SETTLED)
        if world.pool.deleting:
            assert world.forgets == 1, f"deleted, but {world.state}"
        elif bound:
            assert world.state is S.READY, f"{world.state} after {HOURS} s without a fault"
        else:
            assert world.state in (S.READY, S.STOPPED, S.PARKED, S.PENDING)
            self.asked_again()
        world.command(Stop())
        world.cooperate(HOURS, until=frozenset({S.STOPPED}))
        assert set(world.answered) == set(world.asked), "every ask is answered in the end"

    def asked_again(self):
        """Whatever happened before, an operator can bring the pool up."""
        world = self.world
        if world.state is S.PARKED or world.pool.policy.breaker_state is BreakerState.OPEN:
            assert world.command(ResetBreaker())
        assert world.command(Preload())
        world.cooperate(HOURS, until=SETTLED)
        assert world.state is S.READY


@pytest.mark.behaviour(
    "LEASE-1",
    "PRE-1",
    "PRE-4",
    "PRE-8",
    "PROC-3",
    "PROC-7",
    "RST-2",
    "RST-7",
    "RST-8",
    "DRN-1",
    "DRN-2",
    "DRN-3",
    "DRN-5",
)
def test_what_must_hold_of_a_pool_holds_after_every_step_of_any_life():
    run_state_machine_as_test(PoolMachine, settings=searching(400, steps=60))


# The world must be able to fail.


def dropping(kind):
    step = pool_module.step

    def broken(pool, event, at):
        pool, effects = step(pool, event, at)
        return pool, [e for e in effects if not isinstance(e, kind)]

    return broken


def one_more_free(table: LeaseTable) -> int:
    return max(0, table.slots + 1 - len(table.live))


FINGERPRINT = view_module.fingerprint


def blind_to_death(pool):
    seen = FINGERPRINT(pool)
    return seen._replace(run=seen.run._replace(main_alive=pool.engine is not None))


def believes_any_answer(turn, fact):
    run = turn.pool.engine
    if run is not None and run.probe.sent is not None:
        PROBED(turn, replace(fact, serial=run.probe.serial))


def never_forgets_the_past(turn):
    return None


def no_breaker(*_):
    return ""


def believes_every_commit(turn, step, fact):
    COMMITTED(turn, step, replace(fact, fault=""))


def needs_no_commit(turn, step, fact):
    VERIFIED(turn, step, fact)
    if turn.pool.reload is not None and turn.pool.reload.phase is ReloadPhase.COMMITTING:
        COMMITTED(turn, step, Committed(fact.generation))


def gives_up(turn, step, error):
    reload._finish(turn, "rolled_back", "it failed")


def remembers(**wrong):
    def broken(pool, memo):
        return REMEMBERING(pool, replace(memo, **wrong))

    return broken


def all_leases_are_the_pools_own(turn, step, fact):
    return fact


def as_if_known(turn, step, fact):
    TAKE_LEASES(turn, step, replace(fact, known=True))


TAKE_LEASES = recovering.take_leases
PROBED, COMMITTED, VERIFIED, REMEMBERING = engine._probed, reload.committed, reload.verified, state_module.remembering
FAULTS = {
    "a commit that failed is taken for one": (reload, "committed", believes_every_commit),
    "the new engine takes over before the commit": (reload, "verified", needs_no_commit),
    "a failed reload leaves its engine": (reload, "_fail", gives_up),
    "the old engine is not started again": (reload, "_end", lambda turn, r: reload._finish(turn, "rolled_back", "")),
    "the old engine does not retire": (reload, "retire", lambda turn, step: None),
    "each engine has the slots for itself": (pool_module, "_count_elsewhere", lambda turn: None),
    "no deadline of a drain ends a reload": (settle, "_abort_reload", lambda turn, left: None),
    "a reload outlives its cancellation": (reload, "cancel", lambda turn, step, why, grace: None),
    "leases of the retiring engine are lost": (reload, "kept_beside", all_leases_are_the_pools_own),
    "lost records are taken for none": (recovering, "take_leases", as_if_known),
    "what is found of a reload is not settled": (reload, "recovered", lambda turn, step: None),
    "an operator's word is forgotten": (state_module, "remembering", remembers(wanted=True)),
    "that an engine is wanted is forgotten": (state_module, "remembering", remembers(wanted=False)),
    "a deletion is forgotten": (state_module, "remembering", remembers(deleting=False)),
    "the breaker is forgotten": (state_module, "remembering", remembers(policy=restart.RestartPolicy())),
    "what a pool waits for is forgotten": (state_module, "remembering", remembers(resting=None)),
    "grants are not recorded": (pool_module, "step", dropping(RecordLeases)),
    "KillTree is dropped": (pool_module, "step", dropping(KillTree)),
    "one slot too many": (LeaseTable, "free", property(one_more_free)),
    "the old spec is launched again": (starting, "outdated", lambda pool: False),
    "late answers are believed": (engine, "_probed", believes_any_answer),
    "a watcher does not see a death": (view_module, "fingerprint", blind_to_death),
    "the kill after the grace never comes": (settle, "_kill_late", never_forgets_the_past),
    "leases outlive the engine": (leases, "revoke", lambda table, settings: table),
    "a pool is not forgotten": (settle, "_forget", never_forgets_the_past),
    "the start deadline never comes": (engine, "_start_too_slow", never_forgets_the_past),
    "the tree is taken for gone with its root": (ending, "_end_process", lambda turn, grace: None),
    "nothing ever resumes": (settle, "_resume", never_forgets_the_past),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_in_the_pool_is_found_by_the_world(monkeypatch, fault):
    where, name, broken = FAULTS[fault]
    monkeypatch.setattr(where, name, broken)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(PoolMachine, settings=hunting(3000, steps=60))


def test_a_breaker_that_never_opens_is_found_by_its_absence(monkeypatch):
    def opened() -> bool:
        world = World(a_spec())
        world.command(Preload())
        for _ in range(8):
            world.cooperate(100.0, until=frozenset({S.READY, S.PARKED}))
            if world.state is S.PARKED:
                return True
            mine = world.engine
            world.end(mine, KILLED)
            world.report(mine)
            world.report(mine)
        return False

    assert opened()
    monkeypatch.setattr(restart, "_opens", no_breaker)
    assert not opened()
