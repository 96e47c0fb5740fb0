"""What a split costs, in numbers: the cost model of `poolmgr.core.split` and nothing else.

Bytes are exact integers (sums of layers by differences of running sums). Seconds are float64, made by exactly these
operations in this order: `float(bytes) / bandwidth + hop` for a stage, and a sum from the first stage on. Searches have
to use the same ones, so that equal plans have equal costs to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from poolmgr.model.plan import DeviceProfile, LayerProfile, ModelProfile, Objective, SplitRequest, Stage

HOST = -1  # where the first stage has its input from

Key = tuple[float | int | tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Costs:
    """What a plan comes to; by stage in the order of the layers, then over all of them.

    `headroom`: bytes that are left on each device, negative where it does not fit. `evenness`: the smallest share of a
    device's free memory that is left.
    """

    seconds: tuple[float, ...]
    headroom: tuple[int, ...]
    bottleneck: float
    latency: float
    evenness: float
    fits: bool


def objective_of(request: SplitRequest) -> Objective:
    """The one that is asked for, else by slots: one stream wants the least sum, several the least slowest stage."""
    if request.objective is not None:
        return request.objective
    return Objective.MIN_LATENCY if request.model.slots <= 1 else Objective.MIN_BOTTLENECK


def kv_bytes_at(layer: LayerProfile, asked: int, context: int) -> int:
    """Of one layer at `context` tokens, where `layer.kv_bytes` are for `asked`. Rounded up; a window ends growth."""
    if layer.kv_window:
        asked, context = min(asked, layer.kv_window), min(context, layer.kv_window)
    return -(-layer.kv_bytes * context // asked)


def at_context(model: ModelProfile, context: int) -> ModelProfile:
    """The same model at another context; the same where its own is unknown or `context` is 0."""
    asked = model.context_length
    if not asked or not context or context == asked:
        return model
    layers = tuple(replace(layer, kv_bytes=kv_bytes_at(layer, asked, context)) for layer in model.layers)
    return replace(model, layers=layers, context_length=context)


def evenness_of(headroom: int, device: DeviceProfile) -> float:
    """The share of the device's free memory that is left; 0 for a device without any."""
    return float(headroom) / float(device.vram_free_bytes) if device.vram_free_bytes else 0.0


class Tables:
    """A request as running sums and hops, for `evaluate` and for searches. Devices are meant by their place.

    `need[i]`, `work[i]`: bytes of the layers before layer i, to hold and to read per token. `room[d]`: bytes for layers
    on it. `densest`: the most that a layer reads per byte that it holds. `alike[d]`: the device before d that nothing
    tells apart from it, -1 where there is none: of such devices plans use the earlier first.
    """

    __slots__ = (
        "_hops", "alike", "bandwidth", "densest", "devices", "layers", "linked", "most_devices", "need", "room", "work",
    )  # fmt: skip

    def __init__(self, request: SplitRequest) -> None:
        layers = request.model.layers
        self.layers = len(layers)
        self.devices = request.devices
        self.need = list(accumulate((layer.resident_bytes + layer.kv_bytes for layer in layers), initial=0))
        self.work = list(accumulate((layer.active_bytes + layer.kv_bytes for layer in layers), initial=0))
        pairs = [(layer.resident_bytes + layer.kv_bytes, layer.active_bytes + layer.kv_bytes) for layer in layers]
        self.densest = max((work / need for need, work in pairs if need), default=0.0)
        self.room = [device.vram_free_bytes - device.overhead_bytes for device in request.devices]
        self.bandwidth = [float(device.memory_bandwidth_bytes_per_second) for device in request.devices]
        self.most_devices = min(request.max_devices or len(self.devices), len(self.devices), self.layers)
        self.linked = bool(request.links)
        self._hops = _hops(request)
        self.alike = self._alike()

    def hop(self, before: int, device: int) -> float:
        """Seconds for the input of a stage on `device` after one on `before`, which is HOST for the first."""
        return self._hops[before][device]

    def seconds(self, before: int, device: int, first: int, end: int) -> float:
        """Of the stage of layers `first` to before `end`."""
        return float(self.work[end] - self.work[first]) / self.bandwidth[device] + self._hops[before][device]

    def headroom(self, device: int, first: int, end: int) -> int:
        """That the stage leaves."""
        return self.room[device] - (self.need[end] - self.need[first])

    def usable(self, mask: int) -> Iterator[int]:
        """Devices that may come next where those of `mask` are used, in their order."""
        for device, earlier in enumerate(self.alike):
            if not mask >> device & 1 and (earlier < 0 or mask >> earlier & 1):
                yield device

    def states(self) -> int:
        """How many sets of devices differ; with links, times the device that comes last."""
        sizes: dict[int, int] = {}
        leaders: list[int] = []
        for device, earlier in enumerate(self.alike):
            leaders.append(device if earlier < 0 else leaders[earlier])
            sizes[leaders[-1]] = sizes.get(leaders[-1], 0) + 1
        count = 1
        for size in sizes.values():
            count *= size + 1
        return count * (len(sizes) if self.linked else 1)

    def _alike(self) -> list[int]:
        alike: list[int] = []
        for device in range(len(self.devices)):
            earlier = (other for other in range(device - 1, -1, -1) if self._same(other, device))
            alike.append(next(earlier, -1))
        return alike

    def _same(self, one: int, other: int) -> bool:
        a, b = self.devices[one], self.devices[other]
        if (a.vram_free_bytes, a.overhead_bytes) != (b.vram_free_bytes, b.overhead_bytes):
            return False
        if self.bandwidth[one] != self.bandwidth[other]:
            return False
        others = (third for third in range(len(self.devices)) if third not in (one, other))
        return not self.linked or all(self._hops[third][one] == self._hops[third][other] for third in others)


