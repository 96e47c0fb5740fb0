"""A host with whatever GPUs a pool names."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from poolmgr.errors import EnvironmentFault
from poolmgr.model.engine import Diagnosis
from poolmgr.model.pool import PoolSpec
from poolmgr.runtime.device_gate import CpuOnly
from poolmgr.runtime.places import CpuPlaces, Placed, Seeker


@dataclass
class AnyGpu(CpuOnly, CpuPlaces):
    """`fault` keeps every start with GPUs from them; `held` keeps their memory from coming back; `said` is told of
    each end, `used` of each engine's GPU."""

    used: bool | None = None
    fault: EnvironmentFault | None = None
    said: Diagnosis | None = None
    held: asyncio.Event | None = None
    blamed: str = ""
    room: bool = False
    restless: bool = False  # another place each time
    sought: list[Seeker] = field(default_factory=list)
    given_back: list[str] = field(default_factory=list)
    failures: list[tuple[tuple[str, ...], str, int, str]] = field(default_factory=list)
    ended: list[tuple[str, tuple[str, ...], tuple[int, ...]]] = field(default_factory=list)

    async def check(self, spec: PoolSpec) -> None: ...

    async def find(self, seeker: Seeker) -> Placed:
        if seeker.spec.device_mask in ("", "none"):
            return Placed()
        if self.fault is not None:
            raise self.fault
        self.sought.append(seeker)
        if self.restless:
            return Placed((f"GPU-{len(self.sought)}",))
        return Placed(seeker.before or tuple(f"GPU-{part}" for part in seeker.spec.device_mask.split(",")))

    async def fits(self, spec: PoolSpec) -> bool:
        return self.room or spec.device_mask in ("", "none")

    def give_back(self, engine_id: str) -> None:
        self.given_back.append(engine_id)

    async def released(self, engine_id: str, devices: Sequence[str], pids: Sequence[int]) -> None:
        self.ended.append((engine_id, tuple(devices), tuple(pids)))
        if self.held is not None:
            await self.held.wait()

    def diagnose(self, devices: Sequence[str]) -> Diagnosis | None:
        return self.said

    def failed(self, devices: Sequence[str], pool_id: str, generation: int, cause: str) -> str:
        self.failures.append((tuple(devices), pool_id, generation, cause))
        return self.blamed

    def busy(self, devices: Sequence[str]) -> bool | None:
        return self.used if devices else False
