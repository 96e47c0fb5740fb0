"""Splits of a model over devices: what is asked (`SplitRequest`), what a search found, and what is answered.

Bytes, seconds, bytes a second. Layers are counted from 0; the embedding counts with the first, the output head is the
last (SPLIT-4, as in llama.cpp). What it costs to run a split is stated in one place, `poolmgr.core.split`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from poolmgr.model.names import EngineName

MAX_DEVICES = 64
MAX_LAYERS = 2048


class Objective(StrEnum):
    """What a plan is best at (SPLIT-3)."""

    MIN_LATENCY = "MIN_LATENCY"  # least sum of the stages: one stream
    MIN_BOTTLENECK = "MIN_BOTTLENECK"  # least slowest stage: throughput of several streams
    MAX_CONTEXT = "MAX_CONTEXT"  # largest context that fits
    BALANCED = "BALANCED"  # most even headroom


class Refusal(StrEnum):
    """Why there is no plan."""

    NO_DEVICES = "NO_DEVICES"
    DOES_NOT_FIT = "DOES_NOT_FIT"  # no split of it fits; `missing_bytes` says by how much at least
    SHARE_DOES_NOT_FIT = "SHARE_DOES_NOT_FIT"  # an equal share is more than the smallest device has
    NOT_DIVISIBLE = "NOT_DIVISIBLE"  # its heads by no number of devices that would have room


@dataclass(frozen=True, slots=True)
class LayerProfile:
    """`resident_bytes`: weights. `active_bytes`: of them, read per token. `kv_bytes`: at the asked context and slots.

    `kv_window`: tokens per slot beyond which its cache does not grow (sliding windows); 0 means without end.
    """

    resident_bytes: int
    active_bytes: int
    kv_bytes: int = 0
    kv_window: int = 0


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """`context_length`: tokens per slot that `kv_bytes` stand for; 0 is unknown, and MAX_CONTEXT then keeps to it.

    `context_limit`: tokens that the model was made for, 0 unknown. `heads` and `kv_heads`: of attention, 0 unknown:
    then nothing can be said of tensor parallelism.
    """

    layers: tuple[LayerProfile, ...]
    name: str = ""
    context_length: int = 0
    context_limit: int = 0
    slots: int = 1
    heads: int = 0
    kv_heads: int = 0


@dataclass(frozen=True, slots=True)
class DeviceProfile:
    """`vram_free_bytes`: that this model may take; `overhead_bytes`: of them, what an engine needs beside layers."""

    device_id: str
    vram_free_bytes: int
    memory_bandwidth_bytes_per_second: float
    overhead_bytes: int = 0


@dataclass(frozen=True, slots=True)
class LinkProfile:
    """Both ways. A hop over it takes `latency_seconds` + activation bytes / `bandwidth_bytes_per_second`."""

    device_a: str
    device_b: str
    latency_seconds: float
    bandwidth_bytes_per_second: float


@dataclass(frozen=True, slots=True)
class SplitRequest:
    """`objective` None: MIN_LATENCY for one slot, else MIN_BOTTLENECK. `max_devices` 0: as many as there are.

    `activation_bytes`: what goes over a link per token. `engine`: equal shards for VLLM and TGI, else layers.
    """

    model: ModelProfile
    devices: tuple[DeviceProfile, ...]
    links: tuple[LinkProfile, ...] = ()
    default_hop_seconds: float = 0.0
    activation_bytes: int = 0
    objective: Objective | None = None
    max_devices: int = 0
    engine: EngineName = EngineName.LLAMACPP


@dataclass(frozen=True, slots=True)
class Stage:
    """A run of layers on one device: `device` is its place in the request, `last_layer` is inclusive."""

    device: int
    first_layer: int
    last_layer: int


@dataclass(frozen=True, slots=True)
class Found:
    """What a search came to. `stages` in the order of the layers; empty when nothing fits.

    `optimal`: proved. `lower_bound`: no plan is better than this in seconds; equals the plan's own where it is optimal.
    `context_length`: for which it was found; the model's but for MAX_CONTEXT.
    """

    stages: tuple[Stage, ...] = ()
    optimal: bool = True
    lower_bound: float = 0.0
    context_length: int = 0


@dataclass(frozen=True, slots=True)
class Assignment:
    """One device's share. `ratio`: of the layers; `last_layer` is inclusive."""

    device_id: str
    first_layer: int
    last_layer: int
    weight_bytes: int
    kv_bytes: int
    overhead_bytes: int
    ratio: float


@dataclass(frozen=True, slots=True)
class PlanRefusal:
    """`missing_bytes`: how much more memory the nearest plan would need; 0 where memory is not what is missing."""

    reason: Refusal
    missing_bytes: int
    message: str


@dataclass(frozen=True, slots=True)
class Rendering:
    """How an engine is told: arguments to append, and environment."""

    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """The answer. `assignments` in the order of the layers; `ratios` are theirs and sum to exactly 1.

    Of a refused one only `refusal` and `explanation` are set. `gap`: by what share the plan may be worse than the best,
    0 when it is optimal. `headroom_bytes` by device, of those that are used. `explanation`: sentences for people.
    `tensor_parallel`: devices in each equal shard group, 1 for layered plans.
    """

    fits: bool
    objective: Objective
    refusal: PlanRefusal | None = None
    assignments: tuple[Assignment, ...] = ()
    ratios: tuple[float, ...] = ()
    bottleneck_seconds_per_token: float = 0.0
    latency_seconds_per_token: float = 0.0
    headroom_bytes: Mapping[str, int] = field(default_factory=dict)
    optimal: bool = False
    gap: float = 0.0
    context_length: int = 0
    tensor_parallel: int = 1
    explanation: tuple[str, ...] = ()
    renderings: Mapping[str, Rendering] = field(default_factory=dict)
