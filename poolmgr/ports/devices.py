"""What `runtime` needs to see GPUs, models' files and plans."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from poolmgr.model.claim import ProcessFacts
from poolmgr.model.device import DeviceProcess, Discovery, DriverEvent, RingInfo, Sample, WindowStatistics
from poolmgr.model.plan import Found, SplitRequest
from poolmgr.model.shape import ModelShape


class TelemetryListener(Protocol):
    """What the telemetry process tells, on the event loop."""

    def discovered(self, discovery: Discovery) -> None:
        """A look at the devices has ended; also when it shows what the last one did."""
        ...

    def happened(self, event: DriverEvent) -> None: ...

    def stalled(self, seconds: float, call: str) -> None:
        """No samples or answers: a driver call has not come back for so long (DEV-5), or the telemetry process has
        died or lies (TEL-7); it is replaced. `call`: the call, or in words what it is. Once, until `flows_again`.
        """
        ...

    def flows_again(self) -> None:
        """Samples and answers come again after `stalled`."""
        ...


class Telemetry(Protocol):
    """The one way to the GPU driver: a process of its own, which a hung driver may take (TEL-1).

    Nothing here waits for the driver but `processes` and `memory`, and those no longer than their deadline.
    """

    async def start(self, listener: TelemetryListener) -> None:
        """Returns once the first discovery has ended or could not be had. A host without GPUs is no error (DEV-4)."""
        ...

    async def close(self) -> None: ...

    async def processes(self, device_ids: Sequence[str], timeout: float) -> Mapping[str, Sequence[DeviceProcess]]:
        """Who holds memory of each device, asked now; a device that the driver does not answer for is absent.

        Raises EnvironmentFault(TELEMETRY_STALLED) when no answer came within `timeout` seconds.
        """
        ...

    async def free_memory(self, device_ids: Sequence[str], timeout: float) -> Mapping[str, int]:
        """Bytes free of each device, asked now. Absent and raises as `processes`."""
        ...

    async def look_again(self, timeout: float) -> Discovery:
        """A discovery now, which the listener hears of too. Raises as `processes`."""
        ...

    def latest(self, device_id: str) -> Sample | None:
        """From the ring, without a call. None: no sample yet, or a device that has no column."""
        ...

    def statistics(self, device_id: str, field: str, window: float) -> WindowStatistics | None:
        """Over the last 1, 10, 60 or 600 s. None where nothing was sampled within it."""
        ...

    def quantiles(self, device_id: str, field: str, window: float) -> Mapping[float, float]:
        """p50, p95 and p99 as 0.5, 0.95 and 0.99 of what the ring holds of the window; empty when that is nothing."""
        ...

    def history(self, device_id: str, field: str, seconds: float) -> Sequence[tuple[float, float]]:
        """(boot-time seconds, value), oldest first."""
        ...

    def ring(self) -> RingInfo | None:
        """None while no telemetry process writes."""
        ...


class ProcessInfo(Protocol):
    """Who a process of this host is."""

    def look(self, pids: Collection[int]) -> Mapping[int, ProcessFacts]:
        """Blocking. Those that have gone, or of which the host tells nothing, are absent."""
        ...


class DeviceMemory(Protocol):
    """One text that outlives the daemon: cordons and quarantines."""

    def load(self) -> str:
        """Blocking. What was saved last; empty when that is nothing. Raises EnvironmentFault(STATE_DIR)."""
        ...

    def save(self, text: str) -> None:
        """Blocking. On return it would survive a power cut; raises EnvironmentFault(STORE_UNAVAILABLE), and what was
        saved before is still there.
        """
        ...


class ModelReader(Protocol):
    def read(self, path: str) -> ModelShape:
        """Blocking, from headers alone. Raises ClientError MODEL_NOT_FOUND or MODEL_INVALID."""
        ...


class Planner(Protocol):
    """Finds splits (SPLIT-4). `poolmgr.core.split_search` is the readable twin that every one has to agree with."""

    def search(self, request: SplitRequest) -> Found:
        """Blocking, for at most a fixed number of steps. Of a request that `core.split.validate` lets pass.

        Raises ClientError(INVALID_ARGUMENT) for numbers that it cannot count with.
        """
        ...
