"""Questions of placement: protobuf -> model, and their answers back.

A field that is wrong is named by its path, "devices[1].vram_free_bytes". What a whole request may not be, whoever makes
it (no layers, sizes beyond any sum, two devices of one name), is for `core.split` to say.
"""

from __future__ import annotations

import math
from typing import Final

from poolmgr.convert.candidate import candidate_from_proto, capability_from
from poolmgr.convert.common import count_from, enum_from, enum_table, invalid
from poolmgr.convert.pool import ENGINE_NAMES, MAX_STRING_BYTES, split_from_proto
from poolmgr.convert.split_plan import OBJECTIVES, split_plan_to_proto
from poolmgr.errors import ClientError, Reason
from poolmgr.model.limits import split_problems
from poolmgr.model.memory import MemoryEstimate, MemoryQuestion
from poolmgr.model.names import EngineName
from poolmgr.model.placement import Candidate, Fate, PlacementPlan, PlacementQuery, Preference, SplitQuery
from poolmgr.model.plan import (
    MAX_DEVICES,
    MAX_LAYERS,
    DeviceProfile,
    LayerProfile,
    LinkProfile,
    ModelProfile,
    Objective,
)
from poolmgr.model.pool import MAX_SLOTS, SplitSpec
from poolmgr.v1 import placement_pb2 as pb
from poolmgr.v1 import pool_pb2

MAX_LINKS: Final = MAX_DEVICES * MAX_DEVICES

PREFERENCES: Final = enum_table(Preference, pb.PlanPlacementRequest.Preference.Value)
_PREFERENCES = {
    pb.PlanPlacementRequest.PREFERENCE_UNSPECIFIED: Preference.BIN_PACK,
    **{value: member for member, value in PREFERENCES.items()},
}
_OBJECTIVES = {value: member for member, value in OBJECTIVES.items()}
_ENGINES = {pool_pb2.ENGINE_UNSPECIFIED: EngineName.LLAMACPP, **ENGINE_NAMES}

# What says of which model file, at which context and for which engine.
_Asking = pb.PlanSplitRequest | pb.PlanPlacementRequest | pb.EstimateMemoryRequest


def split_query_from_proto(request: pb.PlanSplitRequest) -> SplitQuery:
    """Raises ClientError(INVALID_ARGUMENT) with the path of the field."""
    count_from(len(request.devices), 0, MAX_DEVICES, "devices: their number")
    count_from(len(request.links), 0, MAX_LINKS, "links: their number")
    if not _given(request, ("model", "model_path")):
        raise invalid("model", "is missing: model or model_path")
    devices = tuple(_device_from(one, f"devices[{number}]") for number, one in enumerate(request.devices))
    return SplitQuery(
        model=_model_from(request) if request.HasField("model") else memory_question_from_proto(request),
        devices=devices or None,
        links=tuple(_link_from(one, f"links[{number}]") for number, one in enumerate(request.links)),
        default_hop_seconds=_at_least_zero(request.default_hop_seconds, "default_hop_seconds"),
        activation_bytes=request.activation_bytes,
        objective=_objective_from(request.objective),
        max_devices=request.max_devices,
        engine=enum_from(_ENGINES, request.engine, "engine"),
    )


def memory_question_from_proto(request: _Asking) -> MemoryQuestion:
    """Raises ClientError(INVALID_ARGUMENT) with the name of the field."""
    path = request.model_path
    if not path.startswith("/") or "\0" in path or len(path.encode()) > MAX_STRING_BYTES:
        raise invalid("model_path", f"must be an absolute path of at most {MAX_STRING_BYTES} bytes, not {path[:80]!r}")
    if len(request.cache_type) > MAX_STRING_BYTES or not request.cache_type.isprintable():
        raise invalid("cache_type", "must be a name such as f16 or q8_0")
    return MemoryQuestion(
        model_path=path,
        context_length=request.context_length,
        slots=_slots_from(request.slots),
        cache_type=request.cache_type,
        engine=enum_from(_ENGINES, request.engine, "engine"),
    )


def placement_query_from_proto(request: pb.PlanPlacementRequest) -> PlacementQuery:
    """Raises ClientError(INVALID_ARGUMENT) with the path of the field."""
    _given(request, ("model", "model_path", "bytes_per_device"))
    count_from(request.device_count, 0, MAX_DEVICES, "device_count")
    return PlacementQuery(
        mask=request.device_mask or "auto",
        split=_split_from(request.split),
        memory=_memory_from(request),
        bytes_per_device=request.bytes_per_device,
        device_count=request.device_count,
        objective=_objective_from(request.objective),
        engine=enum_from(_ENGINES, request.engine, "engine"),
        preference=enum_from(_PREFERENCES, request.preference, "preference"),
        min_compute_capability=capability_from(request.min_compute_capability, "min_compute_capability"),
        mig_profile=request.mig_profile,
        allow_mig=not request.HasField("allow_mig") or request.allow_mig,
        allow_cross_numa=not request.HasField("allow_cross_numa") or request.allow_cross_numa,
        prefer_nvlink=not request.HasField("prefer_nvlink") or request.prefer_nvlink,
        evict=request.evict,
        host=_host_from(request.host) if request.HasField("host") else None,
    )


def model_to_proto(model: ModelProfile) -> pb.ModelProfile:
    return pb.ModelProfile(
        layers=[
            pb.LayerProfile(
                resident_bytes=one.resident_bytes,
                active_bytes=one.active_bytes,
                kv_bytes=one.kv_bytes,
                kv_window=one.kv_window,
            )
            for one in model.layers
        ],
        name=model.name,
        context_length=model.context_length,
        context_limit=model.context_limit,
        slots=model.slots,
        heads=model.heads,
        kv_heads=model.kv_heads,
    )


