"""What every Store keeps to: the one on a disk, the one in memory, and one that fails now and then between failures."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from poolmgr.adapters.store.failing import FailingStore, Failure
from poolmgr.adapters.store.limits import (
    FENCE_BLOCK,
    KEPT_ENDED,
    KEPT_GENERATIONS,
    UNKNOWN_SECONDS,
    first_epoch,
    next_fences,
)
from poolmgr.adapters.store.memory import Medium, MemoryStore
from poolmgr.adapters.store.sqlite import open_store
from poolmgr.errors import EnvironmentFault, Reason
from poolmgr.model.lease import EndedLease, KeptLeases, Lease, LeaseOutcome
from poolmgr.model.pool import (
    EngineName,
    Generation,
    ModelSpec,
    Origin,
    PoolRecord,
    PoolSpec,
    ProbeKind,
    ProbeSpec,
    RestartMode,
    StoredPool,
    SupervisionOverrides,
)
from poolmgr.ports import Store

WALL = 1e9  # before 2024, so that a new store is in its first epoch
FULL_SPEC = PoolSpec(
    engine=EngineName.LLAMACPP,
    model=ModelSpec(path="/models/ä \0.gguf", digest="sha256:" + "0" * 64, context_length=4096, cache_type="q8_0"),
    command="llama-server",
    args=("--flag", "", "with 'quotes' and \"more\""),
    env={"B": "2", "A": "1"},
    device_mask="none",
    slots=7,
    port=8080,
    readiness=ProbeSpec(kind=ProbeKind.HTTP, path="/health", interval=0.25),
    liveness=ProbeSpec(kind=ProbeKind.SYNTHETIC, body='{"n": 1}', expect="1", timeout=1.5, failure_threshold=2),
    restart=RestartMode.ALWAYS,
    supervision=SupervisionOverrides(backoff_max_ms=2000, restart_rate_limit=3),
    drain_deadline=12.5,
    preload=True,
    priority=-3,
    labels={"team": "search"},
)


class Threads:
    """The Workers port on asyncio's own threads."""

    async def run(self, function, *args):
        return await asyncio.to_thread(function, *args)


@dataclass
class Place:
    """Somewhere that a store can be opened on, again and again. `boot` and the clocks are the host's."""

    opener: Callable[[Place], Awaitable[Store]]
    boot: str = "boot-1"
    wall: float = WALL
    now: float = 500.0
    opened: list[Store] = field(default_factory=list)

    async def open(self) -> Store:
        store = await self.opener(self)
        self.opened.append(store)
        return store


@pytest.fixture(params=["sqlite", "memory", "failing"])
async def place(request, tmp_path: Path) -> AsyncIterator[Place]:
    medium = Medium()

    async def memory(at: Place) -> Store:
        medium.boot = at.boot
        return MemoryStore(medium, lambda: at.wall, lambda: at.now)

    async def sqlite(at: Place) -> Store:
        return await open_store(tmp_path / "state", Threads(), lambda: at.wall, boot_id=at.boot, now=lambda: at.now)

    async def failing(at: Place) -> Store:
        return FailingStore(await memory(at), Failure.DISK_FULL, at=1_000_000)

    place = Place({"memory": memory, "sqlite": sqlite, "failing": failing}[request.param])
    yield place
    for store in place.opened:
        store.close()


def record(pool_id: str, generation: int = 1, **changes) -> PoolRecord:
    # The later in the alphabet, the older: no other order passes for the order of ids.
    return PoolRecord(pool_id, replace(FULL_SPEC, **changes), generation, Origin.API, 1234.5 - ord(pool_id[0]))


def stored(*records: PoolRecord, state: str = "", times: tuple[float, ...] = ()) -> StoredPool:
    last = records[-1]
    made = times or (WALL,) * len(records)
    generations = tuple(Generation(each.generation, each.spec, at) for each, at in zip(records, made, strict=True))
    return StoredPool(last.pool_id, last.origin, last.create_time, generations, state)


