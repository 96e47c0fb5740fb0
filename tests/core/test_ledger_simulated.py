"""No sequence of admissions promises more than there is, whatever the driver shows late and strangers take.

The judge knows no ledger: it is a device of single pages with owners. After each admission it lets everybody who was
promised memory take all of it, and looks whether the device runs out.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolmgr.core.memory import entry
from poolmgr.model.memory import LedgerEntry, Reserved

pytestmark = pytest.mark.behaviour("MEM-2")

PAGES = 40
STRANGER = "stranger"


@dataclass
class Engine:
    """`settled`: the step from which on looks see it READY, None before."""

    name: str
    promised: int
    settled: int | None = None


class Host:
    """Pages with owners, what they were at each step, and the engines that were admitted."""

    def __init__(self, ledger=entry, processes_first=True):
        self.ledger = ledger
        self.processes_first = processes_first
        self.pages: list[str] = [""] * PAGES
        self.past: list[tuple[str, ...]] = [tuple(self.pages)]
        self.engines: dict[str, Engine] = {}
        self.admissions = 0
        self.refusals = 0

    # The device.

    def take(self, owner: str, count: int) -> None:
        """As many as are free, at most."""
        for place in [i for i, who in enumerate(self.pages) if not who][:count]:
            self.pages[place] = owner

    def give(self, owner: str, count: int) -> None:
        for place in [i for i, who in enumerate(self.pages) if who == owner][:count]:
            self.pages[place] = ""

    def step(self) -> None:
        self.past.append(tuple(self.pages))

    # What is done on it.

    def ask(self, count: int, late: int, later: int) -> None:
        """Admits where the ledger lets it. The list of processes is `later` steps older than the free memory."""
        now = len(self.past) - 1
        free_at = max(0, now - late)
        listed_at = max(0, free_at - later)
        if not self.processes_first:
            free_at, listed_at = listed_at, free_at
        shown = self.past[listed_at]
        rows = [
            Reserved(one.name, self._reserved(one, shown, min(listed_at, free_at)), shown.count(one.name))
            for one in self.engines.values()
        ]
        found = self.ledger("GPU-a", PAGES, self.past[free_at].count(""), rows)
        if found.free_bytes is None or count > found.free_bytes:
            self.refusals += 1
            return
        name = f"engine-{self.admissions}"
        self.admissions += 1
        self.engines[name] = Engine(name, count)
        self.judge(self.past[free_at], min(listed_at, free_at))

    def _reserved(self, engine: Engine, shown, at: int) -> int:
        over = engine.settled is not None and engine.settled <= at
        return shown.count(engine.name) if over else engine.promised

    def judge(self, seen, at: int) -> None:
        """Lets all who were promised memory take it. What anybody took beyond that since we looked, nobody knows."""
        held = {STRANGER: min(seen.count(STRANGER), self.pages.count(STRANGER))}
        for one in self.engines.values():
            now, then = self.pages.count(one.name), seen.count(one.name)
            if one.settled is None:
                held[one.name] = max(one.promised, min(now, then))
            else:
                held[one.name] = min(now, then if one.settled <= at else max(one.promised, then))
        assert sum(held.values()) <= PAGES, f"{held} are promised or in use of {PAGES} pages"

    def grow(self, which: int, count: int) -> None:
        """An engine that loads takes no more than it was promised."""
        loading = [one for one in self.engines.values() if one.settled is None]
        if loading:
            one = loading[which % len(loading)]
            self.take(one.name, min(count, one.promised - self.pages.count(one.name)))

    def spill(self, which: int, count: int) -> None:
        """An engine takes what it was not promised."""
        if self.engines:
            self.take(list(self.engines)[which % len(self.engines)], count)

    def shrink(self, which: int, count: int) -> None:
        if self.engines:
            self.give(list(self.engines)[which % len(self.engines)], count)

    def ready(self, which: int) -> None:
        loading = [one for one in self.engines.values() if one.settled is None]
        if loading:
            loading[which % len(loading)].settled = len(self.past)  # seen by the looks after this step

    def stop(self, which: int) -> None:
        if self.engines:
            one = self.engines.pop(list(self.engines)[which % len(self.engines)])
            self.give(one.name, PAGES)


def act(host: Host, what: str, which: int, count: int, late: int, later: int) -> None:
    deeds = {
        "ask": lambda: host.ask(count, late, later),
        "grow": lambda: host.grow(which, count),
        "spill": lambda: host.spill(which, count),
        "shrink": lambda: host.shrink(which, count),
        "ready": lambda: host.ready(which),
        "stop": lambda: host.stop(which),
        "come": lambda: host.take(STRANGER, count),
        "go": lambda: host.give(STRANGER, count),
    }
    deeds[what]()


def run(host: Host, script, late_lists: bool) -> Host:
    """`late_lists`: the list of processes may be older than the free memory; nobody gives memory back then, for what
    one gave and a stranger took in between is nowhere to be seen."""
    for what, which, count, late, later in script:
        if not (late_lists and what in GIVING):
            act(host, what, which, count, late, later if late_lists else 0)
        host.step()
    return host


GIVING = {"shrink", "stop"}
OURS = ["ask", "ask", "grow", "grow", "spill", "ready"]
WHAT = [*OURS, "shrink", "stop", "come", "go"]
scripts = st.lists(
    st.tuples(st.sampled_from(WHAT), st.integers(0, 5), st.integers(1, PAGES), st.integers(0, 3), st.integers(0, 3)),
    max_size=40,
)


@given(scripts, st.booleans())
def test_whatever_comes_late_and_whoever_takes_memory_nothing_is_promised_twice(script, late_lists):
    run(Host(), script, late_lists)


def random_scripts(count: int, what=WHAT):
    for seed in range(count):
        rng = random.Random(seed)
        yield (
            [
                (rng.choice(what), rng.randrange(6), rng.randrange(1, 16), rng.randrange(4), rng.randrange(4))
                for _ in range(40)
            ],
            bool(seed % 2),
        )


def test_the_scripts_admit_and_refuse():
    hosts = [run(Host(), script, late) for script, late in random_scripts(50)]
    assert sum(host.admissions for host in hosts) > 50 and sum(host.refusals for host in hosts) > 50


def only_reported(device_id, total, free, rows):
    return LedgerEntry(device_id, total, None, 0, 0, None, free)


def only_promised(device_id, total, free, rows):
    return LedgerEntry(device_id, total, None, 0, 0, None, total - sum(row.reserved_bytes for row in rows))


def in_one_sum(device_id, total, free, rows):
    """Takes what one took beyond its promise for another's."""
    pending = max(0, sum(row.reserved_bytes - row.measured_bytes for row in rows))
    return LedgerEntry(device_id, total, None, 0, 0, None, free - pending)


