"""The oracle of splits: all sequences of devices and all cuts, compared by keys written from the specification.

It shares no line with the product. `number` is what times are counted in: float (as the model says, operation by
operation) or Fraction (where the case's numbers are powers of two, so that both have to agree).
"""

from __future__ import annotations

from itertools import combinations, permutations

from poolmgr.model.plan import Objective, SplitRequest


def best(request: SplitRequest, objective: Objective, number=float):
    """(key, ((device, first, last), ...), context) of the best plan, or None where nothing fits."""
    if objective is not Objective.MAX_CONTEXT:
        return best_at(request, objective, None, number)
    limit = request.model.context_limit or request.model.context_length
    if not request.model.context_length:
        return best_at(request, objective, None, number)
    for context in range(limit, 0, -1):
        if (found := best_at(request, objective, context, number)) is not None:
            return found
    return None


def best_at(request, objective, context, number):
    found = None
    for plan in plans(len(request.model.layers), len(request.devices), request.max_devices):
        scored = score(request, plan, context, number)
        if scored is None:
            continue
        slow, total, slack, even = scored
        devices, order, cuts = len(plan), [d for d, _, _ in plan], [-last for _, _, last in plan]
        key = {
            Objective.MIN_BOTTLENECK: (slow, devices, -slack, order, cuts),
            Objective.MIN_LATENCY: (total, devices, -slack, order, cuts),
            Objective.MAX_CONTEXT: (-slack, devices, order, cuts),
            Objective.BALANCED: (-even, devices, -slack, order, cuts),
        }[objective]
        if found is None or key < found[0]:
            found = (key, plan, context or request.model.context_length)
    return found


def plans(layers: int, devices: int, most: int):
    for count in range(1, min(layers, devices, most or devices) + 1):
        for inner in combinations(range(1, layers), count - 1):
            ends = (0, *inner, layers)
            for order in permutations(range(devices), count):
                yield tuple((d, ends[i], ends[i + 1] - 1) for i, d in enumerate(order))


def score(request, plan, context, number):
    """(slowest stage, sum of stages, smallest headroom, smallest share left), None where it does not fit."""
    times, slacks, shares, total = [], [], [], number(0)
    for place, (d, first, last) in enumerate(plan):
        device, held, read = request.devices[d], 0, 0
        for layer in request.model.layers[first : last + 1]:
            cache = layer.kv_bytes if context is None else cache_at(layer, request.model.context_length, context)
            held += layer.resident_bytes + cache
            read += layer.active_bytes + cache
        slack = device.vram_free_bytes - device.overhead_bytes - held
        if slack < 0:
            return None
        hop = number(request.default_hop_seconds)
        if place:
            hop = link_hop(request, request.devices[plan[place - 1][0]].device_id, device.device_id, number)
        times.append(number(read) / number(device.memory_bandwidth_bytes_per_second) + hop)
        total += times[-1]
        slacks.append(slack)
        shares.append(number(slack) / number(device.vram_free_bytes) if device.vram_free_bytes else number(0))
    return max(times), total, min(slacks), min(shares)


def cache_at(layer, asked, context):
    window = layer.kv_window or max(asked, context)
    top, bottom = min(context, window), min(asked, window)
    whole, rest = divmod(layer.kv_bytes * top, bottom)
    return whole + (1 if rest else 0)


def link_hop(request, one, other, number):
    for link in request.links:
        if {link.device_a, link.device_b} == {one, other}:
            carried = number(request.activation_bytes) / number(link.bandwidth_bytes_per_second)
            return number(link.latency_seconds) + carried
    return number(request.default_hop_seconds)
