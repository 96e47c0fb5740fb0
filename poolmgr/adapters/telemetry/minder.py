"""Minds the telemetry process: begins one, has it look and sample, has another follow it when it fails (TEL-7)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import suppress
from typing import Any, Final, Protocol

from poolmgr_ext.ring import RingError

from poolmgr.adapters.telemetry.child import Child
from poolmgr.adapters.telemetry.decoding import Nonsense, sense
from poolmgr.adapters.telemetry.heartbeat import Watch
from poolmgr.adapters.telemetry.process import wire
from poolmgr.adapters.telemetry.questions import Questions, stalled
from poolmgr.adapters.telemetry.replacing import MAX_UNDEAD, PATIENCE_MAX_SECONDS, Replacing
from poolmgr.adapters.telemetry.rings import Place, RingView
from poolmgr.errors import EnvironmentFault
from poolmgr.model.device import Absence, Discovery
from poolmgr.model.settings import TelemetrySettings
from poolmgr.ports import Clock, Timer

END_SECONDS: Final = 1.0  # for the process to go by itself, and once more when it was killed
LOOK_SECONDS: Final = 1.0  # between looks, however much happens
UNDEAD_SECONDS: Final = 10.0  # between looks at whether one that was killed has gone

Launch = Callable[[Callable[[dict[str, Any]], None], Callable[[str], None]], Coroutine[Any, Any, Child]]


class Owner(Protocol):
    """Who hears of it."""

    def looked(self, answer: Mapping[str, Any]) -> Discovery:
        """Raises Nonsense."""
        ...

    def happened(self, message: wire.Message) -> None:
        """Raises as `looked`."""
        ...

    def failing(self, seconds: float, what: str, *, hung: bool) -> None:
        """For so long there is no answer or sample."""
        ...

    def flowing(self) -> None: ...


class Minder:
    def __init__(
        self,
        clock: Clock,
        settings: TelemetrySettings,
        place: Place,
        epochs: Iterator[int],
        launch: Launch,
        hello: wire.Message,
        owner: Owner,
    ) -> None:
        self._clock, self._settings, self._place, self._epochs = clock, settings, place, epochs
        self._launch, self._hello, self._owner = launch, hello, owner
        self.questions = Questions(clock, self._send)
        self.ring: RingView | None = None
        self.writing = False  # whether the process that runs writes that ring
        self._replacing = Replacing()
        self._watch = Watch(settings.stall_limit, clock.now())
        self._child: Child | None = None
        self._undead: set[Child] = set()
        self._answered = False  # whether this process has come back from the driver at all
        self._saw_devices = False
        self._again = asyncio.Event()
        self._timers: dict[str, Timer] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._launching: asyncio.Task[None] | None = None  # never cancelled: a process would be left that nobody knows
        self._life: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def process_id(self) -> int | None:
        return None if self._child is None else self._child.pid

    def start(self) -> None:
        self._watch.attend(self._clock.now())
        self._begin()
        self._tick()

    async def close(self) -> None:
        """Ends the process. The ring stays where it is."""
        self._closed = True
        for timer in self._timers.values():
            timer.cancel()
        for task in self._tasks - {self._launching}:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        child, self._child, self.ring, self.writing = self._child, None, None, False
        if child is not None:
            child.hang_up()
            if not await _happens(child.gone, END_SECONDS):
                child.kill()
                await _happens(child.gone, END_SECONDS)

    def look_soon(self) -> None:
        """A discovery as soon as may be."""
        self._again.set()

    # A process, from its beginning to its end.

    def _begin(self) -> None:
        self._undead = {child for child in self._undead if not child.gone.is_set()}
        if len(self._undead) >= MAX_UNDEAD:
            self._at(self._clock.now() + UNDEAD_SECONDS, "begin", self._begin)
        else:
            self._launching = self._task(self._launched())

    async def _launched(self) -> None:
        try:
            child = await self._launch(self._heard, self._ended)
        except OSError as error:
            self._fail(f"the telemetry process cannot be started: {error.strerror or error}", hung=False)
            return
        self._child, self._answered, self._saw_devices, self.writing = child, False, False, False
        if self._closed:
            return  # which waits for us, and sees to the child
        self._watch = Watch(self._settings.stall_limit, self._clock.now())
        child.send(self._hello)
        self.questions.began()
        self._life = self._task(self._live(child))

    async def _live(self, child: Child) -> None:
        """Looks, and looks again: after a while, and soon when something happened."""
        while self._child is child:
            self._again.clear()
            try:
                await self._mind(await self.look(PATIENCE_MAX_SECONDS), child)
            except EnvironmentFault:
                continue  # the watch sees to it
            if self._child is child:
                now = self._clock.now()
                self._at(now + self._settings.discovery_interval, "look", self._again.set)
                await self._again.wait()
                await self._until(now + LOOK_SECONDS)

    async def look(self, timeout: float) -> Discovery:
        """What the driver shows now. Raises EnvironmentFault(TELEMETRY_STALLED)."""
        answer = await self.questions.ask("discover", timeout)
        try:
            discovery = self._owner.looked(answer)
        except Nonsense as error:
            self._fail(str(error), hung=False)
            raise stalled(str(error), timeout) from error
        self._answered = True
        return discovery

    async def look_now(self, timeout: float) -> Discovery:
        """As `look`, for somebody else; what is to be done about what it shows is done soon."""
        discovery = await self.look(timeout)
        if self._went_away(discovery) or not self._samples(discovery):
            self._again.set()
        return discovery

    async def _mind(self, discovery: Discovery, child: Child) -> None:
        """Sees to what was found."""
        if discovery.devices:
            self._saw_devices = True
            if not self._samples(discovery):
                await self._sample()
        elif self._went_away(discovery) and child is self._child:
            # The driver went away under the process. What comes back may be another version of it, which wants another
            # library, which wants another process.
            self._fail(discovery.message, hung=False)

    def _went_away(self, discovery: Discovery) -> bool:
        return self._saw_devices and discovery.absence not in (None, Absence.NO_DEVICES)

    def _samples(self, discovery: Discovery) -> bool:
        """Whether the ring that is written has a column for each device."""
        known = self.ring.device_ids if self.writing and self.ring is not None else ()
        return {device.device_id for device in discovery.devices} <= set(known)

    async def _sample(self) -> None:
        """Another ring."""
        epoch, settings = next(self._epochs), self._settings
        try:
            path = self._place.path(epoch)
        except OSError as error:
            self._fail(f"there is no place for samples: {error}", hung=False)
            return
        answer = await self.questions.ask(
            "sample",
            PATIENCE_MAX_SECONDS,
            path=path,
            epoch=epoch,
            rate_hz=settings.rate_hz,
            depth_seconds=settings.depth_seconds,
            max_bytes=settings.max_bytes,
        )
        try:
            if "error" in answer:
                raise ValueError(str(answer["error"].get("message")))
            ring = RingView(path)
        except (RingError, ValueError) as error:
            self._fail(f"there are no samples: {error}", hung=False)
            return
        if self.ring is not None:
            self.ring.close()
        self.ring, self.writing = ring, True
        self._watch.renew()
        self._place.clear(keep=path)

    def _heard(self, message: wire.Message) -> None:
        try:
            if "answer" in message:
                with sense():
                    self.questions.answered(message)
            elif message.get("event") == "sampler_ended":
                self._fail(f"sampling has ended: {message.get('message')}", hung=False)
            else:
                self._owner.happened(message)
        except Nonsense as error:
            self._fail(str(error), hung=False)

    def _send(self, message: wire.Message) -> bool:
        return self._child is not None and self._child.send(message)

    def _ended(self, why: str) -> None:
        self._fail(why, hung=False)

    def _fail(self, what: str, *, hung: bool, seconds: float = 0.0) -> None:
        """Whatever it was: this process is done with, and another follows. `seconds`: how long it has been so."""
        if self._closed:
            return
        now = self._clock.now()
        self._owner.failing(seconds, what, hung=hung)
        child, self._child, self.writing, self._answered = self._child, None, False, False
        if self._life is not None and self._life is not asyncio.current_task():
            self._life.cancel()
        self.questions.ended()
        if child is not None:
            child.kill()
            self._undead.add(child)
        self._at(now + self._replacing.failed(now), "begin", self._begin)

    # Watching over it.

    def _tick(self) -> None:
        now = self._clock.now()
        self._at(now + self._watch.interval, "tick", self._tick)
        self._watch.attend(now)
        if self._child is None:
            return
        owed = self.questions.oldest()
        if owed is not None and self._watch.overdue(owed[0]):
            self._overdue(now - owed[0], owed[1])
        elif self.writing and self.ring is not None:
            self._judge(self.ring)
        elif self._answered and not self._saw_devices:
            self._flows()

    def _overdue(self, seconds: float, op: str) -> None:
        """What is asked first initialises the devices, which may take its time; what is asked later may not."""
        if self._answered or seconds >= self._replacing.patience:
            self._fail(op, hung=True, seconds=seconds)
        else:
            self._owner.failing(seconds, op, hung=True)

    def _judge(self, ring: RingView) -> None:
        try:
            wrong = self._watch.look(*ring.heartbeat())
        except RingError as error:
            wrong = f"the ring cannot be read: {error}"
        if wrong is not None:
            hung = self._watch.hung
            self._fail((ring.call() if hung else "") or wrong, hung=hung, seconds=self._watch.age)
        elif self._watch.flowing:
            self._flows()

    def _flows(self) -> None:
        self._replacing.flows(self._clock.now())
        self._owner.flowing()

    # Time and tasks.

    async def _until(self, when: float) -> None:
        come = asyncio.Event()
        self._at(when, "gap", come.set)
        await come.wait()

    def _at(self, when: float, name: str, callback: Callable[[], object]) -> None:
        """One timer of each name."""
        if name in self._timers:
            self._timers[name].cancel()
        self._timers[name] = self._clock.call_at(when, callback)

    def _task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._over)
        return task

    def _over(self, task: asyncio.Task[None]) -> None:
        """What fails in a task fails in this callback, which the loop's own handler hears of."""
        self._tasks.discard(task)
        if not task.cancelled():
            task.result()


async def _happens(event: asyncio.Event, seconds: float) -> bool:
    """Whether it does within that time."""
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
    return event.is_set()
