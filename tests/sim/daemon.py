"""One life of the daemon: the real supervisor, actors, bus and facade over the simulated ports.

Composed as `poolmgr.app` composes it, without the edges: the calls of clients come in through `serve`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from poolmgr.errors import PoolmgrError
from poolmgr.model.pool import EngineName
from poolmgr.model.settings import LeaseSettings, SupervisionSettings
from poolmgr.runtime import declared
from poolmgr.runtime.bus import Bus
from poolmgr.runtime.engine_host import Outside
from poolmgr.runtime.facade import About, Controls, Facade
from poolmgr.runtime.supervisor import Settings, Supervisor
from poolmgr.runtime.tasks import Tasks
from tests.sim.gate import Gate
from tests.sim.outside import SimClock, SimKind, SimPorts, SimProbe, SimRng, SimWorkers
from tests.sim.runtime import SimRuntime
from tests.sim.store import SimStore
from tests.sim.timeline import DaemonKilled, SimLoop

if TYPE_CHECKING:
    from tests.sim.world import World


class Daemon:
    """`serving`: it answers calls. `paused`: it exists and is not scheduled."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.number = number
        self.gate = Gate(world)
        self.loop = SimLoop(world.timeline, self._loop_error)
        self.serving = False
        self.began = world.timeline.now
        self.served_at = 0.0
        self.paused = False
        self.ending = False
        self.recovering = True
        self.loop.call_soon(self._begin)

    # Beginning and end.

    def _begin(self) -> None:
        self.loop.create_task(self._main(), name="main")

    async def _main(self) -> None:
        world = self.world
        try:
            self._compose()
            await self.supervisor.recover()
            await declared.apply_at_start(self.supervisor, self.facade.versions, world.declared)
        except PoolmgrError as error:
            world.trace("daemon refuses to start", str(error))
            world.daemon_exits(self)
            return
        except DaemonKilled:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
            world.oracle.defect(f"the daemon's start failed: {error!r}", error)
            world.daemon_exits(self)
            return
        self.recovering, self.serving, self.served_at = False, True, world.timeline.now
        world.daemon_serves(self)

    def _compose(self) -> None:
        world, gate = self.world, self.gate
        self.tasks = Tasks(self._task_failed)
        self.store = SimStore(world, gate)
        self.runtime = SimRuntime(world, gate)
        self.ports = SimPorts(world, gate)
        clock = SimClock(world, self.loop.call_soon, gate)
        rng = SimRng(f"{world.seed}/{self.number}")
        kinds = {EngineName.COMMAND: SimKind(world, gate)}
        workers = SimWorkers(world, gate)
        outside = Outside(self.runtime, kinds, SimProbe(world, gate), self.ports, workers, rng)
        self.bus = Bus(self.store.epoch)
        self.bus.listen(world.oracle.noted)
        settings = Settings(SupervisionSettings(), LeaseSettings())
        self.supervisor = Supervisor(clock, rng, self.store, outside, settings, self.bus, self.tasks)
        about = About("sim", 1, clock.wall(), "127.0.0.1:1", "/sim", "")
        controls = Controls(list, lambda: (world.declared, ()), lambda stop: None)
        self.facade = Facade(self.supervisor, outside, self.store, clock, about, controls)

    async def _end(self, stop_engines: bool) -> None:
        """As the last lines of `poolmgr.app.serve`."""
        self.serving = False
        await self.supervisor.close(stop_engines)
        await self.tasks.close()
        await self.runtime.close()
        self.store.close()
        self.world.daemon_exits(self)

    def terminate(self, stop_engines: bool) -> None:
        if self.serving and not self.ending:
            self.ending = True
            self.loop.create_task(self._end(stop_engines), name="end")

    def die(self) -> None:
        """kill -9."""
        self.gate.dead = True
        self.serving = False
        self.loop.stop_for_good()
        if hasattr(self, "store"):
            self.store.process_died()

    # Judged from outside.

    def _task_failed(self, error: BaseException) -> None:
        if not isinstance(error, DaemonKilled) and not self.gate.dead:
            self.world.oracle.defect(f"a task of the daemon failed: {error!r}", error)

    def _loop_error(self, context: dict) -> None:
        error = context.get("exception")
        if not isinstance(error, DaemonKilled) and not self.gate.dead:
            self.world.oracle.defect(f"{context.get('message')}: {error!r}", error)

    # Calls.

    def serve(self, work: Callable, answer: Callable) -> object:
        """Does `work` (a coroutine function of the facade) as a call; `answer` hears (result, error)."""

        async def handle() -> None:
            try:
                result = await work(self.facade)
            except PoolmgrError as error:
                answer(None, error)
            except DaemonKilled:
                raise
            except Exception as error:  # noqa: BLE001 - a client would see INTERNAL: a defect
                self.world.oracle.defect(f"a call failed with {error!r}", error)
                answer(None, error)
            else:
                answer(result, None)

        return self.loop.create_task(handle(), name="call")
