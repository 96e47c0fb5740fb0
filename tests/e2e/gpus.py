"""A daemon on simulated GPUs, engines that hold memory of them, and what the driver shows from outside."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import grpc
import psutil

from poolmgr.adapters.simulator.host import LiveHost, library_path
from poolmgr.adapters.telemetry.rings import Place
from poolmgr.v1 import device_pb2 as dpb
from poolmgr.v1 import pool_pb2 as pb
from poolmgr.v1.device_pb2_grpc import DeviceServiceStub
from tests.e2e.daemon import BRISK, Daemon
from tests.e2e.engines import scripted

MIB = 1 << 20
GIB = 1 << 30
# Looks at the devices every second; what one story breaks keeps no other from starting.
QUICK = {
    **BRISK,
    "telemetry.discovery_interval_secs": 1,
    "supervision.backoff_max_ms": 200,
    "supervision.circuit_breaker_threshold": 10_000,
}


@dataclass
class GpuDaemon(Daemon):
    """`scenario`: a shorthand or a file; empty for a daemon that looks for real GPUs."""

    scenario: str = ""

    def command(self, address: str = "127.0.0.1:0") -> list[str]:
        return super().command(address) + ([f"--simulate={self.scenario}"] if self.scenario else [])

    @cached_property
    def host(self) -> LiveHost:
        """Live control over its GPUs; there once it has started."""
        (path,) = [path for path in self.state.glob("simulated-gpus-*") if path.is_file()]
        return LiveHost(path)

    def uuids(self, *gpus: int) -> list[str]:
        return [self.host.uuid(gpu) for gpu in gpus]

    def engine(self, mask: str, *flags: object, held: int = 64 * MIB, **fields: object) -> pb.PoolSpec:
        """Holds so many bytes of each device that it is shown."""
        gpus = ("--gpu-library", library_path(), "--gpu-state", self.host.path, "--gpu-memory", held)
        return scripted(*gpus, *flags, device_mask=mask, **fields)

    def destroy(self) -> None:
        super().destroy()
        Place(self.state).remove()  # what a daemon that was killed leaves in shared memory

    def cli(self, *words: str) -> str:
        """What `poolmgr` prints; fails when it does."""
        begin = "from poolmgr.cli.main import main; main()"
        argv = [sys.executable, "-c", begin, "--addr", self.address, *words]
        ended = subprocess.run(argv, capture_output=True, text=True, timeout=30)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    def until_device(
        self, device_id: str, reached: Callable[[dpb.Device], object], seconds: float = 15.0
    ) -> dpb.Device:
        """The first revision of the device of which `reached` holds; fails after `seconds` with the last one seen."""
        last = dpb.Device()
        with self.watching_devices(seconds, device_id=device_id) as changes:
            try:
                for answer in changes:
                    for last in [answer.upsert] if answer.HasField("upsert") else answer.snapshot.devices:
                        if reached(last):
                            return last
            except grpc.RpcError as error:
                raise AssertionError(f"{error.code().name}; the last that was seen:\n{last}") from error
        raise AssertionError("a watch ended by itself")

    @contextmanager
    def watching_devices(
        self, seconds: float = 15.0, **request: object
    ) -> Iterator[Iterator[dpb.WatchDevicesResponse]]:
        with grpc.insecure_channel(self.address) as channel:
            wanted = dpb.WatchDevicesRequest(**request)  # type: ignore[arg-type]
            call = DeviceServiceStub(channel).WatchDevices(wanted, timeout=seconds)
            yield call
            call.cancel()


def environment_of(pid: int) -> dict[str, str]:
    """What the process was started with, as the kernel has it."""
    return psutil.Process(pid).environ()


def visible(pid: int) -> list[str]:
    """The devices that the process was started to see, in its order."""
    environment = environment_of(pid)
    assert environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    return [device for device in environment["CUDA_VISIBLE_DEVICES"].split(",") if device]


def holders(host: LiveHost, gpu: int) -> set[int]:
    """Pids that the driver lists on a GPU and its instances."""
    return {int(process["pid"] or 0) for process in host.state.processes(gpu) if not process["gone"]}


def seen_on(host: LiveHost, pids: Collection[int]) -> set[int]:
    """The GPUs on which the driver lists any of these."""
    return {gpu for gpu in range(len(host.uuids())) if holders(host, gpu) & set(pids)}


def scenario_file(directory: Path, text: str) -> str:
    path = directory / "scenario.toml"
    path.write_text(text)
    return str(path)
