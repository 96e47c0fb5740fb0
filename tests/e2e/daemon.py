"""A real daemon in a process of its own, for tests: started, asked, ended, and looked at from outside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from poolmgr.client import Client

START_SECONDS = 20.0
STOP_SECONDS = 20.0


@dataclass
class Daemon:
    """`python -m poolmgr` on a free port with its state in `directory`."""

    directory: Path
    settings: Mapping[str, object] = field(default_factory=dict)
    config: Path | None = None
    address: str = ""
    process: subprocess.Popen[bytes] | None = None

    @property
    def log_file(self) -> Path:
        return self.directory / "daemon.log"

    @property
    def state(self) -> Path:
        return self.directory / "state"

    def command(self, address: str = "127.0.0.1:0") -> list[str]:
        argv = [sys.executable, "-m", "poolmgr", "--addr", address, "--state-dir", str(self.state)]
        if self.config:
            argv += ["--config", str(self.config)]
        for key, value in {"observability.log_format": "json", **self.settings}.items():
            argv += ["--set", f"{key}={value}"]
        return argv

    def start(self) -> Daemon:
        """Returns once it serves."""
        self.directory.mkdir(parents=True, exist_ok=True)
        offset = self.log_file.stat().st_size if self.log_file.exists() else 0
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        started = self.wait_for_log(lambda line: line.get("event") == "daemon_started", offset)
        self.address = str(started["address"])
        return self

    def client(self) -> Client:
        return Client(self.address)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def log(self, offset: int = 0) -> list[dict[str, object]]:
        text = self.log_file.read_bytes()[offset:].decode(errors="replace")
        return [json.loads(line) for line in text.splitlines() if line.startswith("{") and line.endswith("}")]

    def wait_for_log(
        self, wanted: Callable[[dict[str, object]], bool], offset: int = 0, seconds: float = START_SECONDS
    ) -> dict[str, object]:
        """The first log line that is wanted; fails with the whole log when the daemon ends or `seconds` pass."""
        import time

        deadline = time.monotonic() + seconds
        pause = 0.01
        while time.monotonic() < deadline:
            for line in self.log(offset) if self.log_file.exists() else []:
                if wanted(line):
                    return line
            if self.process is not None and self.process.poll() is not None:
                break
            time.sleep(pause)  # a file written by another process: there is no event to wait for
        raise AssertionError(f"not in the daemon's log:\n{self.log_file.read_text(errors='replace')}")

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


def processes_of(state: Path) -> list[psutil.Process]:
    """Processes whose command line, directory or environment names the state directory."""
    found = []
    for process in psutil.process_iter():
        try:
            marks = [*process.cmdline(), process.cwd()]
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
        if process.pid != os.getpid() and any(str(state) in mark for mark in marks):
            found.append(process)
    return found
