"""The process runtime with real engines, in a cgroup leaf and without one."""

# ruff: noqa: ASYNC240 (a test may wait for a small file)

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
from contextlib import aclosing
from pathlib import Path

import psutil
import pytest
from process_support import (
    IDLE,
    Recorder,
    gone,
    launch,
    lines_of,
    log_path,
    open_fds,
    record,
    running,
    runtime,
    script,
    shim_pid,
)

from poolmgr.adapters.runtimes import procfs
from poolmgr.adapters.runtimes.cgroup import Hierarchy
from poolmgr.errors import EnvironmentFault, InternalError, Reason

FAMILY = """
import os, signal
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.setsid()
        print(os.getpid())
        signal.pause()
    os._exit(0)
os.wait()
{then}
"""


@pytest.fixture(params=[pytest.param("cgroup", marks=pytest.mark.needs_root), "process-group"])
async def host(request, tmp_path):
    """A runtime with each containment; what it leaves running at the test's end is killed."""
    one = runtime(tmp_path, containment=request.param, log_check_seconds=0.05)
    if one.containment != request.param:
        pytest.skip("this host has no cgroup v2 that we may write to")
    yield one
    await one.close()
    await clear_away(tmp_path)


async def clear_away(state_dir):
    """Kills and removes whatever a test left: as a daemon that starts after it."""
    successor = runtime(state_dir)
    for found in await successor.recover():
        tree = successor._engines[found.engine_id]._tree
        emptied = asyncio.Event()
        tree.kill()
        watch = tree.watch(emptied.set)
        await emptied.wait()
        watch.close()
        await successor.remove(found.engine_id)


async def started(host, spec):
    ears = Recorder()
    return await host.start(spec, ears), ears


@pytest.mark.behaviour("PROC-1")
async def test_the_environment_is_the_given_one_and_the_engine_id(host):
    spec = launch("/bin/cat", "/proc/self/environ", env={"ONE": "1", "CUDA_VISIBLE_DEVICES": ""})
    _, ears = await started(host, spec)
    await ears.end()
    text = Path(log_path(host, spec)).read_text()
    assert sorted(text.strip("\0").split("\0")) == sorted(
        [
            "ONE=1",
            "CUDA_VISIBLE_DEVICES=",
            f"POOLMGR_ENGINE_ID={spec.engine_id}",
            f"POOLMGR_ENGINE_DIRECTORY={host.directory(spec.engine_id)}",
            "POOLMGR_POOL=pool:1",
        ]
    )


@pytest.mark.behaviour("PROC-5")
async def test_when_memory_is_short_an_engine_goes_before_its_shim_and_the_daemon(host):
    def score(pid: int | str) -> int:
        return int(Path(f"/proc/{pid}/oom_score_adj").read_text())

    identity, _ = await started(host, launch("/bin/sleep", "1000"))
    assert score(psutil.Process(identity.pid).ppid()) == score("self") < score(identity.pid)


@pytest.mark.behaviour("PROC-6", "PROC-7")
async def test_an_engine_that_runs_while_its_directory_is_gone_is_in_doubt_for_its_pool_until_it_ends(host, tmp_path):
    spec = launch("/bin/sleep", "1000")
    identity, ears = await started(host, spec)
    directory = Path(host.directory(spec.engine_id))
    hidden = directory.rename(tmp_path / "hidden")
    successor = runtime(tmp_path)
    (found,) = await successor.recover()
    assert (found.engine_id, found.pool_id, found.generation) == (spec.engine_id, "pool", 1)
    assert found.state == "IN_DOUBT" and str(identity.pid) in found.detail
    host.kill_tree(spec.engine_id)
    await ears.end()
    assert await successor.recover([spec.engine_id]) == []
    hidden.rename(directory)
    await successor.close()


@pytest.mark.behaviour("PROC-1")
async def test_an_engine_starts_with_default_signals_and_none_blocked(host):
    spec = launch("/bin/cat", "/proc/self/status")
    _, ears = await started(host, spec)
    await ears.end()
    status = dict(line.split(":\t", 1) for line in host.log_tail(spec.engine_id, 1000))
    ignored = {number for number in signal.valid_signals() if int(status["SigIgn"], 16) >> (number - 1) & 1}
    assert ignored == set()  # but for the two that glibc keeps to itself and nobody can set through it
    assert int(status["SigBlk"], 16) == 0


