"""The parties of bench.respawn: each keeps one `child` alive that tells when its main() began."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.daemon import Daemon, ready_pools, running_daemon
from poolmgr.client import Client
from poolmgr.v1 import pool_pb2 as pb

ARRIVAL_SECONDS = 30.0
STOP_SECONDS = 10.0
POOL = "bench"
# Zero backoff, and limits that a bench must not run into; all else as shipped.
SETTINGS = {
    "supervision.backoff_initial_ms": 0,
    "supervision.backoff_floor_ms": 0,
    "supervision.restart_rate_limit": 10000,
    "supervision.circuit_breaker_threshold": 10000,
    "supervision.slow_loop_limit": 10000,
}


@dataclass(frozen=True, slots=True)
class Arrival:
    """A child's first line: whose it is, its pid, and CLOCK_MONOTONIC in nanoseconds."""

    party: str
    pid: int
    at: int


class Arrivals:
    """The socket that all children report to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(os.fspath(path))
        self._socket.settimeout(ARRIVAL_SECONDS)

    def next(self, party: str) -> Arrival:
        """The next child, which has to be of `party`. TimeoutError when none comes."""
        name, pid, at = self._socket.recv(128).decode().split()
        if name != party:
            raise RuntimeError(f"waited for a child of {party}, there came one of {name}")
        return Arrival(name, int(pid), int(at))

    def close(self) -> None:
        self._socket.close()


@dataclass(slots=True)
class Party:
    """A supervisor and its child of now."""

    name: str
    arrivals: Arrivals
    child: int

    def respawn(self) -> float:
        """Kills the child. Milliseconds from the SIGKILL to the next one's first line."""
        killed = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        os.kill(self.child, signal.SIGKILL)
        arrival = self.arrivals.next(self.name)
        self.child = arrival.pid
        return (arrival.at - killed) / 1e6


@dataclass(frozen=True, slots=True)
class Child:
    """The program to keep alive."""

    program: Path
    arrivals: Arrivals

    def command(self, party: str) -> list[str]:
        return [str(self.program), str(self.arrivals.path), party]


@contextmanager
def poolmgr(child: Child, directory: Path) -> Iterator[tuple[Party, Daemon]]:
    """The daemon with one pool. Its probe is NONE, as a command's is when none is named."""
    directory.mkdir()
    command, *args = child.command("poolmgr")
    with running_daemon(directory, SETTINGS) as daemon:
        with Client(daemon.address) as client:
            ready_pools(client, pb.PoolSpec(engine=pb.ENGINE_COMMAND, command=command, args=args), POOL)
        yield Party("poolmgr", child.arrivals, child.arrivals.next("poolmgr").pid), daemon


@contextmanager
def c_loop(child: Child, program: Path) -> Iterator[Party]:
    with _running("c_loop", [str(program), *child.command("c_loop")], child.arrivals, program.parent) as party:
        yield party


@contextmanager
def supervisord(child: Child, directory: Path) -> Iterator[Party]:
    """startsecs=0: an early end is no failed start, which would be delayed. autorestart=true: after any exit."""
    directory.mkdir()
    (directory / "supervisord.conf").write_text(
        f"""[supervisord]
nodaemon=true
logfile={directory}/supervisord.log
pidfile={directory}/supervisord.pid
childlogdir={directory}
[program:child]
command={" ".join(child.command("supervisord"))}
autorestart=true
startsecs=0
"""
    )
    command = [sys.executable, "-W", "ignore", "-m", "supervisor.supervisord", "-c", "supervisord.conf"]
    with _running("supervisord", command, child.arrivals, directory) as party:
        yield party


@contextmanager
def circus(child: Child, directory: Path) -> Iterator[Party]:
    """All defaults (respawn on, warmup_delay 0); sockets in `directory`, so that two benches do not meet."""
    directory.mkdir()
    (directory / "circus.ini").write_text(
        f"""[circus]
endpoint = ipc://endpoint
pubsub_endpoint = ipc://pubsub
[watcher:child]
cmd = {" ".join(child.command("circus"))}
numprocesses = 1
"""
    )
    command = [sys.executable, "-W", "ignore", "-m", "circus.circusd", "circus.ini"]
    with _running("circus", command, child.arrivals, directory) as party:
        yield party


@contextmanager
def _running(name: str, command: Sequence[str], arrivals: Arrivals, directory: Path) -> Iterator[Party]:
    """A peer from its first child on; at the end it and its child are gone."""
    with (directory / f"{name}.out").open("wb") as output:
        process = subprocess.Popen(command, cwd=directory, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    party = None
    try:
        party = Party(name, arrivals, arrivals.next(name).pid)
        yield party
    finally:
        # Not asked to end: what is left to do is to be gone, in the order that starts no further child.
        process.kill()
        process.wait(STOP_SECONDS)
        if party is not None:
            os.kill(party.child, signal.SIGKILL)