def _hops(request: SplitRequest) -> list[list[float]]:
    """By device before and device; the last row is the host's, so that HOST is its index."""
    count = len(request.devices)
    default = float(request.default_hop_seconds)
    hops = [[default] * count for _ in range(count + 1)]
    places = {device.device_id: place for place, device in enumerate(request.devices)}
    for link in request.links:
        a, b = places[link.device_a], places[link.device_b]
        seconds = float(link.latency_seconds) + float(request.activation_bytes) / float(link.bandwidth_bytes_per_second)
        hops[a][b] = hops[b][a] = seconds
    return hops


def costs_of(tables: Tables, stages: Sequence[Stage]) -> Costs:
    """As `evaluate`, for tables that exist already."""
    before, total = HOST, 0.0
    seconds: list[float] = []
    headroom: list[int] = []
    for stage in stages:
        seconds.append(tables.seconds(before, stage.device, stage.first_layer, stage.last_layer + 1))
        headroom.append(tables.headroom(stage.device, stage.first_layer, stage.last_layer + 1))
        total += seconds[-1]
        before = stage.device
    shares = [evenness_of(left, tables.devices[stage.device]) for stage, left in zip(stages, headroom, strict=True)]
    fits = bool(stages) and min(headroom) >= 0
    return Costs(
        tuple(seconds), tuple(headroom), max(seconds, default=0.0), total, min(shares, default=0.0), fits
    )  # fmt: skip


def evaluate(request: SplitRequest, stages: Sequence[Stage], context_length: int = 0) -> Costs:
    """What a plan costs, at the model's own context or at `context_length` tokens."""
    return costs_of(Tables(replace(request, model=at_context(request.model, context_length))), stages)


def key_of(objective: Objective, costs: Costs, stages: Sequence[Stage], context_length: int = 0) -> Key:
    """What is compared between plans that fit, smaller is better: SPLIT-3 with its ties, then long first stages."""
    order = tuple(stage.device for stage in stages)
    cuts = tuple(-stage.last_layer for stage in stages)
    slack = -min(costs.headroom)
    match objective:
        case Objective.MIN_BOTTLENECK:
            return (costs.bottleneck, len(stages), slack, order, cuts)
        case Objective.MIN_LATENCY:
            return (costs.latency, len(stages), slack, order, cuts)
        case Objective.MAX_CONTEXT:
            return (-context_length, slack, len(stages), order, cuts)
        case Objective.BALANCED:
            return (-costs.evenness, len(stages), slack, order, cuts)
