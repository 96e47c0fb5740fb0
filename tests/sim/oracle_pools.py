"""Engines and pools: one engine each, no wrong signal, nothing acknowledged is lost, nothing is left behind."""

from __future__ import annotations

import signal
from math import inf
from typing import TYPE_CHECKING

from poolmgr.errors import PoolmgrError
from poolmgr.model.engine import LaunchSpec
from poolmgr.model.pool import PoolSpec, PoolState, PoolView, RestartMode
from tests.sim.calls import Unavailable
from tests.sim.kernel import Process
from tests.sim.truth import Truth

if TYPE_CHECKING:
    from tests.sim.daemon import Daemon
    from tests.sim.oracle import Oracle

ENDING = frozenset({"stop", "drain", "delete"})
CHANGING = frozenset({"update", "reload", "rollback", "create"})
STARTING = frozenset({"preload", "undrain", "reset"})
START_SLACK = 2.0  # seconds that a start may still take which was under way when a stop was answered
STOP_SLACK = 12.0


class PoolOracle:
    def __init__(self, oracle: Oracle) -> None:
        self._oracle = oracle
        self._truths: dict[str, Truth] = {}
        self._doubtful: set[str] = set()
        self.lost: dict[str, float] = {}
        self.deleted: set[str] = set()  # a lease of theirs may be unknown to the pool that has the name now

    def truth(self, pool_id: str) -> Truth:
        return self._truths.setdefault(pool_id, Truth(pool_id))

    @property
    def _now(self) -> float:
        return self._oracle.now

    # What the administrator asks and is told.

    def asked(self, pool_id: str, op: str, spec: PoolSpec | None) -> None:
        truth = self.truth(pool_id)
        if not truth.pending:
            truth.before, truth.drained_before = (truth.exists, truth.want), truth.drains
        truth.pending += 1
        self._expect(truth, op, spec)
        if op in CHANGING or op in ("reset", "delete"):
            self._oracle.policy.forgiven(pool_id)
        if op == "preload":
            self._oracle.policy.asked_to_start(pool_id)

    def drain_asked(self, pool_id: str, deadline: float) -> None:
        """For the first time: what is asked again because no answer came keeps the first one's deadline."""
        truth = self.truth(pool_id)
        ends = self._now + deadline
        truth.drain_ends = min(truth.drain_ends, ends) if truth.drains else ends

    def _expect(self, truth: Truth, op: str, spec: PoolSpec | None) -> None:
        if op in ENDING:
            truth.last_ending = self._now
            truth.want = None
        if op in CHANGING:
            truth.last_change = self._now
            if spec is not None:
                truth.maybe_specs.append(spec)
        if op == "rollback":
            self._goes_back(truth, inf)
        if op in STARTING or op in CHANGING:
            truth.last_start = self._now
            truth.want = None if truth.want != "run" else "run"
            truth.drained_at = None
        if op in STARTING:
            truth.drains = False
        if op in ("create", "delete"):
            truth.exists = None

    @staticmethod
    def _goes_back(truth: Truth, until: float) -> None:
        """To which of its earlier specs is not said; and when it is asked again, from there to where it was."""
        truth.earlier = [(until, spec) for _, spec in truth.earlier]

    def told(self, pool_id: str, op: str, result: object, error: Exception | None, spec: PoolSpec | None) -> None:
        truth = self.truth(pool_id)
        truth.pending -= 1
        if op == "rollback":
            self._goes_back(truth, self._now)
        if error is None:
            self._done(truth, op, result, spec)
        elif isinstance(error, PoolmgrError) or (isinstance(error, Unavailable) and not error.reached):
            self._not_done(truth, op, spec)

    def _done(self, truth: Truth, op: str, result: object, spec: PoolSpec | None) -> None:
        view = getattr(result, "view", None)
        truth.wanted_since = self._now
        if spec is not None:
            self._has_spec(truth, spec)
        if op in CHANGING or op == "reset":
            self._oracle.policy.forgiven(truth.pool_id)  # it was done somewhen between the asking and now
        if op == "create":
            self._made(truth, spec)
        elif op in ("preload", "undrain"):
            truth.want = "run"
            # An end that the daemon hears of after it was asked to start is not undone by the start.
            truth.ended_by_itself = truth.ended_by_itself and truth.ended_at >= truth.last_start
        elif op in ("stop", "drain"):
            truth.want = "stop"
            self._drains(truth, op, view)
        elif op == "delete":
            self.deleted.add(truth.pool_id)
            self._truths[truth.pool_id] = Truth(truth.pool_id, want="stop", wanted_since=self._now)

    @staticmethod
    def _made(truth: Truth, spec: PoolSpec | None) -> None:
        """To make what is there already changes nothing, and starts nothing."""
        preloaded = "run" if spec is not None and spec.preload else "stop"
        truth.want = preloaded if truth.before[0] is False else None

    def _has_spec(self, truth: Truth, spec: PoolSpec) -> None:
        if truth.spec is not None:
            truth.earlier.append((self._now, truth.spec))
        truth.spec, truth.exists = spec, True
        truth.maybe_specs = [s for s in truth.maybe_specs if s is not spec]

    def _drains(self, truth: Truth, op: str, view: PoolView | None) -> None:
        if op != "drain" or view is None or view.state is not PoolState.DRAINING:
            return
        truth.drains = True
        seen = self._oracle.stream.views.get(truth.pool_id)
        if seen is None or not seen.reload_phase:  # which drains with a deadline of its own
            truth.drained_at = self._now

    @staticmethod
    def _not_done(truth: Truth, op: str, spec: PoolSpec | None) -> None:
        """Nothing has changed; but a deletion that was begun goes on."""
        if spec is not None:
            truth.maybe_specs = [s for s in truth.maybe_specs if s is not spec]
        if not truth.pending and op != "delete":
            (truth.exists, truth.want), truth.drains = truth.before, truth.drained_before

    # Starts.

    def start_asked(self, launch: LaunchSpec) -> None:
        truth = self.truth(launch.pool_id)
        quiet = not truth.pending and truth.want == "stop"
        if quiet and self._now > truth.wanted_since + START_SLACK:
            self._oracle.violate(
                "RST-8", f"pool {launch.pool_id} is started {self._now - truth.wanted_since:.1f} s after it was stopped"
            )
        if launch.pool_id in self._doubted_pools():
            self._oracle.violate("PROC-6", f"pool {launch.pool_id} is started beside an engine in doubt")

    def _doubted_pools(self) -> set[str]:
        dirs = self._oracle.world.disk.engine_dirs
        return {
            dirs[i].launch.pool_id
            for i in self._doubtful
            if i in dirs and dirs[i].launch is not None and self._oracle.world.kernel.leaf(i)
        }

    def spawned(self, process: Process) -> None:
        others = [
            p
            for engine_id, members in self._oracle.world.kernel.leaves.items()
            if engine_id != process.engine_id
            for p in members
            if p.alive and p.pool_id == process.pool_id
        ]
        same = [p for p in others if p.generation == process.generation]
        truth = self.truth(process.pool_id)
        truth.launched = max(truth.launched, process.generation)
        if same:
            self._oracle.violate(
                "PROC-7", f"pool {process.pool_id} generation {process.generation}: {process.pid} starts beside {same}"
            )
        elif others and process.pool_id not in self.lost and not self._may_be_two(truth, others):
            self._oracle.violate("DRN-2", f"pool {process.pool_id}: {process.pid} starts beside {others}")
        elif len({p.engine_id for p in others}) > 1:
            self._oracle.violate("PROC-7", f"pool {process.pool_id}: {process.pid} is the third engine: {others}")

    @staticmethod
    def _may_be_two(truth: Truth, others: list[Process]) -> bool:
        """A reload was asked for, of a pool whose two engines fit beside each other: they share no port."""
        asked = truth.last_change > min(p.started for p in others) - 60.0
        specs = [s for s in (truth.spec, *truth.maybe_specs) if s is not None]
        return asked and (truth.beside_asked or not all(s.port for s in specs))

    # Signals.

    def signalled(self, process: Process, number: int) -> None:
        world = self._oracle.world
        world.event("sigterm" if number == signal.SIGTERM else "sigkill")
        why = self._why_wrong(process)
        if why:
            self._oracle.wrong_signals += 1
            self._oracle.violate(
                why[0], f"signal {number} to {process.kind} {process.pid} {process.engine_id}: {why[1]}"
            )

    def _why_wrong(self, process: Process) -> tuple[str, str] | None:
        if process.kind not in ("engine", "child"):
            return "PROC-3", "it is not an engine's"
        if process.engine_id in self._doubtful:
            return "PROC-6", "it is in doubt"
        directory = self._oracle.world.disk.engine_dirs.get(process.engine_id)
        main = directory.main if directory else None
        if main is None or not main.alive or main.told:
            return None
        truth = self.truth(process.pool_id)
        lost = self.lost.get(process.pool_id)
        asked = (
            self._oracle.world.stopping_engines
            or truth.pending
            or max(truth.last_ending, truth.last_change, truth.last_start) > (lost or 0.0)
        )
        if lost is not None and not asked and not self._unfit(truth, main) and not self._outdated(truth, main):
            return "PROC-7", "nobody asked for its end since the database was lost"
        if self._may_end(truth, main):
            return self._over_their_heads(truth, main)
        return "LIVE-1", f"engine of pool {process.pool_id} is well and nobody asked for its end"

    def _outdated(self, truth: Truth, main: Process) -> bool:
        """A reload had left it behind before the database was lost, and its pool was rebuilt from the newer engine."""
        stream = self._oracle.stream
        view = stream.views.get(truth.pool_id) or stream.last_view(truth.pool_id)
        return view is not None and main.generation < view.generation <= truth.launched

    def _may_end(self, truth: Truth, main: Process) -> bool:
        asked = truth.want in ("stop", None) or truth.pending > 0
        asked = asked or truth.last_ending >= main.started - 10.0 or truth.last_change >= main.started - 60.0
        return asked or self._oracle.world.stopping_engines or self._unfit(truth, main)

    def _unfit(self, truth: Truth, main: Process) -> bool:
        """Whether a supervisor has a reason of its own: the truth of LIVE-1, PRE-3 and PRE-4."""
        now, settings = self._now, truth.settings()
        age = now - main.started
        if main.port and self._oracle.world.kernel.listener(main.port) not in (None, main):
            return True
        if not main.was_ready(now):
            return age >= 0.9 * min(settings.start_timeout, settings.stall_timeout)
        s = main.script
        seconds = settings.health_check_failures * (settings.health_check_interval + settings.health_check_timeout)
        return s.hang <= age <= s.well_again + seconds

    def _over_their_heads(self, truth: Truth, main: Process) -> tuple[str, str] | None:
        """A drain ends an engine that is well only when nobody holds a lease, or at its deadline (DRN-1)."""
        if truth.drained_at is None or truth.pending or self._unfit(truth, main):
            return None
        if self._oracle.world.stopping_engines:  # the daemon ends, and was asked to take its engines along
            return None
        if self._now >= truth.drain_ends - 0.1:
            return None
        holders = self._oracle.leases.live_on(main)
        return ("DRN-1", f"{holders} leases live, the drain has time left") if holders else None

    def fault(self, name: str, error: Exception) -> None:
        """An error that was injected: a gate that closes or a spawn that fails parks a pool for good."""

    # Daemons.

    def serving(self, daemon: Daemon) -> None:
        self._oracle.world.stopping_engines = False
        listed = {p.pool_id: p.view for p in daemon.facade.pools()}
        for pool_id, truth in sorted(self._truths.items()):
            view = listed.get(pool_id)
            if truth.exists is True and view is None:
                self._oracle.violate("LEASE-4", f"pool {pool_id} was acknowledged and is gone")
            elif self._back(truth, view):
                self._oracle.violate("DRN-5", f"pool {pool_id} was deleted and is back")
            elif view is not None and truth.spec is not None:
                self._check_spec(truth, view)

    def _back(self, truth: Truth, view: PoolView | None) -> bool:
        """Deleted, and here again; unless the file declares it."""
        declared = truth.pool_id in self._oracle.world.declared
        return truth.exists is False and view is not None and not truth.pending and not declared

    def _check_spec(self, truth: Truth, view: PoolView) -> None:
        """A daemon serves what the last one published: that was durable before it was shown."""
        before = self._oracle.stream.last_view(truth.pool_id)
        if before is None or truth.pool_id in self.lost or truth.asked_since(self._oracle.last_death()):
            return
        allowed = [before.spec]
        if before.reload_phase:
            allowed += [truth.spec, *truth.maybe_specs, *(s for _, s in truth.earlier)]
        if view.spec not in allowed:
            self._oracle.violate("DRN-3", f"pool {truth.pool_id} was published with another spec than it has now")

    def recovered(self, found: list, at_start: bool) -> None:
        """What the daemon is shown at its start, or when it looks again at what was in doubt.

        It looks again when an operator asks for something, and lets a pool go of which nothing is left: STOPPED, until
        an operator asks for more than that (PROC-6).
        """
        self._doubtful = set() if at_start else self._doubtful - {one.engine_id for one in found}
        self._doubtful |= {one.engine_id for one in found if one.state.value == "IN_DOUBT"}
        if not at_start and all(one.state.value == "DEAD" for one in found):
            for launch in (one.launch for one in found if one.launch is not None):
                self._let_go(self.truth(launch.pool_id))

    @staticmethod
    def _let_go(truth: Truth) -> None:
        """Its engine was wanted and is gone: whether another is wanted is not known until it is asked for."""
        truth.want = None if truth.want == "run" else truth.want
        exists, want = truth.before  # which holds where what was asked is refused after all
        truth.before = (exists, None if want == "run" else want)

    def in_doubt(self, engine_id: str) -> bool:
        return engine_id in self._doubtful

    def doubted_pool(self, pool_id: str) -> bool:
        return pool_id in self._doubted_pools()

    def database_lost(self) -> None:
        for pool_id, truth in self._truths.items():
            self.lost[pool_id] = self._now
            truth.exists = truth.want = truth.drained_at = None
            truth.drains = truth.drained_before = False
            truth.before = (None, None)

    def engines_stopped(self) -> None:
        """The daemon was asked to end with its engines: whether the next one starts them again is not ruled."""
        for truth in self._truths.values():
            truth.want = None if truth.want == "run" else truth.want

    def reloading(self) -> bool:
        return any(t.pending and self._now - t.last_change < 30.0 for t in self._truths.values())

    def exited_well(self, pool_id: str) -> None:
        truth = self.truth(pool_id)
        truth.ended_by_itself, truth.ended_at = True, self._now

    # The end.

    def settled(self) -> None:
        daemon = self._oracle.world.daemon
        if daemon is None or not daemon.serving:
            self._oracle.violate("PROC-6", "no daemon serves, though nothing keeps it from that")
            return
        listed = {p.pool_id: p.view for p in daemon.facade.pools()}
        for pool_id, truth in sorted(self._truths.items()):
            view = listed.get(pool_id)
            if truth.exists is True and view is None:
                self._oracle.violate("LEASE-4", f"pool {pool_id} was acknowledged and is gone")
            if view is not None and not truth.pending:
                self._check_state(truth, view)

    def _check_state(self, truth: Truth, view: PoolView) -> None:
        state, why = view.state, ""
        if state in (PoolState.PROVISIONING, PoolState.STARTING, PoolState.STOPPING, PoolState.DRAINING):
            why = "" if self._loads(truth) else "is still on its way"
        elif state in (PoolState.PARKED, PoolState.BACKOFF) and view.last_error is None:
            why = "says no reason"
        elif state is PoolState.UNKNOWN and not self._doubt_excused(truth, view):
            why = "nothing is in doubt"
        elif truth.want == "run" and state in (PoolState.PENDING, PoolState.STOPPED) and not self._excused(truth):
            why = "it is wanted"
        elif truth.want == "stop" and view.pid and not self.doubted_pool(truth.pool_id):
            why = "it was stopped"
        if why:
            self._oracle.violate("PRE-8", f"pool {truth.pool_id} is {state} ({view.state_reason}): {why}")

    def _loads(self, truth: Truth) -> bool:
        """Whether an engine of it loads, for less than it may: three times as long where it gets on (PRE-3)."""
        now, limit = self._now, truth.settings().start_timeout
        engines = [p for p in self._oracle.world.kernel.engines() if p.pool_id == truth.pool_id]
        return any(not p.was_ready(now) and now - p.started < limit * (3 if p.script.progress else 1) for p in engines)

    def _doubt_excused(self, truth: Truth, view: PoolView) -> bool:
        """A record is damaged, a look was made to fail, or the database was lost with both engines of a reload."""
        dirs = self._oracle.world.disk.engine_dirs
        doubted = [dirs[i].launch for i in self._doubtful if i in dirs]  # as it was when the daemon looked last
        return (
            any(launch is not None and launch.pool_id == truth.pool_id for launch in doubted)
            or "injected" in view.state_reason
            or "runtime.attach" in self._oracle.world.faults_hit
            or (truth.pool_id in self.lost and view.state_reason.count(": alive") > 1)
        )

    @staticmethod
    def _excused(truth: Truth) -> bool:
        return truth.ended_by_itself or (truth.spec is not None and truth.spec.restart is RestartMode.NEVER)

    def emptied(self) -> None:
        world = self._oracle.world
        existing = {t.pool_id for t in self._truths.values() if t.exists is not False}
        kept = set(self.lost) | set(world.declared) | existing
        doubted = self._doubtful
        dirs = [
            d for i, d in world.disk.engine_dirs.items()
            if i not in doubted and not (d.launch is not None and d.launch.pool_id in kept)
        ]  # fmt: skip
        if dirs:
            self._oracle.violate("DRN-5", f"directories are left: {[(d.engine_id, d.launch.pool_id) for d in dirs]}")
        if kept or doubted:
            return
        left = [p for p in world.kernel.processes.values() if p.kind != "foreign" and p.alive]
        if left:
            self._oracle.violate("DRN-5", f"processes are left: {left}")
        leaves = [i for i in world.kernel.leaves if i not in doubted]
        if leaves:
            self._oracle.violate("DRN-5", f"cgroup leaves are left: {leaves}")
        if world.daemon is not None and world.daemon.ports.reserved:
            self._oracle.violate("PRE-8", f"ports are left: {sorted(world.daemon.ports.reserved)}")
