"""What a runtime tells about an engine, on its way to the pool that the engine belongs to."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from poolmgr.core.messages import Adopted, AdoptedBeside, Event, Exited, Explained, Spawned, TreeEmpty
from poolmgr.model.engine import Diagnosis, ExitRecord
from poolmgr.model.pool import LOG_TAIL_CHARACTERS, LOG_TAIL_LINES
from poolmgr.ports import EngineKind, Runtime
from poolmgr.runtime.device_gate import Gate
from poolmgr.runtime.places import Places
from poolmgr.runtime.pool_actor import PoolActor
from poolmgr.runtime.tasks import Tasks

DIAGNOSED_LINES: Final = 400  # vLLM tells a failure's cause some 200 lines before its last


@dataclass(frozen=True, slots=True)
class Gpus:
    """Those that one engine sees, none for a CPU engine, and who knows them."""

    gate: Gate
    places: Places
    spawn: Tasks
    devices: tuple[str, ...] = ()


class EngineLink:
    """Carries what a runtime tells about one engine to the pool that it belongs to."""

    def __init__(
        self,
        actor: PoolActor,
        engine_id: str,
        kind: EngineKind,
        runtime: Runtime,
        gpus: Gpus,
    ) -> None:
        self._actor = actor
        self._engine_id = engine_id
        self._kind = kind
        self._runtime = runtime
        self._gpus = gpus
        self._pids: tuple[int, ...] = ()
        self._lost: Diagnosis | None = None
        self._held: list[Event] | None = []

    def begin(self, fact: Spawned | Adopted | AdoptedBeside) -> None:
        """Tells that the engine runs, then what was heard before: one can die before its start has been reported."""
        self._pids = (fact.adopted.pid if isinstance(fact, AdoptedBeside) else fact.pid,)
        held, self._held = self._held or [], None
        for event in (fact, *held):
            self._actor.tell(event)

    def exited(self, record: ExitRecord) -> None:
        ended = told(self._engine_id, record, self._kind, self._runtime)
        self._lost = self._gpus.gate.diagnose(self._gpus.devices) if self._gpus.devices else None
        self._tell(replace(ended, diagnosis=self._lost) if self._lost is not None else ended)

    def tree_empty(self) -> None:
        self._gpus.places.give_back(self._engine_id)
        if self._gpus.devices:
            self._gpus.spawn(self._released(), "memory of GPUs")
        else:
            self._tell(TreeEmpty(self._engine_id))

    async def _released(self) -> None:
        """An engine has ended once its GPUs are free of it too (PROC-3)."""
        await self._gpus.gate.released(self._engine_id, self._gpus.devices, self._pids)
        late = self._gpus.gate.diagnose(self._gpus.devices) if self._lost is None else None
        if late is not None:
            self._tell(Explained(self._engine_id, late))
        self._tell(TreeEmpty(self._engine_id))

    def _tell(self, event: Event) -> None:
        if self._held is None:
            self._actor.tell(event)
        else:
            self._held.append(event)


def told(engine_id: str, record: ExitRecord, kind: EngineKind, runtime: Runtime) -> Exited:
    """The end of an engine with what its log says of it."""
    tail = runtime.log_tail(engine_id, DIAGNOSED_LINES)
    return Exited(engine_id, record, shortened(tail[-LOG_TAIL_LINES:]), kind.diagnose(record, tail))


def shortened(lines: Sequence[str]) -> tuple[str, ...]:
    """The last of `lines` that fit into LOG_TAIL_CHARACTERS; a line that is longer alone is cut."""
    kept: list[str] = []
    room = LOG_TAIL_CHARACTERS
    for line in reversed(lines):
        if room <= 0:
            break
        kept.append(line[:room])
        room -= len(line) + 1
    return tuple(reversed(kept))


class Wake:
    """A listener that only waits for the end."""

    def __init__(self, empty: asyncio.Future[bool]) -> None:
        self._empty = empty

    def exited(self, record: ExitRecord) -> None:
        """Known before."""

    def tree_empty(self) -> None:
        answer(self._empty, True)


def answer(future: asyncio.Future[bool], value: bool) -> None:
    if not future.done():
        future.set_result(value)
