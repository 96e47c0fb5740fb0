"""Engines that somebody else runs: a real process that tells a real daemon of itself."""

from __future__ import annotations

import queue
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from poolmgr.client import CallError, Client, LeaseRefused
from poolmgr.v1 import engine_pb2, pool_pb2
from poolmgr.v1.lease_pb2 import Lease
from tests.e2e.daemon import BRISK, Daemon, eventually
from tests.e2e.engines import SCRIPT, ask, free_port

pytestmark = pytest.mark.e2e

Pool = pool_pb2.Pool
Answer = engine_pb2.HeartbeatResponse
SLOTS = 3
SHORTEST_TTL = 3.0
ALIVE_SECONDS = 10.0
SETTINGS = {**BRISK, "supervision.health_check_interval_ms": 50}


class Engine:
    """A scripted engine that no daemon has started, and what it says of itself."""

    def __init__(self, engine_id: str, pool_id: str) -> None:
        self.engine_id, self.pool_id = engine_id, pool_id
        self.port = free_port()
        self.process = self._begin()

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    def _begin(self) -> subprocess.Popen[bytes]:
        """Returns once it answers."""
        argv = [sys.executable, "-I", "-S", SCRIPT, "--port", str(self.port), "--parallel", str(SLOTS)]
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        eventually(self._answers, ALIVE_SECONDS, lambda: f"{argv} does not answer")
        return process

    def _answers(self) -> bool:
        with suppress(OSError):
            return ask(self.endpoint, "/health")[0] == 200
        return False

    def restart(self) -> None:
        self.kill()
        self.process = self._begin()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def register(self, client: Client, ttl: float = 300.0, **said: object) -> pool_pb2.Pool:
        return client.register_engine(
            engine_pb2.RegisterEngineRequest(
                **{  # type: ignore[arg-type]
                    "engine_id": self.engine_id,
                    "pool_id": self.pool_id,
                    "endpoint": self.endpoint,
                    "engine": pool_pb2.ENGINE_LLAMACPP,
                    "engine_version": "scripted",
                    "slots_total": SLOTS,
                    "pid": self.process.pid,
                    "ttl": Duration(seconds=int(ttl)),
                    **said,
                }
            )
        )


class Heart:
    """A stream of heartbeats: one is sent and its answer awaited at a time."""

    def __init__(self, client: Client, engine: Engine) -> None:
        self._requests: queue.SimpleQueue[engine_pb2.HeartbeatRequest | None] = queue.SimpleQueue()
        self._answers = client.heartbeats(iter(self._requests.get, None))
        self._engine_id = engine.engine_id

    def beat(self, **said: object) -> engine_pb2.HeartbeatResponse:
        self._requests.put(engine_pb2.HeartbeatRequest(engine_id=self._engine_id, **said))  # type: ignore[arg-type]
        return next(self._answers)

    def end(self) -> None:
        self._requests.put(None)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path_factory.mktemp("daemon"), SETTINGS)
    try:
        yield daemon.start()
        assert daemon.shutdown() == 0
        assert daemon.family() == []
    finally:
        daemon.destroy()


@pytest.fixture
def engine(pool_id: str) -> Iterator[Engine]:
    engine = Engine(f"engine-{pool_id}", pool_id)
    try:
        yield engine
    finally:
        engine.kill()


def listed(client: Client, pool_id: str) -> engine_pb2.EngineInstance:
    (one,) = client.list_engines(pool_id)
    return one


@pytest.mark.behaviour("ENG-1", "ENG-2")
def test_an_engine_that_registers_is_probed_leased_and_listed(daemon: Daemon, client: Client, engine: Engine) -> None:
    assert engine.register(client).pool_id == engine.pool_id
    pool = daemon.until(engine.pool_id, lambda p: p.state == Pool.READY)
    assert (pool.endpoint, pool.slots_total, pool.origin, pool.pid) == (
        engine.endpoint, SLOTS, "registered", engine.process.pid,
    )  # fmt: skip
    heart = Heart(client, engine)
    answer = heart.beat(slots_free=2, in_flight=1, progress_counter=2**40)
    assert (answer.desired_state, answer.interval.ToSeconds()) == (Answer.SERVE, 10)
    one = listed(client, engine.pool_id)
    assert (one.registered, one.slots_free, one.in_flight, one.progress_counter) == (True, 2, 1, 2**40)
    assert abs(one.last_heartbeat.ToSeconds() - time.time()) < ALIVE_SECONDS
    with client.lease(engine.pool_id, holder="test") as lease:
        assert ask(lease.endpoint, "/v1/completions", {"prompt": "hello"})[0] == 200
        assert heart.beat(slots_free=0).desired_state == Answer.SERVE
        with pytest.raises(LeaseRefused) as refused:
            client.acquire(engine.pool_id, holder="test")
        assert refused.value.reason == "POOL_FULL"
    heart.end()
    client.deregister_engine(engine.engine_id)
    assert engine.pool_id not in {p.pool_id for p in client.list_pools()}
    assert engine.process.poll() is None and ask(engine.endpoint, "/health")[0] == 200


