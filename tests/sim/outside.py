"""The small ports over the simulated host: time, chance, workers, network ports, probes, a kind of engine."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from poolmgr.errors import ClientError, EnvironmentFault, Reason
from poolmgr.model.engine import (
    Diagnosis,
    EngineFacts,
    ExitRecord,
    ProbeOutcome,
    ProbeResult,
    ProbeTarget,
)
from poolmgr.model.pool import EngineName, PoolSpec, ProbeKind
from tests.sim.gate import Gate, port
from tests.sim.timeline import DaemonKilled, Timer

if TYPE_CHECKING:
    from tests.sim.world import World

FIRST_PORT = 40_000
NEXT_FREE = 100


class SimClock:
    """The boot-time clock of the host, and a wall clock that drifts and is set."""

    def __init__(self, world: World, loop_call: Callable, gate: Gate) -> None:
        self._world = world
        self._deliver = loop_call
        self.gate = gate

    def now(self) -> float:
        if self.gate.dead:
            raise DaemonKilled
        return self._world.kernel.boot_time()

    @property
    def boot_id(self) -> str:
        return self._world.kernel.boot_id

    def wall(self) -> float:
        return self._world.wall()

    def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
        if self.gate.dead:
            raise DaemonKilled
        booted = self._world.kernel.booted_at
        true = booted + when
        while true - booted < when:  # rounded: never earlier
            true = math.nextafter(true, math.inf)
        return self._world.timeline.at(true, self._deliver, callback)


class SimRng:
    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)

    def random(self) -> float:
        return self._random.random()

    def hex(self, nbytes: int) -> str:
        return self._random.randbytes(nbytes).hex()


class SimWorkers:
    def __init__(self, world: World, gate: Gate) -> None:
        self._world = world
        self.gate = gate

    @port("workers.run")
    async def run(self, function: Callable, *args: object) -> object:
        await self._world.sleep(self._world.latency(0.005))
        if self.gate.dead:
            raise DaemonKilled
        return function(*args)


class SimPorts:
    """Asks the kernel who listens, and remembers what it gave away."""

    def __init__(self, world: World, gate: Gate) -> None:
        self._world = world
        self.gate = gate
        self.reserved: dict[int, None] = {}

    @port("ports.reserve")
    def reserve(self, preferred: int) -> int:
        first = preferred or FIRST_PORT
        for number in range(first, first + NEXT_FREE):
            if number not in self.reserved and self._world.kernel.listener(number) is None:
                self.reserved[number] = None
                return number
        raise EnvironmentFault(Reason.PORT_UNAVAILABLE, "no port is free")

    @port("ports.claim")
    def claim(self, number: int) -> None:
        self.reserved[number] = None

    @port("ports.release")
    def release(self, number: int) -> None:
        self.reserved.pop(number, None)


class SimProbe:
    """Asks whoever listens."""

    def __init__(self, world: World, gate: Gate) -> None:
        self._world = world
        self.gate = gate

    @port("probe")
    async def __call__(self, target: ProbeTarget) -> ProbeResult:
        world = self._world
        process = world.kernel.listener(target.port)
        if process is None:
            await world.sleep(0.001)
            return ProbeResult(ProbeOutcome.FAILED, "connection refused")
        age, script = world.timeline.now - process.started, process.script
        if target.kind == ProbeKind.SYNTHETIC and script.wrong:
            return ProbeResult(ProbeOutcome.FAILED, "a wrong answer")
        if script.hang <= age < script.well_again:
            await world.sleep(target.timeout)
            return ProbeResult(ProbeOutcome.FAILED, "timeout")
        await world.sleep(world.latency(0.004))
        if not process.alive:
            return ProbeResult(ProbeOutcome.FAILED, "connection reset")
        if process.healthy(world.timeline.now):
            return ProbeResult(ProbeOutcome.OK)
        return ProbeResult(ProbeOutcome.LOADING, "503")


class SimKind:
    """An engine whose gates the world opens and closes: `world.missing` names the commands that are not there."""

    name = EngineName.COMMAND

    def __init__(self, world: World, gate: Gate) -> None:
        self._world = world
        self.gate = gate

    def validate(self, spec: PoolSpec) -> None:
        if spec.command == "/bad":
            raise ClientError(Reason.BAD_ARGUMENTS, "a spec that can never run")

    def memory(self, spec: PoolSpec) -> None:
        """Nobody knows."""

    def told_share(self, spec: PoolSpec, share: float) -> tuple[str, ...]:
        return ()

    @port("kind.check")
    def check(self, spec: PoolSpec) -> None:
        if spec.command in self._world.missing:
            raise ClientError(Reason.EXECUTABLE_NOT_FOUND, f"{spec.command} is not there")

    def render(self, spec: PoolSpec, port: int) -> tuple[tuple[str, ...], dict[str, str]]:
        if spec.command in self._world.missing:
            raise ClientError(Reason.EXECUTABLE_NOT_FOUND, f"{spec.command} is not there")
        return (spec.command or "/bin/engine", *spec.args, str(port)), dict(spec.env)

    def readiness(self, spec: PoolSpec, port: int, timeout: float) -> ProbeTarget:
        return ProbeTarget(ProbeKind.HTTP, "127.0.0.1", port, "/health", timeout=timeout)

    liveness = readiness

    def verification(self, spec: PoolSpec, port: int, timeout: float) -> ProbeTarget:
        return ProbeTarget(ProbeKind.SYNTHETIC, "127.0.0.1", port, "/work", timeout=timeout)

    @port("kind.describe")
    async def describe(self, spec: PoolSpec, port: int, timeout: float) -> EngineFacts:
        await self._world.sleep(self._world.latency(0.003))
        return EngineFacts("sim-1")

    async def progress(self, spec: PoolSpec, port: int, timeout: float) -> None:
        """It counts nothing."""

    def diagnose(self, record: ExitRecord, log_tail: Sequence[str]) -> Diagnosis | None:
        if any("unknown flag" in line for line in log_tail):
            return Diagnosis("BAD_ARGUMENTS", "unknown flag", permanent=True)
        return None


async def sleep(world: World, seconds: float) -> None:
    """On the running daemon's loop, by the world's true time."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    world.timeline.after(seconds, loop.call_soon, _resolve, done)
    await done


def _resolve(future: asyncio.Future) -> None:
    if not future.done():
        future.set_result(None)
