"""What every Store keeps to, the one on a disk and the one in memory alike."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from poolmgr.adapters.store.memory import Medium, MemoryStore
from poolmgr.adapters.store.sqlite import open_store
from poolmgr.errors import EnvironmentFault, Reason
from poolmgr.model.pool import (
    EngineName,
    ModelSpec,
    Origin,
    PoolRecord,
    PoolSpec,
    ProbeKind,
    ProbeSpec,
    RestartMode,
    SupervisionOverrides,
)
from poolmgr.ports import Store

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
    """Somewhere that a store can be opened on, again and again."""

    open_one: Callable[[], Awaitable[Store]]
    opened: list[Store] = field(default_factory=list)

    async def open(self) -> Store:
        store = await self.open_one()
        self.opened.append(store)
        return store


@pytest.fixture(params=["sqlite", "memory"])
async def place(request, tmp_path: Path) -> AsyncIterator[Place]:
    medium = Medium()

    async def memory() -> Store:
        return MemoryStore(medium)

    async def sqlite() -> Store:
        return await open_store(tmp_path / "state", Threads(), lambda: 1e9)

    place = Place(memory if request.param == "memory" else sqlite)
    yield place
    for store in place.opened:
        store.close()


def record(pool_id: str, generation: int = 1, **changes) -> PoolRecord:
    # The later in the alphabet, the older: no other order passes for the order of ids.
    return PoolRecord(pool_id, replace(FULL_SPEC, **changes), generation, Origin.API, 1234.5 - ord(pool_id[0]))


async def test_a_new_store_is_empty_and_in_its_first_epoch(place: Place):
    store = await place.open()
    assert list(await store.load()) == []
    assert store.epoch == 1


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
    await first.put_pool(put)
    first.close()
    assert list(await (await place.open()).load()) == [put]


async def test_pools_come_by_id_each_with_its_newest_generation(place: Place):
    store = await place.open()
    for pool_id, generation in [("b", 1), ("b", 2), ("a", 9), ("a", 10), ("c", 1)]:
        await store.put_pool(record(pool_id, generation, slots=generation))
    assert list(await store.load()) == [record("a", 10, slots=10), record("b", 2, slots=2), record("c", 1, slots=1)]


async def test_putting_an_older_generation_again_does_not_bring_it_back(place: Place):
    store = await place.open()
    await store.put_pool(record("a", 2))
    await store.put_pool(record("a", 1))
    assert [kept.generation for kept in await store.load()] == [2]


async def test_a_put_that_is_tried_again_counts_once(place: Place):
    store = await place.open()
    await store.put_pool(record("a"))
    await store.put_pool(record("a"))
    assert list(await store.load()) == [record("a")]


async def test_a_deleted_pool_is_gone_after_reopening_and_the_others_stay(place: Place):
    store = await place.open()
    for pool_id in ("a", "b"):
        for generation in (1, 2):
            await store.put_pool(record(pool_id, generation))
    await store.delete_pool("a")
    store.close()
    assert list(await (await place.open()).load()) == [record("b", 2)]


async def test_a_pool_made_again_after_its_deletion_has_no_old_generations(place: Place):
    store = await place.open()
    await store.put_pool(record("a", 5))
    await store.delete_pool("a")
    await store.put_pool(record("a", 1))
    assert list(await store.load()) == [record("a", 1)]


async def test_deleting_a_pool_that_is_not_there_changes_nothing(place: Place):
    store = await place.open()
    await store.put_pool(record("a"))
    await store.delete_pool("b")
    assert list(await store.load()) == [record("a")]


async def test_changes_made_at_once_are_all_kept_in_the_order_of_the_calls(place: Place):
    store = await place.open()
    changes = [store.put_pool(record(f"p{number}")) for number in range(8)]
    await asyncio.gather(*changes, store.delete_pool("p3"), store.put_pool(record("p4", 2)))
    assert [(kept.pool_id, kept.generation) for kept in await store.load()] == [
        ("p0", 1), ("p1", 1), ("p2", 1), ("p4", 2), ("p5", 1), ("p6", 1), ("p7", 1)
    ]  # fmt: skip


async def test_a_closed_store_refuses_and_closing_again_does_nothing(place: Place):
    store = await place.open()
    store.close()
    store.close()
    for call in (store.load(), store.put_pool(record("a")), store.delete_pool("a")):
        with pytest.raises(EnvironmentFault) as refused:
            await call
        assert refused.value.reason is Reason.STORE_UNAVAILABLE
