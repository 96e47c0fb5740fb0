"""What a daemon was told outlives it: leases, intents, policy, the pools themselves."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import apsw
import psutil
import pytest

from poolmgr.client import Client, LeaseRefused, acquiring, granted, releasing
from poolmgr.v1 import lease_pb2
from poolmgr.v1 import pool_pb2 as pb
from tests.e2e.daemon import Daemon, eventually
from tests.e2e.engines import scripted

pytestmark = pytest.mark.e2e

RENEWED, RELEASED = lease_pb2.Lease.RENEWED, lease_pb2.Lease.RELEASED


def ready(daemon: Daemon, pool_id: str = "a", **fields: object) -> pb.Pool:
    with daemon.client() as client:
        client.create_pool(pool_id, scripted(**fields))
        pool = client.preload(pool_id, wait=15)
    assert pool.ready, pool
    return pool


def acquire(client: Client, request_id: str = "", ttl: int = 60) -> lease_pb2.AcquireLeaseResponse:
    request = lease_pb2.AcquireLeaseRequest(pool_id="a", holder="e2e", request_id=request_id)
    request.ttl.FromSeconds(ttl)
    return client._leases.AcquireLease(request)


@pytest.mark.behaviour("LEASE-1", "LEASE-2", "LEASE-3", "LEASE-4", "LEASE-6")
def test_a_lease_survives_the_daemon_and_so_does_its_end(own: Daemon) -> None:
    ready(own.start(), slots=3)
    with own.client() as client, client.session() as session:
        kept, ended = (acquire(client, request_id).lease for request_id in ("one", "two"))
        batched = granted(session.run([acquiring("a", holder="e2e", ttl=60)])[0])
        client.release(ended.lease_id, ended.token)
        own.terminate(signal.SIGKILL)
    own.start()
    with own.client() as client:
        again = acquire(client, "one").lease
        assert (again.lease_id, again.token, again.fencing_token) == (kept.lease_id, kept.token, kept.fencing_token)
        assert client.release(ended.lease_id, ended.token).outcome == lease_pb2.Lease.ALREADY_RELEASED
        own.until("a", lambda p: p.ready)
        third = acquire(client).lease
        assert third.fencing_token > max(kept.fencing_token, batched.fencing_token)
        assert acquire(client).refusal.reason == lease_pb2.Refusal.POOL_FULL
        for lease in (kept, batched, third):
            assert client.renew(lease.lease_id, lease.token).outcome == RENEWED
        with client.session() as session:
            (result,) = session.run([releasing(batched)])
        assert result.release.outcome == RELEASED
    assert own.shutdown() == 0


@pytest.mark.behaviour("LEASE-1", "LEASE-2", "PROC-7")
def test_without_the_state_files_pools_are_rebuilt_from_what_runs_and_no_slot_is_given_twice(own: Daemon) -> None:
    own.settings = {**own.settings, "leases.ttl_max_secs": 5, "leases.ttl_default_secs": 5}
    before = ready(own.start(), slots=1, labels={"team": "search"})
    with own.client() as client:
        lease = acquire(client, ttl=5).lease
    own.terminate(signal.SIGKILL)
    for path in own.state.iterdir():
        if path.is_file():
            path.unlink()
    own.start()
    pool = own.until("a", lambda p: p.ready)
    assert (pool.pid, pool.endpoint, dict(pool.spec.labels)) == (before.pid, before.endpoint, {"team": "search"})
    with own.client() as client:
        assert any("rebuilt" in warning for warning in client.status().warnings)
        assert client.renew(lease.lease_id, lease.token).outcome == lease_pb2.Lease.UNKNOWN
        with pytest.raises(LeaseRefused) as refused:
            client.acquire("a", holder="too early")
        assert refused.value.reason == "POOL_NOT_READY" and "record" in refused.value.message
        later = client.acquire("a", holder="patient", wait=20)
        assert later.fencing_token > lease.fencing_token
    assert own.shutdown() == 0 and own.family() == []


@pytest.mark.behaviour("PROC-7")
def test_a_damaged_database_is_moved_aside_and_its_pools_go_on(own: Daemon) -> None:
    before = ready(own.start())
    own.terminate(signal.SIGKILL)
    database = own.state / "state.db"
    database.write_bytes(b"not a database" * 1000)
    own.start()
    assert own.until("a", lambda p: p.ready).pid == before.pid
    assert [p.name for p in own.state.glob("state.db.damaged-*")]
    with own.client() as client:
        assert any("damaged" in warning for warning in client.status().warnings)
    assert own.shutdown() == 0 and own.family() == []


@pytest.mark.behaviour("RST-8", "RST-2")
def test_a_crash_loop_keeps_its_breaker_and_its_count_over_a_restart_of_the_daemon(own: Daemon) -> None:
    own.start()
    with own.client() as client:
        client.create_pool("a", scripted("--crash-at", "load", supervision={"circuit_breaker_threshold": 2}))
        client.preload("a")
    parked = own.until("a", lambda p: p.breaker_state == pb.Pool.OPEN and p.state == pb.Pool.PARKED)
    own.terminate(signal.SIGKILL)
    own.start()
    with own.client() as client:
        pool = client.get_pool("a")
        assert (pool.state, pool.breaker_state) == (pb.Pool.PARKED, pb.Pool.OPEN)
        assert pool.restart_count == parked.restart_count
        assert pool.last_error.reason == parked.last_error.reason
        assert abs(pool.backoff_until.seconds - parked.backoff_until.seconds) <= 2
    assert own.shutdown() == 0


@pytest.mark.behaviour("DRN-5", "PROC-6")
def test_a_deletion_and_a_drain_that_a_kill_cut_off_are_gone_on_with(own: Daemon) -> None:
    own.start()
    pids = [ready(own, pool_id).pid for pool_id in ("a", "b")]
    with own.client() as client:
        leases = [client.acquire(pool_id, holder="e2e", ttl=60) for pool_id in ("a", "b")]
        client.drain("a", deadline=60)
        with pytest.raises(Exception, match="Deadline"):
            client._call(client._pools.DeletePool, pb.DeletePoolRequest(pool_id="b"), timeout=0.5)
    own.terminate(signal.SIGKILL)
    own.start()
    with own.client() as client:
        for pool_id in ("a", "b"):
            own.until(pool_id, lambda p: p.state == pb.Pool.DRAINING)
        for lease in leases:
            assert client.release(lease.lease_id, lease.token).outcome == RELEASED
        assert own.until("a", lambda p: p.state == pb.Pool.STOPPED)
        eventually(lambda: [p.pool_id for p in client.list_pools()] == ["a"], 10)
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert own.shutdown() == 0 and own.family() == []


def inventory(directory: Path) -> dict[str, tuple[int, bytes]]:
    return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in sorted(directory.rglob("*")) if p.is_file()}


def refused(daemon: Daemon) -> str:
    """What a start says that is refused."""
    done = subprocess.run(["timeout", "10", *daemon.command()], capture_output=True, text=True)
    assert done.returncode != 0 and "Traceback" not in done.stderr, done.stderr
    return done.stderr


def refused_unchanged(daemon: Daemon) -> str:
    before = inventory(daemon.state)
    said = refused(daemon)
    assert inventory(daemon.state) == before
    return said


@pytest.mark.behaviour("PROC-7")
def test_a_state_directory_of_another_version_host_or_user_or_in_use_is_refused_with_what_to_do(own: Daemon) -> None:
    ready(own.start())
    busy = refused(own)
    assert str(own.pid) in busy and "state.dir" in busy
    assert own.shutdown() == 0
    saved = own.state.with_name("saved")
    shutil.copytree(own.state, saved, ignore=shutil.ignore_patterns("engines"))
    changes = {
        "INSERT INTO schema_version (version, applied_at) VALUES (99, 0)": "upgrade",
        "UPDATE instance SET host = 'another', checksum = checksum('another', epoch, fences, changes)": "another host",
    }
    for statement, hint in changes.items():
        shutil.rmtree(own.state)
        shutil.copytree(saved, own.state)
        edit(own.state / "state.db", statement)
        assert hint in refused_unchanged(own), hint
    shutil.rmtree(own.state)
    shutil.copytree(saved, own.state)
    os.chown(own.state / "state.db", 12345, 12345)
    assert "12345" in refused_unchanged(own)


def edit(path: Path, statement: str) -> None:
    from poolmgr.adapters.store.schema import checksum

    with apsw.Connection(str(path)) as database:
        database.create_scalar_function("checksum", checksum)
        database.execute(statement)
    database.close()