def lease(
    name: str,
    fence: int = 1,
    *,
    holder: str = "holder ä",
    expires: float = 1234.5678,
    request_id: str = "request",
) -> Lease:
    endpoint = "http://127.0.0.1:8080"
    return Lease(f"id-{name}", f"token-{name}", holder, 15.0, 3, fence, endpoint, expires, request_id)


def end(of: Lease, outcome: LeaseOutcome = LeaseOutcome.RELEASED) -> EndedLease:
    return EndedLease(of.lease_id, of.token, outcome)


async def test_a_new_store_is_empty_in_its_first_epoch_and_has_nothing_to_warn_of(place: Place):
    store = await place.open()
    assert list(await store.load()) == []
    assert store.epoch == 1
    assert list(store.warnings) == []


async def test_every_opening_is_a_higher_epoch(place: Place):
    epochs = []
    for _ in range(3):
        store = await place.open()
        epochs.append(store.epoch)
        store.close()
    assert epochs == [1, 2, 3]


async def test_a_pool_is_found_after_reopening_as_it_was_put(place: Place):
    first = await place.open()
    put = PoolRecord("chat", FULL_SPEC, 3, Origin.CONFIG, 1_700_000_000.25)
    await first.put_pool(put, '{"breaker": "ÖPEN"}')
    first.close()
    assert list(await (await place.open()).load()) == [stored(put, state='{"breaker": "ÖPEN"}')]


@pytest.mark.behaviour("DRN-4")
async def test_pools_come_by_id_each_with_its_generations_oldest_first(place: Place):
    store = await place.open()
    put = [record(*each, slots=each[1]) for each in [("b", 1), ("b", 2), ("a", 10), ("a", 9), ("c", 1)]]
    for each in put:
        await store.put_pool(each)
    b1, b2, a10, a9, c1 = put
    assert list(await store.load()) == [stored(a9, a10), stored(b1, b2), stored(c1)]


@pytest.mark.behaviour("DRN-4")
async def test_the_last_twenty_generations_of_each_pool_are_kept(place: Place):
    store = await place.open()
    for generation in range(1, 26):
        await store.put_pool(record("a", generation))
    await store.put_pool(record("b"))
    first, second = await store.load()
    assert KEPT_GENERATIONS == 20
    assert [each.generation for each in first.generations] == list(range(6, 26))
    assert second == stored(record("b"))


@pytest.mark.behaviour("DRN-4")
async def test_the_generation_that_a_pool_went_back_to_is_kept_however_many_follow(place: Place):
    store = await place.open()
    for generation in range(1, 26):
        await store.put_pool(record("a", generation), keep=2)
    (pool,) = await store.load()
    assert [each.generation for each in pool.generations] == [2, *range(6, 26)]


async def test_putting_a_generation_that_is_too_old_to_be_kept_changes_nothing(place: Place):
    store = await place.open()
    for generation in range(2, 22):
        await store.put_pool(record("a", generation))
    before = list(await store.load())
    await store.put_pool(record("a", 1))
    assert list(await store.load()) == before


async def test_a_generation_has_the_time_of_its_first_put_and_a_put_that_is_tried_again_counts_once(place: Place):
    store = await place.open()
    await store.put_pool(record("a"))
    place.wall = WALL + 5
    await store.put_pool(record("a"))
    await store.put_pool(record("a", 2))
    assert list(await store.load()) == [stored(record("a"), record("a", 2), times=(WALL, WALL + 5))]


async def test_what_a_pool_remembers_is_replaced_with_or_without_a_generation_and_kept_when_none_is_given(place: Place):
    store = await place.open()
    states = []
    await store.put_pool(record("a"), "one")
    for change in (
        store.put_pool(record("a", 2)),
        store.put_pool(record("a", 3), "two"),
        store.put_state("a", "three"),
        store.put_state("a", ""),
    ):
        await change
        states.append((await store.load())[0].state)
    assert states == ["one", "two", "three", ""]


async def test_what_a_pool_that_is_not_stored_remembers_is_not_kept(place: Place):
    store = await place.open()
    await store.put_pool(record("a"))
    await store.put_state("b", "state")
    assert list(await store.load()) == [stored(record("a"))]


