"""The least sum of stages, and its ties: the part of the reference search that has to look at every prefix.

A label is a partial plan: the least sum of seconds for a set of devices and a prefix of layers. See fact 3 of
`poolmgr.core.split_search` for why the ties need runs of their own.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from poolmgr.core.split_costs import HOST, Tables
from poolmgr.model.plan import Stage

EXACT_LABELS = 1 << 25  # transitions of one run, before any is pruned
BEAM = 24  # labels that are kept for each number of devices where there are more
BEAM_ENDS = 8  # ends that are tried of one stage then
# What a sum may be off by from the same stages added in another order: far more than 64 roundings, far less than any
# difference that somebody could mean.
SLACK = 1e-9


@dataclass(frozen=True, slots=True)
class Label:
    """Layers before `end` are placed, the last of them on `device`; `total` seconds, added up from the first on."""

    total: float
    end: int
    device: int
    parent: Label | None

    def stages(self) -> tuple[Stage, ...]:
        if self.parent is None:
            return ()
        return (*self.parent.stages(), Stage(self.device, self.parent.end, self.end - 1))


Labels = dict[int, Label]  # by end
State = tuple[int, int]  # the set of devices as bits, and with links the last of them
Level = dict[State, Labels]
Improve = Callable[[int, int, Callable[[int], int | None]], int]
NOTHING: Labels = {0: Label(0.0, 0, HOST, None)}


def is_exact(tables: Tables) -> bool:
    """Whether all labels are looked at."""
    ends = tables.layers * tables.layers // 2
    transitions = tables.states() * len(tables.devices) * ends // (4 if tables.linked else 2)
    return transitions <= EXACT_LABELS


@dataclass(slots=True)
class Run:
    """Labels with at least `headroom` on each device and no more than `ceiling` seconds in the end.

    `wide`: only the best `BEAM` labels of each number of devices, and `BEAM_ENDS` ends of each stage.
    """

    tables: Tables
    headroom: int = 0
    ceiling: float = inf
    wide: bool = False

    def extend(self, labels: Labels, device: int, into: Labels) -> None:
        """Puts one more stage, on `device`, after each of the labels."""
        tables = self.tables
        work, layers = tables.work, tables.layers
        bandwidth, fastest = tables.bandwidth[device], max(tables.bandwidth)
        for label in labels.values():
            hop = tables.hop(label.device, device)
            for end in self._ends(device, label.end):
                total = label.total + (float(work[end] - work[label.end]) / bandwidth + hop)
                if total + (work[layers] - work[end]) / fastest * (1.0 - SLACK) > self.ceiling:
                    continue
                known = into.get(end)
                if known is None or total < known.total:
                    into[end] = Label(total, end, device, label)

    def _ends(self, device: int, first: int) -> range:
        """Where a stage on `device` from `first` on can end."""
        need = self.tables.need
        most = self.tables.room[device] - self.headroom
        last = bisect_right(need, need[first] + most) - 1 if most >= 0 else first
        step = max(1, -(-(last - first) // BEAM_ENDS)) if self.wide else 1
        return range(last, first, -step)

    def least(self, labels: Labels, used: tuple[int, ...], most_devices: int) -> Label | None:
        """The least sum that goes on from `labels`, of the fewest devices that reach it. Lowers the ceiling to it."""
        tables, best = self.tables, labels.get(self.tables.layers)
        level: Level = {(sum(1 << device for device in used), used[-1] if used and tables.linked else HOST): labels}
        for _ in range(most_devices - len(used)):
            following: Level = {}
            for (mask, _before), starts in level.items():
                hopeful = self._hopeful(mask, starts)
                for device in tables.usable(mask) if hopeful else ():
                    state = (mask | 1 << device, device if tables.linked else HOST)
                    self.extend(hopeful, device, following.setdefault(state, {}))
            for ends in following.values():
                label = ends.pop(tables.layers, None)
                if label is not None and label.total <= self.ceiling and (best is None or label.total < best.total):
                    best, self.ceiling = label, label.total
            level = self._narrowed(following) if self.wide else following
        return best

    def _hopeful(self, mask: int, labels: Labels) -> Labels:
        """Those that can still end under the ceiling."""
        unused = self._unused(mask)
        return {
            end: label
            for end, label in labels.items()
            if label.total + self._rest(unused, end) * (1.0 - SLACK) <= self.ceiling
        }

    def _unused(self, mask: int) -> list[int]:
        """Devices with room that are not in `mask`, fastest first."""
        tables = self.tables
        unused = [device for device, room in enumerate(tables.room) if room > 0 and not mask >> device & 1]
        return sorted(unused, key=lambda device: -tables.bandwidth[device])

    def _rest(self, unused: list[int], end: int) -> float:
        """Seconds that the layers from `end` on take at least; inf where there is not room enough for them.

        No device can be given more work than what fits at the least bytes to hold per byte to read.
        """
        tables = self.tables
        if tables.need[-1] - tables.need[end] > sum(tables.room[device] for device in unused):
            return inf
        left, seconds = float(tables.work[-1] - tables.work[end]), 0.0
        for device in unused:
            part = min(left, tables.room[device] * tables.densest)
            seconds += part / tables.bandwidth[device]
            left -= part
        return seconds

    def _narrowed(self, level: Level) -> Level:
        labels: list[tuple[float, State, Label]] = []
        for state, ends in level.items():
            unused = self._unused(state[0])
            labels += [(label.total + self._rest(unused, label.end), state, label) for label in ends.values()]
        labels.sort(key=lambda one: one[0])
        kept: Level = {}
        for _, state, label in labels[:BEAM]:
            kept.setdefault(state, {})[label.end] = label
        return kept


def best(tables: Tables, improve: Improve) -> tuple[Stage, ...]:
    """The best plan; no stages where none fits (or, beyond `EXACT_LABELS`, where none was found)."""
    quick = Run(tables, wide=True).least(NOTHING, (), tables.most_devices)
    if not is_exact(tables):
        return quick.stages() if quick else ()
    found = Run(tables, ceiling=quick.total if quick else inf).least(NOTHING, (), tables.most_devices)
    if found is None:
        return ()
    stages, total = found.stages(), found.total
    count = len(stages)

    def attempt(headroom: int) -> int | None:
        nonlocal stages
        better = Run(tables, headroom, total).least(NOTHING, (), count)
        if better is None:
            return None
        stages = better.stages()
        return _headroom(tables, stages)

    headroom = improve(_headroom(tables, stages), max(tables.room), attempt)
    run = Run(tables, headroom, total)
    order = _first_order(run, total, tuple(stage.device for stage in stages))
    return _first_cuts(run, total, order)


def _headroom(tables: Tables, stages: tuple[Stage, ...]) -> int:
    return min(tables.headroom(stage.device, stage.first_layer, stage.last_layer + 1) for stage in stages)


def _first_order(run: Run, total: float, known: tuple[int, ...]) -> tuple[int, ...]:
    """The first order of so many devices that has that sum."""
    tables, labels, order = run.tables, NOTHING, tuple[int, ...]()
    for _ in known:
        for device in tables.usable(sum(1 << used for used in order)):
            following: Labels = {}
            run.extend(labels, device, following)
            taken = (*order, device)
            if following and Run(tables, run.headroom, total).least(following, taken, len(known)) is not None:
                order, labels = taken, following
                break
    return order


def _first_cuts(run: Run, total: float, order: tuple[int, ...]) -> tuple[Stage, ...]:
    """In that order: each stage as long as it can be while the sum stays the same."""
    label = NOTHING[0]
    tails = _tails(run, order)
    for place, device in enumerate(order):
        following: Labels = {}
        run.extend({label.end: label}, device, following)
        for end in sorted(following, reverse=True):
            near = following[end].total + tails[place + 1][end] <= total * (1.0 + SLACK)
            if near and _reaches(run, following[end], order[place + 1 :], total):
                label = following[end]
                break
    return label.stages()


def _reaches(run: Run, label: Label, order: tuple[int, ...], total: float) -> bool:
    """Whether the rest can go on those devices in that order for `total` seconds in all."""
    labels = {label.end: label}
    for device in order:
        following: Labels = {}
        run.extend(labels, device, following)
        labels = following
    last = labels.get(run.tables.layers)
    return last is not None and last.total <= total


def _tails(run: Run, order: tuple[int, ...]) -> list[list[float]]:
    """By place in the order and first layer: about the least seconds from there on; inf where it cannot be."""
    tables, layers = run.tables, run.tables.layers
    tails = [[inf] * layers + [0.0]]
    for place in range(len(order) - 1, -1, -1):
        device, before = order[place], order[place - 1] if place else HOST
        most, later, tail = tables.room[device] - run.headroom, tails[0], [inf] * (layers + 1)
        for first in range(layers):
            for end in range(first + 1, layers + 1):
                if tables.need[end] - tables.need[first] > most:
                    break
                if later[end] < inf:
                    tail[first] = min(tail[first], tables.seconds(before, device, first, end) + later[end])
        tails.insert(0, tail)
    return tails
