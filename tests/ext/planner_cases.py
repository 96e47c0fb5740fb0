"""Random requests for splits, full of ties and edges, and a judge that tries every plan.

The judge shares nothing with the planners but the requests: it adds bytes layer by layer, builds every sequence of
stages and compares whole keys. Only for few devices and layers.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from fractions import Fraction
from itertools import combinations, permutations

from poolmgr.model.plan import (
    DeviceProfile,
    Found,
    LayerProfile,
    LinkProfile,
    ModelProfile,
    Objective,
    SplitRequest,
    Stage,
)

GIB = 1 << 30
# Of real cards: free GiB and bytes a second.
CARDS = ((24, 1.008e12), (24, 936e9), (16, 672e9), (12, 360e9), (80, 3.35e12), (48, 864e9), (8, 256e9), (141, 4.8e12))


def layers_of(rng: random.Random, count: int) -> tuple[LayerProfile, ...]:
    match rng.randrange(7):
        case 0:  # all alike, as most models are
            weights, kv = rng.randrange(1, 9), rng.randrange(3)
            return (LayerProfile(weights, weights, kv, 0),) * count
        case 1:  # few values, so that many sums tie
            return tuple(_layer(rng, (0, 1, 2, 3)) for _ in range(count))
        case 2:  # embedding and head unlike the rest, experts that are not all read
            body = LayerProfile(GIB, GIB // rng.choice((1, 4, 7)), rng.choice((0, GIB // 16)), rng.choice((0, 0, 4096)))
            return (LayerProfile(2 * GIB, 0), *(body,) * (count - 1))[:count]
        case 3:
            return tuple(_layer(rng, (0, 0, 1, 1000)) for _ in range(count))
        case 4:  # so large that floats round them
            return tuple(_layer(rng, tuple(rng.randrange(1 << 53) for _ in range(3))) for _ in range(count))
        case 5:  # so unlike that sums of seconds swallow the small ones, and tie
            return tuple(_layer(rng, (1, 2, 3, 1 << 53, (1 << 53) - 1)) for _ in range(count))
        case _:
            return tuple(_layer(rng, tuple(rng.randrange(1, 3 * GIB) for _ in range(8))) for _ in range(count))


def _layer(rng: random.Random, sizes: tuple[int, ...]) -> LayerProfile:
    resident = rng.choice(sizes)
    active = rng.choice((resident, resident // 2, 0))
    return LayerProfile(resident, active, rng.choice(sizes) // rng.choice((1, 3, 8)), rng.choice((0, 0, 3, 100)))


def devices_of(rng: random.Random, count: int, total: int) -> tuple[DeviceProfile, ...]:
    """Free memory around what the model needs, from far too little to plenty."""
    scale = rng.choice((0.3, 0.6, 1.0, 1.2, 2.0, 4.0))
    speeds = rng.choice(((1.0,), (1.0, 2.0, 3.0), (256e9, 672e9, 936e9, 1.008e12), (1.0, 1e24), (7.0, 7.0, 11.0)))
    devices: list[DeviceProfile] = []
    for place in range(count):
        if devices and rng.random() < 0.3:  # a twin
            twin = rng.choice(devices)
            free, overhead, speed = twin.vram_free_bytes, twin.overhead_bytes, twin.memory_bandwidth_bytes_per_second
        else:
            free = int(total / count * scale * rng.choice((0.5, 1.0, 1.0, 1.5))) + rng.randrange(3)
            overhead = rng.choice((0, 0, 0, 1, free // 4, free + 1))
            speed = rng.choice(speeds)
        devices.append(DeviceProfile(f"GPU-{place}", free, speed, overhead))
    return tuple(devices)


def links_of(rng: random.Random, devices: tuple[DeviceProfile, ...]) -> tuple[LinkProfile, ...]:
    if rng.random() < 0.6:
        return ()
    pairs = [pair for pair in combinations(devices, 2) if rng.random() < 0.7]
    return tuple(
        LinkProfile(
            *rng.sample((a.device_id, b.device_id), 2), rng.choice((0.0, 1e-6, 0.5, 3.0)), rng.choice((1.0, 64e9))
        )
        for a, b in pairs
    )


def request_of(rng: random.Random, most_devices: int, most_layers: int) -> SplitRequest:
    layers = layers_of(rng, rng.randrange(1, most_layers + 1))
    total = sum(layer.resident_bytes + layer.kv_bytes for layer in layers)
    devices = devices_of(rng, rng.randrange(1, most_devices + 1), total)
    context = rng.choice((0, 1, 100, 8192))
    limit = rng.choice((0, 1, 50, 100, 131072)) if total < 1 << 45 else rng.choice((0, context))
    return SplitRequest(
        ModelProfile(layers, context_length=context, context_limit=limit, slots=rng.choice((1, 4))),
        devices,
        links_of(rng, devices),
        rng.choice((0.0, 1e-5, 0.25, 1.0, 100.0)),
        rng.choice((0, 8192)),
        rng.choice((None, *Objective)),
        rng.choice((0, 0, 0, 1, 2, 3, 9)),
    )


def asked_for(request: SplitRequest) -> Objective:
    return request.objective or (Objective.MIN_LATENCY if request.model.slots <= 1 else Objective.MIN_BOTTLENECK)


def plans(devices: int, layers: int, most: int) -> Iterator[tuple[Stage, ...]]:
    """Every order of every choice of devices, with every way to cut the layers into as many runs."""
    for count in range(1, min(most or devices, devices, layers) + 1):
        for order in permutations(range(devices), count):
            for cuts in combinations(range(1, layers), count - 1):
                edges = (0, *cuts, layers)
                yield tuple(Stage(device, edges[i], edges[i + 1] - 1) for i, device in enumerate(order))


class Judge:
    """Knows every key of one request at one context."""

    def __init__(self, request: SplitRequest, context: int) -> None:
        self.request = request
        self.objective = asked_for(request)
        asked = request.model.context_length
        self.kv = [self._kv(layer, asked, context) for layer in request.model.layers]
        self.hops = {
            frozenset((link.device_a, link.device_b)): link.latency_seconds
            + request.activation_bytes / link.bandwidth_bytes_per_second
            for link in request.links
        }

    @staticmethod
    def _kv(layer: LayerProfile, asked: int, context: int) -> int:
        if not asked:
            return layer.kv_bytes
        window = layer.kv_window or max(asked, context)
        exact = Fraction(layer.kv_bytes * min(context, window), min(asked, window))
        return -(-exact.numerator // exact.denominator)

    def hop(self, before: str | None, device: str) -> float:
        return self.hops.get(frozenset((before, device)), self.request.default_hop_seconds)

    def key(self, stages: tuple[Stage, ...]) -> tuple[object, ...] | None:
        """None where it does not fit."""
        before, seconds, left, shares = None, [], [], []
        layers = self.request.model.layers
        for stage in stages:
            device = self.request.devices[stage.device]
            run = range(stage.first_layer, stage.last_layer + 1)
            held = sum(layers[i].resident_bytes + self.kv[i] for i in run)
            read = sum(layers[i].active_bytes + self.kv[i] for i in run)
            left.append(device.vram_free_bytes - device.overhead_bytes - held)
            if left[-1] < 0:
                return None
            speed = device.memory_bandwidth_bytes_per_second
            seconds.append(float(read) / speed + self.hop(before, device.device_id))
            shares.append(float(left[-1]) / float(device.vram_free_bytes) if device.vram_free_bytes else 0.0)
            before = device.device_id
        return self._ranked(stages, seconds, min(left), min(shares))

    def _ranked(self, stages: tuple[Stage, ...], seconds: list[float], left: int, share: float) -> tuple[object, ...]:
        total = 0.0
        for one in seconds:
            total += one
        rest = (tuple(stage.device for stage in stages), tuple(-stage.last_layer for stage in stages))
        if self.objective is Objective.MAX_CONTEXT:
            return (-left, len(stages), *rest)
        first = {
            Objective.MIN_BOTTLENECK: max(seconds), Objective.MIN_LATENCY: total, Objective.BALANCED: -share,
        }[self.objective]  # fmt: skip
        return (first, len(stages), -left, *rest)

    def best(self) -> tuple[tuple[object, ...], tuple[Stage, ...]] | None:
        request = self.request
        keyed = (
            (key, stages)
            for stages in plans(len(request.devices), len(request.model.layers), request.max_devices)
            if (key := self.key(stages)) is not None
        )
        return min(keyed, key=lambda pair: pair[0], default=None)


def judged(request: SplitRequest) -> Found:
    """What is right, by trying everything."""
    model = request.model
    context = model.context_length
    if asked_for(request) is Objective.MAX_CONTEXT and context:
        low, high = 0, model.context_limit or context
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if Judge(request, middle).best() else (low, middle - 1)
        context = low
    best = Judge(request, context).best() if context or not model.context_length else None
    if best is None:
        return Found(context_length=0 if asked_for(request) is Objective.MAX_CONTEXT else model.context_length)
    (first, *_), stages = best
    in_seconds = asked_for(request) in (Objective.MIN_BOTTLENECK, Objective.MIN_LATENCY)
    return Found(stages, True, float(first) if in_seconds else 0.0, context)  # type: ignore[arg-type]
