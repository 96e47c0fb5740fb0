"""Who calls the daemon: an administrator who tries again until it is answered, holders of leases, and strangers."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from poolmgr.errors import ClientError, EnvironmentFault, Reason
from poolmgr.model.lease import Lease, LeaseAsk, LeaseOutcome, Refusal
from poolmgr.model.pool import PoolSpec
from tests.sim.calls import Call, Unavailable
from tests.sim.oracle_leases import Held
from tests.sim.timeline import Timer

if TYPE_CHECKING:
    from poolmgr.runtime.facade import Facade
    from tests.sim.world import World

TRY_AGAIN = 0.7
MAX_TRIES = 40


async def settled(value: object) -> object:
    return await value if inspect.isawaitable(value) else value


@dataclass(frozen=True)
class Op:
    """One thing that an administrator asks for; `work` does it on a facade."""

    name: str
    pool_id: str
    work: Callable[[Facade], object]
    spec: PoolSpec | None = None
    deadline: float = 0.0
    tries: int = MAX_TRIES
    beside: bool = False  # it asks for two engines beside each other


class Admin:
    """One per pool: it asks for one thing after the other, each until it has an answer."""

    def __init__(self, world: World, pool_id: str) -> None:
        self._world = world
        self._pool_id = pool_id
        self._queue: deque[Op] = deque()
        self._busy = False
        self.answers: list[tuple[str, object, Exception | None]] = []

    @property
    def idle(self) -> bool:
        return not self._busy and not self._queue

    def drop(self) -> None:
        """Asks for nothing more."""
        self._queue.clear()

    def do(self, op: Op) -> None:
        self._queue.append(op)
        if not self._busy:
            self._next()

    def _next(self) -> None:
        self._busy = bool(self._queue)
        if self._busy:
            self._try(self._queue.popleft(), 1)

    def _try(self, op: Op, number: int) -> None:
        pools = self._world.oracle.pools
        self._world.oracle.asked(op.pool_id, op.name)
        pools.asked(op.pool_id, op.name, op.spec)
        if op.name == "drain" and number == 1:
            pools.drain_asked(op.pool_id, op.deadline)
        pools.truth(op.pool_id).beside_asked |= op.beside

        async def work(facade: Facade) -> object:
            return await settled(op.work(facade))

        Call(self._world, op.name, work, lambda result, error: self._told(op, number, result, error))

    def _told(self, op: Op, number: int, result: object, error: Exception | None) -> None:
        gone = isinstance(error, ClientError) and error.reason is Reason.POOL_NOT_FOUND
        if op.name == "delete" and gone:
            error = None
        self._world.trace("told", op.name, op.pool_id, type(error).__name__ if error else "ok")
        self._world.oracle.pools.told(op.pool_id, op.name, result, error, op.spec)
        again = isinstance(error, Unavailable | EnvironmentFault)
        if again and number < op.tries:
            self._world.timeline.after(TRY_AGAIN, self._try, op, number + 1)
            return
        self.answers.append((op.name, result, error))
        self._next()


@dataclass(frozen=True)
class Habits:
    """Of a holder. Seconds; `crash`, `cancel`, `late`, `twice`: chances, for each lease or wait."""

    ttl: float = 15.0
    hold: float = 8.0
    think: float = 1.0
    wait: float = 5.0
    priority: int = 0
    crash: float = 0.0
    cancel: float = 0.0
    late: float = 0.0
    twice: float = 0.0


class Holder:
    """Takes a lease, renews it at a third of its ttl, gives it back, and begins again."""

    def __init__(self, world: World, pool_id: str, name: str, habits: Habits) -> None:
        self._world = world
        self._leases = world.oracle.leases
        self._pool_id = pool_id
        self._name = name
        self._habits = habits
        self._serial = 0
        self._held: Held | None = None
        self._call: Call | None = None
        self._timers: list[Timer] = []
        self.stopped = False
        self.leases = 0
        self._after(world.rng.random() * habits.think, self._begin)

    def stop(self) -> None:
        """Holds nothing from now on, and says so."""
        self.stopped = True
        if self._held is not None:
            self._give_back()

    def _after(self, delay: float, callback: Callable, *args: object) -> Timer:
        return self._world.timeline.after(delay, callback, *args)

    def _about(self, usual: float) -> float:
        return usual * (0.3 + 1.4 * self._world.rng.random())

    def _begin(self) -> None:
        if self.stopped:
            return
        self._serial += 1
        self._first_sent = self._world.timeline.now
        self._ask()

    def _ask(self) -> None:
        h, holder = self._habits, f"{self._name}#{self._serial}"

        async def work(facade: Facade) -> object:
            ask = LeaseAsk(*facade.lease_key(self._pool_id), holder, h.ttl, h.wait, h.priority, holder)
            return await settled(facade.acquire(self._pool_id, ask))

        call = Call(
            self._world, "acquire", work, lambda result, error: self._answered(call, result, error), self._pool_id
        )
        self._call, call.first_sent = call, self._first_sent
        if self._world.chance(h.cancel):
            self._after(self._about(h.wait / 2), self._walk_away, call, holder)

    def _walk_away(self, call: Call, holder: str) -> None:
        if not call.over:
            call.cancel(lambda: self._leases.cancelled(holder))
            self._after(self._about(self._habits.think), self._begin)

    def _answered(self, call: Call, result: object, error: Exception | None) -> None:
        if isinstance(error, Unavailable):
            self._after(TRY_AGAIN, self._ask if not self.stopped else self._begin)  # the same request again
        elif isinstance(result, Lease):
            self._got(call, result)
        else:
            refused = f"refused-{result.reason}" if isinstance(result, Refusal) else "acquire-failed"
            self._world.event(refused)
            self._after(self._about(self._habits.think), self._begin)

    def _got(self, call: Call, lease: Lease) -> None:
        world, h = self._world, self._habits
        self.leases += 1
        world.trace("lease", lease.lease_id, str(lease.fencing_token))
        self._leases.granted(self._pool_id, lease, call)
        self._held = self._leases.held[lease.lease_id]
        if world.chance(h.crash):  # never heard of again; another holder comes in its place
            world.event("holder-crashed")
            self._held = None
            self._after(self._about(h.think), self._begin)
            return
        self._timers = [self._after(self._about(h.hold), self._give_back), self._after(lease.ttl / 3, self._renew)]

    def _renew(self) -> None:
        held, h = self._held, self._habits
        if held is None or held.over:
            return
        if self._world.chance(h.late):
            self._world.event("renewed-late")
            self._after(h.ttl * (0.5 + self._world.rng.random()), self._send_renewal, held)
        else:
            self._send_renewal(held)

    def _send_renewal(self, held: Held) -> None:
        async def work(facade: Facade) -> object:
            return await settled(facade.renew(held.lease.lease_id, held.lease.token))

        call = Call(self._world, "renew", work, lambda result, error: self._renewed(held, call, result, error))

    def _renewed(self, held: Held, call: Call, result: object, error: Exception | None) -> None:
        if held is not self._held:
            return
        if error is not None:
            self._after(TRY_AGAIN, self._renew)
            return
        outcome, expires = result
        self._leases.renewed(held, outcome, expires, call)
        if outcome is LeaseOutcome.RENEWED:
            self._timers.append(self._after(held.lease.ttl / 3, self._renew))
        else:
            self._lose()

    def _lose(self) -> None:
        self._world.event("lease-lost")
        self._forget()
        self._after(self._about(self._habits.think), self._begin)

    def _forget(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._held, self._timers = None, []

    def _give_back(self) -> None:
        held = self._held
        if held is None:
            return
        self._forget()
        held.release_sent = True
        self._release(held, 1)

    def _release(self, held: Held, number: int) -> None:
        async def work(facade: Facade) -> object:
            return await settled(facade.release(held.lease.lease_id, held.lease.token))

        call = Call(self._world, "release", work, lambda r, error: self._released(held, call, number, r, error))

    def _released(self, held: Held, call: Call, number: int, outcome: object, error: Exception | None) -> None:
        if error is not None and number < MAX_TRIES:
            held.tried = held.tried or not isinstance(error, Unavailable) or error.reached
            self._after(TRY_AGAIN, self._release, held, number + 1)
            return
        if error is None:
            self._leases.released(held, outcome, call)
            if number == 1 and self._world.chance(self._habits.twice):
                self._after(0.1, self._release, held, number + 1)
                return
        self._after(self._about(self._habits.think), self._begin)


class Stranger:
    """Tries other people's leases with tokens of its own, and ids that nobody ever had."""

    def __init__(self, world: World, every: float) -> None:
        self._world = world
        self._every = every
        self.stopped = False
        world.timeline.after(every, self._try)

    def _try(self) -> None:
        if self.stopped:
            return
        world = self._world
        held = world.oracle.leases.held
        lease_id = world.rng.choice(list(held)) if held and world.chance(0.8) else world.rng.choice(["", "x", "a.b"])
        renew = world.chance(0.5)

        async def work(facade: Facade) -> object:
            token = "0" * 32
            outcome = await settled(facade.renew(lease_id, token) if renew else facade.release(lease_id, token))
            return outcome[0] if renew else outcome

        def told(outcome: object, error: Exception | None) -> None:
            if error is None:
                world.oracle.leases.foreign("a renewal" if renew else "a release", outcome)

        Call(world, "foreign-renew" if renew else "foreign-release", work, told)
        world.timeline.after(self._every * (0.5 + world.rng.random()), self._try)
