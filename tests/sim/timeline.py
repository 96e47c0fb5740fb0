"""Virtual time: one heap of what will happen, and an event loop for each life of the daemon.

Nothing here looks at a real clock. Whatever is due at one instant happens in the order in which it was asked for.
"""

from __future__ import annotations

import asyncio
import heapq
from asyncio import events
from collections import deque
from collections.abc import Callable

MAX_CALLBACKS_AT_ONCE = 20_000  # of one daemon at one instant: more is a loop that never waits


class DaemonKilled(BaseException):
    """Raised inside the daemon at the point where it dies; nothing that it does afterwards reaches anybody."""


class Livelock(Exception):
    """The daemon goes on for ever without time passing."""


class Timer:
    """Something that will be called at one time, unless it is cancelled."""

    __slots__ = ("_args", "_callback")

    def __init__(self, callback: Callable, args: tuple) -> None:
        self._callback: Callable | None = callback
        self._args = args

    def cancel(self) -> None:
        self._callback = None

    @property
    def cancelled(self) -> bool:
        return self._callback is None

    def run(self) -> None:
        callback, self._callback = self._callback, None
        if callback is not None:
            callback(*self._args)


class Timeline:
    """True time in seconds since the world began, which no clock in the world shows."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Timer]] = []
        self._serial = 0

    def at(self, when: float, callback: Callable, *args: object) -> Timer:
        timer = Timer(callback, args)
        self._serial += 1
        heapq.heappush(self._heap, (max(when, self.now), self._serial, timer))
        return timer

    def after(self, delay: float, callback: Callable, *args: object) -> Timer:
        return self.at(self.now + delay, callback, *args)

    def run_next(self, until: float) -> bool:
        """Does what is due next, if that is not after `until`; whether there was something."""
        heap = self._heap
        while heap and heap[0][0] <= until:
            when, _, timer = heapq.heappop(heap)
            if not timer.cancelled:
                self.now = when
                timer.run()
                return True
        self.now = until
        return False


class SimTask(asyncio.Task):
    """Its hash is its number, so that sets of tasks have the same order in every run."""

    def __init__(self, coro, *, loop, name, serial: int) -> None:
        self._serial = serial
        super().__init__(coro, loop=loop, name=name)

    def __hash__(self) -> int:
        return self._serial


class SimFuture(asyncio.Future):
    def __init__(self, *, loop, serial: int) -> None:
        self._serial = serial
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self._serial


class _Handle:
    __slots__ = ("args", "callback")

    def __init__(self, callback: Callable, args: tuple) -> None:
        self.callback: Callable | None = callback
        self.args = args

    def cancel(self) -> None:
        self.callback = None

    def cancelled(self) -> bool:
        return self.callback is None


class SimLoop(asyncio.AbstractEventLoop):
    """The event loop of one daemon. `on_error` hears of what asyncio would log; `stopped` ends it for good."""

    def __init__(self, timeline: Timeline, on_error: Callable[[dict], None]) -> None:
        self._timeline = timeline
        self._on_error = on_error
        self._ready: deque[_Handle] = deque()
        self._serial = 0
        self.tasks: list[SimTask] = []
        self.callbacks = 0
        self.stopped = False

    # What asyncio asks of a loop.

    def time(self) -> float:
        return self._timeline.now

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return not self.stopped

    def is_closed(self) -> bool:
        return self.stopped

    def call_soon(self, callback, *args, context=None) -> _Handle:
        handle = _Handle(callback, args)
        if not self.stopped:
            self._ready.append(handle)
        return handle

    call_soon_threadsafe = call_soon

    def call_later(self, delay, callback, *args, context=None) -> Timer:
        return self._timeline.after(delay, self._due, callback, args)

    def call_at(self, when, callback, *args, context=None) -> Timer:
        return self._timeline.at(when, self._due, callback, args)

    def _due(self, callback, args) -> None:
        self.call_soon(callback, *args)

    def create_future(self) -> SimFuture:
        self._serial += 1
        return SimFuture(loop=self, serial=self._serial)

    def create_task(self, coro, *, name=None, context=None) -> SimTask:
        self._serial += 1
        task = SimTask(coro, loop=self, name=name, serial=self._serial)
        self.tasks.append(task)
        if len(self.tasks) > 256:
            self.tasks = [t for t in self.tasks if not t.done()]
        return task

    def call_exception_handler(self, context: dict) -> None:
        if not self.stopped:
            self._on_error(context)

    # What the world does with it.

    def run_ready(self) -> None:
        """Runs what is ready, and what that makes ready, at this instant."""
        ready, count = self._ready, 0
        events._set_running_loop(self)
        try:
            while ready and not self.stopped:
                handle = ready.popleft()
                count += 1
                if count > MAX_CALLBACKS_AT_ONCE:
                    raise Livelock(f"{count} callbacks at one instant; now {handle.callback}")
                if handle.callback is not None:
                    self._run(handle)
        finally:
            events._set_running_loop(None)
            self.callbacks += count

    def _run(self, handle: _Handle) -> None:
        try:
            handle.callback(*handle.args)
        except DaemonKilled:
            pass
        except Exception as error:  # noqa: BLE001 - as asyncio does, to hand it to who judges
            self.call_exception_handler({"message": f"callback {handle.callback} failed", "exception": error})

    def stop_for_good(self) -> None:
        """The process is gone. Its coroutines are closed here, now, so that no collector chooses the moment."""
        self.stopped = True
        self._ready.clear()
        for task in self.tasks:
            if not task.done():
                task._log_destroy_pending = False
        self._graveyard, self.tasks = self.tasks, []

    def bury(self) -> None:
        """Closes the coroutines that never ended. What they still try to do is refused by the ports."""
        for task in self._graveyard:
            if not task.done():
                coro = task.get_coro()
                try:
                    coro.close()
                except (RuntimeError, DaemonKilled, ValueError):
                    pass  # it waits once more, or it is the one that runs just now
