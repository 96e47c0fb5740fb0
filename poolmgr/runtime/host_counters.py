"""What is counted across the pools of this host: fencing numbers, restarts, deaths."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from poolmgr.errors import EnvironmentFault, Reason
from poolmgr.model.settings import SupervisionSettings

HOST_FAULT_QUIET = 10  # windows in which no second host fault is seen: what goes on dying dies for its own reasons


@dataclass(frozen=True, slots=True)
class Death:
    at: float
    pool_id: str


class HostCounters:
    """Fencing numbers come out of `fences`, which are durable; `more` is called when half of them are used."""

    def __init__(self, fences: range, settings: SupervisionSettings, more: Callable[[], None]) -> None:
        self.next_fence = fences.start
        self._fences = fences
        self._more = more
        self._asked = False
        self._settings = settings
        self._restarts: deque[float] = deque(maxlen=settings.restart_rate_limit + 1)
        self._deaths: dict[str, Death] = {}
        self._fault_at: float | None = None
        self._excused: set[str] = set()  # by this fault, once each: who dies again does so for its own reasons

    # Fencing numbers.

    def fence_used(self, fence: int) -> None:
        self.next_fence = max(self.next_fence, fence + 1)
        if not self._asked and self._fences.stop - self.next_fence < len(self._fences) // 2:
            self._asked = True
            self._more()

    def add_fences(self, fences: range | None) -> None:
        """The next block; None when it could not be made durable, to be asked for again."""
        self._asked = False
        if fences is not None:
            # The rest of the old block is given up: two ranges are not worth it, numbers are not scarce.
            self._fences, self.next_fence = fences, fences.start

    def check_fences(self) -> None:
        """Raises EnvironmentFault when a number was given that is not durable."""
        if self.next_fence > self._fences.stop:
            raise EnvironmentFault(Reason.STORE_UNAVAILABLE, "no durable fencing numbers are left")

    # Restarts and deaths. Times in boot-time seconds.

    def count_restart(self, now: float) -> None:
        self._restarts.append(now)

    def host_restarts(self, now: float) -> int:
        """Restarts within the window before `now`."""
        while self._restarts and now - self._restarts[0] >= self._settings.restart_window:
            self._restarts.popleft()
        return len(self._restarts)

    def count_death(self, now: float, pool_id: str, alive: int) -> Sequence[str]:
        """The pools whose engines a fault of the host has taken, when this death makes it one (RST-6); else none.

        `alive`: engines of this host that still run.
        """
        s = self._settings
        self._deaths = {p: d for p, d in self._deaths.items() if now - d.at < s.host_fault_window}
        self._deaths[pool_id] = Death(now, pool_id)
        dead = len(self._deaths)
        if dead < max(s.host_fault_engines, (dead + alive) / 2):
            return ()
        if self._fault_at is not None and now - self._fault_at >= s.host_fault_window:
            if now - self._fault_at < s.host_fault_window * HOST_FAULT_QUIET:
                return ()
            self._fault_at = None
        if self._fault_at is None:
            self._fault_at = now
            self._excused.clear()
        taken = tuple(pool_id for pool_id in self._deaths if pool_id not in self._excused)
        self._excused.update(taken)
        return taken
