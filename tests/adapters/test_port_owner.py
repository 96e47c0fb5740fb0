"""Whose socket it is (PRE-4), also while the process that had it is going."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from poolmgr.adapters.runtimes import procfs


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
