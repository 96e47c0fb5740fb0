"""The switch of gRPC's own that the daemon sets before gRPC begins."""

from __future__ import annotations

import os
import subprocess
import sys

# Imported as `python -m poolmgr` does, then gRPC is begun.
BEGIN = "import poolmgr.__main__, os, grpc; grpc.insecure_channel('127.0.0.1:1'); print(os.environ['GRPC_EXPERIMENTS'])"


def begun(**environment: str) -> tuple[str, str]:
    """The switch of a process that begins as the daemon does, and what gRPC says of it."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("GRPC_")}
    done = subprocess.run(
        [sys.executable, "-c", BEGIN],
        env={**kept, "GRPC_VERBOSITY": "error", **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout.strip(), done.stderr


def test_grpc_knows_the_switch_that_the_daemon_sets() -> None:
    switch, said = begun()
    assert switch == "-event_engine_listener"
    assert "Unknown experiment" not in said


def test_an_operators_own_switch_stands_and_grpc_names_one_that_it_does_not_know() -> None:
    switch, said = begun(GRPC_EXPERIMENTS="-no_such_switch")
    assert switch == "-no_such_switch"
    assert "Unknown experiment: no_such_switch" in said
