"""Pools of the scripted engine, and what a test says to an engine that runs."""

from __future__ import annotations

import json
import socket
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from poolmgr.testing import engine
from poolmgr.v1 import pool_pb2 as pb

SCRIPT = str(Path(engine.__file__))
HEALTH = pb.Probe(kind=pb.Probe.HTTP, path="/health")
COMPLETES = pb.Probe(kind=pb.Probe.SYNTHETIC, path="/v1/completions", body='{"prompt": "well"}', expect="well")


def scripted(
    *flags: object, port_flag: str = "{port}", supervision: dict[str, int] | None = None, **fields: object
) -> pb.PoolSpec:
    """A pool of the scripted engine, run with `flags`; `fields` of the spec, `supervision` as overrides."""
    return pb.PoolSpec(
        **{  # type: ignore[arg-type]
            "engine": pb.ENGINE_COMMAND,
            "command": sys.executable,
            "args": ["-I", "-S", SCRIPT, "--port", port_flag, *map(str, flags)],
            "readiness": HEALTH,
            "liveness": HEALTH,
            "supervision": pb.Supervision(**(supervision or {})),
            **fields,
        }
    )


def ask(endpoint: str, path: str, body: object = None, seconds: float = 20.0) -> tuple[int, object]:
    """(status, JSON) of the engine's answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://{endpoint}{path}", data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=seconds) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read() or b"null")


def tell(endpoint: str, **change: object) -> None:
    """Changes a scripted engine while it runs: see poolmgr.testing.engine."""
    assert ask(endpoint, "/_control", change)[0] == 200


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    return port


class _Healthy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def stranger(port: int) -> Iterator[None]:
    """Somebody else on the port, who says 200 to every question."""
    server = ThreadingHTTPServer(("127.0.0.1", port), _Healthy)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
