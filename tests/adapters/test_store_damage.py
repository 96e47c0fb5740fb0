"""A database that is ours and damaged: it is put aside whole, and what can be read of it lives on."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
from pathlib import Path

import apsw
import pytest
from store_support import WALL, end, lease, newest, opened, raw, record

from poolmgr.adapters.store import repair, schema
from poolmgr.adapters.store.faults import DATABASE
from poolmgr.errors import EnvironmentFault, Reason
from poolmgr.model.pool import StoredPool

ASIDE = f"{DATABASE}.damaged-{int(WALL)}"


async def filled(directory: Path, crashed: Path | None = None) -> list[StoredPool]:
    """A state directory that was used and left, and what is in it; `crashed`: as it would be after a SIGKILL."""
    (await opened(directory)).close()
    store = await opened(directory)
    for pool_id in ("a", "b", "c"):
        for generation in (1, 2, 3):
            await store.put_pool(record(generation, pool_id), f"state of {pool_id} at {generation}")
    await store.reserve_fences()
    store.record([("a", lease("x"))], [end("y")])
    found = list(await store.load())
    if crashed is not None:
        shutil.copytree(directory, crashed)
    store.close()
    return found


@pytest.fixture
async def state_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "state"
    await filled(directory)
    return directory


def change(state_dir: Path, statement: str) -> None:
    with raw(state_dir) as connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        connection.execute(statement)


def fill_page(state_dir: Path, table: str) -> None:
    with raw(state_dir) as connection:
        page: int = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).get
        size: int = connection.pragma("page_size")
        connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    content = bytearray((state_dir / DATABASE).read_bytes())
    content[size * (page - 1) : size * page] = b"\xff" * size
    (state_dir / DATABASE).write_bytes(content)


def aside(state_dir: Path) -> dict[str, bytes]:
    """What was put aside, but for the index of a WAL, which is scratch of whoever opened it last."""
    names = [path for path in state_dir.glob("*.damaged-*") if not path.name.endswith("-shm")]
    return {path.name: path.read_bytes() for path in names}


def cut(state_dir: Path, size: int) -> None:
    os.truncate(state_dir / DATABASE, size)
    (state_dir / f"{DATABASE}-wal").write_bytes(b"")


WHOLE = {
    "no database at all": lambda state_dir: (state_dir / DATABASE).write_bytes(b"no database at all\n" * 500),
    "a page of the schema": lambda state_dir: fill_page(state_dir, "schema_version"),
    "a page of generations": lambda state_dir: fill_page(state_dir, "generation"),
    "the counters": lambda state_dir: change(state_dir, "UPDATE instance SET fences = fences - 1"),
    "a version missing": lambda state_dir: change(state_dir, "DELETE FROM schema_version WHERE version = 1"),
    "a table that is gone": lambda state_dir: change(state_dir, "DROP TABLE schema_version"),
    "a column that is gone": lambda state_dir: change(state_dir, "ALTER TABLE pool DROP COLUMN state"),
    "a row of counters too few": lambda state_dir: change(state_dir, "DELETE FROM instance"),
    "a generation of no pool": lambda state_dir: change(state_dir, "DELETE FROM pool WHERE pool_id = 'b'"),
    "cut to half, without its WAL": lambda state_dir: cut(state_dir, 8192),
}


@pytest.mark.parametrize("case", WHOLE)
async def test_a_damaged_database_is_put_aside_byte_for_byte_and_the_daemon_begins_with_what_is_left(
    state_dir: Path, case: str
):
    WHOLE[case](state_dir)
    before = {f"{ASIDE}{each}": (state_dir / f"{DATABASE}{each}") for each in ("", "-wal")}
    before = {name: path.read_bytes() for name, path in before.items() if path.exists()}
    store = await opened(state_dir)
    (warning,) = store.warnings
    assert "was damaged" in warning and ASIDE in warning
    assert aside(state_dir) == before
    assert store.epoch == 3  # from the other copies
    assert {pool.pool_id for pool in await store.load()} <= {"a", "b", "c"}
    assert store.kept_leases().live == (("a", lease("x")),)
    await store.put_pool(record(1, "new"))
    kept = list(await store.load())
    store.close()
    store = await opened(state_dir)
    assert list(store.warnings) == []
    assert list(await store.load()) == kept
    store.close()


ROWS = {
    "a state": ("UPDATE pool SET state = 'state of b at 4' WHERE pool_id = 'b'", "ac", 1),
    "an origin": ("UPDATE pool SET origin = 'apj' WHERE pool_id = 'b'", "ac", 1),
    "a time": ("UPDATE pool SET create_time = 2.0 WHERE pool_id = 'b'", "ac", 1),
    "the newest spec": (
        "UPDATE generation SET spec = replace(spec, ':1,', ':2,') WHERE pool_id = 'b' AND generation = 3",
        "ac",
        1,
    ),
    "an older spec": ("UPDATE generation SET spec = '{' WHERE pool_id = 'b' AND generation = 2", "abc", 0),
    "a generation's number": ("UPDATE generation SET generation = 7 WHERE pool_id = 'b' AND generation = 3", "ac", 1),
    "a pool's name": ("UPDATE pool SET pool_id = 'B' WHERE pool_id = 'b'", "ac", 1),
    "no generation": ("DELETE FROM generation WHERE pool_id = 'b'", "ac", 1),
}


@pytest.mark.parametrize("case", ROWS)
async def test_a_row_that_is_not_as_it_was_written_is_found_and_all_other_pools_are_taken_over(
    state_dir: Path, case: str
):
    before = await opened(state_dir)
    pools = {pool.pool_id: pool for pool in await before.load()}
    before.close()
    statement, left, lost = ROWS[case]
    change(state_dir, statement)
    store = await opened(state_dir)
    (warning,) = store.warnings
    assert f"{len(left)} pools were taken over" in warning
    assert ("could not be read" in warning) is bool(lost)
    found = {pool.pool_id: pool for pool in await store.load()}
    assert "".join(found) == left
    assert found["a"] == pools["a"] and found["c"] == pools["c"]
    if "b" in found:  # without the older generation that could not be read
        assert [each.generation for each in found["b"].generations] == [1, 3] and found["b"].state == pools["b"].state
    store.close()


@pytest.mark.parametrize("spec", ['{"spec": {"engine": "COMMAND", "slotz": 1}}', "{", '{"spec": {"engine": "X"}}'])
async def test_a_spec_that_is_not_understood_whole_is_damage_though_its_checksum_is_right(state_dir: Path, spec: str):
    with raw(state_dir) as connection:
        schema.register(connection)
        connection.execute("UPDATE generation SET spec = ? WHERE pool_id = 'b' AND generation = 3", (spec,))
        connection.execute("UPDATE generation SET checksum = checksum(pool_id, generation, create_time, spec)")
    store = await opened(state_dir)
    (warning,) = store.warnings
    assert "generation 3 of pool b cannot be read" in warning
    assert await newest(store) == [("a", 3), ("c", 3)]
    store.close()


async def test_a_wal_without_its_database_is_put_aside_too(state_dir: Path):
    with raw(state_dir) as connection:
        connection.execute("INSERT INTO schema_version VALUES (3, 0); DELETE FROM schema_version WHERE version = 3")
    wal = (state_dir / f"{DATABASE}-wal").read_bytes()
    assert wal
    (state_dir / DATABASE).write_bytes(b"")
    store = await opened(state_dir)
    assert len(store.warnings) == 1
    assert aside(state_dir) == {ASIDE: b"", f"{ASIDE}-wal": wal}
    assert list(await store.load()) == []
    store.close()


async def test_nothing_that_was_put_aside_is_ever_overwritten(state_dir: Path):
    contents = []
    for number in range(3):
        contents.append(b"damage %d" % number * 100)
        (state_dir / DATABASE).write_bytes(contents[-1])
        (await opened(state_dir)).close()
    kept = [content for name, content in sorted(aside(state_dir).items()) if not name.endswith("-wal")]
    assert kept == contents


def flip_a_bit(state_dir: Path, chance: random.Random) -> str:
    """Every other time in a header, where a bit may stand for the whole file. Says where."""
    name = chance.choice([DATABASE, f"{DATABASE}-wal"])
    content = bytearray((state_dir / name).read_bytes())
    at = chance.randrange(chance.choice([100, len(content)]))
    content[at] ^= 1 << chance.randrange(8)
    (state_dir / name).write_bytes(content)
    return f"byte {at} of {name}"


def cut_short(state_dir: Path, chance: random.Random) -> str:
    """To any size, every other time to a number of whole pages. Says where."""
    name = chance.choice([DATABASE, f"{DATABASE}-wal"])
    size = chance.randrange((state_dir / name).stat().st_size)
    size -= chance.choice([0, size % 4096])
    os.truncate(state_dir / name, size)
    return f"{name} cut to {size}"


@pytest.mark.parametrize("left", ["closed", "crashed"])
@pytest.mark.parametrize(("harm", "tries"), [(flip_a_bit, 150), (cut_short, 60)])
async def test_a_flipped_bit_or_a_cut_anywhere_changes_nothing_or_is_told(tmp_path: Path, left: str, harm, tries: int):
    pools = await filled(tmp_path / "closed", tmp_path / "crashed")
    chance = random.Random(20)
    told = 0
    for _ in range(tries):
        state_dir = tmp_path / "harmed"
        shutil.copytree(tmp_path / left, state_dir)
        where = harm(state_dir, chance)
        (store,) = await asyncio.gather(opened(state_dir), return_exceptions=True)
        if isinstance(store, EnvironmentFault):
            assert store.reason in (Reason.STATE_DIR, Reason.STORE_UNAVAILABLE), where
            told += 1
        else:
            found = list(await store.load())
            assert store.epoch == 3, where
            assert store.warnings or found == pools, where
            told += bool(store.warnings)
            store.close()
        shutil.rmtree(state_dir)
    assert tries // 10 <= told <= tries - tries // 10


# A crash while a damaged database is replaced.


class PowerCutError(Exception):
    """Ends the process at that point, as far as anything on the disk can tell."""


async def test_a_crash_at_any_point_of_the_replacement_loses_neither_the_damaged_nor_what_was_read_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    await filled(tmp_path / "whole")
    change(tmp_path / "whole", "UPDATE pool SET state = 'x' WHERE pool_id = 'b'")
    damaged = (tmp_path / "whole" / DATABASE).read_bytes()
    rename, sync = os.rename, repair.sync_directory
    number, crashes = 0, 0
    while True:
        number += 1
        state_dir, calls = tmp_path / str(number), [0]
        shutil.copytree(tmp_path / "whole", state_dir)

        def count(calls: list[int] = calls, number: int = number) -> None:
            calls[0] += 1
            if calls[0] == number:
                raise PowerCutError

        def counted_rename(*names: Path, count=count) -> None:
            count()
            rename(*names)

        def counted_sync(directory: Path, count=count) -> None:
            count()
            sync(directory)

        with monkeypatch.context() as patch:
            patch.setattr(repair.os, "rename", counted_rename)
            patch.setattr(repair, "sync_directory", counted_sync)
            try:
                (await opened(state_dir)).close()
                break
            except PowerCutError:
                crashes += 1
        store = await opened(state_dir)
        assert await newest(store) == [("a", 3), ("c", 3)], f"crash {number}"
        assert damaged in aside(state_dir).values(), f"crash {number}"
        assert len([name for name in aside(state_dir) if not name.endswith("-wal")]) == 1, f"crash {number}"
        assert not list(state_dir.glob(f"{DATABASE}.new*"))
        store.close()
    assert crashes >= 4


async def test_a_disk_that_damages_what_was_just_written_is_refused_and_not_tried_for_ever(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    (state_dir / DATABASE).write_bytes(b"damage" * 100)
    monkeypatch.setattr(
        repair, "_build", lambda directory, *rest: (directory / f"{DATABASE}.new").write_bytes(b"x" * 99)
    )
    with pytest.raises(EnvironmentFault, match="damaged at once") as refused:
        await opened(state_dir)
    assert refused.value.reason is Reason.STATE_DIR
    assert len(aside(state_dir)) >= 1
