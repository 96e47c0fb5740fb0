"""A whole daemon without its edges: the real core and runtime over the shipped fakes."""

from __future__ import annotations

from dataclasses import dataclass, field

from poolmgr.adapters.store.memory import Medium, MemoryStore
from poolmgr.model.lease import LeaseAsk
from poolmgr.model.pool import EngineName, Origin, PoolSpec
from poolmgr.model.settings import LeaseSettings, SupervisionSettings
from poolmgr.runtime.bus import Bus, Noted
from poolmgr.runtime.engine_host import Outside
from poolmgr.runtime.facade import About, Controls, Facade
from poolmgr.runtime.supervisor import Settings, Supervisor
from poolmgr.runtime.tasks import Tasks
from poolmgr.testing.fakes import (
    CountingPorts,
    FakeClock,
    InlineWorkers,
    ScriptedKind,
    ScriptedProbe,
    ScriptedRuntime,
    SeededRng,
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

    def __post_init__(self) -> None:
        self.store = MemoryStore(self.medium)
        self.tasks = Tasks(self.failures.append)
        kinds = {EngineName.COMMAND: self.kind}
        rng = SeededRng()
        outside = Outside(self.runtime, kinds, self.probe, self.ports, InlineWorkers(), rng)
        self.bus = Bus(self.store.epoch)
        self.bus.listen(self.noted.append)
        self.supervisor = Supervisor(self.clock, rng, self.store, outside, self.settings, self.bus, self.tasks)
        about = About("test", 1, self.clock.wall(), "127.0.0.1:1", "/nowhere", "")
        controls = Controls(list, lambda: ({}, ()), lambda stop: None)
        self.facade = Facade(self.supervisor, outside, self.clock, about, controls)

    async def ready_pool(self, pool_id: str = "a", **spec: object) -> None:
        """A pool that serves."""
        await self.facade.create_pool(pool_id, PoolSpec(EngineName.COMMAND, command="/bin/engine", **spec))  # type: ignore[arg-type]
        await self.facade.preload(pool_id, 0.0)
        await self.clock.advance(0.0)
        assert self.facade.pool(pool_id).view.ready, self.facade.pool(pool_id).view

    def ask(self, pool_id: str = "a", **fields: object) -> LeaseAsk:
        lease_id, token = self.facade.lease_key(pool_id)
        return LeaseAsk(lease_id, token, **{"holder": "test", **fields})  # type: ignore[arg-type]

    def notes(self, name: str) -> list[Noted]:
        return [noted for noted in self.noted if noted.note.name == name]

    async def close(self) -> None:
        await self.supervisor.close(stop_engines=False)
        await self.tasks.close()
        assert self.failures == []


API = Origin.API
