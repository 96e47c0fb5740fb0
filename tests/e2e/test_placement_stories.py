"""Pools that are placed: by what models need and devices have, whoever else takes memory of them meanwhile.

Real processes take memory by the plan that they are told, on a simulated driver (`tests.e2e.placed`); what they hold is
read from the driver, not from the daemon.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from poolmgr.client import CallError
from poolmgr.v1 import device_pb2 as dpb
from poolmgr.v1 import placement_pb2
from poolmgr.v1 import pool_pb2 as pb
from tests.e2e.daemon import eventually
from tests.e2e.engines import tell
from tests.e2e.gpus import GIB, QUICK, GpuDaemon, environment_of, seen_on, visible
from tests.e2e.placed import CONTEXT, Stranger, a_model, pool

pytestmark = pytest.mark.e2e

SMALL, LARGE, TOO_LARGE = 20, 45, 200  # layers: on one T4 of 15 GiB, on two, on no two
TOLERANCE = 512 << 20  # the driver keeps some of each card for itself


@pytest.fixture
def own(tmp_path: Path) -> Iterator[GpuDaemon]:
    daemon = GpuDaemon(tmp_path, QUICK, scenario="2xT4")
    try:
        yield daemon.start()
        assert daemon.shutdown() == 0
        assert daemon.family() == []
    finally:
        daemon.destroy()


def held(daemon: GpuDaemon, gpu: int, pid: int) -> int:
    """Bytes, as the driver lists them."""
    rows = daemon.host.state.processes(gpu)
    return sum(int(row["bytes"] or 0) for row in rows if row["pid"] == pid and not row["gone"])


@pytest.mark.behaviour("SPLIT-1", "SPLIT-2", "SPLIT-6", "PRE-9")
def test_a_model_too_large_for_one_gpu_is_split_and_takes_of_each_what_the_plan_says(own: GpuDaemon) -> None:
    with own.client() as client:
        client.create_pool("large", pool(own, own.state, LARGE, pb.SPLIT_AUTO))
        large = client.preload("large", wait=20)
        assert large.ready, large.last_error
        plan = large.split_plan
        assert plan.fits and plan.optimal and sum(plan.ratios) == 1.0
        assert visible(large.pid) == [one.device_id for one in plan.assignments]
        argv = psutil.Process(large.pid).cmdline()
        ends = [(one.first_layer, one.last_layer) for one in plan.assignments]
        assert ends[0][0] == 0 and all(b[0] == a[1] + 1 for a, b in pairwise(ends))
        assert "--gpu-memory" in argv
        for one in plan.assignments:
            gpu = own.uuids(0, 1).index(one.device_id)
            planned = one.weight_bytes + one.kv_bytes + one.overhead_bytes
            assert held(own, gpu, large.pid) == pytest.approx(planned, rel=0.1)
        claims = eventually(
            lambda: ((found := client.list_claims()) and all(c.measured_bytes for c in found) and found) or None, 10
        )
        assert {claim.device_id for claim in claims} == set(own.uuids(0, 1))
        client.delete("large")


@pytest.mark.behaviour("MEM-2", "PRE-6", "PRE-7", "PLACE-1")
def test_pools_that_start_at_once_never_get_the_same_memory_and_the_one_too_many_waits_for_room(own: GpuDaemon) -> None:
    with own.client() as client:
        spec = pool(own, own.state, SMALL)
        for name in ("a", "b", "c"):
            client.create_pool(name, spec)
        for name in ("a", "b", "c"):
            client.preload(name)
        late = eventually(
            lambda: next((p for p in client.list_pools() if p.state == pb.Pool.BACKOFF), None), 20, client.list_pools
        )
        assert late.last_error.reason == "INSUFFICIENT_MEMORY" and late.restart_count == 0 and late.pid == 0
        first, second = (own.until(name, lambda p: p.ready) for name in {"a", "b", "c"} - {late.pool_id})
        assert seen_on(own.host, [first.pid]) | seen_on(own.host, [second.pid]) == {0, 1}
        freed = visible(first.pid)
        client.delete(first.pool_id)
        served = own.until(late.pool_id, lambda p: p.ready)
        assert visible(served.pid) == freed
        assert client.get_pool(second.pool_id).pid == second.pid


@pytest.mark.behaviour("MEM-2", "PLACE-1")
def test_a_stranger_that_comes_between_the_choice_and_the_start_moves_the_start(own: GpuDaemon) -> None:
    """The second pool queues behind the first one's start on the GPU that both were to share; meanwhile it fills."""
    with own.client() as client:
        with Stranger(own, 1, 12 * GIB):
            slow = pool(own, own.state, 8, args=("--load-seconds", "3"))
            client.create_pool("slow", slow)
            client.create_pool("next", pool(own, own.state, 8))
            client.preload("slow")
            own.until("slow", lambda p: p.state == pb.Pool.STARTING)
            client.preload("next")
            waiting = own.until("next", lambda p: p.progress.queue_position > 0)
            assert waiting.pid == 0
        with Stranger(own, 0, 8 * GIB):
            moved = own.until("next", lambda p: p.ready)
            assert visible(moved.pid) == own.uuids(1)
            assert client.get_pool("slow").ready and moved.restart_count == 0


