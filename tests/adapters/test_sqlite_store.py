"""What only a disk can do: be held by another process, lose power to a writer, be full, fail."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw
import pytest
from store_support import (
    ROOT,
    WALL,
    Disk,
    Threads,
    disk_error,
    end,
    full,
    io_error,
    lease,
    newest,
    on,
    opened,
    raw,
    record,
    refusal,
)

from poolmgr.adapters.store.database import CHECKPOINT_PAGES
from poolmgr.adapters.store.faults import is_fatal, is_full
from poolmgr.adapters.store.sqlite import SqliteStore, open_store
from poolmgr.adapters.system import ThreadWorkers
from poolmgr.errors import EnvironmentFault, InternalError, Reason

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
    store = await open_store(Path(state_dir), Threads(), lambda: 1e9)
    print("open", flush=True)
    if deed == "hold":
        sys.stdin.read()
    generation = 0
    while True:
        generation += 1
        await store.put_pool(PoolRecord("chat", PoolSpec(EngineName.COMMAND), generation, Origin.API, 1.0))
        print(generation, flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


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


async def test_a_killed_writer_loses_no_change_that_it_acknowledged(tmp_path: Path):
    with child(tmp_path, "write") as writer:
        for _ in range(40):  # past `open` and 39 puts, at whatever point of the next one it happens to be
            assert writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
        acknowledged = 39 + len(writer.stdout.read().splitlines())
        writer.wait()
    store = await opened(tmp_path)
    ((_, generation),) = await newest(store)
    store.close()
    assert generation in (acknowledged, acknowledged + 1)
    assert store.epoch == 2


# One transaction for what gathers.


class Gated(Threads):
    """Holds every hop back until the gate opens."""

    def __init__(self):
        self.jobs: list[int] = []
        self.began, self.gate = asyncio.Event(), asyncio.Event()

    async def run(self, function, jobs):
        self.jobs.append(len(jobs))
        self.began.set()
        await self.gate.wait()
        return await super().run(function, jobs)


async def gated_store(tmp_path: Path) -> tuple[SqliteStore, Gated]:
    store = await opened(tmp_path)
    workers = Gated()
    return SqliteStore(store._opened, workers, lambda: WALL), workers


async def test_what_gathers_while_one_commit_runs_is_the_next_commit(tmp_path: Path):
    store, workers = await gated_store(tmp_path)
    first = asyncio.ensure_future(store.put_pool(record(1)))
    await workers.began.wait()
    rest = [asyncio.ensure_future(store.put_pool(record(generation))) for generation in range(2, 12)]
    fences = asyncio.ensure_future(store.reserve_fences())
    await asyncio.sleep(0)
    workers.gate.set()
    await asyncio.gather(first, *rest, fences)
    assert workers.jobs == [1, 11]
    assert store._database._changes == 2
    assert await newest(store) == [("chat", 11)]
    store.close()


async def test_a_commit_is_one_sync_of_the_wal_however_many_changes_it_has(tmp_path: Path):
    with on(Disk()) as disk:
        store = await opened(tmp_path)
        await store.put_pool(record(1))
        before = len(disk.calls)
        await asyncio.gather(*[store.put_pool(record(generation)) for generation in range(2, 12)])
        syncs = [name for what, name in disk.calls[before:] if what == "sync"]
        assert syncs == ["state.db-wal"] and disk.calls[-1] == ("sync", "state.db-wal")
        store.close()


async def test_a_cancelled_caller_leaves_its_change_in_its_place_in_the_order(tmp_path: Path):
    store, workers = await gated_store(tmp_path)
    first = asyncio.ensure_future(store.put_pool(record(1, "a")))
    await workers.began.wait()
    calls = (store.put_pool(record(1, "b")), store.delete_pool("a"), store.put_pool(record(2, "a")))
    cancelled = [first, *map(asyncio.ensure_future, calls)]
    await asyncio.sleep(0)
    for task in cancelled:
        task.cancel()
    last = asyncio.ensure_future(store.put_state("a", "last"))
    workers.gate.set()
    await last
    assert all(task.cancelled() for task in cancelled)
    found = {pool.pool_id: ([each.generation for each in pool.generations], pool.state) for pool in await store.load()}
    assert found == {"a": ([2], "last"), "b": ([1], "")}
    store.close()


async def test_a_change_that_cannot_be_made_at_all_spoils_none_that_gathered_beside_it(tmp_path: Path):
    store = await opened(tmp_path)
    results = await asyncio.gather(
        store.put_pool(record(1, "a")), store.put_pool(record(0, "b")), store.put_state("a", "\ud800"),
        store.put_pool(record(1, "c")), return_exceptions=True,
    )  # fmt: skip
    assert [type(result) for result in results] == [type(None), InternalError, UnicodeEncodeError, type(None)]
    assert await newest(store) == [("a", 1), ("c", 1)]
    store.close()


async def test_callers_are_refused_and_none_is_left_waiting_when_the_threads_are_shut_down_first(tmp_path: Path):
    workers = ThreadWorkers("store", 1)
    store = await open_store(tmp_path, workers, lambda: WALL)
    busy, go = threading.Event(), threading.Event()
    blocker = asyncio.ensure_future(workers.run(lambda: (busy.set(), go.wait())))
    await asyncio.to_thread(busy.wait)
    waiting = [asyncio.ensure_future(store.put_pool(record(generation))) for generation in (1, 2)]
    await asyncio.sleep(0)
    late = asyncio.ensure_future(store.delete_pool("chat"))
    workers._pool.shutdown(wait=False, cancel_futures=True)
    go.set()
    results = await asyncio.gather(*waiting, late, store.load(), return_exceptions=True)
    assert {getattr(result, "reason", None) for result in results} == {Reason.STORE_UNAVAILABLE}
    await blocker
    store.close()


# Full, and failing.


async def test_a_full_disk_refuses_changes_until_there_is_room_and_leases_are_recorded_meanwhile(tmp_path: Path):
    with on(Disk()) as disk:
        store = await opened(tmp_path)
        await store.put_pool(record(1), "before")
        disk.fail = lambda what, name, number: full() if what == "write" else None
        for change in (store.put_pool(record(2)), store.put_state("chat", "x"), store.reserve_fences()):
            with pytest.raises(EnvironmentFault, match="the disk is full") as failed:
                await change
            assert failed.value.reason is Reason.STORE_UNAVAILABLE
            assert failed.value.numbers["sqlite_code"] == apsw.SQLITE_FULL
        store.record([("chat", lease("a")), ("chat", lease("b"))], [])
        store.record([], [end("a")])
        (pool,) = await store.load()
        assert (len(pool.generations), pool.state) == (1, "before")
        disk.fail = lambda what, name, number: None
        await store.put_pool(record(2), "after")
        (pool,) = await store.load()
        assert (len(pool.generations), pool.state) == (2, "after")
        store.close()
    store = await opened(tmp_path)
    assert store.kept_leases().live == (("chat", lease("b")),)
    store.close()


async def test_changes_that_share_a_refused_commit_are_all_refused(tmp_path: Path):
    with on(Disk()) as disk:
        store = await opened(tmp_path)
        disk.fail = lambda what, name, number: full() if what == "write" else None
        changes = [store.put_pool(record(1, pool_id)) for pool_id in "abc"]
        results = await asyncio.gather(*changes, return_exceptions=True)
        assert [result.reason for result in results] == [Reason.STORE_UNAVAILABLE] * 3
        assert len({id(result) for result in results}) == 3
        assert list(await store.load()) == []
        store.close()


@pytest.mark.parametrize(
    ("what", "code"), [("sync", apsw.SQLITE_IOERR_FSYNC), ("write", apsw.SQLITE_IOERR_WRITE)], ids=["fsync", "write"]
)
async def test_after_a_failed_write_changes_are_refused_until_a_restart_and_all_else_goes_on(
    tmp_path: Path, what: str, code: int
):
    with on(Disk()) as disk:
        store = await opened(tmp_path)
        await store.put_pool(record(1))
        disk.fail = lambda called, name, number: io_error(code) if called == what else None
        for _ in range(2):
            with pytest.raises(EnvironmentFault, match="no more changes are taken until a restart") as failed:
                await store.put_pool(record(2))
            assert failed.value.reason is Reason.STORE_UNAVAILABLE
            assert failed.value.numbers["sqlite_code"] == code
            disk.fail = lambda called, name, number: None
        assert await newest(store) == [("chat", 1)]
        store.record([("chat", lease("a"))], [])
        before = len(disk.calls)
        store.close()
        assert [call for call in disk.calls[before:] if call[0] in ("write", "sync")] == []  # a sync may lie by now
    store = await opened(tmp_path)
    assert store.kept_leases().live == (("chat", lease("a")),)
    await store.put_pool(record(3))
    store.close()


def test_no_room_by_quota_is_a_full_disk_and_a_failed_fsync_never_is():
    write = disk_error(apsw.IOError, apsw.SQLITE_IOERR_WRITE, "write")
    sync = disk_error(apsw.IOError, apsw.SQLITE_IOERR_FSYNC, "sync")
    assert is_full(write, errno.EDQUOT) and not is_fatal(write, errno.EDQUOT)
    assert is_fatal(write, errno.EIO) and not is_full(write, errno.EIO)
    assert is_fatal(sync, errno.ENOSPC) and not is_full(sync, errno.ENOSPC)


async def test_the_wal_is_moved_into_the_database_now_and_then_and_a_failed_sync_of_that_is_not_overlooked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("poolmgr.adapters.store.database.CHECKPOINT_PAGES", 20)
    assert CHECKPOINT_PAGES == 1000
    with on(Disk()) as disk:
        store = await opened(tmp_path)
        generation = 0
        opening = disk.calls.count(("sync", "state.db"))
        while disk.calls.count(("sync", "state.db")) == opening:
            generation += 1
            await store.put_pool(record(generation))
        assert 2 <= generation <= 20
        disk.fail = lambda what, name, number: io_error(apsw.SQLITE_IOERR_FSYNC) if name == "state.db" else None
        more = [
            await asyncio.gather(store.put_pool(record(number)), return_exceptions=True) for number in range(30, 50)
        ]
        outcomes = [None if result is None else result.reason for (result,) in more]
        last = 29 + outcomes.index(Reason.STORE_UNAVAILABLE)
        assert set(outcomes[last - 29 :]) == {Reason.STORE_UNAVAILABLE}
        disk.fail = lambda what, name, number: None
        assert await newest(store) == [("chat", last)]
        store.close()
    store = await opened(tmp_path)
    assert await newest(store) == [("chat", last)]
    store.close()


async def test_a_checkpoint_that_finds_the_disk_full_is_put_off_and_changes_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("poolmgr.adapters.store.database.CHECKPOINT_PAGES", 20)
    with on(Disk()) as disk:
        store = await opened(tmp_path)
        disk.fail = lambda what, name, number: full() if (what, name) == ("write", "state.db") else None
        for generation in range(1, 31):
            await store.put_pool(record(generation))
        assert await newest(store) == [("chat", 30)]
        store.close()
