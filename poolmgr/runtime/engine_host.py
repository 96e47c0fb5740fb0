"""Performs what a pool decided about its engine, and reports what came of it.

Everything here ends in a fact for the pool's inbox: a start in Spawned or StartRefused, a probe in Probed, an end in
Exited and TreeEmpty. Nothing here decides.
"""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from poolmgr.core.effects import AskWork, Discard, Effect, KillTree, Rest, RunProbe, Start, Terminate, Verify
from poolmgr.core.messages import (
    Adopted,
    AdoptedBeside,
    Exited,
    Queued,
    Spawned,
    StartRefused,
)
from poolmgr.core.permits import Ask, Place
from poolmgr.core.state import owner, spec_of, version
from poolmgr.errors import ClientError, EnvironmentFault, InternalError, PoolmgrError, Reason
from poolmgr.model.engine import ExitRecord, LaunchSpec, ProcessIdentity, RecoveredEngine
from poolmgr.model.pool import (
    EngineName,
    PoolSpec,
    PoolState,
)
from poolmgr.ports import Clock, EngineKind, Ports, Probe, Rng, Runtime, Workers
from poolmgr.runtime.device_gate import CpuOnly, Gate
from poolmgr.runtime.engine_link import EngineLink, Gpus, Wake, answer, told
from poolmgr.runtime.keyed import KeyedLocks
from poolmgr.runtime.marks import mark_of, over, record_of, still_serves
from poolmgr.runtime.permits import StartPermits
from poolmgr.runtime.places import (
    DEVICE_VARIABLE,
    CpuPlaces,
    Placed,
    Places,
    Seeker,
    devices_in,
    environment_of,
    rendered,
    same_place,
)
from poolmgr.runtime.pool_actor import PoolActor
from poolmgr.runtime.questions import Questions
from poolmgr.runtime.tasks import Tasks

# A spawn that failed with one of these fails the same way again (RST-8).
PERMANENT_ERRNO = frozenset({errno.ENOENT, errno.EACCES, errno.ENOEXEC, errno.ENOTDIR, errno.E2BIG})

Undo = Callable[[str], Awaitable[None]]  # of Runtime: rest or remove

PERMIT_SECONDS = 7200.0  # no start takes longer than that
PLACES_TRIED = 8  # by one start, while each place that it finds is gone when its turn comes
TAKEN_AGAIN = f"{PLACES_TRIED} places that were found were gone when it was this start's turn"

NO_COMMAND_LINE: tuple[str, ...] = ()  # of an engine that was found running and could not be started now


@dataclass(frozen=True, slots=True)
class Outside:
    """The ports that engines are run with."""

    runtime: Runtime
    kinds: Mapping[EngineName, EngineKind]
    probe: Probe
    ports: Ports
    workers: Workers
    rng: Rng
    gate: Gate = CpuOnly()
    places: Places = CpuPlaces()


@dataclass(frozen=True, slots=True)
class Beside:
    """The second engine of a reload in which an earlier daemon died: what it was started for; whether it retires."""

    spec: PoolSpec
    retiring: bool


