"""How a state directory is taken over: what is refused untouched, what is migrated, and how openings are counted."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import apsw
import pytest
from store_support import DATA, ROOT, WALL, Threads, end, lease, newest, opened, raw, record, refusal, snapshot

from poolmgr.adapters.store import schema
from poolmgr.adapters.store.faults import DATABASE
from poolmgr.adapters.store.sqlite import open_store
from poolmgr.errors import Reason
from poolmgr.model.pool import Origin

NOBODY = 65534
IN_2026 = 1_780_000_000.0
OPEN_AS_NOBODY = """
import asyncio, os, sys
from pathlib import Path
from poolmgr.adapters.store.sqlite import open_store
from poolmgr.adapters.system import ThreadWorkers
from poolmgr.errors import PoolmgrError

if os.geteuid() == 0:
    os.setuid(65534)
try:
    asyncio.run(open_store(Path(sys.argv[1]), ThreadWorkers("store", 1), lambda: 1e9))
    print("open")
except PoolmgrError as error:
    print(error.reason, error.message)
"""


@pytest.fixture
async def state_dir(tmp_path: Path) -> Path:
    """A state directory that a daemon has used and left, with one pool in it."""
    directory = tmp_path / "state"
    store = await opened(directory)
    await store.put_pool(record(), "remembered")
    store.record([("chat", lease("a", fence=77))], [end("b")])
    store.close()
    return directory


def edit(state_dir: Path, statements: str, *, crashed: bool = False) -> None:
    """Changes the database as another program would, and leaves its WAL where it is when it `crashed`."""
    connection = apsw.Connection(str(state_dir / DATABASE))
    schema.register(connection)
    connection.execute(statements)
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, int(crashed))
    connection.close()


# Refused, and nothing changed.

NEWER = f"INSERT INTO schema_version VALUES ({schema.VERSION + 1}, 0)"
OTHER_HOST = "UPDATE instance SET host = 'another', checksum = checksum('another', epoch, fences, changes)"
OTHER_PROGRAM = (
    "PRAGMA application_id = 0; DROP TABLE generation; DROP TABLE pool; DROP TABLE instance;"
    "ALTER TABLE schema_version RENAME TO bookmarks"
)
UNUSABLE = {
    "newer": (NEWER, "upgrade it"),
    "much newer": ("UPDATE schema_version SET version = 99 WHERE version = 1", "upgrade it"),
    "other host": (OTHER_HOST, "made on another host"),
    "other program": (OTHER_PROGRAM, "not a database of poolmgr"),
}


@pytest.mark.parametrize("left", ["closed", "crashed", "without WAL"])
@pytest.mark.parametrize("case", UNUSABLE)
async def test_a_database_that_is_not_ours_is_refused_and_the_directory_is_as_it_was(
    state_dir: Path, case: str, left: str
):
    change, problem = UNUSABLE[case]
    edit(state_dir, change, crashed=left == "crashed")
    if left == "without WAL":
        edit(state_dir, "PRAGMA journal_mode = DELETE")
    before = snapshot(state_dir)
    assert bool(before.get(f"{DATABASE}-wal", (b"",))[0]) is (left == "crashed")
    refused = await refusal(state_dir)
    assert refused.reason is Reason.STATE_DIR
    assert problem in refused.message
    assert "state.dir" in refused.message
    assert snapshot(state_dir) == before


async def test_looking_at_a_database_whose_path_is_odd_is_no_different(tmp_path: Path):
    directory = tmp_path / "a b?immutable=0#%41"
    for epoch in (1, 2):
        store = await opened(directory)
        assert store.epoch == epoch and list(store.warnings) == []
        store.close()
        (directory / f"{DATABASE}-wal").unlink()


async def test_a_newer_database_is_refused_whatever_became_of_its_tables(state_dir: Path):
    edit(state_dir, NEWER + "; DROP TABLE generation; ALTER TABLE instance RENAME TO counters")
    before = snapshot(state_dir)
    assert "upgrade it" in (await refusal(state_dir)).message
    assert snapshot(state_dir) == before


async def test_a_database_with_another_program_s_unfinished_journal_is_refused_and_not_rolled_back(tmp_path: Path):
    with raw(tmp_path) as connection:
        connection.execute("PRAGMA cache_size = 2; CREATE TABLE bookmarks (url); BEGIN")
        for _ in range(100):  # more than the cache holds: pages go to the disk before the commit
            connection.execute("INSERT INTO bookmarks VALUES (randomblob(1000))")
        copy = tmp_path / "copy"
        copy.mkdir()
        for name in (DATABASE, f"{DATABASE}-journal"):
            (copy / name).write_bytes((tmp_path / name).read_bytes())
    before = snapshot(copy)
    assert "another program was stopped" in (await refusal(copy)).message
    assert snapshot(copy) == before


async def test_a_directory_in_use_is_refused_and_is_as_it_was(state_dir: Path):
    store = await opened(state_dir)
    before = snapshot(state_dir)
    assert (await refusal(state_dir)).reason is Reason.STATE_IN_USE
    assert snapshot(state_dir) == before
    store.close()


async def test_a_database_that_another_program_uses_is_in_use(state_dir: Path):
    with raw(state_dir) as connection:
        connection.execute("BEGIN; SELECT count(*) FROM pool")
        before = snapshot(state_dir)
        refused = await refusal(state_dir)
        assert refused.reason is Reason.STATE_IN_USE
        assert "pid" not in refused.numbers
        assert snapshot(state_dir) == before
        connection.execute("ROLLBACK")
    (await opened(state_dir)).close()


def test_a_directory_that_cannot_be_written_is_refused():
    # Root may write anywhere, so the child gives its rights up first; it needs a path that others may walk.
    with tempfile.TemporaryDirectory() as name:
        state_dir = Path(name)
        if os.geteuid() == 0:
            os.chown(state_dir, NOBODY, NOBODY)
        state_dir.chmod(0o500)
        child = subprocess.run(
            [sys.executable, "-c", OPEN_AS_NOBODY, name],
            env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert child.stdout.startswith(f"{Reason.STATE_DIR} the state directory {name} cannot be used")
        assert list(state_dir.iterdir()) == []


@pytest.mark.needs_root
@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file to another user needs root")
@pytest.mark.parametrize("name", [".", DATABASE, "epoch", "leases.0"])
async def test_a_directory_or_file_of_another_user_is_refused_and_is_as_it_was(state_dir: Path, name: str):
    os.chown(state_dir / name, NOBODY, NOBODY)
    before = snapshot(state_dir)
    refused = await refusal(state_dir)
    assert refused.reason is Reason.STATE_DIR
    assert f"belongs to uid {NOBODY}" in refused.message
    assert snapshot(state_dir) == before


async def test_a_file_where_the_directory_should_be_is_refused(tmp_path: Path):
    (tmp_path / "state").write_text("")
    assert (await refusal(tmp_path / "state")).reason is Reason.STATE_DIR


async def test_a_directory_where_the_database_should_be_is_refused(tmp_path: Path):
    (tmp_path / DATABASE).mkdir()
    assert (await refusal(tmp_path)).reason is Reason.STATE_DIR


async def test_the_directory_is_made_for_its_owner_alone_and_so_is_what_is_in_it(tmp_path: Path):
    (await opened(tmp_path / "a" / "b")).close()
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
    for name in ("epoch", "lock", "leases.0", "leases.1"):
        assert (tmp_path / "a" / "b" / name).stat().st_mode & 0o777 == 0o600


# Versions.


async def test_a_golden_database_of_version_1_opens_with_its_pools_and_the_next_epoch(tmp_path: Path):
    with raw(tmp_path) as connection:
        connection.execute((DATA / "state_v1.sql").read_text())
    store = await opened(tmp_path)
    (kept,) = await store.load()
    assert (kept.pool_id, kept.origin, kept.create_time, kept.state) == ("chat", Origin.CONFIG, 1763800001.5, "")
    assert [(each.generation, each.create_time) for each in kept.generations] == [(2, 1763800001.5), (3, 1763800001.5)]
    assert kept.generations[-1].spec.labels == {"team": "search"}
    assert store.epoch == 8
    assert list(store.warnings) == []
    block = await store.reserve_fences()
    store.close()
    assert block.start >= 8 << 40  # version 1 drew its fencing numbers from `epoch << 40`
    store = await opened(tmp_path)
    assert (await store.load())[0] == kept
    store.close()


async def test_a_golden_database_of_version_2_opens_with_its_pools_and_counters(tmp_path: Path):
    with raw(tmp_path) as connection:
        connection.execute((DATA / "state_v2.sql").read_text())
    store = await opened(tmp_path)
    (kept,) = await store.load()
    assert (kept.pool_id, kept.origin, kept.create_time) == ("chat", Origin.CONFIG, 1763800001.5)
    assert kept.state == '{"failures":3}'
    assert [(each.generation, each.create_time) for each in kept.generations] == [(2, 1763800001.5), (3, 1763890000.25)]
    assert kept.generations[-1].spec.labels == {"team": "search"}
    assert store.epoch == 9
    assert all("the records of leases" in warning for warning in store.warnings)  # which no database has
    assert (await store.reserve_fences()).start == 1849688064020971520
    store.close()


async def test_what_this_version_writes_has_the_tables_of_its_golden_database(state_dir: Path, tmp_path: Path):
    def tables(directory: Path) -> set[tuple[str, tuple[str, ...]]]:
        with raw(directory) as connection:
            names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            assert connection.pragma("application_id") == schema.APPLICATION_ID
            return {
                (name, tuple(f"{c[1]} {c[2]} {c[3]}" for c in connection.execute(f"PRAGMA table_info({name})")))
                for name in names
            }

    golden = tmp_path / "golden"
    golden.mkdir()
    with raw(golden) as connection:
        connection.execute((DATA / f"state_v{schema.VERSION}.sql").read_text())
    assert tables(state_dir) == tables(golden)


def test_a_migration_or_a_golden_database_that_was_released_is_never_edited():
    assert [zlib.crc32(each.encode()) for each in schema.MIGRATIONS] == [1661595366, 1270280756]
    golden = [zlib.crc32((DATA / f"state_v{number}.sql").read_bytes()) for number in (1, 2)]
    assert golden == [1214541189, 2725018260]


# Epochs.


def lose(state_dir: Path, *names: str) -> None:
    for name in names:
        for path in state_dir.glob(f"{name}*"):
            path.unlink()


async def test_a_place_that_was_never_used_counts_its_epochs_from_the_minutes_since_2024(tmp_path: Path):
    store = await opened(tmp_path, wall=IN_2026)
    assert store.epoch == int(IN_2026 - 1_704_067_200) // 60
    assert list(store.warnings) == []
    store.close()


@pytest.mark.behaviour("LEASE-2")
@pytest.mark.parametrize("left", [DATABASE, "epoch", "leases.0", "leases.1"])
async def test_the_epoch_and_the_fencing_numbers_rise_as_long_as_one_copy_of_them_is_left(state_dir: Path, left: str):
    for _ in range(2):  # both lease files get their turn
        store = await opened(state_dir)
        last = await store.reserve_fences()
        store.record([("chat", lease("c", fence=last[5]))], [])
        store.close()
    if left.startswith("leases") and not any((state_dir / left).read_bytes()[:8]):
        left = "leases.1" if left == "leases.0" else "leases.0"  # the other is the one in use
    lose(state_dir, *({DATABASE, "epoch", "leases.0", "leases.1"} - {left}))
    found = await opened(state_dir)
    assert found.epoch == store.epoch + 1
    (warning,) = found.warnings
    assert ("the records of leases" if left == DATABASE else "its pools are lost") in warning
    if left != "epoch":  # which has them as they were when state was opened; the wall clock does the rest
        assert (await found.reserve_fences()).start > last[5]
    found.close()


@pytest.mark.behaviour("LEASE-2")
async def test_when_everything_is_lost_the_wall_clock_keeps_epochs_and_fencing_numbers_rising(tmp_path: Path):
    store = await opened(tmp_path, wall=IN_2026)
    last = await store.reserve_fences()
    store.close()
    lose(tmp_path, "")
    again = await opened(tmp_path, wall=IN_2026 + 120)
    assert again.epoch > store.epoch
    assert (await again.reserve_fences()).start >= last.stop
    again.close()


async def test_a_lost_database_is_told_and_one_that_is_new_is_not(state_dir: Path):
    lose(state_dir, DATABASE)
    store = await opened(state_dir)
    (warning,) = store.warnings
    assert "missing or empty" in warning and "pools are lost" in warning
    assert list(await store.load()) == []
    store.close()
    store = await opened(state_dir)
    assert list(store.warnings) == []
    store.close()


async def test_lost_records_of_leases_are_told_once(state_dir: Path):
    lose(state_dir, "leases")
    store = await opened(state_dir)
    (warning,) = store.warnings
    assert "leases.0, leases.1" in warning and "missing or damaged" in warning
    store.close()
    store = await opened(state_dir, now=501.0)
    assert list(store.warnings) == []
    assert not store.kept_leases().known
    store.close()


async def test_an_older_copy_of_the_database_is_told_of_and_gives_no_epoch_a_second_time(state_dir: Path):
    old = (state_dir / DATABASE).read_bytes()
    store = await opened(state_dir)
    await store.put_pool(record(2))
    store.close()
    lose(state_dir, DATABASE)
    (state_dir / DATABASE).write_bytes(old)
    again = await opened(state_dir)
    assert again.epoch == store.epoch + 1
    assert any("older than the last change" in warning for warning in again.warnings)
    again.close()


async def test_a_database_that_is_put_in_the_place_of_another_is_not_mixed_with_what_the_wal_of_that_one_held(
    state_dir: Path,
):
    old = (state_dir / DATABASE).read_bytes()
    store = await opened(state_dir)
    await asyncio.gather(*[store.put_pool(record(generation, "other")) for generation in range(1, 9)])
    await store.delete_pool("chat")
    store.close()
    assert (state_dir / f"{DATABASE}-wal").stat().st_size > 0  # its room is kept
    (state_dir / DATABASE).write_bytes(old)
    store = await opened(state_dir)
    assert await newest(store) == [("chat", 1)]
    (warning,) = store.warnings
    assert "older than the last change" in warning
    store.close()


async def test_a_wal_that_loses_its_end_after_a_crash_is_told_of(tmp_path: Path):
    live = tmp_path / "live"
    store = await opened(live)
    for generation in range(1, 6):
        await store.put_pool(record(generation))
    crashed = tmp_path / "crashed"
    crashed.mkdir()
    for path in live.iterdir():
        (crashed / path.name).write_bytes(path.read_bytes())
    store.close()
    wal = crashed / f"{DATABASE}-wal"
    content = bytearray(wal.read_bytes())
    content[-2000] ^= 1  # the last frame: SQLite takes it for one that was never finished, and says nothing
    wal.write_bytes(content)
    store = await opened(crashed)
    assert await newest(store) != [("chat", 5)]
    assert any("WAL was lost or damaged" in warning for warning in store.warnings)
    store.close()


@pytest.mark.parametrize("content", [b"", b"poolmgr", b"poolmgr 99 5 00000000\n", b"\xff" * 9000, b"poolmgr x y z"])
async def test_a_copy_of_the_epoch_that_cannot_be_read_is_written_anew(state_dir: Path, content: bytes):
    (state_dir / "epoch").write_bytes(content)
    store = await opened(state_dir)
    assert store.epoch == 2
    store.close()
    assert (state_dir / "epoch").read_bytes().startswith(b"poolmgr 2 ")


async def test_a_boot_of_which_the_host_does_not_tell_the_name_leaves_the_leases_unknown(state_dir: Path):
    store = await open_store(state_dir, Threads(), lambda: WALL, boot_id="", now=lambda: 500.0)
    assert not store.kept_leases().known and store.kept_leases().live == ()
    store.close()


def kernel_boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


async def test_the_boot_id_of_this_host_is_the_kernel_s(tmp_path: Path):
    store = await open_store(tmp_path, Threads(), lambda: WALL)
    store.record([("chat", lease("a"))], [])
    store.close()
    store = await opened(tmp_path, boot=kernel_boot_id())
    assert len(store.kept_leases().live) == 1
    store.close()


async def test_openings_at_once_leave_one_store_and_refuse_the_others(tmp_path: Path):
    results = await asyncio.gather(*[opened(tmp_path) for _ in range(6)], return_exceptions=True)
    refused = [result for result in results if isinstance(result, Exception)]
    assert [error.reason for error in refused] == [Reason.STATE_IN_USE] * 5
    (store,) = [result for result in results if not isinstance(result, Exception)]
    assert store.epoch == 1
    store.close()
