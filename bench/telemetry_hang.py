"""Every RPC while the GPU driver hangs for half a minute: what does not wait for a driver takes as long as ever.

The daemon as it ships, on eight simulated GPUs, with one pool whose engine runs. One caller asks as soon as it is
answered, GetPool, ListDevices, GetTelemetry, AcquireLease, ReleaseLease and so on, from the moment in which the driver
begins to hang until it has come back; nothing is tried again, so that what is measured is the daemon. That nothing is
sampled while the telemetry process is replaced is an answer of GetTelemetry, and counts like any other.

The figure is the largest of the calls' p99, in milliseconds.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from bench import common
from bench.daemon import START_SECONDS, STOP_SECONDS, Daemon, environment, ready_pools
from poolmgr.adapters.simulator.host import DAEMON_PREFIX, LiveHost
from poolmgr.client import Client
from poolmgr.client.errors import call_error
from poolmgr.v1 import admin_pb2, device_pb2, lease_pb2, pool_pb2, telemetry_pb2
from poolmgr.v1.admin_pb2_grpc import AdminServiceStub
from poolmgr.v1.device_pb2_grpc import DeviceServiceStub
from poolmgr.v1.lease_pb2_grpc import LeaseServiceStub
from poolmgr.v1.pool_pb2_grpc import PoolServiceStub
from poolmgr.v1.telemetry_pb2_grpc import TelemetryServiceStub

SCENARIO = "8xH100-SXM"
POOL = "bench"
HANG_SECONDS = 30.0
QUICK_SECONDS = 8.0
BACK_SECONDS = 15.0  # after the hang, at most, until the driver counts as answering again
CALL_SECONDS = 10.0
FIGURE = "rpc_p99_ms_during_hang"
BARS = (common.at_most(FIGURE, 50.0),)
ENGINE = pool_pb2.PoolSpec(engine=pool_pb2.ENGINE_COMMAND, command="sleep", args=["infinity"], device_mask="0")


@dataclass(slots=True)
class Calls:
    """One caller, and the seconds that each of its calls took, by name."""

    channel: grpc.Channel
    took: dict[str, list[float]] = field(default_factory=dict)
    unsampled: int = 0  # answers of GetTelemetry that there was nothing

    def rounds(self, until: Callable[[admin_pb2.Status], bool], deadline: float) -> None:
        """One of each again and again until the status is as wanted. SystemExit when that is not by `deadline`."""
        pools, devices = PoolServiceStub(self.channel), DeviceServiceStub(self.channel)
        leases, telemetry = LeaseServiceStub(self.channel), TelemetryServiceStub(self.channel)
        admin = AdminServiceStub(self.channel)
        wanted = lease_pb2.AcquireLeaseRequest(pool_id=POOL, holder="bench")
        while True:
            self._timed("GetPool", pools.GetPool, pool_pb2.GetPoolRequest(pool_id=POOL))
            self._timed("ListDevices", devices.ListDevices, device_pb2.ListDevicesRequest())
            self._timed("GetTelemetry", telemetry.GetTelemetry, telemetry_pb2.GetTelemetryRequest())
            lease = self._timed("AcquireLease", leases.AcquireLease, wanted).lease
            back = lease_pb2.ReleaseLeaseRequest(lease_id=lease.lease_id, token=lease.token)
            self._timed("ReleaseLease", leases.ReleaseLease, back)
            if until(self._timed("GetStatus", admin.GetStatus, admin_pb2.GetStatusRequest())):
                return
            if time.monotonic() > deadline:
                raise SystemExit("the daemon does not tell of the driver what was to come")

    def _timed(self, name: str, method: Callable[..., Any], request: object) -> Any:
        began = time.perf_counter()
        try:
            return method(request, timeout=CALL_SECONDS)
        except grpc.RpcError as error:
            if call_error(error, "").reason != "NO_TELEMETRY":
                raise
            self.unsampled += 1
        finally:
            self.took.setdefault(name, []).append(time.perf_counter() - began)


@contextmanager
def simulating_daemon(directory: Path) -> Iterator[Daemon]:
    """On simulated GPUs, with its state in `directory`; at the end it and its engines are gone."""
    log_file = directory / "daemon.log"
    argv = [sys.executable, "-m", "poolmgr", "--addr=127.0.0.1:0", f"--state-dir={directory / 'state'}"]
    argv += ["--set=observability.log_format=json", f"--simulate={SCENARIO}"]
    with log_file.open("ab") as log:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment())
    try:
        daemon = Daemon("", process, log_file)
        started = daemon.wait_for_log(lambda line: line.get("event") == "daemon_started", START_SECONDS)
        yield Daemon(str(started["address"]), process, log_file)
        with Client(str(started["address"])) as client:
            client.shutdown(stop_engines=True)
        process.wait(STOP_SECONDS)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def simulated_host(directory: Path) -> LiveHost:
    (state,) = [path for path in (directory / "state").glob(f"{DAEMON_PREFIX}*") if path.is_file()]
    return LiveHost(state)


def measure(directory: Path, seconds: float = HANG_SECONDS) -> Calls:
    """Calls while the driver hangs for so long. `directory` has to be there, and empty."""
    with simulating_daemon(directory) as daemon:
        with Client(daemon.address) as client:
            ready_pools(client, ENGINE, POOL)
        with grpc.insecure_channel(daemon.address) as channel:
            Calls(channel).rounds(
                lambda status: status.driver.HasField("heartbeat_age"), time.monotonic() + CALL_SECONDS
            )
            calls = Calls(channel)
            deadline = time.monotonic() + seconds + BACK_SECONDS
            simulated_host(directory).fault("hang", seconds=seconds)
            calls.rounds(lambda status: status.driver.HasField("stalled"), deadline)
            calls.rounds(lambda status: not status.driver.HasField("stalled"), deadline)
        return calls


def worst_p99_ms(took: Mapping[str, list[float]]) -> float:
    return max(common.percentile(values, 99) for values in took.values()) * 1e3


def rpc_p99_ms_during_hang(directory: Path, seconds: float = HANG_SECONDS) -> float:
    """The figure: the largest p99 of any call, in milliseconds. Takes `seconds` and a little more."""
    return worst_p99_ms(measure(directory, seconds).took)


def main() -> None:
    arguments = common.arguments(str(__doc__))
    with common.state_directory(arguments.directory, "telemetry-hang") as directory:
        calls = measure(directory, QUICK_SECONDS if arguments.quick else HANG_SECONDS)
    rows = [
        (name, str(len(values)), *(f"{common.percentile(values, percent) * 1e3:.2f}" for percent in (50, 99, 100)))
        for name, values in calls.took.items()
    ]
    common.print_table("calls while the driver hangs, ms", ("call", "n", "p50", "p99", "max"), rows)
    common.console.print(f"GetTelemetry told {calls.unsampled} times that nothing is sampled")
    report = common.Report("telemetry_hang", BARS)
    report.figures[FIGURE] = worst_p99_ms(calls.took)
    report.print(arguments.json)


if __name__ == "__main__":
    main()
