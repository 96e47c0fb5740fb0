"""What `runtime` needs of the outside, as Protocols. Each is here because something uses it.

The determinism seam: time, randomness, threads and blocking work reach `runtime` only through `Clock`, `Rng` and
`Workers`, so that one seed replays one run.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

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
from poolmgr.model.memory import MemoryQuestion
from poolmgr.model.pool import EngineName, PoolRecord, PoolSpec, StoredPool
from poolmgr.ports.devices import DeviceMemory as DeviceMemory
from poolmgr.ports.devices import ModelReader as ModelReader
from poolmgr.ports.devices import Planner as Planner
from poolmgr.ports.devices import ProcessInfo as ProcessInfo
from poolmgr.ports.devices import Telemetry as Telemetry
from poolmgr.ports.devices import TelemetryListener as TelemetryListener

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

    def memory(self, spec: PoolSpec) -> MemoryQuestion | None:
        """What to ask of its model's file to know what it will take of its devices; None where that tells nothing."""
        ...

    def told_share(self, spec: PoolSpec, share: float) -> tuple[str, ...]:
        """Arguments by which it takes no more than this share of each device's memory, of one that takes whatever it
        is not denied; empty for one that takes what it needs.
        """
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
