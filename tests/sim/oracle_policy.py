"""Restarts, judged by what the kernel saw: how often and how soon engines died and were started again.

Lower bounds only, and none where the daemon had no chance to know or to keep what happened: a failure counts here
from when the daemon was told of it, and once it has lived for a second after that with a store that could write.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING

from poolmgr.model.engine import LaunchSpec
from poolmgr.model.pool import PoolState, RestartMode
from tests.sim.kernel import Process

if TYPE_CHECKING:
    from tests.sim.oracle import Oracle

CERTAIN_AFTER = 1.0
HOST_FAULT_SECONDS = 31.0
NEARLY = 0.95


@dataclass
class Past:
    """What one pool's engines did. `streak`: failures in a row that the daemon must know of. True times, of failures
    when the daemon was told of them."""

    streak: int = 0
    streak_at_most: int = 0
    counted: int = 0  # failures whose backoff the next start owes
    failed_at: float = -inf
    died_at: float = -inf  # the last failure that a daemon saw, which it may not have made durable yet
    died_under: object = None
    open_until: float = -inf
    timeout: float = 0.0
    trial: bool = False
    failures: deque[float] = field(default_factory=lambda: deque(maxlen=32))
    starts: deque[float] = field(default_factory=lambda: deque(maxlen=64))
    asked: float = -inf
    forgiven: float = -inf


class PolicyOracle:
    def __init__(self, oracle: Oracle) -> None:
        self._oracle = oracle
        self._pasts: dict[str, Past] = {}
        self._deaths: deque[tuple[float, str]] = deque(maxlen=128)

    def past(self, pool_id: str) -> Past:
        return self._pasts.setdefault(pool_id, Past())

    @property
    def _now(self) -> float:
        return self._oracle.now

    # What forgives.

    def forgiven(self, pool_id: str) -> None:
        """A reset, an edit: the policy starts anew."""
        self._pasts[pool_id] = Past(asked=self._now, forgiven=self._now)

    def asked_to_start(self, pool_id: str) -> None:
        self.past(pool_id).asked = self._now

    def booted(self) -> None:
        for pool_id in list(self._pasts):
            self.forgiven(pool_id)

    database_lost = booted

    def daemon_lost(self) -> None:
        """What had not become certain is forgotten: see `_certain`."""

    # What happens.

    def engine_ended(self, process: Process) -> None:
        if process.told:
            self._served(process)
            return
        if _exited_well(process):
            self._oracle.pools.exited_well(process.pool_id)
        if self._fails(process):
            self.past(process.pool_id).streak_at_most += 1

    def exit_told(self, process: Process) -> None:
        """Where its shim is gone the daemon hears of it late, and may have done something else about it meanwhile."""
        if process.told:
            return
        now, pool_id, daemon = self._now, process.pool_id, self._oracle.world.daemon
        self._deaths.append((now, pool_id))
        if _exited_well(process):
            self._oracle.pools.exited_well(pool_id)
        if daemon is not None and daemon.serving and self._fails(process) and not _tells_why(process):
            lived = process.ended - process.started - process.script.load
            healthy = max(0.0, lived) if process.was_ready(now) else 0.0
            past = self.past(pool_id)
            past.died_at, past.died_under = now, daemon
            self._oracle.world.timeline.after(CERTAIN_AFTER, self._certain, daemon, pool_id, past, now, healthy)

    def _fails(self, process: Process) -> bool:
        """Whether this end, which nobody asked for, counts against its pool."""
        spec = self._oracle.pools.truth(process.pool_id).spec
        mode = spec.restart if spec is not None else None
        if _exited_well(process) and mode is not RestartMode.ALWAYS:
            return False
        return mode is not RestartMode.NEVER and not self._of_no_account(process)

    def _served(self, process: Process) -> None:
        """It was asked to end: no failure. Where it had served for long enough by then, the run of failures is over."""
        past, settings = self.past(process.pool_id), self._oracle.pools.truth(process.pool_id).settings()
        if self._now - process.started - process.script.load >= settings.stable_after * 0.8:
            past.streak, past.trial, past.open_until, past.timeout = 0, False, -inf, 0.0

    def _of_no_account(self, process: Process) -> bool:
        """Whether this engine was on its way out, or on trial in a reload: its end is charged to nobody."""
        if self._oracle.pools.in_doubt(process.engine_id):  # nobody watches it
            return True
        view = self._oracle.stream.views.get(process.pool_id)
        return view is None or bool(view.reload_phase) or view.state in (PoolState.DRAINING, PoolState.STOPPING)

    def _certain(self, daemon: object, pool_id: str, past: Past, at: float, healthy: float) -> None:
        """The daemon that saw it has lived on for a while, and could have made it durable."""
        oracle = self._oracle
        if oracle.world.daemon is not daemon or oracle.store_ill_until >= at or self._pasts.get(pool_id) is not past:
            return
        settings = oracle.pools.truth(pool_id).settings()
        if healthy >= settings.stable_after * 0.8:
            past.streak, past.trial, past.open_until, past.timeout = 0, False, -inf, 0.0
        if healthy >= settings.failure_decay * 0.8:
            past.counted = 0
        past.streak += 1
        past.counted += 1
        past.failed_at = at
        past.failures.append(at)
        if past.trial:
            past.timeout = min(past.timeout * 2, max(settings.breaker_timeout_max, settings.breaker_timeout))
        elif past.streak >= settings.breaker_threshold:
            past.timeout = settings.breaker_timeout
        else:
            return
        past.trial, past.open_until = False, at + past.timeout

    def _host_fault(self, pool_id: str, past: Past) -> bool:
        """Whether some of these failures, or the last that is not certain, may be charged to nobody (RST-6)."""
        return any(
            other != pool_id and any(abs(t - at) <= HOST_FAULT_SECONDS for at in (*past.failures, past.died_at))
            for t, other in self._deaths
        )

    # Starts.

    def start_asked(self, launch: LaunchSpec) -> None:
        past, now = self.past(launch.pool_id), self._now
        settings = self._oracle.pools.truth(launch.pool_id).settings()
        if not self._host_fault(launch.pool_id, past):
            self._check_breaker(launch.pool_id, past)
            self._check_backoff(launch.pool_id, past, settings)
        if past.open_until > -inf and now >= past.open_until * NEARLY:
            past.trial = True
        past.starts.append(now)
        recent = sum(1 for t in past.starts if now - t < settings.restart_window)
        asked = sum(1 for t in (past.asked, past.forgiven) if now - t < settings.restart_window)
        if recent > settings.restart_rate_limit + 2 and not asked:
            self._oracle.violate(
                "RST-4", f"pool {launch.pool_id} is started {recent} times within {settings.restart_window:g} s"
            )

    def _check_breaker(self, pool_id: str, past: Past) -> None:
        if past.open_until - self._now > 0.05:
            self._oracle.violate(
                "RST-2",
                f"pool {pool_id} failed {past.streak} times in a row and is started "
                f"{past.open_until - self._now:.1f} s before its breaker's time",
            )

    def _check_backoff(self, pool_id: str, past: Past, settings) -> None:
        seen = past.died_at > past.failed_at and past.died_under is self._oracle.world.daemon
        failed_at, counted = (past.died_at, past.counted + 1) if seen else (past.failed_at, past.counted)
        truth = self._oracle.pools.truth(pool_id)
        if truth.pending:  # asked before the failure, done after it
            return
        asked = max(past.asked, truth.last_start)
        if (
            counted == 0 or asked >= failed_at or past.open_until > -inf
        ):  # a breaker's trial comes at the breaker's time
            return
        least = min(settings.backoff_max, settings.backoff_initial * 2.0 ** min(counted - 1, 32))
        least = max(least * (1 - settings.backoff_jitter), settings.backoff_floor) - 0.01
        if past.streak_at_most >= settings.breaker_threshold:  # it may be the trial of a breaker that opened
            least = min(least, settings.breaker_timeout * NEARLY)
        if self._now - failed_at < least:
            self._oracle.violate(
                "RST-1",
                f"pool {pool_id} is started {self._now - failed_at:.3f} s after failure {counted}, "
                f"its backoff is {least:.3f} s at least",
            )


def _tells_why(process: Process) -> bool:
    """What keeps it from starting: it is parked for that, not tried again, and so no failure of a run (RST-8)."""
    return bool(process.script.log) and not process.was_ready(process.ended)


def _exited_well(process: Process) -> bool:
    """Of itself, with code 0, and not before it was ready; where that is a matter of moments it may have been."""
    lived = process.ended - process.started
    return process.exit_code == 0 and lived > process.script.load - 1.0
