"""What the planners are asked: named mixes of real GPUs with the shapes of real models, and random cases from a seed.

GPUs are those of the simulator's catalogue; what is free is their memory less what the driver keeps. Shapes are the
published configurations of the models, weights at a number of bits each; the embedding counts with the first layer
and the output head is the last (SPLIT-4).
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from math import ceil
from random import Random

from bench.common import ROOT
from poolmgr.model.plan import (
    DeviceProfile,
    LayerProfile,
    LinkProfile,
    ModelProfile,
    Objective,
    SplitRequest,
)

MIB = 1 << 20
CATALOGUE = ROOT / "poolmgr/adapters/simulator/catalogue.toml"
# GPUs that the catalogue lacks: MiB in all and kept by the driver (estimate), GB/s; from NVIDIA's data sheets.
MORE_GPUS = {"RTX3060": (12288, 148, 360), "P40": (24576, 295, 346)}
OVERHEAD_BYTES = 640 * MIB  # a CUDA context and the compute buffers of an 8B model at 8192 tokens
HOP_SECONDS = 30e-6  # a copy of one token's activations over PCIe with its two launches
NVLINK = (8e-6, 56e9)  # seconds, bytes a second: two bridged RTX 3090
CACHE_BYTES = 2  # f16


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    request: SplitRequest


@dataclass(frozen=True, slots=True)
class Shape:
    """A published configuration. Experts: all, and read per token (shared ones in both); `dense_layers` have none.

    `cache_width`: values of one token in one layer's cache. `window`: of every second layer, in tokens; 0 for none.
    """

    layers: int
    hidden: int
    attention: int  # weights of one layer's attention
    cache_width: int
    feed_forward: int
    vocabulary: int
    context: int
    experts: int = 0
    experts_read: int = 0
    expert_width: int = 0
    dense_layers: int = 0
    window: int = 0


def grouped(hidden: int, heads: int, kv_heads: int, size: int) -> tuple[int, int]:
    """Attention's weights of one layer and its cache's width, with grouped queries."""
    return 2 * hidden * size * (heads + kv_heads), 2 * kv_heads * size


def latent(hidden: int, heads: int, query: int, cache: int, plain: int, rotary: int, value: int) -> tuple[int, int]:
    """The same of DeepSeek's latent attention; `query` 0: queries are not compressed."""
    queries = heads * (plain + rotary)
    weights = (hidden * query + query * queries) if query else hidden * queries
    return weights + hidden * (cache + rotary) + cache * heads * (
        plain + value
    ) + heads * value * hidden, cache + rotary


MODELS = {
    "Llama-3-8B": Shape(32, 4096, *grouped(4096, 32, 8, 128), 14336, 128256, 8192),
    "Llama-3-70B": Shape(80, 8192, *grouped(8192, 64, 8, 128), 28672, 128256, 8192),
    "Qwen2.5-32B": Shape(64, 5120, *grouped(5120, 40, 8, 128), 27648, 152064, 32768),
    "Mixtral-8x7B": Shape(32, 4096, *grouped(4096, 32, 8, 128), 14336, 32000, 32768, 8, 2, 14336),
    "DeepSeek-V2-Lite": Shape(
        27, 2048, *latent(2048, 16, 0, 512, 128, 64, 128), 10944, 102400, 32768, 66, 8, 1408, dense_layers=1
    ),
    "DeepSeek-V3": Shape(
        61, 7168, *latent(7168, 128, 1536, 512, 128, 64, 128), 18432, 129280, 65536, 257, 9, 2048, dense_layers=3
    ),
    "Gemma-2-27B": Shape(46, 4608, *grouped(4608, 32, 16, 128), 36864, 256000, 8192, window=4096),
}
# model, bits a weight, context, slots: what people run on the mixes below.
LOADS = (
    ("Llama-3-8B", 16.0, 8192, 4),
    ("Llama-3-70B", 4.85, 8192, 1),
    ("Llama-3-70B", 8.5, 8192, 4),
    ("Qwen2.5-32B", 4.85, 16384, 1),
    ("Qwen2.5-32B", 16.0, 16384, 2),
    ("Mixtral-8x7B", 4.85, 16384, 2),
    ("DeepSeek-V2-Lite", 8.5, 32768, 4),
    ("DeepSeek-V3", 4.85, 16384, 1),
    ("Gemma-2-27B", 8.5, 8192, 4),
)
MIXES = (
    "RTX3090+RTX3060",
    "RTX3060+RTX3090",
    "A100-80GB+A30",
    "H100+L40S",
    "RTX4090+RTX4090+RTX3090",
    "V100+T4+P40",
    "P40+P40+RTX3090",
    "RTX4090+RTX3060+RTX3060",
    "RTX5090+RTX3090",
    "RTX5090+RTX4090+RTX3090",
    "A6000+RTX3090+RTX3060",
    "L40S+L4+L4",
    "A100-40GB+V100-32GB+T4",
    "A10+A10+T4+T4",
    "H100+A100-80GB+A40",
    "H200+H100+A100-80GB",
    "H200+H200+H100+H100+A100-80GB",
    "RTXPRO6000+RTX6000-ADA+RTX4090",
    "B200+H200+H100+A100-80GB",
    "L4+A2+T4+P100",
    "RTX3090+RTX3090+RTX3060+P40",
    "A40+A40+A30+A10+T4",
)
BRIDGED = ("RTX3090+RTX3090+RTX3060+P40", "RTX3090+RTX3090+RTX3090+P40")
EIGHT = "H100+A100-40GB+L40S+RTX5090+RTX4090+RTX3090+A6000+V100-32GB"
SIXTEEN = EIGHT + "+H200+GH200+B200+A30+A40+A10+RTX6000-ADA+L4"