def without_the_total(device_id, total, free, rows):
    pending = sum(max(0, row.reserved_bytes - row.measured_bytes) for row in rows)
    return LedgerEntry(device_id, total, None, 0, 0, None, free - pending)


def one_page_too_many(device_id, total, free, rows):
    right = entry(device_id, total, free, rows)
    return replace(right, free_bytes=right.free_bytes + 1)


def over_promises(make, scripts) -> bool:
    try:
        for script, late in scripts:
            run(make(), script, late)
    except AssertionError as caught:
        return "promised or in use" in str(caught)
    return False


@pytest.mark.parametrize("wrong", [only_reported, only_promised, in_one_sum, one_page_too_many])
def test_a_ledger_that_leaves_out_one_half_is_caught(wrong):
    assert over_promises(lambda: Host(wrong), random_scripts(400))
    assert not over_promises(Host, random_scripts(400))


def late_and_ours():
    return ((script, True) for script, _ in random_scripts(400, OURS))


def test_free_memory_that_is_older_than_the_list_of_processes_is_caught():
    late = [(script, True) for script, _ in random_scripts(400)]
    assert over_promises(lambda: Host(processes_first=False), late)
    assert not over_promises(Host, late)


def test_free_memory_that_lags_promises_nothing_twice_where_there_are_no_strangers():
    assert not over_promises(lambda: Host(processes_first=False), late_and_ours())
    assert over_promises(lambda: Host(without_the_total, processes_first=False), late_and_ours())
