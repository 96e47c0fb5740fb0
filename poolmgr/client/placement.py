"""The calls that ask where work would go. They change nothing."""

from __future__ import annotations

from poolmgr.client.connection import DEFAULT_TIMEOUT, Connection
from poolmgr.v1 import placement_pb2
from poolmgr.v1.placement_pb2_grpc import PlacementServiceStub


class PlacementCalls(Connection):
    """What does not fit is an answer: look at `fits` and `refusal`."""

    def __init__(self, address: str | None = None, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        super().__init__(address, timeout=timeout)
        self._placement = PlacementServiceStub(self._channel)

    def plan_split(self, request: placement_pb2.PlanSplitRequest) -> placement_pb2.SplitPlan:
        """The best split of a model over this host's devices, or over those that the request names."""
        return self._call(self._placement.PlanSplit, request)

    def plan_placement(self, request: placement_pb2.PlanPlacementRequest) -> placement_pb2.PlacementPlan:
        """Which devices it would be given now, and why no others."""
        return self._call(self._placement.PlanPlacement, request)

    def estimate_memory(self, request: placement_pb2.EstimateMemoryRequest) -> placement_pb2.MemoryEstimate:
        """What a model file on the daemon's host needs, with what was learned of earlier runs."""
        return self._call(self._placement.EstimateMemory, request)
