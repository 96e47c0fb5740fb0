"""A simulated engine that works, in time of its own, and the pool that watches it.

The engine has one loop that computes a batch at a time; a counter moves when one ends, and at no other time. Its hours
are made of idle time, prefills of up to 50 s a batch, and long answers token by token, fast and slow. What of it can be
seen depends on its `Sight`. `hang` stops it in whatever it does.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from poolmgr.core.effects import AskWork, RunProbe
from poolmgr.core.messages import Tick, WorkAnswered
from poolmgr.core.settle import next_deadline
from poolmgr.model.engine import ProbeOutcome, ProbeResult, Progress, Usage
from poolmgr.model.pool import PoolState
from tests.core.helpers import OK, Driver, a_pool, a_spec

LONGEST_PREFILL = 50.0
SLOTS = 4
PATIENCE = 3.0  # of a probe
CPU_OF_ANSWERING = 0.004  # of a core
NO_ANSWER = ProbeResult(ProbeOutcome.FAILED, "no answer")


@dataclass(frozen=True)
class Sight:
    """`cpu`: what it uses of a core while it works, and `spin` otherwise. `gpu`: None where nobody reads it.

    `blocks`: it shows its counters only between two batches. `slots`: whether it tells of them.
    """

    cpu: float = 1.0
    spin: float = CPU_OF_ANSWERING
    gpu: bool | None = False
    blocks: bool = False
    slots: bool = True


SIGHTS = {
    "llama.cpp on a CPU": Sight(),
    "llama.cpp that answers between batches": Sight(blocks=True),
    "a GPU that is read": Sight(cpu=CPU_OF_ANSWERING, gpu=True),
    "a GPU that nobody reads": Sight(cpu=CPU_OF_ANSWERING, gpu=None),
    "one that polls": Sight(spin=1.0, gpu=None),
    "one that does not tell of its slots": Sight(slots=False),
}


@dataclass(frozen=True, slots=True)
class Stretch:
    """`seconds` in which a batch ends every `batch` seconds, with so many requests in flight."""

    seconds: float
    batch: float
    in_flight: int


def stretches(rng: random.Random) -> Iterator[Stretch]:
    """What a day of an engine is made of."""
    while True:
        yield Stretch(rng.expovariate(1 / rng.choice((2.0, 60.0, 900.0))), 1.0, 0)
        for _ in range(rng.choice((1, 1, 3, 30))):
            in_flight = rng.randint(1, SLOTS)
            for _ in range(rng.choice((1, 1, 1, 2, 8))):
                batch = rng.choice((rng.uniform(0.05, 5.0), rng.uniform(5.0, LONGEST_PREFILL)))
                yield Stretch(batch, batch, in_flight)
            if rng.random() < 0.9:
                token = rng.choice((0.02, 0.1, 0.6, 4.0))
                yield Stretch(token * rng.randint(1, 500), token, in_flight)


class BusyEngine:
    def __init__(self, rng: random.Random, sight: Sight) -> None:
        self.sight = sight
        self._plan = stretches(rng)
        self._now = next(self._plan)
        self._into = 0.0
        self._batches = 0
        self.cpu = 0.0
        self.hung = False
        self.hung_cpu = CPU_OF_ANSWERING
        self.worked = True  # since it was looked at last

    @property
    def in_flight(self) -> int:
        return self._now.in_flight

    @property
    def free(self) -> int:
        return SLOTS - self._now.in_flight

    def hang(self, cpu: float) -> None:
        """For ever, with this much of a core."""
        self.hung, self.hung_cpu = True, cpu

    def until_batch_ends(self) -> float:
        if self._now.in_flight == 0:
            return 0.0
        left = self._now.batch - self._into % self._now.batch
        return min(left, self._now.seconds - self._into)

    def live(self, seconds: float) -> None:
        """Goes on for so long."""
        if self.hung:
            self.cpu += seconds * self.hung_cpu
            return
        while seconds > 0:
            step = min(seconds, self._now.seconds - self._into)
            busy = self._now.in_flight > 0
            before = int(self._into / self._now.batch)
            self._into += step
            seconds -= step
            self.cpu += step * (self.sight.cpu if busy else self.sight.spin)
            self.worked = self.worked or (busy and step > 0)
            if busy:
                self._batches += int(self._into / self._now.batch) - before
            if self._into >= self._now.seconds:
                self._batches += busy  # what was begun has ended
                self._now, self._into = next(self._plan), 0.0

    def progress(self) -> Progress | None:
        if self.sight.blocks and (self.hung or self.until_batch_ends() > PATIENCE):
            return None
        return Progress(self.in_flight, str(self._batches), self.free if self.sight.slots else None)

    def gpu_busy(self) -> bool | None:
        worked, self.worked = self.worked, False
        return None if self.sight.gpu is None else self.sight.gpu and worked


@dataclass
class Watch:
    """A ready pool with such an engine; what its daemon sees, and when."""

    rng: random.Random
    sight: Sight
    paused: bool = False  # now and then the daemon is not scheduled, or the host sleeps
    engine: BusyEngine = field(init=False)
    driver: Driver = field(init=False)
    answers: list[tuple[float, AskWork, ProbeResult]] = field(default_factory=list)
    requests: int = 0
    looks: int = 0

    def __post_init__(self) -> None:
        self.engine = BusyEngine(self.rng, self.sight)
        self.driver = Driver(a_pool(a_spec(slots=SLOTS)))
        self.driver.make_ready()

    @property
    def ready(self) -> bool:
        return self.driver.state is PoolState.READY

    def run(self, seconds: float) -> None:
        """Until the end, or until the pool does something about its engine."""
        end = self.driver.now + seconds
        while self.ready and self.driver.now < end:
            due = next_deadline(self.driver.pool)
            assert due is not None
            if self._deliver(due):
                continue
            self._pass(due)
            if self.paused and self.rng.random() < 0.002:
                self._pause()
            self._look()

    def _deliver(self, until: float) -> bool:
        """The answer to a request of ours, if it comes by then."""
        if not self.answers or self.answers[0][0] > until:
            return False
        when, ask, result = self.answers.pop(0)
        self._pass(when)
        self._take(self.driver.do(WorkAnswered(ask.engine_id, ask.serial, result)))
        return True

    def _pass(self, until: float) -> None:
        self.engine.live(max(0.0, until - self.driver.now))
        self.driver.now = max(until, self.driver.now)

    def _pause(self) -> None:
        seconds = self.rng.choice((3.0, 30.0, 300.0, 3600.0)) * self.rng.random()
        if self.rng.random() < 0.5:
            self.engine.live(seconds)  # else its host slept, and so did it
        self.driver.now += seconds

    def _look(self) -> None:
        self.looks += 1
        self.driver.jitter = self.rng.random()
        effects = self.driver.do(Tick())
        if any(isinstance(e, RunProbe) for e in effects):
            told = self.engine.progress()
            late = PATIENCE if told is None else self.rng.random() * 0.01
            answered = self.driver.now + late
            self._deliver(answered)
            if not self.ready:
                return
            self._pass(answered)
            usage = Usage(cpu_seconds=self.engine.cpu)
            effects += self.driver.answer(OK, progress=told, gpu_busy=self.engine.gpu_busy(), usage=usage)
        self._take(effects)

    def _take(self, effects: list[object]) -> None:
        for ask in effects:
            if isinstance(ask, AskWork):
                assert not self.answers, "a second request before the first one is answered"
                self.requests += 1
                assert self.engine.free > 0 or self.sight.blocks
                takes = (
                    float("inf") if self.engine.hung or self.engine.free == 0 else self.engine.until_batch_ends() + 0.1
                )
                result = OK if takes < ask.timeout else NO_ANSWER
                self.answers.append((self.driver.now + min(takes, ask.timeout), ask, result))
