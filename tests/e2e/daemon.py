"""A real daemon in a process of its own, for tests: started, asked, ended, and looked at from outside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import grpc
import psutil

from poolmgr.client import Client
from poolmgr.v1 import pool_pb2 as pb
from poolmgr.v1.pool_pb2_grpc import PoolServiceStub

START_SECONDS = 20.0
STOP_SECONDS = 20.0
# One daemon for many tests: engines are asked often, and what one test breaks charges no other test's pool.
BRISK: Mapping[str, object] = {
    "supervision.readiness_interval_ms": 20,
    "supervision.backoff_initial_ms": 20,
    "supervision.backoff_floor_ms": 0,
    "supervision.stop_grace_secs": 1,
    "supervision.restart_rate_limit": 10_000,
    "supervision.restart_warn": 10_000,
}

T = TypeVar("T")


@dataclass
class Daemon:
    """`python -m poolmgr` on a free port with its state in `directory`. `settings` by "section.key"."""

    directory: Path
    settings: Mapping[str, object] = field(default_factory=dict)
    config: Path | None = None
    prefix: Sequence[str] = ()  # a launcher that ends in the daemon's place
    address: str = ""
    process: subprocess.Popen[bytes] | None = None

    @property
    def log_file(self) -> Path:
        return self.directory / "daemon.log"

    @property
    def state(self) -> Path:
        return self.directory / "state"

    def command(self, address: str = "127.0.0.1:0") -> list[str]:
        argv = [*self.prefix, sys.executable, "-m", "poolmgr", "--addr", address, "--state-dir", str(self.state)]
        if self.config:
            argv += ["--config", str(self.config)]
        for key, value in {"observability.log_format": "json", **self.settings}.items():
            argv += ["--set", f"{key}={value}"]
        return argv

    def start(self) -> Daemon:
        """Returns once it serves."""
        self.directory.mkdir(parents=True, exist_ok=True)
        offset = self.log_size()
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.address = str(self.wait_for_log("daemon_started", offset)["address"])
        return self

    def client(self) -> Client:
        return Client(self.address)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    # Its log.

    def log_size(self) -> int:
        return self.log_file.stat().st_size if self.log_file.exists() else 0

    def log(self, offset: int = 0) -> list[dict[str, object]]:
        text = self.log_file.read_bytes()[offset:].decode(errors="replace")
        return [json.loads(line) for line in text.splitlines() if line.startswith("{") and line.endswith("}")]

    def wait_for_log(self, event: str, offset: int = 0, **fields: object) -> dict[str, object]:
        """The first line with this event and these fields; fails with the whole log when the daemon ends first."""

        def found() -> dict[str, object] | None:
            for line in self.log(offset):
                if line["event"] == event and all(line.get(name) == value for name, value in fields.items()):
                    return line
            if self.process is not None and self.process.poll() is not None:
                raise AssertionError(f"no {event}, the daemon ended:\n{self.log_file.read_text(errors='replace')}")
            return None

        return eventually(found, START_SECONDS, lambda: self.log_file.read_text(errors="replace"))

    # Its pools.

    def until(self, pool_id: str, reached: Callable[[pb.Pool], object], seconds: float = 15.0) -> pb.Pool:
        """The first revision of the pool of which `reached` holds; fails after `seconds` with the last one seen."""
        last = pb.Pool()
        with grpc.insecure_channel(self.address) as channel:
            try:
                for answer in PoolServiceStub(channel).WatchPools(
                    pb.WatchPoolsRequest(pool_id=pool_id), timeout=seconds
                ):
                    for last in [answer.upsert] if answer.HasField("upsert") else answer.snapshot.pools:
                        if reached(last):
                            return last
            except grpc.RpcError as error:
                raise AssertionError(f"{error.code().name}; the last that was seen:\n{last}") from error
        raise AssertionError("a watch ended by itself")

    # Its end.

    def terminate(self, number: int = signal.SIGTERM) -> int:
        """Ends the daemon; its exit status. Engines go on."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(STOP_SECONDS)

    def shutdown(self) -> int:
        """Ends the daemon and every engine."""
        assert self.process is not None
        if self.process.poll() is None:
            with self.client() as client:
                client.shutdown(stop_engines=True)
        return self.process.wait(STOP_SECONDS)

    def family(self) -> list[psutil.Process]:
        """Every process that belongs to this state directory: daemon, shims, engines."""
        return processes_of(self.state)

    def destroy(self) -> None:
        """After a test, whatever came of it: nothing of this state directory runs on."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for process in self.family():
            process.kill()


def processes_of(state: Path) -> list[psutil.Process]:
    """Processes whose command line or working directory names the state directory."""
    found = []
    for process in psutil.process_iter():
        try:
            marks = [*process.cmdline(), process.cwd()]
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
        if process.pid != os.getpid() and any(str(state) in mark for mark in marks):
            found.append(process)
    return found


def eventually(found: Callable[[], T | None], seconds: float, told: Callable[[], object] = str) -> T:
    """The first thing that `found` gives which is neither None nor False; for what the kernel has no event for.

    Fails after `seconds` with what `told` tells.
    """
    deadline = time.monotonic() + seconds
    while True:
        thing = found()
        if thing is not None and thing is not False:
            return thing
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {told()}")
        time.sleep(0.01)