@pytest.mark.behaviour("PROC-1")
async def test_an_engine_has_its_own_session_no_stdin_and_no_descriptor_but_its_log(host):
    spec = script(
        "import os; print(os.getsid(0) == os.getpid(), os.getcwd())\n"
        "for fd in sorted(os.listdir('/proc/self/fd'), key=int):\n"
        "    if os.path.exists(f'/proc/self/fd/{fd}'): print(os.readlink(f'/proc/self/fd/{fd}'))"
    )
    _, ears = await started(host, spec)
    await ears.end()
    directory, log = host.directory(spec.engine_id), log_path(host, spec)
    assert host.log_tail(spec.engine_id, 10) == (f"True {directory}/work", "/dev/null", log, log)


@pytest.mark.behaviour("PROC-5")
@pytest.mark.parametrize("host", [pytest.param("cgroup", marks=pytest.mark.needs_root)], indirect=True)
async def test_an_engine_is_born_in_its_leaf_with_whatever_it_forks_at_once(host):
    spec = script("import os, signal\nos.fork()\nos.write(1, b'%d\\n' % os.getpid())\nsignal.pause()")
    identity, ears = await started(host, spec)
    pids = {int(line) for line in await lines_of(host, spec.engine_id, 2)}
    hierarchy = Hierarchy.find()
    leaf = hierarchy.directory_of("self") / "poolmgr" / spec.engine_id
    assert len(pids) == 2
    assert identity.pid in pids
    assert {hierarchy.directory_of(pid) for pid in pids} == {leaf}
    assert hierarchy.directory_of(shim_pid(host, spec.engine_id)) != leaf
    host.kill_tree(spec.engine_id)
    await ears.end()
    await host.remove(spec.engine_id)
    assert not leaf.exists()


@pytest.mark.behaviour("LIVE-3", "PROC-6")
@pytest.mark.parametrize("code", [0, 1, 2, 77, 127, 128, 255])
async def test_an_exit_code_is_told_as_it_was(host, code):
    _, ears = await started(host, script(f"import os; os._exit({code})"))
    told = await ears.end()
    assert (told.exit_code, told.signal, told.oom_killed, told.source) == (code, None, False, "shim")


@pytest.mark.behaviour("LIVE-3", "PROC-6")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGPIPE])
async def test_a_signal_is_told_as_it_was(host, number):
    text = f"import os, signal; {number} in (6, 11) and signal.signal({number}, 0); os.kill(os.getpid(), {number})"
    if number == signal.SIGPIPE:
        text = f"import os, signal; signal.signal({number}, signal.SIG_DFL); os.kill(os.getpid(), {number})"
    _, ears = await started(host, script(text))
    told = await ears.end()
    assert (told.exit_code, told.signal, told.oom_killed) == (None, number, False)


@pytest.mark.behaviour("PROC-3")
async def test_terminate_asks_the_main_process_to_end(host):
    spec = script(
        "import os, signal\nsignal.signal(signal.SIGTERM, lambda *_: os._exit(7))\nprint('up')\nsignal.pause()"
    )
    _, ears = await started(host, spec)
    await lines_of(host, spec.engine_id, 1)
    host.terminate(spec.engine_id)
    assert (await ears.end()).exit_code == 7
    host.terminate(spec.engine_id)  # no effect when it is gone
    host.kill_tree(spec.engine_id)


@pytest.mark.behaviour("PROC-3")
async def test_kill_tree_reaches_grandchildren_that_went_into_their_own_sessions(host):
    spec = script(FAMILY.format(then="signal.pause()"))
    identity, ears = await started(host, spec)
    (orphan,) = await lines_of(host, spec.engine_id, 1)
    host.kill_tree(spec.engine_id)
    assert (await ears.end()).signal == signal.SIGKILL
    assert not running(identity.pid)
    assert not running(int(orphan))


