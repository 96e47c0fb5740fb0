"""How far a model is from fitting: the bytes that the nearest plan lacks.

A plan lacks Σ max(0, weights + cache + overhead − free) over its devices. The least of that over all plans is what
`missing_bytes` says: with so much more memory, put where that plan lacks it, there is a plan; with less there is none,
wherever it is put.

Of the stages of the nearest plan each but the last may be taken either as long as it fits, or one layer longer: a layer
less moves its bytes to the next device at no gain, and beyond the first layer that does not fit every byte is lacking.
The last stage takes the rest.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import replace

from poolmgr.core.split_costs import Tables
from poolmgr.model.plan import SplitRequest

EXACT_STATES = 1 << 10
BEAM = 16

Level = dict[int, dict[int, int]]  # by devices used: bytes lacking, by the first layer that is not placed


def missing_bytes(request: SplitRequest) -> tuple[int, bool]:
    """(bytes, whether that is the least). Where not every set of devices was looked at, a plan that lacks so much."""
    devices = tuple(replace(device, memory_bandwidth_bytes_per_second=1.0) for device in request.devices)
    tables = Tables(replace(request, devices=devices, links=()))
    exact = tables.states() <= EXACT_STATES
    best = -1
    level: Level = {0: {0: 0}}
    for _ in range(tables.most_devices):
        following: Level = {}
        for used, starts in level.items():
            for device in tables.usable(used):
                for first, lacking in starts.items():
                    whole = lacking + _lacks(tables, device, first, tables.layers)
                    best = whole if best < 0 else min(best, whole)
                    _extend(tables, device, first, lacking, following.setdefault(used | 1 << device, {}))
        level = following if exact else _narrowed(tables, following)
    return max(best, 0), exact


def _extend(tables: Tables, device: int, first: int, lacking: int, into: dict[int, int]) -> None:
    room = tables.room[device]
    last = bisect_right(tables.need, tables.need[first] + room) - 1 if room >= 0 else first
    for end in (last, last + 1):
        if first < end < tables.layers:
            whole = lacking + _lacks(tables, device, first, end)
            into[end] = min(into.get(end, whole), whole)


def _lacks(tables: Tables, device: int, first: int, end: int) -> int:
    return max(0, -tables.headroom(device, first, end))


def _narrowed(tables: Tables, level: Level) -> Level:
    """Those that have placed the most beyond what they lack."""

    def promise(item: tuple[int, dict[int, int]]) -> int:
        return min(lacking - tables.need[end] for end, lacking in item[1].items())

    return dict(sorted((item for item in level.items() if item[1]), key=promise)[:BEAM])
