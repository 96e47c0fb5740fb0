"""A pool's life with a scripted engine: real processes, real sockets, real signals."""

from __future__ import annotations

import os
import signal
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from poolmgr.client import CallError, Client, LeaseRefused
from poolmgr.convert.common import seconds
from poolmgr.v1 import lease_pb2
from poolmgr.v1 import pool_pb2 as pb
from tests.e2e.daemon import BRISK, Daemon, eventually
from tests.e2e.engines import SCRIPT, ask, free_port, scripted, tell

pytestmark = pytest.mark.e2e

# Runs the scripted engine unless the file named first is there; then it exits with 7.
UNLESS_BROKEN = """
import os, runpy, sys
if os.path.exists(sys.argv[1]): sys.exit(7)
del sys.argv[:2]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
LONG_BACKOFF = {"backoff_initial_ms": 60_000}
TOUCH_MEMORY = "import time; held = bytearray(1 << 20); time.sleep(0.3)\nwhile True: held += b'x' * (1 << 24)"
OOM_LIMIT = 300 << 20


def ready(client: Client, pool_id: str, spec: pb.PoolSpec) -> pb.Pool:
    client.create_pool(pool_id, spec)
    pool = client.preload(pool_id, wait=15)
    assert pool.ready and pool.state == pb.Pool.READY, pool
    return pool


def back(daemon: Daemon, before: pb.Pool) -> pb.Pool:
    """The pool once it is READY with another process."""
    return daemon.until(before.pool_id, lambda p: p.ready and p.pid != before.pid)


def failing(broken: Path, **fields: object) -> pb.PoolSpec:
    """An engine that exits with 7 for as long as the file is there."""
    return scripted(**{"args": ["-I", "-S", "-c", UNLESS_BROKEN, str(broken), SCRIPT, "--port", "{port}"], **fields})  # type: ignore[arg-type]


@pytest.mark.behaviour("PRE-1", "PRE-2", "PRE-9", "LEASE-1", "DRN-1", "DRN-5")
def test_a_pool_lives_from_preload_over_lease_and_drain_to_its_deletion(client: Client, daemon: Daemon) -> None:
    pool = ready(client, "life", scripted("--parallel", 2, "--load-seconds", 0.2, slots=2))
    assert (pool.slots_total, pool.slots_free, pool.generation, pool.restart_count) == (2, 2, 1, 0)
    assert 0.2 <= seconds(pool.load_time) < 10 and pool.memory_bytes > 1 << 20
    assert psutil.Process(pool.pid).cmdline()[3] == SCRIPT
    lease = client.acquire("life", holder="e2e")
    assert lease.endpoint == pool.endpoint
    status, answer = ask(lease.endpoint, "/v1/completions", {"prompt": "hello"})
    assert status == 200 and "hello" in str(answer)
    client.drain("life")
    with pytest.raises(LeaseRefused) as refused:
        client.acquire("life", holder="late")
    assert refused.value.reason == "POOL_DRAINING"
    assert ask(lease.endpoint, "/v1/completions", {"prompt": "still here"})[0] == 200
    client.release(lease.lease_id, lease.token)
    stopped = daemon.until("life", lambda p: p.state == pb.Pool.STOPPED)
    assert not stopped.HasField("last_error") and not psutil.pid_exists(pool.pid)
    client.delete("life")
    with pytest.raises(CallError, match="life"):
        client.get_pool("life")
    assert not any("life" in path.name for path in daemon.state.rglob("*"))


@pytest.mark.behaviour("PRE-5")
def test_pools_that_prefer_one_port_and_start_at_once_all_get_ready_on_ports_of_their_own(client: Client) -> None:
    port, ids = free_port(), [f"same-port-{n}" for n in range(3)]
    with ThreadPoolExecutor() as pool:
        pools = list(pool.map(lambda i: ready(client, i, scripted("--load-seconds", 0.2, port=port)), ids))
    endpoints = {p.endpoint for p in pools}
    assert len(endpoints) == 3 and f"127.0.0.1:{port}" in endpoints
    assert len({p.pid for p in pools}) == 3
    for pool_id in ids:
        client.delete(pool_id)


@pytest.mark.behaviour("PRE-2", "DRN-1")
def test_status_answers_at_once_while_pools_load_and_drain(client: Client, daemon: Daemon, pool_id: str) -> None:
    client.create_pool(pool_id, scripted("--load-seconds", 1))
    client.preload(pool_id)
    daemon.until(pool_id, lambda p: p.state == pb.Pool.STARTING)
    begun = time.monotonic()
    assert client.get_pool(pool_id).state == pb.Pool.STARTING and client.status().pools >= 1
    assert time.monotonic() - begun < 0.5
    daemon.until(pool_id, lambda p: p.ready)
    with client.lease(pool_id, holder="e2e"):
        client.drain(pool_id)
        assert client.get_pool(pool_id).state == pb.Pool.DRAINING and client.list_leases(pool_id)


@pytest.mark.behaviour("LIVE-3", "RST-1", "PROC-5")
@pytest.mark.parametrize(
    ("ending", "reason"),
    [({"exit": 1}, "EXIT_CODE"), ({"exit": 42}, "EXIT_CODE")]
    + [({"signal": int(n)}, "SIGNAL") for n in (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGTERM)],
    ids=str,
)
def test_a_crash_is_told_by_its_cause_and_the_engine_comes_back(
    client: Client, daemon: Daemon, pool_id: str, ending: dict[str, int], reason: str
) -> None:
    pool = ready(client, pool_id, scripted())
    tell(pool.endpoint, log="last words", **ending)
    again = back(daemon, pool)
    error = again.last_error
    assert error.reason == reason and again.restart_count == 1 and again.endpoint == pool.endpoint
    assert error.exit_code == ending.get("exit", 0) and error.HasField("exit_code") == ("exit" in ending)
    assert error.signal == ending.get("signal", 0) and error.HasField("signal") == ("signal" in ending)
    assert "last words" in error.log_tail and len(error.log_tail) <= 50
    assert seconds(error.uptime) > 0 and error.memory_bytes > 1 << 20


@pytest.mark.behaviour("PRE-2", "PRE-8", "LIVE-3")
def test_a_death_while_loading_fails_the_start_at_once_and_not_at_its_deadline(
    client: Client, daemon: Daemon, pool_id: str
) -> None:
    flags = ("--load-seconds", 0.3, "--crash-at", "load", "--exit-code", 3)
    client.create_pool(pool_id, scripted(*flags, supervision={"start_timeout_secs": 100, **LONG_BACKOFF}))
    begun = time.monotonic()
    pool = client.preload(pool_id, wait=30)
    assert time.monotonic() - begun < 10
    assert pool.state == pb.Pool.BACKOFF and pool.pid == 0
    assert pool.last_error.exit_code == 3 and "loading model: 100 %" in pool.last_error.log_tail
    assert "before it was ready" in pool.last_error.message


@pytest.mark.behaviour("PRE-3", "LIVE-3")
def test_a_start_without_progress_is_stalled_long_before_its_deadline(client: Client, pool_id: str) -> None:
    overrides = {"start_timeout_secs": 100, "stall_timeout_secs": 1, **LONG_BACKOFF}
    client.create_pool(pool_id, scripted("--never-ready", "--silent-load", supervision=overrides))
    pool = client.preload(pool_id, wait=15)
    assert pool.state == pb.Pool.BACKOFF and pool.last_error.reason == "STALLED", pool.last_error


@pytest.mark.behaviour("PROC-3")
def test_an_engine_that_ignores_sigterm_is_killed_after_the_grace(client: Client, pool_id: str) -> None:
    pool = ready(client, pool_id, scripted("--ignore-sigterm"))
    begun = time.monotonic()
    stopped = client.stop(pool_id, grace=0.5, wait=10)
    assert stopped.state == pb.Pool.STOPPED and not psutil.pid_exists(pool.pid)
    assert 0.5 <= time.monotonic() - begun < 5
    assert stopped.restart_count == 0 and not stopped.HasField("last_error")


@pytest.mark.behaviour("PROC-3", "PRE-8", "RST-8")
@pytest.mark.parametrize("flags", [(), ("--escape",)], ids=["in its session", "in sessions of their own"])
@pytest.mark.parametrize("how", ["stop", "crash"])
def test_children_that_an_engine_leaves_behind_end_with_it(
    client: Client, daemon: Daemon, pool_id: str, how: str, flags: tuple[str, ...]
) -> None:
    pool = ready(client, pool_id, scripted("--leave-children", 2, *flags, supervision=LONG_BACKOFF))
    lines = client.tail_logs(pool_id)
    children = [int(line.rpartition("=")[2]) for line in lines if line.startswith("child pid=")]
    assert len(children) == 2 and all(psutil.pid_exists(pid) for pid in children)
    if how == "stop":
        assert client.stop(pool_id, grace=0.2, wait=10).state == pb.Pool.STOPPED
    else:
        os.kill(pool.pid, signal.SIGKILL)
        daemon.until(pool_id, lambda p: p.state == pb.Pool.BACKOFF)
    # Dead at once; whether they are reaped already is their reaper's business.
    assert not any(alive(pid) for pid in (pool.pid, *children))


def alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.mark.behaviour("LIVE-1", "LIVE-3")
def test_three_failed_probes_in_a_row_end_an_engine_that_still_runs(
    client: Client, daemon: Daemon, pool_id: str
) -> None:
    pool = ready(client, pool_id, scripted(supervision={"health_check_interval_ms": 50}))
    offset = daemon.log_size()
    tell(pool.endpoint, health=500)
    again = back(daemon, pool)
    assert again.last_error.reason == "HEALTH_CHECK_FAILED" and "HTTP 500" in again.last_error.message
    assert daemon.wait_for_log("health_check_failed", offset, pool_id=pool_id)["failures"] == 3


@pytest.mark.behaviour("LIVE-1")
def test_an_engine_that_answers_health_too_late_fails_it(client: Client, daemon: Daemon, pool_id: str) -> None:
    overrides = {"health_check_interval_ms": 50, "health_check_timeout_ms": 200, "health_check_failures": 1}
    pool = ready(client, pool_id, scripted(supervision=overrides))
    os.kill(pool.pid, signal.SIGSTOP)
    assert back(daemon, pool).last_error.reason == "HEALTH_CHECK_FAILED"


@pytest.mark.behaviour("LIVE-1")
def test_a_daemon_that_was_paused_longer_than_the_health_timeout_kills_no_good_engine(
    client: Client, daemon: Daemon, pool_id: str
) -> None:
    timeout = 1.5
    overrides = {
        "health_check_interval_ms": 50,
        "health_check_timeout_ms": int(1000 * timeout),
        "health_check_failures": 1,
    }
    asks = pb.Probe(kind=pb.Probe.SYNTHETIC, path="/v1/completions", body='{"prompt": "well"}', expect="well")
    pool = ready(client, pool_id, scripted("--parallel", 4, liveness=asks, supervision=overrides))
    tell(pool.endpoint, hang=True)
    eventually(lambda: "true" in str(ask(pool.endpoint, "/slots")[1]).lower(), 5)  # a probe is under way
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        tell(pool.endpoint, hang=False)
        resume_at = time.monotonic() + timeout + 1.3
        eventually(lambda: time.monotonic() >= resume_at, 10)  # the pause itself is what is tested
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
    completed = int(metric(pool.endpoint, "n_decode_total"))
    eventually(lambda: metric(pool.endpoint, "n_decode_total") > completed + 3, 10)  # it is probed on, and well
    after = client.get_pool(pool_id)
    assert after.ready and after.pid == pool.pid and after.restart_count == 0


def metric(endpoint: str, name: str) -> float:
    with urllib.request.urlopen(f"http://{endpoint}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.split()[0].endswith(f":{name}"))


@pytest.mark.behaviour("LIVE-3")
@pytest.mark.parametrize(
    ("restart", "code", "state"),
    [
        (pb.RESTART_ON_FAILURE, 0, pb.Pool.STOPPED),
        (pb.RESTART_ALWAYS, 0, pb.Pool.READY),
        (pb.RESTART_ALWAYS, 1, pb.Pool.READY),
        (pb.RESTART_NEVER, 0, pb.Pool.STOPPED),
        (pb.RESTART_NEVER, 1, pb.Pool.STOPPED),
    ],
)
def test_what_follows_an_exit_is_the_restart_modes_to_say(
    client: Client,
    daemon: Daemon,
    pool_id: str,
    restart: pb.RestartMode.ValueType,
    code: int,
    state: pb.Pool.State.ValueType,
) -> None:
    pool = ready(client, pool_id, scripted(restart=restart))
    tell(pool.endpoint, exit=code)
    after = daemon.until(pool_id, lambda p: p.pid != pool.pid and p.state in (pb.Pool.STOPPED, pb.Pool.READY))
    assert after.state == state
    assert after.restart_count == (1 if state == pb.Pool.READY else 0)
    assert after.HasField("last_error") == bool(code or state == pb.Pool.READY)


@pytest.mark.behaviour("RST-2", "RST-7", "PRE-8", "LEASE-1")
def test_five_failures_in_a_row_open_the_breaker_until_an_operator_closes_it(
    client: Client, daemon: Daemon, pool_id: str, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.touch()
    client.create_pool(pool_id, failing(broken, supervision={"backoff_initial_ms": 1}))
    client.preload(pool_id)
    parked = daemon.until(pool_id, lambda p: p.state == pb.Pool.PARKED)
    assert (parked.breaker_state, parked.restart_count, parked.pid) == (pb.Pool.OPEN, 5, 0)
    assert parked.last_error.exit_code == 7
    with pytest.raises(LeaseRefused) as refused:
        client.acquire(pool_id, holder="e2e", wait=5)
    assert refused.value.reason == "BREAKER_OPEN" and 200 < (refused.value.retry_after or 0) <= 300
    with pytest.raises(CallError) as told:
        client.preload(pool_id)
    assert told.value.reason == "BREAKER_OPEN" and told.value.metadata["consecutive_failures"] == "5"
    broken.unlink()
    client.reset_breaker(pool_id)
    again = daemon.until(pool_id, lambda p: p.ready)
    assert again.breaker_state == pb.Pool.CLOSED


@pytest.mark.behaviour("RST-2", "RST-7")
def test_an_open_breaker_lets_one_trial_through_which_closes_it_or_doubles_its_time(
    client: Client, daemon: Daemon, pool_id: str, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.touch()
    overrides = {
        "backoff_initial_ms": 1,
        "circuit_breaker_threshold": 2,
        "circuit_breaker_timeout_secs": 1,
        "stable_secs": 1,
    }
    client.create_pool(pool_id, failing(broken, supervision=overrides))
    client.preload(pool_id)
    first = daemon.until(pool_id, lambda p: p.state == pb.Pool.PARKED)
    second = daemon.until(pool_id, lambda p: p.state == pb.Pool.PARKED and p.restart_count > first.restart_count)
    assert second.restart_count == first.restart_count + 1 == 3  # exactly one start
    for open_ms in (1000, 2000):
        daemon.wait_for_log("circuit_breaker_opened", pool_id=pool_id, open_ms=open_ms)
    broken.unlink()
    on_trial = daemon.until(pool_id, lambda p: p.ready)
    assert on_trial.breaker_state == pb.Pool.HALF_OPEN
    assert daemon.until(pool_id, lambda p: p.breaker_state == pb.Pool.CLOSED).pid == on_trial.pid


@pytest.mark.behaviour("RST-4")
def test_restarts_faster_than_the_limit_are_a_storm_that_opens_the_breaker(
    client: Client, daemon: Daemon, pool_id: str, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.touch()
    overrides = {"backoff_initial_ms": 1, "circuit_breaker_threshold": 100, "restart_rate_limit": 3}
    client.create_pool(pool_id, failing(broken, supervision=overrides))
    client.preload(pool_id)
    assert daemon.until(pool_id, lambda p: p.state == pb.Pool.PARKED).restart_count == 4
    storm = daemon.wait_for_log("restart_storm", pool_id=pool_id)
    assert (storm["level"], storm["restarts"], storm["limit"]) == ("critical", 4, 3)


@pytest.mark.behaviour("LEASE-5", "RST-1")
def test_who_waits_while_an_engine_is_on_its_way_back_gets_the_new_ones_endpoint(
    client: Client, daemon: Daemon, pool_id: str
) -> None:
    pool = ready(client, pool_id, scripted(supervision={"backoff_initial_ms": 300}))
    held = client.acquire(pool_id, holder="before")
    os.kill(pool.pid, signal.SIGKILL)
    daemon.until(pool_id, lambda p: p.state == pb.Pool.BACKOFF)
    lease = client.acquire(pool_id, holder="after", wait=10)
    assert lease.fencing_token > held.fencing_token and ask(lease.endpoint, "/health")[0] == 200
    assert client.get_pool(pool_id).active_leases == 1  # the lease on the dead engine is void


@pytest.mark.behaviour("DRN-1")
def test_a_drain_can_be_cancelled_and_at_its_deadline_it_stops_by_force(
    client: Client, daemon: Daemon, pool_id: str
) -> None:
    pool = ready(client, pool_id, scripted())
    with client.lease(pool_id, holder="e2e", ttl=60) as lease:
        client.drain(pool_id)
        assert client.undrain(pool_id).ready and client.get_pool(pool_id).pid == pool.pid
        offset = daemon.log_size()
        stopped = client.drain(pool_id, deadline=0.3, wait=10)
        assert stopped.state == pb.Pool.STOPPED and "1 live lease" in stopped.state_reason
        assert daemon.wait_for_log("drain_finished", offset, pool_id=pool_id)["outcome"] == "forced"
        assert client.renew(lease.lease.lease_id, lease.lease.token).outcome == lease_pb2.Lease.EXPIRED
    with pytest.raises(CallError) as refused:
        client.undrain(pool_id)
    assert refused.value.reason == "POOL_STATE"


@pytest.fixture
def limited(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon in a v1 memory cgroup with a limit."""
    group = Path("/sys/fs/cgroup/memory") / f"poolmgr-test-{os.getpid()}"
    if os.geteuid() != 0 or not (group.parent / "memory.limit_in_bytes").exists():
        pytest.skip("makes a v1 memory cgroup, which only root can")
    group.mkdir()
    (group / "memory.limit_in_bytes").write_text(str(OOM_LIMIT))
    join = f"import os, sys; open('{group}/cgroup.procs', 'w').write('0'); os.execv(sys.argv[1], sys.argv[1:])"
    daemon = Daemon(tmp_path / "limited", BRISK, prefix=(sys.executable, "-c", join))
    try:
        yield daemon.start()
        assert daemon.shutdown() == 0 and daemon.family() == []
    finally:
        daemon.destroy()
        eventually(lambda: not (group / "cgroup.procs").read_text(), 5)
        group.rmdir()


@pytest.mark.needs_root
@pytest.mark.behaviour("LIVE-3")
def test_an_engine_that_the_kernel_kills_for_want_of_memory_died_of_host_oom(limited: Daemon) -> None:
    spec = scripted(args=["-I", "-S", "-c", TOUCH_MEMORY], readiness=None, liveness=None, supervision=LONG_BACKOFF)
    with limited.client() as client:
        client.create_pool("hungry", spec)
        client.preload("hungry")
        pool = limited.until("hungry", lambda p: p.state == pb.Pool.BACKOFF)
    assert pool.last_error.reason == "HOST_OOM" and pool.last_error.signal == signal.SIGKILL
