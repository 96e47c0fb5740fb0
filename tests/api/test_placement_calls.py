"""PlacementService on a real socket: what reaches the facade, and what comes back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from poolmgr.api.status import DETAILS_KEY
from poolmgr.errors import ClientError, EnvironmentFault, Reason
from poolmgr.model.memory import MemoryEstimate, MemoryQuestion
from poolmgr.model.placement import Fate, PlacementPlan, PlacementQuery, SplitQuery
from poolmgr.model.plan import (
    Assignment,
    DeviceProfile,
    LayerProfile,
    ModelProfile,
    Objective,
    PlanRefusal,
    Refusal,
    Rendering,
    SplitPlan,
)
from poolmgr.v1 import placement_pb2 as pb
from poolmgr.v1.placement_pb2_grpc import PlacementServiceStub
from tests.api.scripted_facade import ScriptedFacade, served

GIB = 1 << 30
FITS = SplitPlan(
    True,
    Objective.MIN_BOTTLENECK,
    assignments=(
        Assignment("GPU-b", 0, 19, 20 * GIB, GIB, GIB, 0.625),
        Assignment("GPU-a", 20, 31, 12 * GIB, GIB, GIB, 0.375),
    ),
    ratios=(0.625, 0.375),
    bottleneck_seconds_per_token=0.01,
    latency_seconds_per_token=0.017,
    headroom_bytes={"GPU-b": 2 * GIB, "GPU-a": 0},
    optimal=True,
    explanation=("GPU-a limits it",),
    renderings={"LLAMACPP": Rendering(("--tensor-split", "20,12"))},
)
REFUSED = SplitPlan(
    False,
    Objective.MIN_LATENCY,
    PlanRefusal(Refusal.DOES_NOT_FIT, 5 * GIB, "5 GiB more are needed"),
    explanation=("no",),
)
MODEL = {"layers": [{"resident_bytes": GIB}]}
A_DEVICE = {"device_id": "GPU-a", "vram_free_bytes": 9, "memory_bandwidth_bytes_per_second": 1e12}


@dataclass
class ScriptedPlacing:
    """Answers as a test says, with an error where it says one."""

    split: SplitPlan = FITS
    placed: PlacementPlan = field(default_factory=PlacementPlan)
    estimate: MemoryEstimate = field(default_factory=lambda: MemoryEstimate(ModelProfile((LayerProfile(5, 4, 3),)), 2))
    error: ClientError | EnvironmentFault | None = None
    asked: list[Any] = field(default_factory=list)

    def _ask(self, question: Any) -> None:
        self.asked.append(question)
        if self.error is not None:
            raise self.error

    async def plan_split(self, query: SplitQuery) -> SplitPlan:
        self._ask(query)
        return self.split

    async def plan_placement(self, query: PlacementQuery) -> PlacementPlan:
        self._ask(query)
        return self.placed

    async def estimate_memory(self, question: MemoryQuestion) -> MemoryEstimate:
        self._ask(question)
        return self.estimate


@dataclass
class PlacingFacade(ScriptedFacade):
    placement: ScriptedPlacing = field(default_factory=ScriptedPlacing)


async def refused(call) -> tuple[grpc.StatusCode, error_details_pb2.ErrorInfo]:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    details = dict(raised.value.trailing_metadata())[DETAILS_KEY]
    info = error_details_pb2.ErrorInfo()
    assert status_pb2.Status.FromString(details).details[0].Unpack(info)
    return raised.value.code(), info


@pytest.mark.behaviour("SPLIT-2", "SPLIT-5")
async def test_a_split_is_planned_for_what_was_asked_and_told_whole():
    facade = PlacingFacade()
    async with served(facade) as channel:
        plan = await PlacementServiceStub(channel).PlanSplit(
            pb.PlanSplitRequest(model=MODEL, devices=[A_DEVICE], objective=pb.MIN_BOTTLENECK, slots=4)
        )
    assert facade.placement.asked == [
        SplitQuery(
            ModelProfile((LayerProfile(GIB, GIB),), slots=4),
            (DeviceProfile("GPU-a", 9, 1e12),),
            objective=Objective.MIN_BOTTLENECK,
        )
    ]
    assert plan.fits and plan.optimal and sum(plan.ratios) == 1.0
    assert [(one.device_id, one.first_layer, one.last_layer) for one in plan.assignments] == [
        ("GPU-b", 0, 19),
        ("GPU-a", 20, 31),
    ]
    assert dict(plan.headroom_bytes) == {"GPU-b": 2 * GIB, "GPU-a": 0}
    assert (list(plan.explanation), list(plan.renderings["ENGINE_LLAMACPP"].args)) == (
        ["GPU-a limits it"],
        ["--tensor-split", "20,12"],
    )


@pytest.mark.behaviour("SPLIT-2")
async def test_a_model_that_does_not_fit_is_an_answer_with_what_is_missing():
    async with served(PlacingFacade(placement=ScriptedPlacing(split=REFUSED))) as channel:
        plan = await PlacementServiceStub(channel).PlanSplit(pb.PlanSplitRequest(model=MODEL))
    assert (plan.fits, plan.refusal.missing_bytes) == (False, 5 * GIB)
    assert plan.refusal.reason == pb.SplitPlan.Refusal.DOES_NOT_FIT
    assert not plan.assignments and list(plan.explanation) == ["no"]


@pytest.mark.behaviour("PLACE-1", "PLACE-5")
async def test_a_placement_is_asked_for_by_mask_and_file_and_tells_each_fate():
    placed = PlacementPlan(
        refusal=Fate("", "NO_ROOM", "1 GiB short"), missing_bytes=GIB,
        fates=(Fate("GPU-a", "NO_ROOM", "1 GiB short", {"free_bytes": 7}),), evictions=("idle",),
    )  # fmt: skip
    facade = PlacingFacade(placement=ScriptedPlacing(placed=placed))
    async with served(facade) as channel:
        answer = await PlacementServiceStub(channel).PlanPlacement(
            pb.PlanPlacementRequest(device_mask="0,1", model_path="/m.gguf", evict=True)
        )
    assert facade.placement.asked == [PlacementQuery("0,1", memory=MemoryQuestion("/m.gguf"), evict=True)]
    assert (answer.fits, answer.refusal.reason, answer.missing_bytes) == (False, "NO_ROOM", GIB)
    assert (answer.fates[0].device_id, answer.fates[0].numbers["free_bytes"]) == ("GPU-a", "7")
    assert list(answer.evictions) == ["idle"]


@pytest.mark.behaviour("MEM-1")
async def test_an_estimate_is_of_the_file_at_the_context_that_was_asked_for():
    facade = PlacingFacade()
    async with served(facade) as channel:
        answer = await PlacementServiceStub(channel).EstimateMemory(
            pb.EstimateMemoryRequest(model_path="/m.gguf", context_length=4096, slots=2, cache_type="q8_0")
        )
    assert facade.placement.asked == [MemoryQuestion("/m.gguf", 4096, 2, "q8_0")]
    assert (answer.weight_bytes, answer.kv_bytes, answer.overhead_bytes, answer.one_device_bytes) == (5, 3, 2, 10)


@pytest.mark.parametrize(
    ("call", "request_", "field_"),
    [
        ("PlanSplit", pb.PlanSplitRequest(), "model"),
        (
            "PlanSplit",
            pb.PlanSplitRequest(model=MODEL, devices=[A_DEVICE, {"device_id": "b"}]),
            "devices[1].memory_bandwidth_bytes_per_second",
        ),
        ("PlanSplit", pb.PlanSplitRequest(model=MODEL, default_hop_seconds=float("nan")), "default_hop_seconds"),
        ("PlanPlacement", pb.PlanPlacementRequest(model_path="m"), "model_path"),
        ("EstimateMemory", pb.EstimateMemoryRequest(model_path="/m", slots=5000), "slots"),
    ],
)
async def test_a_malformed_question_is_refused_by_the_path_of_its_field_before_anything_is_asked(
    call, request_, field_
):
    facade = PlacingFacade()
    async with served(facade) as channel:
        code, info = await refused(getattr(PlacementServiceStub(channel), call)(request_))
    assert (code, info.reason, info.metadata["field"]) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT", field_)
    assert facade.placement.asked == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ClientError(Reason.MODEL_NOT_FOUND, "no such file"), grpc.StatusCode.FAILED_PRECONDITION),
        (ClientError(Reason.DOES_NOT_FIT, "too large"), grpc.StatusCode.FAILED_PRECONDITION),
        (EnvironmentFault(Reason.INSUFFICIENT_MEMORY, "now"), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (EnvironmentFault(Reason.NO_TELEMETRY, "no driver"), grpc.StatusCode.UNAVAILABLE),
    ],
)
async def test_a_question_that_cannot_be_answered_is_an_error_with_its_reason(error, code):
    async with served(PlacingFacade(placement=ScriptedPlacing(error=error))) as channel:
        stub = PlacementServiceStub(channel)
        for call in (
            stub.PlanSplit(pb.PlanSplitRequest(model_path="/m")),
            stub.PlanPlacement(pb.PlanPlacementRequest(model_path="/m")),
            stub.EstimateMemory(pb.EstimateMemoryRequest(model_path="/m")),
        ):
            told, info = await refused(call)
            assert (told, info.reason) == (code, error.reason)
