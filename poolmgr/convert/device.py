"""Devices, claims and masks: model -> protobuf. What is None stays absent."""

from __future__ import annotations

from typing import Final, Literal

from poolmgr.convert.common import (
    enum_table,
    invalid,
    optional_duration,
    optional_timestamp,
    timestamp_from,
    timestamp_to_proto,
)
from poolmgr.model.claim import Claim, ClaimKind
from poolmgr.model.device import Absence, Device, DeviceState, Link, LinkKind, RecoveryAction
from poolmgr.model.device_health import Cordon, DeviceView, DriverStatus, Inadmissible
from poolmgr.model.mask import DeviceRequest, MaskKind, MaskView
from poolmgr.v1 import admin_pb2
from poolmgr.v1 import device_pb2 as pb

MAX_REASON: Final = 256
MAX_TIME: Final = 253402300800.0  # the year 10000, where protobuf's timestamps end

STATES: Final = enum_table(DeviceState, pb.Device.State.Value)
ACTIONS: Final = enum_table(RecoveryAction, pb.Device.RecoveryAction.Value)
REFUSALS: Final = enum_table(Inadmissible, pb.Device.Inadmissible.Value, "DEVICE_")
LINKS: Final = enum_table(LinkKind, pb.Device.Link.Kind.Value)
CLAIMS: Final = enum_table(ClaimKind, pb.Claim.Kind.Value)
MASKS: Final = enum_table(MaskKind, pb.ParseMaskResponse.Kind.Value)
ABSENCES: Final = enum_table(Absence, admin_pb2.Driver.Absence.Value)


def device_to_proto(view: DeviceView, revision: int) -> pb.Device:
    device = view.device
    message = pb.Device(
        device_id=device.device_id,
        index=device.index,
        name=device.name,
        mig_slot=device.mig_slot or "",
        mig_profile=device.mig_profile or "",
        compute_capability=_capability(device),
        vram_total_bytes=device.vram_total_bytes,
        vram_free_bytes=device.vram_free_bytes,
        numa_node=device.numa_node,
        pci_bus_id=device.pci_bus_id or "",
        links=[_link_to_proto(link) for link in device.links],
        mig_mode=device.mig_mode,
        parent_device_id=device.parent_device_id or "",
        recovery_action=None if device.recovery_action is None else ACTIONS[device.recovery_action],
        simulated=device.simulated,
        ecc_mode=device.ecc_mode,
        power_limit_watts=device.power_limit_watts,
        slowdown_celsius=device.slowdown_celsius,
        shutdown_celsius=device.shutdown_celsius,
        memory_bandwidth_bytes_per_second=device.memory_bandwidth_bytes,
        usable=device.usable,
    )
    _write_health(message, view, revision)
    return message


def _write_health(message: pb.Device, view: DeviceView, revision: int) -> None:
    message.MergeFrom(
        pb.Device(
            state=STATES[view.state],
            state_reason=view.state_reason,
            revision=revision,
            cordon=_cordon_to_proto(view.cordon),
            admits=view.refusal is None,
            inadmissible=REFUSALS[view.refusal] if view.refusal else pb.Device.INADMISSIBLE_UNSPECIFIED,
            state_since=timestamp_to_proto(view.since),
            state_until=optional_timestamp(view.until),
            claims=view.claims,
        )
    )


def claim_to_proto(claim: Claim, wall_offset: float) -> pb.Claim:
    """`wall_offset`: Unix time minus boot time, in seconds."""
    return pb.Claim(
        claim_id=claim.claim_id,
        device_id=claim.device_id,
        kind=CLAIMS[claim.kind],
        holder=claim.holder,
        user=claim.user,
        reserved_bytes=claim.reserved_bytes,
        measured_bytes=claim.measured_bytes,
        exclusive=claim.exclusive,
        since=timestamp_to_proto(claim.since + wall_offset),
        expire_time=None if claim.expires is None else timestamp_to_proto(claim.expires + wall_offset),
        pids=claim.pids,
        container_id=claim.container_id,
        engine_id=claim.engine_id,
    )


def mask_to_proto(view: MaskView) -> pb.ParseMaskResponse:
    return pb.ParseMaskResponse(
        kind=MASKS[view.mask.kind],
        device_ids=view.mask.device_ids,
        mask=view.text,
        cuda_visible_devices=view.cuda_visible_devices,
        cuda_refusal=view.cuda_refusal,
        docker_device_requests=[_request_to_proto(request) for request in view.docker],
        cdi_names=view.cdi_names,
    )


def driver_to_proto(status: DriverStatus) -> admin_pb2.Driver:
    return admin_pb2.Driver(
        devices=status.devices,
        driver_version=status.driver_version or "",
        cuda_version=status.cuda_version or "",
        absence=ABSENCES[status.absence] if status.absence else admin_pb2.Driver.ABSENCE_UNSPECIFIED,
        message=status.message,
        advice=status.advice,
        simulated=status.simulated,
        discovery_age=optional_duration(status.discovery_age),
        ring_depth=optional_duration(status.ring_depth),
        ring_bytes=status.ring_bytes,
        ring_rate_hz=status.ring_rate_hz,
        heartbeat_age=optional_duration(status.heartbeat_age),
        stalled=optional_duration(status.stalled_seconds),
        stalls=status.stalls,
    )


def reason_from(text: str) -> str:
    """Shown in terminals and logs, where a control character is somebody else's command. INVALID_ARGUMENT."""
    if len(text) > MAX_REASON or not text.isprintable():
        message = f"must be at most {MAX_REASON} printable characters, it has {len(text)}"
        raise invalid("reason", message, value=len(text), high=MAX_REASON)
    return text


def window_from(request: pb.CordonDeviceRequest) -> tuple[float | None, float | None]:
    """(from, until) in Unix seconds. INVALID_ARGUMENT for what is no time of this era."""
    return _time_from(request, "start_time"), _time_from(request, "end_time")


def _time_from(request: pb.CordonDeviceRequest, name: Literal["start_time", "end_time"]) -> float | None:
    if not request.HasField(name):
        return None
    value = timestamp_from(getattr(request, name))
    if not 0 < value < MAX_TIME:
        raise invalid(name, f"is {value:.0f} s after 1970, it must be 0 to {MAX_TIME:.0f}", value=value, high=MAX_TIME)
    return value


def _capability(device: Device) -> str:
    return ".".join(str(part) for part in device.compute_capability or ())


def _link_to_proto(link: Link) -> pb.Device.Link:
    return pb.Device.Link(
        peer_device_id=link.peer, kind=LINKS[link.kind], lanes=link.lanes, bytes_per_second=link.bytes_per_second
    )


def _cordon_to_proto(cordon: Cordon | None) -> pb.Device.Cordon | None:
    if cordon is None:
        return None
    return pb.Device.Cordon(
        reason=cordon.reason,
        at=timestamp_to_proto(cordon.at),
        start_time=optional_timestamp(cordon.starts),
        end_time=optional_timestamp(cordon.ends),
        drain=cordon.drain,
    )


def _request_to_proto(request: DeviceRequest) -> pb.ParseMaskResponse.DockerDeviceRequest:
    of = pb.ParseMaskResponse.DockerDeviceRequest
    return of(
        driver=request.driver,
        device_ids=request.device_ids,
        capabilities=[of.Capabilities(all_of=names) for names in request.capabilities],
    )
