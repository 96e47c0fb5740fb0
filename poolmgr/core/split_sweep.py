"""Whether all layers can be placed under limits that every stage keeps to, and with how few devices.

Sets of devices are gone through smallest first. Of each it is enough to know where its stages can end:

- Without links it never hurts that an earlier stage takes more layers, or that a device which has nothing left to take
  is left out, since every hop costs the same. So of all orders of a set only the *longest prefix* matters.
- With links that is not so: a device with one layer may be worth using for its link to the next. Then for each (set,
  last device) *all* ends are kept, as a set of bits.

Where there are more sets than `EXACT_STATES`, the best `BEAM` of each size are kept, of each only the longest prefix,
and a failure proves nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import inf

from poolmgr.core.split_costs import HOST, Tables, evenness_of
from poolmgr.model.plan import Stage

EXACT_STATES = 1 << 16  # as many as 16 different devices have
BEAM = 4

Order = tuple[int, ...]
Stages = tuple[Stage, ...]
State = tuple[int, int]  # devices as bits; the last of them, HOST where that makes no difference
Level = dict[State, int]  # where the stages can end, as bits
Refused = tuple[float, float]  # seconds, evenness
Row = tuple[list[int], list[Refused], int]  # ends, refused, and as bits where no stage can begin
NOTHING_REFUSED: Refused = (inf, -1.0)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a plan has to keep to. `evenness`: the share of its free memory that every device has to keep."""

    devices: int
    seconds: float = inf
    headroom: int = 0
    evenness: float = 0.0


class Reach:
    """How far a stage may go under limits."""

    def __init__(self, tables: Tables, limits: Limits) -> None:
        self.tables = tables
        self.limits = limits
        self._need = [self._most_need(device) for device in range(len(tables.devices))]
        self._work: dict[tuple[int, float], int] = {}
        self._rows: dict[tuple[int, float], Row] = {}

    def row(self, before: int, device: int) -> Row:
        """`end` for every first layer, and what was refused there."""
        key = (device, self.tables.hop(before, device))
        if key not in self._rows:
            ends, refused = list[int](), list[Refused]()
            for first in range(self.tables.layers):
                ends.append(self.end(before, device, first))
                refused.append(self.refused(before, device, first, ends[-1]))
            blocked = sum(1 << first for first, end in enumerate(ends) if end == first)
            self._rows[key] = (ends, refused, blocked)
        return self._rows[key]

    def refused(self, before: int, device: int, first: int, end: int) -> Refused:
        """What one layer more than to `end` would come to, where nothing but the limit searched for forbids it."""
        if end == self.tables.layers:
            return NOTHING_REFUSED
        left = self.tables.headroom(device, first, end + 1)
        if self.end_by_need(device, first) > end:
            return self.tables.seconds(before, device, first, end + 1), -1.0
        evenness = evenness_of(left, self.tables.devices[device])
        if left >= self.limits.headroom and evenness < self.limits.evenness:
            return inf, evenness
        return NOTHING_REFUSED

    def end(self, before: int, device: int, first: int) -> int:
        """One past the last layer that a stage from `first` on may take; `first` itself where it may take none."""
        return min(self.end_by_need(device, first), self._end_by_work(before, device, first))

    def end_by_need(self, device: int, first: int) -> int:
        """The same for memory alone."""
        return _last_within(self.tables.need, first, self._need[device])

    def _end_by_work(self, before: int, device: int, first: int) -> int:
        if self.limits.seconds == inf:
            return self.tables.layers
        hop = self.tables.hop(before, device)
        if (device, hop) not in self._work:
            bandwidth, limit = self.tables.bandwidth[device], self.limits.seconds
            most = largest(lambda work: float(work) / bandwidth + hop <= limit, self.tables.work[-1])
            self._work[device, hop] = most
        return _last_within(self.tables.work, first, self._work[device, hop])

    def _most_need(self, device: int) -> int:
        room, wanted = self.tables.room[device], self.limits.evenness
        most = min(room - self.limits.headroom, self.tables.need[-1])
        if wanted <= 0.0 or most < 0:
            return most
        profile = self.tables.devices[device]
        return largest(lambda need: evenness_of(room - need, profile) >= wanted, most)


def largest(allowed: Callable[[int], bool], high: int) -> int:
    """The largest number from 0 to `high` that is allowed, where all below an allowed one are; -1 where none is."""
    low = -1
    while low < high:
        middle = (low + high + 1) // 2
        if allowed(middle):
            low = middle
        else:
            high = middle - 1
    return low


def _last_within(sums: list[int], first: int, most: int) -> int:
    """The last place whose sum is at most `most` more than that of `first`."""
    if most < 0:
        return first
    low, high, limit = first, len(sums) - 1, sums[first] + most
    while low < high:
        middle = (low + high + 1) // 2
        if sums[middle] <= limit:
            low = middle
        else:
            high = middle - 1
    return low


def is_exact(tables: Tables) -> bool:
    """Whether a sweep looks at every set, so that its failure is a proof."""
    return tables.states() <= EXACT_STATES


