"""To another generation and back, with engines that run: nothing that serves is lost, whoever dies when."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from poolmgr.client import Client, LeaseRefused
from poolmgr.client.errors import CallError
from poolmgr.v1 import lease_pb2
from poolmgr.v1 import pool_pb2 as pb
from tests.e2e.daemon import Daemon, eventually
from tests.e2e.engines import ask, scripted

pytestmark = pytest.mark.e2e

BREAK, MAKE = pb.RELOAD_BREAK_BEFORE_MAKE, pb.RELOAD_MAKE_BEFORE_BREAK


def ready(daemon: Daemon, spec: pb.PoolSpec, pool_id: str = "a") -> pb.Pool:
    with daemon.client() as client:
        client.create_pool(pool_id, spec)
        pool = client.preload(pool_id, wait=15)
    assert pool.ready, pool
    return pool


def held(client: Client, pool_id: str = "a", ttl: float = 60) -> lease_pb2.Lease:
    return client.acquire(pool_id, holder="e2e", ttl=ttl)


@pytest.mark.behaviour("DRN-2", "DRN-4")
def test_a_reload_starts_the_new_engine_beside_the_old_one_which_goes_when_its_last_lease_does(own: Daemon) -> None:
    old = ready(own.start(), scripted(slots=3))
    with own.client() as client:
        lease = held(client)
        new = client.reload("a", scripted("--model", "new", slots=3), wait=15)
        assert (new.state, new.generation, new.reload_phase) == (pb.Pool.READY, 2, "retiring")
        assert new.pid != old.pid and new.endpoint != old.endpoint
        assert (new.active_leases, new.slots_free) == (1, 2)
        assert ask(lease.endpoint, "/health")[0] == 200 and psutil.pid_exists(old.pid)
        fresh = held(client)
        assert (fresh.generation, fresh.endpoint) == (2, new.endpoint)
        assert client.renew(lease.lease_id, lease.token).outcome == lease_pb2.Lease.RENEWED
        assert client.release(lease.lease_id, lease.token).outcome == lease_pb2.Lease.RELEASED
        eventually(lambda: not psutil.pid_exists(old.pid), 10)
        alone = own.until("a", lambda p: not p.reload_phase)
        assert alone.ready and alone.pid == new.pid and len(client.list_engines("a")) == 1
        assert client.release(lease.lease_id, lease.token).outcome == lease_pb2.Lease.ALREADY_RELEASED
        assert client.renew(fresh.lease_id, fresh.token).outcome == lease_pb2.Lease.RENEWED
    assert own.shutdown() == 0 and own.family() == []


@pytest.mark.behaviour("DRN-2", "DRN-3")
def test_a_reload_that_does_not_fit_beside_drains_first_and_aborts_at_its_deadline(own: Daemon) -> None:
    old = ready(own.start(), scripted(slots=1))
    with own.client() as client:
        lease = held(client)
        pool = client.reload("a", None, strategy=BREAK, drain_deadline=0.5, wait=15)
        assert (pool.state, pool.pid, pool.generation) == (pb.Pool.READY, old.pid, 1)
        assert pool.last_error.reason == "RELOAD_ABORTED"
        assert client.renew(lease.lease_id, lease.token).outcome == lease_pb2.Lease.RENEWED
        client.release(lease.lease_id, lease.token)
        pool = client.reload("a", None, strategy=BREAK, wait=15)
        assert pool.ready and pool.generation == 3 and pool.pid != old.pid
        assert not psutil.pid_exists(old.pid)
    assert own.shutdown() == 0 and own.family() == []


@pytest.mark.behaviour("DRN-3")
@pytest.mark.parametrize("strategy", [MAKE, BREAK])
def test_a_generation_that_does_not_start_leaves_the_old_one_serving_and_is_blocked_after_two_tries(
    own: Daemon, strategy: pb.ReloadStrategy
) -> None:
    old = ready(own.start(), scripted())
    bad = scripted("--crash-at", "load", "--exit-code", "3")
    with own.client() as client:
        for generation in (2, 3):
            client.reload("a", bad, strategy=strategy, wait=20)
            pool = own.until("a", lambda p: p.ready and not p.reload_phase)
            assert pool.generation == 1 and f"generation {generation}" in pool.last_error.message
            assert (pool.pid == old.pid) == (strategy == MAKE)
        with pytest.raises(CallError) as refused:
            client.reload("a", bad, strategy=strategy)
        assert refused.value.reason == "GENERATION_BLOCKED"
        assert next((g.generation, g.current, g.rolled_back) for g in client.generations("a")) == (1, True, 0)
        assert len(client.list_engines("a")) == 1
    assert own.shutdown() == 0 and own.family() == []


@pytest.mark.behaviour("DRN-4")
def test_rollback_goes_to_the_last_good_generation_or_to_any_that_is_kept(own: Daemon) -> None:
    ready(own.start(), scripted("--model", "one"))
    with own.client() as client:
        client.reload("a", scripted("--model", "two"), wait=15)
        own.until("a", lambda p: not p.reload_phase)
        client.reload("a", scripted("--model", "three"), wait=15)
        own.until("a", lambda p: not p.reload_phase)
        back = client.rollback("a", wait=15)
        assert back.generation == 2 and "two" in back.spec.args and back.ready
        own.until("a", lambda p: not p.reload_phase)
        first = client.rollback("a", generation=1, wait=15)
        assert first.generation == 1 and "one" in first.spec.args
        own.until("a", lambda p: not p.reload_phase)
        with pytest.raises(CallError) as refused:
            client.rollback("a", generation=9)
        assert refused.value.reason == "GENERATION_NOT_FOUND"
        assert [(g.generation, g.current) for g in client.generations("a")] == [(1, True), (2, False), (3, False)]
    assert own.shutdown() == 0


@pytest.mark.behaviour("DRN-4", "LEASE-1")
def test_a_rollback_while_the_old_engine_still_retires_is_served_by_that_very_engine(own: Daemon) -> None:
    old = ready(own.start(), scripted(slots=2))
    with own.client() as client:
        lease = held(client)
        new = client.reload("a", scripted("--model", "new", slots=2), wait=15)
        fresh = held(client)
        with pytest.raises(CallError) as refused:
            client.reload("a", scripted("--model", "third", slots=2))
        assert refused.value.reason == "RELOAD_IN_PROGRESS"
        back = client.rollback("a", wait=15)
        assert (back.generation, back.pid, back.active_leases) == (1, old.pid, 2)
        with pytest.raises(LeaseRefused):
            held(client)
        for each in (lease, fresh):
            assert client.renew(each.lease_id, each.token).outcome == lease_pb2.Lease.RENEWED
        client.release(fresh.lease_id, fresh.token)
        eventually(lambda: not psutil.pid_exists(new.pid), 10)
        assert held(client).endpoint == old.endpoint
    assert own.shutdown() == 0 and own.family() == []


@pytest.mark.behaviour("DRN-3", "LEASE-3", "PROC-6")
def test_a_daemon_that_dies_after_the_commit_is_rolled_forward_and_loses_no_lease(own: Daemon) -> None:
    old = ready(own.start(), scripted(slots=2))
    with own.client() as client:
        lease = held(client)
        new = client.reload("a", scripted("--model", "new", slots=2), wait=15)
        fresh = held(client)
    own.terminate(signal.SIGKILL)
    own.start()
    pool = own.until("a", lambda p: p.ready)
    assert (pool.generation, pool.pid, pool.active_leases, pool.reload_phase) == (2, new.pid, 2, "retiring")
    assert psutil.pid_exists(old.pid)
    with own.client() as client:
        with pytest.raises(LeaseRefused):
            held(client)
        for each in (lease, fresh):
            assert client.renew(each.lease_id, each.token).outcome == lease_pb2.Lease.RENEWED
        client.release(lease.lease_id, lease.token)
        eventually(lambda: not psutil.pid_exists(old.pid), 10)
        assert own.until("a", lambda p: not p.reload_phase).pid == new.pid
    assert own.shutdown() == 0 and own.family() == []


@pytest.mark.behaviour("DRN-3", "PROC-6", "PROC-7")
def test_a_daemon_that_dies_before_the_commit_is_rolled_back_and_the_new_engine_goes(own: Daemon) -> None:
    old = ready(own.start(), scripted(slots=2))
    with own.client() as client:
        lease = held(client)
        client.reload("a", scripted("--load-seconds", "60", slots=2))
        own.until("a", lambda p: p.reload_phase == "starting")
        beside = eventually(lambda: next((e for e in client.list_engines("a") if e.pid and e.pid != old.pid), None), 10)
    own.terminate(signal.SIGKILL)
    own.start()
    pool = own.until("a", lambda p: p.ready and not p.reload_phase)
    assert (pool.generation, pool.pid) == (1, old.pid)
    eventually(lambda: not psutil.pid_exists(beside.pid), 10)
    with own.client() as client:
        assert client.renew(lease.lease_id, lease.token).outcome == lease_pb2.Lease.RENEWED
        assert len(client.list_engines("a")) == 1
    assert own.shutdown() == 0 and own.family() == []


@pytest.mark.behaviour("DRN-2")
def test_under_load_no_acquire_fails_for_a_reload(own: Daemon) -> None:
    ready(own.start(), scripted(slots=4))
    stop = []

    def use() -> int:
        pairs = 0
        with own.client() as client:
            while not stop:
                with client.lease("a", holder="load", wait=5) as lease:
                    assert ask(lease.endpoint, "/health")[0] == 200
                pairs += 1
        return pairs

    with ThreadPoolExecutor(3) as pool:
        users = [pool.submit(use) for _ in range(3)]
        with own.client() as client:
            for number in range(3):
                assert client.reload("a", scripted("--model", str(number), slots=4), wait=15).ready
                own.until("a", lambda p: not p.reload_phase)
        stop.append(True)
        assert all(user.result() > 0 for user in users)
    assert own.shutdown() == 0 and own.family() == []
