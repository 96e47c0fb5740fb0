"""Real engines for the tests of the process runtime: small Python programs, and ears for what the runtime tells."""

from __future__ import annotations

import asyncio
import os
import select
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

from poolmgr.adapters.runtimes.process import ProcessRuntime
from poolmgr.adapters.shim import records
from poolmgr.model.engine import ExitRecord, LaunchSpec

EMPTY = "tree_empty"
PYTHON = (sys.executable, "-I", "-S", "-u", "-c")
IDLE = "import signal; print('up'); signal.pause()"


class Threads:
    async def run(self, function: Callable, *args: object):
        return await asyncio.to_thread(function, *args)


class Recorder:
    """Keeps what a listener is told, in order."""

    def __init__(self) -> None:
        self.told: asyncio.Queue = asyncio.Queue()

    def exited(self, record: ExitRecord) -> None:
        self.told.put_nowait(record)

    def tree_empty(self) -> None:
        self.told.put_nowait(EMPTY)

    async def exit(self) -> ExitRecord:
        record = await self.told.get()
        assert isinstance(record, ExitRecord)
        return record

    async def end(self) -> ExitRecord:
        """The exit, with the empty tree after it and nothing else."""
        record = await self.exit()
        assert await self.told.get() == EMPTY
        assert self.told.empty()
        return record


def launch(*argv: str, env: dict[str, str] | None = None, **more: object) -> LaunchSpec:
    return LaunchSpec(uuid.uuid4().hex, "pool", 1, argv, env or {}, **more)


def script(text: str, **more: object) -> LaunchSpec:
    return launch(*PYTHON, text, **more)


def runtime(state_dir: Path, **more: object) -> ProcessRuntime:
    more.setdefault("listener_inodes", lambda port: ())
    return ProcessRuntime(state_dir, Threads(), **more)


async def lines_of(runtime: ProcessRuntime, engine_id: str, count: int) -> list[str]:
    """The first `count` lines that the engine writes."""
    seen: list[str] = []
    follower = runtime.follow_log(engine_id, 1000)
    async for batch in follower:
        seen += batch
        if len(seen) >= count:
            break
    await follower.aclose()
    return seen[:count]


def log_path(runtime: ProcessRuntime, spec: LaunchSpec) -> str:
    return str(Path(runtime.directory(spec.engine_id), "log"))


def record(runtime: ProcessRuntime, engine_id: str, name: str) -> dict:
    return records.read(str(Path(runtime.directory(engine_id), name)))


def shim_pid(runtime: ProcessRuntime, engine_id: str) -> int:
    return record(runtime, engine_id, "ident")["shim_pid"]


async def gone(pidfd: int) -> None:
    """Waits for the end of a process."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(pidfd, ended.set)
    await ended.wait()
    loop.remove_reader(pidfd)
    os.close(pidfd)


def running(pid: int) -> bool:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        return not select.select([pidfd], [], [], 0)[0]
    finally:
        os.close(pidfd)


def open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))
