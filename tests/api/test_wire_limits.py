"""What the wire may do to the daemon: how much it takes, how long it waits for a peer, who may share its port."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from poolmgr.api.server import HANDSHAKE_TIMEOUT_MS, MAX_METADATA_BYTES, ApiServer, ServerSettings
from poolmgr.errors import EnvironmentFault, Reason
from poolmgr.v1 import admin_pb2
from poolmgr.v1.admin_pb2_grpc import AdminServiceStub
from tests.e2e.daemon import Daemon

pytestmark = pytest.mark.behaviour("SEC-3")


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path_factory.mktemp("daemon"))
    try:
        yield daemon.start()
        assert daemon.shutdown() == 0
    finally:
        daemon.destroy()


def status_code(daemon: Daemon, metadata_bytes: int) -> grpc.StatusCode:
    with grpc.insecure_channel(daemon.address) as channel:
        try:
            AdminServiceStub(channel).GetStatus(
                admin_pb2.GetStatusRequest(), metadata=[("x-padding", "a" * metadata_bytes)], timeout=10
            )
        except grpc.RpcError as error:
            return error.code()
    return grpc.StatusCode.OK


async def test_a_second_server_cannot_share_the_port(tmp_path: Path) -> None:
    first = ApiServer(ServerSettings("127.0.0.1", 0, False, 4 << 20, 16))
    port = int(first.bind().rpartition(":")[2])
    second = ApiServer(ServerSettings("127.0.0.1", port, False, 4 << 20, 16))
    with pytest.raises(EnvironmentFault, match="is another daemon there") as raised:
        second.bind()
    assert raised.value.reason is Reason.ADDRESS
    await second.stop(0)
    await first.stop(0)


def test_metadata_up_to_the_limit_is_taken_and_above_it_always_refused(daemon: Daemon) -> None:
    assert status_code(daemon, MAX_METADATA_BYTES // 2) is grpc.StatusCode.OK
    # Between a soft and a hard limit, refusals would be random.
    assert {status_code(daemon, MAX_METADATA_BYTES) for _ in range(5)} == {grpc.StatusCode.RESOURCE_EXHAUSTED}


def test_a_peer_that_says_nothing_is_cut_off(daemon: Daemon) -> None:
    host, _, port = daemon.address.rpartition(":")
    limit = HANDSHAKE_TIMEOUT_MS / 1000
    with socket.create_connection((host, int(port)), timeout=3 * limit) as silent:
        begun = time.monotonic()
        while silent.recv(4096):
            pass  # the server's own settings, which it sends first
        assert limit / 2 < time.monotonic() - begun < 2 * limit
