"""Engines that answer /health and may not work: found, or left alone (LIVE-2)."""

from __future__ import annotations

import json
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from poolmgr.client import Client
from poolmgr.testing import engine
from poolmgr.testing.gguf import write_tiny_llama
from poolmgr.v1 import pool_pb2 as pb
from tests.e2e.daemon import BRISK, Daemon
from tests.e2e.engines import ask, tell

pytestmark = [pytest.mark.e2e, pytest.mark.behaviour("LIVE-2")]

WINDOW = 1.5
SYNTHETIC = 2.0
PATIENT = 60.0


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One that takes an engine for hung within seconds."""
    hasty = {
        "supervision.stall_window_secs": WINDOW,
        "supervision.stall_batch_factor": 1,
        "supervision.stall_limit_secs": PATIENT,
        "supervision.synthetic_timeout_secs": SYNTHETIC,
        "supervision.health_check_interval_ms": 200,
    }
    daemon = Daemon(tmp_path_factory.mktemp("hasty"), {**BRISK, **hasty})
    try:
        daemon.start()
        yield daemon
        assert daemon.shutdown() == 0
    finally:
        daemon.destroy()


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripted engine under the name of a llama-server."""
    path = tmp_path_factory.mktemp("bin") / "llama-server"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S {engine.__file__} "$@"\n')
    path.chmod(0o755)
    return path


def serving(client: Client, pool_id: str, program: Path, model: Path, slots: int) -> pb.Pool:
    spec = pb.PoolSpec(
        engine=pb.ENGINE_LLAMACPP,
        model=pb.Model(path=str(model)),
        slots=slots,
        device_mask="none",
        command=str(program),
    )
    client.create_pool(pool_id, spec)
    pool = client.preload(pool_id, wait=60)
    assert pool.ready, pool.last_error
    return pool


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny.gguf"
    write_tiny_llama(path)
    return path


@pytest.mark.behaviour("LIVE-3")
def test_an_engine_that_hangs_while_health_answers_is_ended_as_hung_and_started_again(
    client: Client, daemon: Daemon, pool_id: str, program: Path, model: Path
) -> None:
    pool = serving(client, pool_id, program, model, slots=1)
    offset = daemon.log_size()
    tell(pool.endpoint, hang=True)
    with ThreadPoolExecutor(1) as threads:
        request = threads.submit(ask, pool.endpoint, "/v1/completions", {"prompt": "well"})
        back = daemon.until(pool_id, lambda p: p.ready and p.pid != pool.pid, 20)
        assert request.exception(20) is not None
    assert back.last_error.reason == "HUNG" and back.restart_count == 1
    assert "1 requests in flight, no counter moved for" in back.last_error.message
    assert "neither CPU nor GPU worked" in back.last_error.message
    assert daemon.wait_for_log("engine_hung", offset, pool_id=pool_id)["in_flight"] == 1


@pytest.mark.behaviour("LIVE-3")
def test_one_that_computes_for_nothing_is_found_by_a_request_of_ours(
    client: Client, daemon: Daemon, pool_id: str, program: Path, model: Path
) -> None:
    pool = serving(client, pool_id, program, model, slots=2)
    tell(pool.endpoint, hang=True, stuck=1, spin=True)
    back = daemon.until(pool_id, lambda p: p.ready and p.pid != pool.pid, 30)
    assert back.last_error.reason == "HUNG"
    assert "a synthetic request had no answer within 2 s" in back.last_error.message


def test_one_that_answers_a_request_of_ours_is_left_alone(
    client: Client, daemon: Daemon, pool_id: str, program: Path, model: Path
) -> None:
    pool = serving(client, pool_id, program, model, slots=2)
    offset = daemon.log_size()
    tell(pool.endpoint, stuck=1, spin=True)
    daemon.wait_for_log("engine_suspected", offset, pool_id=pool_id)
    answered = daemon.log_size()
    daemon.wait_for_log("engine_suspected", answered, pool_id=pool_id)  # again, a window after the answer
    after = client.get_pool(pool_id)
    assert after.ready and (after.pid, after.restart_count) == (pool.pid, 0)


def test_a_real_prefill_that_moves_no_counter_for_longer_than_the_window_is_not_called_hung(
    own: Daemon, tmp_path: Path
) -> None:
    slow = tmp_path / "slow.gguf"
    write_tiny_llama(slow, layers=8, width=512)
    window = 1.0
    own.settings = {
        **BRISK,
        "supervision.stall_window_secs": window,
        "supervision.stall_batch_factor": 1,
        "supervision.health_check_interval_ms": 100,
    }
    own.start()
    spec = pb.PoolSpec(
        engine=pb.ENGINE_LLAMACPP,
        model=pb.Model(path=str(slow), context_length=2048),
        slots=2,
        device_mask="none",
        args=["--threads", "1", "--threads-batch", "1"],
    )
    with own.client() as client:
        client.create_pool("prefill", spec)
        pool = client.preload("prefill", wait=60)
        assert pool.ready, pool.last_error
        assert complete(pool.endpoint)["timings"]["prompt_ms"] > 1000 * window
        after = client.get_pool("prefill")
    suspected = [line for line in own.log() if line["event"] == "engine_suspected"]
    assert suspected, "the prefill was over before anybody could have doubted it"
    assert after.ready and (after.pid, after.restart_count) == (pool.pid, 0)


def complete(endpoint: str) -> dict[str, dict[str, float]]:
    """The answer to a prompt of one batch, computed by one thread."""
    body = json.dumps({"prompt": "x" * 1900, "n_predict": 2, "cache_prompt": False}).encode()
    request = urllib.request.Request(f"http://{endpoint}/completion", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENT) as response:
        answer: dict[str, dict[str, float]] = json.load(response)
    return answer
