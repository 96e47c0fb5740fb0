"""Calls of clients: they take time, their replies can be lost, and the daemon can die under them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.sim.world import World

NETWORK = 0.002


class Unavailable(Exception):
    """No daemon answered: whether it did what was asked is not known, unless `sent` is False."""

    def __init__(self, reached: bool) -> None:
        super().__init__("unavailable")
        self.reached = reached


class Call:
    """One call. `on_reply(result, error)` is called once, also when the daemon dies; never after `cancel`."""

    def __init__(self, world: World, kind: str, work: Callable, on_reply: Callable, pool_id: str = "") -> None:
        world.calls_made += 1
        self.number = world.calls_made
        self.kind = kind
        self.pool_id = pool_id
        self.sent = self.first_sent = world.timeline.now  # the first try's, of a request that is tried again
        self.arrived: float | None = None
        self.over = False
        self._world = world
        self._work = work
        self._on_reply = on_reply
        self._task = None
        self._answered = False
        world.calls[self.number] = self
        world.timeline.after(world.latency(NETWORK), self._arrive)

    @property
    def waits(self) -> bool:
        """Whether a daemon has it and has not answered."""
        return self.kind == "acquire" and self.arrived is not None and not self._answered and not self.over

    def _arrive(self) -> None:
        world, daemon = self._world, self._world.daemon
        if self.over:
            return
        if daemon is None or not daemon.serving:
            self._finish(None, Unavailable(reached=False))
            return
        self.arrived = world.timeline.now
        world.event(f"call-{self.kind}")
        self._task = daemon.serve(self._work, self._answer)

    def _answer(self, result: object, error: Exception | None) -> None:
        """In the daemon: it has decided."""
        world = self._world
        self._answered = True
        if world.chance(world.lost_replies):
            world.event("reply-lost")
            world.timeline.after(0.5, self._finish, None, Unavailable(reached=True))
        else:
            world.timeline.after(world.latency(NETWORK), self._finish, result, error)

    def daemon_lost(self) -> None:
        if self.arrived is not None and not self._answered and not self.over:
            self._answered = True
            self._world.timeline.after(0.01, self._finish, None, Unavailable(reached=True))

    def cancel(self, told: Callable[[], None]) -> None:
        """The client goes away; `told` is called once the daemon has heard of it."""
        if not self.over:
            self.over = True
            self._world.calls.pop(self.number, None)
            self._world.event("call-cancelled")
            daemon, task = self._world.daemon, self._task
            if task is not None and daemon is not None and not self._answered:

                def hears() -> None:
                    task.cancel()
                    told()

                self._world.later(self._world.latency(NETWORK), hears)

    def _finish(self, result: object, error: Exception | None) -> None:
        if not self.over:
            self.over = True
            self._world.calls.pop(self.number, None)
            self._on_reply(result, error)
