"""When a telemetry process that hung, died or lied is followed by the next, and how long that one may take. Pure.

The first follows at once. One that never comes to answer hangs in the driver from its first call on; there is nothing
to win in killing it soon, for the moment that call comes back all is well. So the patience grows as the delay does,
and a driver that hangs for an hour costs a dozen processes.
"""

from __future__ import annotations

PATIENCE_SECONDS = 30.0  # eight cards without persistence take that long to initialise
PATIENCE_MAX_SECONDS = 600.0
DELAY_SECONDS = 1.0
DELAY_MAX_SECONDS = 300.0
STABLE_SECONDS = 60.0  # of samples, after which the next failure is the first again
MAX_UNDEAD = 3  # killed and still there: stuck in the kernel


class Replacing:
    def __init__(self) -> None:
        self._failures = 0
        self._flowing_since: float | None = None

    @property
    def failures(self) -> int:
        """In a row."""
        return self._failures

    @property
    def patience(self) -> float:
        """Seconds from the start of a process to its first answer from the driver."""
        doublings = min(self._failures, 10)
        return float(min(PATIENCE_SECONDS * 2 ** max(0, doublings - 1), PATIENCE_MAX_SECONDS))

    def flows(self, now: float) -> None:
        """The process answers and, where there are devices, samples."""
        if self._flowing_since is None:
            self._flowing_since = now
        elif now - self._flowing_since >= STABLE_SECONDS:
            self._failures = 0

    def failed(self, now: float) -> float:
        """Counts a failure; seconds until the next start."""
        if self._flowing_since is not None and now - self._flowing_since >= STABLE_SECONDS:
            self._failures = 0
        self._flowing_since = None
        self._failures += 1
        if self._failures == 1:
            return 0.0
        return float(min(DELAY_SECONDS * 2 ** min(self._failures - 2, 20), DELAY_MAX_SECONDS))