@pytest.mark.behaviour("PROC-3")
async def test_a_tree_is_empty_only_when_the_last_orphan_has_gone(host):
    spec = script(FAMILY.format(then="os._exit(3)"))
    _, ears = await started(host, spec)
    (orphan,) = await lines_of(host, spec.engine_id, 1)
    assert (await ears.exit()).exit_code == 3
    assert ears.told.empty()
    with pytest.raises(InternalError):
        await host.remove(spec.engine_id)
    with pytest.raises(InternalError):
        await host.start(spec, ears)
    os.kill(int(orphan), signal.SIGKILL)
    assert await ears.told.get() == "tree_empty"


@pytest.mark.behaviour("PROC-1", "PROC-5")
@pytest.mark.parametrize(
    ("make", "number"),
    [
        (lambda path: None, errno.ENOENT),
        (lambda path: path.write_text("#!/bin/true\n"), errno.EACCES),
        (lambda path: (path.write_text("\x7fnothing"), path.chmod(0o755)), errno.ENOEXEC),
    ],
)
async def test_a_failed_exec_tells_its_errno_and_leaves_nothing_behind(host, tmp_path, make, number):
    program = tmp_path / "program"
    make(program)
    spec = launch(str(program))
    before = open_fds()
    with pytest.raises(EnvironmentFault) as caught:
        await host.start(spec, Recorder())
    assert caught.value.reason is Reason.SPAWN_FAILED
    assert caught.value.numbers == {"errno": number, "path": str(program)}
    assert open_fds() == before
    assert procfs.marked_pids(spec.engine_id) == []
    assert host.containment != "cgroup" or not host._leaf(spec.engine_id).path.exists()
    await host.remove(spec.engine_id)


@pytest.mark.behaviour("PROC-5")
async def test_the_same_engine_starts_again_once_its_executable_is_there(host, tmp_path):
    spec = launch(str(tmp_path / "late"))
    with pytest.raises(EnvironmentFault):
        await host.start(spec, Recorder())
    (tmp_path / "late").symlink_to("/bin/true")
    _, ears = await started(host, spec)
    assert (await ears.end()).exit_code == 0


@pytest.mark.behaviour("PROC-5")
async def test_a_respawn_keeps_the_shim_and_writes_no_new_intent(host):
    spec = script(IDLE)
    first, ears = await started(host, spec)
    await lines_of(host, spec.engine_id, 1)
    keeper = shim_pid(host, spec.engine_id)
    intent = os.stat(Path(host.directory(spec.engine_id), "spec"))
    for lives in range(2, 7):
        host.kill_tree(spec.engine_id)
        await ears.end()
        again = await host.start(spec, ears)
        assert again.pid != first.pid
        assert await lines_of(host, spec.engine_id, lives) == ["up"] * lives
    assert shim_pid(host, spec.engine_id) == keeper
    after = os.stat(Path(host.directory(spec.engine_id), "spec"))
    assert (after.st_ino, after.st_mtime_ns) == (intent.st_ino, intent.st_mtime_ns)


@pytest.mark.behaviour("PROC-5")
async def test_an_engine_is_watched_although_its_start_was_given_up(host):
    spec = script(IDLE)
    _, ears = await started(host, spec)
    await lines_of(host, spec.engine_id, 1)
    host.kill_tree(spec.engine_id)
    await ears.end()
    start = asyncio.create_task(host.start(spec, ears))
    await asyncio.sleep(0)  # it has sent its message
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    await lines_of(host, spec.engine_id, 2)
    host.kill_tree(spec.engine_id)
    assert (await ears.end()).signal == signal.SIGKILL


@pytest.mark.behaviour("PROC-6")
async def test_an_end_is_heard_although_the_shim_is_stopped(host):
    spec = script(IDLE)
    identity, ears = await started(host, spec)
    keeper = shim_pid(host, spec.engine_id)
    os.kill(keeper, signal.SIGSTOP)
    os.kill(identity.pid, signal.SIGKILL)
    told = await ears.end()
    assert (told.signal, told.source) == (signal.SIGKILL, "zombie")
    os.kill(keeper, signal.SIGCONT)


