"""A host: 64 pids that are used again, zombies, orphans, cgroup leaves, ports, and what engines do in it."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf

from tests.sim.timeline import Timeline

PIDS = 64
FIRST_PID = 2
TICKS_PER_SECOND = 100
INIT_REAPS_AFTER = 0.05


@dataclass(frozen=True, slots=True)
class Script:
    """How one run of an engine behaves. Times in seconds after its exec; `inf` is never.

    `listen`: opens its port. `load`: answers its probes well. `crash`: ends by `code` or `signal`. `hang`: answers
    nothing any more. `deaf`: takes no SIGTERM; else it ends `term` seconds after one. `children` outlive it by
    `child_life`. `stubborn`: seconds that a SIGKILL takes. `wrong`: it answers its probes, and no work.
    """

    listen: float = 0.05
    load: float = 0.5
    crash: float = inf
    code: int | None = 1
    signal: int | None = None
    oom: bool = False
    hang: float = inf
    deaf: bool = False
    term: float = 0.1
    term_code: int | None = None
    children: int = 0
    child_life: float = inf
    stubborn: float = 0.0
    progress: bool = True
    well_again: float = inf
    log: str = ""
    wrong: bool = False


@dataclass(eq=False, slots=True)
class Process:
    """`engine_id`: what its environment carries. `told`: signals that the daemon sent it, with the time of each."""

    pid: int
    ticks: int
    boot_id: str
    kind: str
    started: float
    engine_id: str = ""
    pool_id: str = ""
    generation: int = 0
    port: int = 0
    script: Script = Script()
    alive: bool = True
    reaped: bool = False
    dying: bool = False
    ended: float = inf
    exit_code: int | None = None
    signal: int | None = None
    oom: bool = False
    told: list[tuple[float, int]] = field(default_factory=list)

    def healthy(self, now: float) -> bool:
        """Whether it answers its probes well: the truth that a supervisor has to find out."""
        age, s = now - self.started, self.script
        return self.alive and age >= s.load and not (s.hang <= age < s.well_again)

    def was_ready(self, now: float) -> bool:
        """Whether there was a moment of this run in which it was well."""
        return min(now, self.ended) - self.started >= self.script.load


class NoPids(Exception):
    pass


class Kernel:
    """`on_exit` is told of every process that ends, `on_signal` of every signal before it takes effect."""

    def __init__(self, timeline: Timeline) -> None:
        self.timeline = timeline
        self.boots = 0
        self.boot_id = ""
        self.booted_at = 0.0
        self.processes: dict[int, Process] = {}
        self.listeners: dict[int, Process] = {}
        self.shims: dict[str, Process] = {}
        self.leaves: dict[str, list[Process]] = {}
        self.uninterruptible: set[str] = set()
        self.on_exit: Callable[[Process], None] = lambda process: None
        self.on_signal: Callable[[Process, int], None] = lambda process, number: None
        self._next_pid = FIRST_PID
        self.boot()

    def boot(self) -> None:
        """Power on. Whatever ran is gone, without a trace of how."""
        self.boots += 1
        self.boot_id = f"boot-{self.boots}"
        self.booted_at = self.timeline.now - 10.0
        for process in self.processes.values():
            process.alive, process.reaped, process.ended = False, True, min(process.ended, self.timeline.now)
        self.processes.clear()
        self.listeners.clear()
        self.shims.clear()
        self.leaves.clear()

    def boot_time(self) -> float:
        return self.timeline.now - self.booted_at

    # Processes.

    def spawn(self, kind: str, **about: object) -> Process:
        """Raises NoPids."""
        for _ in range(PIDS):
            pid = self._next_pid
            self._next_pid = FIRST_PID + (self._next_pid - FIRST_PID + 1) % PIDS
            if pid not in self.processes:
                return self._make(pid, kind, about)
        raise NoPids

    def take_pid(self, pid: int, life: float) -> Process | None:
        """A process of somebody else gets this pid, if it is free."""
        if pid in self.processes:
            return None
        process = self._make(pid, "foreign", {})
        self.timeline.after(life, self.end, process, 0, None)
        return process

    def _make(self, pid: int, kind: str, about: dict) -> Process:
        ticks = int(self.boot_time() * TICKS_PER_SECOND)
        process = Process(pid, ticks, self.boot_id, kind, self.timeline.now, **about)
        self.processes[pid] = process
        return process

    def start_engine(self, engine_id: str, pool_id: str, generation: int, port: int, script: Script) -> Process:
        main = self.spawn(
            "engine", engine_id=engine_id, pool_id=pool_id, generation=generation, port=port, script=script
        )
        self.leaves.setdefault(engine_id, []).append(main)
        if script.listen < inf and port:
            self.timeline.after(script.listen, self._listen, main)
        if script.crash < inf:
            self.timeline.after(script.crash, self.end, main, script.code, script.signal, script.oom)
        for _ in range(script.children):
            child = self.spawn("child", engine_id=engine_id, pool_id=pool_id, generation=generation, script=script)
            self.leaves[engine_id].append(child)
        return main

    def _listen(self, process: Process) -> None:
        if not process.alive:
            return
        holder = self.listeners.get(process.port)
        if holder is None or not holder.alive:
            self.listeners[process.port] = process
        else:  # what a server does that cannot bind
            self.end(process, 98, None)

    def listener(self, port: int) -> Process | None:
        process = self.listeners.get(port)
        return process if process is not None and process.alive else None

    def end(self, process: Process, code: int | None, number: int | None, oom: bool = False) -> None:
        """The process ends and is a zombie until its parent reaps it."""
        if not process.alive:
            return
        process.alive, process.ended = False, self.timeline.now
        process.exit_code, process.signal, process.oom = code, number, oom
        for port in [p for p, holder in self.listeners.items() if holder is process]:
            del self.listeners[port]
        if process.kind == "engine":
            for child in self.leaf(process.engine_id):
                if child.kind == "child" and process.script.child_life < inf:
                    self.timeline.after(process.script.child_life, self.end, child, 0, None)
        self.on_exit(process)

    def reap(self, process: Process) -> None:
        if not process.reaped:
            process.reaped = True
            if self.processes.get(process.pid) is process:
                del self.processes[process.pid]

    def signal(self, process: Process, number: int) -> None:
        """From the daemon, by pidfd or by its cgroup."""
        if not process.alive:
            return
        self.on_signal(process, number)
        process.told.append((self.timeline.now, number))
        script = process.script
        if number == signal.SIGKILL:
            if not process.dying:
                process.dying = True
                self.timeline.after(0.001 + script.stubborn, self.end, process, None, signal.SIGKILL)
        elif not script.deaf and len(process.told) == 1:
            ended_by = None if script.term_code is not None else number
            self.timeline.after(script.term, self.end, process, script.term_code, ended_by)

    def leaf(self, engine_id: str) -> list[Process]:
        """The processes of a cgroup leaf that are left, zombies of it included until they are reaped."""
        return [p for p in self.leaves.get(engine_id, ()) if p.alive]

    def engines(self) -> list[Process]:
        """The main processes of engines that live."""
        return [p for p in self.processes.values() if p.kind == "engine" and p.alive]