class Sweep:
    """The fewest devices that hold all layers, those of `order` first, whose stages can end at `ends` (bits).

    `refused_seconds`, `refused_evenness`: of all stages that the
    limits forbade, the nearest to them; none forbade any at the defaults.
    """

    def __init__(self, tables: Tables, limits: Limits, order: Order = (), ends: int = 1) -> None:
        self.reach = Reach(tables, limits)
        self.tables = tables
        self.refused_seconds = inf
        self.refused_evenness = -1.0
        start = (sum(1 << device for device in order), order[-1] if order and tables.linked else HOST)
        self._all_ends = tables.linked and is_exact(tables)
        self._levels: list[Level] = [{start: ends}]
        self._goal = self._run(limits.devices - len(order))

    @property
    def found(self) -> bool:
        """Whether there is a plan."""
        return self._goal is not None

    @property
    def stages(self) -> Stages:
        """One such plan, from where the sweep began, empty where there is none."""
        stages, state, end = Stages(), self._goal, self.tables.layers
        for level in reversed(self._levels[:-1]) if state else ():
            assert state is not None
            state, device, first = self._origin(level, state, end)
            stages, end = (Stage(device, first, end - 1), *stages), first
        return stages

    def _run(self, steps: int) -> State | None:
        goal = 1 << self.tables.layers
        wide = not is_exact(self.tables)
        for _ in range(steps):
            level = self._next(self._levels[-1])
            self._levels.append(level)
            for state, ends in level.items():
                if ends & goal:
                    return state
            if wide:
                kept = sorted(level.items(), key=lambda item: (-item[1].bit_length(), item[0]))[:BEAM]
                self._levels[-1] = dict(kept)
        return None

    def _next(self, level: Level) -> Level:
        following: Level = {}
        for (used, before), ends in level.items():
            for device in self.tables.usable(used):
                state = (used | 1 << device, device if self.tables.linked else HOST)
                found = self.extend(before, device, ends)
                if found:
                    known = following.get(state, 0)
                    following[state] = known | found if self._all_ends else max(known, found)
        return following

    def extend(self, before: int, device: int, ends: int) -> int:
        """Where one more stage can end, after those that can end at `ends`."""
        if not self._all_ends:
            first = ends.bit_length() - 1
            end = self.reach.end(before, device, first)
            self._note(self.reach.refused(before, device, first, end))
            return 1 << end if end > first else 0
        reached, refused, blocked = self.reach.row(before, device)
        found = 0
        for first, last in _runs(ends & ~blocked):
            found |= (1 << reached[last] + 1) - (1 << first + 1)
        for first, last in _runs(ends):
            self._note((min(refused[first : last + 1])[0], max(value for _, value in refused[first : last + 1])))
        return found

    def _note(self, refused: Refused) -> None:
        self.refused_seconds = min(self.refused_seconds, refused[0])
        self.refused_evenness = max(self.refused_evenness, refused[1])

    def _origin(self, level: Level, state: State, end: int) -> tuple[State, int, int]:
        """From which state, with which device and from which layer on, a stage came to `end`."""
        for (used, before), ends in level.items():
            device = (state[0] & ~used).bit_length() - 1
            if used & ~state[0] or used | 1 << device != state[0] or state[1] not in (HOST, device):
                continue
            for first in _bits(ends):
                if first < end <= self.reach.end(before, device, first):
                    return (used, before), device, first
        raise AssertionError("a state without an origin")


def _bits(bits: int) -> Iterator[int]:
    """The places of the bits that are set, lowest first."""
    while bits:
        lowest = bits & -bits
        yield lowest.bit_length() - 1
        bits ^= lowest


def _runs(bits: int) -> Iterator[tuple[int, int]]:
    """First and last place of each run of bits that are set, lowest first."""
    while bits:
        first = (bits & -bits).bit_length() - 1
        last = first + ((~(bits >> first)) & ((bits >> first) + 1)).bit_length() - 2
        yield first, last
        bits &= ~((1 << last + 1) - 1)


def first_order(tables: Tables, limits: Limits, known: Order) -> Order:
    """The first order of as many devices as `known` has that keeps to the limits. There are no fewer that do.

    `known` itself where sweeps are not exact: each of its devices would cost as many sweeps as there are others.
    """
    if not is_exact(tables):
        return known
    order, ends, before, goal = Order(), 1, HOST, 1 << tables.layers
    here = Sweep(tables, replace(limits, devices=0))
    for _ in known:
        for device in tables.usable(sum(1 << used for used in order)):
            taken = (*order, device)
            reached = here.extend(before, device, ends)
            if reached & goal or (reached and Sweep(tables, limits, taken, reached).found):
                order, ends, before = taken, reached, device
                break
    return order


def cut(tables: Tables, limits: Limits, order: Order) -> Stages:
    """Stages in that order, each as long as it may be while the later ones still have a layer each."""
    reach, layers = Reach(tables, limits), tables.layers
    starts = [{layers}]
    for place in range(len(order) - 1, -1, -1):
        before = order[place - 1] if place else HOST
        ok = {
            first
            for first in range(layers)
            if any(end in starts[0] for end in range(first + 1, reach.end(before, order[place], first) + 1))
        }
        starts.insert(0, ok)
    stages, first, before = list[Stage](), 0, HOST
    for place, device in enumerate(order):
        end = max(end for end in range(first + 1, reach.end(before, device, first) + 1) if end in starts[place + 1])
        stages.append(Stage(device, first, end - 1))
        first, before = end, device
    return tuple(stages)
