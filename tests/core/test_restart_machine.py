"""The restart policy against a model that knows nothing but the list of all that happened."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from poolmgr.core import restart
from poolmgr.core.restart import RestartPolicy
from poolmgr.model.engine import CrashCause
from poolmgr.model.pool import BreakerState
from tests.core.helpers import (
    CUDA_CAUSES,
    JITTER,
    SETTINGS,
    backoff_bounds,
    hunting,
    searching,
)

# The policy against its own history.


@dataclass(frozen=True)
class Past:
    """One thing that happened."""

    what: str
    at: float
    cause: str = ""
    host: int = 0


class History:
    """Knows only the list of what happened, and works everything out from it anew each time it is asked."""

    def __init__(self) -> None:
        self.past: list[Past] = []

    def add(self, what: str, at: float, cause: str = "", host: int = 0) -> None:
        self.past.append(Past(what, at, cause, host))

    def _runs(self, upto: int) -> list[tuple[Past, float]]:
        """(what ended or went through a healthy run, how long it had been healthy) for each entry before `upto`."""
        healthy, out = None, []
        for entry in self.past[:upto]:
            out.append((entry, entry.at - healthy if healthy is not None else 0.0))
            if entry.what == "healthy":
                healthy = entry.at
            elif entry.what in ("failed", "ended"):
                healthy = None
        return out

    def failures(self, upto: int) -> int:
        count = 0
        for entry, healthy in self._runs(upto):
            if entry.what in ("failed", "ended"):
                count = max(0, count - int(healthy / 300.0)) + (entry.what == "failed")
            elif entry.what in ("reset", "edit"):
                count = 0
        return count

    def in_a_row(self, upto: int) -> int:
        """Failures back to the last reset or stable run."""
        count = 0
        for entry, healthy in reversed(self._runs(upto)):
            if entry.what == "reset" or entry.what == "stable":
                return count
            count += entry.what == "failed"
            if healthy >= 60.0:
                return count
        return count

    def rate(self, upto: int) -> int:
        last = self.past[upto - 1].at
        return sum(1 for e in self.past[:upto] if e.what == "failed" and last - e.at < 60.0)

    def breaker(self) -> tuple[BreakerState, float]:
        """The state after all that happened, and how long the breaker was last opened for."""
        state, timeout = BreakerState.CLOSED, 0.0
        for i, (entry, healthy) in enumerate(self._runs(len(self.past)), start=1):
            passed = entry.what in ("failed", "ended") and healthy >= 60.0
            if passed or entry.what in ("stable", "reset"):
                state, timeout = BreakerState.CLOSED, 0.0
            if entry.what in ("trial", "edit") and state is BreakerState.OPEN:
                state = BreakerState.HALF_OPEN
            if entry.what == "failed":
                trial = state is BreakerState.HALF_OPEN
                if trial or self.in_a_row(i) >= 5 or self.rate(i) > 10 or entry.host + 1 > 10:
                    state, timeout = BreakerState.OPEN, min(3600.0, 2 * timeout if trial else 300.0)
        return state, timeout


class PolicyMachine(RuleBasedStateMachine):
    """Lives of an engine at random, told to the policy and to the history alike."""

    def __init__(self) -> None:
        super().__init__()
        self.policy, self.history, self.now = RestartPolicy(), History(), 1000.0
        self.running = self.waiting = False
        self.resume_at = 0.0

    @rule(seconds=st.one_of(st.floats(0.01, 5), st.floats(50, 70), st.floats(200, 2000)))
    def pass_time(self, seconds):
        self.now += seconds
        due = restart.stable_at(self.policy, SETTINGS)
        if self.running and due is not None and due <= self.now:
            self.policy = restart.became_stable(self.policy)
            self.history.add("stable", self.now)

    @precondition(lambda self: not self.running)
    @rule(patient=st.booleans())
    def run(self, patient):
        if self.waiting:
            self.now = max(self.now, self.resume_at) + (10.0 if patient else 0.0)
            if self.policy.breaker_state is BreakerState.OPEN:
                self.policy = restart.trial(self.policy)
                self.history.add("trial", self.now)
        self.policy = restart.became_healthy(self.policy, self.now)
        self.history.add("healthy", self.now)
        self.running, self.waiting = True, False

    @precondition(lambda self: self.running)
    @rule(cause=st.sampled_from(CrashCause), jitter=JITTER, host=st.sampled_from((0, 3, 9, 10)))
    def fail(self, cause, jitter, host):
        decision = restart.failed(self.policy, cause, self.now, jitter, host, SETTINGS)
        self.history.add("failed", self.now, cause, host)
        self.policy, self.resume_at, self.running, self.waiting = decision.policy, decision.resume_at, False, True
        state, timeout = self.history.breaker()
        delay = self.resume_at - self.now
        if state is BreakerState.OPEN:
            assert delay == pytest.approx(timeout)
        else:
            low, high = backoff_bounds(self.history.failures(len(self.history.past)), cause in CUDA_CAUSES)
            assert low - 1e-6 <= delay <= high + 1e-6
        assert decision.rate == min(self.history.rate(len(self.history.past)), 11)

    @precondition(lambda self: self.running)
    @rule(seconds=st.floats(300, 1500))
    def be_healthy_for_long(self, seconds):
        self.pass_time(seconds=seconds)

    @rule(times=st.integers(2, 12))
    @precondition(lambda self: not self.running)
    def fail_again_and_again(self, times):
        for _ in range(times):
            self.run(patient=False)
            self.fail(cause=CrashCause.SIGNAL, jitter=0.25, host=0)

    @precondition(lambda self: self.running)
    @rule()
    def stop(self):
        self.policy = restart.ended_well(self.policy, self.now, SETTINGS)
        self.history.add("ended", self.now)
        self.running = False

    @rule()
    def reset(self):
        self.policy = restart.reset(self.policy)
        self.history.add("reset", self.now)

    @rule()
    def edit(self):
        self.policy = restart.new_generation(self.policy)
        self.history.add("edit", self.now)

    @invariant()
    def agrees(self):
        upto = len(self.history.past)
        assert self.policy.breaker_state is self.history.breaker()[0]
        assert self.policy.consecutive == self.history.in_a_row(upto)
        assert self.policy.failures == self.history.failures(upto)
        assert len(self.policy.restarts) <= 11
        assert len(self.policy.ooms) <= 5


@pytest.mark.behaviour("RST-1", "RST-2", "RST-4")
def test_the_policy_agrees_with_its_whole_history_at_any_time():
    run_state_machine_as_test(PolicyMachine, settings=searching(60))


def never(*_: object) -> str:
    return ""


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("_opens", never),
        ("_faded", lambda policy, now, settings: policy.failures),
        ("trial", lambda policy: policy),
        ("became_stable", lambda policy: replace(policy, consecutive=0)),
        ("backoff_delay", lambda failures, cause, jitter, settings: 2.0 ** min(failures, 6)),
    ],
)
def test_a_policy_with_a_planted_fault_does_not_agree_with_its_history(monkeypatch, name, fault):
    monkeypatch.setattr(restart, name, fault)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(PolicyMachine, settings=hunting(3000))
