"""PoolService over the facade."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import cast

import grpc
from google.protobuf import empty_pb2
from google.protobuf.duration_pb2 import Duration

from poolmgr.api.guard import Context
from poolmgr.api.paging import page
from poolmgr.convert.common import seconds_from
from poolmgr.convert.pool import (
    generation_to_proto,
    masked_spec,
    pool_id_from,
    pool_to_proto,
    spec_from_proto,
    spec_to_proto,
    strategy_from_proto,
)
from poolmgr.errors import ClientError, Reason
from poolmgr.model.pool import PoolSpec
from poolmgr.runtime.bus import Change, DeviceChange, PublishedPool, Resync
from poolmgr.runtime.facade import Facade
from poolmgr.v1 import pool_pb2 as pb
from poolmgr.v1 import pool_pb2_grpc

WatchContext = grpc.aio.ServicerContext[pb.WatchPoolsRequest, bytes]

MAX_WAIT = 3600.0
MAX_DEADLINE = 86400.0
MAX_GRACE = 3600.0
DEFAULT_LOG_LINES = 50
MAX_LOG_LINES = 10_000


def encoded(published: PublishedPool) -> pb.Pool:
    """The message of a published pool, made once per revision."""
    if published.encoded is None:
        published.encoded = pool_to_proto(published.view)
    return cast(pb.Pool, published.encoded)


class PoolServicer(pool_pb2_grpc.PoolServiceServicer):
    def __init__(self, facade: Facade) -> None:
        self._facade = facade

    async def CreatePool(self, request: pb.CreatePoolRequest, context: Context) -> pb.Pool:
        pool_id, spec = pool_id_from(request.pool_id), spec_from_proto(request.spec)
        if request.validate_only:
            await self._facade.check_pool(pool_id, spec)
            return pb.Pool(pool_id=pool_id, spec=spec_to_proto(spec), state=pb.Pool.PENDING, generation=1)
        return encoded(await self._facade.create_pool(pool_id, spec))

    async def GetPool(self, request: pb.GetPoolRequest, context: Context) -> pb.Pool:
        return encoded(self._facade.pool(request.pool_id))

    async def ListPools(self, request: pb.ListPoolsRequest, context: Context) -> pb.ListPoolsResponse:
        pools, token = page(self._facade.pools(), lambda p: p.pool_id, request.page_size, request.page_token)
        return pb.ListPoolsResponse(pools=[encoded(p) for p in pools], next_page_token=token)

    async def UpdatePool(self, request: pb.UpdatePoolRequest, context: Context) -> pb.Pool:
        paths = list(request.update_mask.paths)

        def change(current: PoolSpec) -> PoolSpec:
            return masked_spec(current, request.pool.spec, paths)

        return encoded(await self._facade.update_pool(request.pool.pool_id, change))

    async def DeletePool(self, request: pb.DeletePoolRequest, context: Context) -> empty_pb2.Empty:
        await self._facade.delete(request.pool_id, _drain_deadline(request))
        return empty_pb2.Empty()

    async def PreloadPool(self, request: pb.PreloadPoolRequest, context: Context) -> pb.Pool:
        wait = _wait(request.wait)
        return encoded(await self._facade.preload(request.pool_id, wait))

    async def DrainPool(self, request: pb.DrainPoolRequest, context: Context) -> pb.Pool:
        wait = _wait(request.wait)
        deadline = None
        if request.HasField("deadline"):
            deadline = seconds_from(request.deadline, 0.0, 0.0, MAX_DEADLINE, "deadline")
        return encoded(await self._facade.drain(request.pool_id, deadline, wait))

    async def UndrainPool(self, request: pb.UndrainPoolRequest, context: Context) -> pb.Pool:
        return encoded(await self._facade.undrain(request.pool_id))

    async def ReloadPool(self, request: pb.ReloadPoolRequest, context: Context) -> pb.Pool:
        spec = spec_from_proto(request.spec) if request.HasField("spec") else None
        strategy, deadline = strategy_from_proto(request.strategy), _drain_deadline(request)
        return encoded(await self._facade.reload_pool(request.pool_id, spec, strategy, deadline, _wait(request.wait)))

    async def RollbackPool(self, request: pb.RollbackPoolRequest, context: Context) -> pb.Pool:
        deadline, wait = _drain_deadline(request), _wait(request.wait)
        return encoded(await self._facade.rollback_pool(request.pool_id, request.generation, deadline, wait))

    async def ListPoolGenerations(
        self, request: pb.ListPoolGenerationsRequest, context: Context
    ) -> pb.ListPoolGenerationsResponse:
        kept = await self._facade.generations(request.pool_id)
        views, token = page(kept, lambda view: f"{view.generation:010d}", request.page_size, request.page_token)
        return pb.ListPoolGenerationsResponse(
            generations=[generation_to_proto(view) for view in views], next_page_token=token
        )

    async def StopPool(self, request: pb.StopPoolRequest, context: Context) -> pb.Pool:
        wait = _wait(request.wait)
        grace = seconds_from(request.grace, 0.0, 0.0, MAX_GRACE, "grace") if request.HasField("grace") else None
        return encoded(await self._facade.stop(request.pool_id, grace, wait))

    async def ResetBreaker(self, request: pb.ResetBreakerRequest, context: Context) -> pb.Pool:
        return encoded(await self._facade.reset_breaker(request.pool_id))

    async def WatchPools(  # type: ignore[override] # its messages go out serialised: see `server`
        self, request: pb.WatchPoolsRequest, context: WatchContext
    ) -> None:
        """One change goes to many watchers, and is encoded once."""
        only, after = request.pool_id, request.from_revision - 1
        if only:
            self._facade.pool(only)
        while True:
            if after < 0:
                after = self._facade.bus.revision
                await context.write(self._snapshot(only, after).SerializeToString())
            async with aclosing(self._facade.watch(after)) as changes:
                async for batch in changes:
                    if isinstance(batch, Resync):
                        resync = pb.WatchPoolsResponse.Resync(reason=batch.reason, revision=self._facade.bus.revision)
                        await context.write(pb.WatchPoolsResponse(resync=resync).SerializeToString())
                        break
                    for response in _responses(batch, only):
                        await context.write(response)
            after = -1

    def _snapshot(self, only: str, revision: int) -> pb.WatchPoolsResponse:
        pools = [encoded(p) for p in self._facade.pools() if not only or p.pool_id == only]
        return pb.WatchPoolsResponse(snapshot=pb.WatchPoolsResponse.Snapshot(pools=pools, revision=revision))

    async def TailLogs(self, request: pb.TailLogsRequest, context: Context) -> AsyncIterator[pb.TailLogsResponse]:
        lines = request.lines or DEFAULT_LOG_LINES
        if lines > MAX_LOG_LINES:
            raise ClientError(
                Reason.INVALID_ARGUMENT,
                f"{lines} lines are over the limit of {MAX_LOG_LINES}",
                numbers={"lines": lines, "limit": MAX_LOG_LINES},
            )
        if not request.follow:
            yield pb.TailLogsResponse(lines=self._facade.log_tail(request.pool_id, lines))
            return
        async with aclosing(self._facade.follow_log(request.pool_id, lines)) as batches:
            async for batch in batches:
                yield pb.TailLogsResponse(lines=batch)


def _wait(message: Duration) -> float:
    return seconds_from(message, 0.0, 0.0, MAX_WAIT, "wait")


def _drain_deadline(request: pb.DeletePoolRequest | pb.ReloadPoolRequest | pb.RollbackPoolRequest) -> float | None:
    """None: the spec's."""
    if not request.HasField("drain_deadline"):
        return None
    return seconds_from(request.drain_deadline, 0.0, 0.0, MAX_DEADLINE, "drain_deadline")


def _responses(batch: Sequence[Change | DeviceChange], only: str) -> Sequence[bytes]:
    """What a watcher of `only` (or of all) is sent for a batch; a bookmark where the end of it is not for them."""
    theirs = [change for change in batch if isinstance(change, Change) and (not only or change.pool_id == only)]
    responses = [_response(change) for change in theirs]
    if not theirs or theirs[-1] is not batch[-1]:
        responses.append(pb.WatchPoolsResponse(bookmark=batch[-1].revision).SerializeToString())
    return responses


def _response(change: Change) -> bytes:
    if change.pool is None:
        deletion = pb.WatchPoolsResponse.Deletion(pool_id=change.pool_id, revision=change.revision)
        return pb.WatchPoolsResponse(delete=deletion).SerializeToString()
    if change.pool.watched is None:
        change.pool.watched = pb.WatchPoolsResponse(upsert=encoded(change.pool)).SerializeToString()
    return change.pool.watched
