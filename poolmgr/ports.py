"""What `runtime` needs of the outside, as Protocols. Each is here because something uses it.

The determinism seam: time, randomness, threads and blocking work reach `runtime` only through `Clock`, `Rng` and
`Workers`, so that one seed replays one run.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

from poolmgr.model.claim import ProcessFacts
from poolmgr.model.device import (
    DeviceProcess,
    Discovery,
    DriverEvent,
    RingInfo,
    Sample,
    WindowStatistics,
)
from poolmgr.model.engine import (
    Diagnosis,
    EngineFacts,
    ExitRecord,
    LaunchSpec,
    ProbeResult,
    ProbeTarget,
    ProcessIdentity,
    Progress,
    RecoveredEngine,
    Usage,
)
from poolmgr.model.lease import EndedLease, KeptLeases, Lease
from poolmgr.model.pool import EngineName, PoolRecord, PoolSpec, StoredPool

T = TypeVar("T")


class Timer(Protocol):
    def cancel(self) -> None: ...


class Clock(Protocol):
    """Two clocks: `now` in seconds on the boot-time clock, which counts suspend; `wall` in Unix seconds, for people."""

    @property
    def boot_id(self) -> str:
        """Which boot `now` counts from."""
        ...

    def now(self) -> float: ...
    def wall(self) -> float: ...
    def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
        """Calls back on the event loop at `when` on the boot-time clock, never earlier."""
        ...


class Rng(Protocol):
    def random(self) -> float:
        """Uniform in [0, 1)."""
        ...

    def hex(self, nbytes: int) -> str:
        """`nbytes` unpredictable bytes as lower-case hex: ids and secrets."""
        ...


class Workers(Protocol):
    """A named, bounded set of threads for work that blocks."""

    async def run(self, function: Callable[..., T], *args: object) -> T: ...


class Store(Protocol):
    """Desired state and history, in two classes of durability (architecture, State).

    Each coroutine returns once its change would survive a power cut. Changes are made durable in the order of the
    calls; what gathers while one commit runs goes into the next. Raises EnvironmentFault(STORE_UNAVAILABLE) when a
    change could not be made durable: nothing is changed then, but that after a failed fsync nobody can know. `record`
    is the other class: on return its change survives the end of this process, and is void in another boot.
    """

    @property
    def epoch(self) -> int:
        """How often state was opened on this host; durable before the store is handed out, and never used twice."""
        ...

    @property
    def warnings(self) -> Sequence[str]:
        """What an operator should know of how this state was found: what was damaged and where it was put."""
        ...

    async def load(self) -> Sequence[StoredPool]:
        """Every pool, by pool id, with the generations that are kept."""
        ...

    async def put_pool(self, record: PoolRecord, state: str = "", keep: int = 0) -> None:
        """Adds a generation, and what the pool remembers with it; the last 20 generations of a pool are kept.

        `state` is opaque text; empty leaves what was put before. `keep`: a generation that is kept besides, for a pool
        that went back to an old one.
        """
        ...

    async def put_state(self, pool_id: str, state: str) -> None:
        """Replaces what a pool remembers. No effect on a pool that is not stored."""
        ...

    async def delete_pool(self, pool_id: str) -> None: ...

    async def reserve_fences(self) -> range:
        """Fencing numbers that nobody was given before and nobody else will be: higher than all earlier ones of this
        host, over crashes, reboots and lost databases (LEASE-2). Durable on return.
        """
        ...

    def kept_leases(self) -> KeptLeases:
        """The leases as the last daemon of this boot recorded them."""
        ...

    def vouch_for_leases(self) -> None:
        """Nobody can hold a lease that is not recorded: `kept_leases` of the next store is `known` again."""
        ...

    def record(self, granted: Sequence[tuple[str, Lease]], ended: Sequence[EndedLease]) -> None:
        """Records grants, as (pool id, lease), and ends; blocks for microseconds. On return both survive a SIGKILL.

        Inside `batch` they do so when that ends. Raises EnvironmentFault(STORE_UNAVAILABLE); the grants are void then.
        """
        ...

    def batch(self) -> AbstractContextManager[None]:
        """Gathers what is recorded inside, to be written at once at its end. Raises there what `record` raises."""
        ...

    def close(self) -> None: ...


class EngineListener(Protocol):
    """What a runtime tells about one engine, on the event loop. `exited` comes once per start, then `tree_empty`."""

    def exited(self, record: ExitRecord) -> None:
        """The main process ended."""
        ...

    def tree_empty(self) -> None:
        """No process of the engine is left, and all are reaped."""
        ...


class Runtime(Protocol):
    """Owns engine processes. Every method that names an engine it does not know raises KeyError.

    A process is signalled only through a pidfd whose identity was checked, or its whole tree through its container.
    """

    @property
    def containment(self) -> str:
        """`cgroup` or `process-group`."""
        ...

    async def start(self, launch: LaunchSpec, listener: EngineListener) -> ProcessIdentity:
        """Starts the engine, in the directory and under the shim that its id already has, if it has them.

        Returns after a successful exec; the listener hears of every end from then on. Raises
        EnvironmentFault(SPAWN_FAILED) with `errno` and `path` when exec or fork failed, or a shim hangs and its
        successor too; no process of the engine is left then, or else the next call says so. EnvironmentFault(STATE_DIR)
        when the directory cannot be written; InternalError while processes of the engine are left.
        """
        ...

    def terminate(self, engine_id: str) -> None:
        """SIGTERM to the main process, by pidfd. No effect when it is gone."""
        ...

    def kill_tree(self, engine_id: str) -> None:
        """SIGKILL to every process of the engine. No effect when none is left."""
        ...

    async def rest(self, engine_id: str) -> None:
        """Ends the shim of an engine whose tree is empty; directory, log and records stay. Unknown ids: no effect.

        Raises InternalError while processes of the engine are left, EnvironmentFault(STATE_DIR) for what the host
        refuses.
        """
        ...

    async def remove(self, engine_id: str) -> None:
        """Ends the shim, removes leaf and directory. Raises as `rest`, then knows the id. Unknown ids: no effect."""
        ...

    async def recover(self, engine_ids: Collection[str] | None = None) -> Sequence[RecoveredEngine]:
        """What engine directories say at the daemon's start. Starts, signals and removes no engine.

        `engine_ids`: looks once more at these alone, which an earlier call has found and nobody has attached to.
        Raises EnvironmentFault(STATE_DIR) when they cannot be looked at.
        """
        ...

    async def probe_host(self) -> None:
        """Raises EnvironmentFault(HOST_FAULT) when this host can start no engine at all (RST-6)."""
        ...

    def attach(self, engine_id: str, listener: EngineListener) -> None:
        """Watches a recovered engine that is ALIVE, as if `start` had returned it.

        A DEAD one with `survivors` is watched too: `exited` tells the known end, `tree_empty` when the last has gone.
        Raises EnvironmentFault(STATE_DIR) for what the host refuses.
        """
        ...

    def usage(self, engine_id: str) -> Usage:
        """Never raises for what the host does not tell."""
        ...

    def owner_of_port(self, engine_id: str, port: int) -> bool | None:
        """Whether the socket that listens on 127.0.0.1:`port` is held by the engine's tree.

        None: nobody listens, or the host does not tell.
        """
        ...

    def log_tail(self, engine_id: str, lines: int) -> tuple[str, ...]:
        """The last lines of the log, at most 64 KiB of it, undecodable bytes replaced."""
        ...

    def follow_log(self, engine_id: str, lines: int) -> AsyncGenerator[tuple[str, ...], None]:
        """The last lines, then new ones as they are written (inotify, no polling), until the engine is removed."""
        ...

    def directory(self, engine_id: str) -> str: ...

    async def close(self) -> None:
        """Lets go of shims and engines; both go on."""
        ...


class EngineKind(Protocol):
    """What is peculiar to a kind of engine. Pure but for `check`, `describe` and `progress`."""

    @property
    def name(self) -> EngineName: ...

    def validate(self, spec: PoolSpec) -> None:
        """Raises ClientError for a spec that can never run, without looking at the host."""
        ...

    def check(self, spec: PoolSpec) -> None:
        """The gates before a spawn: model present, digest right, executable present. Blocking; raises ClientError."""
        ...

    def render(self, spec: PoolSpec, port: int) -> tuple[tuple[str, ...], dict[str, str]]:
        """(argv with an absolute argv[0], the kind's own environment variables)."""
        ...

    def readiness(self, spec: PoolSpec, port: int, timeout: float) -> ProbeTarget: ...
    def liveness(self, spec: PoolSpec, port: int, timeout: float) -> ProbeTarget: ...

    def verification(self, spec: PoolSpec, port: int, timeout: float) -> ProbeTarget:
        """The synthetic request that a ready engine has to answer before a reload commits to it (DRN-2)."""
        ...

    async def describe(self, spec: PoolSpec, port: int, timeout: float) -> EngineFacts:
        """Asks a ready engine what it is; empty facts when it does not say."""
        ...

    async def progress(self, spec: PoolSpec, port: int, timeout: float) -> Progress | None:
        """Asks a serving engine what it has in flight and how far it is (LIVE-2), within `timeout` seconds.

        None for a kind that does not say. Raises EnvironmentFault(UNREACHABLE) when there was no answer.
        """
        ...

    def diagnose(self, record: ExitRecord, log_tail: Sequence[str]) -> Diagnosis | None:
        """What the log tells of a death; None when it tells nothing that the exit does not."""
        ...


class Probe(Protocol):
    async def __call__(self, target: ProbeTarget) -> ProbeResult:
        """Asks once. Never raises for what the other side does; OK only when the answer is what was asked for."""
        ...


class Ports(Protocol):
    """TCP ports on 127.0.0.1 for engines; one daemon never hands one port to two engines."""

    def reserve(self, preferred: int) -> int:
        """`preferred` when free, else the next free one within 100, else any. EnvironmentFault(PORT_UNAVAILABLE)."""
        ...

    def claim(self, port: int) -> None:
        """Marks the port of a recovered engine as taken without looking whether it is free."""
        ...

    def release(self, port: int) -> None: ...


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
