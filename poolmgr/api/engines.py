"""EngineService over the facade."""

from __future__ import annotations

from poolmgr.api.guard import Context
from poolmgr.api.paging import page
from poolmgr.convert.engine import engine_to_proto
from poolmgr.runtime.facade import Facade
from poolmgr.v1 import engine_pb2 as pb
from poolmgr.v1 import engine_pb2_grpc


class EngineServicer(engine_pb2_grpc.EngineServiceServicer):
    def __init__(self, facade: Facade) -> None:
        self._facade = facade

    async def ListEngines(self, request: pb.ListEnginesRequest, context: Context) -> pb.ListEnginesResponse:
        facade = self._facade
        pools = [facade.pool(request.pool_id)] if request.pool_id else facade.pools()
        running = [p for p in pools if p.view.pid]
        engines, token = page(running, lambda p: p.pool_id, request.page_size, request.page_token)
        return pb.ListEnginesResponse(
            engines=[engine_to_proto(p.view, facade.directory(p.view.engine_id)) for p in engines],
            next_page_token=token,
        )