@pytest.mark.behaviour("ENG-2", "ENG-3", "LIVE-1")
def test_an_engine_that_is_killed_is_lost_and_back_by_a_heartbeat_once_it_answers(
    daemon: Daemon, client: Client, engine: Engine
) -> None:
    engine.register(client)
    daemon.until(engine.pool_id, lambda p: p.state == Pool.READY)
    lease = client.acquire(engine.pool_id, holder="test", ttl=60)
    heart = Heart(client, engine)
    engine.kill()
    lost = daemon.until(engine.pool_id, lambda p: p.state == Pool.LOST)
    assert lost.last_error.reason == "HEALTH_CHECK_FAILED" and lost.restart_count == 0 and not lost.live
    assert lost.active_leases == 1
    with pytest.raises(LeaseRefused) as refused:
        client.acquire(engine.pool_id, holder="test")
    assert refused.value.reason == "POOL_NOT_READY"
    heart.beat()  # of something that is not well yet
    assert daemon.until(engine.pool_id, lambda p: p.state == Pool.STARTING).slots_free == 0
    engine.restart()
    assert heart.beat().desired_state == Answer.SERVE
    assert daemon.until(engine.pool_id, lambda p: p.state == Pool.READY).active_leases == 1
    assert client.release(lease.lease_id, lease.token).outcome == Lease.RELEASED
    heart.end()
    client.deregister_engine(engine.engine_id)


@pytest.mark.behaviour("ENG-1", "ENG-3")
def test_an_engine_that_falls_silent_is_lost_after_its_ttl_and_back_by_its_next_heartbeat(
    daemon: Daemon, client: Client, engine: Engine
) -> None:
    began = time.monotonic()
    engine.register(client, ttl=SHORTEST_TTL)
    daemon.until(engine.pool_id, lambda p: p.state == Pool.READY)
    lost = daemon.until(engine.pool_id, lambda p: p.state == Pool.LOST)
    assert SHORTEST_TTL <= time.monotonic() - began < SHORTEST_TTL + 2
    assert lost.last_error.reason == "UNREACHABLE" and "no heartbeat for 3 s" in lost.state_reason
    heart = Heart(client, engine)
    assert heart.beat().interval.ToSeconds() == 1
    daemon.until(engine.pool_id, lambda p: p.state == Pool.READY)
    heart.end()
    client.deregister_engine(engine.engine_id)


@pytest.mark.behaviour("ENG-2")
def test_nothing_that_an_operator_does_reaches_the_process(daemon: Daemon, client: Client, engine: Engine) -> None:
    engine.register(client)
    daemon.until(engine.pool_id, lambda p: p.state == Pool.READY)
    heart = Heart(client, engine)
    client.drain(engine.pool_id, wait=5)
    assert heart.beat().desired_state == Answer.GONE
    client.preload(engine.pool_id)
    daemon.until(engine.pool_id, lambda p: p.state == Pool.READY)
    assert heart.beat().desired_state == Answer.SERVE
    client.stop(engine.pool_id, grace=0)
    assert heart.beat().desired_state == Answer.GONE
    with pytest.raises(CallError) as refused:
        client.reload(engine.pool_id)
    assert refused.value.code is grpc.StatusCode.FAILED_PRECONDITION
    heart.end()
    client.delete(engine.pool_id)
    assert engine.process.poll() is None
    assert ask(engine.endpoint, "/health")[0] == 200


@pytest.mark.behaviour("ENG-3", "LEASE-3", "LEASE-4")
def test_a_daemon_that_was_killed_needs_no_more_than_the_next_heartbeat(tmp_path: Path) -> None:
    daemon, engine = Daemon(tmp_path, SETTINGS), Engine("engine-1", "theirs")
    try:
        daemon.start()
        with daemon.client() as client:
            engine.register(client)
            daemon.until("theirs", lambda p: p.state == Pool.READY)
            lease = client.acquire("theirs", holder="test", ttl=60)
        daemon.terminate(signal.SIGKILL)
        daemon.start()
        with daemon.client() as client:
            pool = client.get_pool("theirs")
            assert (pool.state, pool.active_leases, pool.pid) == (Pool.LOST, 1, engine.process.pid)
            assert client.renew(lease.lease_id, lease.token).outcome == Lease.RENEWED
            heart = Heart(client, engine)
            assert heart.beat().desired_state == Answer.SERVE
            pool = daemon.until("theirs", lambda p: p.state == Pool.READY)
            assert (pool.active_leases, pool.slots_free) == (1, SLOTS - 1)
            later = client.acquire("theirs", holder="test")
            assert later.fencing_token > lease.fencing_token and later.endpoint == engine.endpoint
            assert client.release(lease.lease_id, lease.token).outcome == Lease.RELEASED
            heart.end()
        assert daemon.shutdown() == 0  # with stop_engines, which means ours
        assert engine.process.poll() is None and ask(engine.endpoint, "/health")[0] == 200
    finally:
        engine.kill()
        daemon.destroy()
