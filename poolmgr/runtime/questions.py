"""What is asked of an engine that runs: whether it is well, how it gets on, a piece of its work. Its pool is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from poolmgr.core.effects import AskWork, RunProbe, Verify
from poolmgr.core.messages import Probed, Verified, WorkAnswered
from poolmgr.core.state import owner, version
from poolmgr.errors import EnvironmentFault
from poolmgr.model.engine import EngineFacts, ProbeOutcome, Progress
from poolmgr.model.pool import PoolSpec, ProbeKind
from poolmgr.ports import Clock, EngineKind
from poolmgr.runtime.pool_actor import PoolActor
from poolmgr.runtime.tasks import Tasks

if TYPE_CHECKING:
    from poolmgr.runtime.engine_host import Outside

# Whether a GPU of this engine did any work since it was asked last; None: cannot be told.
GpuBusy = Callable[[str], bool | None]


class Questions:
    """Each answer is told to the pool, unless the engine has gone meanwhile: then its end is."""

    def __init__(self, outside: Outside, clock: Clock, spawn: Tasks, gpu_busy: GpuBusy) -> None:
        self._outside = outside
        self._clock = clock
        self._spawn = spawn
        self.gpu_busy = gpu_busy

    def ask(self, actor: PoolActor, effect: RunProbe | AskWork | Verify) -> None:
        match effect:
            case RunProbe():
                self._spawn(self._probe(actor, effect), "probe")
            case AskWork():
                self._spawn(self._work(actor, effect), "ask for work")
            case Verify():
                self._spawn(self._verify(actor, effect), "verify")

    async def _probe(self, actor: PoolActor, effect: RunProbe) -> None:
        """With what it uses. One that is to be ready also tells what it is, one that serves how it gets on."""
        out, whose = self._outside, owner(actor.pool, effect.engine_id)
        run = whose.engine
        if run is None or run.engine_id != effect.engine_id:
            return
        spec, kind, until = whose.spec, out.kinds[whose.spec.engine], self._clock.now() + effect.timeout
        ask = kind.readiness if effect.readiness else kind.liveness
        target = ask(spec, run.port, effect.timeout)
        result = await out.probe(target)
        well = result.outcome is ProbeOutcome.OK
        progress = None
        if well and not effect.readiness:
            progress = await self._progress(kind, spec, run.port, until - self._clock.now())
        now = owner(actor.pool, effect.engine_id).engine
        if now is None or now.engine_id != run.engine_id or not now.main_alive:
            return
        owned: bool | None = True  # nothing to own where nothing is asked
        facts = None
        if effect.readiness and target.kind != ProbeKind.NONE:
            owned = out.runtime.owner_of_port(run.engine_id, run.port)
        usage, busy = out.runtime.usage(run.engine_id), self.gpu_busy(run.engine_id)
        if effect.readiness and well and owned:  # asked last: it may be gone after that
            facts = await self._describe(kind, spec, run.port, effect.timeout)
        actor.tell(Probed(run.engine_id, effect.serial, result, usage, owned, facts, progress, busy))

    async def _work(self, actor: PoolActor, effect: AskWork) -> None:
        whose = owner(actor.pool, effect.engine_id)
        run = whose.engine
        if run is None or run.engine_id != effect.engine_id:
            return
        target = self._outside.kinds[whose.spec.engine].verification(whose.spec, run.port, effect.timeout)
        actor.tell(WorkAnswered(effect.engine_id, effect.serial, await self._outside.probe(target)))

    async def _verify(self, actor: PoolActor, effect: Verify) -> None:
        """A piece of the engine's own work, where its kind knows one; else its readiness once more."""
        whose = version(actor.pool, effect.generation)
        run, kind = whose.engine, self._outside.kinds[whose.spec.engine]
        if run is None:
            return  # its end has been told
        target = kind.verification(whose.spec, run.port, effect.timeout)
        result = await self._outside.probe(target)
        now = version(actor.pool, effect.generation).engine
        if now is None or now.engine_id != run.engine_id:
            return  # nor does its answer vouch for another engine of this generation
        detail = "" if result.outcome is ProbeOutcome.OK else f"synthetic request: {result.detail or result.outcome}"
        actor.tell(Verified(effect.generation, detail))

    async def _progress(self, kind: EngineKind, spec: PoolSpec, port: int, timeout: float) -> Progress | None:
        try:
            return await kind.progress(spec, port, timeout) if timeout > 0 else None
        except EnvironmentFault:
            return None  # it answered its probe; that it does not say how it gets on proves nothing

    async def _describe(self, kind: EngineKind, spec: PoolSpec, port: int, timeout: float) -> EngineFacts | None:
        try:
            return await kind.describe(spec, port, timeout)
        except EnvironmentFault:
            return None  # it answered its probe; what it is called may stay unknown
