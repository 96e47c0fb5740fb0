"""Fakes of the ports, for tests of what is built on them. Each keeps its port's contract (`tests/contracts`)."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from poolmgr.errors import EnvironmentFault, InternalError
from poolmgr.model.engine import (
    Diagnosis,
    EngineFacts,
    ExitRecord,
    LaunchSpec,
    ProbeOutcome,
    ProbeResult,
    ProbeTarget,
    ProcessIdentity,
    Progress,
    RecoveredEngine,
    RecoveryState,
    Usage,
)
from poolmgr.model.memory import MemoryQuestion
from poolmgr.model.pool import EngineName, PoolSpec
from poolmgr.ports import EngineListener

T = TypeVar("T")


@dataclass(order=True)
class FakeTimer:
    when: float
    serial: int
    callback: Callable[[], object] = field(compare=False)
    cancelled: bool = field(default=False, compare=False)

    def cancel(self) -> None:
        self.cancelled = True


class FakeClock:
    """Time stands still until `advance`; timers then fire in order, each at its own time."""

    def __init__(self, now: float = 1000.0, wall: float = 1.8e9, boot_id: str = "boot") -> None:
        self.boot_id = boot_id
        self._now = now
        self._offset = wall - now
        self._timers: list[FakeTimer] = []
        self._serials = itertools.count()

    def now(self) -> float:
        return self._now

    def wall(self) -> float:
        return self._now + self._offset

    def call_at(self, when: float, callback: Callable[[], object]) -> FakeTimer:
        timer = FakeTimer(when, next(self._serials), callback)
        heapq.heappush(self._timers, timer)
        return timer

    async def advance(self, seconds: float) -> None:
        """Lets `seconds` pass; tasks run whenever a timer has fired, until they all wait again."""
        end = self._now + seconds
        await settled()
        while self._timers and self._timers[0].when <= end:
            timer = heapq.heappop(self._timers)
            if not timer.cancelled:
                self._now = max(self._now, timer.when)
                timer.callback()
                await settled()
        self._now = end
        await settled()


async def settled(rounds: int = 20) -> None:
    """Lets every task that can run do so."""
    for _ in range(rounds):
        await asyncio.sleep(0)


class SeededRng:
    """The same seed gives the same values."""

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)

    def random(self) -> float:
        return self._random.random()

    def hex(self, nbytes: int) -> str:
        return self._random.randbytes(nbytes).hex()


class InlineWorkers:
    """Runs work where it is asked for."""

    async def run(self, function: Callable[..., T], *args: object) -> T:
        await asyncio.sleep(0)
        return function(*args)


class CountingPorts:
    """Ports from 40000 on; `strangers` are held by somebody else."""

    def __init__(self) -> None:
        self.reserved: set[int] = set()
        self.strangers: set[int] = set()

    def reserve(self, preferred: int) -> int:
        port = preferred or 40000
        while port in self.reserved | self.strangers:
            port += 1
        self.reserved.add(port)
        return port

    def claim(self, port: int) -> None:
        self.reserved.add(port)

    def release(self, port: int) -> None:
        self.reserved.discard(port)


@dataclass
class ScriptedProbe:
    """Answers with `result`; set it to change what every engine says from now on."""

    result: ProbeResult = field(default_factory=lambda: ProbeResult(ProbeOutcome.OK))
    asked: list[ProbeTarget] = field(default_factory=list)

    async def __call__(self, target: ProbeTarget) -> ProbeResult:
        self.asked.append(target)
        await asyncio.sleep(0)
        return self.result


@dataclass
class ScriptedKind:
    """A kind of engine whose gates and facts a test sets. `refusal` is raised by `check`."""

    name: EngineName = EngineName.COMMAND
    refusal: Exception | None = None
    facts: EngineFacts = field(default_factory=lambda: EngineFacts("fake-1"))
    diagnosis: Diagnosis | None = None
    checked: int = 0
    working: Progress | None = None

    def validate(self, spec: PoolSpec) -> None:
        pass

    def memory(self, spec: PoolSpec) -> MemoryQuestion | None:
        """Of a pool that names a model."""
        if not spec.model.path:
            return None
        return MemoryQuestion(spec.model.path, spec.model.context_length, spec.slots, engine=self.name)

    def told_share(self, spec: PoolSpec, share: float) -> tuple[str, ...]:
        return ()

    def check(self, spec: PoolSpec) -> None:
        self.checked += 1
        if self.refusal is not None:
            raise self.refusal

    def render(self, spec: PoolSpec, port: int) -> tuple[tuple[str, ...], dict[str, str]]:
        return (spec.command or "/bin/engine", *spec.args, str(port)), dict(spec.env)

    def readiness(self, spec: PoolSpec, port: int, timeout: float) -> ProbeTarget:
        return ProbeTarget("HTTP", "127.0.0.1", port, "/health", timeout=timeout)

    def liveness(self, spec: PoolSpec, port: int, timeout: float) -> ProbeTarget:
        return self.readiness(spec, port, timeout)

    def verification(self, spec: PoolSpec, port: int, timeout: float) -> ProbeTarget:
        return ProbeTarget("SYNTHETIC", "127.0.0.1", port, "/verify", timeout=timeout)

    async def describe(self, spec: PoolSpec, port: int, timeout: float) -> EngineFacts:
        return self.facts

    async def progress(self, spec: PoolSpec, port: int, timeout: float) -> Progress | None:
        return self.working

    def diagnose(self, record: ExitRecord, log_tail: Sequence[str]) -> Diagnosis | None:
        return self.diagnosis


@dataclass
class FakeEngine:
    launch: LaunchSpec
    pid: int
    listener: EngineListener
    main_alive: bool = True
    tree_alive: bool = True


class ScriptedRuntime:
    """Engines that exist in a table. `end` and `empty` make happen what a kernel would report."""

    containment = "fake"

    def __init__(self) -> None:
        self.engines: dict[str, FakeEngine] = {}
        self.starts: list[LaunchSpec] = []
        self.terminated: list[str] = []
        self.rested: list[str] = []
        self.removed: list[str] = []
        self.found: list[RecoveredEngine] = []
        self.refuse: EnvironmentFault | None = None
        self.host_fault: EnvironmentFault | None = None
        self.host_probes = 0
        self.owned: bool | None = True
        self.kill_works = True
        self.used = Usage(log_bytes=10, rss_bytes=1 << 20, read_bytes=0)
        self._pids = itertools.count(5000)

    async def start(self, launch: LaunchSpec, listener: EngineListener) -> ProcessIdentity:
        await asyncio.sleep(0)
        if self.refuse is not None:
            raise self.refuse
        self._require_empty(launch.engine_id)
        self.starts.append(launch)
        pid = next(self._pids)
        self.engines[launch.engine_id] = FakeEngine(launch, pid, listener)
        return ProcessIdentity("boot", pid, 1)

    def only(self) -> FakeEngine:
        """The engine that runs, when exactly one does."""
        (engine,) = [e for e in self.engines.values() if e.tree_alive]
        return engine

    def end(self, engine_id: str, record: ExitRecord, empty: bool = True) -> None:
        """The main process ends; with `empty`, its whole tree."""
        engine = self.engines[engine_id]
        if engine.main_alive:
            engine.main_alive = False
            engine.listener.exited(record)
        if empty and engine.tree_alive:
            engine.tree_alive = False
            engine.listener.tree_empty()

    def terminate(self, engine_id: str) -> None:
        self.terminated.append(engine_id)

    def kill_tree(self, engine_id: str) -> None:
        engine = self.engines[engine_id]
        if self.kill_works and engine.tree_alive:
            asyncio.get_running_loop().call_soon(self.end, engine_id, ExitRecord(signal=9, source="shim"))

    async def rest(self, engine_id: str) -> None:
        self._require_empty(engine_id)
        self.rested.append(engine_id)

    async def remove(self, engine_id: str) -> None:
        self._require_empty(engine_id)
        self.removed.append(engine_id)
        self.engines.pop(engine_id, None)

    def _require_empty(self, engine_id: str) -> None:
        """Also of what was found and not attached to."""
        engine = self.engines.get(engine_id)
        found = (f.survivors for f in self.found if f.engine_id == engine_id)
        if any(found) if engine is None else engine.tree_alive:
            raise InternalError(f"engine {engine_id} still has processes")

    async def recover(self, engine_ids: Collection[str] | None = None) -> Sequence[RecoveredEngine]:
        return [f for f in self.found if engine_ids is None or f.engine_id in engine_ids]

    async def probe_host(self) -> None:
        self.host_probes += 1
        if self.host_fault is not None:
            raise self.host_fault

    def attach(self, engine_id: str, listener: EngineListener) -> None:
        found = next(f for f in self.found if f.engine_id == engine_id)
        alive = found.state is RecoveryState.ALIVE
        launch = found.launch or LaunchSpec(engine_id, found.pool_id, found.generation, (), {}, found.port)
        pid = found.identity.pid if found.identity else 0
        self.engines[engine_id] = FakeEngine(launch, pid, listener, alive, alive or found.survivors)
        if not alive:
            loop = asyncio.get_running_loop()
            loop.call_soon(listener.exited, found.exit or ExitRecord())
            if not found.survivors:
                loop.call_soon(listener.tree_empty)

    def usage(self, engine_id: str) -> Usage:
        return self.used

    def owner_of_port(self, engine_id: str, port: int) -> bool | None:
        return self.owned

    def log_tail(self, engine_id: str, lines: int) -> tuple[str, ...]:
        return ("last line",)[:lines]

    async def follow_log(self, engine_id: str, lines: int) -> AsyncGenerator[tuple[str, ...], None]:
        yield self.log_tail(engine_id, lines)

    def directory(self, engine_id: str) -> str:
        return f"/nowhere/{engine_id}"

    async def close(self) -> None:
        pass
