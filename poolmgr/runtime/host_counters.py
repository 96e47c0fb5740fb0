"""What is counted across the pools of this host: fencing numbers and restarts."""

from __future__ import annotations

from collections import deque

from poolmgr.runtime.bus import EPOCH_SHIFT


class HostCounters:
    """Fencing numbers rise with the epoch, like revisions. Restarts are kept for `window` seconds, at most `limit`."""

    def __init__(self, epoch: int, window: float, limit: int) -> None:
        self.next_fence = (epoch << EPOCH_SHIFT) + 1
        self._window = window
        self._restarts: deque[float] = deque(maxlen=limit + 1)

    def fence_used(self, fence: int) -> None:
        self.next_fence = max(self.next_fence, fence + 1)

    def count_restart(self, now: float) -> None:
        self._restarts.append(now)

    def host_restarts(self, now: float) -> int:
        """Restarts within the window before `now`."""
        while self._restarts and now - self._restarts[0] >= self._window:
            self._restarts.popleft()
        return len(self._restarts)
