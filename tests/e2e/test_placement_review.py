"""What a user of placement ran into: a start that never came to its end; and what many at once get."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from poolmgr.v1 import pool_pb2 as pb
from tests.e2e.daemon import eventually
from tests.e2e.gpus import GIB, QUICK, GpuDaemon, visible
from tests.e2e.placed import pool

pytestmark = pytest.mark.e2e


@pytest.fixture
def own(tmp_path: Path) -> Iterator[GpuDaemon]:
    daemon = GpuDaemon(tmp_path, QUICK, scenario="3xT4")
    try:
        yield daemon.start()
        assert daemon.shutdown() == 0
        assert daemon.family() == []
    finally:
        daemon.destroy()


@pytest.mark.behaviour("SPLIT-2", "PRE-7")
def test_a_ratio_too_small_for_a_layer_starts_and_restarts_where_it_was(own: GpuDaemon) -> None:
    with own.client() as client:
        spec = pool(own, own.state, 8, pb.SPLIT_EXPLICIT, mask="0,1,2")
        spec.split.ratios.extend([0.49, 0.01, 0.5])
        client.create_pool("uneven", spec)
        before = client.preload("uneven", wait=20)
        seen = visible(before.pid)
        assert before.ready and seen == own.uuids(0, 2, 1)
        client.stop("uneven", wait=20)
        after = client.preload("uneven", wait=20)
        assert after.ready and visible(after.pid) == seen


@pytest.mark.behaviour("MEM-2", "PRE-7")
def test_many_pools_that_start_at_once_never_have_more_than_there_is(own: GpuDaemon) -> None:
    with own.client() as client:
        spec = pool(own, own.state, 8)
        names = [f"p{n}" for n in range(12)]
        for name in names:
            client.create_pool(name, spec)
        for name in names:
            client.preload(name)

        def settled() -> list[pb.Pool] | None:
            pools = client.list_pools()
            done = all(p.ready or p.last_error.reason == "INSUFFICIENT_MEMORY" for p in pools)
            return pools if done else None

        pools = eventually(settled, 40, client.list_pools)
        ready = [p for p in pools if p.ready]
        per_gpu = {one: sum(visible(p.pid) == [one] for p in ready) for one in own.uuids(0, 1, 2)}
        assert set(per_gpu.values()) == {3}, "each of 15 GiB has room for three of some 4 GiB"
        assert all(p.restart_count == 0 for p in pools)
        for gpu in range(3):
            rows = own.host.state.processes(gpu)
            assert sum(int(row["bytes"] or 0) for row in rows if not row["gone"]) <= 15 * GIB
