"""What 1,000 watchers cost the daemon: each reads every change, and there are five a second.

A watcher has one WatchPools stream, and checks that the revisions which it is sent have no gap.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence

import grpc

from bench.load import Meter, Stretch, Target, WrongAnswerError
from poolmgr.v1 import lease_pb2, pool_pb2
from poolmgr.v1.lease_pb2_grpc import LeaseServiceStub

METHOD = "/poolmgr.v1.PoolService/WatchPools"
WATCHERS = 1000
CHANGES_PER_SECOND = 5
CONNECTING = 50  # at once: a listening socket's queue has an end
ARRIVAL_SECONDS = 10.0
WARM_UP = 2  # changes, even: what is made on first use
Stream = grpc.aio.UnaryStreamCall[bytes, bytes]


class Watcher:
    """What one watcher has seen. No I/O."""

    def __init__(self) -> None:
        self.revision = 0  # of what it was sent last

    def take(self, data: bytes) -> None:
        """A message of the stream. Raises WrongAnswerError unless it is the next change after what was seen."""
        event = pool_pb2.WatchPoolsResponse.FromString(data)
        if not self.revision and event.HasField("snapshot"):
            self.revision = event.snapshot.revision
        elif self.revision and event.HasField("upsert") and event.upsert.revision == self.revision + 1:
            self.revision += 1
        else:
            raise WrongAnswerError(f"after revision {self.revision} came {event.WhichOneof('event')}: {event}"[:1000])


class Crowd:
    """Watchers of one daemon, reading; all on one connection, or each on its own."""

    def __init__(self, target: Target, shared: bool) -> None:
        self._target = target
        # Without a pool of its own, channels to one address share one connection.
        self._options = [("grpc.use_local_subchannel_pool", 0 if shared else 1)]
        self._channels: list[grpc.aio.Channel] = []
        self._watchers: list[Watcher] = []
        self._reading: list[asyncio.Task[None]] = []
        self._awaited = self._late = 0
        self._arrived = asyncio.Event()

    @classmethod
    async def of(cls, target: Target, watchers: int, shared: bool) -> Crowd:
        """Returns when each has had its snapshot."""
        crowd = cls(target, shared)
        for begun in range(0, watchers, CONNECTING):
            await asyncio.gather(*(crowd._join() for _ in range(min(CONNECTING, watchers - begun))))
        return crowd

    @property
    def revision(self) -> int:
        """That the one who knows least has seen."""
        return min(watcher.revision for watcher in self._watchers)

    async def _join(self) -> None:
        channel = grpc.aio.insecure_channel(self._target.address, self._options)
        self._channels.append(channel)
        method: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(METHOD)
        stream, watcher = method(pool_pb2.WatchPoolsRequest().SerializeToString()), Watcher()
        await _read(stream, watcher)
        self._watchers.append(watcher)
        self._reading.append(asyncio.create_task(self._go_on(stream, watcher)))

    async def _go_on(self, stream: Stream, watcher: Watcher) -> None:
        while True:
            await _read(stream, watcher)
            if watcher.revision == self._awaited:
                self._late -= 1
                if not self._late:
                    self._arrived.set()

    async def has_seen(self, revision: int) -> None:
        """Returns when each watcher has. Raises WrongAnswerError for what one was sent, and when it takes too long."""
        self._awaited, self._late = revision, sum(watcher.revision < revision for watcher in self._watchers)
        self._arrived.clear()
        if not self._late:
            return
        arrived = asyncio.create_task(self._arrived.wait())
        ended, _ = await asyncio.wait(
            [arrived, *self._reading], timeout=ARRIVAL_SECONDS, return_when=asyncio.FIRST_COMPLETED
        )
        arrived.cancel()
        for reading in ended - {arrived}:
            reading.result()
        if not ended:
            raise WrongAnswerError(f"{self._late} watchers have not seen revision {revision}")

    async def close(self) -> None:
        for reading in self._reading:
            reading.cancel()
        await asyncio.gather(*self._reading, return_exceptions=True)
        for channel in self._channels:
            await channel.close()


async def _read(stream: Stream, watcher: Watcher) -> None:
    data = await stream.read()
    if not isinstance(data, bytes):
        raise WrongAnswerError(f"the daemon ended a watch: {await stream.code()} {await stream.details()}")
    watcher.take(data)


class Changes:
    """Takes a lease and gives it back, pool by pool: each call changes `slots_free`, and so makes one revision."""

    def __init__(self, channel: grpc.aio.Channel, pool_ids: Sequence[str]) -> None:
        self._leases = LeaseServiceStub(channel)
        self._pool_ids = itertools.cycle(pool_ids)
        self._held: lease_pb2.Lease | None = None

    async def make(self) -> None:
        """Raises WrongAnswerError when the daemon refuses."""
        if self._held is None:
            request = lease_pb2.AcquireLeaseRequest(pool_id=next(self._pool_ids), holder="bench")
            answer = await self._leases.AcquireLease(request)
            refused = not answer.HasField("lease")
            self._held = answer.lease
        else:
            release = lease_pb2.ReleaseLeaseRequest(lease_id=self._held.lease_id, token=self._held.token)
            refused = (await self._leases.ReleaseLease(release)).outcome != lease_pb2.Lease.RELEASED
            self._held = None
        if refused:
            raise WrongAnswerError("a change was refused")


async def measure(target: Target, pool_ids: Sequence[str], seconds: float, shared: bool) -> Stretch:
    """Messages a second over all watchers, every one of which had every change. Raises WrongAnswerError."""
    crowd = await Crowd.of(target, WATCHERS, shared)
    async with grpc.aio.insecure_channel(target.address) as channel:
        changes = Changes(channel, pool_ids)
        first = crowd.revision + WARM_UP
        for _ in range(WARM_UP):
            await changes.make()
        await crowd.has_seen(first)
        count, meter, began = round(seconds * CHANGES_PER_SECOND), Meter(target), time.monotonic()
        for number in range(1, count + 1):
            await changes.make()
            await asyncio.sleep(max(0.0, began + number / CHANGES_PER_SECOND - time.monotonic()))
        await crowd.has_seen(first + count)
        taken = meter.stretch(count * WATCHERS)
    await crowd.close()
    return taken