class EngineHost:
    """All engines of the daemon. What is done to one engine is done in the order in which it was asked for."""

    def __init__(
        self,
        outside: Outside,
        clock: Clock,
        spawn: Tasks,
        warnings: deque[str],
        parallel_starts: int,
    ) -> None:
        self._outside = outside
        self._warnings = warnings
        self._clock = clock
        self._spawn = spawn
        self._launches: dict[str, LaunchSpec] = {}
        self._chosen: dict[str, tuple[str, ...]] = {}  # devices by engine directory, as long as that is there
        self._starts = 0
        self._order = KeyedLocks()
        self._permits = StartPermits(parallel_starts)
        self.questions = Questions(outside, clock, spawn, self._gpu_busy)
        self._leaving: dict[str, set[asyncio.Task[None]]] = {}
        self._leftover: dict[str, dict[str, Undo]] = {}

    def perform(self, actor: PoolActor, effect: Effect) -> None:
        match effect:
            case Start():
                engine_id = effect.engine_id or self._outside.rng.hex(16)
                spec = spec_of(actor.pool, effect.generation)
                self._spawn(self._start(actor, effect, engine_id, spec), "start")
            case RunProbe() | AskWork() | Verify():
                self.questions.ask(actor, effect)
            case Terminate(engine_id):
                self._outside.runtime.terminate(engine_id)
            case KillTree(engine_id):
                self._outside.runtime.kill_tree(engine_id)
            case Rest(engine_id):
                self._leave(actor, engine_id, self._outside.runtime.rest)
            case Discard(engine_id):
                self._leave(actor, engine_id, self._outside.runtime.remove)
            case _:
                raise InternalError(f"nobody performs {effect}")

    async def put_away(self, pool_id: str) -> None:
        """Returns once nothing is left of what this pool has no more use for: shims, cgroup leaves, directories.

        Raises EnvironmentFault for what cannot be removed; the next call tries again.
        """
        while leaving := self._leaving.get(pool_id):
            await asyncio.wait(leaving)
        self._leaving.pop(pool_id, None)
        for engine_id, undo in list(self._leftover.get(pool_id, {}).items()):
            await self._undo(pool_id, engine_id, undo)
        self._leftover.pop(pool_id, None)

    def _leave(self, actor: PoolActor, engine_id: str, undo: Undo) -> None:
        pool_id = actor.pool.pool_id

        async def work() -> None:
            try:
                await self._undo(pool_id, engine_id, undo)
            except EnvironmentFault as fault:  # kept in `_leftover`, for whoever asks that nothing be left
                self._warnings.append(f"pool {pool_id}: engine {engine_id} has ended, but: {fault.message}")

        task = self._spawn(work(), "leave")
        leaving = self._leaving.setdefault(pool_id, set())
        leaving.add(task)
        task.add_done_callback(leaving.discard)

    async def _undo(self, pool_id: str, engine_id: str, undo: Undo) -> None:
        """Raises EnvironmentFault, and remembers what is still to do."""
        async with self._order.hold(engine_id):
            self._forget_leftover(pool_id, engine_id)
            self._release_port(engine_id)
            self._outside.places.give_back(engine_id)
            if undo == self._outside.runtime.remove:
                self._chosen.pop(engine_id, None)
            try:
                await undo(engine_id)
            except EnvironmentFault:
                self._leftover.setdefault(pool_id, {})[engine_id] = undo
                raise

    def _forget_leftover(self, pool_id: str, engine_id: str) -> None:
        self._leftover.get(pool_id, {}).pop(engine_id, None)

    def remember(self, engine: RecoveredEngine) -> None:
        """What an earlier daemon gave it, for the next start in its directory."""
        if engine.launch is not None and DEVICE_VARIABLE in engine.launch.env:
            self._chosen[engine.engine_id] = devices_in(engine.launch.env)

    async def remove(self, pool_id: str, engine_id: str) -> None:
        """Removes what is left of an engine that has ended. Raises EnvironmentFault; `put_away` tries again."""
        await self._undo(pool_id, engine_id, self._outside.runtime.remove)

    async def end_survivors(self, engine_id: str, seconds: float) -> bool:
        """Kills what a dead engine of an earlier daemon left running; whether nothing was left within `seconds`."""
        empty: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._outside.runtime.attach(engine_id, Wake(empty))
        self._outside.runtime.kill_tree(engine_id)
        timer = self._clock.call_at(self._clock.now() + seconds, lambda: answer(empty, False))
        try:
            return await empty
        finally:
            timer.cancel()

    def claim_ports(self, engines: Sequence[RecoveredEngine]) -> None:
        """No other engine gets the ports of these, which nobody attached to."""
        for engine in engines:
            if engine.port:
                self._outside.ports.claim(engine.port)

    def give_back_ports(self, engines: Sequence[RecoveredEngine]) -> None:
        for engine in engines:
            if engine.port:
                self._outside.ports.release(engine.port)

    def adopt(self, actor: PoolActor, engine: RecoveredEngine, beside: Beside | None = None) -> None:
        """Takes over an engine that runs, though it may have been launched for a spec that is no longer the pool's.

        `beside`: it is the second one of a reload. Raises EnvironmentFault when it cannot be watched.
        """
        if engine.identity is None:
            raise InternalError(f"engine {engine.engine_id} is alive and has no identity")
        if engine.port:
            self._outside.ports.claim(engine.port)
        spec = beside.spec if beside else actor.pool.spec
        generation = engine.generation if beside else actor.pool.generation
        now = self._launch_of(actor, engine, spec, generation)
        self._launches[engine.engine_id] = now
        self.remember(engine)
        link = self._link(actor, engine.engine_id, spec, devices_in(now.env))
        try:
            self._outside.runtime.attach(engine.engine_id, link)
        except EnvironmentFault:
            self._release_port(engine.engine_id)
            raise
        before, who = engine.launch, engine.identity
        current = before is not None and still_serves(before, now)
        slots = before.slots if before else 0
        if now.reserved:
            self._outside.places.resume(engine.engine_id, actor.pool.pool_id, now.reserved)
        adopted = Adopted(
            engine.engine_id, who.pid, engine.port, current or beside is not None, slots, who.start_ticks, now.plan
        )
        link.begin(adopted if beside is None else AdoptedBeside(adopted, spec, generation, beside.retiring))
        if devices_in(now.env):
            self._spawn(self._still_starts(actor, engine, who), "adopted start")

    async def _still_starts(self, actor: PoolActor, engine: RecoveredEngine, who: ProcessIdentity) -> None:
        """It may be loading, and nobody else is to size itself against it (PRE-7): until it is READY, or gone."""
        devices = devices_in(self._launches[engine.engine_id].env)
        ask = Ask(f"{engine.engine_id} adopted", actor.pool.pool_id, devices, first=False)
        with self._permits.taken(ask):
            far = self._clock.now() + PERMIT_SECONDS
            await actor.until(lambda pool: over(owner(pool, engine.engine_id).engine, who), far)

    def _launch_of(self, actor: PoolActor, engine: RecoveredEngine, spec: PoolSpec, generation: int) -> LaunchSpec:
        """How it would be launched now."""
        try:
            argv, env = self.command_line(spec, engine.port)
        except ClientError:
            # What it was started from has gone since. It runs on; its next start goes through the gates, which say so.
            argv, env = NO_COMMAND_LINE, {}
        if engine.launch is not None and DEVICE_VARIABLE in engine.launch.env:
            env = {**env, **environment_of(devices_in(engine.launch.env))}
        return LaunchSpec(
            engine.engine_id, actor.pool.pool_id, generation, argv, env, engine.port,
            mark=mark_of(spec), slots=spec.slots, record=record_of(actor, spec, generation),
            plan=engine.launch.plan if engine.launch else None,
            reserved=engine.launch.reserved if engine.launch else {},
        )  # fmt: skip

    def told(self, actor: PoolActor, engine_id: str, record: ExitRecord) -> Exited:
        """The end of an engine of an earlier daemon, with what its log says of it."""
        return told(engine_id, record, self._outside.kinds[actor.pool.spec.engine], self._outside.runtime)

    def command_line(self, spec: PoolSpec, port: int) -> tuple[tuple[str, ...], dict[str, str]]:
        """(argv, the whole environment) that this spec gives on this port."""
        return self._outside.kinds[spec.engine].render(spec, port)

    async def check(self, spec: PoolSpec) -> None:
        """The gates before a spawn. Raises ClientError."""
        await self._outside.workers.run(self._outside.kinds[spec.engine].check, spec)

    async def _start(self, actor: PoolActor, effect: Start, engine_id: str, spec: PoolSpec) -> None:
        """Holds the start's permit until it has succeeded or failed (PRE-7)."""
        generation, pool_id = effect.generation, actor.pool.pool_id
        seeker = Seeker(spec, engine_id, pool_id, generation, self._chosen.get(engine_id, ()))
        try:
            for _ in range(PLACES_TRIED):
                placed = await self._outside.places.find(seeker)
                if await self._start_at(actor, effect, seeker, placed):
                    return
            refused = StartRefused(Reason.DEVICE_UNAVAILABLE, TAKEN_AGAIN, False, generation)
        except PoolmgrError as error:
            permanent = isinstance(error, ClientError)
            refused = StartRefused(error.reason, error.message, permanent, generation)
        self._refused(actor, effect, engine_id, refused)

    async def _start_at(self, actor: PoolActor, effect: Start, seeker: Seeker, placed: Placed) -> bool:
        """False where the place is gone once it is this start's turn: whoever sized itself before took more than was
        said, or a stranger came. Raises PoolmgrError where there is no other.
        """
        engine_id, generation = seeker.engine_id, effect.generation
        far = self._clock.now() + PERMIT_SECONDS
        self._starts += 1
        ask = Ask(f"{engine_id} {self._starts}", seeker.pool_id, placed.devices, first=not effect.proven)

        def told(place: Place) -> None:
            actor.tell(Queued(generation, place.position, place.reason))

        def withdrawn() -> Awaitable[None]:
            return actor.until(lambda pool: version(pool, generation).state is not PoolState.PROVISIONING, far)

        async with self._permits.hold(ask, told, withdrawn) as granted:
            if not granted or version(actor.pool, generation).state is not PoolState.PROVISIONING:
                refused = StartRefused("", "asked to end while it waited", False, generation)
                self._refused(actor, effect, engine_id, refused)
                return True
            again = await self._outside.places.find(replace(seeker, before=placed.devices))
            if again.devices != placed.devices:
                return False
            identity = await self._start_now(actor, effect, seeker, again)
            if identity is not None:
                # One that failed is over once nothing of it is left: till then it holds what others would size by.
                await actor.until(lambda pool: over(owner(pool, engine_id).engine, identity), far)
        return True

    async def _start_now(
        self, actor: PoolActor, effect: Start, seeker: Seeker, placed: Placed
    ) -> ProcessIdentity | None:
        """Who runs now; None where nobody does, and the pool has been told why."""
        generation, engine_id, devices = effect.generation, seeker.engine_id, placed.devices
        async with self._order.hold(engine_id):
            try:
                if effect.probe_host:
                    await self._outside.runtime.probe_host()
                launch = await self._launch(actor, effect, seeker, placed)
                if devices:
                    await self._outside.gate.starts(engine_id, devices)
                link = self._link(actor, engine_id, seeker.spec, devices)
                identity = await self._outside.runtime.start(launch, link)
            except ClientError as error:
                refused = StartRefused(error.reason, error.message, True, generation)
            except EnvironmentFault as error:
                permanent = error.reason is Reason.SPAWN_FAILED and error.numbers.get("errno") in PERMANENT_ERRNO
                refused = StartRefused(error.reason, error.message, permanent, generation)
            else:
                self._forget_leftover(actor.pool.pool_id, engine_id)
                spawned = Spawned(
                    engine_id, identity.pid, launch.port, launch.slots, identity.start_ticks, generation, launch.plan
                )
                link.begin(spawned)
                return identity
            self._release_port(engine_id)
        self._refused(actor, effect, engine_id, refused)
        return None

    def _link(self, actor: PoolActor, engine_id: str, spec: PoolSpec, devices: tuple[str, ...]) -> EngineLink:
        out = self._outside
        return EngineLink(
            actor, engine_id, out.kinds[spec.engine], out.runtime, Gpus(out.gate, out.places, self._spawn, devices)
        )

    def _gpu_busy(self, engine_id: str) -> bool | None:
        devices = self.devices_of(engine_id)
        return None if devices is None else self._outside.gate.busy(devices)

    def devices_of(self, engine_id: str) -> tuple[str, ...] | None:
        """What it was started to see; None where nobody knows."""
        launch = self._launches.get(engine_id)
        return devices_in(launch.env) if launch and DEVICE_VARIABLE in launch.env else None

    def _refused(self, actor: PoolActor, effect: Start, engine_id: str, fact: StartRefused) -> None:
        self._outside.places.give_back(engine_id)
        if not effect.engine_id:
            self._leave(actor, engine_id, self._outside.runtime.remove)
        actor.tell(fact)

    async def _launch(self, actor: PoolActor, effect: Start, seeker: Seeker, placed: Placed) -> LaunchSpec:
        """What to start: what was started last in this place, if that has been READY; else anew through the gates."""
        engine_id, spec = seeker.engine_id, seeker.spec
        last = self._launches.get(engine_id)
        same = last is not None and last.argv != NO_COMMAND_LINE and same_place(last, placed)
        if last is not None and same and effect.proven and not effect.fresh_port:
            return last
        await self.check(spec)
        if last is not None and effect.fresh_port:
            self._release_port(engine_id)
            last = None
        port = last.port if last else self._outside.ports.reserve(spec.port)
        argv, env = self.command_line(spec, port)
        args, more = rendered(spec, placed)
        if placed.share:
            args += self._outside.kinds[spec.engine].told_share(spec, placed.share)
        launch = LaunchSpec(
            engine_id, actor.pool.pool_id, effect.generation, (*argv, *args), {**env, **more}, port,
            mark=mark_of(spec), slots=spec.slots, record=record_of(actor, spec, effect.generation), plan=placed.plan,
            reserved=placed.reserved,
        )  # fmt: skip
        self._launches[engine_id] = launch
        self._chosen[engine_id] = placed.devices
        return launch

    def _release_port(self, engine_id: str) -> None:
        launch = self._launches.pop(engine_id, None)
        if launch is not None and launch.port:
            self._outside.ports.release(launch.port)
