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
from functools import partial

from poolmgr.core.effects import (
    Commit,
    CountDeath,
    CountRestart,
    Effect,
    Forget,
    LeaseAnswered,
    LeaseEnded,
    Note,
    RecordLeases,
)
from poolmgr.core.memo import Memo
from poolmgr.core.messages import Acquire, Committed, Event, ForgetWaiter, Moment, Release, Tick
from poolmgr.core.pool import step
from poolmgr.core.settle import next_deadline
from poolmgr.core.state import Pool, commits, memo_of
from poolmgr.core.view import fingerprint, recounted
from poolmgr.errors import EnvironmentFault, InternalError
from poolmgr.model.lease import Lease, LeaseAsk, Refusal
from poolmgr.model.pool import PoolRecord
from poolmgr.ports import Clock, Rng, Store, Timer
from poolmgr.runtime.bus import Bus, Noted, PublishedPool
from poolmgr.runtime.host_counters import HostCounters
from poolmgr.runtime.recording import Recording
from poolmgr.runtime.remembering import Remembering
from poolmgr.runtime.tasks import Tasks
from poolmgr.runtime.waiting import resolve

_ANSWERS = (Lease, Refusal)  # a union written in the function would be made for each call


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What every actor shares. `perform` does what takes time; `forget` removes a deleted pool; `died` hears of each
    engine that ended unasked, `failed` of each end that was counted against its pool."""

    clock: Clock
    rng: Rng
    bus: Bus
    counters: HostCounters
    recording: Recording
    store: Store
    spawn: Tasks
    warnings: deque[str]
    perform: Callable[[PoolActor, Effect], None]
    forget: Callable[[PoolActor], None]
    died: Callable[[PoolActor], None]
    failed: Callable[[PoolActor], None]


class PoolActor:
    """`pool` is the state after the last step, `published` what everybody else sees of it."""

    def __init__(self, pool: Pool, around: Surroundings, stored: Memo | None = None) -> None:
        self.pool = pool
        self._around = around
        self._remembering = Remembering(
            around.store, around.clock, around.spawn, pool.pool_id, stored, around.warnings
        )  # fmt: skip
        self._memo_basis = _basis(pool)
        self._unrecorded: dict[str, EnvironmentFault] = {}
        self._inbox: deque[Event] = deque()
        self._busy = False
        self._closed = False
        self._timer: Timer | None = None
        self._timer_at = 0.0
        self._asking: dict[str, asyncio.Future[Lease | Refusal]] = {}
        self._answer: Lease | Refusal | LeaseEnded | EnvironmentFault | None = None
        self._watching: list[tuple[Callable[[Pool], bool], asyncio.Future[None]]] = []
        self._fingerprint = fingerprint(pool)
        self.published: PublishedPool = self._publish(around.clock.wall() - around.clock.now())

    # In.

    def tell(self, event: Event) -> None:
        """Takes a fact. It may be reported from within a step's effects; then it waits its turn."""
        self._inbox.append(event)
        if not self._busy and not self._closed:
            self._work_off()

    def _work_off(self) -> None:
        while self._inbox:
            self._apply(self._inbox.popleft())

    async def command(self, event: Event, record: PoolRecord | None = None) -> None:
        """Takes a command, durably before anything is done for it; `record` is the generation that it goes to.

        Raises ClientError when the state refuses it, EnvironmentFault when it cannot be made durable; nothing has
        changed then.
        """
        async with self._remembering.ahead():
            after, _ = step(self.pool, event, self._moment())
            await self._remembering.put(memo_of(after), record)
            try:
                self._apply(event)
            finally:  # the state may have moved on meanwhile
                self._remembering.changed(memo_of(self.pool))
        self.tell(Tick())

    async def _commit(self, commit: Commit) -> None:
        async with self._remembering.ahead():
            if not commits(self.pool, commit.generation):  # a command that came before has put an end to it
                return
            fault = ""
            try:
                await self._remembering.put(commit.memo)
            except EnvironmentFault as error:
                fault = error.message
            self.tell(Committed(commit.generation, fault))
            self._remembering.changed(memo_of(self.pool))

    async def flush(self) -> None:
        """Stores what has not been stored yet."""
        await self._remembering.flush()

    async def forget(self) -> None:
        """Nothing of it is stored from now on."""
        await self._remembering.close()

    def end_lease(self, event: Event) -> LeaseEnded:
        """Renews or releases."""
        self._apply(event)
        answer = self._answer
        self._work_off()
        if not isinstance(answer, LeaseEnded):
            raise InternalError(f"no answer to {event}")
        return answer

    def ask(self, ask: LeaseAsk) -> Lease | Refusal | None:
        """A slot or a refusal at once; None: the ask is in the queue, and `acquire` of it again waits for its answer.

        Raises EnvironmentFault when the grant could not be recorded.
        """
        try:
            return self._asked(ask)
        finally:
            self._work_off()  # what was told meanwhile: a grant that could not be recorded is taken back

    def _asked(self, ask: LeaseAsk) -> Lease | Refusal | None:
        self._answer = None
        self._apply(Acquire(ask))
        answer = self._answer
        if isinstance(answer, EnvironmentFault):
            raise answer
        return answer if isinstance(answer, _ANSWERS) else None

    async def acquire(self, ask: LeaseAsk) -> Lease | Refusal:
        """A slot, at once or after waiting in the queue. Cancelled while waiting, it leaves no lease behind."""
        try:
            now = self._asked(ask)
            if now is not None:
                return now
            answer: asyncio.Future[Lease | Refusal] = asyncio.get_running_loop().create_future()
            self._asking[ask.lease_id] = answer
        finally:
            self._work_off()
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
        timer = self._around.clock.call_at(deadline, lambda: resolve(future))
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

    def _moment(self) -> Moment:
        around = self._around
        now, wall, counters = around.clock.now(), around.clock.wall(), around.counters
        return Moment(now, wall, around.rng.random(), counters.next_fence, counters.host_restarts(now))

    def _apply(self, event: Event) -> None:
        moment, before = self._moment(), self.pool
        self._busy, leases_only = True, False
        try:
            pool, effects = step(before, event, moment)
            self.pool = pool
            leases_only = _differ_in_leases_only(before, pool)
            self._publish_if_changed(moment.wall - moment.now, leases_only)
            for effect in effects:
                self._perform(effect)
            if not leases_only:
                self._remember(pool)
        finally:
            self._busy = False
            # Whatever failed: a pool without its timer would sleep for ever. One that is early enough is left alone.
            if self._timer is None or self.pool.leases.quiet_until < self._timer_at or not leases_only:
                self._arm(moment.now)

    def _remember(self, pool: Pool) -> None:
        basis = _basis(pool)
        if basis != self._memo_basis:
            self._memo_basis = basis
            self._remembering.changed(memo_of(pool))

    def _publish(self, wall_offset: float) -> PublishedPool:
        return self._around.bus.publish(self._fingerprint, wall_offset)

    def _publish_if_changed(self, wall_offset: float, leases_only: bool) -> None:
        current = recounted(self._fingerprint, self.pool) if leases_only else fingerprint(self.pool)
        if current == self._fingerprint:
            return
        self._fingerprint = current
        self.published = self._publish(wall_offset)
        if self._watching:
            for reached, future in self._watching:
                if reached(self.pool):
                    resolve(future)

    def _perform(self, effect: Effect) -> None:  # noqa: C901 - flat match
        match effect:
            case LeaseAnswered(answer):
                self._deliver(answer.lease_id, answer.result)
            case RecordLeases():
                self._around.recording.record(self.pool.pool_id, effect, self)
            case LeaseEnded():
                self._answer = effect
            case Note():
                self._around.bus.note(Noted(self.pool, effect))
            case CountRestart():
                self._around.failed(self)
            case CountDeath():
                self._around.died(self)
            case Commit():
                self._around.spawn(self._commit(effect), "commit")
            case Forget():
                self._around.forget(self)
            case _:
                self._around.perform(self, effect)

    def take_back(self, lease: Lease, fault: EnvironmentFault) -> None:
        """See `Granter`."""
        self._unrecorded[lease.lease_id] = fault
        self.tell(Release(lease.lease_id, lease.token))

    def all_told(self, lease: Lease) -> None:
        """See `Granter`."""
        self._unrecorded.pop(lease.lease_id, None)

    def _deliver(self, lease_id: str, result: Lease | Refusal) -> None:
        future = self._asking.pop(lease_id, None)
        if future is None:
            self._answer = (self._unrecorded.pop(lease_id, None) if self._unrecorded else None) or result
        else:
            self._around.recording.when_recorded(partial(self._answer_waiter, future, lease_id, result))

    def _answer_waiter(self, future: asyncio.Future[Lease | Refusal], lease_id: str, result: Lease | Refusal) -> None:
        fault = self._unrecorded.pop(lease_id, None)
        if future.done():
            return
        if fault is not None:
            future.set_exception(fault)
        else:
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


def _differ_in_leases_only(before: Pool, after: Pool) -> bool:
    """As after almost every grant, renewal and release: then there is less to look at."""
    return (
        before.state is after.state
        and before.engine is after.engine
        and before.policy is after.policy
        and before.beside is after.beside
        and before.reload is after.reload
        and before.spec is after.spec
        and before.wanted is after.wanted
        and before.deleting is after.deleting
        and before.reason is after.reason
        and before.last_error is after.last_error
        and before.held_until is after.held_until
        and before.then is after.then
        and before.home is after.home
        and before.registered is after.registered
        and before.drain_until == after.drain_until
    )


def _basis(pool: Pool) -> tuple[object, ...]:
    """What of a pool its memo is made of."""
    return (
        pool.generation, pool.wanted, pool.deleting, pool.state, pool.then, pool.resume_at, pool.drain_until,
        pool.policy, pool.restart_count, pool.last_error, pool.judged, pool.reload, pool.good, pool.rolled_back,
        pool.newest, pool.registered,
    )  # fmt: skip
