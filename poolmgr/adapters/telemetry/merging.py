"""An XID that the driver and the kernel's log both tell of is one event: the log's, for that names the process."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from poolmgr.model.device import DriverEvent, DriverEventKind
from poolmgr.ports import Clock, Timer

WAIT_SECONDS = 0.1  # for the log, which is written before the driver tells
SAME_SECONDS = 2.0
MAX_REMEMBERED = 256


class Merger:
    """`tell` gets each event once. The driver's XIDs wait for the log only while `has_log`."""

    def __init__(self, clock: Clock, tell: Callable[[DriverEvent], object]) -> None:
        self._clock = clock
        self._tell = tell
        self.has_log = False
        self._waiting: list[tuple[DriverEvent, Timer]] = []
        self._logged: deque[tuple[float, DriverEvent]] = deque(maxlen=MAX_REMEMBERED)

    def add(self, event: DriverEvent) -> None:
        if event.kind is not DriverEventKind.XID or not self.has_log:
            self._tell(event)
        elif event.source == "kernel-log":
            self._from_log(event)
        else:
            self._from_driver(event)

    def close(self) -> None:
        for _, timer in self._waiting:
            timer.cancel()
        self._waiting.clear()

    def _from_log(self, event: DriverEvent) -> None:
        twin = next((pair for pair in self._waiting if _same(pair[0], event)), None)
        if twin is None:
            self._logged.append((self._clock.now(), event))
        else:
            twin[1].cancel()
            self._waiting.remove(twin)
        self._tell(event)

    def _from_driver(self, event: DriverEvent) -> None:
        now = self._clock.now()
        twin = next((pair for pair in self._logged if now - pair[0] <= SAME_SECONDS and _same(pair[1], event)), None)
        if twin is not None:
            self._logged.remove(twin)
        elif len(self._waiting) >= MAX_REMEMBERED:
            self._tell(event)
        else:
            timer = self._clock.call_at(now + WAIT_SECONDS, lambda: self._give_up(event))
            self._waiting.append((event, timer))

    def _give_up(self, event: DriverEvent) -> None:
        self._waiting = [pair for pair in self._waiting if pair[0] is not event]
        self._tell(event)


def _same(one: DriverEvent, other: DriverEvent) -> bool:
    """The log may name an address that no known device has."""
    return one.code == other.code and (one.device_id == other.device_id or None in (one.device_id, other.device_id))