@pytest.mark.behaviour("PROC-5")
async def test_a_changed_launch_is_written_down_and_reaches_the_shim_that_is_there(host):
    spec = script("print('old')")
    _, ears = await started(host, spec)
    await ears.end()
    keeper = shim_pid(host, spec.engine_id)
    changed = type(spec)(spec.engine_id, "pool", 2, (*spec.argv[:-1], "print('new')"), {}, 8001)
    await host.start(changed, ears)
    await ears.end()
    assert host.log_tail(spec.engine_id, 1) == ("new",)
    assert record(host, spec.engine_id, "spec")["generation"] == 2
    assert shim_pid(host, spec.engine_id) == keeper


@pytest.mark.behaviour("PROC-5", "PROC-7")
async def test_an_engine_outlives_its_shim_and_its_end_is_heard_with_the_cause(host):
    spec = script("import signal, os\nsignal.signal(15, lambda *_: os._exit(9))\nprint('up')\nwhile 1: signal.pause()")
    identity, ears = await started(host, spec)
    await lines_of(host, spec.engine_id, 1)
    keeper = shim_pid(host, spec.engine_id)
    keeper_fd = os.pidfd_open(keeper)
    os.kill(keeper, signal.SIGKILL)
    await gone(keeper_fd)
    assert running(identity.pid)
    host.terminate(spec.engine_id)
    told = await ears.end()
    assert (told.exit_code, told.signal) == (9, None)
    assert told.source in ("waitid", "zombie", "pidfd_info")
    await host.start(spec, ears)
    assert shim_pid(host, spec.engine_id) != keeper
    host.kill_tree(spec.engine_id)
    assert (await ears.end()).source == "shim"


@pytest.mark.behaviour("PROC-3", "PROC-5")
async def test_a_tree_without_its_shim_is_killed_as_a_whole(host):
    spec = script(FAMILY.format(then="signal.pause()"))
    _, ears = await started(host, spec)
    (orphan,) = await lines_of(host, spec.engine_id, 1)
    keeper_fd = os.pidfd_open(keeper := shim_pid(host, spec.engine_id))
    os.kill(keeper, signal.SIGKILL)
    await gone(keeper_fd)
    host.kill_tree(spec.engine_id)
    assert (await ears.end()).signal == signal.SIGKILL
    assert not running(int(orphan))
    await host.remove(spec.engine_id)


@pytest.mark.behaviour("PROC-6", "PROC-7")
async def test_the_next_daemon_finds_the_engine_and_hears_its_end_from_the_shim(host, tmp_path):
    spec = script(IDLE, port=8123)
    identity, ears = await started(host, spec)
    await host.close()
    (found,) = await host.recover()
    assert (found.state, found.identity) == ("ALIVE", identity)
    assert (found.engine_id, found.pool_id, found.generation, found.port) == (spec.engine_id, "pool", 1, 8123)
    new_ears = Recorder()
    host.attach(spec.engine_id, new_ears)
    os.kill(identity.pid, signal.SIGKILL)
    told = await new_ears.end()
    assert (told.signal, told.source) == (signal.SIGKILL, "shim")
    assert ears.told.empty()
    await host.start(spec, new_ears)  # under the same shim


@pytest.mark.behaviour("PROC-6", "PROC-7")
async def test_the_next_daemon_adopts_an_engine_whose_shim_has_died_too(host):
    spec = script(IDLE)
    identity, _ = await started(host, spec)
    keeper_fd = os.pidfd_open(keeper := shim_pid(host, spec.engine_id))
    await host.close()
    os.kill(keeper, signal.SIGKILL)
    await gone(keeper_fd)
    (found,) = await host.recover()
    assert found.identity == identity
    ears = Recorder()
    host.attach(spec.engine_id, ears)
    os.kill(identity.pid, signal.SIGTERM)
    told = await ears.end()
    assert told.signal == signal.SIGTERM
    assert told.source in ("waitid", "zombie", "pidfd_info")


