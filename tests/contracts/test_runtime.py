"""What every Runtime keeps to: real processes in a cgroup, real ones in a process group, and the scripted fake."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from poolmgr.adapters.runtimes.process import PROCESS_GROUP, ProcessRuntime
from poolmgr.adapters.system import ThreadWorkers
from poolmgr.errors import InternalError
from poolmgr.model.engine import ExitRecord, LaunchSpec, ProcessIdentity, RecoveredEngine, RecoveryState
from poolmgr.ports import Runtime
from poolmgr.testing.fakes import ScriptedRuntime

PATIENCE = 15.0


class Heard:
    """What a listener was told, in order."""

    def __init__(self) -> None:
        self.told: asyncio.Queue[str] = asyncio.Queue()
        self.records: list[ExitRecord] = []

    def exited(self, record: ExitRecord) -> None:
        self.records.append(record)
        self.told.put_nowait("exited")

    def tree_empty(self) -> None:
        self.told.put_nowait("tree_empty")

    async def next(self) -> str:
        return await asyncio.wait_for(self.told.get(), PATIENCE)


@dataclass
class Rig:
    runtime: Runtime
    sigkill: Callable[[str, int], None]  # (engine id, pid): ends the main process from outside
    fake: ScriptedRuntime | None = None

    async def start_one_that_leaves_a_child(self, spec: LaunchSpec, heard: Heard) -> ProcessIdentity:
        """Its main process has ended on return, and something of its tree is left."""
        identity = await self.runtime.start(spec, heard)
        if self.fake is not None:
            self.fake.end(spec.engine_id, ExitRecord(exit_code=3, source="shim"), empty=False)
        assert await heard.next() == "exited"
        return identity

    async def next_daemon(self, spec: LaunchSpec) -> RecoveredEngine:
        """Another daemon begins: what it finds of the only engine."""
        if self.fake is not None:
            engine = self.fake.engines.pop(spec.engine_id)
            known = RecoveredEngine(
                spec.engine_id, spec.pool_id, spec.generation, RecoveryState.DEAD, 0,
                exit=ExitRecord(exit_code=3, source="shim"), survivors=engine.tree_alive,
            )  # fmt: skip
            self.fake.found = [known]
        await self.runtime.close()
        (found,) = await self.runtime.recover()
        return found


def launch(*argv: str) -> LaunchSpec:
    return LaunchSpec(uuid.uuid4().hex, "pool", 1, argv or ("/bin/sleep", "1000"), {"A": "1"})


def launch_with_child() -> LaunchSpec:
    """Its child goes into a session of its own."""
    text = "import os, signal\nif os.fork() == 0:\n    os.setsid()\n    signal.pause()\nos._exit(3)"
    return launch(sys.executable, "-I", "-S", "-c", text)


@pytest_asyncio.fixture(params=[pytest.param("cgroup", marks=pytest.mark.needs_root), "process-group", "scripted"])
async def rig(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Rig]:
    if request.param == "scripted":
        fake = ScriptedRuntime()
        yield Rig(fake, lambda engine_id, pid: fake.end(engine_id, ExitRecord(signal=9, source="shim")), fake)
        return
    workers = ThreadWorkers("test", 2)
    containment = PROCESS_GROUP if request.param == "process-group" else None
    runtime = ProcessRuntime(tmp_path, workers, listener_inodes=lambda port: (), containment=containment)
    if runtime.containment != request.param:
        pytest.skip("needs a cgroup v2 hierarchy that we may write to")
    yield Rig(runtime, lambda engine_id, pid: os.kill(pid, signal.SIGKILL))
    await runtime.close()
    workers.close()


async def ended(rig: Rig, spec: LaunchSpec, heard: Heard) -> None:
    rig.runtime.kill_tree(spec.engine_id)
    assert [await heard.next(), await heard.next()] == ["exited", "tree_empty"]
    await rig.runtime.remove(spec.engine_id)


@pytest.mark.behaviour("PROC-3")
async def test_an_end_is_told_once_and_then_that_the_tree_is_empty(rig: Rig) -> None:
    spec, heard = launch(), Heard()
    identity = await rig.runtime.start(spec, heard)
    rig.sigkill(spec.engine_id, identity.pid)
    assert [await heard.next(), await heard.next()] == ["exited", "tree_empty"]
    assert heard.told.empty()
    assert heard.records[0].signal == signal.SIGKILL
    await rig.runtime.remove(spec.engine_id)


@pytest.mark.behaviour("PROC-3", "PROC-5")
async def test_an_engine_that_was_killed_as_a_tree_starts_again_and_lives(rig: Rig) -> None:
    spec, first, second = launch(), Heard(), Heard()
    before = await rig.runtime.start(spec, first)
    rig.runtime.kill_tree(spec.engine_id)
    assert [await first.next(), await first.next()] == ["exited", "tree_empty"]
    after = await rig.runtime.start(spec, second)
    assert after.pid != before.pid
    with pytest.raises(asyncio.TimeoutError):  # a leaf that was killed once must not kill what is born into it
        await asyncio.wait_for(second.told.get(), 0.3)
    await ended(rig, spec, second)


async def test_killing_what_has_ended_changes_nothing(rig: Rig) -> None:
    spec, heard = launch(), Heard()
    identity = await rig.runtime.start(spec, heard)
    rig.sigkill(spec.engine_id, identity.pid)
    assert [await heard.next(), await heard.next()] == ["exited", "tree_empty"]
    rig.runtime.kill_tree(spec.engine_id)
    rig.runtime.terminate(spec.engine_id)
    again = Heard()
    await rig.runtime.start(spec, again)
    await ended(rig, spec, again)


@pytest.mark.behaviour("PROC-5")
async def test_a_second_start_of_a_running_engine_is_refused(rig: Rig) -> None:
    spec, heard = launch(), Heard()
    await rig.runtime.start(spec, heard)
    with pytest.raises(InternalError):
        await rig.runtime.start(spec, Heard())
    assert heard.told.empty()
    await ended(rig, spec, heard)


async def test_resting_and_removing_what_is_unknown_changes_nothing(rig: Rig) -> None:
    await rig.runtime.rest("0" * 32)
    await rig.runtime.remove("0" * 32)
    assert await rig.runtime.recover() == []


async def test_an_engine_that_rested_can_start_again(rig: Rig) -> None:
    spec, heard = launch(), Heard()
    identity = await rig.runtime.start(spec, heard)
    rig.sigkill(spec.engine_id, identity.pid)
    assert [await heard.next(), await heard.next()] == ["exited", "tree_empty"]
    await rig.runtime.rest(spec.engine_id)
    again = Heard()
    await rig.runtime.start(spec, again)
    await ended(rig, spec, again)


@pytest.mark.behaviour("PROC-3")
async def test_nothing_is_started_rested_or_removed_over_processes_that_are_left(rig: Rig) -> None:
    spec, heard = launch_with_child(), Heard()
    await rig.start_one_that_leaves_a_child(spec, heard)
    with pytest.raises(InternalError):
        await rig.runtime.start(spec, Heard())
    with pytest.raises(InternalError):
        await rig.runtime.rest(spec.engine_id)
    with pytest.raises(InternalError):
        await rig.runtime.remove(spec.engine_id)
    rig.runtime.kill_tree(spec.engine_id)
    assert await heard.next() == "tree_empty"
    assert heard.told.empty()
    await rig.runtime.remove(spec.engine_id)


@pytest.mark.behaviour("PROC-3", "PROC-6")
async def test_the_next_daemon_hears_of_survivors_and_can_end_them(rig: Rig) -> None:
    spec = launch_with_child()
    await rig.start_one_that_leaves_a_child(spec, Heard())
    found = await rig.next_daemon(spec)
    assert (found.state, found.survivors) == (RecoveryState.DEAD, True)
    with pytest.raises(InternalError):
        await rig.runtime.remove(spec.engine_id)
    heard = Heard()
    rig.runtime.attach(spec.engine_id, heard)
    rig.runtime.kill_tree(spec.engine_id)
    assert [await heard.next(), await heard.next()] == ["exited", "tree_empty"]
    assert heard.records[0].exit_code == 3
    await rig.runtime.remove(spec.engine_id)


@pytest.mark.behaviour("PROC-6")
async def test_the_next_daemon_finds_no_survivors_of_a_tree_that_is_empty(rig: Rig) -> None:
    spec, heard = launch_with_child(), Heard()
    await rig.start_one_that_leaves_a_child(spec, heard)
    rig.runtime.kill_tree(spec.engine_id)
    assert await heard.next() == "tree_empty"
    found = await rig.next_daemon(spec)
    assert (found.state, found.survivors) == (RecoveryState.DEAD, False)
    await rig.runtime.remove(spec.engine_id)
