"""Questions of placement from protobuf and their answers to it: nothing malformed gets in, nothing is lost."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolmgr.convert.placement import (
    PREFERENCES,
    estimate_to_proto,
    memory_question_from_proto,
    model_to_proto,
    placement_query_from_proto,
    placement_to_proto,
    split_query_from_proto,
)
from poolmgr.convert.pool import ENGINES
from poolmgr.convert.split_plan import OBJECTIVES, REFUSALS, split_plan_to_proto
from poolmgr.errors import ClientError, Reason
from poolmgr.model.device import DeviceState, Link, LinkKind
from poolmgr.model.device_health import Inadmissible
from poolmgr.model.memory import LedgerEntry, MemoryEstimate, MemoryQuestion
from poolmgr.model.placement import Fate, PlacementPlan, PlacementQuery, Preference, SplitQuery
from poolmgr.model.plan import (
    Assignment,
    DeviceProfile,
    LayerProfile,
    LinkProfile,
    ModelProfile,
    Objective,
    PlanRefusal,
    Refusal,
    Rendering,
    SplitPlan,
    SplitRequest,
)
from poolmgr.model.pool import EngineName, SplitMode, SplitSpec
from poolmgr.v1 import device_pb2, pool_pb2
from poolmgr.v1 import placement_pb2 as pb

GIB = 1 << 30
NAN, INF = float("nan"), float("inf")
WHOLE = {
    "model": {"layers": [{"resident_bytes": 5, "active_bytes": 4, "kv_bytes": 3, "kv_window": 2}], "name": "m"},
    "devices": [
        {
            "device_id": "a",
            "vram_free_bytes": 9,
            "overhead_bytes": 1,
            "memory_bandwidth_bytes_per_second": 2.5,
        }
    ],
    "links": [{"device_a": "a", "device_b": "b", "latency_seconds": 0.5, "bandwidth_bytes_per_second": 8.0}],
    "default_hop_seconds": 0.25,
    "activation_bytes": 7,
    "objective": pb.MAX_CONTEXT,
    "max_devices": 3,
    "engine": pool_pb2.ENGINE_VLLM,
    "context_length": 4096,
    "slots": 2,
}


def refused(call, request) -> str:
    """The field that the refusal names."""
    with pytest.raises(ClientError) as refusal:
        call(request)
    assert refusal.value.reason is Reason.INVALID_ARGUMENT
    field = str(refusal.value.numbers["field"])
    assert field in refusal.value.message
    return field


# Splits.


@pytest.mark.behaviour("SPLIT-3")
def test_a_request_for_a_split_says_everything():
    assert split_query_from_proto(pb.PlanSplitRequest(**WHOLE)) == SplitQuery(
        model=ModelProfile((LayerProfile(5, 4, 3, 2),), "m", context_length=4096, slots=2),
        devices=(DeviceProfile("a", 9, 2.5, 1),),
        links=(LinkProfile("a", "b", 0.5, 8.0),),
        default_hop_seconds=0.25,
        activation_bytes=7,
        objective=Objective.MAX_CONTEXT,
        max_devices=3,
        engine=EngineName.VLLM,
    )


def test_what_is_left_out_of_it_is_this_host_one_slot_and_an_engine_of_layers():
    query = split_query_from_proto(pb.PlanSplitRequest(model={"layers": [{"resident_bytes": 5}]}))
    assert (query.devices, query.objective, query.max_devices, query.engine) == (None, None, 0, EngineName.LLAMACPP)
    assert query.model == ModelProfile((LayerProfile(5, 5),), slots=1)


def test_weights_that_are_never_read_are_told_from_those_of_which_nothing_is_said():
    layers = [{"resident_bytes": 5}, {"resident_bytes": 5, "active_bytes": 0}]
    query = split_query_from_proto(pb.PlanSplitRequest(model={"layers": layers}))
    assert [layer.active_bytes for layer in query.model.layers] == [5, 0]


def test_a_model_may_be_a_file_still():
    request = pb.PlanSplitRequest(model_path="/m.gguf", context_length=512, slots=3, cache_type="q8_0")
    assert split_query_from_proto(request).model == MemoryQuestion("/m.gguf", 512, 3, "q8_0")


def test_the_activations_of_the_query_go_before_those_of_the_model():
    model, devices = ModelProfile((LayerProfile(1, 1),)), (DeviceProfile("a", 9, 1.0),)
    query = SplitQuery(MemoryQuestion("/m"), max_devices=2, default_hop_seconds=0.5)
    assert query.request(model, devices, 8) == SplitRequest(
        model, devices, default_hop_seconds=0.5, activation_bytes=8, max_devices=2
    )
    assert replace(query, activation_bytes=3).request(model, devices, 8).activation_bytes == 3


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("devices[1].memory_bandwidth_bytes_per_second", {"devices": [*WHOLE["devices"], {"device_id": "b"}]}),
        *(
            (
                "devices[0].memory_bandwidth_bytes_per_second",
                {"devices": [{"device_id": "b", "memory_bandwidth_bytes_per_second": value}]},
            )
            for value in (0.0, -1.0, NAN, INF)
        ),
        ("devices[0].device_id", {"devices": [{"memory_bandwidth_bytes_per_second": 1.0}]}),
        ("devices: their number", {"devices": [WHOLE["devices"][0]] * 65}),
        ("links[0].bandwidth_bytes_per_second", {"links": [{}]}),
        ("links[0].latency_seconds", {"links": [{"latency_seconds": -1, "bandwidth_bytes_per_second": 1.0}]}),
        ("links[0].latency_seconds", {"links": [{"latency_seconds": NAN, "bandwidth_bytes_per_second": 1.0}]}),
        ("links: their number", {"links": [WHOLE["links"][0]] * 4097}),
        *(("default_hop_seconds", {"default_hop_seconds": value}) for value in (-0.5, NAN, INF)),
        ("objective", {"objective": 99}),
        ("engine", {"engine": 99}),
        ("slots", {"slots": 4097}),
        ("model.layers: their number", {"model": {}}),
        ("model.layers: their number", {"model": {"layers": [{}] * 2049}}),
        ("slots", {"model": {"layers": [{}], "slots": 3}}),
        ("context_length", {"model": {"layers": [{}], "context_length": 3}}),
        ("model and model_path", {"model_path": "/m"}),
        ("model", {"model": None}),
        ("model_path", {"model": None, "model_path": "m.gguf"}),
        ("model_path", {"model": None, "model_path": "/\0"}),
        ("model_path", {"model": None, "model_path": "/" + "x" * 4096}),
        ("cache_type", {"model": None, "model_path": "/m", "cache_type": "\x1b"}),
    ],
)
def test_a_value_that_no_request_can_have_is_refused_by_its_path(field, changes):
    assert refused(split_query_from_proto, pb.PlanSplitRequest(**{**WHOLE, **changes})) == field


counts = st.integers(0, 2**62)
plans = st.builds(
    SplitPlan,
    fits=st.booleans(),
    objective=st.sampled_from(Objective),
    refusal=st.none() | st.builds(PlanRefusal, st.sampled_from(Refusal), counts, st.text(max_size=9)),
    assignments=st.lists(
        st.builds(
            Assignment,
            st.sampled_from("abc"),
            *[st.integers(0, 2047)] * 2,
            *[counts] * 3,
            st.floats(0, 1),
        ),
        max_size=3,
    ).map(tuple),
    ratios=st.lists(st.floats(0, 1), max_size=3).map(tuple),
    bottleneck_seconds_per_token=st.floats(0, 1e9),
    latency_seconds_per_token=st.floats(0, 1e9),
    headroom_bytes=st.dictionaries(st.sampled_from("abc"), counts),
    optimal=st.booleans(),
    gap=st.floats(0, 10),
    context_length=st.integers(0, 2**32 - 1),
    tensor_parallel=st.integers(1, 64),
    explanation=st.lists(st.text(max_size=9), max_size=2).map(tuple),
    renderings=st.dictionaries(
        st.sampled_from([EngineName.LLAMACPP.value, EngineName.VLLM.value]),
        st.builds(Rendering, st.tuples(st.text(max_size=5)), st.dictionaries(st.just("A"), st.text(max_size=5))),
    ),
)


@pytest.mark.behaviour("SPLIT-5")
@given(plans)
def test_a_plan_arrives_whole_and_to_the_last_bit(plan):
    shown = split_plan_to_proto(plan)
    for name in ("fits", "bottleneck_seconds_per_token", "latency_seconds_per_token", "optimal", "gap"):
        assert getattr(shown, name) == getattr(plan, name)
    assert (shown.context_length, shown.tensor_parallel) == (plan.context_length, plan.tensor_parallel)
    assert (tuple(shown.ratios), tuple(shown.explanation)) == (plan.ratios, plan.explanation)
    assert dict(shown.headroom_bytes) == plan.headroom_bytes
    assert pb.Objective.Name(shown.objective) == plan.objective
    for told, one in zip(shown.assignments, plan.assignments, strict=True):
        assert Assignment(*(getattr(told, name) for name in Assignment.__dataclass_fields__)) == one
    assert {engine: Rendering(tuple(told.args), dict(told.env)) for engine, told in shown.renderings.items()} == {
        pool_pb2.Engine.Name(ENGINES[EngineName(engine)]): one for engine, one in plan.renderings.items()
    }
    assert shown.HasField("refusal") == (plan.refusal is not None)
    if plan.refusal is not None:
        reason = pb.SplitPlan.Refusal.Reason.Name(shown.refusal.reason)
        told = PlanRefusal(Refusal(reason), shown.refusal.missing_bytes, shown.refusal.message)
        assert told == plan.refusal


@pytest.mark.parametrize(
    ("table", "values"),
    [
        (OBJECTIVES, pb.Objective.values()),
        (REFUSALS, pb.SplitPlan.Refusal.Reason.values()),
        (PREFERENCES, pb.PlanPlacementRequest.Preference.values()),
    ],
)
def test_members_of_placement_and_specified_protobuf_values_correspond_one_to_one(table, values):
    assert sorted(table.values()) == sorted(value for value in values if value)
    assert set(table) == set(type(next(iter(table))))


# Memory.


def test_a_question_of_memory_has_its_defaults():
    assert memory_question_from_proto(pb.EstimateMemoryRequest(model_path="/m")) == MemoryQuestion("/m")


@pytest.mark.behaviour("MEM-1")
def test_an_estimate_is_told_by_layer_and_in_sums():
    layers = (LayerProfile(10, 4, 3, 512), LayerProfile(20, 20, 5))
    model = ModelProfile(layers, "m", 4096, 8192, 2, 32, 8)
    shown = estimate_to_proto(MemoryEstimate(model, 7, 2, 99, 1.25, ("measured",)))
    assert shown.model == model_to_proto(model)
    assert (shown.weight_bytes, shown.kv_bytes, shown.overhead_bytes, shown.one_device_bytes) == (30, 8, 7, 45)
    assert (shown.host_bytes, shown.activation_bytes, shown.factor, list(shown.explanation)) == (
        2,
        99,
        1.25,
        ["measured"],
    )
    # What was estimated can be planned with as it is.
    assert split_query_from_proto(pb.PlanSplitRequest(model=shown.model)).model == model


# Placement.


def test_what_is_left_out_of_a_placement_is_any_device_of_this_host():
    query = placement_query_from_proto(pb.PlanPlacementRequest(model_path="/m"))
    assert query == PlacementQuery(memory=MemoryQuestion("/m"))
    assert (query.mask, query.host, query.split, query.preference) == ("auto", None, SplitSpec(), Preference.BIN_PACK)


@pytest.mark.behaviour("PLACE-1")
def test_a_placement_says_everything():
    request = pb.PlanPlacementRequest(
        device_mask="0,1", split={"mode": pool_pb2.SPLIT_EXPLICIT, "ratios": [3, 1]},
        bytes_per_device=5, device_count=2, objective=pb.BALANCED, engine=pool_pb2.ENGINE_COMMAND,
        preference=pb.PlanPlacementRequest.SPREAD, min_compute_capability="8.6", mig_profile="1g.10gb",
        allow_mig=False, allow_cross_numa=False, prefer_nvlink=False, evict=True, host={},
    )  # fmt: skip
    assert placement_query_from_proto(request) == PlacementQuery(
        "0,1", SplitSpec(SplitMode.EXPLICIT, (3.0, 1.0)), None, 5, 2, Objective.BALANCED, EngineName.COMMAND,
        Preference.SPREAD, (8, 6), "1g.10gb", False, False, False, True, (),
    )  # fmt: skip


def test_a_model_may_be_given_as_it_is():
    request = pb.PlanPlacementRequest(model={"layers": [{"resident_bytes": 5}]}, overhead_bytes=3)
    estimate = placement_query_from_proto(request).memory
    assert isinstance(estimate, MemoryEstimate) and estimate.one_device_bytes == 8


@pytest.mark.behaviour("PLACE-3")
def test_a_device_as_it_is_listed_is_one_of_an_imagined_host():
    link = {"peer_device_id": "GPU-b", "kind": device_pb2.Device.Link.NVLINK, "lanes": 12, "bytes_per_second": 3e11}
    listed = device_pb2.Device(
        device_id="GPU-a", index=0, name="A100", compute_capability="8.0", vram_total_bytes=80 * GIB,
        vram_free_bytes=30 * GIB, numa_node=1, pci_bus_id="0:1", mig_mode=False, slowdown_celsius=90,
        links=[link], memory_bandwidth_bytes_per_second=2e12, state=device_pb2.Device.ALLOCATED, usable=True,
    )  # fmt: skip
    host = {"devices": [{"device": listed, "temperature_celsius": 40.5}]}
    (candidate,) = placement_query_from_proto(pb.PlanPlacementRequest(model_path="/m", host=host)).host
    device = candidate.device
    assert (device.device_id, device.compute_capability, device.numa_node) == ("GPU-a", (8, 0), 1)
    assert device.links == (Link("GPU-b", LinkKind.NVLINK, 12, 3e11),)
    assert device.memory_bandwidth_bytes == 2e12
    assert candidate.memory == LedgerEntry("GPU-a", 80 * GIB, 50 * GIB, 0, 0, 50 * GIB, 30 * GIB)
    assert (candidate.refusal, candidate.state_known, candidate.degraded) == (None, True, False)
    assert (candidate.celsius, candidate.limit_celsius) == (40.5, 90.0)


@pytest.mark.behaviour("PLACE-4")
@pytest.mark.parametrize(
    ("said", "refusal"),
    [
        ({}, None),
        ({"state": DeviceState.QUARANTINED}, Inadmissible.QUARANTINED),
        ({"state": DeviceState.RESETTING}, Inadmissible.RECOVERY_ACTION),
        ({"state": DeviceState.OFFLINE}, Inadmissible.OFFLINE),
        ({"cordon": {}}, Inadmissible.CORDONED),
        ({"mig_mode": True}, Inadmissible.PARTITIONED),
        (
            {"state": DeviceState.PROBATION, "inadmissible": device_pb2.Device.DEVICE_PROBATION_BUSY},
            Inadmissible.PROBATION_BUSY,
        ),
    ],
)
def test_an_imagined_device_takes_work_as_a_real_one_in_its_state_would(said, refusal):
    said = {**said, "state": device_pb2.Device.State.Value(said["state"])} if "state" in said else said
    device = {"device_id": "a", "vram_total_bytes": 9, **said}
    unknown = {"device": {"device_id": "b", "vram_total_bytes": 9}, "state_unknown": True}
    request = pb.PlanPlacementRequest(model_path="/m", host={"devices": [{"device": device}, unknown]})
    first, second = placement_query_from_proto(request).host
    assert (first.refusal.reason if first.refusal else None) == refusal
    assert first.memory.free_bytes == 9 and not second.state_known


@pytest.mark.parametrize(
    ("field", "device"),
    [
        ("device.device_id", {"vram_total_bytes": 9}),
        ("device.vram_total_bytes", {"device_id": "a"}),
        ("device.vram_total_bytes", {"device_id": "a", "vram_total_bytes": 2**63}),
        ("device.vram_free_bytes", {"device_id": "a", "vram_total_bytes": 9, "vram_free_bytes": 10}),
        ("device.state", {"device_id": "a", "vram_total_bytes": 9, "state": 99}),
        ("device.compute_capability", {"device_id": "a", "vram_total_bytes": 9, "compute_capability": "new"}),
        ("device.slowdown_celsius", {"device_id": "a", "vram_total_bytes": 9, "slowdown_celsius": NAN}),
        ("device.links[0].kind", {"device_id": "a", "vram_total_bytes": 9, "links": [{}]}),
    ],
)
def test_a_device_that_cannot_be_is_refused_by_its_path(field, device):
    good = {"device": {"device_id": "b", "vram_total_bytes": 9}}
    request = pb.PlanPlacementRequest(model_path="/m", host={"devices": [good, {"device": device}]})
    assert refused(placement_query_from_proto, request) == f"host.devices[1].{field}"


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("model_path and bytes_per_device", {"bytes_per_device": 1}),
        ("split.ratios", {"split": {"mode": pool_pb2.SPLIT_EXPLICIT}}),
        ("split.mode", {"split": {"mode": 99}}),
        ("min_compute_capability", {"min_compute_capability": "eight"}),
        ("preference", {"preference": 99}),
        ("device_count", {"device_count": 65}),
        ("host.devices: their number", {"host": {"devices": [{}] * 65}}),
    ],
)
def test_a_placement_that_cannot_be_is_refused_by_its_path(field, changes):
    assert refused(placement_query_from_proto, pb.PlanPlacementRequest(model_path="/m", **changes)) == field


@pytest.mark.behaviour("PLACE-1", "PLACE-5")
def test_a_placement_tells_the_fate_of_every_candidate():
    chosen = Fate("a", "CHOSEN", "it has most room", {"free_bytes": 5, "score": 0.5, "name": "x"})
    shown = placement_to_proto(
        PlacementPlan(("a",), {"a": 7}, SplitPlan(True, Objective.BALANCED), fates=(chosen,), explanation=("so",))
    )
    assert shown.fits and list(shown.device_ids) == ["a"] and dict(shown.reserve_bytes) == {"a": 7}
    assert shown.split.fits and not shown.HasField("refusal")
    (fate,) = shown.fates
    assert (fate.device_id, fate.reason, dict(fate.numbers)) == (
        "a", "CHOSEN", {"free_bytes": "5", "score": "0.5", "name": "x"},
    )  # fmt: skip
    refusal = Fate("", "NO_ROOM", "too large")
    none = placement_to_proto(PlacementPlan(refusal=refusal, missing_bytes=9, evictions=("idle",)))
    assert (none.fits, none.refusal.reason, none.missing_bytes, list(none.evictions)) == (False, "NO_ROOM", 9, ["idle"])
    assert not none.HasField("split")
