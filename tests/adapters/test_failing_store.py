"""The store that fails on order."""

from __future__ import annotations

import pytest
from store_support import end, lease, record

from poolmgr.adapters.store.failing import FailingStore, Failure
from poolmgr.adapters.store.memory import Medium, MemoryStore
from poolmgr.errors import EnvironmentFault, Reason


async def outcomes(store: FailingStore) -> str:
    """One letter for each of four changes: x for one that was refused."""
    letters = ""
    for change in (
        store.put_pool(record(1, "a")), store.put_state("a", "x"), store.delete_pool("a"), store.reserve_fences()
    ):  # fmt: skip
        try:
            await change
            letters += "."
        except EnvironmentFault as fault:
            letters += "x" if fault.reason is Reason.STORE_UNAVAILABLE else "?"
    return letters


@pytest.mark.parametrize(
    ("failure", "at", "expected"),
    [
        (Failure.DISK_FULL, None, "xxxx"),
        (Failure.DISK_FULL, 2, ".x.."),
        (Failure.DISK_FULL, 9, "...."),
        (Failure.DEAD_HANDLE, None, "xxxx"),
        (Failure.DEAD_HANDLE, 2, ".xxx"),
        (Failure.RECORDING, None, "...."),
    ],
)
async def test_the_changes_that_were_ordered_to_fail_do_and_no_others(failure: Failure, at: int | None, expected: str):
    assert await outcomes(FailingStore(MemoryStore(), failure, at)) == expected


@pytest.mark.parametrize("written", [False, True])
async def test_what_is_refused_is_done_underneath_only_when_that_was_ordered(written: bool):
    medium = Medium()
    store = FailingStore(MemoryStore(medium), Failure.DEAD_HANDLE, written=written)
    with pytest.raises(EnvironmentFault, match="until a restart"):
        await store.put_pool(record(1, "a"))
    assert (len(await store.load()) == 1) is written
    assert store.count == 1


@pytest.mark.parametrize("failure", [Failure.DISK_FULL, Failure.DEAD_HANDLE])
def test_leases_are_recorded_while_changes_fail(failure: Failure):
    medium = Medium()
    store = FailingStore(MemoryStore(medium), failure)
    with store.batch():
        store.record([("chat", lease("a")), ("chat", lease("b"))], [])
        store.record([], [end("a")])
    assert MemoryStore(medium).kept_leases().live == (("chat", lease("b")),)


@pytest.mark.parametrize("written", [False, True])
def test_records_that_fail_are_refused_whole_and_each_batch_is_one_of_them(written: bool):
    medium = Medium()
    store = FailingStore(MemoryStore(medium), Failure.RECORDING, 2, written=written)
    store.record([("chat", lease("a"))], [])

    def batch() -> None:
        with store.batch():
            store.record([("chat", lease("b"))], [])
            store.record([("chat", lease("c"))], [end("a")])

    with pytest.raises(EnvironmentFault, match="leases cannot be recorded"):
        batch()
    assert [each.lease_id for _, each in MemoryStore(medium).kept_leases().live] == (
        ["id-b", "id-c"] if written else ["id-a"]
    )
    batch()
    assert [each.lease_id for _, each in MemoryStore(medium).kept_leases().live] == ["id-b", "id-c"]
    assert store.count == 3


async def test_after_healing_nothing_fails():
    store = FailingStore(MemoryStore(), Failure.DEAD_HANDLE)
    assert await outcomes(store) == "xxxx"
    store.heal()
    assert await outcomes(store) == "...."