@pytest.mark.behaviour("PRE-6", "MEM-2")
def test_a_refusal_tells_every_number_and_an_impossible_pool_is_refused_at_once(own: GpuDaemon) -> None:
    with own.client() as client:
        with pytest.raises(CallError) as impossible:
            client.create_pool("never", pool(own, own.state, TOO_LARGE, pb.SPLIT_AUTO))
        assert impossible.value.reason == "INSUFFICIENT_MEMORY"
        assert int(impossible.value.metadata["missing_bytes"]) > 40 * GIB
        assert client.list_pools() == []
        client.create_pool("blocked", pool(own, own.state, SMALL, mask="0"))
        with Stranger(own, 0, 12 * GIB):
            client.preload("blocked")
            blocked = own.until("blocked", lambda p: p.state == pb.Pool.BACKOFF)
            assert blocked.last_error.reason == "INSUFFICIENT_MEMORY"
            assert "in use" in blocked.last_error.message and "by strangers" in blocked.last_error.message
            asked = placement_pb2.PlanPlacementRequest(
                model_path=str(a_model(own.state, f"of-{SMALL}", SMALL)), context_length=CONTEXT, device_mask="0"
            )
            answer = client.plan_placement(asked)
            assert not answer.fits and answer.missing_bytes > 0
            numbers = answer.fates[0].numbers
            assert int(numbers["unmanaged_bytes"]) == pytest.approx(12 * GIB, abs=TOLERANCE)
        own.until("blocked", lambda p: p.ready)


@pytest.mark.behaviour("MEM-3", "SPLIT-6", "PRE-9")
def test_an_engine_that_takes_more_than_was_thought_is_told_of_and_the_next_estimate_knows(own: GpuDaemon) -> None:
    offset = own.log_size()
    with own.client() as client:
        client.create_pool("greedy", pool(own, own.state, SMALL, takes=1.3))
        greedy = client.preload("greedy", wait=20)
        assert greedy.ready
        miss = own.wait_for_log("memory_miss", offset)
        took = held(own, own.uuids(0, 1).index(visible(greedy.pid)[0]), greedy.pid)
        assert int(str(miss["measured_bytes"])) == took
        model = str(a_model(own.state, f"of-{SMALL}", SMALL))
        learned = eventually(
            lambda: ((e := client.estimate_memory(placement_pb2.EstimateMemoryRequest(
                model_path=model, context_length=CONTEXT))).factor > 1.0 and e) or None, 10
        )  # fmt: skip
        assert learned.one_device_bytes == pytest.approx(took, rel=0.01)
    own.terminate(signal.SIGKILL)
    with own.start().client() as client:
        again = client.estimate_memory(placement_pb2.EstimateMemoryRequest(model_path=model, context_length=CONTEXT))
        assert again.one_device_bytes == learned.one_device_bytes
        assert client.get_pool("greedy").pid == greedy.pid


@pytest.mark.behaviour("STATE-1", "RST-3", "PLACE-4")
def test_a_pool_with_a_choice_leaves_a_gpu_that_fails_for_one_that_does_not(own: GpuDaemon) -> None:
    with own.client() as client:
        client.create_pool("mobile", pool(own, own.state, SMALL))
        before = client.preload("mobile", wait=20)
        (was,) = visible(before.pid)
        own.host.fault("xid", gpu=own.uuids(0, 1).index(was), code=79)
        moved = own.until("mobile", lambda p: p.ready and p.pid != before.pid, 20)
        (now,) = visible(moved.pid)
        assert now != was and client.get_device(was).state == dpb.Device.QUARANTINED


