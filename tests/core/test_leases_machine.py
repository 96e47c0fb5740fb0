"""Whole lives of leases against a timeline of every slot."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from poolmgr.core import leases as lease_table
from poolmgr.core import pool as pool_module
from poolmgr.core.effects import LeaseEnded
from poolmgr.core.leases import LeaseTable, Waiter
from poolmgr.core.messages import (
    Acquire,
    ChangeSpec,
    Committed,
    Exited,
    ForgetWaiter,
    Probed,
    Release,
    Renew,
    Spawned,
    Tick,
    TreeEmpty,
    Verified,
)
from poolmgr.core.settle import next_deadline
from poolmgr.core.state import live_leases
from poolmgr.model.engine import Usage
from poolmgr.model.lease import Lease, LeaseAsk, LeaseOutcome, Refusal, RefusalReason
from poolmgr.model.pool import PoolState, ReloadStrategy
from poolmgr.model.settings import LeaseSettings, SupervisionSettings
from tests.core.helpers import (
    ENGINE,
    KILLED,
    OK,
    QUIET,
    Driver,
    a_pool,
    an_ask,
    answers,
    hunting,
    only,
    searching,
)

# Whole lives.


@dataclass
class Hold:
    """The time that one lease owns one slot: from `since` until `until`, which renewals move."""

    ask: LeaseAsk
    since: float
    expires: float
    until: float
    how: LeaseOutcome = LeaseOutcome.EXPIRED
    token: str = ""
    engine: str = ""


@dataclass
class Timeline:
    """Every hold there ever was. Who owns a slot at a time is looked up in it, and nothing is ever removed."""

    grace: float
    holds: dict[str, Hold] = field(default_factory=dict)

    def owners(self, now: float) -> list[str]:
        return [name for name, h in self.holds.items() if h.since <= now < h.until]

    def grant(self, ask: LeaseAsk, now: float, engine: str) -> None:
        until = now + ask.ttl + self.grace
        self.holds[ask.lease_id] = Hold(ask, now, now + ask.ttl, until, token=ask.token, engine=engine)

    def end_all_on(self, engine: str, now: float) -> None:
        for name in self.owners(now):
            if self.holds[name].engine == engine:
                self.end(name, now, LeaseOutcome.EXPIRED)

    def end(self, name: str, now: float, how: LeaseOutcome) -> None:
        hold = self.holds[name]
        hold.until, hold.how = now, how

    def outcome(self, name: str, token: str) -> LeaseOutcome:
        """What a release or renew of a lease that is over is told."""
        hold = self.holds.get(name)
        return hold.how if hold and hold.token == token else LeaseOutcome.UNKNOWN


SLOTS = 3
WAITERS = 4


class LeaseMachine(RuleBasedStateMachine):
    """One pool and its clients. The pool never parks, so that a crash always comes back."""

    def __init__(self) -> None:
        super().__init__()
        spec = replace(QUIET, slots=SLOTS, drain_deadline=1e6)
        steady = SupervisionSettings(breaker_threshold=10**6, restart_rate_limit=10**6, slow_loop_limit=10**6)
        self.lease_settings = LeaseSettings(max_waiters=WAITERS)
        self.driver = Driver(a_pool(spec, steady, self.lease_settings))
        self.driver.make_ready()
        self.spec, self.generation, self.slots = spec, 1, SLOTS
        self.timeline, self.queue = Timeline(self.lease_settings.grace), []
        self.asked: dict[str, int] = {}
        self.told: dict[str, Lease | Refusal] = {}
        self.fence = 0
        self.serving = True
        self.engine, self.retiring = ENGINE, ""

    # What has to come out of a step, in order.

    def due(self) -> list[tuple[str, str]]:
        """(lease id, answer) for everything that is due now."""
        now, told = self.driver.now, []
        for ask, deadline in [q for q in self.queue if q[1] <= now]:
            told.append((ask.lease_id, "refused"))
            self.queue.remove((ask, deadline))
        while self.serving and self.queue and len(self.timeline.owners(now)) < self.slots:
            best = max(self.queue, key=lambda q: (q[0].priority, -self.asked[q[0].lease_id]))
            self.queue.remove(best)
            self.timeline.grant(best[0], now, self.engine)
            told.append((best[0].lease_id, "granted"))
        return told

    def check(self, effects, expected: list[tuple[str, str]]) -> None:
        got = answers(effects)
        granted = [name for name, result in got.items() if isinstance(result, Lease)]
        assert granted == [name for name, answer in expected if answer == "granted"], "the order of grants counts"
        assert set(got) == {name for name, _ in expected}
        for name, result in got.items():
            assert name in self.asked, "an answer that nobody asked for"
            assert name not in self.told, "a second answer"
            self.told[name] = result
            if isinstance(result, Lease) and result.lease_id == name:
                assert result.fencing_token > self.fence, "fencing numbers rise in the order of the grants"
                self.fence = result.fencing_token
                assert result.expires == self.driver.now + result.ttl

    def to(self, when: float) -> None:
        """Time up to `when`, stopping at each deadline of the pool."""
        while (deadline := next_deadline(self.driver.pool)) is not None and deadline <= when:
            self.driver.now = max(deadline, self.driver.now)
            self.check(self.driver.do(Tick()), self.due())
        self.driver.now = when

    # What clients do.

    @rule(
        wait=st.sampled_from((0.0, 0.0, 5.0, 60.0, 600.0)),
        ttl=st.sampled_from((3.0, 15.0, 300.0)),
        priority=st.integers(-1, 2),
        request=st.sampled_from(("", "", "r1", "r2")),
    )
    def acquire(self, wait, ttl, priority, request):
        now = self.driver.now
        ask = an_ask(str(len(self.asked)), wait=wait, ttl=ttl, priority=priority, request_id=request)
        self.asked[ask.lease_id] = len(self.asked)
        same = [n for n in self.timeline.owners(now) if request and self.timeline.holds[n].ask.request_id == request]
        alive = [n for n in same if self.timeline.holds[n].expires > now]
        effects = self.driver.do(Acquire(ask))
        if alive:
            assert answers(effects)[ask.lease_id].lease_id == alive[0]
            self.check(effects, [(ask.lease_id, "granted")])
        elif self.serving and len(self.timeline.owners(now)) < self.slots:
            self.timeline.grant(ask, now, self.engine)
            self.check(effects, [(ask.lease_id, "granted")])
        elif wait > 0:
            self.queue_up(ask, effects)
        else:
            self.check(effects, [(ask.lease_id, "refused")])

    def queue_up(self, ask: LeaseAsk, effects) -> None:
        earlier = [q for q in self.queue if ask.request_id and q[0].request_id == ask.request_id]
        if len(self.queue) - len(earlier) >= WAITERS:
            assert answers(effects)[ask.lease_id].reason is RefusalReason.OVERLOADED
            return self.check(effects, [(ask.lease_id, "refused")])
        for entry in earlier:
            self.queue.remove(entry)
            self.asked[ask.lease_id] = self.asked[entry[0].lease_id]
        self.queue.append((ask, self.driver.now + ask.wait))
        return self.check(effects, [(e[0].lease_id, "refused") for e in earlier])

    @rule(pick=st.integers(0, 50), token=st.sampled_from(("", "", "", "stolen")))
    def release(self, pick, token):
        self.end(pick, token, Release)

    @rule(pick=st.integers(0, 50), token=st.sampled_from(("", "", "", "stolen")))
    def renew(self, pick, token):
        self.end(pick, token, Renew)

    def end(self, pick: int, stolen: str, kind: type[Release] | type[Renew]) -> None:
        now, names = self.driver.now, [*self.timeline.holds, "p.unknown"]
        name = names[-1 - pick % len(names)]
        hold = self.timeline.holds.get(name)
        token = stolen or (hold.token if hold else "token")
        got = self.driver.do(kind(name, token))
        if hold is None or token != hold.token or name not in self.timeline.owners(now):
            expected = self.timeline.outcome(name, token)
        elif now >= hold.expires:
            expected = LeaseOutcome.EXPIRED
            if kind is Release:
                self.timeline.end(name, now, LeaseOutcome.EXPIRED)
        elif kind is Renew:
            expected = LeaseOutcome.RENEWED
            hold.expires, hold.until = now + hold.ask.ttl, now + hold.ask.ttl + self.timeline.grace
        else:
            expected = LeaseOutcome.RELEASED
            self.timeline.end(name, now, LeaseOutcome.ALREADY_RELEASED)
        assert only(LeaseEnded, got).outcome is expected
        self.check(got, self.due())

    @precondition(lambda self: self.queue)
    @rule(pick=st.integers(0, 50))
    def forget(self, pick):
        ask, _ = self.queue.pop(pick % len(self.queue))
        self.told[ask.lease_id] = Refusal(RefusalReason.POOL_FULL, "went away")
        self.check(self.driver.do(ForgetWaiter(ask.lease_id)), self.due())

    # What else happens.

    @rule(seconds=st.sampled_from((0.0, 0.5, 1.0, 2.5, 12.0, 16.0, 100.0)))
    def pass_time(self, seconds):
        self.to(self.driver.now + seconds)

    @precondition(lambda self: not self.retiring)
    @rule(slots=st.integers(1, SLOTS))
    def limit(self, slots):
        if slots == self.spec.slots:
            return
        self.spec, self.slots, self.generation = replace(self.spec, slots=slots), slots, self.generation + 1
        self.check(self.driver.do(ChangeSpec(self.spec, self.generation)), self.due())

    @rule(outage=st.sampled_from((0.0, 0.5, 3.0)))
    def crash_and_come_back(self, outage):
        driver = self.driver
        self.timeline.end_all_on(self.engine, driver.now)
        self.serving = False
        self.check(driver.do(Exited(self.engine, KILLED)), self.due())
        self.to(driver.now + outage)
        self.check(driver.do(TreeEmpty(self.engine)), self.due())
        if driver.state is PoolState.BACKOFF:
            self.to(driver.pool.resume_at)
        assert driver.state is PoolState.PROVISIONING
        self.check(driver.do(Spawned(self.engine, 100, 8000, generation=driver.pool.generation)), self.due())
        self.serving = True
        run = driver.pool.engine
        self.check(driver.do(Probed(run.engine_id, run.probe.serial, OK, Usage(), owned=True)), self.due())
        assert driver.state is PoolState.READY

    @precondition(lambda self: not self.retiring)
    @rule(seconds=st.sampled_from((0.0, 2.0, 20.0)), fails=st.sampled_from((False, False, True)))
    def reload(self, seconds, fails):
        """To another engine beside this one; leases stay where they are, new ones come where the commit says."""
        driver, self.generation = self.driver, self.generation + 1
        spec, new = replace(self.spec, args=(str(self.generation),)), f"engine {self.generation}"
        change = ChangeSpec(spec, self.generation, ReloadStrategy.MAKE_BEFORE_BREAK)
        self.check(driver.do(change), self.due())
        self.check(driver.do(Spawned(new, 200, 9000, SLOTS, generation=self.generation)), self.due())
        self.check(driver.answer(OK, new), self.due())
        self.to(driver.now + seconds)
        self.check(driver.do(Verified(self.generation, "wrong" if fails else "")), self.due())
        if fails:
            self.check(driver.do(Exited(new, KILLED)) + driver.do(TreeEmpty(new)), self.due())
            return
        self.spec, self.retiring, self.engine = spec, self.engine, new
        self.check(driver.do(Committed(self.generation)), self.due())

    @precondition(lambda self: self.retiring)
    @rule()
    def the_old_engine_goes(self):
        """By itself, or because it has no lease any more; whoever holds one on it loses it."""
        driver, self.retiring, old = self.driver, "", self.retiring
        self.timeline.end_all_on(old, driver.now)
        self.check(driver.do(Exited(old, KILLED)) + driver.do(TreeEmpty(old)), self.due())
        assert driver.pool.reload is None

    # What always holds.

    @invariant()
    def agrees(self):
        table, now = self.driver.pool.leases, self.driver.now
        live = {lease.lease_id for lease in live_leases(self.driver.pool)}
        assert live == set(self.timeline.owners(now))
        assert set(table.live) == {name for name in live if self.timeline.holds[name].engine == self.engine}
        assert table.slots == self.slots
        assert table.free == max(0, self.slots - len(live))
        assert {w.ask.lease_id for w in table.waiters} == {ask.lease_id for ask, _ in self.queue}
        assert len(table.waiters) <= WAITERS
        assert set(self.asked) == set(self.told) | {ask.lease_id for ask, _ in self.queue}

    def teardown(self):
        self.to(self.driver.now + 1000.0)
        assert set(self.told) == set(self.asked), "every ask is answered in the end"
        assert not list(live_leases(self.driver.pool)), "every lease ends without its holder"


@pytest.mark.behaviour("LEASE-1", "LEASE-2", "LEASE-3", "LEASE-4", "LEASE-5", "LEASE-6")
def test_leases_agree_with_a_timeline_of_every_slot_under_any_interleaving():
    run_state_machine_as_test(LeaseMachine, settings=searching(80))


def one_more_free(table: LeaseTable) -> int:
    return max(0, table.slots + 1 - len(table.live))


def first_come(waiter: Waiter) -> tuple[int, int]:
    return (0, waiter.serial)


def no_refusals(table, now, reason, settings):
    return EXPIRE(table, now, reason, settings)[0], []


def as_if_unknown(table, lease_id, token):
    return LeaseOutcome.UNKNOWN


def no_memory_of_requests(table, ask, now):
    return None


def one_fence_for_all(table, ask, by, now):
    return GRANT(table, ask, replace(by, fence=7), now)


EXPIRE, GRANT = lease_table.expire, lease_table.grant
FAULTS = {
    "one slot too many": (LeaseTable, "free", property(one_more_free)),
    "priority ignored": (Waiter, "rank", property(first_come)),
    "late waiters dropped": (lease_table, "expire", no_refusals),
    "tombstones lost": (lease_table, "_outcome_of_ended", as_if_unknown),
    "retries granted anew": (lease_table, "find", no_memory_of_requests),
    "fencing number reused": (lease_table, "grant", one_fence_for_all),
    "each engine has the slots for itself": (pool_module, "_count_elsewhere", lambda turn: None),
    "what the old engine's leases came to is lost": (lease_table, "remember", lambda table, other, settings: table),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_in_the_lease_table_is_found_by_the_timeline(monkeypatch, fault):
    where, name, broken = FAULTS[fault]
    monkeypatch.setattr(where, name, broken)
    with pytest.raises((AssertionError, KeyError)):
        run_state_machine_as_test(LeaseMachine, settings=hunting(3000))
