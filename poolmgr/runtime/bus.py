"""Changes with revisions, and events with evidence.

A revision is ``epoch << 40 | n``: it strictly rises, and the epoch is durable before the first change, so that no
revision is ever used twice. The last `CAPACITY` changes are kept once, for all watchers; a watcher is a cursor into
them. So a slow one costs nothing, and is told to resync when what it needs is gone.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

from poolmgr.core.effects import Note
from poolmgr.core.state import Pool
from poolmgr.core.view import Fingerprint, view
from poolmgr.model.device_health import DeviceNote, DeviceView
from poolmgr.model.pool import PoolView

CAPACITY = 8192
EPOCH_SHIFT = 40


class PublishedPool:
    """A pool at one revision. The view is made on first use; `encoded` and `watched` are the edge's, to be sent."""

    __slots__ = ("_of", "_offset", "_view", "encoded", "pool_id", "revision", "watched")

    def __init__(self, of: Fingerprint, revision: int, wall_offset: float) -> None:
        self.pool_id = of.pool_id
        self.revision = revision
        self.encoded: object = None
        self.watched: bytes | None = None
        self._of = of
        self._offset = wall_offset
        self._view: PoolView | None = None

    @property
    def view(self) -> PoolView:
        if self._view is None:
            self._view = view(self._of, self.revision, self._offset)
        return self._view


@dataclass(frozen=True, slots=True)
class Change:
    """One revision: a pool as it became, or (`pool` None) its deletion."""

    revision: int
    pool_id: str
    pool: PublishedPool | None


class PublishedDevice:
    """A device at one revision. `encoded` and `watched` are the edge's, to be sent."""

    __slots__ = ("device_id", "encoded", "revision", "view", "watched")

    def __init__(self, view: DeviceView, revision: int) -> None:
        self.device_id = view.device.device_id
        self.revision = revision
        self.view = view
        self.encoded: object = None
        self.watched: bytes | None = None


@dataclass(frozen=True, slots=True)
class DeviceChange:
    """One revision: a device as it became, or (`device` None) that it is no longer shown."""

    revision: int
    device_id: str
    device: PublishedDevice | None


@dataclass(frozen=True, slots=True)
class Resync:
    """The watcher cannot go on from where it was: `reason` EPOCH_CHANGED, TOO_OLD or TOO_SLOW."""

    reason: str


@dataclass(frozen=True, slots=True)
class Noted:
    """An event of one pool, with its evidence and the pool as it was right after."""

    pool: Pool
    note: Note


class Bus:
    """The daemon's one stream of changes, of pools and of devices. Used on the event loop only."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self._last = epoch << EPOCH_SHIFT
        self._changes: deque[Change | DeviceChange] = deque(maxlen=CAPACITY)
        self._waiting: list[asyncio.Future[None]] = []
        self._listeners: list[Callable[[Noted], None]] = []
        self._device_listeners: list[Callable[[DeviceNote], None]] = []

    @property
    def revision(self) -> int:
        """Of the last change."""
        return self._last

    def publish(self, of: Fingerprint, wall_offset: float) -> PublishedPool:
        published = PublishedPool(of, self._last + 1, wall_offset)
        self._append(Change(published.revision, of.pool_id, published))
        return published

    def publish_deletion(self, pool_id: str) -> None:
        self._append(Change(self._last + 1, pool_id, None))

    def publish_device(self, view: DeviceView) -> PublishedDevice:
        published = PublishedDevice(view, self._last + 1)
        self._append(DeviceChange(published.revision, published.device_id, published))
        return published

    def publish_device_gone(self, device_id: str) -> None:
        self._append(DeviceChange(self._last + 1, device_id, None))

    def _append(self, change: Change | DeviceChange) -> None:
        self._last = change.revision
        self._changes.append(change)
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            for future in waiting:
                if not future.done():
                    future.set_result(None)

    def listen(self, listener: Callable[[Noted], None]) -> None:
        """`listener` is called for every event, at once; it must neither block nor raise."""
        self._listeners.append(listener)

    def note(self, noted: Noted) -> None:
        for listener in self._listeners:
            listener(noted)

    def listen_devices(self, listener: Callable[[DeviceNote], None]) -> None:
        """As `listen`, for what happens to devices."""
        self._device_listeners.append(listener)

    def note_device(self, note: DeviceNote) -> None:
        for listener in self._device_listeners:
            listener(note)

    async def watch(self, after: int) -> AsyncGenerator[list[Change | DeviceChange] | Resync, None]:
        """Batches of every change after revision `after`, in order; ends with a Resync when there is a gap."""
        if after > self._last or after >> EPOCH_SHIFT != self.epoch:
            yield Resync("EPOCH_CHANGED")
            return
        lost = "TOO_OLD"
        while True:
            oldest = self._changes[0].revision if self._changes else self._last + 1
            if after + 1 < oldest:
                yield Resync(lost)
                return
            if after == self._last:
                await self._next_change()
                lost = "TOO_SLOW"
                continue
            start = after + 1 - oldest
            batch = [self._changes[i] for i in range(start, len(self._changes))]
            after = batch[-1].revision
            yield batch

    async def _next_change(self) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        try:
            await future
        finally:
            if not future.done() or future.cancelled():
                self._waiting = [f for f in self._waiting if f is not future]
