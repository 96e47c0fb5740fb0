"""The daemon under test: `python -m poolmgr` as it ships, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.common import ROOT
from poolmgr.client import Client
from poolmgr.v1 import pool_pb2 as pb

START_SECONDS = 20.0
STOP_SECONDS = 30.0
READY_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Daemon:
    address: str
    process: subprocess.Popen[bytes]
    log_file: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def log(self) -> list[dict[str, object]]:
        """The lines that are whole so far."""
        lines = self.log_file.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def wait_for_log(self, wanted: Callable[[dict[str, object]], bool], seconds: float) -> dict[str, object]:
        """The first line that is wanted. SystemExit when the daemon ends or the time is over."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.process.poll() is None:
            found = next(filter(wanted, self.log()), None)
            if found is not None:
                return found
            time.sleep(0.01)
        raise SystemExit(f"not in the daemon's log:\n{self.log_file.read_text()}")


def environment() -> dict[str, str]:
    """Ours, without what would configure the daemon otherwise than it ships."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("POOL_MANAGERD_")}
    paths = [str(ROOT), str(ROOT / "ext"), kept.get("PYTHONPATH", "")]
    return {**kept, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def launch(directory: Path, address: str, settings: Mapping[str, object], log_file: Path) -> subprocess.Popen[bytes]:
    """The daemon with its state in `directory`, just begun; its log is appended to."""
    command = [sys.executable, "-m", "poolmgr", "--addr", address, "--state-dir", str(directory / "state")]
    for key, value in {"observability.log_format": "json", **settings}.items():
        command += ["--set", f"{key}={value}"]
    with log_file.open("ab") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment())


@contextmanager
def running_daemon(directory: Path, settings: Mapping[str, object]) -> Iterator[Daemon]:
    """A daemon with its state in `directory`; at the end it and all its engines are gone."""
    log_file = directory / "daemon.log"
    process = launch(directory, "127.0.0.1:0", settings, log_file)
    daemon = Daemon("", process, log_file)
    try:
        started = daemon.wait_for_log(lambda line: line.get("event") == "daemon_started", START_SECONDS)
        address = str(started["address"])
        yield Daemon(address, process, log_file)
        with Client(address) as client:
            client.shutdown(stop_engines=True)
        process.wait(STOP_SECONDS)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def ready_pools(client: Client, spec: pb.PoolSpec, *pool_ids: str) -> list[pb.Pool]:
    """Creates the pools and starts them side by side. SystemExit when one does not get READY."""
    for pool_id in pool_ids:
        client.create_pool(pool_id, spec)
        client.preload(pool_id)
    pools = [client.preload(pool_id, wait=READY_SECONDS) for pool_id in pool_ids]
    for pool in pools:
        if pool.state != pb.Pool.READY:
            raise SystemExit(f"pool {pool.pool_id} is {pb.Pool.State.Name(pool.state)}: {pool.state_reason}")
    return pools
