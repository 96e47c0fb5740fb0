"""The process runtime where the host or a shim does not do its part."""

# ruff: noqa: ASYNC240 (a test may wait for a small file)

from __future__ import annotations

import asyncio
import errno
import os
import resource
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from process_support import IDLE, Recorder, gone, launch, lines_of, log_path, runtime, script, shim_pid

from poolmgr.adapters import shim
from poolmgr.adapters.runtimes import procfs, shimlink
from poolmgr.adapters.runtimes.enginedir import EngineDirectory
from poolmgr.adapters.shim import wire
from poolmgr.errors import EnvironmentFault, Reason
from poolmgr.model.engine import RecoveryState

NOBODY = 65534


@pytest.fixture(params=[pytest.param("cgroup", marks=pytest.mark.needs_root), "process-group"])
async def host(request, tmp_path):
    """A runtime with each containment that does not wait long for a shim. Tests end what they start."""
    one = runtime(tmp_path, containment=request.param, patience=0.5)
    if one.containment != request.param:
        pytest.skip("this host has no cgroup v2 that we may write to")
    yield one
    await one.close()


@pytest.fixture
async def grouped(tmp_path):
    one = runtime(tmp_path, containment="process-group", patience=0.5)
    yield one
    await one.close()


async def ended_once(host, spec):
    """Started, killed, and heard to its end: the shim is idle and stays."""
    ears = Recorder()
    await host.start(spec, ears)
    host.kill_tree(spec.engine_id)
    await ears.end()
    return ears


async def put_away(host, spec, ears):
    host.kill_tree(spec.engine_id)
    await ears.end()
    await host.remove(spec.engine_id)


