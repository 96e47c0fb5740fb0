"""The wheel's llama.cpp server under our launcher: a real engine on a real model, started as the adapter renders it."""

import hashlib
import json
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from poolmgr.adapters.engines.llamacpp import LlamaCppEngine
from poolmgr.adapters.engines.llamacpp_launcher import READY, STOP_SECONDS
from poolmgr.adapters.ports import LoopbackPorts
from poolmgr.adapters.probe import NetworkProbe, http_get_json
from poolmgr.model.engine import ExitRecord, ProbeOutcome
from poolmgr.model.pool import EngineName, ModelSpec, PoolSpec
from poolmgr.testing.gguf import write_tiny_llama

PATIENCE = 30.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    write_tiny_llama(path)
    return path


@pytest.fixture(autouse=True)
def no_llama_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The host's own llama-server, if there is one, is not what is tested."""
    monkeypatch.setenv("PATH", str(tmp_path))


class Launched:
    """One launcher with what the adapter would run, its log in a file."""

    def __init__(self, spec: PoolSpec, log: Path) -> None:
        self.kind, self.spec, self.log = LlamaCppEngine(http_get_json), spec, log
        self.kind.validate(spec)
        self.kind.check(spec)
        self.port = LoopbackPorts().reserve(0)
        argv, env = self.kind.render(spec, self.port)
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                argv, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.url(path), timeout=PATIENCE) as reply:
            return reply.read().decode()

    def complete(self, **request: object) -> dict[str, object]:
        body = json.dumps({"prompt": "hello", "seed": 1, **request}).encode()
        with urllib.request.urlopen(self.url("/v1/completions"), body, PATIENCE) as reply:
            return json.loads(reply.read())

    async def ready(self) -> None:
        """Health answers, and the launcher is back from loading and listens to signals."""
        probe, target = NetworkProbe(), self.kind.readiness(self.spec, self.port, 3.0)
        deadline = time.monotonic() + PATIENCE
        while (await probe(target)).outcome is not ProbeOutcome.OK or READY not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline

    def wait_busy(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while not any(slot["is_processing"] for slot in json.loads(self.get("/slots"))):
            assert time.monotonic() < deadline

    def stop(self) -> tuple[int, float]:
        """SIGTERM; (exit code, seconds until the end)."""
        started = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE), time.monotonic() - started


Launch = Callable[..., Launched]


@pytest.fixture
def launch(model: Path, tmp_path: Path) -> Iterator[Launch]:
    launched: list[Launched] = []

    def start(*args: str, slots: int = 2, context: int = 2048) -> Launched:
        digest = "sha256:" + hashlib.sha256(model.read_bytes()).hexdigest()
        spec = PoolSpec(EngineName.LLAMACPP, ModelSpec(str(model), digest, context), args=args, slots=slots)
        launched.append(Launched(spec, tmp_path / f"{len(launched)}.log"))
        return launched[-1]

    yield start
    for each in launched:
        each.process.kill()
        each.process.wait(PATIENCE)


@pytest.mark.e2e
@pytest.mark.behaviour("PRE-1", "PRE-2", "PRE-9")
async def test_a_real_model_is_loaded_served_and_described(launch: Launch, model: Path) -> None:
    engine = launch(slots=3, context=256)
    await engine.ready()
    facts = await engine.kind.describe(engine.spec, engine.port, 3.0)
    assert (facts.slots, facts.context_length, facts.model) == (3, 256, str(model))
    assert facts.version.startswith("xllamacpp ")
    usage = engine.complete(max_tokens=8, ignore_eos=True)["usage"]
    assert isinstance(usage, dict)
    assert usage["completion_tokens"] == 8
    assert [slot["n_ctx"] for slot in json.loads(engine.get("/slots"))] == [256] * 3
    assert "\nllamacpp:tokens_predicted_total 8\n" in engine.get("/metrics")
    assert str(model) in engine.get("/props")