@pytest.mark.behaviour("DRN-2")
@pytest.mark.parametrize(("layers", "beside"), [(8, True), (SMALL, False)], ids=["room for both", "room for one"])
def test_a_reload_starts_beside_the_old_engine_where_both_fit_and_in_its_place_where_not(
    own: GpuDaemon, layers: int, beside: bool
) -> None:
    offset = own.log_size()
    with own.client() as client, Stranger(own, 1, 14 * GIB):
        client.create_pool("served", pool(own, own.state, layers))
        before = client.preload("served", wait=20)
        assert before.ready
        eventually(lambda: [c for c in client.list_claims() if c.holder == "served" and c.measured_bytes] or None, 10)
        after = client.reload("served", wait=20)
        assert after.ready and after.pid != before.pid and after.generation == 2, after.last_error
        started = own.wait_for_log("reload_started", offset)
        assert started["beside"] is beside
        own.until("served", lambda p: not p.reload_phase)
        assert not psutil.pid_exists(before.pid)
        assert environment_of(after.pid)["CUDA_VISIBLE_DEVICES"] == own.uuids(0)[0]


@pytest.mark.behaviour("PLACE-5")
def test_an_eviction_is_proposed_of_idle_pools_alone_and_stops_none(own: GpuDaemon) -> None:
    with own.client() as client:
        spec = pool(own, own.state, SMALL)
        for name in ("used", "idle"):
            client.create_pool(name, spec)
            assert client.preload(name, wait=20).ready
        eventually(lambda: len([c for c in client.list_claims() if c.measured_bytes]) == 2 or None, 10)
        lease = client.acquire("used", holder="test", ttl=60)
        asked = placement_pb2.PlanPlacementRequest(
            model_path=spec.model.path, context_length=CONTEXT, device_mask="auto", evict=True
        )
        answer = client.plan_placement(asked)
        assert not answer.fits and list(answer.evictions) == ["idle"]
        assert {p.pool_id for p in client.list_pools() if p.ready} == {"used", "idle"}
        client.release(lease.lease_id, lease.token)


@pytest.mark.behaviour("PROC-6", "MEM-2")
def test_the_next_daemon_counts_what_an_engine_that_is_still_loading_will_take(own: GpuDaemon) -> None:
    with own.client() as client:
        client.create_pool("loads", pool(own, own.state, SMALL, args=("--never-ready",), mask="0"))
        client.preload("loads")
        loading = own.until("loads", lambda p: p.state == pb.Pool.STARTING)
    own.terminate(signal.SIGKILL)
    with own.start().client() as client:
        assert client.get_pool("loads").pid == loading.pid
        claim = next(claim for claim in client.list_claims() if claim.holder == "loads")
        assert claim.reserved_bytes > 8 * GIB


@pytest.mark.behaviour("RST-3")
def test_a_generation_that_fails_on_a_second_gpu_too_is_parked_until_it_is_edited(own: GpuDaemon) -> None:
    with own.client() as client:
        client.create_pool("bad", pool(own, own.state, SMALL))
        client.preload("bad")
        seen: list[str] = []
        for _ in range(4):
            run = own.until("bad", lambda p: p.ready and visible_or_none(p.pid) is not None, 20)
            seen += visible(run.pid)
            tell(run.endpoint, log="CUDA error: an illegal memory access was encountered", exit=1)
            own.until("bad", lambda p, pid=run.pid: p.pid != pid)
        assert len(set(seen[:2])) == 1 and set(seen[2:]) == set(own.uuids(0, 1)) - set(seen[:2])
        parked = own.until("bad", lambda p: p.state == pb.Pool.PARKED)
        assert parked.state_reason.startswith("GENERATION_BLOCKED") and "2 GPUs" in parked.last_error.message
        assert parked.last_error.reason == "CUDA_ERROR" and not parked.HasField("backoff_until")
        assert all(d.state != dpb.Device.QUARANTINED for d in client.list_devices()), "it is not the GPUs' fault"
        client.update_pool("bad", pool(own, own.state, SMALL, args=("--load-seconds", "0")))
        assert client.preload("bad", wait=20).ready


def visible_or_none(pid: int) -> list[str] | None:
    try:
        return visible(pid)
    except psutil.NoSuchProcess:
        return None
