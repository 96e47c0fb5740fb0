"""The main job on the real thing: a llama.cpp server with a small random-weight model."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from poolmgr.client import Client
from poolmgr.convert.common import seconds
from poolmgr.testing.gguf import write_tiny_llama
from poolmgr.v1 import pool_pb2 as pb
from tests.e2e.daemon import Daemon, eventually, processes_of
from tests.e2e.engines import ask

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
DEMO_SECONDS = 60
CONTEXT = 512


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny.gguf"
    write_tiny_llama(path)
    return path


def llama(model: Path, slots: int = 2, context: int = CONTEXT, **fields: object) -> pb.PoolSpec:
    digest = "sha256:" + hashlib.sha256(model.read_bytes()).hexdigest()
    described = pb.Model(path=str(model), digest=digest, context_length=context)
    return pb.PoolSpec(engine=pb.ENGINE_LLAMACPP, model=described, slots=slots, device_mask="none", **fields)  # type: ignore[arg-type]


def complete(endpoint: str, tokens: int = 8) -> dict[str, object]:
    """The answer to a completion of exactly so many tokens."""
    body = {"prompt": "hello", "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    status, answer = ask(endpoint, "/v1/completions", body, seconds=120.0)
    assert status == 200 and isinstance(answer, dict), answer
    return answer


@pytest.mark.behaviour("PRE-1", "PRE-2", "PRE-4", "PRE-6", "PRE-9", "LEASE-1", "LIVE-3", "RST-1")
def test_a_real_engine_is_preloaded_leased_killed_and_brought_back(
    client: Client, daemon: Daemon, pool_id: str, model: Path
) -> None:
    client.create_pool(pool_id, llama(model))
    pool = client.preload(pool_id, wait=60)
    assert pool.ready, pool.last_error
    assert (pool.slots_total, pool.context_length) == (2, CONTEXT)
    assert pool.engine_version and pool.memory_bytes > 8 << 20 and 0 < seconds(pool.load_time) < 60
    _, props = ask(pool.endpoint, "/props")
    assert isinstance(props, dict) and props["model_path"] == str(model) and props["build_info"]
    with client.lease(pool_id, holder="e2e") as lease:
        assert complete(lease.endpoint)["usage"]["completion_tokens"] == 8  # type: ignore[index]
    os.kill(pool.pid, signal.SIGKILL)
    after = daemon.until(pool_id, lambda p: p.ready and p.pid != pool.pid, 60)
    assert (after.last_error.reason, after.last_error.signal, after.restart_count) == ("SIGNAL", 9, 1)
    with client.lease(pool_id, holder="e2e") as lease:
        assert complete(lease.endpoint)["usage"]["completion_tokens"] == 8  # type: ignore[index]


@pytest.mark.behaviour("LIVE-1")
def test_a_real_engine_shows_its_slots_and_metrics_on_its_own_port(client: Client, pool_id: str, model: Path) -> None:
    client.create_pool(pool_id, llama(model, slots=3))
    endpoint = client.preload(pool_id, wait=60).endpoint
    _, slots = ask(endpoint, "/slots")
    assert isinstance(slots, list) and [slot["n_ctx"] for slot in slots] == [CONTEXT] * 3
    complete(endpoint)
    with urllib.request.urlopen(f"http://{endpoint}/metrics", timeout=20) as response:
        text = response.read().decode()
    assert "llamacpp:tokens_predicted_total 8" in text


@pytest.mark.behaviour("DRN-1", "PROC-3")
def test_a_request_in_flight_finishes_while_its_pool_drains(
    client: Client, daemon: Daemon, pool_id: str, model: Path
) -> None:
    context = 2048  # long enough to be still on when the drain has begun
    client.create_pool(pool_id, llama(model, slots=1, context=context))
    pool = client.preload(pool_id, wait=60)
    tokens = context - 64
    with ThreadPoolExecutor(1) as threads:
        with client.lease(pool_id, holder="e2e") as lease:
            request = threads.submit(complete, lease.endpoint, tokens)
            eventually(lambda: request.done() or busy(lease.endpoint), 20)
            assert client.drain(pool_id).state == pb.Pool.DRAINING and not request.done()
            assert request.result(120)["usage"]["completion_tokens"] == tokens  # type: ignore[index]
            assert client.get_pool(pool_id).pid == pool.pid
        stopped = daemon.until(pool_id, lambda p: p.state == pb.Pool.STOPPED)
    assert stopped.state_reason == "drained" and not psutil.pid_exists(pool.pid)


def busy(endpoint: str) -> bool:
    _, slots = ask(endpoint, "/slots")
    assert isinstance(slots, list)
    return any(slot["is_processing"] for slot in slots)


@pytest.mark.behaviour("PRE-8", "RST-8", "RST-7")
def test_a_model_that_breaks_off_after_its_header_parks_the_pool_and_is_not_tried_again(
    client: Client, pool_id: str, model: Path, tmp_path: Path
) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(model.read_bytes()[: model.stat().st_size // 2])
    client.create_pool(pool_id, llama(cut))
    pool = client.preload(pool_id, wait=60)
    assert pool.state == pb.Pool.PARKED, pool.state_reason
    assert pool.last_error.reason == "MODEL_INVALID" and pool.last_error.log_tail
    assert (pool.restart_count, pool.pid, pool.HasField("backoff_until")) == (0, 0, False)


@pytest.mark.behaviour("PRE-8", "RST-8", "RST-7")
def test_a_flag_that_the_engine_does_not_know_parks_the_pool_until_its_spec_changes(
    client: Client, daemon: Daemon, pool_id: str, model: Path
) -> None:
    client.create_pool(pool_id, llama(model, args=["--no-such-flag"]))
    pool = client.preload(pool_id, wait=60)
    assert (pool.state, pool.last_error.reason) == (pb.Pool.PARKED, "BAD_ARGUMENTS")
    assert "--no-such-flag" in pool.last_error.message
    client.update_pool(pool_id, llama(model))
    assert daemon.until(pool_id, lambda p: p.ready, 60).generation == 2


@pytest.mark.behaviour("PRE-9", "PROC-8", "LIVE-3", "DRN-1")
def test_the_demo_ends_with_ok_in_time_and_leaves_no_process(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path), "COLUMNS": "120"}
    environment.pop("KEEP", None)
    ended = subprocess.run(
        [sys.executable, "scripts/demo.py"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=DEMO_SECONDS,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    lines = ended.stdout.splitlines()
    assert lines[-1] == "demo: ok"
    for told in ("engine says: build", "kill -9", "BACKOFF", "POOL_", "kill to READY again"):
        assert any(told in line for line in lines), told
    assert processes_of(tmp_path) == [] and list(tmp_path.iterdir()) == []
