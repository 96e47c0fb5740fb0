"""A pool of the kind vllm through a real daemon, on a stand-in for `vllm` (`vllm_stand_in`) that loads no model."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from poolmgr.client import CallError, Client
from poolmgr.v1 import pool_pb2 as pb
from tests.e2e.daemon import Daemon
from tests.e2e.engines import ask

pytestmark = pytest.mark.e2e

STAND_IN = Path(__file__).with_name("vllm_stand_in.py")
LOGS = Path(__file__).parents[1] / "data" / "logs"


@pytest.fixture
def command(tmp_path: Path) -> str:
    program = tmp_path / "vllm"
    program.write_text(f"#!{sys.executable} -I\n" + STAND_IN.read_text())
    program.chmod(0o755)
    return str(program)


@pytest.fixture
def model(tmp_path: Path) -> str:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"num_attention_heads": 4}')
    return str(folder)


def vllm(command: str, model: str, **fields: object) -> pb.PoolSpec:
    described = pb.Model(path=model, context_length=1024)
    return pb.PoolSpec(engine=pb.ENGINE_VLLM, model=described, command=command, slots=3, **fields)  # type: ignore[arg-type]


@pytest.mark.behaviour("PRE-1", "PRE-2", "PRE-9", "LEASE-1", "RST-1")
def test_a_stand_in_for_vllm_is_preloaded_leased_killed_and_brought_back(
    client: Client, daemon: Daemon, pool_id: str, command: str, model: str
) -> None:
    client.create_pool(pool_id, vllm(command, model, args=["--enforce-eager"]))
    pool = client.preload(pool_id, wait=30)
    assert pool.ready, pool.last_error
    assert (pool.slots_total, pool.context_length, pool.engine_version) == (3, 1024, "0.33.0-stand-in")
    assert psutil.Process(pool.pid).cmdline()[2:] == [
        *(command, "serve", model, "--host", "127.0.0.1", "--port", pool.endpoint.rpartition(":")[2]),
        *("--max-num-seqs", "3", "--max-model-len", "1024", "--enforce-eager"),
    ]
    _, environment = ask(pool.endpoint, "/environment")
    assert isinstance(environment, dict)
    assert {environment[name] for name in ("VLLM_NO_USAGE_STATS", "DO_NOT_TRACK", "HF_HUB_OFFLINE")} == {"1"}
    with client.lease(pool_id, holder="e2e") as lease:
        status, answer = ask(lease.endpoint, "/v1/completions", {"prompt": "well", "max_tokens": 2})
        assert status == 200 and isinstance(answer, dict) and answer["choices"][0]["text"] == "well"
    os.kill(pool.pid, signal.SIGKILL)
    after = daemon.until(pool_id, lambda p: p.ready and p.pid != pool.pid, 30)
    assert (after.last_error.reason, after.restart_count) == ("SIGNAL", 1)


@pytest.mark.behaviour("DRN-2")
def test_a_reload_of_a_stand_in_commits_once_the_new_one_has_answered_with_a_token(
    client: Client, daemon: Daemon, pool_id: str, command: str, model: str
) -> None:
    client.create_pool(pool_id, vllm(command, model))
    before = client.preload(pool_id, wait=30)
    client.reload(pool_id, vllm(command, model, args=["--enforce-eager"]), wait=30)
    after = daemon.until(pool_id, lambda p: p.ready and not p.reload_phase and p.generation == 2, 30)
    assert after.pid != before.pid


@pytest.mark.behaviour("RST-8", "LIVE-3", "PRE-8")
def test_a_stand_in_that_dies_with_a_recorded_log_of_vllm_parks_its_pool_with_the_cause(
    client: Client, daemon: Daemon, pool_id: str, command: str, model: str
) -> None:
    client.create_pool(pool_id, vllm(command, model, env={"STAND_IN_DIES": str(LOGS / "vllm-heads.log")}))
    client.preload(pool_id)
    parked = daemon.until(pool_id, lambda p: p.state == pb.Pool.PARKED, 30)
    assert parked.last_error.reason == "BAD_ARGUMENTS"
    assert "attention heads (4) must be divisible by tensor parallel size (3)" in parked.last_error.message


@pytest.mark.behaviour("PRE-6")
def test_without_vllm_the_pool_is_refused(client: Client, tmp_path: Path, model: str) -> None:
    with pytest.raises(CallError) as refused:
        client.create_pool("no-vllm", vllm(str(tmp_path / "absent"), model))
    assert refused.value.reason == "EXECUTABLE_NOT_FOUND"
