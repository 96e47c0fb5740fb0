"""Whether a telemetry process lives, hangs or lies, from what it owes and from its ring's heartbeat (TEL-7). Pure.

The writer of a ring raises its sequence and notes the boot-time clock with every sweep. It hangs when that stops, and
lies when the time goes backwards or ahead of the clock that both sides read, or moves while the sequence stays.
"""

from __future__ import annotations

AHEAD_SECONDS = 1.0  # one host, one clock: anything above the time between two reads would do
STUCK_LOOKS = 4  # in which the time moved and the sequence did not; one look can fall between the two writes
LOOKS_PER_LIMIT = 8  # so often within the limit somebody looks
LATE_LOOKS = 4


class Watch:
    """Over one process. `limit`: seconds without a sign of life after which it counts as hung, and is seen to be."""

    def __init__(self, limit: float, now: float) -> None:
        self.interval = limit / LOOKS_PER_LIMIT
        self._threshold = limit - self.interval  # the next look would be too late
        self._now = now
        self._lenient_until = now
        self.renew()

    def renew(self) -> None:
        """It writes another ring from now on."""
        self._sequence = -1
        self._at = 0.0
        self._stuck = 0
        self._moved = self._now  # a writer that never begins hangs too
        self.flowing = False
        self.hung = False

    @property
    def age(self) -> float:
        """Seconds since the last heartbeat."""
        return self._now - self._moved

    def attend(self, now: float) -> None:
        """Somebody looks, at `now`. One who was away for long is lenient: stopped, or suspended, the process may have
        been too."""
        if now - self._now > LATE_LOOKS * self.interval:
            self._lenient_until = now + self._threshold
        self._now = now

    def overdue(self, since: float) -> bool:
        """Whether what began then should have ended."""
        return self._now - since >= self._threshold and self._now >= self._lenient_until

    def look(self, sequence: int, at: float) -> str | None:
        """None while the writer lives; else what is wrong, in words. `at`: boot-time seconds."""
        lie = self._lie(sequence, at)
        if lie is not None:
            self.flowing = False
            return lie
        if sequence != self._sequence and at > self._at:
            self.flowing = sequence > 0
            self._moved = max(self._moved, min(at, self._now))
        self._sequence, self._at = sequence, at
        if self.overdue(self._moved):
            self.flowing, self.hung = False, True
            return f"no sample for {self.age:.1f} s"
        return None

    def _lie(self, sequence: int, at: float) -> str | None:
        if at > self._now + AHEAD_SECONDS:
            return f"the writer's time is {at - self._now:.1f} s ahead"
        if at < self._at:
            return f"the writer's time went back by {self._at - at:.3f} s"
        if sequence < self._sequence:
            return f"the writer's sequence went back from {self._sequence} to {sequence}"
        self._stuck = self._stuck + 1 if sequence == self._sequence and at != self._at else 0
        if self._stuck >= STUCK_LOOKS:
            return f"the writer's sequence is stuck at {sequence} while its time moves"
        return None
