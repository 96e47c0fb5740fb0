"""How others lay layers over GPUs, from their published rules; `tests/bench` checks each by an example of its project.

A rule is given what the planner is given and answers with a plan; an empty one where it refuses or leaves layers to the
host. Devices stand in the order of the request, as an engine sees them. Where a project counts the output head with
the last layer (EXO, vLLM), it goes with the last stage here; llama.cpp counts it as one more layer.

llama.cpp: load_tensors in `src/llama-model.cpp`, `common/fit.cpp`, `docs/multi-gpu.md`. EXO: `exo/topology` to 0.0.15,
`src/exo/master/placement_utils.py` since. vLLM: `get_pp_indices` in `vllm/distributed/utils.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, combinations

import numpy as np

from bench.placement_judge import Plan
from poolmgr.model.plan import SplitRequest, Stage

FIT_MARGIN_BYTES = 1024 << 20  # llama.cpp's --fit-target

Rule = Callable[[SplitRequest], Plan]


def stages(counts: Sequence[int], order: Sequence[int]) -> Plan:
    """Runs of so many layers on the devices of `order`; a device without layers is left out."""
    ends = list(accumulate(counts))
    return tuple(
        Stage(device, end - count, end - 1) for device, count, end in zip(order, counts, ends, strict=True) if count
    )


def free_bytes(request: SplitRequest) -> list[int]:
    return [device.vram_free_bytes for device in request.devices]


# llama.cpp


def llamacpp_counts(layers: int, proportions: Sequence[float]) -> list[int]:
    """Of `layers`, the output head among them: layer i goes to the first device whose share of the proportions, summed
    so far, is more than i / layers. All of it in float32."""
    shares = np.cumsum(np.array(proportions, dtype=np.float32), dtype=np.float32)
    shares = shares / shares[-1]
    places = np.arange(layers, dtype=np.float32) / np.float32(layers)
    where = np.searchsorted(shares, places, side="right")
    return np.bincount(where, minlength=len(proportions)).tolist()


def llamacpp(request: SplitRequest) -> Plan:
    """`--fit off` without --tensor-split: by free memory, whatever then fits."""
    return stages(llamacpp_counts(len(request.model.layers), free_bytes(request)), range(len(request.devices)))


def llamacpp_fit(request: SplitRequest) -> Plan:
    """`--fit`, the default: the split by free memory where it leaves each device its margin; else devices are filled
    with whole layers up to it. A context that is given is not reduced."""
    before = llamacpp(request)
    used = {stage.device: held(request, stage.first_layer, stage.last_layer + 1) for stage in before}
    rooms = [d.vram_free_bytes - d.overhead_bytes - FIT_MARGIN_BYTES for d in request.devices]
    if all(used.get(device, 0) <= room for device, room in enumerate(rooms)):
        return before
    layers = len(request.model.layers)
    counts = filled(request, rooms, from_the_back=not has_experts(request))
    return stages(counts, range(len(counts))) if sum(counts) == layers else ()


def has_experts(request: SplitRequest) -> bool:
    """For them --fit begins at the front, once their dense parts fit (its fourth step)."""
    return any(layer.active_bytes < layer.resident_bytes // 2 for layer in request.model.layers[1:])


def filled(request: SplitRequest, rooms: Sequence[int], from_the_back: bool) -> list[int]:
    """As many layers as each device has room for: dense models beginning with the last layer on the last device, models
    of experts with the first on the first, where the output head stays with the last device. May leave layers over."""
    layers = len(request.model.layers)
    counts = [0] * len(rooms)
    left = layers
    if from_the_back:
        for device in range(len(rooms) - 1, -1, -1):
            counts[device] = most(left, lambda n, end=left: held(request, end - n, end), rooms[device])
            left -= counts[device]
        return counts
    first = 0
    for device, room in enumerate(rooms):
        last = device == len(rooms) - 1
        end = layers if last else layers - 1
        counts[device] = most(end - first, lambda n, start=first: held(request, start, start + n), room)
        first += counts[device]
    return counts


def most(limit: int, need: Callable[[int], int], room: int) -> int:
    """How many layers a device has room for."""
    count = 0
    while count < limit and need(count + 1) <= room:
        count += 1
    return count


def held(request: SplitRequest, first: int, end: int) -> int:
    return sum(layer.resident_bytes + layer.kv_bytes for layer in request.model.layers[first:end])


# EXO


def ring_partitions(memory: Sequence[int]) -> list[tuple[int, float, float]]:
    """(device, start, end) as shares of the model, most memory first; ends are rounded to five digits. Of equal ones
    the later name comes first, which is the later device here."""
    order = sorted(range(len(memory)), key=lambda device: (memory[device], device), reverse=True)
    found, start = [], 0.0
    for device in order:
        end = round(start + memory[device] / sum(memory), 5)
        found.append((device, start, end))
        start = end
    return found


def ring_shards(partitions: Sequence[tuple[int, float, float]], layers: int) -> Plan:
    """Whole layers: ends are cut off, the last shard takes what is left, empty shards fall away."""
    found: list[Stage] = []
    for device, start, end in partitions:
        last = layers - 1 if device == partitions[-1][0] else int(end * layers) - 1
        if int(start * layers) <= last:
            found.append(Stage(device, int(start * layers), last))
    if found and found[-1].last_layer < layers - 1:
        found[-1] = Stage(found[-1].device, found[-1].first_layer, layers - 1)
    return tuple(found)


def exo_ring(request: SplitRequest) -> Plan:
    """Ring memory weighted partitioning: all devices, by memory."""
    return headed(request, lambda layers: ring_shards(ring_partitions(free_bytes(request)), layers))


def exo_counts(layers: int, fractions: Sequence[float]) -> list[int]:
    """By the largest remainder, at least one each, which comes from whoever has most."""
    exact = [fraction * layers for fraction in fractions]
    counts = [int(each) for each in exact]
    by_remainder = sorted(range(len(exact)), key=lambda place: exact[place] - counts[place], reverse=True)
    for place in by_remainder[: layers - sum(counts)]:
        counts[place] += 1
    for place, count in enumerate(counts):
        if count == 0:
            counts[max(range(len(counts)), key=counts.__getitem__)] -= 1
            counts[place] = 1
    return counts


def exo(request: SplitRequest) -> Plan:
    """Of the smallest groups with enough memory in all the one with most of it, then by memory. It refuses where the
    share of a device is more than it has; sizes are those of weights, every layer counted alike."""
    memory, weights = free_bytes(request), sum(layer.resident_bytes for layer in request.model.layers)
    layers = len(request.model.layers) - 1
    for number in range(1, len(memory) + 1):
        groups = [g for g in combinations(range(len(memory)), number) if sum(memory[d] for d in g) >= weights]
        if groups and layers >= number:
            group = max(groups, key=lambda g: sum(memory[d] for d in g))
            total = sum(memory[d] for d in group)
            counts = exo_counts(layers, [memory[d] / total for d in group])
            if any(weights * n // layers > memory[d] for d, n in zip(group, counts, strict=True)):
                return ()
            return headed(request, lambda _, n=counts, g=group: stages(n, g))
    return ()


# vLLM


def vllm_counts(layers: int, number: int) -> list[int]:
    """The same for all; what is left over goes one each to those before the last, from the back."""
    counts = [layers // number] * number
    for place in range(layers % number):
        counts[-2 - place] += 1
    return counts


def vllm(request: SplitRequest) -> Plan:
    """Pipeline over all devices, layers even."""
    number = len(request.devices)
    return headed(request, lambda layers: stages(vllm_counts(layers, number), range(number)))


def headed(request: SplitRequest, rule: Callable[[int], Plan]) -> Plan:
    """The rule's plan of all layers but the output head, which goes with the last stage."""
    last = len(request.model.layers) - 1
    if last == 0:
        return (Stage(0, 0, 0),)
    plan = rule(last)
    return (*plan[:-1], Stage(plan[-1].device, plan[-1].first_layer, last)) if plan else ()


RULES: dict[str, Rule] = {
    "llamacpp": llamacpp,
    "llamacpp_fit": llamacpp_fit,
    "exo_ring": exo_ring,
    "exo": exo,
    "vllm": vllm,
}
