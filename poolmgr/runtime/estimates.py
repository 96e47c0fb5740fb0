"""What engines will need: read from their models' own headers, corrected by what was measured before (MEM-1, MEM-3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from poolmgr.core import memory
from poolmgr.core.estimate import estimate
from poolmgr.core.memory import LearnedKey, MemoryMiss
from poolmgr.errors import EnvironmentFault
from poolmgr.model.memory import MemoryEstimate, MemoryQuestion
from poolmgr.model.names import EngineName
from poolmgr.model.pool import PoolSpec
from poolmgr.ports import Clock, DeviceMemory, EngineKind, ModelReader, Workers
from poolmgr.runtime.tasks import Tasks


@dataclass(frozen=True, slots=True)
class Learning:
    """The ports that estimates are made and remembered through."""

    kinds: Mapping[EngineName, EngineKind]
    reader: ModelReader
    memory: DeviceMemory
    workers: Workers


@dataclass(frozen=True, slots=True)
class Lesson:
    """Bytes by device. `factor`: that the prediction was made with; others may have been learned since."""

    predicted: Mapping[str, int]
    measured: Mapping[str, int | None]
    factor: float


def key_of(question: MemoryQuestion, model: str, args: tuple[str, ...] = ()) -> LearnedKey:
    """`model`: its digest, else its path. `args`: of the pool, as any of them may change what the engine takes."""
    settings = f"{question.context_length} {question.slots} {question.cache_type} {' '.join(args)}"
    return LearnedKey(question.engine, "", model, settings.strip())


class Estimates:
    """Used on the event loop only; what is learned is written behind."""

    def __init__(self, outside: Learning, clock: Clock, spawn: Tasks) -> None:
        self._outside = outside
        self._clock = clock
        self._spawn = spawn
        self._table: memory.Table = {}
        self._versions: dict[LearnedKey, str] = {}
        self._writing = False
        self._wanted = ""
        self._stored = ""

    async def load(self) -> tuple[str, ...]:
        """What was learned before. Returns what an operator should know of it: estimates go on without."""
        try:
            text = await self._outside.workers.run(self._outside.memory.load)
        except EnvironmentFault as fault:
            return (fault.message,)
        table = memory.decode(text)
        self._table = table or {}
        self._stored = self._wanted = text
        for key, _ in sorted(self._table.items(), key=lambda item: item[1].at):
            self._versions[_versionless(key)] = key.engine_version
        return ("what was learned of engines' memory cannot be read: it is void",) if table is None else ()

    async def of(self, question: MemoryQuestion, key: LearnedKey | None = None) -> MemoryEstimate:
        """Raises ClientError(MODEL_NOT_FOUND, MODEL_INVALID) for a file of which nothing can be told."""
        shape = await self._outside.workers.run(self._outside.reader.read, question.model_path)
        return estimate(shape, question, self._factor(key or key_of(question, question.model_path)))

    async def of_spec(self, spec: PoolSpec) -> MemoryEstimate | None:
        """None for an engine whose memory cannot be told before it runs. Raises as `of`."""
        question = self._question(spec)
        return None if question is None else await self.of(question, _spec_key(spec, question))

    def _question(self, spec: PoolSpec) -> MemoryQuestion | None:
        return self._outside.kinds[spec.engine].memory(spec)

    def _factor(self, key: LearnedKey) -> float:
        """Of the version that ran last: which one will run is not known before it does."""
        version = self._versions.get(key, "")
        return memory.factor(self._table, LearnedKey(key.engine, version, key.model, key.settings))

    def learn(self, spec: PoolSpec, version: str, lesson: Lesson) -> tuple[MemoryMiss, ...]:
        """After an engine has become READY. Returns the shares that were more than 10 % off.

        One that takes what it is told shows what it was told, and not what it needs: learned from, that would be more
        with each run.
        """
        question = self._question(spec)
        if question is None:
            return ()
        bare = _spec_key(spec, question)
        key = LearnedKey(bare.engine, version, bare.model, bare.settings)
        told = (lesson.predicted, lesson.measured, self._clock.wall(), lesson.factor)
        table, misses = memory.learn(self._table, key, *told)
        if not self.takes_what_it_is_told(spec):
            self._table = table
            self._versions[bare] = version
            self._changed()
        return misses

    def takes_what_it_is_told(self, spec: PoolSpec) -> bool:
        """Whether an engine of this pool is told which share of each device it is to take, and takes that."""
        return bool(self._outside.kinds[spec.engine].told_share(spec, 1.0))

    def _changed(self) -> None:
        self._wanted = memory.encode(self._table)
        if self._wanted != self._stored and not self._writing:
            self._writing = True
            self._spawn(self._write(), "learned memory")

    async def _write(self) -> None:
        """What cannot be written now is with the next that is learned: it is a help, and nothing depends on it."""
        try:
            while self._wanted != self._stored:
                text = self._wanted
                await self._outside.workers.run(partial(self._outside.memory.save, text))
                self._stored = text
        except EnvironmentFault:
            return
        finally:
            self._writing = False


def _spec_key(spec: PoolSpec, question: MemoryQuestion) -> LearnedKey:
    return key_of(question, spec.model.digest or spec.model.path, spec.args)


def _versionless(key: LearnedKey) -> LearnedKey:
    return LearnedKey(key.engine, "", key.model, key.settings)
