"""The judge. It looks at the kernel, the disk, what clients were told and the stream of changes; never at what the
daemon thinks. Written from the behaviours, not from the code that they describe.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING

from poolmgr.errors import PoolmgrError
from poolmgr.model.engine import LaunchSpec
from poolmgr.model.pool import PoolView
from tests.sim.kernel import Process
from tests.sim.oracle_health import HealthOracle
from tests.sim.oracle_leases import LeaseOracle
from tests.sim.oracle_limits import LimitOracle
from tests.sim.oracle_policy import PolicyOracle
from tests.sim.oracle_pools import PoolOracle
from tests.sim.oracle_registered import RegisteredOracle
from tests.sim.oracle_stream import StreamOracle
from tests.sim.oracle_versions import VersionOracle

if TYPE_CHECKING:
    from tests.sim.daemon import Daemon
    from tests.sim.world import World

MAX_VIOLATIONS = 5


@dataclass(frozen=True, slots=True)
class Violation:
    """`rule` is a behaviour id, or DEFECT for an error that nobody expected. `step`: events applied until then."""

    seed: str
    step: int
    time: float
    rule: str
    text: str
    tail: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.rule} seed={self.seed} step={self.step} t={self.time:.3f}: {self.text}"


class Oracle:
    def __init__(self, world: World) -> None:
        self.world = world
        self.violations: list[Violation] = []
        self.wrong_signals = 0
        self.store_ill_until = -1.0
        self.daemon_deaths: list[float] = []
        self.pools = PoolOracle(self)
        self.leases = LeaseOracle(self)
        self.policy = PolicyOracle(self)
        self.stream = StreamOracle(self)
        self.health = HealthOracle(self)
        self.limits = LimitOracle(self)
        self.registered = RegisteredOracle(self)
        self.versions = VersionOracle(self)

    @property
    def now(self) -> float:
        return self.world.timeline.now

    def violate(self, rule: str, text: str) -> None:
        if len(self.violations) < MAX_VIOLATIONS:
            world = self.world
            world.trace("VIOLATION", rule, text)
            self.violations.append(Violation(world.name, world.steps, self.now, rule, text, tuple(world.tail)))

    def defect(self, text: str, error: BaseException | None) -> None:
        where = "".join(traceback.format_exception(error)[-4:]) if error is not None else ""
        self.violate("DEFECT", f"{text}\n{where}")

    def last_death(self) -> float:
        return self.daemon_deaths[-1] if self.daemon_deaths else 0.0

    # What clients ask for, and what watchers are shown.

    def asked(self, pool_id: str, op: str) -> None:
        self.health.asked(pool_id, op)
        self.limits.asked(pool_id, op)
        self.versions.asked(pool_id, op)

    def viewed(self, pool_id: str, view: PoolView | None) -> None:
        self.health.viewed(pool_id, view)
        self.limits.viewed(pool_id, view)
        self.registered.viewed(pool_id, view)
        self.versions.viewed(pool_id, view)

    # What happens in the host.

    def start_asked(self, launch: LaunchSpec) -> None:
        self.registered.start_asked(launch)
        self.limits.start_asked(launch)
        self.pools.start_asked(launch)
        self.policy.start_asked(launch)

    def spawned(self, process: Process) -> None:
        self.pools.spawned(process)
        self.health.spawned(process)

    def signalled(self, process: Process, number: int) -> None:
        self.health.signalled(process)
        self.registered.signalled(process, number)
        self.pools.signalled(process, number)

    def process_ended(self, process: Process) -> None:
        if process.kind == "engine":
            self.limits.engine_ended(process)
            self.policy.engine_ended(process)

    def exit_told(self, process: Process | None) -> None:
        """The daemon that lives hears of it now: at once from a shim, up to three seconds late without one."""
        if process is not None and process.kind == "engine":
            self.limits.exit_told(process)
            self.policy.exit_told(process)

    def recorded(self, granted, ended) -> None:
        self.leases.recorded(granted, ended)

    def fault(self, name: str, error: Exception) -> None:
        if name.startswith("store."):
            self.store_ill(self.now + 1.0)
        self.pools.fault(name, error)

    def store_ill(self, until: float) -> None:
        self.store_ill_until = max(self.store_ill_until, until)

    def booted(self) -> None:
        self.leases.booted()
        self.policy.booted()
        self.limits.forget()
        self.registered.booted()

    def database_lost(self) -> None:
        self.pools.database_lost()
        self.policy.database_lost()
        self.limits.forget()
        self.registered.database_lost()
        self.versions.database_lost()

    # What happens to the daemon.

    def paused(self, seconds: float) -> None:
        self.health.paused(seconds)
        self.registered.paused(seconds)

    def resumed(self) -> None:
        self.leases.resumed()

    def phase(self, daemon: Daemon) -> str:
        """What the host is about when the daemon is killed: for the count of kills by phase."""
        if daemon.recovering:
            return "recovering"
        if daemon.ending:
            return "ending"
        if self.pools.reloading():
            return "reloading"
        return self.stream.phase()

    def serving(self, daemon: Daemon) -> None:
        self.store_ill_until = min(self.store_ill_until, self.now) if not self.world.disk.failing else float("inf")
        self.pools.serving(daemon)
        self.leases.serving(daemon)
        self.stream.serving(daemon)
        self.versions.serving()
        for pool_id, view in self.stream.views.items():
            self.health.viewed(pool_id, view)
            self.versions.viewed(pool_id, view)

    def daemon_lost(self, daemon: Daemon) -> None:
        self.daemon_deaths.append(self.now)
        self.leases.daemon_lost(daemon)
        self.policy.daemon_lost()
        self.stream.daemon_lost()
        self.health.daemon_lost()
        self.versions.daemon_lost()

    def noted(self, noted: object) -> None:
        self.world.event(f"note-{noted.note.name}")

    # At the end.

    def settled(self) -> None:
        """Faults have stopped some time ago: what was promised holds (liveness)."""
        self.pools.settled()
        self.leases.settled()
        self.stream.settled()
        self.registered.settled()

    def emptied(self) -> None:
        """Every pool was deleted: nothing is left."""
        self.pools.emptied()


def definite(error: Exception) -> bool:
    """Whether an error says that nothing was done."""
    return isinstance(error, PoolmgrError)
