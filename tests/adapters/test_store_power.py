"""The real Store on a disk that loses power, fills up or fails, at every call that SQLite makes of it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import apsw
import pytest
from store_support import WALL, Disk, full, io_error, on, opened, record

from poolmgr.adapters.store.memory import MemoryStore
from poolmgr.errors import EnvironmentFault, Reason
from poolmgr.model.pool import StoredPool
from poolmgr.ports import Store

Step = Callable[[Store], Coroutine[Any, Any, Any]]

CUTS = 60
STEPS = 14


@cache
def script(seed: int) -> list[list[Step]]:
    """Changes in the groups that are asked for at once."""
    chance = random.Random(seed)
    steps: list[Step] = []
    for number in range(1, STEPS + 1):
        pool_id = chance.choice("abc")
        steps.append(
            chance.choice([
                lambda store, n=number, p=pool_id: store.put_pool(record(n, p), f"state {n} " + "x" * 3000),
                lambda store, n=number, p=pool_id: store.put_pool(record(n, p)),
                lambda store, n=number, p=pool_id: store.put_state(p, f"later {n}"),
                lambda store, n=number, p=pool_id: store.delete_pool(p),
            ])
        )  # fmt: skip
    groups = []
    while steps:
        size = chance.randint(1, 4)
        groups.append(steps[:size])
        steps = steps[size:]
    return groups


async def model(steps: Sequence[Step]) -> list[StoredPool]:
    store = MemoryStore(wall=lambda: WALL)
    for step in steps:
        await step(store)
    return list(await store.load())


@dataclass
class Run:
    """What one life of a store was told: `done` in order, `refused` in order, and whether it opened at all."""

    opened: bool = False
    epoch: int = 0
    done: list[Step] = field(default_factory=list)
    refused: list[Step] = field(default_factory=list)
    fences: list[range] = field(default_factory=list)


async def live(directory: Path, groups: Sequence[Sequence[Step]]) -> Run:
    run = Run()
    try:
        store = await opened(directory)
    except EnvironmentFault:
        return run
    run.opened, run.epoch = True, store.epoch
    for group in groups:
        results = await asyncio.gather(*[step(store) for step in group], return_exceptions=True)
        for step, result in zip(group, results, strict=True):
            assert result is None or result.reason is Reason.STORE_UNAVAILABLE
            (run.done if result is None else run.refused).append(step)
        try:
            run.fences.append(await store.reserve_fences())
        except EnvironmentFault:
            pass
    store.close()
    return run


def at_call(number: int, error: Callable[[], apsw.Error], *whats: str) -> Callable[[str, str, int], apsw.Error | None]:
    """The `number`th call of these kinds fails, and no other."""
    seen = [0]

    def fail(what: str, name: str, _: int) -> apsw.Error | None:
        seen[0] += what in whats
        return error() if what in whats and seen[0] == number else None

    return fail


async def cut_power(directory: Path, seed: int, honest: bool) -> tuple[Run, list[StoredPool], Sequence[str], int]:
    """Runs a script until the power fails at some call; what the next start finds, its warnings and its epoch."""
    disk = Disk(buffered=True, honest=honest, seed=seed)
    when = random.Random(seed).randint(1, 200)
    disk.fail = lambda what, name, number: io_error() if number >= when else None
    with on(disk):
        run = await live(directory, script(seed))
        disk.cut()
    store = await opened(directory)
    block = await store.reserve_fences()
    assert all(block.start >= before.stop for before in run.fences) or not honest
    found = list(await store.load()), store.warnings, store.epoch
    store.close()
    return run, *found


@pytest.mark.behaviour("LEASE-2")
async def test_what_was_acknowledged_survives_a_power_cut_at_any_call_and_nothing_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("poolmgr.adapters.store.database.CHECKPOINT_PAGES", 12)
    lives = 0
    for seed in range(CUTS):
        run, found, warnings, epoch = await cut_power(tmp_path / str(seed), seed, honest=True)
        steps = [step for group in script(seed) for step in group]
        assert not run.opened or [*run.done, *run.refused] == steps
        possible = [await model([*run.done, *run.refused[:more]]) for more in range(len(run.refused) + 1)]
        assert found in possible, f"seed {seed}"
        assert list(warnings) == [], f"seed {seed}"
        assert epoch > run.epoch
        lives += run.opened and 0 < len(run.done) < STEPS
    assert lives >= CUTS // 4  # cut in the middle of its changes


async def test_a_disk_that_lies_about_its_syncs_loses_changes_and_the_loss_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("poolmgr.adapters.store.database.CHECKPOINT_PAGES", 12)
    losses = 0
    for seed in range(40):
        run, found, warnings, _ = await cut_power(tmp_path / str(seed), seed, honest=False)
        possible = [await model([*run.done, *run.refused[:more]]) for more in range(len(run.refused) + 1)]
        if run.opened and found not in possible:
            losses += 1
            assert list(warnings) != [], f"seed {seed}"
    assert losses >= 10


async def calls_of(directory: Path, groups: Sequence[Sequence[Step]], *whats: str) -> int:
    with on(Disk()) as disk:
        await live(directory, groups)
    return sum(what in whats for what, _ in disk.calls)


async def test_a_disk_that_is_full_at_any_one_write_refuses_that_and_keeps_all_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("poolmgr.adapters.store.database.CHECKPOINT_PAGES", 12)
    groups = script(3)
    writes = await calls_of(tmp_path / "clean", groups, "write")
    refused = 0
    for number in range(1, writes + 1):
        directory = tmp_path / str(number)
        with on(Disk(fail=at_call(number, full, "write"))):
            run = await live(directory, groups)
        store = await opened(directory)
        assert list(await store.load()) == await model(run.done), f"write {number}"
        assert list(store.warnings) == []
        assert store.epoch > run.epoch
        store.close()
        refused += bool(run.refused) or not run.opened
    assert refused >= writes // 2


@pytest.mark.parametrize("what", ["write", "sync", "truncate", "read"])
async def test_a_disk_that_fails_at_any_one_call_keeps_what_was_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
):
    monkeypatch.setattr("poolmgr.adapters.store.database.CHECKPOINT_PAGES", 12)
    groups = script(5)
    codes = {
        "write": apsw.SQLITE_IOERR_WRITE,
        "sync": apsw.SQLITE_IOERR_FSYNC,
        "truncate": apsw.SQLITE_IOERR_TRUNCATE,
        "read": apsw.SQLITE_IOERR_READ,
    }
    calls = await calls_of(tmp_path / "clean", groups, what)
    for number in range(1, calls + 1):
        directory = tmp_path / str(number)
        with on(Disk(fail=at_call(number, lambda: io_error(codes[what]), what))):
            run = await live(directory, groups)
        store = await opened(directory)
        possible = [await model([*run.done, *run.refused[:more]]) for more in range(len(run.refused) + 1)]
        assert list(await store.load()) in possible, f"{what} {number}"
        assert list(store.warnings) == [], f"{what} {number}"
        assert store.epoch > run.epoch
        store.close()
