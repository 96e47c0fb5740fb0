"""The simulated world: a host, its disk, one daemon at a time, clients, faults, and the oracle that judges it all.

Everything in it is decided by the seed. `run` lets time pass; the daemon runs whenever it has something to do.
"""

from __future__ import annotations

import hashlib
import random
import signal
from collections import deque
from collections.abc import Callable

from poolmgr.model.engine import ExitRecord
from poolmgr.model.pool import PoolSpec
from tests.sim import outside
from tests.sim.calls import Call
from tests.sim.daemon import Daemon
from tests.sim.disk import Disk
from tests.sim.gate import CrashPoint, FaultPoint
from tests.sim.kernel import Kernel, Process, Script
from tests.sim.oracle import Oracle
from tests.sim.runtime import cause_of
from tests.sim.timeline import Livelock, Timeline

TRACE_TAIL = 400
MAX_TURNS_AT_ONCE = 10_000
WALL_AT_START = 1.8e9


class World:
    def __init__(self, seed: str | int) -> None:
        self.seed = self.name = str(seed)
        self.rng = random.Random(f"world {seed}")
        self.timeline = Timeline()
        self.disk = Disk()
        self.oracle = Oracle(self)
        self.kernel = Kernel(self.timeline)
        self.kernel.on_exit = self._process_ended
        self.kernel.on_signal = self.oracle.signalled
        self.daemon: Daemon | None = None
        self.daemons = 0
        self._dead: list[Daemon] = []
        self.calls: dict[int, Call] = {}
        self.calls_made = 0

        # What the scenario sets.
        self.declared: dict[str, PoolSpec] = {}
        self.missing: set[str] = set()
        self.scripts: dict[str, Callable[[int, int], Script]] = {}
        self.runs: dict[str, int] = {}
        self.restart_delay = 0.3
        self.restarts = True
        self.fault_rate = 0.0
        self.faults_on = True
        self.lost_replies = 0.0
        self.reuse_pids = False
        self.spikes = 0.0
        self.drift = 0.0
        self.wall_jump = 0.0

        # What was asked of this run, and what came of it.
        self.crash_point: CrashPoint | None = None
        self.fault_point: FaultPoint | None = None
        self.call_names: list[str] | None = None
        self.port_calls = 0
        self.calls_by_name: dict[str, int] = {}
        self.crash_points_hit = 0
        self.faults_hit: dict[str, int] = {}
        self.events: dict[str, int] = {}
        self.steps = 0
        self.callbacks = 0
        self.kills_by_phase: dict[str, int] = {}
        self.leases_at_kill: list[int] = []
        self.exits = 0
        self.stopping_engines = False
        self.tail: deque[str] = deque(maxlen=TRACE_TAIL)
        self._digest = hashlib.blake2b(digest_size=16)

    # Chance, time, trace.

    def chance(self, p: float) -> bool:
        return p > 0 and self.rng.random() < p

    def latency(self, usual: float) -> float:
        """Around `usual` seconds, and now and then much more."""
        slow = 20.0 if self.chance(self.spikes) else 1.0
        return usual * (0.2 + 1.6 * self.rng.random()) * slow

    def wall(self) -> float:
        return WALL_AT_START + self.timeline.now * (1 + self.drift) + self.wall_jump

    async def sleep(self, seconds: float) -> None:
        await outside.sleep(self, seconds)

    def trace(self, *words: str) -> None:
        line = f"{self.timeline.now:.4f} {' '.join(words)}"
        self.tail.append(line)
        self._digest.update(line.encode())

    def event(self, name: str) -> None:
        """Something of a kind happened: what scenarios differ in."""
        self.events[name] = self.events.get(name, 0) + 1

    def digest(self) -> str:
        return self._digest.hexdigest()

    # Time passes.

    def run(self, seconds: float) -> None:
        """Stops early at the first violation."""
        until = self.timeline.now + seconds
        turns, instant = 0, -1.0
        while not self.oracle.violations:
            turns = turns + 1 if self.timeline.now == instant else 0
            instant = self.timeline.now
            if turns > MAX_TURNS_AT_ONCE:
                self.oracle.violate("DEFECT", "time does not pass: something is asked for again at once, for ever")
            daemon = self.daemon
            if daemon is not None and not daemon.paused and daemon.loop._ready:
                self._run_daemon(daemon)
            elif not self.timeline.run_next(until):
                break
        self._bury()

    def _run_daemon(self, daemon: Daemon) -> None:
        try:
            daemon.loop.run_ready()
        except Livelock as error:
            self.oracle.defect(str(error), error)
        if self._dead:
            self._bury()

    def _bury(self) -> None:
        dead, self._dead = self._dead, []
        for daemon in dead:
            self.callbacks += daemon.loop.callbacks
            daemon.loop.bury()

    def close(self) -> None:
        self.faults_on = self.restarts = False
        if self.daemon is not None:
            self.daemon.die()
            self._dead.append(self.daemon)
            self.daemon = None
        self._bury()

    # The daemon.

    def start_daemon(self) -> None:
        if self.daemon is None:
            self.daemons += 1
            self.trace("daemon", str(self.daemons))
            self.daemon = Daemon(self, self.daemons)

    def daemon_serves(self, daemon: Daemon) -> None:
        self.trace("serving")
        self.oracle.serving(daemon)

    def daemon_exits(self, daemon: Daemon) -> None:
        """By its own doing."""
        self.event("daemon-exits")
        self._lose(daemon)

    def kill_daemon(self, why: str = "kill") -> None:
        """kill -9, at whatever point it is."""
        daemon = self.daemon
        if daemon is None:
            return
        phase = self.oracle.phase(daemon)
        self.event("daemon-killed")
        self.trace("kill -9", why, phase)
        self.kills_by_phase[phase] = self.kills_by_phase.get(phase, 0) + 1
        self.leases_at_kill.append(self.oracle.leases.live_count())
        self._lose(daemon)

    def _lose(self, daemon: Daemon) -> None:
        daemon.die()
        self.oracle.daemon_lost(daemon)
        self._dead.append(daemon)
        self.daemon = None
        for call in list(self.calls.values()):
            call.daemon_lost()
        if self.restarts:
            self.timeline.after(self.latency(self.restart_delay), self.start_daemon)

    def stop_daemon(self, stop_engines: bool = False) -> None:
        """SIGTERM."""
        if self.daemon is not None and self.daemon.serving:
            self.event("daemon-sigterm")
            self.stopping_engines = stop_engines
            if stop_engines:
                self.oracle.pools.engines_stopped()
            self.daemon.terminate(stop_engines)

    def pause_daemon(self, seconds: float) -> None:
        daemon = self.daemon
        if daemon is not None and not daemon.paused:
            self.event("daemon-paused")
            self.trace("pause", f"{seconds:.2f}")
            self.oracle.paused(seconds)
            daemon.paused = True
            self.timeline.after(seconds, self._resume, daemon)

    def resume_daemon(self) -> None:
        if self.daemon is not None and self.daemon.paused:
            self._resume(self.daemon)

    def _resume(self, daemon: Daemon) -> None:
        if daemon is self.daemon and daemon.paused:
            daemon.paused = False
            self.trace("resume")
            self.oracle.resumed()

    def deliver(self, callback: Callable, *args: object) -> None:
        """To the daemon that lives, on its loop."""
        if self.daemon is not None:
            self.daemon.loop.call_soon(callback, *args)

    def later(self, delay: float, callback: Callable, *args: object) -> None:
        """As `deliver`, after `delay` seconds, to the daemon that lives now."""
        if self.daemon is not None:
            self.timeline.after(delay, self.daemon.loop.call_soon, callback, *args)

    # The host.

    def script(self, pool_id: str, generation: int) -> Script:
        """How the next run of this pool's engine will behave."""
        run = self.runs.get(pool_id, 0)
        self.runs[pool_id] = run + 1
        choose = self.scripts.get(pool_id)
        return choose(run, generation) if choose else Script()

    def _process_ended(self, process: Process) -> None:
        if process.kind == "engine":
            self.exits += 1
            self.event("engine-oom" if process.oom else "engine-exit" if process.signal is None else "engine-signal")
            self.trace("exit", process.pool_id, str(process.pid), str(process.exit_code), str(process.signal))
        self.oracle.process_ended(process)
        shim = self.kernel.shims.get(process.engine_id)
        record: ExitRecord | None = None
        if process.kind == "shim":
            self.kernel.reap(process)
            return
        if shim is not None and shim.alive:
            record = cause_of(process, "shim")
            directory = self.disk.engine_dirs.get(process.engine_id)
            if directory is not None and directory.main is process:
                directory.exit = record
                self.timeline.after(0.05, self._sync, directory)
            self._reaped(process)
        else:
            self.timeline.after(0.05, self._reaped, process)
        if self.daemon is not None and hasattr(self.daemon, "runtime"):
            self.daemon.runtime.process_ended(process, record)

    def _sync(self, directory: object) -> None:
        directory.synced = (directory.identity, directory.exit)

    def _reaped(self, process: Process) -> None:
        self.kernel.reap(process)
        if self.reuse_pids and process.kind == "engine" and self.kernel.take_pid(process.pid, 30.0):
            self.event("pid-reused")

    def kill_engine(self, pool_id: str, number: int | None = signal.SIGKILL, code: int | None = None) -> None:
        """By somebody else than the daemon."""
        for process in self.kernel.engines():
            if process.pool_id == pool_id:
                self.kernel.end(process, code, number)

    def oom_kill(self, pool_id: str) -> None:
        for process in self.kernel.engines():
            if process.pool_id == pool_id:
                self.kernel.end(process, None, signal.SIGKILL, oom=True)

    def kill_shims(self, pool_id: str | None = None) -> None:
        for engine_id, shim in list(self.kernel.shims.items()):
            directory = self.disk.engine_dirs.get(engine_id)
            if shim.alive and (pool_id is None or (directory and directory.launch.pool_id == pool_id)):
                self.event("shim-killed")
                self.kernel.end(shim, None, signal.SIGKILL)

    def hold_port(self, port: int, seconds: float) -> None:
        """Somebody else listens there, if nobody does."""
        if self.kernel.listener(port) is not None:
            return
        self.event("port-held")
        stranger = self.kernel.spawn("foreign", port=port)
        self.kernel.listeners[port] = stranger
        self.timeline.after(seconds, self.kernel.end, stranger, 0, None)

    def power_cut(self) -> None:
        """Everything that runs is gone, and what was not synced; the host boots again."""
        self.event("power-cut")
        self.trace("power cut")
        daemon = self.daemon
        if daemon is not None:
            self._lose(daemon)
        self.disk.power_cut(self.rng.random())
        self.kernel.boot()
        self.oracle.booted()

    def damage_ident(self, pool_id: str) -> None:
        """Whose engine this is can still be read, which process it was cannot."""
        self.event("ident-damaged")
        for directory in self.disk.engine_dirs.values():
            if directory.launch is not None and directory.launch.pool_id == pool_id:
                directory.identity = None

    def lose_database(self) -> None:
        """While no daemon runs."""
        self.event("database-lost")
        self.trace("database lost")
        self.disk.lose_database()
        self.oracle.database_lost()

    def damage_leases(self) -> None:
        self.event("lease-log-damaged")
        self.disk.damage_leases(self.kernel.boot_id, self.kernel.boot_time())
        self.oracle.leases.log_damaged()

    def disk_full(self, seconds: float) -> None:
        self.event("disk-full")
        self.disk.full = True
        self.oracle.store_ill(self.timeline.now + seconds)
        self.timeline.after(seconds, self._disk_well)

    def disk_fails(self, seconds: float) -> None:
        """fsync answers EIO; the daemon that meets it cannot write any more until it is started again."""
        self.event("disk-eio")
        self.disk.failing = True
        self.oracle.store_ill(float("inf"))
        self.timeline.after(seconds, self._disk_well)

    def _disk_well(self) -> None:
        self.disk.full = self.disk.failing = False

    def jump_wall(self, seconds: float) -> None:
        self.event("wall-jump")
        self.wall_jump += seconds
