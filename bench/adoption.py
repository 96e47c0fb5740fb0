"""How long a new daemon takes for 32 engines: from its exec to its first answered call, after a SIGKILL of the old one.

After every start an observer reads /proc: the same processes run, no other, and the daemon gives each pool its own.
"""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from bench import idle
from bench.daemon import READY_SECONDS, START_SECONDS, STOP_SECONDS, launch, ready_pools
from bench.load import WrongAnswerError
from poolmgr.client import Client
from poolmgr.v1 import pool_pb2 as pb
from poolmgr.v1.pool_pb2_grpc import PoolServiceStub

ENGINES = 32
POOL_IDS = tuple(f"adopt-{number:02d}" for number in range(ENGINES))
MARK = "BENCH_ADOPTION"  # in the environment of every engine: the directory of this bench
LEASE_SECONDS = 300.0  # a lease is live at every kill, and has its whole TTL again after it
LOOK_AGAIN_SECONDS = 0.001
EVERY_POOL = pb.ListPoolsRequest(page_size=1000)


@dataclass(frozen=True, slots=True)
class Process:
    """One process; a pid may be given again, together with its start time (clock ticks since boot) it is not."""

    pid: int
    start: int


@dataclass(frozen=True, slots=True)
class Adoption:
    """One start: seconds from exec to the first answered call, and to an answer that gives every pool as READY."""

    answered: float
    ready: float


def spec(directory: Path) -> pb.PoolSpec:
    """`bench.idle`'s: the scripted engine, probed over HTTP at the default cadence."""
    result = idle.spec()
    result.env[MARK] = str(directory)
    return result


def observed(directory: Path) -> frozenset[Process]:
    """What runs with this bench's mark in its environment, from proc(5); a zombie has none."""
    mark, found = f"{MARK}={directory}".encode(), set()
    for process in Path("/proc").iterdir():
        if not process.name.isdecimal():
            continue
        try:
            if mark in (process / "environ").read_bytes().split(b"\0"):
                start = (process / "stat").read_text().rpartition(")")[2].split()[19]
                found.add(Process(int(process.name), int(start)))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it has just ended, or is somebody else's
    return frozenset(found)


@dataclass(frozen=True, slots=True)
class Truth:
    """`engines` as an observer sees them, `pids` by pool as the daemon tells, `leases` that are live."""

    engines: frozenset[Process]
    pids: Mapping[str, int]
    leases: frozenset[str]

    def check(self, before: Truth) -> None:
        """Raises WrongAnswerError unless the same engines run, none else, and are told of; and no lease is lost."""
        if self.engines != before.engines:
            raise WrongAnswerError(
                f"engines ended: {before.engines - self.engines}, {self.engines - before.engines} began"
            )
        if self.pids != before.pids or set(self.pids.values()) != {process.pid for process in self.engines}:
            raise WrongAnswerError(f"told of as {self.pids}, where {self.engines} run")
        if self.leases != before.leases:
            raise WrongAnswerError(f"leases lost: {before.leases - self.leases}; new: {self.leases - before.leases}")


class Place:
    """One state directory and whichever daemon has it, always at one address."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self._port = probe.getsockname()[1]
        self.address = f"127.0.0.1:{self._port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Adoption:
        began = time.monotonic()
        self.process = launch(self._directory, self.address, {}, self._directory / "daemon.log")
        self._wait_for_socket(self.process, began + START_SECONDS)
        with grpc.insecure_channel(self.address) as channel:
            pools = PoolServiceStub(channel)
            answer = pools.ListPools(EVERY_POOL, timeout=START_SECONDS, wait_for_ready=True)
            answered = time.monotonic() - began
            while time.monotonic() < began + READY_SECONDS and not all(p.state == pb.Pool.READY for p in answer.pools):
                time.sleep(LOOK_AGAIN_SECONDS)
                answer = pools.ListPools(EVERY_POOL, timeout=START_SECONDS)
            return Adoption(answered, time.monotonic() - began)

    def _wait_for_socket(self, process: subprocess.Popen[bytes], deadline: float) -> None:
        """The daemon listens before it takes engines over; gRPC itself would look again only after 100 ms."""
        while time.monotonic() < deadline and process.poll() is None:
            with socket.socket() as trial:
                if trial.connect_ex(("127.0.0.1", self._port)) == 0:
                    return
            time.sleep(LOOK_AGAIN_SECONDS)
        raise SystemExit(f"the daemon does not listen:\n{(self._directory / 'daemon.log').read_text()}")

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    @contextmanager
    def running(self) -> Iterator[None]:
        """From the first daemon to the end of the last, with its engines."""
        self.start()
        try:
            yield
            with Client(self.address) as client:
                client.shutdown(stop_engines=True)
            assert self.process is not None
            self.process.wait(STOP_SECONDS)
        finally:
            if self.process is not None and self.process.poll() is None:
                self.kill()


def look(directory: Path, client: Client) -> Truth:
    pools, leases = client.list_pools(), client.list_leases()
    lazy = [pool.pool_id for pool in pools if pool.state != pb.Pool.READY]
    if lazy:
        raise WrongAnswerError(f"not READY: {lazy}")
    pids = {pool.pool_id: pool.pid for pool in pools}
    return Truth(observed(directory), pids, frozenset(lease.lease_id for lease in leases))


def measure(directory: Path, starts: int) -> list[Adoption]:
    """Raises WrongAnswerError when an engine or a lease is lost, doubled or mistaken for another."""
    directory.mkdir()
    place, taken = Place(directory), []
    with place.running():
        with Client(place.address) as client:
            ready_pools(client, spec(directory), *POOL_IDS)
            for pool_id in POOL_IDS:
                client.acquire(pool_id, holder="bench", ttl=LEASE_SECONDS)
            before = look(directory, client)
        before.check(before)
        for _ in range(starts):
            place.kill()
            taken.append(place.start())
            with Client(place.address) as client:
                look(directory, client).check(before)
    return taken
