"""`sockdiag.listener_inodes` against a readable twin that parses /proc/net/tcp and tcp6."""

import os
import socket
from pathlib import Path

import pytest
from poolmgr_ext.sockdiag import listener_inodes

LISTEN = "0A"


def twin(port: int) -> list[int]:
    """The same answer from the kernel's text tables: local port in hex, state 0A, inode in the tenth column."""
    found = []
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        rows = [line.split() for line in table.read_text().splitlines()[1:]]
        found += [int(row[9]) for row in rows if row[3] == LISTEN and int(row[1].rpartition(":")[2], 16) == port]
    return sorted(found)


def listener(family: int, address: str, port: int = 0, *, reuse_port: bool = False) -> socket.socket:
    return socket.create_server((address, port), family=family, reuse_port=reuse_port)


def inode(sock: socket.socket) -> int:
    return os.fstat(sock.fileno()).st_ino


@pytest.mark.behaviour("PRE-4")
@pytest.mark.parametrize(
    ("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::1")]
)
def test_a_listener_is_found_by_its_inode_on_either_family(family: int, address: str) -> None:
    with listener(family, address) as sock:
        port = sock.getsockname()[1]
        assert listener_inodes(port) == [inode(sock)] == twin(port)


@pytest.mark.behaviour("PRE-4")
def test_every_listener_of_a_port_is_named_so_that_a_stranger_beside_ours_is_seen() -> None:
    with listener(socket.AF_INET, "127.0.0.1", reuse_port=True) as first:
        port = first.getsockname()[1]
        with (
            listener(socket.AF_INET, "127.0.0.1", port, reuse_port=True) as second,
            listener(socket.AF_INET6, "::1", port) as third,
        ):
            assert sorted(listener_inodes(port)) == sorted(map(inode, (first, second, third))) == twin(port)
            assert listener_inodes(port)[-1] == inode(third)


def test_a_socket_that_is_connected_or_only_bound_is_no_listener() -> None:
    with listener(socket.AF_INET, "127.0.0.1") as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client, socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            assert listener_inodes(port) == [inode(server)]
            assert listener_inodes(client.getsockname()[1]) == []
            assert listener_inodes(bound.getsockname()[1]) == []
    assert listener_inodes(port) == [] == twin(port)


def test_more_listeners_than_can_be_listed_are_an_error_and_never_a_short_list() -> None:
    opened = [listener(socket.AF_INET, "127.0.0.1", reuse_port=True)]
    port = opened[0].getsockname()[1]
    try:
        opened += [listener(socket.AF_INET, "127.0.0.1", port, reuse_port=True) for _ in range(255)]
        assert sorted(listener_inodes(port)) == twin(port)
        opened.append(listener(socket.AF_INET, "127.0.0.1", port, reuse_port=True))
        with pytest.raises(OSError, match="sock_diag: Value too large"):
            listener_inodes(port)
    finally:
        for sock in opened:
            sock.close()


@pytest.mark.parametrize("port", [0, -1, 65536, 2**40])
def test_a_number_that_is_no_port_is_refused(port: int) -> None:
    with pytest.raises(ValueError, match=r"is outside 1\.\.65535"):
        listener_inodes(port)


def test_asking_leaves_no_descriptor_open() -> None:
    listener_inodes(9)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(100):
        listener_inodes(9)
    assert len(os.listdir("/proc/self/fd")) == before
