"""What no split can be faster than, from relaxations: for answers that are not proved to be the best.

Each is a little less than what the relaxation gives (`SLACK`), so that rounding never lifts it above a real plan.
"""

from __future__ import annotations

from poolmgr.core.split_costs import HOST, Tables

SLACK = 1e-9


def _hops(tables: Tables) -> tuple[float, float]:
    """The first hop, and the least that any later one takes."""
    count = range(len(tables.devices))
    first = tables.hop(HOST, 0)
    return first, min((tables.hop(a, b) for a in count for b in count if a != b), default=first)


def bottleneck_bound(tables: Tables) -> float:
    """Seconds. Layers may be divided at will, over the fastest devices; but some device has to take each whole."""
    first, later = _hops(tables)
    hop = min(first, later)
    fastest = sorted(tables.bandwidth, reverse=True)[: tables.most_devices]
    shared = tables.work[-1] / sum(fastest) + hop
    largest = max(tables.work[i + 1] - tables.work[i] for i in range(tables.layers))
    return max(shared, largest / fastest[0] + hop, first) * (1.0 - SLACK)


def latency_bound(tables: Tables) -> float:
    """Seconds. Layers may be divided at will: what is read most per byte goes to the fastest memory, until it is full.

    That is the transport problem with costs that are products (of a layer's density and a device's slowness), which
    pairing them in order solves.
    """
    first, later = _hops(tables)
    usable = [device for device, room in enumerate(tables.room) if room >= 0]
    if not usable:
        return 0.0
    layers = [(tables.need[i + 1] - tables.need[i], tables.work[i + 1] - tables.work[i]) for i in range(tables.layers)]
    layers.sort(key=lambda layer: -(layer[1] / layer[0]) if layer[0] else 0.0)
    usable.sort(key=lambda device: -tables.bandwidth[device])
    total, place, left = 0.0, 0, float(tables.room[usable[0]])
    for need, work in layers:
        rest = float(need)
        while rest > left and place + 1 < len(usable):
            total += work * (left / need) / tables.bandwidth[usable[place]]
            rest -= left
            place += 1
            left = float(tables.room[usable[place]])
        total += (work * (rest / need) if need else work) / tables.bandwidth[usable[place]]
        left -= rest
    return (total + first + later * (_fewest(tables, usable) - 1)) * (1.0 - SLACK)


def _fewest(tables: Tables, usable: list[int]) -> int:
    """Devices without which there is not room enough."""
    room, count = 0, 0
    for device in sorted(usable, key=lambda device: -tables.room[device]):
        count += 1
        room += tables.room[device]
        if room >= tables.need[-1]:
            break
    return max(count, 1)
