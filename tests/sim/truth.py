"""What is known of a pool from what its administrator asked for and was told."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

from poolmgr.model.pool import PoolSpec, PoolView
from poolmgr.model.settings import SupervisionSettings, override


@dataclass
class Truth:
    """What is known of one pool from what its administrator asked for and was told.

    `exists`, `want`: None where an answer is missing, so that either may hold. `specs`: by generation, as asked.
    """

    pool_id: str
    exists: bool | None = False
    want: str | None = "stop"
    wanted_since: float = 0.0
    spec: PoolSpec | None = None
    maybe_specs: list[PoolSpec] = field(default_factory=list)
    earlier: list[tuple[float, PoolSpec]] = field(default_factory=list)  # (until when it may have been in force, spec)
    launched: int = 0  # the newest generation of which an engine was started
    pending: int = 0
    last_ending: float = -1e9
    last_change: float = -1e9
    last_start: float = -1e9
    before: tuple[bool | None, str | None] = (None, None)
    drained_before: bool = False
    drained_at: float | None = None
    drains: bool = False  # as `drained_at`, also while it is changed: that ends no drain, and moves no deadline of one
    drain_ends: float = inf  # the earliest time at which a drain that was asked for may be forced
    ended_by_itself: bool = False
    ended_at: float = -1e9  # when it did so, or when the daemon was told that it had
    beside_asked: bool = False
    doubted: bool = False

    def asked_since(self, when: float) -> bool:
        """Whether something was asked for that had no answer by then."""
        return self.pending > 0 or max(self.last_ending, self.last_change, self.last_start) >= when - 1.0

    def settings(self) -> SupervisionSettings:
        spec = self.spec or (self.maybe_specs[-1] if self.maybe_specs else None)
        return override(SupervisionSettings(), spec.supervision) if spec else SupervisionSettings()

    def slots(self, since: float, published: PoolView | None) -> int:
        """The most that may be leased at once, of all specs that may have been in force at some time since then."""
        specs = [*self.maybe_specs, *(s for until, s in self.earlier if until >= since)]
        specs += [self.spec] if self.spec else []
        specs += [published.spec] if published else []
        return max((s.slots for s in specs), default=0)