def stop(pid: int) -> int:
    """Stops a process; its pidfd."""
    pidfd = os.pidfd_open(pid)
    signal.pidfd_send_signal(pidfd, signal.SIGSTOP)
    return pidfd


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """This process can open nothing more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# A shim that hangs.


@pytest.mark.behaviour("PROC-5")
async def test_a_shim_that_is_stopped_gives_way_to_a_new_one_at_the_next_start(host):
    spec = script(IDLE)
    ears = await ended_once(host, spec)
    hung = stop(shim_pid(host, spec.engine_id))
    await host.start(spec, ears)
    await gone(hung)
    assert await lines_of(host, spec.engine_id, 1) == ["up"]
    await put_away(host, spec, ears)


@pytest.mark.behaviour("PROC-5", "PROC-6")
async def test_the_stopped_shim_of_another_daemon_gives_way_too_and_its_engine_is_heard_of(host):
    spec = script(IDLE)
    identity = await host.start(spec, Recorder())
    hung = stop(shim_pid(host, spec.engine_id))
    await host.close()
    await host.recover()
    ears = Recorder()
    host.attach(spec.engine_id, ears)
    os.kill(identity.pid, signal.SIGKILL)
    assert (await ears.end()).signal == signal.SIGKILL
    await host.start(spec, ears)
    await gone(hung)
    await put_away(host, spec, ears)


@pytest.mark.behaviour("PROC-5")
async def test_resting_kills_a_shim_that_does_not_leave(host):
    spec = script(IDLE)
    await ended_once(host, spec)
    hung = stop(shim_pid(host, spec.engine_id))
    await host.rest(spec.engine_id)
    await gone(hung)
    await host.remove(spec.engine_id)


@pytest.mark.behaviour("PROC-3", "PROC-5")
async def test_a_tree_is_killed_although_its_shim_is_stopped(host):
    spec, ears = script(IDLE), Recorder()
    await host.start(spec, ears)
    hung = stop(shim_pid(host, spec.engine_id))
    host.kill_tree(spec.engine_id)
    assert (await ears.end()).signal == signal.SIGKILL
    await host.remove(spec.engine_id)
    await gone(hung)


@pytest.mark.behaviour("PROC-6")
async def test_the_known_end_of_a_dead_engine_is_told_although_its_shim_is_stopped(host):
    child = "import os, signal\nif os.fork() == 0:\n    os.setsid()\n    signal.pause()\nos._exit(3)"
    spec, ears = script(child), Recorder()
    await host.start(spec, ears)
    await ears.exit()
    hung = stop(shim_pid(host, spec.engine_id))
    await host.close()
    (found,) = await host.recover()
    assert (found.state, found.survivors) == (RecoveryState.DEAD, True)
    ears = Recorder()
    host.attach(spec.engine_id, ears)
    host.kill_tree(spec.engine_id)
    assert await ears.end() == found.exit
    await host.remove(spec.engine_id)
    await gone(hung)


@pytest.mark.behaviour("PROC-5")
async def test_a_link_that_takes_no_more_counts_as_a_hung_shim():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    why: list[OSError] = []
    link = shimlink.ShimLink(ours, lambda message, fds: None, why.append)
    while link.send({"op": "kill"}):
        pass
    assert why == []  # never told from within a call to it
    await asyncio.sleep(0)
    assert [type(error) for error in why] == [TimeoutError]
    theirs.close()


# A shim without its native part.


@pytest.fixture
def plain_shim(tmp_path, monkeypatch):
    """The shim as on a host where `_spawn` was not built."""
    source = Path(shim.__file__).parent
    copy = shutil.copytree(source, tmp_path / "copy" / "shim", ignore=shutil.ignore_patterns("_spawn*", "__pycache__"))
    monkeypatch.setattr(shimlink, "_SHIM", str(copy))
    return copy


@pytest.mark.behaviour("PROC-1", "PROC-5")
async def test_a_shim_without_its_native_part_starts_and_restarts_engines(plain_shim, host):
    assert not list(plain_shim.glob("*.so"))
    spec, ears = script(IDLE), Recorder()
    for lives in (1, 2, 3):
        await host.start(spec, ears)
        assert await lines_of(host, spec.engine_id, lives) == ["up"] * lives
        command = Path(f"/proc/{shim_pid(host, spec.engine_id)}/cmdline").read_bytes()
        assert str(plain_shim).encode() in command.split(b"\0")
        host.kill_tree(spec.engine_id)
        assert (await ears.end()).signal == signal.SIGKILL
    await host.remove(spec.engine_id)


@pytest.mark.behaviour("PROC-1", "PROC-5")
async def test_a_shim_without_its_native_part_tells_the_errno_of_a_failed_exec(plain_shim, host, tmp_path):
    spec = launch(str(tmp_path / "missing"))
    with pytest.raises(EnvironmentFault) as caught:
        await host.start(spec, Recorder())
    assert caught.value.numbers == {"errno": errno.ENOENT, "path": spec.argv[0]}
    assert procfs.marked_pids(spec.engine_id) == []
    await host.remove(spec.engine_id)


# No descriptors.


@pytest.mark.behaviour("PROC-3", "PROC-5")
async def test_an_engine_whose_pidfd_finds_no_place_is_killed_and_its_start_refused(grouped):
    spec = script(IDLE)
    ears = await ended_once(grouped, spec)
    with no_descriptor_left(), pytest.raises(EnvironmentFault) as caught:
        await grouped.start(spec, ears)
    assert (caught.value.reason, caught.value.numbers["errno"]) == (Reason.SPAWN_FAILED, errno.EMFILE)
    for pid in procfs.marked_pids(spec.engine_id):
        await gone(os.pidfd_open(pid))
    await grouped.start(spec, ears)
    await put_away(grouped, spec, ears)


@pytest.mark.behaviour("PROC-3")
async def test_what_is_asked_of_an_engine_is_unknown_where_nothing_can_be_opened(host):
    spec, ears = script(IDLE), Recorder()
    await host.start(spec, ears)
    await lines_of(host, spec.engine_id, 1)
    host._listener_inodes = lambda port: [int(os.stat("/proc/self").st_ino)]
    with no_descriptor_left():
        assert (host.usage(spec.engine_id).rss_bytes, host.usage(spec.engine_id).read_bytes) == (None, None)
        assert host.owner_of_port(spec.engine_id, 1) is None
        assert host.log_tail(spec.engine_id, 5) == ("(the log cannot be read: Too many open files)",)
        host.kill_tree(spec.engine_id)
    assert (await ears.end()).signal == signal.SIGKILL
    await host.remove(spec.engine_id)


async def test_the_owner_of_a_port_is_unknown_when_listeners_cannot_be_asked_for(grouped):
    spec = script(IDLE)
    ears = await ended_once(grouped, spec)

    def refuse(port: int) -> list[int]:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    grouped._listener_inodes = refuse
    assert grouped.owner_of_port(spec.engine_id, 1) is None
    assert ears.told.empty()
    await grouped.remove(spec.engine_id)


# Directories.


@pytest.mark.behaviour("PROC-1")
async def test_a_log_that_cannot_be_read_is_told_as_its_last_line(grouped):
    spec = script("print('one')")
    ears = Recorder()
    await grouped.start(spec, ears)
    await ears.end()
    Path(log_path(grouped, spec)).unlink()
    assert grouped.log_tail(spec.engine_id, 3) == ()
    Path(log_path(grouped, spec)).mkdir()
    assert grouped.log_tail(spec.engine_id, 3) == ("(the log cannot be read: Is a directory)",)
    assert grouped.log_tail(spec.engine_id, 0) == ()
    await grouped.remove(spec.engine_id)


@pytest.mark.behaviour("PROC-5", "PROC-6")
async def test_a_state_directory_that_is_gone_is_told_with_errno_and_path(grouped, tmp_path):
    (tmp_path / "engines").rmdir()
    spec = script(IDLE)
    with pytest.raises(EnvironmentFault) as start:
        await grouped.start(spec, Recorder())
    with pytest.raises(EnvironmentFault) as recover:
        await grouped.recover()
    for caught, path in ((start, tmp_path / "engines" / spec.engine_id), (recover, tmp_path / "engines")):
        assert caught.value.reason is Reason.STATE_DIR
        assert caught.value.numbers == {"errno": errno.ENOENT, "path": str(path)}


@pytest.mark.behaviour("PROC-6")
async def test_recovery_passes_over_what_is_no_engine_and_leaves_it_alone(grouped, tmp_path):
    spec = launch("/bin/true")
    ears = Recorder()
    await grouped.start(spec, ears)
    await ears.end()
    await grouped.rest(spec.engine_id)
    engines = tmp_path / "engines"
    (engines / "lost+found").mkdir()
    (engines / ("a" * 32)).write_text("a file")
    (engines / ("b" * 32)).symlink_to(engines / spec.engine_id)
    (engines / ("C" * 32)).mkdir()
    before = sorted(os.listdir(engines))
    await grouped.close()
    assert [found.engine_id for found in await grouped.recover()] == [spec.engine_id]
    assert sorted(os.listdir(engines)) == before
    await grouped.remove(spec.engine_id)


@pytest.fixture
def plain_user() -> Iterator[Path]:
    """A directory of a user who is not root, as whom this process runs meanwhile."""
    path = Path(tempfile.mkdtemp(prefix="poolmgr-test-"))
    root = os.geteuid() == 0
    if root:
        os.chown(path, NOBODY, NOBODY)
        os.seteuid(NOBODY)
    yield path
    if root:
        os.seteuid(0)
    shutil.rmtree(path, ignore_errors=True)


@pytest.mark.behaviour("PROC-5")
def test_a_directory_that_the_engine_closed_up_is_removed(plain_user):
    directory = EngineDirectory(plain_user / ("a" * 32))
    directory.create(script(IDLE), None, 5.0)
    closed = directory.path / wire.WORK / "closed"
    (closed / "inner").mkdir(parents=True)
    (closed / "inner" / "file").write_text("x")
    (closed / "inner").chmod(0)
    closed.chmod(0)
    directory.remove()
    assert not directory.path.exists()


@pytest.mark.needs_root
@pytest.mark.behaviour("PROC-5")
async def test_what_cannot_be_removed_is_told_and_the_next_try_may_do_it(plain_user):
    if os.getuid() != 0:
        pytest.skip("only root can make what another user cannot remove")
    name = "a" * 32
    EngineDirectory(plain_user / "engines" / name).path.parent.mkdir()
    EngineDirectory(plain_user / "engines" / name).create(script(IDLE), None, 5.0)
    foreign = plain_user / "engines" / name / wire.WORK / "foreign"
    os.seteuid(0)
    foreign.mkdir(mode=0o700)
    (foreign / "file").write_text("x")
    os.seteuid(NOBODY)
    host = runtime(plain_user, containment="process-group")
    await host.recover()
    with pytest.raises(EnvironmentFault) as caught:
        await host.remove(name)
    assert caught.value.reason is Reason.STATE_DIR
    assert caught.value.numbers["errno"] in (errno.EACCES, errno.EPERM)
    os.seteuid(0)
    await host.remove(name)
    os.seteuid(NOBODY)
    assert not (plain_user / "engines" / name).exists()
    await host.close()
