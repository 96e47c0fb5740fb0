"""One pool's only writer: receive, decide, publish, perform.

The inbox is drained to the end without an await, so no step ever sees another half done, nothing is locked, and a
reader of the last published pool never waits. What takes time is performed by `EngineHost` in tasks, which report
back into the inbox.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from poolmgr.core.messages import (
    Acquire,
    CountRestart,
    Effect,
    Event,
    Forget,
    ForgetWaiter,
    LeaseAnswered,
    LeaseEnded,
    Moment,
    Note,
    Release,
    Tick,
)
from poolmgr.core.pool import step
from poolmgr.core.settle import next_deadline
from poolmgr.core.state import Pool, fingerprint
from poolmgr.errors import InternalError
from poolmgr.model.lease import Lease, LeaseAsk, Refusal
from poolmgr.ports import Clock, Rng, Timer
from poolmgr.runtime.bus import Bus, Noted, PublishedPool
from poolmgr.runtime.host_counters import HostCounters

_ANSWERS = (Lease, Refusal)  # a union written in the function would be made for each call


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What every actor shares. `perform` does what takes time; `forget` removes a deleted pool."""

    clock: Clock
    rng: Rng
    bus: Bus
    counters: HostCounters
    perform: Callable[[PoolActor, Effect], None]
    forget: Callable[[PoolActor], None]


class PoolActor:
    """`pool` is the state after the last step, `published` what everybody else sees of it."""

    def __init__(self, pool: Pool, around: Surroundings) -> None:
        self.pool = pool
        self._around = around
        self._inbox: deque[Event] = deque()
        self._busy = False
        self._closed = False
        self._timer: Timer | None = None
        self._timer_at = 0.0
        self._asking: dict[str, asyncio.Future[Lease | Refusal]] = {}
        self._answer: Lease | Refusal | LeaseEnded | None = None
        self._watching: list[tuple[Callable[[Pool], bool], asyncio.Future[None]]] = []
        self._fingerprint = fingerprint(pool)
        self.published: PublishedPool = self._publish(around.clock.wall() - around.clock.now())

    # In.

    def tell(self, event: Event) -> None:
        """Takes a fact. It may be reported from within a step's effects; then it waits its turn."""
        self._inbox.append(event)
        if self._busy or self._closed:
            return
        while self._inbox:
            self._apply(self._inbox.popleft())

    def command(self, event: Event) -> None:
        """Takes a command. Raises ClientError when the state refuses it; nothing has changed then."""
        self._apply(event)
        self.tell(Tick())

    def end_lease(self, event: Event) -> LeaseEnded:
        """Renews or releases."""
        self._apply(event)
        answer = self._answer
        if not isinstance(answer, LeaseEnded):
            raise InternalError(f"no answer to {event}")
        return answer

    async def acquire(self, ask: LeaseAsk) -> Lease | Refusal:
        """A slot, at once or after waiting in the queue. Cancelled while waiting, it leaves no lease behind."""
        self._answer = None
        self._apply(Acquire(ask))
        if isinstance(self._answer, _ANSWERS):
            return self._answer
        answer: asyncio.Future[Lease | Refusal] = asyncio.get_running_loop().create_future()
        self._asking[ask.lease_id] = answer
        try:
            return await answer
        except asyncio.CancelledError:
            # It may have been granted in the very moment in which the caller went away.
            self._asking.pop(ask.lease_id, None)
            self.tell(ForgetWaiter(ask.lease_id))
            self.tell(Release(ask.lease_id, ask.token))
            raise

    async def until(self, reached: Callable[[Pool], bool], deadline: float) -> None:
        """Returns when `reached` holds of the pool, or at `deadline` on the boot-time clock."""
        if reached(self.pool):
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (reached, future)
        self._watching.append(entry)
        timer = self._around.clock.call_at(deadline, lambda: _resolve(future))
        try:
            await future
        finally:
            timer.cancel()
            if entry in self._watching:
                self._watching.remove(entry)

    def close(self) -> None:
        """Stops deciding. Engines go on; who waits is let go."""
        self._closed = True
        if self._timer:
            self._timer.cancel()
        for asking in self._asking.values():
            asking.cancel()
        for _, watching in self._watching:
            watching.cancel()

    # Decide.

    def _apply(self, event: Event) -> None:
        around, clock = self._around, self._around.clock
        now, wall = clock.now(), clock.wall()
        moment = Moment(now, wall, around.rng.random(), around.counters.next_fence, around.counters.host_restarts(now))
        self._busy = True
        try:
            pool, effects = step(self.pool, event, moment)
            self.pool = pool
            self._publish_if_changed(wall - now)
            for effect in effects:
                self._perform(effect, now)
        finally:
            self._busy = False
            self._arm(now)  # whatever failed: a pool without its timer would sleep for ever

    def _publish_if_changed(self, wall_offset: float) -> None:
        current = fingerprint(self.pool)
        if current == self._fingerprint:
            return
        self._fingerprint = current
        self.published = self._publish(wall_offset)
        if self._watching:
            for reached, future in self._watching:
                if reached(self.pool):
                    _resolve(future)

    def _publish(self, wall_offset: float) -> PublishedPool:
        return self._around.bus.publish(self._fingerprint, wall_offset)

    def _perform(self, effect: Effect, now: float) -> None:
        match effect:
            case LeaseAnswered(answer):
                self._deliver(answer.lease_id, answer.result)
            case LeaseEnded():
                self._answer = effect
            case Note():
                self._around.bus.note(Noted(self.pool, effect))
            case CountRestart():
                self._around.counters.count_restart(now)
            case Forget():
                self._around.forget(self)
            case _:
                self._around.perform(self, effect)

    def _deliver(self, lease_id: str, result: Lease | Refusal) -> None:
        if isinstance(result, Lease):
            self._around.counters.fence_used(result.fencing_token)
        future = self._asking.pop(lease_id, None)
        if future is None:
            self._answer = result
        elif not future.done():
            future.set_result(result)

    def _arm(self, now: float) -> None:
        """One timer for the earliest deadline. One that fires too early costs a Tick; it is not moved for that."""
        due = next_deadline(self.pool)
        if due is None or self._closed:
            return
        if self._timer is not None:
            if self._timer_at <= due:
                return
            self._timer.cancel()
        self._timer_at = due
        self._timer = self._around.clock.call_at(max(due, now), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.tell(Tick())


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