async def test_a_deleted_pool_is_gone_after_reopening_and_the_others_stay(place: Place):
    store = await place.open()
    for pool_id in ("a", "b"):
        for generation in (1, 2):
            await store.put_pool(record(pool_id, generation))
    await store.delete_pool("a")
    store.close()
    assert list(await (await place.open()).load()) == [stored(record("b"), record("b", 2))]


async def test_a_pool_made_again_after_its_deletion_has_nothing_of_the_old_one(place: Place):
    store = await place.open()
    await store.put_pool(record("a", 5), "old")
    await store.delete_pool("a")
    await store.put_pool(record("a", 1))
    assert list(await store.load()) == [stored(record("a", 1))]


async def test_deleting_a_pool_that_is_not_there_changes_nothing(place: Place):
    store = await place.open()
    await store.put_pool(record("a"))
    await store.delete_pool("b")
    assert list(await store.load()) == [stored(record("a"))]


async def test_changes_made_at_once_are_all_kept_in_the_order_of_the_calls(place: Place):
    store = await place.open()
    changes = [store.put_pool(record(f"p{number}"), f"state {number}") for number in range(8)]
    await asyncio.gather(
        *changes, store.delete_pool("p3"), store.put_state("p3", "x"), store.put_pool(record("p4", 2)),
        store.put_state("p5", "first"), store.put_state("p5", "last"),
    )  # fmt: skip
    found = [(kept.pool_id, kept.generations[-1].generation, kept.state) for kept in await store.load()]
    assert found == [
        ("p0", 1, "state 0"), ("p1", 1, "state 1"), ("p2", 1, "state 2"), ("p4", 2, "state 4"),
        ("p5", 1, "last"), ("p6", 1, "state 6"), ("p7", 1, "state 7"),
    ]  # fmt: skip


async def test_a_load_sees_the_changes_that_were_asked_for_before_it_and_none_after(place: Place):
    store = await place.open()
    _, found, _ = await asyncio.gather(store.put_pool(record("a")), store.load(), store.put_pool(record("b")))
    assert [each.pool_id for each in found] == ["a"]


# Fencing numbers.


@pytest.mark.behaviour("LEASE-2")
async def test_fencing_numbers_rise_over_blocks_and_restarts_whatever_the_wall_clock_does(place: Place):
    blocks = []
    for wall in (WALL, WALL, WALL + 60, WALL - 1e6, -5.0):
        place.wall = wall
        store = await place.open()
        blocks += await asyncio.gather(store.reserve_fences(), store.reserve_fences())
        store.close()
    assert all(len(block) == FENCE_BLOCK for block in blocks)
    assert all(one.stop <= other.start for one, other in itertools.pairwise(blocks))
    assert blocks[4].start == int((WALL + 60) * 1000) * FENCE_BLOCK


@pytest.mark.behaviour("LEASE-2")
def test_fencing_numbers_fit_into_63_bits_until_after_the_year_2200_and_a_block_for_every_moment():
    year_2200 = 7_258_118_400.0
    for wall in (0.0, WALL, year_2200, 1e12, float(2**60)):
        assert 0 < next_fences(1, wall).stop < 2**63
    assert next_fences(1, year_2200).start == int(year_2200 * 1000) * FENCE_BLOCK
    assert next_fences(1, WALL + 0.001).start == next_fences(1, WALL).stop


def test_an_epoch_that_begins_anew_counts_the_minutes_since_2024_and_stays_below_its_limit():
    assert first_epoch(1_704_067_200 + 60 * 17) == 17
    assert [first_epoch(wall) for wall in (-1e9, 0.0, 1_704_067_200.0)] == [1, 1, 1]
    assert first_epoch(1e13) < 2**24


# Leases.


@pytest.mark.behaviour("LEASE-4")
async def test_a_recorded_grant_is_found_after_reopening_in_the_same_boot_as_it_was(place: Place):
    store = await place.open()
    granted = [("chat", lease("a", 2**62)), ("ä", lease("b", 5, request_id="", holder="x" * 300))]
    store.record(granted, [])
    store.close()
    assert (await place.open()).kept_leases().live == tuple(granted)


