"""What only a disk can do: be held by another process, lose power to a writer, be damaged, be someone else's."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw
import pytest

from poolmgr.adapters.store import schema
from poolmgr.adapters.store.sqlite import DATABASE, KEPT_GENERATIONS, SqliteStore, open_store
from poolmgr.errors import EnvironmentFault, PoolmgrError, Reason
from poolmgr.model.pool import EngineName, Origin, PoolRecord, PoolSpec

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"
NOBODY = 65534

# Run by a real second process: opens the store in argv[1], then does what argv[2] says.
CHILD = """
import asyncio, os, sys, time
from pathlib import Path
from poolmgr.adapters.store.sqlite import open_store
from poolmgr.errors import PoolmgrError
from poolmgr.model.pool import EngineName, Origin, PoolRecord, PoolSpec

class Threads:
    async def run(self, function, *args):
        return await asyncio.to_thread(function, *args)

async def main(state_dir, deed):
    if deed == "open-as-nobody":
        os.setuid(65534)
    try:
        store = await open_store(Path(state_dir), Threads(), time.time)
    except PoolmgrError as error:
        print(error.reason, error.message, flush=True)
        return
    print("open", flush=True)
    if deed == "hold":
        sys.stdin.read()
    generation = 0
    while deed == "write":
        generation += 1
        await store.put_pool(PoolRecord("chat", PoolSpec(EngineName.COMMAND), generation, Origin.API, 1.0))
        print(generation, flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


class Threads:
    async def run(self, function, *args):
        return await asyncio.to_thread(function, *args)


async def opened(state_dir: Path) -> SqliteStore:
    return await open_store(state_dir, Threads(), lambda: 1e9)


async def refusal(state_dir: Path) -> PoolmgrError:
    with pytest.raises(EnvironmentFault) as refused:
        (await opened(state_dir)).close()
    return refused.value


def record(generation: int = 1, pool_id: str = "chat") -> PoolRecord:
    return PoolRecord(pool_id, PoolSpec(EngineName.COMMAND), generation, Origin.API, 1.0)


@contextmanager
def child(state_dir: Path, deed: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(state_dir), deed],
        env={"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def raw(state_dir: Path) -> Iterator[apsw.Connection]:
    """The database as any other program sees it; closing leaves an existing WAL where it is."""
    connection = apsw.Connection(str(state_dir / DATABASE))
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    yield connection
    connection.close()


def files(state_dir: Path) -> dict[str, bytes]:
    """The database and its WAL; not the shared-memory index, which is scratch."""
    return {path.name: path.read_bytes() for path in state_dir.iterdir() if path.name in (DATABASE, f"{DATABASE}-wal")}


@pytest.fixture
async def state_dir(tmp_path: Path) -> Path:
    """A state directory that a daemon has used and left, with one pool in it."""
    directory = tmp_path / "state"
    store = await opened(directory)
    await store.put_pool(record())
    store.close()
    return directory


async def test_a_second_daemon_is_refused_with_the_pid_of_the_first_until_that_one_is_gone(tmp_path: Path):
    with child(tmp_path, "hold") as first:
        assert first.stdout.readline() == "open\n"
        refused = await refusal(tmp_path)
        assert refused.reason is Reason.STATE_IN_USE
        assert refused.numbers["pid"] == first.pid
        assert f"pid {first.pid}" in refused.message
        first.send_signal(signal.SIGKILL)
        first.wait()
        store = await opened(tmp_path)
    assert store.epoch == 2
    store.close()


async def test_one_process_cannot_open_its_directory_twice(tmp_path: Path):
    store = await opened(tmp_path)
    assert (await refusal(tmp_path)).numbers["pid"] == os.getpid()
    store.close()


async def test_no_other_program_can_use_the_database_beside_the_daemon(tmp_path: Path):
    store = await opened(tmp_path)
    with raw(tmp_path) as connection, pytest.raises(apsw.BusyError):
        connection.execute("SELECT * FROM pool")
    store.close()


async def test_a_database_that_another_program_uses_is_in_use(state_dir: Path):
    with raw(state_dir) as connection:
        connection.execute("BEGIN; SELECT count(*) FROM pool")
        refused = await refusal(state_dir)
        assert refused.reason is Reason.STATE_IN_USE
        assert "pid" not in refused.numbers
        connection.execute("ROLLBACK")
    (await opened(state_dir)).close()


async def test_a_killed_writer_loses_no_change_that_it_acknowledged(tmp_path: Path):
    with child(tmp_path, "write") as writer:
        for _ in range(40):  # past `open` and 39 puts, at whatever point of the next one it happens to be
            assert writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
        acknowledged = 39 + len(writer.stdout.read().splitlines())
        writer.wait()
    store = await opened(tmp_path)
    (kept,) = await store.load()
    store.close()
    assert kept.generation in (acknowledged, acknowledged + 1)
    assert store.epoch == 2


async def test_a_change_is_on_the_disk_before_it_is_acknowledged(tmp_path: Path):
    with counting_syncs() as syncs:
        store = await opened(tmp_path)
        before = len(syncs)
        await store.put_pool(record())
        assert len(syncs) > before
        assert syncs[-1].endswith("-wal")
        store.close()


async def test_after_a_failed_fsync_changes_are_refused_until_a_restart_and_reading_goes_on(tmp_path: Path):
    with counting_syncs() as syncs:
        store = await opened(tmp_path)
        await store.put_pool(record(1))
        syncs.fail = True
        for _ in range(2):
            with pytest.raises(EnvironmentFault) as failed:
                await store.put_pool(record(2))
            assert failed.value.reason is Reason.STORE_UNAVAILABLE
            assert failed.value.numbers["sqlite_code"] == apsw.SQLITE_IOERR_FSYNC
            syncs.fail = False
        assert list(await store.load()) == [record(1)]
        store.close()
    store = await opened(tmp_path)
    await store.put_pool(record(3))
    store.close()


async def test_a_full_disk_refuses_the_change_and_the_next_one_may_succeed(tmp_path: Path):
    with counting_syncs() as syncs:
        store = await opened(tmp_path)
        syncs.full = True
        with pytest.raises(EnvironmentFault) as failed:
            await store.put_pool(record(1))
        assert failed.value.numbers["sqlite_code"] == apsw.SQLITE_FULL
        assert list(await store.load()) == []
        syncs.full = False
        await store.put_pool(record(2))
        assert list(await store.load()) == [record(2)]
        store.close()


async def test_a_cancelled_caller_leaves_its_change_in_its_place_in_the_order(tmp_path: Path):
    seen, began, gate = [], asyncio.Event(), asyncio.Event()

    class Gated(Threads):
        async def run(self, function, *args):
            seen.append(f"{function.__name__} begins")
            began.set()
            await gate.wait()
            await super().run(function, *args)
            seen.append(f"{function.__name__} ends")

    store = await opened(tmp_path)
    gated = SqliteStore(store._database, Gated())
    put = asyncio.ensure_future(gated.put_pool(record()))
    await began.wait()
    put.cancel()
    delete = asyncio.ensure_future(gated.delete_pool("chat"))
    for _ in range(10):  # turns of the loop in which the delete could begin too early
        await asyncio.sleep(0)
    gate.set()
    await delete
    assert put.cancelled()
    assert seen == ["put begins", "put ends", "delete begins", "delete ends"]
    assert list(await store.load()) == []
    store.close()


async def test_the_last_twenty_generations_of_each_pool_are_kept(tmp_path: Path):
    store = await opened(tmp_path)
    for generation in range(1, 26):
        await store.put_pool(record(generation))
    await store.put_pool(record(1, "other"))
    store.close()
    with raw(tmp_path) as connection:
        rows = list(connection.execute("SELECT pool_id, generation FROM generation ORDER BY pool_id, generation"))
    assert KEPT_GENERATIONS == 20
    assert rows == [("chat", generation) for generation in range(6, 26)] + [("other", 1)]


async def test_the_directory_is_made_for_its_owner_alone(tmp_path: Path):
    (await opened(tmp_path / "a" / "b")).close()
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700


async def test_a_golden_database_of_version_1_opens_with_its_pools_and_the_next_epoch(tmp_path: Path):
    with raw(tmp_path) as connection:
        connection.execute((DATA / "state_v1.sql").read_text())
    store = await opened(tmp_path)
    (kept,) = await store.load()
    assert (kept.pool_id, kept.generation, kept.origin) == ("chat", 3, Origin.CONFIG)
    assert kept.spec.labels == {"team": "search"}
    assert store.epoch == 8
    store.close()


UNUSABLE = {
    "newer": (f"INSERT INTO schema_version VALUES ({schema.VERSION + 1}, 0)", "upgrade it"),
    "other host": ("UPDATE instance SET host = 'another'", "made on another host"),
    "other program": ("DROP TABLE schema_version", "not a database of poolmgr"),
}


@pytest.mark.parametrize("case", UNUSABLE)
@pytest.mark.parametrize("left", ["closed", "crashed", "without WAL"])
async def test_a_database_that_is_not_ours_is_refused_and_no_byte_of_it_changes(state_dir: Path, case: str, left: str):
    change, problem = UNUSABLE[case]
    with raw(state_dir) as connection:
        connection.execute(change)
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, int(left == "crashed"))
        if left == "without WAL":
            connection.execute("PRAGMA journal_mode = DELETE")
    before = files(state_dir)
    assert (DATABASE + "-wal" in before) is (left == "crashed")
    refused = await refusal(state_dir)
    assert refused.reason is Reason.STATE_DIR
    assert problem in refused.message
    assert "state.dir" in refused.message
    assert files(state_dir) == before


async def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(tmp_path: Path):
    (tmp_path / DATABASE).write_bytes(b"not a database at all\n" * 500)
    before = files(tmp_path)
    assert (await refusal(tmp_path)).reason is Reason.STATE_DIR
    assert files(tmp_path) == before


@pytest.mark.parametrize("table", ["schema_version", "generation"])
async def test_a_damaged_database_is_refused_and_left_as_it_is(state_dir: Path, table: str):
    with raw(state_dir) as connection:
        page: int = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).get
        size: int = connection.pragma("page_size")
    content = bytearray((state_dir / DATABASE).read_bytes())
    content[size * (page - 1) : size * page] = b"\xff" * size
    (state_dir / DATABASE).write_bytes(content)
    before = files(state_dir)
    refused = await refusal(state_dir)
    assert refused.reason is Reason.STATE_DIR
    assert "damaged" in refused.message
    assert files(state_dir) == before