@cache
def gpus() -> dict[str, tuple[int, float]]:
    """By every name of the catalogue: bytes that are free, bytes a second."""
    known: dict[str, tuple[int, float]] = {}
    for model in tomllib.loads(CATALOGUE.read_text())["model"]:
        free = (model["memory_mib"] - model["reserved_mib"]) * MIB
        known |= dict.fromkeys(model["names"], (free, model["bandwidth_gbs"] * 1e9))
    return known | {name: ((memory - kept) * MIB, speed * 1e9) for name, (memory, kept, speed) in MORE_GPUS.items()}


def devices(mix: str) -> tuple[DeviceProfile, ...]:
    """Of a mix like "RTX3090+RTX3060", in its order."""
    known = gpus()
    named = [(name, *known[name]) for name in mix.split("+")]
    return tuple(
        DeviceProfile(f"{place}:{name}", free, speed, OVERHEAD_BYTES) for place, (name, free, speed) in enumerate(named)
    )


def model(name: str, bits: float, context: int, slots: int) -> ModelProfile:
    shape = MODELS[name]

    def weight_bytes(weights: int) -> int:
        return round(weights * bits / 8)

    def layer(place: int) -> LayerProfile:
        routed = shape.experts > 0 and place >= shape.dense_layers
        experts = (shape.experts, shape.experts_read) if routed else (1, 1)
        expert = 3 * shape.hidden * (shape.expert_width if routed else shape.feed_forward)
        window = shape.window if place % 2 == 0 else 0
        tokens = min(context, window) if window else context
        resident, active = (weight_bytes(shape.attention + count * expert) for count in experts)
        if place == 0:
            resident += weight_bytes(shape.vocabulary * shape.hidden)
            active += weight_bytes(shape.hidden)
        return LayerProfile(resident, active, tokens * slots * shape.cache_width * CACHE_BYTES, window)

    head = weight_bytes(shape.vocabulary * shape.hidden)
    layers = (*(layer(place) for place in range(shape.layers)), LayerProfile(head, head))
    return ModelProfile(layers, f"{name} {bits:g} bit", context, shape.context, slots)


def activation_bytes(name: str) -> int:
    """Of one token between two stages, f32 as llama.cpp keeps it."""
    return MODELS[name].hidden * 4


def request(mix: str, load: tuple[str, float, int, int], objective: Objective, links: bool = False) -> SplitRequest:
    found = devices(mix)
    bridge = (LinkProfile(found[0].device_id, found[1].device_id, *NVLINK),) if links else ()
    return SplitRequest(model(*load), found, bridge, HOP_SECONDS, activation_bytes(load[0]), objective)


def named_cases() -> Iterator[Case]:
    """Every mix with every load, whether it fits or not, for throughput and for one stream."""
    for objective in (Objective.MIN_BOTTLENECK, Objective.MIN_LATENCY):
        for load in LOADS:
            title = f"{load[0]} {load[1]:g} bit, {load[2]} x {load[3]}, {objective}"
            for mix in MIXES:
                yield Case(f"{mix}: {title}", request(mix, load, objective))
            for mix in BRIDGED:
                yield Case(f"{mix}, bridged: {title}", request(mix, load, objective, links=True))