@pytest.mark.behaviour("LEASE-6")
async def test_an_ended_lease_is_no_longer_live_and_its_outcome_is_kept(place: Place):
    store = await place.open()
    a, b, c = lease("a"), lease("b"), lease("c")
    store.record([("chat", a), ("chat", b)], [])
    store.record([("chat", c)], [end(a), end(b, LeaseOutcome.EXPIRED)])
    store.close()
    kept = (await place.open()).kept_leases()
    assert kept.live == (("chat", c),)
    assert kept.ended == (end(a), end(b, LeaseOutcome.EXPIRED))


async def test_a_grant_and_its_end_in_one_call_is_an_end(place: Place):
    store = await place.open()
    store.record([("chat", lease("a"))], [end(lease("a"))])
    store.close()
    kept = (await place.open()).kept_leases()
    assert kept.live == () and kept.ended == (end(lease("a")),)


async def test_every_outcome_is_kept_as_it_was(place: Place):
    store = await place.open()
    ends = tuple(end(lease(outcome.value), outcome) for outcome in LeaseOutcome)
    store.record([], ends)
    store.close()
    assert (await place.open()).kept_leases().ended == ends


async def test_a_lease_recorded_again_is_one_lease_with_what_was_recorded_last(place: Place):
    store = await place.open()
    store.record([("chat", lease("a", expires=1.0))], [])
    store.record([("chat", lease("a", expires=2.0))], [])
    store.close()
    assert (await place.open()).kept_leases().live == (("chat", lease("a", expires=2.0)),)


async def test_the_newest_1024_ended_leases_are_kept_oldest_first(place: Place):
    store = await place.open()
    ends = [end(lease(str(number))) for number in range(KEPT_ENDED + 10)]
    for each in ends:
        store.record([], [each])
    store.close()
    assert KEPT_ENDED == 1024
    assert (await place.open()).kept_leases().ended == tuple(ends[10:])


async def test_leases_outlive_any_number_of_daemons_and_each_is_told_what_the_one_before_it_left(place: Place):
    for number in range(4):
        store = await place.open()
        assert [each.lease_id for _, each in store.kept_leases().live] == [f"id-{n}" for n in range(number)]
        store.record([("chat", lease(str(number)))], [])
        store.close()


@pytest.mark.behaviour("LEASE-3")
async def test_another_boot_voids_all_leases_and_knows_that(place: Place):
    store = await place.open()
    store.record([("chat", lease("a"))], [end(lease("b"))])
    store.close()
    place.boot = "boot-2"
    store = await place.open()
    kept = store.kept_leases()
    assert kept.known and kept.live == () and kept.ended == ()
    store.close()
    place.boot = "boot-1"
    assert (await place.open()).kept_leases().live == ()


async def test_nobody_knows_the_leases_of_a_new_place_until_all_that_may_be_out_are_over(place: Place):
    known = []
    for place.now in (500.0, 501.0, 500.0 + UNKNOWN_SECONDS - 0.5, 500.0 + UNKNOWN_SECONDS):
        store = await place.open()
        known.append(store.kept_leases().known)
        store.close()
    assert known == [False, False, False, True]


async def test_once_somebody_vouches_that_no_other_leases_are_out_they_are_known_to_the_next_store(place: Place):
    store = await place.open()
    store.record([("chat", lease("a"))], [])
    store.vouch_for_leases()
    assert not store.kept_leases().known
    store.close()
    kept = (await place.open()).kept_leases()
    assert kept.known and kept.live == (("chat", lease("a")),)


async def test_a_batch_is_written_at_its_end_and_batches_nest(place: Place):
    store = await place.open()
    with store.batch():
        store.record([("chat", lease("a"))], [])
        with store.batch():
            store.record([("chat", lease("b"))], [])
        store.record([("chat", lease("c"))], [end(lease("a"))])
    store.close()
    kept = (await place.open()).kept_leases()
    assert kept.live == (("chat", lease("b")), ("chat", lease("c"))) and kept.ended == (end(lease("a")),)