@pytest.mark.behaviour("PROC-6")
async def test_an_end_that_no_daemon_saw_is_found_in_the_exit_record(host):
    spec = script(IDLE)
    identity, _ = await started(host, spec)
    keeper_fd = os.pidfd_open(shim_pid(host, spec.engine_id))
    await host.close()
    os.kill(identity.pid, signal.SIGBUS)
    await gone(keeper_fd)
    (found,) = await host.recover()
    assert (found.state, found.exit.signal, found.exit.source) == ("DEAD", signal.SIGBUS, "shim")
    ears = Recorder()
    host.attach(spec.engine_id, ears)
    assert await ears.end() == found.exit
    await host.remove(spec.engine_id)
    assert not Path(host._directory, spec.engine_id).exists()


def rewrite_ident(host, spec, **changes):
    from poolmgr.adapters.shim import records

    path = str(Path(host.directory(spec.engine_id), "ident"))
    records.write(path, records.read(path) | changes, durable=True)


@pytest.mark.behaviour("PROC-6")
@pytest.mark.parametrize(("field", "named"), [("start_ticks", "start time"), ("pidfd_inode", "pidfd inode")])
async def test_a_process_that_matches_only_in_part_is_in_doubt_and_left_alone(host, field, named):
    spec = script(IDLE)
    identity, _ = await started(host, spec)
    if record(host, spec.engine_id, "ident")[field] is None:
        pytest.skip("this kernel gives pidfds no inode of their own")
    rewrite_ident(host, spec, **{field: 1})
    await host.close()
    (found,) = await host.recover()
    assert (found.state, found.identity, found.exit) == ("IN_DOUBT", None, None)
    assert named in found.detail
    assert running(identity.pid)
    with pytest.raises(InternalError):
        host.attach(spec.engine_id, Recorder())


@pytest.mark.behaviour("PROC-6")
async def test_an_unreadable_record_with_processes_left_is_in_doubt(host):
    spec = script(IDLE)
    identity, _ = await started(host, spec)
    Path(host.directory(spec.engine_id), "ident").write_text("{")
    await host.close()
    (found,) = await host.recover()
    assert found.state == "IN_DOUBT"
    assert str(identity.pid) in found.detail


@pytest.mark.behaviour("PROC-6")
async def test_an_unreadable_spec_without_processes_is_dead_of_an_unknown_cause(host):
    spec = launch("/bin/true")
    _, ears = await started(host, spec)
    await ears.end()
    Path(host.directory(spec.engine_id), "spec").write_text("{")
    await host.close()
    (found,) = await host.recover()
    assert (found.state, found.exit.source, found.pool_id) == ("DEAD", "unknown", "")
    await host.remove(spec.engine_id)


@pytest.mark.behaviour("PROC-6")
async def test_an_identity_of_another_boot_or_of_a_stranger_is_dead(host):
    spec = launch("/bin/true")
    _, ears = await started(host, spec)
    await ears.end()
    for changes in ({"boot_id": "another"}, {"boot_id": record(host, spec.engine_id, "ident")["boot_id"], "pid": 1}):
        rewrite_ident(host, spec, **changes)
        await host.close()
        (found,) = await host.recover()
        assert (found.state, found.exit.source) == ("DEAD", "unknown")


@pytest.mark.behaviour("PROC-5")
async def test_nothing_is_left_open_after_an_engine_is_removed(host):
    spec = script(FAMILY.format(then="signal.pause()"))
    await host._workers.run(int)  # the thread pool's own
    before = open_fds()
    _, ears = await started(host, spec)
    await lines_of(host, spec.engine_id, 1)
    host.kill_tree(spec.engine_id)
    await ears.end()
    await host.remove(spec.engine_id)
    assert open_fds() == before
    with pytest.raises(KeyError):
        log_path(host, spec)


