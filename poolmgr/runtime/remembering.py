"""Keeps what a pool remembers durable: commands ahead of what is done for them, facts behind (RST-8).

One change is under way at a time, so that what is stored never goes back; what gathers meanwhile is one change.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from pydantic import TypeAdapter, ValidationError

from poolmgr.core.memo import Memo, shifted
from poolmgr.errors import EnvironmentFault
from poolmgr.model.pool import PoolRecord
from poolmgr.ports import Clock, Store
from poolmgr.runtime.tasks import Tasks
from poolmgr.runtime.waiting import pause

# After a change that the store did not take: room on a disk tells nobody that it is back. The first tries come soon,
# for what is not stored is lost with the daemon.
RETRY_SECONDS, RETRY_SECONDS_MAX = 0.1, 5.0


@dataclass(frozen=True, slots=True)
class _Row:
    """A memo with the clock that its times are of."""

    boot_id: str
    at: float
    memo: Memo


_CODEC = TypeAdapter(_Row)


def encode(memo: Memo, clock: Clock) -> str:
    return _CODEC.dump_json(_Row(clock.boot_id, clock.now(), memo)).decode()


def decode(text: str, clock: Clock) -> Memo | None:
    """None for what cannot be read. Times are of this boot's clock."""
    try:
        row = _CODEC.validate_json(text)
    except ValidationError:
        return None
    return row.memo if row.boot_id == clock.boot_id else shifted(row.memo, clock.now() - row.at)


class Remembering:
    """What the store has of one pool, and what it is to have."""

    def __init__(
        self, store: Store, clock: Clock, spawn: Tasks, pool_id: str, stored: Memo | None, warnings: deque[str]
    ) -> None:
        self._store = store
        self._clock = clock
        self._spawn = spawn
        self._pool_id = pool_id
        self._stored = stored
        self._wanted = stored
        self._warnings = warnings
        self._turn = asyncio.Lock()
        self._behind = False
        self._closed = False

    @asynccontextmanager
    async def ahead(self) -> AsyncIterator[None]:
        """Nothing else of this pool becomes durable inside; whoever is inside calls `put`."""
        async with self._turn:
            yield

    async def put(self, memo: Memo, record: PoolRecord | None = None) -> None:
        """Durable on return, with the generation `record` if one is given. EnvironmentFault: nothing is changed."""
        if record is not None:
            await self._store.put_pool(record, encode(memo, self._clock), keep=memo.generation)
        elif memo != self._stored:
            await self._store.put_state(self._pool_id, encode(memo, self._clock))
        self._stored = memo  # not what is wanted by now: whoever put it tells what came of it, or is about to

    def changed(self, memo: Memo) -> None:
        """To be made durable soon."""
        self._wanted = memo
        if memo != self._stored and not self._behind and not self._closed:
            self._behind = True
            self._spawn(self._write_behind(), "remember")

    async def _write_behind(self) -> None:
        tries = 0
        while self._wanted is not None and self._wanted != self._stored and not self._closed:
            try:
                async with self._turn:
                    await self.put(self._wanted)
            except EnvironmentFault as fault:
                if not tries:
                    self._warnings.append(f"pool {self._pool_id}: not stored yet: {fault.message}")
                await pause(self._clock, min(RETRY_SECONDS_MAX, RETRY_SECONDS * 2.0 ** min(tries, 16)))
                tries += 1
        self._behind = False

    async def close(self) -> None:
        """Nothing is written behind any more; what is under way has ended on return."""
        self._closed = True
        async with self._turn:
            pass

    async def flush(self) -> None:
        """At the daemon's end: tries once more what has not been stored. Nothing is stored afterwards."""
        async with self._turn:
            self._closed = True
            if self._wanted is not None and self._wanted != self._stored:
                try:
                    await self.put(self._wanted)
                except EnvironmentFault as fault:
                    self._warnings.append(f"pool {self._pool_id}: not stored: {fault.message}")
