"""The Runtime port over the simulated kernel and disk: one for each life of the daemon.

It keeps the port's contract (`tests/contracts/test_runtime.py`; `test_sim.py` holds it to the essence of that) and
takes the time that the real one takes, so that the daemon can die between any two of its steps.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncGenerator, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from poolmgr.errors import EnvironmentFault, InternalError, Reason
from poolmgr.model.engine import (
    ExitRecord,
    LaunchSpec,
    ProcessIdentity,
    RecoveredEngine,
    RecoveryState,
    Usage,
)
from poolmgr.ports import EngineListener
from tests.sim.disk import EngineDir
from tests.sim.gate import Gate, port
from tests.sim.kernel import NoPids, Process

if TYPE_CHECKING:
    from tests.sim.world import World

CAUSE_SECONDS = 3.0  # within which the kernel tells a cause that no shim told (PROC-6)


@dataclass(eq=False)
class Watched:
    """One run that this daemon watches. `process` None: it had ended before the daemon began."""

    directory: EngineDir
    process: Process | None
    listener: EngineListener
    told_exit: bool = False
    told_empty: bool = False


class SimRuntime:
    containment = "sim"

    def __init__(self, world: World, gate: Gate) -> None:
        self._world = world
        self._kernel = world.kernel
        self._dirs = world.disk.engine_dirs
        self.gate = gate
        self._known: dict[str, EngineDir] = {}
        self._found: dict[str, RecoveredEngine] = {}
        self._watched: dict[str, Watched] = {}

    # Starts.

    @port("runtime.start")
    async def start(self, launch: LaunchSpec, listener: EngineListener) -> ProcessIdentity:
        world, engine_id = self._world, launch.engine_id
        if self._kernel.leaf(engine_id) or (engine_id in self._watched and not self._watched[engine_id].told_empty):
            raise InternalError(f"engine {engine_id} still has processes")
        world.oracle.start_asked(launch)
        await world.sleep(world.latency(0.002))
        self._alive()
        directory = self._known.get(engine_id) or self._dirs.setdefault(engine_id, EngineDir(engine_id))
        self._known[engine_id] = self._dirs[engine_id] = directory
        directory.launch, directory.damaged = launch, False
        await world.sleep(world.latency(0.002))
        self._alive()
        process = self._exec(directory, launch)
        watched = Watched(directory, process, listener)
        self._watched[engine_id] = watched
        await world.sleep(world.latency(0.004))
        self._alive()
        assert directory.identity is not None
        return directory.identity

    def _exec(self, directory: EngineDir, launch: LaunchSpec) -> Process:
        """By the shim, which is not the daemon: what it has begun it ends."""
        kernel, world = self._kernel, self._world
        try:
            shim = kernel.shims.get(launch.engine_id)
            if shim is None or not shim.alive:
                kernel.shims[launch.engine_id] = kernel.spawn("shim", engine_id=launch.engine_id)
            script = world.script(launch.pool_id, launch.generation)
            process = kernel.start_engine(
                launch.engine_id, launch.pool_id, launch.generation, launch.port, script
            )  # fmt: skip
        except NoPids as error:
            raise EnvironmentFault(Reason.SPAWN_FAILED, "no pid is free", numbers={"errno": 11}) from error
        directory.main, directory.exit = process, None
        directory.identity = ProcessIdentity(kernel.boot_id, process.pid, process.ticks)
        directory.log = [script.log] if script.log else []
        world.oracle.spawned(process)
        world.trace("spawn", launch.pool_id, str(launch.generation), str(process.pid), f":{launch.port}")
        return process

    def _alive(self) -> None:
        self.gate.leave(-1)

    # Signals: always to a process that is held, never to a number.

    @port("runtime.terminate")
    def terminate(self, engine_id: str) -> None:
        self._known[engine_id]
        watched = self._watched.get(engine_id)
        if watched is not None and watched.process is not None:
            self._kernel.signal(watched.process, signal.SIGTERM)

    @port("runtime.kill_tree")
    def kill_tree(self, engine_id: str) -> None:
        self._known[engine_id]
        for process in self._kernel.leaf(engine_id):
            self._kernel.signal(process, signal.SIGKILL)

    # Ends.

    @port("runtime.rest")
    async def rest(self, engine_id: str) -> None:
        if engine_id not in self._known:
            return
        self._require_empty(engine_id)
        await self._world.sleep(self._world.latency(0.003))
        self._alive()
        self._end_shim(engine_id)

    @port("runtime.remove")
    async def remove(self, engine_id: str) -> None:
        if engine_id not in self._known:
            return
        self._require_empty(engine_id)
        await self._world.sleep(self._world.latency(0.003))
        self._alive()
        self._end_shim(engine_id)
        self._kernel.leaves.pop(engine_id, None)
        self._dirs.pop(engine_id, None)
        for table in (self._known, self._found, self._watched):
            table.pop(engine_id, None)

    def _require_empty(self, engine_id: str) -> None:
        if self._kernel.leaf(engine_id):
            raise InternalError(f"engine {engine_id} still has processes")

    def _end_shim(self, engine_id: str) -> None:
        shim = self._kernel.shims.pop(engine_id, None)
        if shim is not None:
            self._kernel.end(shim, 0, None)

    # What the kernel tells.

    def process_ended(self, process: Process, record: ExitRecord | None) -> None:
        """`record` as the shim wrote it; None: the shim is gone, and the kernel may be asked."""
        watched = self._watched.get(process.engine_id)
        if watched is None:
            return
        if watched.process is process and not watched.told_exit:
            if record is not None:
                self._world.later(0.001, self._tell_exit, watched, record)
            else:
                known = self._world.chance(0.7)
                cause = cause_of(process, "waitid") if known else ExitRecord()
                self._world.later(0.01 if known else CAUSE_SECONDS, self._tell_exit, watched, cause)
        self._world.later(0.002, self._look_for_end, watched)

    def _tell_exit(self, watched: Watched, record: ExitRecord) -> None:
        if not watched.told_exit and not self.gate.dead:
            watched.told_exit = True
            self._world.oracle.exit_told(watched.process)
            watched.listener.exited(record)
        self._look_for_end(watched)

    def _look_for_end(self, watched: Watched) -> None:
        if watched.told_exit and not watched.told_empty and not self.gate.dead:
            engine_id = watched.directory.engine_id
            if self._watched.get(engine_id) is watched and not self._kernel.leaf(engine_id):
                watched.told_empty = True
                watched.listener.tree_empty()

    # The daemon's start.

    @port("runtime.recover")
    async def recover(self, engine_ids: Collection[str] | None = None) -> Sequence[RecoveredEngine]:
        await self._world.sleep(self._world.latency(0.005))
        self._alive()
        wanted = sorted(self._dirs) if engine_ids is None else sorted(i for i in engine_ids if i in self._dirs)
        found = [self._examine(self._dirs[engine_id]) for engine_id in wanted]
        for one in found:
            self._known[one.engine_id] = self._dirs[one.engine_id]
            self._found[one.engine_id] = one
        self._world.oracle.pools.recovered(found, engine_ids is None)
        return found

    def _examine(self, directory: EngineDir) -> RecoveredEngine:
        state, record, detail = self._judge(directory)
        launch = None if directory.damaged else directory.launch
        return RecoveredEngine(
            engine_id=directory.engine_id,
            pool_id=launch.pool_id if launch else "",
            generation=launch.generation if launch else 0,
            state=state,
            port=launch.port if launch else 0,
            launch=launch,
            identity=None if state is RecoveryState.IN_DOUBT else directory.identity,
            exit=record,
            detail=detail,
            survivors=state is RecoveryState.DEAD and bool(self._kernel.leaf(directory.engine_id)),
        )

    def _judge(self, directory: EngineDir) -> tuple[RecoveryState, ExitRecord | None, str]:
        identity = directory.identity
        if identity is None or directory.damaged:
            if self._kernel.leaf(directory.engine_id):
                return RecoveryState.IN_DOUBT, None, "unreadable record; processes are left"
            return RecoveryState.DEAD, ExitRecord(), "unreadable record"
        if identity.boot_id != self._kernel.boot_id:
            return RecoveryState.DEAD, directory.exit or ExitRecord(), "the host was booted since"
        process = self._kernel.processes.get(identity.pid)
        if process is None or not process.alive or process.engine_id != directory.engine_id:
            return RecoveryState.DEAD, directory.exit or ExitRecord(), ""
        if process.ticks == identity.start_ticks and process.kind == "engine":
            return RecoveryState.ALIVE, None, ""
        return RecoveryState.IN_DOUBT, None, f"pid {identity.pid} is not surely the engine"

    @port("runtime.attach")
    def attach(self, engine_id: str, listener: EngineListener) -> None:
        found, directory = self._found[engine_id], self._known[engine_id]
        if directory.identity is None or found.state is RecoveryState.IN_DOUBT:
            raise InternalError(f"engine {engine_id} has no run that could be watched")
        alive = found.state is RecoveryState.ALIVE
        watched = Watched(directory, directory.main if alive else None, listener)
        self._watched[engine_id] = watched
        del self._found[engine_id]
        if not alive:
            self._world.later(0.001, self._tell_exit, watched, found.exit or ExitRecord())
        elif directory.main is not None and not directory.main.alive:  # it ended since it was examined
            self._world.later(0.001, self._tell_exit, watched, directory.exit or ExitRecord())

    @port("runtime.probe_host")
    async def probe_host(self) -> None:
        await self._world.sleep(self._world.latency(0.004))

    # Looks.

    def usage(self, engine_id: str) -> Usage:
        main = self._known[engine_id].main
        if main is None or not main.alive:
            return Usage()
        age = self._world.timeline.now - main.started
        moved = int(min(age, main.script.load) * 1e6) if main.script.progress else 0
        return Usage(log_bytes=100, rss_bytes=1 << 20, read_bytes=moved)

    def owner_of_port(self, engine_id: str, port: int) -> bool | None:
        self._known[engine_id]
        holder = self._kernel.listener(port)
        return None if holder is None else holder.engine_id == engine_id

    def log_tail(self, engine_id: str, lines: int) -> tuple[str, ...]:
        return tuple(self._known[engine_id].log[-lines:])

    async def follow_log(self, engine_id: str, lines: int) -> AsyncGenerator[tuple[str, ...], None]:
        yield self.log_tail(engine_id, lines)

    def directory(self, engine_id: str) -> str:
        return f"/sim/engines/{self._known[engine_id].engine_id}"

    async def close(self) -> None:
        self._watched.clear()
        self._known.clear()


def cause_of(process: Process, source: str) -> ExitRecord:
    return ExitRecord(process.exit_code, process.signal, process.oom, source)