@pytest.mark.e2e
@pytest.mark.behaviour("PROC-3")
async def test_sigterm_ends_an_idle_engine_with_exit_code_0(launch: Launch) -> None:
    engine = launch()
    await engine.ready()
    code, seconds = engine.stop()
    assert code == 0
    assert seconds < 2.0, "waited for the deadline although idle"


@pytest.mark.e2e
@pytest.mark.behaviour("PROC-3")
@pytest.mark.parametrize("stream", [False, True])
async def test_at_sigterm_a_request_in_flight_is_finished_and_no_new_one_is_admitted(
    launch: Launch, stream: bool
) -> None:
    # One thread: two that spin for each other on a busy host make a second of work into many.
    engine = launch("--threads", "1", "--stop-seconds", str(PATIENCE))
    await engine.ready()
    answers: list[bytes] = []

    def ask() -> None:
        request = {"prompt": "x", "max_tokens": 1500, "ignore_eos": True, "stream": stream}
        with urllib.request.urlopen(engine.url("/v1/completions"), json.dumps(request).encode(), PATIENCE) as reply:
            answers.append(reply.read())

    asking = threading.Thread(target=ask)
    asking.start()
    engine.wait_busy()
    engine.process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + PATIENCE
    refused = False
    while not refused:
        assert time.monotonic() < deadline
        with socket.socket() as client:
            refused = client.connect_ex(("127.0.0.1", engine.port)) != 0
    assert engine.process.poll() is None, "refused because it ended, not because it stopped admitting"
    asking.join(PATIENCE)
    assert engine.process.wait(PATIENCE) == 0
    assert (b"[DONE]" in answers[0]) if stream else (b'"completion_tokens":1500' in answers[0])


@pytest.mark.e2e
@pytest.mark.behaviour("PROC-3")
async def test_a_request_that_does_not_end_is_cut_at_the_deadline(launch: Launch) -> None:
    engine = launch("--stop-seconds", "0.3", context=500_000)
    await engine.ready()
    cut = threading.Event()

    def ask() -> None:
        try:
            engine.complete(max_tokens=400_000, ignore_eos=True)
        except (OSError, urllib.error.URLError):
            cut.set()

    asking = threading.Thread(target=ask)
    asking.start()
    engine.wait_busy()
    code, seconds = engine.stop()
    asking.join(PATIENCE)
    assert code == 0
    assert 0.3 <= seconds < 4.0
    assert cut.is_set()


@pytest.mark.e2e
@pytest.mark.behaviour("PRE-4", "LIVE-3")
def test_a_port_that_a_stranger_took_ends_the_launcher_and_is_diagnosed(model: Path) -> None:
    spec = PoolSpec(EngineName.LLAMACPP, ModelSpec(str(model)))
    kind = LlamaCppEngine(http_get_json)
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        argv, env = kind.render(spec, stranger.getsockname()[1])
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=PATIENCE, check=False)
    diagnosis = kind.diagnose(ExitRecord(exit_code=done.returncode), done.stderr.splitlines())
    assert done.returncode == 1
    assert diagnosis is not None
    assert (diagnosis.reason, diagnosis.permanent) == ("PORT_TAKEN", False)


@pytest.mark.behaviour("PROC-3")
def test_the_launcher_gives_up_before_the_daemon_s_own_patience_ends() -> None:
    assert STOP_SECONDS < 5.0


def test_the_same_seed_writes_the_same_model_and_another_seed_another(model: Path, tmp_path: Path) -> None:
    again, other = tmp_path / "again", tmp_path / "other"
    write_tiny_llama(again)
    write_tiny_llama(other, seed=1)
    assert again.read_bytes() == model.read_bytes() != other.read_bytes()
    assert os.path.getsize(again) < 600_000


def test_a_model_without_room_for_its_heads_or_bytes_is_refused(tmp_path: Path) -> None:
    for shape in ({"width": 60}, {"vocab": 258}, {"layers": 0}):
        with pytest.raises(ValueError, match="no such model"):
            write_tiny_llama(tmp_path / "m", **shape)
