"""What a request for a split has to be. Everything that the cost model cannot be asked about is refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite

from poolmgr.core.split_costs import at_context, objective_of
from poolmgr.errors import ClientError, Number, Reason
from poolmgr.model.plan import MAX_DEVICES, MAX_LAYERS, ModelProfile, Objective, SplitRequest

MAX_BYTES = 1 << 62  # of any sum: it and its differences are exact in 64 bits
MAX_TOKENS = 1 << 40
MAX_HEADS = 1 << 20
MAX_SECONDS = 1e9
MIN_BANDWIDTH = 1.0  # bytes a second: whatever is slower is no memory, and its quotients could leave the numbers
MAX_BANDWIDTH = 1e24

Problem = tuple[str, dict[str, Number]]


def validate(request: SplitRequest) -> None:
    """Raises ClientError(INVALID_ARGUMENT) with the first thing that is wrong, its number and the limit.

    No devices are not wrong: that is a request that is refused (NO_DEVICES).
    """
    for message, numbers in _problems(request):
        raise ClientError(Reason.INVALID_ARGUMENT, message, numbers=numbers)


def _problems(request: SplitRequest) -> Iterator[Problem]:
    yield from _counts(request)
    yield from _model(request.model)
    yield from _devices(request)
    yield from _links(request)
    yield from _seconds("default_hop_seconds", request.default_hop_seconds)
    yield from _whole("activation_bytes", request.activation_bytes, MAX_BYTES)
    yield from _whole("max_devices", request.max_devices, MAX_BYTES)
    yield from _sums(request)


def _counts(request: SplitRequest) -> Iterator[Problem]:
    layers, devices = len(request.model.layers), len(request.devices)
    if not layers:
        yield "the model has no layers", {"layers": 0}
    if layers > MAX_LAYERS:
        message = f"the model has {layers} layers, at most {MAX_LAYERS} are planned"
        yield message, {"layers": layers, "limit": MAX_LAYERS}
    if devices > MAX_DEVICES:
        message = f"there are {devices} devices, at most {MAX_DEVICES} are planned"
        yield message, {"devices": devices, "limit": MAX_DEVICES}
    if len(request.links) > MAX_DEVICES * MAX_DEVICES:
        yield f"there are {len(request.links)} links", {"links": len(request.links), "limit": MAX_DEVICES**2}


def _model(model: ModelProfile) -> Iterator[Problem]:
    yield from _whole("context_length", model.context_length, MAX_TOKENS)
    yield from _whole("context_limit", model.context_limit, MAX_TOKENS)
    yield from _whole("slots", model.slots, MAX_TOKENS)
    yield from _whole("heads", model.heads, MAX_HEADS)
    yield from _whole("kv_heads", model.kv_heads, MAX_HEADS)
    for place, layer in enumerate(model.layers):
        yield from _whole(f"layer {place}: resident_bytes", layer.resident_bytes, MAX_BYTES)
        yield from _whole(f"layer {place}: active_bytes", layer.active_bytes, MAX_BYTES)
        yield from _whole(f"layer {place}: kv_bytes", layer.kv_bytes, MAX_BYTES)
        yield from _whole(f"layer {place}: kv_window", layer.kv_window, MAX_TOKENS)
        if layer.active_bytes > layer.resident_bytes:
            message = (
                f"layer {place}: {layer.active_bytes} active bytes are more than its {layer.resident_bytes} resident"
            )
            numbers: dict[str, Number] = {"active_bytes": layer.active_bytes, "resident_bytes": layer.resident_bytes}
            yield message, numbers


def _devices(request: SplitRequest) -> Iterator[Problem]:
    seen: set[str] = set()
    for device in request.devices:
        name = f"device {device.device_id!r}"
        if not device.device_id:
            yield "a device has no device_id", {}
        if device.device_id in seen:
            yield f"{name} is there twice", {"device_id": device.device_id}
        seen.add(device.device_id)
        yield from _whole(f"{name}: vram_free_bytes", device.vram_free_bytes, MAX_BYTES)
        yield from _whole(f"{name}: overhead_bytes", device.overhead_bytes, MAX_BYTES)
        field = f"{name}: memory_bandwidth_bytes_per_second"
        yield from _bandwidth(field, device.memory_bandwidth_bytes_per_second)


def _links(request: SplitRequest) -> Iterator[Problem]:
    known = {device.device_id for device in request.devices}
    seen: set[frozenset[str]] = set()
    for link in request.links:
        ends = frozenset((link.device_a, link.device_b))
        name = f"the link {link.device_a!r} to {link.device_b!r}"
        for unknown in sorted(ends - known):
            yield f"{name}: there is no device {unknown!r}", {"device_id": unknown}
        if len(ends) == 1:
            yield f"{name} goes nowhere", {"device_id": link.device_a}
        if ends in seen:
            yield f"{name} is there twice", {"device_a": link.device_a, "device_b": link.device_b}
        seen.add(ends)
        yield from _seconds(f"{name}: latency_seconds", link.latency_seconds)
        yield from _bandwidth(f"{name}: bandwidth_bytes_per_second", link.bandwidth_bytes_per_second)


def _sums(request: SplitRequest) -> Iterator[Problem]:
    model = request.model
    layers = sum(layer.resident_bytes + layer.kv_bytes for layer in model.layers)
    yield from _whole("the sum of all layers", layers, MAX_BYTES)
    yield from _whole("the sum of all free memory", sum(d.vram_free_bytes for d in request.devices), MAX_BYTES)
    yield from _whole("the sum of all overhead", sum(d.overhead_bytes for d in request.devices), MAX_BYTES)
    if objective_of(request) is Objective.MAX_CONTEXT and model.context_length < model.context_limit:
        most = at_context(model, model.context_limit)
        yield from _whole(
            f"the sum of all layers at a context of {model.context_limit}",
            sum(layer.resident_bytes + layer.kv_bytes for layer in most.layers),
            MAX_BYTES,
        )


def _whole(name: str, value: int, most: int) -> Iterator[Problem]:
    if not 0 <= value <= most:
        yield f"{name} is {value}, it has to be 0 to {most}", {"value": value, "limit": most}


def _seconds(name: str, value: float) -> Iterator[Problem]:
    if not (isfinite(value) and 0.0 <= value <= MAX_SECONDS):
        yield f"{name} is {value}, it has to be 0 to {MAX_SECONDS:g}", {"value": str(value), "limit": MAX_SECONDS}


def _bandwidth(name: str, value: float) -> Iterator[Problem]:
    if not (isfinite(value) and MIN_BANDWIDTH <= value <= MAX_BANDWIDTH):
        message = f"{name} is {value}, it has to be {MIN_BANDWIDTH:g} to {MAX_BANDWIDTH:g}"
        yield message, {"value": str(value), "least": MIN_BANDWIDTH, "limit": MAX_BANDWIDTH}