def test_a_directory_that_cannot_be_written_is_refused():
    # Root may write anywhere, so the child gives its rights up first; it needs a path that others may walk.
    with tempfile.TemporaryDirectory() as name:
        state_dir = Path(name)
        if os.geteuid() == 0:
            os.chown(state_dir, NOBODY, NOBODY)
        state_dir.chmod(0o500)
        with child(state_dir, "open-as-nobody" if os.geteuid() == 0 else "open") as process:
            assert process.stdout.read().startswith(f"{Reason.STATE_DIR} the state directory {name} cannot be used")
        assert list(state_dir.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file to another user needs root")
@pytest.mark.parametrize("name", [".", DATABASE])
async def test_a_directory_or_database_of_another_user_is_refused(state_dir: Path, name: str):
    os.chown(state_dir / name, NOBODY, NOBODY)
    before = files(state_dir)
    refused = await refusal(state_dir)
    assert refused.reason is Reason.STATE_DIR
    assert f"belongs to uid {NOBODY}" in refused.message
    assert files(state_dir) == before


async def test_a_file_where_the_directory_should_be_is_refused(tmp_path: Path):
    (tmp_path / "state").write_text("")
    assert (await refusal(tmp_path / "state")).reason is Reason.STATE_DIR


@pytest.mark.parametrize("spec", ['{"spec": {"engine": "COMMAND", "slotz": 1}}', "{", '{"spec": {"engine": "X"}}'])
async def test_a_spec_that_is_not_understood_whole_is_refused_by_name(state_dir: Path, spec: str):
    with raw(state_dir) as connection:
        connection.execute("UPDATE generation SET spec = ?", (spec,))
    store = await opened(state_dir)
    with pytest.raises(EnvironmentFault) as refused:
        await store.load()
    store.close()
    assert refused.value.reason is Reason.STATE_DIR
    assert "generation 1 of pool chat" in refused.value.message


class Syncs(list):
    """The files that were synced, in order, and the faults to inject."""

    fail = False
    full = False


@contextmanager
def counting_syncs() -> Iterator[Syncs]:
    """SQLite's own files, each sync counted; `fail` makes the next fail, `full` the writes."""
    syncs = Syncs()
    usual = apsw.vfs_details()[0]["zName"]

    class File(apsw.VFSFile):
        def __init__(self, filename, flags):
            self.name = filename.filename() if isinstance(filename, apsw.URIFilename) else str(filename)
            super().__init__(usual, filename, flags)

        def xSync(self, flags):
            if syncs.fail:
                error = apsw.IOError("fsync failed")
                error.extendedresult = apsw.SQLITE_IOERR_FSYNC
                raise error
            syncs.append(self.name)
            super().xSync(flags)

        def xWrite(self, data, offset):
            if syncs.full:
                raise apsw.FullError("no space left on device")
            super().xWrite(data, offset)

    class Files(apsw.VFS):
        def __init__(self):
            super().__init__("counting", usual, makedefault=True)

        def xOpen(self, name, flags):
            return File(name, flags)

    vfs = Files()
    try:
        yield syncs
    finally:
        apsw.set_default_vfs(usual)
        vfs.unregister()