@pytest.mark.behaviour("PROC-1")
async def test_a_log_is_bounded_and_no_line_is_lost(host, tmp_path):
    """The engine writes 20 KB each time that it is asked to; a follower reads along, across several cuts."""
    os.mkfifo(ask := tmp_path / "ask")
    spec = script(
        f"turns, n = open({str(ask)!r}), 0\n"
        "while turns.readline():\n"
        "    for n in range(n, n + 200): print(f'{n:08}', '.' * 90)\n"
        "    n += 1",
        log_limit_bytes=128 * 1024,
    )
    _, ears = await started(host, spec)
    old, log = Path(host.directory(spec.engine_id), "log.1"), Path(log_path(host, spec))
    seen: list[int] = []
    cuts: set[tuple[int, int]] = set()
    written = 0
    turns = ask.open("w", buffering=1)
    follower = host.follow_log(spec.engine_id, 0)
    async for batch in follower:
        seen += [int(line.split()[0]) for line in batch]
        if len(seen) == written:
            if old.exists():
                cuts.add((old.stat().st_ino, old.stat().st_mtime_ns))
            if len(cuts) == 3:
                break
            turns.write("go\n")
            written += 200
    await follower.aclose()
    turns.close()
    await ears.end()
    assert seen == list(range(written))
    on_disk = [int(line.split()[0]) for line in (old.read_bytes() + log.read_bytes()).splitlines()[1:]]
    assert on_disk == list(range(on_disk[0], written))
    assert log.stat().st_size < written * 100
    assert host.usage(spec.engine_id).log_bytes > 0


@pytest.mark.behaviour("PROC-1")
async def test_a_log_that_cannot_be_cut_is_truncated_and_says_so(tmp_path):
    shared_memory = Path("/dev/shm", f"poolmgr-test-{os.getpid()}")
    if not Path("/dev/shm").is_mount():
        pytest.skip("needs a file system that cannot collapse ranges")
    host = runtime(shared_memory, log_check_seconds=0.05)
    os.mkfifo(more := tmp_path / "more")
    spec = script(
        f"for n in range(3000): print(f'{{n:08}}', '.' * 90)\nopen({str(more)!r}).read(); print('last')",
        log_limit_bytes=128 * 1024,
    )
    _, ears = await started(host, spec)
    async with aclosing(host.follow_log(spec.engine_id, 1000)) as follower:
        async for batch in follower:
            if any("lines written in that moment may be lost" in line for line in batch):
                break
    more.open("w").close()
    await ears.end()
    directory = Path(host.directory(spec.engine_id))
    assert host.log_tail(spec.engine_id, 5)[-1] == "last"
    assert (directory / "log").stat().st_size < 128 * 1024
    old = (directory / "log.1").read_bytes().rpartition(b"\0")[2]  # before it the hole of what was beyond the limit
    kept = [int(line.split()[0]) for line in old.splitlines()[1:-1]]
    assert kept == list(range(kept[0], kept[0] + len(kept)))
    assert len(kept) > 100
    await host.remove(spec.engine_id)
    await host.close()
    (shared_memory / "engines").rmdir()
    shared_memory.rmdir()


@pytest.mark.behaviour("PROC-1")
async def test_a_follower_ends_when_the_engine_is_removed(host):
    spec = script("print('one'); print('two'); print('three')")
    _, ears = await started(host, spec)
    await ears.end()
    follower = host.follow_log(spec.engine_id, 2)
    assert await anext(follower) == ("two", "three")
    await host.remove(spec.engine_id)
    with pytest.raises(StopAsyncIteration):
        await anext(follower)


@pytest.mark.behaviour("PROC-1")
async def test_a_log_tail_is_bounded_and_bears_any_bytes(host):
    spec = script("import os\nos.write(1, b'x' * 100_000 + b'\\nbad \\xff\\nend')")
    _, ears = await started(host, spec)
    await ears.end()
    assert host.log_tail(spec.engine_id, 2) == ("bad �", "end")
    assert host.log_tail(spec.engine_id, 50) == ("bad �", "end")
    assert host.log_tail(spec.engine_id, 0) == ()


@pytest.mark.behaviour("PROC-1")
async def test_usage_counts_the_whole_tree(host):
    spec = script("import os, signal\nblock = b'x' * 20_000_000\nif os.fork(): print('up')\nsignal.pause()")
    _, ears = await started(host, spec)
    await lines_of(host, spec.engine_id, 1)
    used = host.usage(spec.engine_id)
    assert used.rss_bytes > 20_000_000
    assert used.read_bytes > 0
    assert used.log_bytes == 3
    host.kill_tree(spec.engine_id)
    await ears.end()
    assert host.usage(spec.engine_id).rss_bytes is None


