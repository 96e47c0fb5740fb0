"""Engines as processes, each the child of a shim that outlives the daemon: the `Runtime` port on this host."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path

from poolmgr.adapters.runtimes.cgroup import Hierarchy, Leaf
from poolmgr.adapters.runtimes.engine import Engine
from poolmgr.adapters.runtimes.enginedir import EngineDirectory
from poolmgr.adapters.runtimes.faults import probe_host, state_faults
from poolmgr.adapters.runtimes.follow import follow
from poolmgr.adapters.runtimes.recovery import Found, examine, without_directory
from poolmgr.adapters.runtimes.tree import Tree
from poolmgr.errors import InternalError
from poolmgr.model.engine import LaunchSpec, ProcessIdentity, RecoveredEngine, RecoveryState, Usage
from poolmgr.ports import EngineListener, Workers

CGROUP, PROCESS_GROUP = "cgroup", "process-group"

_ENGINE_ID = re.compile("[0-9a-f]{32}")


class ProcessRuntime:
    """One directory per engine under `<state_dir>/engines`; one cgroup v2 leaf per engine where the host allows it.

    `listener_inodes`: inodes of the sockets that listen on a TCP port of the loopback or of every address.
    `containment`: one of the two, for a host that is not to be asked. `log_check_seconds`: how often a shim looks
    whether its log has outgrown the limit. `patience`: how many seconds a shim may take to answer and to leave before
    it counts as hung, and is killed. Raises EnvironmentFault(STATE_DIR) when the directory cannot be made.
    """

    def __init__(
        self,
        state_dir: Path,
        workers: Workers,
        *,
        listener_inodes: Callable[[int], Collection[int]],
        containment: str | None = None,
        log_check_seconds: float = 5.0,
        patience: float = 5.0,
    ) -> None:
        self._directory = state_dir.absolute() / "engines"
        with state_faults(self._directory):
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._workers = workers
        self._listener_inodes = listener_inodes
        self._log_check_seconds = log_check_seconds
        self._patience = patience
        self._hierarchy = Hierarchy.find()
        self._place: Path | None = None
        if self._hierarchy is not None and containment != PROCESS_GROUP:
            self._place = self._hierarchy.place_for_leaves()
        self._engines: dict[str, Engine] = {}
        self._found: dict[str, Found] = {}

    @property
    def containment(self) -> str:
        return PROCESS_GROUP if self._place is None else CGROUP

    async def start(self, launch: LaunchSpec, listener: EngineListener) -> ProcessIdentity:
        engine = self._engines.get(launch.engine_id)
        if engine is None:
            engine = self._new(launch.engine_id, self._leaf(launch.engine_id), None)
        return await engine.start(launch, listener, self._log_check_seconds)

    def terminate(self, engine_id: str) -> None:
        self._engines[engine_id].terminate()

    def kill_tree(self, engine_id: str) -> None:
        self._engines[engine_id].kill_tree()

    async def rest(self, engine_id: str) -> None:
        if engine_id in self._engines:
            await self._engines[engine_id].rest()

    async def remove(self, engine_id: str) -> None:
        if engine_id in self._engines:
            await self._engines[engine_id].remove()
            del self._engines[engine_id]
            self._found.pop(engine_id, None)

    async def probe_host(self) -> None:
        await self._workers.run(probe_host, self._directory)

    async def recover(self, engine_ids: Collection[str] | None = None) -> Sequence[RecoveredEngine]:
        with state_faults(self._directory):
            found = await self._workers.run(self._examine_all)
        if engine_ids is not None:
            found = [one for one in found if one.engine.engine_id in engine_ids and one.engine.engine_id in self._found]
        for one in found:
            leaf = None if one.leaf is None else Leaf(one.leaf)
            if one.engine.state is RecoveryState.DEAD and not one.engine.survivors:
                # Nothing is left of it: another start writes `spec` again, and goes where leaves go now.
                if leaf is not None:
                    with suppress(OSError):  # not worth a daemon's start: if it is in the way, the engine's will say so
                        leaf.remove()
                self._new(one.engine.engine_id, self._leaf(one.engine.engine_id), None)
            else:
                self._new(one.engine.engine_id, leaf, one.launch)
            self._found[one.engine.engine_id] = one
        return [one.engine for one in found]

    def attach(self, engine_id: str, listener: EngineListener) -> None:
        """Also for one that is DEAD: the listener hears how it ended, and when the last of its processes has gone."""
        found = self._found[engine_id]
        if found.identity is None or found.engine.state is RecoveryState.IN_DOUBT:
            raise InternalError(f"engine {engine_id} has no run that could be watched: {found.engine.detail}")
        self._engines[engine_id].attach(found.identity, listener, found.engine.exit)
        del self._found[engine_id]

    def usage(self, engine_id: str) -> Usage:
        return self._engines[engine_id].usage()

    def owner_of_port(self, engine_id: str, port: int) -> bool | None:
        engine = self._engines[engine_id]
        try:
            inodes = set(self._listener_inodes(port))
            held = engine.holds_socket(inodes) if inodes else None
            if held is False and not inodes & set(self._listener_inodes(port)):
                return None  # closed while we looked: an engine that gives up is no stranger
        except OSError:
            return None
        return held

    def log_tail(self, engine_id: str, lines: int) -> tuple[str, ...]:
        return self._engines[engine_id].directory.tail(lines)

    def follow_log(self, engine_id: str, lines: int) -> AsyncGenerator[tuple[str, ...], None]:
        return follow(self._engines[engine_id].directory, lines)

    def directory(self, engine_id: str) -> str:
        return str(self._engines[engine_id].directory.path)

    async def close(self) -> None:
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()

    def _new(self, engine_id: str, leaf: Leaf | None, launch: LaunchSpec | None) -> Engine:
        directory = EngineDirectory(self._directory / engine_id)
        engine = Engine(directory, Tree(engine_id, leaf), launch, self._workers, self._patience)
        self._engines[engine_id] = engine
        return engine

    def _leaf(self, engine_id: str) -> Leaf | None:
        return None if self._place is None else Leaf(self._place / engine_id)

    def _examine_all(self) -> list[Found]:
        found = []
        for path in sorted(self._directory.iterdir()):
            if not _ENGINE_ID.fullmatch(path.name) or path.is_symlink() or not path.is_dir():
                continue  # not ours: lost+found, what an editor or an operator left
            leaf = self._leaf(path.name)
            found.append(examine(EngineDirectory(path), None if leaf is None else leaf.path, self._hierarchy))
        return found + without_directory(self._directory)
