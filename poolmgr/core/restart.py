"""When a failed engine may start again: backoff, breakers, rate, slow loops (RST-1, 2, 4, 5). One policy object.

Two counts with different lives. `failures` sets the backoff and fades by one per 300 s of healthy running, so that
there is no cliff. `consecutive` feeds the breakers and falls to zero after 60 s of stable running.

Two breakers with the same rule: the pool's, and that of its generation. An edited spec gets a fresh breaker of its
own and one trial from the pool's; so a bad config and a bad pool can be told apart (RST-3 adds the GPUs').
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from poolmgr.model.engine import CrashCause
from poolmgr.model.pool import BreakerState
from poolmgr.model.settings import SupervisionSettings

CUDA_CAUSES = frozenset({CrashCause.CUDA_ERROR, CrashCause.GPU_OOM, CrashCause.DEVICE_LOST})
OOM_CAUSES = frozenset({CrashCause.HOST_OOM, CrashCause.GPU_OOM})


@dataclass(frozen=True, slots=True)
class Breaker:
    """CLOSED, OPEN until `open_until` (boot-time seconds), or HALF_OPEN with one trial. `timeout`: seconds of OPEN."""

    state: BreakerState = BreakerState.CLOSED
    open_until: float = 0.0
    timeout: float = 0.0

    def opened(self, now: float, settings: SupervisionSettings) -> Breaker:
        """OPEN again; a breaker that failed its trial stays open twice as long, at most an hour."""
        if self.state is BreakerState.OPEN:
            return self
        doubled = self.timeout * 2 if self.state is BreakerState.HALF_OPEN else 0.0
        longest = max(settings.breaker_timeout_max, settings.breaker_timeout)
        timeout = min(max(doubled, settings.breaker_timeout), longest)
        return Breaker(BreakerState.OPEN, now + timeout, timeout)

    def half_opened(self) -> Breaker:
        return replace(self, state=BreakerState.HALF_OPEN) if self.state is BreakerState.OPEN else self


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """What the past says about the next start. Times in boot-time seconds."""

    failures: int = 0
    consecutive: int = 0
    healthy_since: float | None = None
    pool: Breaker = Breaker()
    generation: Breaker = Breaker()
    restarts: tuple[float, ...] = ()
    ooms: tuple[float, ...] = ()
    history: tuple[float, ...] = ()  # counted failures, for the loops that no backoff notices (RST-5)

    @property
    def breaker_state(self) -> BreakerState:
        """OPEN if either is, else HALF_OPEN if either is."""
        pool, generation = self.pool.state, self.generation.state
        if pool is generation:
            return pool
        return BreakerState.OPEN if BreakerState.OPEN in (pool, generation) else BreakerState.HALF_OPEN

    @property
    def open_until(self) -> float:
        """When an open breaker lets its trial through."""
        return max(b.open_until for b in (self.pool, self.generation) if b.state is BreakerState.OPEN)


@dataclass(frozen=True, slots=True)
class Decision:
    """After a failure: start at `resume_at` (boot-time seconds); `opened`: by way of an open breaker's trial.

    `opened_by` says what opened it just now: "failures", "trial", "pool_rate", "host_rate", or nothing. `flapping`: so
    many failures within the flapping window, 0 below the limit. `parked`: no start before somebody asks for one.
    """

    policy: RestartPolicy
    resume_at: float
    backoff: float
    opened: bool
    opened_by: str = ""
    rate: int = 0
    oom_storm: bool = False
    flapping: int = 0
    parked: bool = False


def shifted(policy: RestartPolicy, seconds: float) -> RestartPolicy:
    """The same policy on a clock that shows `seconds` more: of another boot. No engine has lived through that."""

    def moved(times: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(t + seconds for t in times)

    return RestartPolicy(
        policy.failures,
        policy.consecutive,
        None,
        replace(policy.pool, open_until=policy.pool.open_until + seconds),
        replace(policy.generation, open_until=policy.generation.open_until + seconds),
        moved(policy.restarts),
        moved(policy.ooms),
        moved(policy.history),
    )


def became_healthy(policy: RestartPolicy, now: float) -> RestartPolicy:
    return replace(policy, healthy_since=now)


def stable_at(policy: RestartPolicy, settings: SupervisionSettings) -> float | None:
    """When the running engine will count as stable; None when that changes nothing."""
    if policy.healthy_since is None or not (policy.consecutive or policy.breaker_state is BreakerState.HALF_OPEN):
        return None
    return policy.healthy_since + settings.stable_after


def became_stable(policy: RestartPolicy) -> RestartPolicy:
    """60 s without a failure: the run of failures is over, a trial has passed."""
    return replace(policy, consecutive=0, pool=Breaker(), generation=Breaker())


def ended_well(policy: RestartPolicy, now: float, settings: SupervisionSettings) -> RestartPolicy:
    """The engine ended by our own doing: nothing is counted, health so far is credited."""
    return replace(policy, failures=_faded(policy, now, settings), healthy_since=None)


def _faded(policy: RestartPolicy, now: float, settings: SupervisionSettings) -> int:
    if policy.healthy_since is None:
        return policy.failures
    return max(0, policy.failures - int((now - policy.healthy_since) // settings.failure_decay))


def backoff_delay(failures: int, cause: str, jitter: float, settings: SupervisionSettings) -> float:
    """Seconds before the next start after `failures` ≥ 1 failures; `jitter` uniform in [0, 1) (RST-1)."""
    doublings = min(failures - 1, 32)
    delay = settings.backoff_initial * 2.0**doublings * (2 if cause in CUDA_CAUSES else 1)
    if delay >= settings.backoff_max:
        delay = settings.backoff_max * (1 - settings.backoff_jitter * jitter)
    else:
        delay = min(delay * (1 + settings.backoff_jitter * (2 * jitter - 1)), settings.backoff_max)
    return max(delay, settings.backoff_floor)


def failed(
    policy: RestartPolicy,
    cause: str,
    now: float,
    jitter: float,
    host_restarts: int,
    settings: SupervisionSettings,
    host_limit: int | None = None,
) -> Decision:
    """Counts one failure and decides the next start. `host_restarts`: restarts of this host within the window.

    `host_limit`: how many of those are allowed, which no pool overrides for itself; None means as many as of the pool.
    """
    failures = _faded(policy, now, settings) + 1
    consecutive = policy.consecutive + 1
    recent = (*(t for t in policy.restarts if now - t < settings.restart_window), now)[-_kept(settings) :]
    ooms = tuple(t for t in policy.ooms if now - t < settings.restart_window)
    if cause in OOM_CAUSES:
        ooms = (*ooms, now)[-settings.oom_storm_limit :]
    host_limit = settings.restart_rate_limit if host_limit is None else host_limit
    opened_by = _opens(policy, consecutive, len(recent), host_restarts + 1 > host_limit, settings)
    history = (*(t for t in policy.history if now - t < settings.slow_loop_window), now)[-settings.slow_loop_limit :]
    flapping = sum(1 for t in history if now - t < settings.flapping_window)
    policy = replace(
        policy, failures=failures, consecutive=consecutive, healthy_since=None, restarts=recent, ooms=ooms,
        history=history,
    )  # fmt: skip
    if opened_by:
        policy = replace(
            policy, pool=policy.pool.opened(now, settings), generation=policy.generation.opened(now, settings)
        )
    opened = policy.breaker_state is BreakerState.OPEN
    delay = backoff_delay(failures, cause, jitter, settings)
    return Decision(
        policy,
        resume_at=policy.open_until if opened else now + delay,
        backoff=delay,
        opened=opened,
        opened_by=opened_by,
        rate=len(recent),
        oom_storm=cause in OOM_CAUSES and len(ooms) >= settings.oom_storm_limit,
        flapping=flapping if flapping >= settings.flapping_limit else 0,
        parked=len(history) >= settings.slow_loop_limit,
    )


def _kept(settings: SupervisionSettings) -> int:
    return settings.restart_rate_limit + 1


def _opens(
    policy: RestartPolicy, consecutive: int, pool_rate: int, host_storm: bool, settings: SupervisionSettings
) -> str:
    if policy.breaker_state is BreakerState.HALF_OPEN:
        return "trial"
    if consecutive >= settings.breaker_threshold:
        return "failures"
    if pool_rate > settings.restart_rate_limit:
        return "pool_rate"
    return "host_rate" if host_storm else ""


def trial(policy: RestartPolicy) -> RestartPolicy:
    """The open time is over: every open breaker lets exactly this one start through."""
    return replace(policy, pool=policy.pool.half_opened(), generation=policy.generation.half_opened())


def new_generation(policy: RestartPolicy) -> RestartPolicy:
    """An edited spec: its own breaker starts closed, an open pool breaker grants it a trial (RST-7)."""
    return replace(policy, failures=0, generation=Breaker(), pool=policy.pool.half_opened())


def refunded(policy: RestartPolicy, now: float, settings: SupervisionSettings) -> RestartPolicy:
    """Without the failures of the host's last moments, which were not this pool's (RST-6)."""
    since = now - settings.host_fault_window
    charged = sum(1 for t in policy.history if t > since)

    def before(breaker: Breaker) -> Breaker:
        if breaker.state is not BreakerState.OPEN or breaker.open_until - breaker.timeout <= since:
            return breaker
        return Breaker() if breaker.timeout <= settings.breaker_timeout else replace(breaker, open_until=now)

    return replace(
        policy,
        failures=max(0, policy.failures - charged),
        consecutive=max(0, policy.consecutive - charged),
        pool=before(policy.pool),
        generation=before(policy.generation),
        restarts=tuple(t for t in policy.restarts if t <= since),
        ooms=tuple(t for t in policy.ooms if t <= since),
        history=tuple(t for t in policy.history if t <= since),
    )


def reset(policy: RestartPolicy) -> RestartPolicy:
    """An operator's word: everything is forgotten but the restart times, which protect the host."""
    return RestartPolicy(restarts=policy.restarts, healthy_since=policy.healthy_since)