@pytest.mark.behaviour("LIVE-2")
async def test_what_a_tree_computes_counts_over_all_its_processes_and_those_that_have_ended(host):
    computes = "while time.process_time() < 0.3: pass"
    spec = script(
        f"import os, signal, time\nif not os.fork():\n {computes}\n os._exit(0)\nos.wait()\nprint('up')\nsignal.pause()"
    )
    _, ears = await started(host, spec)
    await lines_of(host, spec.engine_id, 1)
    used = host.usage(spec.engine_id).cpu_seconds
    assert 0.25 <= used <= 2.0
    assert 0.0 <= host.usage(spec.engine_id).cpu_seconds - used <= 0.1
    host.kill_tree(spec.engine_id)
    await ears.end()


@pytest.mark.behaviour("PROC-1")
async def test_the_owner_of_a_port_is_found_anywhere_in_the_tree(host):
    spec = script(
        "import os, signal, socket\nif os.fork() == 0:\n    s = socket.create_server(('127.0.0.1', 0))\n"
        "    print(os.fstat(s.fileno()).st_ino)\nsignal.pause()"
    )
    await started(host, spec)
    (inode,) = await lines_of(host, spec.engine_id, 1)
    with socket.socket() as ours:
        listeners = {1: [int(inode)], 2: [os.fstat(ours.fileno()).st_ino], 3: []}
        host._listener_inodes = listeners.__getitem__
        assert [host.owner_of_port(spec.engine_id, port) for port in (1, 2, 3)] == [True, False, None]


MEMORY = Path("/sys/fs/cgroup/memory")


@pytest.fixture
def memory_cgroup():
    if os.geteuid() or not (MEMORY / "memory.limit_in_bytes").exists():
        pytest.skip("needs root and the memory controller of cgroup v1")
    group = MEMORY / f"poolmgr-test-{os.getpid()}"
    group.mkdir()
    yield group
    group.rmdir()


@pytest.mark.needs_root
@pytest.mark.behaviour("LIVE-3")
@pytest.mark.needs_root
async def test_an_engine_that_the_oom_killer_took_is_told_apart_from_one_that_was_killed(host, memory_cgroup):
    """The shim is started from inside of the memory cgroup and hands it down; the limit comes after we left it."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    home = next(path for _, names, path in (line.split(":", 2) for line in lines) if "memory" in names.split(","))
    spec = script("import signal\nsignal.signal(12, lambda *_: bytearray(200_000_000))\nprint('up')\nsignal.pause()")
    (memory_cgroup / "cgroup.procs").write_text(str(os.getpid()))
    try:
        identity, ears = await started(host, spec)
    finally:
        (MEMORY / home.lstrip("/") / "cgroup.procs").write_text(str(os.getpid()))
    await lines_of(host, spec.engine_id, 1)
    os.kill(identity.pid, signal.SIGKILL)
    assert not (await ears.end()).oom_killed
    (memory_cgroup / "memory.limit_in_bytes").write_text("60000000")
    identity = await host.start(spec, ears)
    await lines_of(host, spec.engine_id, 2)
    os.kill(identity.pid, signal.SIGUSR2)
    told = await ears.end()
    assert (told.signal, told.oom_killed) == (signal.SIGKILL, True)
    await host.remove(spec.engine_id)


@pytest.mark.behaviour("PROC-3", "PROC-7")
async def test_an_engine_that_starts_again_after_a_kill_without_its_shim_lives(host):
    spec = script(IDLE)
    _, ears = await started(host, spec)
    keeper_fd = os.pidfd_open(keeper := shim_pid(host, spec.engine_id))
    os.kill(keeper, signal.SIGKILL)
    await gone(keeper_fd)
    host.kill_tree(spec.engine_id)
    await ears.end()
    identity, again = await started(host, spec)
    keeper_fd = os.pidfd_open(keeper := shim_pid(host, spec.engine_id))
    os.kill(keeper, signal.SIGKILL)  # the tree is watched without a shim once more
    await gone(keeper_fd)
    assert running(identity.pid)
    host.kill_tree(spec.engine_id)
    assert (await again.end()).signal == signal.SIGKILL
    await host.remove(spec.engine_id)
