"""The scripted engine does what its script says: tests of supervision stand on it."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from poolmgr.adapters.simulator.host import SimulatedHost, library_path
from poolmgr.adapters.simulator.scenario import load
from poolmgr.testing import engine

PROGRAM = Path(engine.__file__)
PATIENCE = 20.0


def unused_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class Running:
    """One scripted engine, by path with ``-I -S`` as the shim starts it; its output line by line."""

    def __init__(self, *options: str, port: int | None = None) -> None:
        self.port = unused_port() if port is None else port
        self.children: list[int] = []
        argv = [sys.executable, "-I", "-S", str(PROGRAM), "--port", str(self.port), *options]
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def until(self, text: str) -> list[str]:
        """The lines up to the first that contains `text`."""
        assert self.process.stdout is not None
        lines = []
        for line in self.process.stdout:
            lines.append(line.strip())
            if line.startswith("child pid="):
                self.children.append(int(line.partition("=")[2]))
            if text in line:
                return lines
        raise AssertionError(f"ended without {text!r}: {lines}")

    def ask(self, path: str, body: object = None, timeout: float = PATIENCE) -> tuple[int, object]:
        data = None if body is None else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", data, timeout) as reply:
                text = reply.read().decode()
                return reply.status, text if path == "/metrics" else json.loads(text)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    def wait(self) -> int:
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        for pid in self.children:
            os.kill(pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait(PATIENCE)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def started() -> Iterator[list[Running]]:
    engines: list[Running] = []
    yield engines
    for each in engines:
        each.close()


def ready(started: list[Running], *options: str) -> Running:
    started.append(Running(*options))
    started[-1].until("model loaded")
    return started[-1]


def test_a_good_engine_answers_like_llama_server(started: list[Running]) -> None:
    running = ready(started, "--parallel", "2", "--ctx-size", "512", "--model", "/m")
    assert running.ask("/health") == (200, {"status": "ok"})
    assert running.ask("/v1/completions", {"prompt": "echo"})[1]["choices"][0]["text"] == "echo"  # type: ignore[index]
    props = running.ask("/props")[1]
    assert isinstance(props, dict)
    assert (props["total_slots"], props["default_generation_settings"]["n_ctx"]) == (2, 256)
    assert running.ask("/slots")[1] == [{"id": i, "n_ctx": 256, "is_processing": False} for i in (0, 1)]
    assert "llamacpp:n_decode_total 1" in str(running.ask("/metrics")[1])
    assert running.ask("/v1/models")[1] == {"object": "list", "data": [{"id": "/m", "object": "model"}]}
    assert running.ask("/absent")[0] == 404


def test_it_says_who_it_is_before_anything_else(started: list[Running]) -> None:
    running = ready(started)
    running.close()
    started[:] = [Running("--crash-at", "spawn", "--exit-code", "5")]
    assert started[0].until("ending") == [
        f"scripted engine pid={started[0].process.pid} port={started[0].port}",
        "ending: exit 5",
    ]
    assert started[0].wait() == 5


def test_it_is_loading_until_it_is_loaded_and_says_how_far_it_is(started: list[Running]) -> None:
    running = Running("--never-ready")
    started.append(running)
    assert sum("loading model" in line for line in running.until("90 %")) == 9
    assert running.ask("/health")[0] == 503
    assert running.ask("/v1/completions", {"prompt": "x"})[0] == 503


def test_a_silent_load_prints_nothing(started: list[Running]) -> None:
    assert not any("loading" in line for line in ready_lines(started, "--silent-load"))


def ready_lines(started: list[Running], *options: str) -> list[str]:
    started.append(Running(*options))
    return started[-1].until("model loaded")


@pytest.mark.parametrize(
    ("stage", "last"),
    [
        ("spawn", "scripted engine"),
        ("bind", "listening"),
        ("load", "100 %"),
        ("ready", "model loaded"),
        ("0.01", "loaded"),
    ],
)
def test_it_crashes_where_it_is_told_to(started: list[Running], stage: str, last: str) -> None:
    running = Running("--crash-at", stage, "--signal", str(int(signal.SIGSEGV)))
    started.append(running)
    lines = running.until("ending: signal 11")
    assert last in lines[-2]
    assert running.wait() == -signal.SIGSEGV


def test_sigterm_ends_it_well_unless_it_ignores_it(started: list[Running]) -> None:
    polite = ready(started)
    polite.process.terminate()
    assert polite.wait() == 0
    stubborn = ready(started, "--ignore-sigterm")
    stubborn.process.terminate()
    assert stubborn.ask("/health")[0] == 200
    stubborn.process.kill()
    assert stubborn.wait() == -signal.SIGKILL


def test_sigterm_ends_a_load_at_once(started: list[Running]) -> None:
    running = Running("--never-ready")
    started.append(running)
    running.until("90 %")
    running.process.terminate()
    assert running.wait() == 0


def test_its_children_outlive_it_and_do_not_listen_to_sigterm(started: list[Running]) -> None:
    running = ready(started, "--leave-children", "2", "--escape")
    running.process.terminate()
    assert running.wait() == 0
    assert len(running.children) == 2
    for pid in running.children:
        os.kill(pid, signal.SIGTERM)
        assert os.getsid(pid) == pid


def test_requests_can_hang_while_health_answers_and_flow_again(started: list[Running]) -> None:
    running = ready(started, "--hang-requests")
    with pytest.raises(TimeoutError):
        running.ask("/v1/completions", {"prompt": "x"}, timeout=0.1)
    assert running.ask("/health")[0] == 200
    assert running.ask("/slots")[1] == [{"id": 0, "n_ctx": 2048, "is_processing": True}]
    running.ask("/_control", {"hang": False})
    assert running.ask("/v1/completions", {"prompt": "x"})[0] == 200


def test_an_engine_that_lies_is_healthy_and_completes_nothing(started: list[Running]) -> None:
    running = ready(started, "--lie-ready")
    assert running.ask("/health")[0] == 200
    assert running.ask("/v1/completions", {"prompt": "x"})[0] == 500
    running.ask("/_control", {"lie": False})
    assert running.ask("/v1/completions", {"prompt": "x"})[0] == 200


def test_health_changes_on_command_and_by_the_clock(started: list[Running]) -> None:
    running = ready(started, "--unhealthy-after", "0.05")
    deadline = time.monotonic() + PATIENCE
    while running.ask("/health")[0] == 200:
        assert time.monotonic() < deadline
    running.ask("/_control", {"health": 200})
    assert running.ask("/health")[0] == 200


@pytest.mark.parametrize(
    ("order", "code"), [({"exit": 3}, 3), ({"exit": 0}, 0), ({"signal": 9}, -9), ({"signal": 6}, -6)]
)
def test_it_ends_on_command_after_the_answer(started: list[Running], order: dict[str, int], code: int) -> None:
    running = ready(started)
    assert running.ask("/_control", order) == (200, {})
    assert running.wait() == code


def test_it_prints_on_command(started: list[Running]) -> None:
    running = ready(started)
    running.ask("/_control", {"log": "CUDA error: out of memory"})
    assert running.until("CUDA error")[-1] == "CUDA error: out of memory"


def test_a_taken_port_ends_it_as_it_ends_llama_server_unless_it_carries_on(started: list[Running]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        started.append(Running(port=port))
        assert f"couldn't bind HTTP server socket, hostname: 127.0.0.1, port: {port}" in started[-1].until("bind")[-1]
        assert started[-1].wait() == 1
        started.append(Running("--ignore-bind-failure", port=port))
        started[-1].until("model loaded")
        assert started[-1].process.poll() is None


def test_it_can_run_without_listening(started: list[Running]) -> None:
    running = ready(started, "--no-listen")
    with pytest.raises(urllib.error.URLError, match="refused"):
        running.ask("/health")


def test_it_holds_what_it_is_told_of_simulated_gpus_in_its_mask_or_not_until_it_ends(
    started: list[Running], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = SimulatedHost(load("3xT4"), tmp_path / "gpus")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(host.uuids()[1:]))
    gpus = ("--gpu-library", str(library_path()), "--gpu-state", str(host.path), "--gpu-memory", "1048576")
    running = ready(started, *gpus)

    def held() -> list[int]:
        processes = [[p for p in host.state.processes(gpu) if p["pid"] == running.process.pid] for gpu in range(3)]
        return [sum(int(p["bytes"] or 0) for p in each) for each in processes]

    assert held() == [0, 1 << 20, 1 << 20]
    running.ask("/_control", {"gpu": {host.uuid(0): 2 << 20, host.uuid(1): 0}})
    assert held() == [2 << 20, 0, 1 << 20]
    with contextlib.suppress(OSError):  # it may be gone before it answers
        running.ask("/_control", {"gpu": {host.uuid(0): 1 << 40}})
    assert "CUDA error: Cannot allocate memory" in running.until("CUDA error")[-1]
    assert running.wait() == 1
