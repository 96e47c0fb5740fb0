"""A scripted daemon, and a command line that talks to it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from poolmgr.cli.main import main
from tests.cli.scripted_daemon import ScriptedDaemon, serving


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def daemon() -> Iterator[ScriptedDaemon]:
    with serving() as scripted:
        yield scripted


@pytest.fixture
def unused_address() -> Iterator[str]:
    """An address where nobody listens, held so that nobody else can."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{held.getsockname()[1]}"


@pytest.fixture
def run(daemon: ScriptedDaemon, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `poolmgr` with POOL_MANAGERD_ADDR naming the scripted daemon."""
    monkeypatch.setenv("POOL_MANAGERD_ADDR", daemon.address)

    def run_it(*argv: str) -> Ran:
        with pytest.raises(SystemExit) as ended:
            main(argv)
        out, err = capfd.readouterr()
        return Ran(int(ended.value.code or 0), out, err)

    return run_it