def estimate_to_proto(estimate: MemoryEstimate) -> pb.MemoryEstimate:
    return pb.MemoryEstimate(
        model=model_to_proto(estimate.model),
        weight_bytes=estimate.weight_bytes,
        kv_bytes=estimate.kv_bytes,
        overhead_bytes=estimate.overhead_bytes,
        one_device_bytes=estimate.one_device_bytes,
        host_bytes=estimate.host_bytes,
        activation_bytes=estimate.activation_bytes,
        factor=estimate.factor,
        explanation=estimate.explanation,
    )


def placement_to_proto(plan: PlacementPlan) -> pb.PlacementPlan:
    return pb.PlacementPlan(
        fits=plan.refusal is None,
        device_ids=plan.device_ids,
        reserve_bytes=plan.bytes_by_device,
        split=split_plan_to_proto(plan.split) if plan.split else None,
        refusal=_fate_to_proto(plan.refusal) if plan.refusal else None,
        missing_bytes=plan.missing_bytes,
        fates=[_fate_to_proto(fate) for fate in plan.fates],
        evictions=plan.evictions,
        explanation=plan.explanation,
    )


def _fate_to_proto(fate: Fate) -> pb.PlacementPlan.Fate:
    numbers = {name: str(value) for name, value in fate.numbers.items()}
    return pb.PlacementPlan.Fate(device_id=fate.device_id, reason=fate.reason, message=fate.message, numbers=numbers)


def _given(request: pb.PlanSplitRequest | pb.PlanPlacementRequest, names: tuple[str, ...]) -> bool:
    """Whether one of these fields is set. Raises ClientError(INVALID_ARGUMENT) when several are."""
    given = [field.name for field, _ in request.ListFields() if field.name in names]
    if len(given) > 1:
        raise invalid(" and ".join(given), "contradict each other: give one of them")
    return bool(given)


def _model_from(request: pb.PlanSplitRequest | pb.PlanPlacementRequest) -> ModelProfile:
    """The request's context and slots are the model's where that does not say its own."""
    model = request.model
    count_from(len(model.layers), 1, MAX_LAYERS, "model.layers: their number")
    return ModelProfile(
        layers=tuple(_layer_from(layer) for layer in model.layers),
        name=model.name[:MAX_STRING_BYTES],
        context_length=_agreed(model.context_length, request.context_length, "context_length"),
        context_limit=model.context_limit,
        slots=_slots_from(_agreed(model.slots, request.slots, "slots")),
        heads=model.heads,
        kv_heads=model.kv_heads,
    )


def _agreed(of_model: int, of_request: int, name: str) -> int:
    if of_model and of_request and of_model != of_request:
        message = f"is {of_request}, but model.{name} is {of_model}, which its kv_bytes are for"
        raise invalid(name, message, value=of_request)
    return of_model or of_request


def _layer_from(layer: pb.LayerProfile) -> LayerProfile:
    active = layer.active_bytes if layer.HasField("active_bytes") else layer.resident_bytes
    return LayerProfile(layer.resident_bytes, active, layer.kv_bytes, layer.kv_window)


def _device_from(device: pb.DeviceProfile, path: str) -> DeviceProfile:
    if not device.device_id or len(device.device_id) > MAX_STRING_BYTES:
        raise invalid(f"{path}.device_id", f"must be 1 to {MAX_STRING_BYTES} characters")
    return DeviceProfile(
        device_id=device.device_id,
        vram_free_bytes=device.vram_free_bytes,
        memory_bandwidth_bytes_per_second=_above_zero(
            device.memory_bandwidth_bytes_per_second, f"{path}.memory_bandwidth_bytes_per_second"
        ),
        overhead_bytes=device.overhead_bytes,
    )


def _link_from(link: pb.LinkProfile, path: str) -> LinkProfile:
    return LinkProfile(
        device_a=link.device_a,
        device_b=link.device_b,
        latency_seconds=_at_least_zero(link.latency_seconds, f"{path}.latency_seconds"),
        bandwidth_bytes_per_second=_above_zero(link.bandwidth_bytes_per_second, f"{path}.bandwidth_bytes_per_second"),
    )


def _memory_from(request: pb.PlanPlacementRequest) -> MemoryQuestion | MemoryEstimate | None:
    if request.HasField("model"):
        return MemoryEstimate(_model_from(request), request.overhead_bytes)
    return memory_question_from_proto(request) if request.model_path else None


def _host_from(host: pb.PlanPlacementRequest.Host) -> tuple[Candidate, ...]:
    count_from(len(host.devices), 0, MAX_DEVICES, "host.devices: their number")
    return tuple(candidate_from_proto(one, f"host.devices[{number}]") for number, one in enumerate(host.devices))


def _split_from(message: pool_pb2.Split) -> SplitSpec:
    split = split_from_proto(message, "split")
    for problem in split_problems(split):
        raise ClientError(Reason.INVALID_ARGUMENT, str(problem), numbers={"field": problem.name, **problem.numbers})
    return split


def _slots_from(slots: int) -> int:
    return count_from(slots or 1, 1, MAX_SLOTS, "slots")


def _objective_from(value: pb.Objective.ValueType) -> Objective | None:
    return None if value == pb.OBJECTIVE_UNSPECIFIED else enum_from(_OBJECTIVES, value, "objective")


def _at_least_zero(value: float, path: str) -> float:
    if not math.isfinite(value) or value < 0:
        raise invalid(path, f"must be 0 or more, not {value}", value=str(value))
    return value


def _above_zero(value: float, path: str) -> float:
    if not math.isfinite(value) or value <= 0:
        raise invalid(path, f"must be more than 0, not {value}", value=str(value))
    return value
