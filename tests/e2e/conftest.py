"""One brisk daemon per module; whatever its tests do, it ends well and leaves no process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from poolmgr.client import Client
from tests.e2e.daemon import BRISK, Daemon


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path_factory.mktemp("daemon"), BRISK)
    try:
        daemon.start()
        yield daemon
        assert daemon.shutdown() == 0
        assert daemon.family() == []
    finally:
        daemon.destroy()


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon of this test alone, not started yet."""
    daemon = Daemon(tmp_path, BRISK)
    yield daemon
    daemon.destroy()


@pytest.fixture(scope="module")
def client(daemon: Daemon) -> Iterator[Client]:
    with daemon.client() as client:
        yield client


@pytest.fixture
def pool_id(request: pytest.FixtureRequest, daemon: Daemon) -> Iterator[str]:
    """An id for a pool of this test alone, which is gone afterwards."""
    pool_id = f"t-{abs(hash(request.node.nodeid)) % 10**9}"
    yield pool_id
    with daemon.client() as client:
        if any(pool.pool_id == pool_id for pool in client.list_pools()):
            client.stop(pool_id, grace=0)
            client.delete(pool_id, drain_deadline=0)
