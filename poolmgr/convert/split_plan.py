"""Plans of splits: model -> protobuf."""

from __future__ import annotations

from typing import Final

from poolmgr.convert.common import enum_table
from poolmgr.model.plan import Assignment, Objective, PlanRefusal, Refusal, SplitPlan
from poolmgr.v1 import split_plan_pb2 as pb

OBJECTIVES: Final = enum_table(Objective, pb.Objective.Value)
REFUSALS: Final = enum_table(Refusal, pb.SplitPlan.Refusal.Reason.Value)


def split_plan_to_proto(plan: SplitPlan) -> pb.SplitPlan:
    return pb.SplitPlan(
        fits=plan.fits,
        refusal=_refusal_to_proto(plan.refusal) if plan.refusal else None,
        assignments=[_assignment_to_proto(one) for one in plan.assignments],
        ratios=plan.ratios,
        bottleneck_seconds_per_token=plan.bottleneck_seconds_per_token,
        latency_seconds_per_token=plan.latency_seconds_per_token,
        headroom_bytes=plan.headroom_bytes,
        optimal=plan.optimal,
        gap=plan.gap,
        explanation=plan.explanation,
        renderings={
            f"ENGINE_{engine}": pb.SplitPlan.Rendering(args=rendering.args, env=rendering.env)
            for engine, rendering in plan.renderings.items()
        },
        objective=OBJECTIVES[plan.objective],
        context_length=plan.context_length,
        tensor_parallel=plan.tensor_parallel,
    )


def _refusal_to_proto(refusal: PlanRefusal) -> pb.SplitPlan.Refusal:
    return pb.SplitPlan.Refusal(
        reason=REFUSALS[refusal.reason], missing_bytes=refusal.missing_bytes, message=refusal.message
    )


def _assignment_to_proto(one: Assignment) -> pb.SplitPlan.Assignment:
    return pb.SplitPlan.Assignment(
        device_id=one.device_id,
        first_layer=one.first_layer,
        last_layer=one.last_layer,
        weight_bytes=one.weight_bytes,
        kv_bytes=one.kv_bytes,
        overhead_bytes=one.overhead_bytes,
        ratio=one.ratio,
    )
