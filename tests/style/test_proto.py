"""The names that clients rely on are in the protos as they were promised, and what is in the protos is served."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, FileDescriptor

from poolmgr.api.admin import AdminServicer
from poolmgr.api.devices import DeviceServicer
from poolmgr.api.engines import EngineServicer
from poolmgr.api.leases import LeaseServicer
from poolmgr.api.placement import PlacementServicer
from poolmgr.api.pools import PoolServicer
from poolmgr.api.telemetry import TelemetryServicer
from poolmgr.v1 import (
    admin_pb2,
    device_pb2,
    engine_pb2,
    lease_pb2,
    placement_pb2,
    pool_pb2,
    split_plan_pb2,
    telemetry_pb2,
)

MODULES = (admin_pb2, device_pb2, engine_pb2, lease_pb2, placement_pb2, pool_pb2, split_plan_pb2, telemetry_pb2)
FILES: list[FileDescriptor] = [module.DESCRIPTOR for module in MODULES]
SERVICERS = {
    "PoolService": PoolServicer,
    "LeaseService": LeaseServicer,
    "EngineService": EngineServicer,
    "DeviceService": DeviceServicer,
    "TelemetryService": TelemetryServicer,
    "PlacementService": PlacementServicer,
    "AdminService": AdminServicer,
}
# The promised names; those after the bar are of later versions and must not mean something else before.
RPCS = {
    "PoolService": "CreatePool GetPool ListPools UpdatePool DeletePool PreloadPool DrainPool UndrainPool StopPool "
    "ReloadPool RollbackPool ListPoolGenerations ResetBreaker WatchPools TailLogs",
    "LeaseService": "AcquireLease RenewLease ReleaseLease ListLeases Session",
    "EngineService": "RegisterEngine Heartbeat DeregisterEngine ListEngines",
    "DeviceService": "ListDevices GetDevice WatchDevices ParseMask ListClaims CordonDevice UncordonDevice",
    "PlacementService": "PlanSplit PlanPlacement EstimateMemory",
    "TelemetryService": "GetTelemetry StreamTelemetry GetRingInfo | GetForecast",
    "AdminService": "GetStatus GetConfig ReloadConfig Shutdown | ListAuditRecords VerifyAudit",
}
FIELDS = {
    "Pool": "pool_id spec state state_reason revision generation live ready draining slots_total slots_free "
    "active_leases engine engine_version device_mask endpoint pid restart_count breaker_state backoff_until last_error "
    "progress create_time ready_time split_plan",
    "Pool.Error": "reason message at log_tail",
    "Pool.Progress": "phase bytes_done message queue_position",
    "PoolSpec": "engine model command args env device_mask slots runtime port readiness liveness restart supervision "
    "drain_deadline preload priority labels split | isolation memory_limit_bytes",
    "Split": "mode ratios",
    "Model": "path digest context_length cache_type",
    "Lease": "lease_id pool_id generation holder fencing_token token endpoint enforced ttl expire_time",
    "Refusal": "reason message retry_after",
    "CreatePoolRequest": "pool_id spec request_id validate_only",
    "PreloadPoolRequest": "pool_id wait",
    "UpdatePoolRequest": "pool update_mask",
    "ReloadPoolRequest": "pool_id spec drain_deadline strategy wait",
    "RollbackPoolRequest": "pool_id generation wait",
    "DrainPoolRequest": "pool_id deadline wait",
    "StopPoolRequest": "pool_id grace wait",
    "DeletePoolRequest": "pool_id drain_deadline",
    "ListPoolsRequest": "page_size page_token",
    "WatchPoolsRequest": "from_revision",
    "WatchPoolsResponse": "snapshot upsert delete bookmark resync",
    "AcquireLeaseRequest": "pool_id holder ttl wait priority request_id",
    "AcquireLeaseResponse": "lease refusal",
    "RenewLeaseRequest": "lease_id token",
    "RenewLeaseResponse": "outcome",
    "ReleaseLeaseRequest": "lease_id token",
    "ReleaseLeaseResponse": "outcome",
    "RegisterEngineRequest": "engine_id pool_id endpoint engine engine_version slots_total slots_free device_mask pid "
    "ttl",
    "HeartbeatRequest": "engine_id slots_free in_flight progress_counter ready draining",
    "HeartbeatResponse": "interval desired_state",
    "ShutdownRequest": "stop_engines",
    "Device": "device_id index name mig_slot mig_profile compute_capability vram_total_bytes vram_free_bytes numa_node "
    "pci_bus_id links mig_mode parent_device_id state state_reason recovery_action simulated revision",
    "Claim": "claim_id device_id kind holder user reserved_bytes measured_bytes exclusive since expire_time",
    "PlanSplitRequest": "model model_path context_length slots cache_type devices links default_hop_seconds "
    "activation_bytes objective max_devices engine",
    "ModelProfile": "layers",
    "LayerProfile": "resident_bytes active_bytes kv_bytes",
    "DeviceProfile": "device_id vram_free_bytes overhead_bytes memory_bandwidth_bytes_per_second",
    "LinkProfile": "device_a device_b latency_seconds bandwidth_bytes_per_second",
    "SplitPlan": "fits refusal assignments ratios bottleneck_seconds_per_token latency_seconds_per_token "
    "headroom_bytes optimal gap explanation renderings",
    "SplitPlan.Refusal": "reason missing_bytes message",
    "SplitPlan.Assignment": "device_id first_layer last_layer weight_bytes kv_bytes overhead_bytes ratio",
    "PlacementPlan": "explanation",
    "MemoryEstimate": "explanation",
    "WatchDevicesRequest": "from_revision",
    "WatchDevicesResponse": "snapshot upsert delete bookmark resync",
    "ListDevicesRequest": "page_size page_token",
}
VALUES = {
    "Engine": "ENGINE_LLAMACPP ENGINE_VLLM ENGINE_TGI ENGINE_TRITON ENGINE_COMMAND",
    "Runtime": "RUNTIME_PROCESS | RUNTIME_CONTAINER",
    "ReloadStrategy": "RELOAD_AUTO RELOAD_MAKE_BEFORE_BREAK RELOAD_BREAK_BEFORE_MAKE",
    "RestartMode": "RESTART_ON_FAILURE RESTART_ALWAYS RESTART_NEVER",
    "SplitMode": "SPLIT_NONE SPLIT_AUTO SPLIT_EXPLICIT",
    "Objective": "MIN_LATENCY MIN_BOTTLENECK MAX_CONTEXT BALANCED",
    "Pool.State": "PENDING PROVISIONING STARTING READY DRAINING STOPPING STOPPED BACKOFF PARKED UNKNOWN LOST",
    "Lease.Outcome": "RENEWED RELEASED ALREADY_RELEASED EXPIRED UNKNOWN",
    "Device.State": "AVAILABLE ALLOCATED DEGRADED QUARANTINED RESETTING OFFLINE PROBATION",
    "Claim.Kind": "ENGINE JOB TRIAL CONTAINER PROCESS RESERVATION",
    "Refusal.Reason": "POOL_NOT_FOUND POOL_NOT_READY POOL_DRAINING POOL_FULL BREAKER_OPEN OVERLOADED",
}


def messages(parents: list[Descriptor]) -> Iterator[Descriptor]:
    for message in parents:
        yield message
        yield from messages(list(message.nested_types))


MESSAGES = {
    message.full_name.removeprefix("poolmgr.v1."): message
    for file in FILES
    for message in messages(list(file.message_types_by_name.values()))
}
ENUMS: dict[str, EnumDescriptor] = {
    enum.full_name.removeprefix("poolmgr.v1."): enum
    for enums in (
        *(file.enum_types_by_name.values() for file in FILES),
        *(message.enum_types for message in MESSAGES.values()),
    )
    for enum in enums
}
SERVICES = {name: service for file in FILES for name, service in file.services_by_name.items()}


def disagreement(promised: str, there: set[str]) -> str:
    """What is promised now and missing, or promised for later and there; empty when all is well."""
    now, _, later = promised.partition("|")
    missing, early = set(now.split()) - there, set(later.split()) & there
    return ", ".join([*(f"{name} is missing" for name in sorted(missing)), *(f"{name} is there" for name in early)])


@pytest.mark.parametrize("name", RPCS)
def test_every_service_has_the_promised_calls(name: str):
    assert disagreement(RPCS[name], set(SERVICES[name].methods_by_name)) == ""


@pytest.mark.parametrize("name", FIELDS)
def test_every_message_has_the_promised_fields(name: str):
    assert disagreement(FIELDS[name], set(MESSAGES[name].fields_by_name)) == ""


@pytest.mark.parametrize("name", VALUES)
def test_every_enum_has_the_promised_values(name: str):
    assert disagreement(VALUES[name], set(ENUMS[name].values_by_name)) == ""


@pytest.mark.parametrize(
    ("promised", "there", "told"),
    [
        ("endpoint pid", {"endpoint"}, "pid is missing"),
        ("endpoint | split_plan", {"endpoint", "split_plan"}, "split_plan is there"),
        ("endpoint", {"endpoint", "more"}, ""),
    ],
)
def test_a_renamed_field_is_found_and_a_new_one_is_welcome(promised: str, there: set[str], told: str):
    assert disagreement(promised, there) == told


@pytest.mark.parametrize("name", ENUMS)
def test_the_zero_of_every_enum_says_that_nothing_was_said(name: str):
    assert ENUMS[name].values_by_number[0].name.endswith("UNSPECIFIED")


@pytest.mark.parametrize("name", SERVICES)
def test_every_call_of_the_protos_is_served(name: str):
    assert [call for call in SERVICES[name].methods_by_name if call not in vars(SERVICERS[name])] == []


def test_sizes_are_64_bit_and_fencing_numbers_and_revisions_too():
    wide = {FieldDescriptor.TYPE_UINT64}
    for message in MESSAGES.values():
        for field in message.fields:
            if field.name.endswith(("_bytes", "bytes_done")) or field.name in ("revision", "fencing_token", "epoch"):
                by_key = field.message_type and field.message_type.GetOptions().map_entry
                size = field.message_type.fields_by_name["value"] if by_key else field
                assert {size.type} == wide, field.full_name


def test_what_a_plan_is_made_of_is_found_where_the_service_is():
    for name in ("SplitPlan", "Objective", "MIN_LATENCY", "MIN_BOTTLENECK", "MAX_CONTEXT", "BALANCED"):
        assert getattr(placement_pb2, name) == getattr(split_plan_pb2, name)
