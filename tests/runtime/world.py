"""A whole daemon without its edges: the real core and runtime over the shipped fakes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from poolmgr.adapters.store.memory import Medium, MemoryStore
from poolmgr.core.memo import Memo
from poolmgr.core.state import Pool
from poolmgr.model.engine import ExitRecord, ProcessIdentity, RecoveredEngine, RecoveryState
from poolmgr.model.lease import Lease, LeaseAsk
from poolmgr.model.pool import EngineName, Origin, PoolSpec
from poolmgr.model.settings import LeaseSettings, SupervisionSettings
from poolmgr.ports import Store
from poolmgr.runtime.bus import Bus, Noted
from poolmgr.runtime.device_gate import CpuOnly, Gate
from poolmgr.runtime.engine_host import Outside
from poolmgr.runtime.facade import About, Controls, Facade
from poolmgr.runtime.places import CpuPlaces, Places
from poolmgr.runtime.remembering import decode
from poolmgr.runtime.supervisor import Settings, Supervisor
from poolmgr.runtime.tasks import Tasks
from poolmgr.testing.fakes import (
    CountingPorts,
    FakeClock,
    FakeEngine,
    InlineWorkers,
    ScriptedKind,
    ScriptedProbe,
    ScriptedRuntime,
    SeededRng,
    settled,
)


@dataclass
class World:
    medium: Medium = field(default_factory=Medium)
    clock: FakeClock = field(default_factory=FakeClock)
    runtime: ScriptedRuntime = field(default_factory=ScriptedRuntime)
    probe: ScriptedProbe = field(default_factory=ScriptedProbe)
    kind: ScriptedKind = field(default_factory=ScriptedKind)
    ports: CountingPorts = field(default_factory=CountingPorts)
    settings: Settings = field(default_factory=lambda: Settings(SupervisionSettings(), LeaseSettings()))
    failures: list[BaseException] = field(default_factory=list)
    noted: list[Noted] = field(default_factory=list)
    wrap: Callable[[Store], Store] = lambda store: store
    exits: dict[str, ExitRecord] = field(default_factory=dict)
    gate: Gate = field(default_factory=CpuOnly)

    def __post_init__(self) -> None:
        self.store = self.wrap(MemoryStore(self.medium, self.clock.wall, self.clock.now))
        self.tasks = Tasks(self.failures.append)
        kinds = {EngineName.COMMAND: self.kind}
        rng = SeededRng()
        places: Places = self.gate if isinstance(self.gate, CpuPlaces) else CpuPlaces()
        outside = Outside(self.runtime, kinds, self.probe, self.ports, InlineWorkers(), rng, self.gate, places)
        self.bus = Bus(self.store.epoch)
        self.bus.listen(self.noted.append)
        self.supervisor = Supervisor(self.clock, rng, self.store, outside, self.settings, self.bus, self.tasks)
        about = About("test", 1, self.clock.wall(), "127.0.0.1:1", "/nowhere", "")
        controls = Controls(list, lambda: ({}, ()), lambda stop: None)
        self.facade = Facade(self.supervisor, outside, self.store, self.clock, about, controls)

    async def die(self) -> None:
        """As by SIGKILL: nothing more is decided, told or stored."""
        await self.tasks.close()
        for actor in self.supervisor.actors():
            actor.close()

    async def successor(
        self, dead: Mapping[str, ExitRecord] | None = None, clock: FakeClock | None = None, **changes: object
    ) -> World:
        """This daemon dies; the next one of this host has recovered, and knows the engines as they are now.

        `dead` ended while no daemon ran. With a clock of another boot all of them have.
        """
        await self.die()
        clock = clock or FakeClock(self.clock.now(), self.clock.wall(), self.clock.boot_id)
        self.medium.boot = clock.boot_id
        after = World(**{"medium": self.medium, "clock": clock, **changes})  # type: ignore[arg-type]
        for engine in self.runtime.engines.values():
            after.runtime.found.append(self._as_found(engine, dead or {}, clock))
        recovering = asyncio.ensure_future(after.supervisor.recover())
        await clock.advance(0.0)
        await recovering
        await settled()
        return after

    def _as_found(self, engine: FakeEngine, dead: Mapping[str, ExitRecord], clock: FakeClock) -> RecoveredEngine:
        launch, boot = engine.launch, self.clock.boot_id
        ended = dead.get(launch.engine_id)
        if ended is None and clock.boot_id != boot:
            ended = ExitRecord()
        if ended is None and not engine.main_alive:
            ended = self.exits.get(launch.engine_id, ExitRecord(exit_code=0, source="shim"))
        state = RecoveryState.ALIVE if ended is None else RecoveryState.DEAD
        who = ProcessIdentity(boot, engine.pid, 1)
        return RecoveredEngine(
            launch.engine_id, launch.pool_id, launch.generation, state, launch.port, launch, who, ended
        )

    def end(self, engine: FakeEngine, record: ExitRecord) -> None:
        """The engine ends, and its tree with it."""
        self.exits[engine.launch.engine_id] = record
        self.runtime.end(engine.launch.engine_id, record)

    def running(self) -> list[FakeEngine]:
        """Engines of which processes are left, by generation."""
        left = [e for e in self.runtime.engines.values() if e.tree_alive]
        return sorted(left, key=lambda e: e.launch.generation)

    async def obey(self) -> None:
        """Every engine that was asked to end does so."""
        for engine in self.running():
            if engine.launch.engine_id in self.runtime.terminated:
                self.end(engine, ExitRecord(exit_code=0, source="shim"))
        await settled()

    async def recovered(self) -> World:
        await self.supervisor.recover()
        await settled()
        return self

    def memo(self, pool_id: str = "a") -> Memo:
        """What is stored of a pool's memory."""
        memo = decode(self.medium.pools[pool_id].state, self.clock)
        assert memo is not None
        return memo

    def pool(self, pool_id: str = "a") -> Pool:
        return self.supervisor.actor(pool_id).pool

    async def ready_pool(self, pool_id: str = "a", **spec: object) -> None:
        """A pool that serves."""
        await self.facade.create_pool(pool_id, PoolSpec(EngineName.COMMAND, command="/bin/engine", **spec))  # type: ignore[arg-type]
        await self.facade.preload(pool_id, 0.0)
        await self.clock.advance(0.0)
        assert self.facade.pool(pool_id).view.ready, self.facade.pool(pool_id).view

    def ask(self, pool_id: str = "a", **fields: object) -> LeaseAsk:
        lease_id, token = self.facade.lease_key(pool_id)
        return LeaseAsk(lease_id, token, **{"holder": "test", **fields})  # type: ignore[arg-type]

    async def lease(self, pool_id: str = "a", **fields: object) -> Lease:
        got = await self.facade.acquire(pool_id, self.ask(pool_id, **fields))
        assert isinstance(got, Lease), got
        return got

    def notes(self, name: str) -> list[Noted]:
        return [noted for noted in self.noted if noted.note.name == name]

    async def close(self) -> None:
        await self.supervisor.close(stop_engines=False)
        await self.tasks.close()
        assert self.failures == []


API = Origin.API