def eighty(mix: str, objective: Objective, bits: float = 4.85) -> SplitRequest:
    """Llama 3 70B in 80 layers: the last one and the output head are one here."""
    profile = model("Llama-3-70B", bits, 8192, 1)
    *most, last, head = profile.layers
    joined = LayerProfile(
        last.resident_bytes + head.resident_bytes, last.active_bytes + head.active_bytes, last.kv_bytes
    )
    whole = ModelProfile((*most, joined), profile.name, profile.context_length, profile.context_limit)
    return SplitRequest(whole, devices(mix), (), HOP_SECONDS, activation_bytes("Llama-3-70B"), objective)


# Random cases. Sizes are kept small in many of them, so that costs tie and the tie-breaks are shown.


def random_layer(rng: Random, unit: int, alike: bool) -> LayerProfile:
    resident = rng.randint(0, 12) * unit if alike else rng.randint(0, 12 * unit)
    active = resident if rng.random() < 0.6 else rng.randint(0, resident)
    cache = rng.choice((0, rng.randint(0, 4) * unit if alike else rng.randint(0, 4 * unit)))
    return LayerProfile(resident, active, cache, rng.choice((0, 0, 0, rng.randint(1, 40))))


def random_model(rng: Random, most_layers: int, unit: int) -> ModelProfile:
    count, alike = rng.randint(1, most_layers), rng.random() < 0.5
    if rng.random() < 0.3:
        layers = (random_layer(rng, unit, alike),) * count
    else:
        layers = tuple(random_layer(rng, unit, alike) for _ in range(count))
    return ModelProfile(layers, "random", rng.choice((0, rng.randint(1, 64))), rng.choice((0, rng.randint(1, 128))))


def random_devices(rng: Random, most: int, need: int, unit: int) -> tuple[DeviceProfile, ...]:
    """Room for between half and thrice of the need in all; some are twins of the one before."""
    count = rng.randint(1, most)
    each = max(1, ceil(need * rng.uniform(0.5, 3.0) / count))
    found: list[DeviceProfile] = []
    for place in range(count):
        if found and rng.random() < 0.3:
            before = found[-1]
            kind = (before.vram_free_bytes, before.memory_bandwidth_bytes_per_second, before.overhead_bytes)
        else:
            free = max(1, round(each * rng.uniform(0.3, 1.7)))
            speed = rng.choice((float(rng.randint(1, 6) * unit), rng.uniform(0.5, 8.0) * unit))
            kind = (free, speed, rng.choice((0, free // 10, rng.randint(0, unit))))
        found.append(DeviceProfile(f"d{place}", *kind))
    return tuple(found)


def random_links(rng: Random, found: tuple[DeviceProfile, ...]) -> tuple[LinkProfile, ...]:
    pairs = [(a.device_id, b.device_id) for place, a in enumerate(found) for b in found[:place]]
    chosen = rng.sample(pairs, rng.randint(0, len(pairs)))
    return tuple(LinkProfile(a, b, rng.choice((0.0, rng.uniform(0, 2))), rng.choice((1e3, 1e9))) for a, b in chosen)


def random_request(
    rng: Random, most_devices: int, most_layers: int, objectives: tuple[Objective, ...] = tuple(Objective)
) -> SplitRequest:
    unit = rng.choice((1, 10, 1 << 30))
    profile = random_model(rng, most_layers, unit)
    need = sum(layer.resident_bytes + layer.kv_bytes for layer in profile.layers)
    found = random_devices(rng, most_devices, need, unit)
    return SplitRequest(
        profile,
        found,
        random_links(rng, found) if rng.random() < 0.3 else (),
        rng.choice((0.0, 1.0, rng.uniform(0, 3))),
        rng.choice((0, 4096)),
        rng.choice(objectives),
        rng.choice((0, 0, 0, rng.randint(1, len(found)))),
    )


def random_cases(seed: int, count: int, most_devices: int, most_layers: int, *objectives: Objective) -> Iterator[Case]:
    """The same for the same arguments."""
    rng = Random(f"{seed} {most_devices} {most_layers}")
    for place in range(count):
        yield Case(
            f"random {seed}/{place}", random_request(rng, most_devices, most_layers, objectives or tuple(Objective))
        )