async def test_what_was_recorded_before_a_batch_broke_off_is_written_too(place: Place):
    store = await place.open()

    def break_off() -> None:
        with store.batch():
            store.record([("chat", lease("a"))], [])
            raise KeyError

    with pytest.raises(KeyError):
        break_off()
    store.record([("chat", lease("b"))], [])
    store.close()
    assert len((await place.open()).kept_leases().live) == 2


# The end.


async def test_a_closed_store_refuses_and_closing_again_does_nothing(place: Place):
    store = await place.open()
    store.close()
    store.close()
    calls = (store.load(), store.put_pool(record("a")), store.put_state("a", "x"), store.delete_pool("a"))
    for call in (*calls, store.reserve_fences()):
        with pytest.raises(EnvironmentFault) as refused:
            await call
        assert refused.value.reason is Reason.STORE_UNAVAILABLE
    with pytest.raises(EnvironmentFault) as refused:
        store.record([("chat", lease("a"))], [])
    assert refused.value.reason is Reason.STORE_UNAVAILABLE


# The suite itself: each of these breaks one rule, and the test that states the rule has to say so.


class Lossy(MemoryStore):
    """Keeps less of an epoch's changes than it acknowledged."""

    async def delete_pool(self, pool_id: str) -> None:
        pass


class Stale(MemoryStore):
    async def put_state(self, pool_id: str, state: str) -> None:
        if state:
            await super().put_state(pool_id, state)


class Repeating(MemoryStore):
    async def reserve_fences(self) -> range:
        block = await super().reserve_fences()
        self._medium.fences -= 1
        return block


class Undying(MemoryStore):
    def record(self, granted: Sequence[tuple[str, Lease]], ended: Sequence[EndedLease]) -> None:
        super().record([], ended)
        super().record(granted, [])


class Endless(MemoryStore):
    def record(self, granted: Sequence[tuple[str, Lease]], ended: Sequence[EndedLease]) -> None:
        super().record(granted, [])


class Late(MemoryStore):
    @contextmanager
    def batch(self) -> Iterator[None]:
        yield
        self._gathered.clear()

    def record(self, granted: Sequence[tuple[str, Lease]], ended: Sequence[EndedLease]) -> None:
        self._gathered.append((granted, ended))


class Credulous(MemoryStore):
    def kept_leases(self) -> KeptLeases:
        return replace(super().kept_leases(), known=True)


class Bootless(MemoryStore):
    def __init__(self, medium: Medium, *clocks: Callable[[], float]) -> None:
        boot, medium.boot = medium.boot, "always the same"
        super().__init__(medium, *clocks)
        medium.boot = boot


BROKEN = [
    (Lossy, test_a_deleted_pool_is_gone_after_reopening_and_the_others_stay),
    (Stale, test_what_a_pool_remembers_is_replaced_with_or_without_a_generation_and_kept_when_none_is_given),
    (Repeating, test_fencing_numbers_rise_over_blocks_and_restarts_whatever_the_wall_clock_does),
    (Undying, test_a_grant_and_its_end_in_one_call_is_an_end),
    (Endless, test_an_ended_lease_is_no_longer_live_and_its_outcome_is_kept),
    (Late, test_a_batch_is_written_at_its_end_and_batches_nest),
    (Credulous, test_nobody_knows_the_leases_of_a_new_place_until_all_that_may_be_out_are_over),
    (Bootless, test_another_boot_voids_all_leases_and_knows_that),
]


@pytest.mark.parametrize(("broken", "rule"), BROKEN, ids=[broken.__name__ for broken, _ in BROKEN])
async def test_a_store_that_breaks_a_rule_fails_the_test_that_states_it(broken: type[MemoryStore], rule):
    medium = Medium()

    async def opener(at: Place) -> Store:
        medium.boot = at.boot
        return broken(medium, lambda: at.wall, lambda: at.now)

    with pytest.raises(AssertionError):
        await rule(Place(opener))
