"""Engines that somebody else runs: each registers, tells of itself, and comes and goes as it likes (ENG-1 to ENG-3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING

from poolmgr.errors import ClientError, Reason
from poolmgr.model.pool import EngineName
from poolmgr.model.registration import Beat, BeatAnswer, EngineView, Registration
from tests.sim.calls import Call, Unavailable
from tests.sim.clients import settled
from tests.sim.kernel import NoPids, Process, Script

if TYPE_CHECKING:
    from poolmgr.runtime.facade import Facade
    from tests.sim.timeline import Timer
    from tests.sim.world import World

TRY_AGAIN = 0.7
START = 0.05
SOON = 1.0
BACK_AFTER = 3.0
WELL_FOR = 5.0
FIRST_PORT = 45_000


class Registered:
    """One engine, of a pool of its own, on a port that it has for good.

    True times: `well_at`, `well_since`: when it began or ended last to answer probes; `heard_at`: when a heartbeat was
    answered last; `sent_at`: when it last told anything. `wanted`: no operator has ended it. `gone`: deregistered.
    """

    def __init__(self, world: World, pool_id: str, script: Script, slots: int, ttl: float) -> None:
        self._world = world
        self._oracle = world.oracle.registered
        self.pool_id, self.engine_id = pool_id, f"outside-{pool_id}"
        self._port = FIRST_PORT + len(self._oracle.engines)
        self.endpoint, self.slots, self.ttl = f"127.0.0.1:{self._port}", slots, ttl
        self.process: Process | None = None
        self.well_at = self.well_since = self.heard_at = self.sent_at = -1e9
        self.wanted, self.gone, self.leaving = True, False, False
        self._beat = Beat(self.engine_id, slots_free=slots, in_flight=0, ready=True, draining=False)
        self._known_since: float | None = None
        self._commanded_at = -1e9
        self._commands = self._ending = 0
        self._hushed_until = 0.0
        self._calm_at: float | None = None
        self._timer: Timer | None = None
        self._call = 0
        self._oracle.engines[pool_id] = self
        truth = world.oracle.pools.truth(pool_id)
        truth.exists = truth.want = None
        self._start(script)

    @property
    def _now(self) -> float:
        return self._world.timeline.now

    # Its process, which is not the daemon's.

    def _start(self, script: Script) -> None:
        runs = self.process is not None and self.process.alive  # two power cuts in a row ask for it twice
        if self.leaving or runs:
            return
        world = self._world
        try:
            process = world.kernel.spawn("foreign", pool_id=self.pool_id, port=self._port, script=script)
        except NoPids:
            world.timeline.after(TRY_AGAIN, self._start, script)
            return
        self.process, self._known_since = process, None
        self._call += 1  # what is answered from now on to the process before does not reach this one
        world.kernel.listeners[self._port] = process
        if self._ending:  # the command that is under way ends this one's leases too
            process.told.append((self._now, 0))
        world.trace("outside", self.pool_id, str(process.pid))
        for when, happens in (
            (script.load, self._gets_well),
            (script.hang, self._falls_ill),
            (script.well_again, self._gets_well),
            (script.crash, self._crashes),
        ):
            if when < inf:
                world.timeline.after(when, self._if_still, process, happens)
        self._again(START)

    def _if_still(self, process: Process, happens: Callable[[], None]) -> None:
        if process is self.process and process.alive:
            happens()

    def well(self) -> bool:
        return self.process is not None and self.process.healthy(self._now)

    def _gets_well(self) -> None:
        if self.well():
            self.well_since = self.well_at = self._now

    def _falls_ill(self) -> None:
        self._world.event("outside-ill")
        self.well_at = self._now
        self._oracle.ill(self)

    def _crashes(self) -> None:
        self.crash(BACK_AFTER)

    def crash(self, back_after: float) -> None:
        if self.process is not None and self.process.alive:
            self._falls_ill()
            self._world.kernel.end(self.process, None, 9)
            self._world.timeline.after(back_after, self._start, Script())

    def booted(self) -> None:
        """The host was, and somebody starts it again."""
        self.well_at = self._now
        self._world.timeline.after(BACK_AFTER, self._start, Script())

    # What it tells of itself.

    def _again(self, delay: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._world.timeline.after(delay, self._turn)

    def _turn(self) -> None:
        if self.leaving or self.process is None or not self.process.alive:
            return
        if self._now < self._hushed_until:
            self._again(self._hushed_until - self._now)
        elif self._known_since is None:
            self.register()
        else:
            self._send_beat()

    def _ask(self, kind: str, work: Callable, told: Callable) -> None:
        """One call at a time: what an earlier one is answered is of no interest any more."""
        self._call, self.sent_at = self._call + 1, self._now
        number = self._call

        async def asked(facade: Facade) -> object:
            return await settled(work(facade))

        def answered(result: object, error: Exception | None) -> None:
            if number == self._call and not self.leaving:
                told(result, error)

        Call(self._world, kind, asked, answered)

    def register(self) -> None:
        """All that there is to say; idempotent."""
        pid = self.process.pid if self.process else 0
        self._register(
            Registration(
                self.engine_id, self.pool_id, self.endpoint, EngineName.COMMAND, "1", self.slots, pid=pid, ttl=self.ttl
            )
        )

    def register_partly(self) -> None:
        """What is not said stays as it is (ENG-1)."""
        if self._known_since is not None and self.process is not None and self.process.alive:
            self._register(Registration(self.engine_id, engine_version="2"))

    def _register(self, said: Registration) -> None:
        async def work(facade: Facade) -> EngineView:
            await facade.register_engine(said)
            return facade.engines(self.pool_id)[0]

        self._ask("register", work, self._registered)

    def _registered(self, result: object, error: Exception | None) -> None:
        if error is None:
            self._known_since = self._now
            self._oracle.registered(self, result)
            self._again(START)
        else:
            self._again(TRY_AGAIN)

    def _send_beat(self) -> None:
        beat = self._beat
        self._ask("heartbeat", lambda facade: facade.heartbeat(beat), self._answered)

    def _answered(self, result: object, error: Exception | None) -> None:
        if isinstance(result, BeatAnswer):
            self.heard_at = self._now
            self._oracle.beat(self)
            self._again(result.interval)
            return
        if isinstance(error, ClientError) and error.reason is Reason.ENGINE_NOT_FOUND:
            if self._known_since is not None:
                self._oracle.unknown(self, self._known_since)
            self._known_since = None
        self._again(TRY_AGAIN)

    def hush(self, seconds: float) -> None:
        """It works on, and nobody hears of it."""
        self._world.event("outside-silent")
        self._hushed_until = self._now + seconds

    def say(self, **words: object) -> None:
        self._beat = replace(self._beat, **words)
        self._again(0.0)

    # What an operator asks for.

    def command(self, name: str) -> None:
        """Leases end by it, as they do when one of our engines is told to end."""
        wanted = name in ("preload", "undrain")
        if self.process is not None and not wanted:
            self.process.told.append((self._now, 0))
        works = {
            "preload": lambda facade: facade.preload(self.pool_id, 0.0),
            "undrain": lambda facade: facade.undrain(self.pool_id),
            "stop": lambda facade: facade.stop(self.pool_id, None, 0.0),
            "drain": lambda facade: facade.drain(self.pool_id, 5.0, 0.0),
        }
        self._commanded_at, self._commands = self._now, self._commands + 1
        self._ending += not wanted
        self.wanted = self.wanted and wanted

        async def work(facade: Facade) -> object:
            return await settled(works[name](facade))

        def told(result: object, error: Exception | None) -> None:
            self._commanded_at, self._commands = self._now, self._commands - 1
            self._ending -= not wanted
            if error is None:
                self.wanted = wanted
            elif isinstance(error, Unavailable):
                self._world.timeline.after(TRY_AGAIN, self.command, name)

        Call(self._world, name, work, told)

    def commanded_since(self, when: float) -> bool:
        return not self.wanted or self._commands > 0 or self._commanded_at >= when - SOON

    # The end.

    def calm(self) -> None:
        """From now on it is well, and tells so."""
        self._calm_at, self._hushed_until = self._now, 0.0
        self._beat = replace(self._beat, slots_free=self.slots, ready=True, draining=False)
        if self.process is None or self.process.script != Script():
            self.crash(SOON)
        self._again(SOON)

    def is_at_rest(self) -> bool:
        """Calm, and heard by the daemon that serves."""
        daemon = self._world.daemon
        if daemon is None or self._calm_at is None:
            return False
        heard = self.heard_at > max(self._calm_at, daemon.served_at)
        return heard and self.well() and self._now - self.well_since > WELL_FOR and not self._commands

    def leave(self) -> None:
        """It ends, and says so."""
        if not self.leaving:
            self.leaving = True
            if self.process is not None:
                self._world.kernel.end(self.process, 0, None)
            self._deregister()

    def _deregister(self) -> None:
        async def work(facade: Facade) -> None:
            await facade.deregister_engine(self.engine_id)

        def told(result: object, error: Exception | None) -> None:
            if error is None or (isinstance(error, ClientError) and error.reason is Reason.ENGINE_NOT_FOUND):
                self._has_left()
            else:
                self._world.timeline.after(TRY_AGAIN, self._deregister)

        Call(self._world, "deregister", work, told)

    def _has_left(self) -> None:
        self.gone = True
        self._oracle.left(self)
