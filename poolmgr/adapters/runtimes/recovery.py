"""What an engine directory tells a daemon at its start (PROC-6). Reads only: starts, signals and removes nothing."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from poolmgr.adapters.runtimes import procfs
from poolmgr.adapters.runtimes.cgroup import Hierarchy, Leaf
from poolmgr.adapters.runtimes.enginedir import EngineDirectory, identity_of, launch_of
from poolmgr.adapters.runtimes.tree import Tree
from poolmgr.adapters.shim import procfs as proc
from poolmgr.adapters.shim import wire
from poolmgr.model.engine import ExitRecord, LaunchSpec, ProcessIdentity, RecoveredEngine, RecoveryState


@dataclass(frozen=True, slots=True)
class Found:
    """`identity`: of the last run, alive or not; `leaf`: where `spec` put it; `launch` None: `spec` is unreadable."""

    engine: RecoveredEngine
    launch: LaunchSpec | None
    identity: ProcessIdentity | None
    leaf: Path | None


@dataclass(frozen=True, slots=True)
class _Verdict:
    state: RecoveryState
    exit: ExitRecord | None = None
    detail: str = ""


def examine(directory: EngineDirectory, usual_leaf: Path | None, hierarchy: Hierarchy | None) -> Found:
    """Judges one engine. `usual_leaf`: where its leaf would be, for a spec that cannot be read."""
    engine_id = directory.path.name
    launch, leaf, identity = None, usual_leaf, None
    try:
        spec = directory.read(wire.SPEC) or {}
        launch = launch_of(spec)
        leaf = None if spec["cgroup"] is None else Path(spec["cgroup"])
        ident = directory.read(wire.IDENT)
        identity = None if ident is None else identity_of(ident)
        damage = "" if ident is not None else "the engine was never started or left no ident"
    except (OSError, ValueError, KeyError, TypeError) as error:
        damage = f"unreadable record: {error}"
    tree = Tree(engine_id, None if leaf is None else Leaf(leaf))
    verdict = _without_identity(tree, damage) if identity is None else _compare(directory, identity, leaf, hierarchy)
    engine = RecoveredEngine(
        engine_id=engine_id,
        pool_id=launch.pool_id if launch else "",
        generation=launch.generation if launch else 0,
        state=verdict.state,
        port=launch.port if launch else 0,
        launch=launch,
        identity=None if verdict.state is RecoveryState.IN_DOUBT else identity,
        exit=verdict.exit,
        detail=verdict.detail,
        survivors=verdict.state is RecoveryState.DEAD and tree.alive(),
    )
    return Found(engine, launch, identity, leaf)


def _without_identity(tree: Tree, damage: str) -> _Verdict:
    if tree.alive():
        return _Verdict(RecoveryState.IN_DOUBT, detail=f"{damage}; processes {tree.pids()} are left")
    return _Verdict(RecoveryState.DEAD, ExitRecord(), damage)


def _compare(
    directory: EngineDirectory, identity: ProcessIdentity, leaf: Path | None, hierarchy: Hierarchy | None
) -> _Verdict:
    if identity.boot_id != proc.boot_id():
        return _Verdict(RecoveryState.DEAD, directory.exit_of(identity) or ExitRecord(), "the host was booted since")
    ticks = proc.start_ticks(identity.pid)
    if ticks is None or procfs.is_zombie(identity):
        return _dead(directory, identity, "")
    equal = {
        "start time": ticks == identity.start_ticks,
        "environment": procfs.carries_engine_id(identity.pid, directory.path.name) is True,
    }
    if leaf is not None and hierarchy is not None:
        equal["cgroup"] = hierarchy.directory_of(identity.pid) == leaf
    if not any(equal.values()):
        return _dead(directory, identity, f"pid {identity.pid} is another process now")
    equal["pidfd inode"] = not equal["start time"] or _opens(identity)
    if all(equal.values()):
        return _Verdict(RecoveryState.ALIVE)
    different = ", ".join(name for name, same in equal.items() if not same)
    return _Verdict(RecoveryState.IN_DOUBT, detail=f"pid {identity.pid} is not surely the engine: {different} differs")


def _opens(identity: ProcessIdentity) -> bool:
    pidfd = procfs.open_pidfd(identity)
    if pidfd is None:
        return False
    os.close(pidfd)
    return True


def _dead(directory: EngineDirectory, identity: ProcessIdentity, detail: str) -> _Verdict:
    record = directory.exit_of(identity) or procfs.cause_of_zombie(identity) or ExitRecord()
    return _Verdict(RecoveryState.DEAD, record, detail)


def without_directory(engines: Path) -> list[Found]:
    """Engines of this state directory that run while their records are gone: told by what their processes carry.

    Nothing proves which process is the engine's main one, so each is in doubt. Raises OSError.
    """
    found: dict[str, list[int]] = {}
    about: dict[str, tuple[str, int]] = {}
    for pid in proc.all_pids():
        marks = procfs.marks_of(pid)
        engine_id, path = marks.get(wire.ENGINE_ID_VARIABLE, ""), marks.get(wire.ENGINE_DIRECTORY_VARIABLE, "")
        if not engine_id or path != str(engines / engine_id) or os.path.isdir(path):
            continue
        found.setdefault(engine_id, []).append(pid)
        pool_id, _, generation = marks.get(wire.POOL_VARIABLE, "").partition(":")
        about[engine_id] = (pool_id, int(generation) if generation.isdecimal() else 0)
    return [
        Found(RecoveredEngine(
            engine_id, *about[engine_id], RecoveryState.IN_DOUBT, 0,
            detail=f"its directory is gone, and processes {pids} carry its id",
        ), None, None, None)
        for engine_id, pids in sorted(found.items())
    ]  # fmt: skip
