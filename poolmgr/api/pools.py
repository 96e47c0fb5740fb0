"""PoolService over the facade."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import cast

from google.protobuf import empty_pb2

from poolmgr.api.guard import Context
from poolmgr.api.paging import page
from poolmgr.convert.common import seconds_from
from poolmgr.convert.pool import masked_spec, pool_id_from, pool_to_proto, spec_from_proto, spec_to_proto
from poolmgr.errors import ClientError, Reason
from poolmgr.model.pool import PoolSpec
from poolmgr.runtime.bus import Change, PublishedPool, Resync
from poolmgr.runtime.facade import Facade
from poolmgr.v1 import pool_pb2 as pb
from poolmgr.v1 import pool_pb2_grpc

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
        deadline = None
        if request.HasField("drain_deadline"):
            deadline = seconds_from(request.drain_deadline, 0.0, 0.0, MAX_DEADLINE, "drain_deadline")
        await self._facade.delete(request.pool_id, deadline)
        return empty_pb2.Empty()

    async def PreloadPool(self, request: pb.PreloadPoolRequest, context: Context) -> pb.Pool:
        wait = seconds_from(request.wait, 0.0, 0.0, MAX_WAIT, "wait")
        return encoded(await self._facade.preload(request.pool_id, wait))

    async def DrainPool(self, request: pb.DrainPoolRequest, context: Context) -> pb.Pool:
        wait = seconds_from(request.wait, 0.0, 0.0, MAX_WAIT, "wait")
        deadline = None
        if request.HasField("deadline"):
            deadline = seconds_from(request.deadline, 0.0, 0.0, MAX_DEADLINE, "deadline")
        return encoded(await self._facade.drain(request.pool_id, deadline, wait))

    async def UndrainPool(self, request: pb.UndrainPoolRequest, context: Context) -> pb.Pool:
        return encoded(await self._facade.undrain(request.pool_id))

    async def StopPool(self, request: pb.StopPoolRequest, context: Context) -> pb.Pool:
        wait = seconds_from(request.wait, 0.0, 0.0, MAX_WAIT, "wait")
        grace = seconds_from(request.grace, 0.0, 0.0, MAX_GRACE, "grace") if request.HasField("grace") else None
        return encoded(await self._facade.stop(request.pool_id, grace, wait))

    async def ResetBreaker(self, request: pb.ResetBreakerRequest, context: Context) -> pb.Pool:
        return encoded(await self._facade.reset_breaker(request.pool_id))

    async def WatchPools(self, request: pb.WatchPoolsRequest, context: Context) -> AsyncIterator[pb.WatchPoolsResponse]:
        only, after = request.pool_id, request.from_revision - 1
        if only:
            self._facade.pool(only)
        while True:
            if after < 0:
                after = self._facade.bus.revision
                yield self._snapshot(only, after)
            async with aclosing(self._facade.watch(after)) as changes:
                async for batch in changes:
                    if isinstance(batch, Resync):
                        revision = self._facade.bus.revision
                        yield pb.WatchPoolsResponse(
                            resync=pb.WatchPoolsResponse.Resync(reason=batch.reason, revision=revision)
                        )
                        break
                    for response in _responses(batch, only):
                        yield response
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


def _responses(batch: Sequence[Change], only: str) -> Sequence[pb.WatchPoolsResponse]:
    """What a watcher of `only` (or of all) is sent for a batch; a bookmark where the end of it is not for them."""
    responses = [
        pb.WatchPoolsResponse(upsert=encoded(c.pool))
        if c.pool is not None
        else pb.WatchPoolsResponse(delete=pb.WatchPoolsResponse.Deletion(pool_id=c.pool_id, revision=c.revision))
        for c in batch
        if not only or c.pool_id == only
    ]
    if only and batch[-1].pool_id != only:
        responses.append(pb.WatchPoolsResponse(bookmark=batch[-1].revision))
    return responses
