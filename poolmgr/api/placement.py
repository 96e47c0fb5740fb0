"""PlacementService over the facade."""

from __future__ import annotations

from poolmgr.api.guard import Context
from poolmgr.convert.placement import (
    estimate_to_proto,
    memory_question_from_proto,
    placement_query_from_proto,
    placement_to_proto,
    split_query_from_proto,
)
from poolmgr.convert.split_plan import split_plan_to_proto
from poolmgr.runtime.facade import Facade
from poolmgr.v1 import placement_pb2 as pb
from poolmgr.v1 import placement_pb2_grpc


class PlacementServicer(placement_pb2_grpc.PlacementServiceServicer):
    def __init__(self, facade: Facade) -> None:
        self._facade = facade

    async def PlanSplit(self, request: pb.PlanSplitRequest, context: Context) -> pb.SplitPlan:
        return split_plan_to_proto(await self._facade.placement.plan_split(split_query_from_proto(request)))

    async def PlanPlacement(self, request: pb.PlanPlacementRequest, context: Context) -> pb.PlacementPlan:
        return placement_to_proto(await self._facade.placement.plan_placement(placement_query_from_proto(request)))

    async def EstimateMemory(self, request: pb.EstimateMemoryRequest, context: Context) -> pb.MemoryEstimate:
        return estimate_to_proto(await self._facade.placement.estimate_memory(memory_question_from_proto(request)))
