"""What a pool remembers over the death of its daemon (RST-8, DRN-3): intents, counts and what was decided.

What runs is not in it: that is observed. A command is in it before anything is done for it; what follows from facts is
written behind them, because whoever dies in between finds the same facts again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from poolmgr.core import restart
from poolmgr.core.restart import RestartPolicy
from poolmgr.model.pool import PoolError, PoolSpec, PoolState

MAX_GENERATIONS = 20  # so many are kept (DRN-4)


@dataclass(frozen=True, slots=True)
class RolledBack:
    """A spec that a reload went to and came back from, and how often (DRN-3)."""

    generation: int
    spec: PoolSpec
    times: int


@dataclass(frozen=True, slots=True)
class Judged:
    """The run of an engine whose end has been judged: a later daemon that finds it dead does not count it again."""

    engine_id: str = ""
    pid: int = 0
    ticks: int = 0


@dataclass(frozen=True, slots=True)
class RegisteredEngine:
    """What an engine that somebody else runs told of itself, besides what its pool's spec holds (ENG-1).

    `endpoint`: host:port. `pid`: 0 when it runs on another host. `ttl`: seconds without a heartbeat until it is LOST,
    None for the daemon's own. `ready`, `draining`: as its heartbeats said last.
    """

    engine_id: str = ""
    endpoint: str = ""
    version: str = ""
    pid: int = 0
    ttl: float | None = None
    ready: bool = True
    draining: bool = False


@dataclass(frozen=True, slots=True)
class Memo:
    """`generation`: the one that is the pool's; it changes with a commit. `newest`: the last number that was used.

    `wanted`: somebody asked for an engine, and nobody has asked for its end since. `resting`: BACKOFF or PARKED, until
    `resume_at`. `target`: the generation of a reload before its commit, 0 for none. `retiring`: the engine that a
    commit has left behind. `good`: generations that were the pool's, the last one last. `registered`: the engine of a
    pool that is of one which registered itself. Times in boot-time seconds.
    """

    generation: int
    newest: int
    wanted: bool = False
    deleting: bool = False
    resting: PoolState | None = None
    reason: str = ""
    resume_at: float | None = None
    drain_until: float | None = None
    policy: RestartPolicy = RestartPolicy()
    restart_count: int = 0
    last_error: PoolError | None = None
    judged: Judged = Judged()
    target: int = 0
    retiring: str = ""
    good: tuple[int, ...] = ()
    rolled_back: tuple[RolledBack, ...] = ()
    registered: RegisteredEngine | None = None


def shifted(memo: Memo, seconds: float) -> Memo:
    """For a boot whose clock shows `seconds` more: what was left of a time then is left of it now."""

    def moved(at: float | None) -> float | None:
        return None if at is None else at + seconds

    return replace(
        memo,
        resume_at=moved(memo.resume_at),
        drain_until=moved(memo.drain_until),
        policy=restart.shifted(memo.policy, seconds),
    )
