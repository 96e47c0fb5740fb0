"""Whose socket it is (PRE-4), also while the process that had it is going."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from process_support import Recorder, launch

from poolmgr.adapters.runtimes import procfs
from poolmgr.adapters.runtimes.process import ProcessRuntime
from poolmgr.adapters.system import ThreadWorkers


def inode(sock: socket.socket) -> int:
    return os.fstat(sock.fileno()).st_ino


@pytest.mark.behaviour("PRE-4")
def test_a_process_holds_the_sockets_that_are_open_in_it_and_no_others() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mine:
        assert procfs.holds_socket(os.getpid(), {inode(mine)}) is True
        gone = inode(mine)
    assert procfs.holds_socket(os.getpid(), {gone}) is False


@pytest.mark.behaviour("PRE-4", "LIVE-3")
def test_a_process_that_has_ended_tells_nothing_so_its_port_is_not_called_a_strangers() -> None:
    child = subprocess.Popen([sys.executable, "-I", "-S", "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie: it is there, its descriptors are not
    assert procfs.holds_socket(child.pid, {1}) is None
    child.wait()
    assert procfs.holds_socket(child.pid, {1}) is None


@pytest.mark.behaviour("PRE-4", "LIVE-3")
@pytest.mark.parametrize(("second_look", "owned"), [({7}, False), (set(), None)])
async def test_a_socket_that_closes_while_it_is_looked_for_is_not_called_a_strangers(
    tmp_path: Path, second_look: set[int], owned: bool | None
) -> None:
    looks = iter([{7}, second_look])
    workers = ThreadWorkers("test", 1)
    runtime = ProcessRuntime(tmp_path, workers, listener_inodes=lambda port: next(looks))
    spec, ears = launch("/bin/sleep", "1000"), Recorder()
    await runtime.start(spec, ears)
    assert runtime.owner_of_port(spec.engine_id, 4711) is owned
    runtime.kill_tree(spec.engine_id)
    await ears.end()
    await runtime.remove(spec.engine_id)
    await runtime.close()
    workers.close()
