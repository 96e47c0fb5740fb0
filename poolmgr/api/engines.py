"""EngineService over the facade."""

from __future__ import annotations

from collections.abc import AsyncIterator

from google.protobuf import empty_pb2

from poolmgr.api.guard import Context
from poolmgr.api.paging import page
from poolmgr.api.pools import encoded
from poolmgr.convert.engine import engine_to_proto
from poolmgr.convert.registration import answer_to_proto, beat_from_proto, engine_id_from, registration_from_proto
from poolmgr.model.registration import EngineView
from poolmgr.runtime.facade import Facade
from poolmgr.v1 import engine_pb2 as pb
from poolmgr.v1 import engine_pb2_grpc, pool_pb2


class EngineServicer(engine_pb2_grpc.EngineServiceServicer):
    def __init__(self, facade: Facade) -> None:
        self._facade = facade

    async def RegisterEngine(self, request: pb.RegisterEngineRequest, context: Context) -> pool_pb2.Pool:
        return encoded(await self._facade.register_engine(registration_from_proto(request)))

    async def Heartbeat(
        self, request_iterator: AsyncIterator[pb.HeartbeatRequest], context: Context
    ) -> AsyncIterator[pb.HeartbeatResponse]:
        async for request in request_iterator:
            yield answer_to_proto(self._facade.heartbeat(beat_from_proto(request)))

    async def DeregisterEngine(self, request: pb.DeregisterEngineRequest, context: Context) -> empty_pb2.Empty:
        await self._facade.deregister_engine(engine_id_from(request.engine_id))
        return empty_pb2.Empty()

    async def ListEngines(self, request: pb.ListEnginesRequest, context: Context) -> pb.ListEnginesResponse:
        ordered = sorted(self._facade.engines(request.pool_id), key=_key)
        engines, token = page(ordered, _key, request.page_size, request.page_token)
        return pb.ListEnginesResponse(engines=[engine_to_proto(view) for view in engines], next_page_token=token)


def _key(view: EngineView) -> str:
    """By pool, then in the order of its generations: a reload has two engines for a while."""
    return f"{view.pool_id} {view.generation:010d} {view.engine_id}"
