"""Which devices go together (PLACE-2): one NUMA node with enough of them, NVLink groups first; then the same
socket; then across sockets, only where the ask allows it.

Devices of unknown NUMA node are a node of their own. Two nodes are of one socket where a PCIe link that does not cross
the interconnect joins their devices; a link that is not known joins nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from poolmgr.model.device import LinkKind
from poolmgr.model.placement import Candidate, Preference

MAX_STEPS: Final = 20_000  # of the search for devices that are all linked to each other; what is found later is not

Joined = Callable[[Candidate, Candidate], bool]


@dataclass(frozen=True, slots=True)
class Group:
    """`why`: what holds it together, for people. `crosses`: sockets. `exhaustive`: no search was cut short."""

    members: tuple[Candidate, ...]
    why: str
    crosses: bool = False
    exhaustive: bool = True


@dataclass(frozen=True, slots=True)
class Wish:
    """How the group should be. `count` at least 2."""

    count: int
    allow_cross_numa: bool
    prefer_nvlink: bool
    preference: Preference


def best(wish: Wish, ranked: Sequence[Candidate]) -> Group | None:
    """Of `ranked`, best first, all of which would do. None where the ask forbids every set of so many."""
    if len(ranked) < wish.count:
        return None
    nodes = _ordered_nodes(wish, ranked)
    exhaustive = True
    searches: list[tuple[bool, Sequence[Sequence[Candidate]], Joined, str, bool]] = [
        (wish.prefer_nvlink, nodes, nvlinked, "one NUMA node, joined by NVLink", False),
        (True, nodes, same_node, "one NUMA node", False),
        (True, [ranked], near, "one socket", False),
        (wish.allow_cross_numa and wish.prefer_nvlink, [ranked], nvlinked, "joined by NVLink across sockets", True),
        (wish.allow_cross_numa, [_packed(nodes)], lambda a, b: True, "across sockets", True),
    ]
    for wanted, sets, joined, why, crosses in searches:
        for members in sets if wanted else ():
            found, whole = clique(members, joined, wish.count)
            exhaustive = exhaustive and whole
            if found:
                return Group(found, why, crosses, exhaustive)
    return None


def clique(ranked: Sequence[Candidate], joined: Joined, count: int) -> tuple[tuple[Candidate, ...], bool]:
    """(the first set of `count`, in the order of ranks, in which each is joined to each; whether all were looked at).

    Empty where there is none, or none was found within MAX_STEPS.
    """
    steps = 0
    chosen: list[int] = []
    position = 0
    while len(chosen) < count:
        steps += 1
        if steps > MAX_STEPS:
            return (), False
        if position - len(chosen) > len(ranked) - count:  # too few are left
            if not chosen:
                return (), True
            position = chosen.pop() + 1
            continue
        if all(joined(ranked[one], ranked[position]) for one in chosen):
            chosen.append(position)
        position += 1
    return tuple(ranked[one] for one in chosen), True


def by_node(candidates: Sequence[Candidate]) -> Mapping[int | None, Sequence[Candidate]]:
    """By NUMA node, each in the order of `candidates`."""
    nodes: dict[int | None, list[Candidate]] = {}
    for one in candidates:
        nodes.setdefault(one.device.numa_node, []).append(one)
    return nodes


def sockets(candidates: Sequence[Candidate]) -> Sequence[Sequence[Candidate]]:
    """Nodes of one socket together, each in the order of `candidates`."""
    groups: list[list[Candidate]] = []
    for members in by_node(candidates).values():
        touching = [group for group in groups if any(near(a, b) for a in group for b in members)]
        groups = [group for group in groups if group not in touching]
        groups.append([*(one for group in touching for one in group), *members])
    rank = {one.device.device_id: place for place, one in enumerate(candidates)}
    ordered = [sorted(group, key=lambda one: rank[one.device.device_id]) for group in groups]
    return sorted(ordered, key=lambda group: rank[group[0].device.device_id])


def crosses_sockets(candidates: Sequence[Candidate]) -> bool:
    return len(sockets(candidates)) > 1


def same_node(one: Candidate, other: Candidate) -> bool:
    return one.device.numa_node == other.device.numa_node


def near(one: Candidate, other: Candidate) -> bool:
    """On one socket."""
    return same_node(one, other) or kind_between(one, other) is LinkKind.PCIE


def nvlinked(one: Candidate, other: Candidate) -> bool:
    return kind_between(one, other) is LinkKind.NVLINK


def kind_between(one: Candidate, other: Candidate) -> LinkKind | None:
    """As either of them shows it; None where neither does."""
    for this, that in ((one, other), (other, one)):
        for link in this.device.links:
            if link.peer == that.device.device_id:
                return link.kind
    return None


def _ordered_nodes(wish: Wish, ranked: Sequence[Candidate]) -> Sequence[Sequence[Candidate]]:
    """Bin-pack takes the smallest node that has enough, and leaves large groups whole; spread the largest."""
    sign = 1 if wish.preference is Preference.BIN_PACK else -1
    return sorted(by_node(ranked).values(), key=lambda members: sign * len(members))


def _packed(nodes: Sequence[Sequence[Candidate]]) -> Sequence[Candidate]:
    """Ordered so that the first ones are of few nodes."""
    return [one for members in sorted(nodes, key=len, reverse=True) for one in members]
