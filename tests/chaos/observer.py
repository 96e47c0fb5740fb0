"""The outside observer, a process of its own: which engines of a rig were born, listened and died, by /proc alone.

It asks the daemon nothing and reads none of its files. An engine is a process whose environment carries the rig's mark
and POOLMGR_ENGINE_ID, and whose parent does not. Run as ``python -m tests.chaos.observer RIG FILE``; it ends, and says
so in its file, when its standard input ends.
"""

from __future__ import annotations

import os
import select
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos import procs
from tests.chaos.journal import Writer

LOOK_SECONDS = 0.01
# A child shows its parent's environment until its execve: what is young is looked at again.
YOUNG_SECONDS = 1.0
PORTS_SECONDS = 0.1
ALIVE_SECONDS = 1.0
# How long the reap may take that tells the exit status.
STATUS_SECONDS = 5.0


@dataclass(slots=True)
class Seen:
    """An engine that was seen alive, at `alive` last."""

    pid: int
    start: int
    pidfd: int
    engine_id: str
    pool: str
    version: str
    ports: list[int] = field(default_factory=list)
    alive: int = field(default_factory=procs.now)
    died: int = 0

    @property
    def name(self) -> dict[str, object]:
        return {"pid": self.pid, "start": self.start, "engine": self.engine_id, "pool": self.pool, "v": self.version}


class Observer:
    def __init__(self, rig: str, out: Writer) -> None:
        self._rig = rig
        self._out = out
        self._young: dict[int, int] = {}
        self._known: set[int] = set()
        self._engines: dict[int, Seen] = {}
        self._dying: list[Seen] = []
        self._next_ports = self._next_alive = 0

    def look(self) -> None:
        """One round: deaths first, so that a successor is not taken for a second engine."""
        at = procs.now()
        self._deaths()
        present = procs.pids()
        for pid in present - self._known:
            self._young[pid] = at + procs.seconds(YOUNG_SECONDS)
        self._known = present
        for pid in [pid for pid in self._young if pid not in present]:
            del self._young[pid]
        for pid, until in list(self._young.items()):
            if pid in self._engines or self._birth(pid) or at > until:
                del self._young[pid]
        if at >= self._next_ports:
            self._next_ports = at + procs.seconds(PORTS_SECONDS)
            self._ports()
        if at >= self._next_alive:
            self._next_alive = at + procs.seconds(ALIVE_SECONDS)
            self._out.write("looking", engines=len(self._engines))

    def _birth(self, pid: int) -> bool:
        environment = procs.environment(pid)
        if environment.get(procs.RIG_VARIABLE) != self._rig or procs.ENGINE_VARIABLE not in environment:
            return False
        stat = procs.stat(pid)
        if stat is None or procs.ENGINE_VARIABLE in procs.environment(stat.parent):
            return False
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return False
        again = procs.stat(pid)
        if again is None or again.start != stat.start:
            os.close(pidfd)
            return False
        names = (procs.ENGINE_VARIABLE, procs.POOL_VARIABLE, procs.VERSION_VARIABLE)
        engine = Seen(pid, stat.start, pidfd, *(environment.get(name, "") for name in names))
        self._out.write("birth", **engine.name, parent=stat.parent, cgroup=procs.cgroup(pid))
        self._beside(engine)
        self._engines[pid] = engine
        return True

    def _beside(self, engine: Seen) -> None:
        """Two that are alive at one instant: the other's pidfd is asked after this one was seen."""
        for other in self._engines.values():
            same = (other.pool, other.version) == (engine.pool, engine.version)
            if same and not procs.has_ended(other.pidfd) and not procs.has_ended(engine.pidfd):
                self._out.write("two", **engine.name, other=other.name)

    def _deaths(self) -> None:
        for pid, engine in list(self._engines.items()):
            at = procs.now()
            if not procs.has_ended(engine.pidfd):
                engine.alive = at
            else:
                engine.died = procs.now()
                self._out.write("death", **engine.name, since=engine.alive)
                self._dying.append(engine)
                del self._engines[pid]
                self._known.discard(pid)  # the pid may be another's at the next look
        for engine in list(self._dying):
            status = procs.exit_status(engine.pid, engine.start, engine.pidfd)
            if status is None and procs.now() < engine.died + procs.seconds(STATUS_SECONDS):
                continue
            self._out.write("status", **engine.name, status=status, cause=procs.describe(status))
            os.close(engine.pidfd)
            self._dying.remove(engine)

    def _ports(self) -> None:
        silent = [engine for engine in self._engines.values() if not engine.ports]
        by_inode = procs.listening() if silent else {}
        for engine in silent:
            engine.ports = procs.ports_of(engine.pid, by_inode)
            if engine.ports:
                self._out.write("port", **engine.name, ports=engine.ports)

    def finish(self) -> None:
        """What still lives is written down, then the last line."""
        self.look()
        for engine in self._engines.values():
            self._out.write("living", **engine.name)
        self._out.close()


def main(rig: str, file: str) -> None:
    observer = Observer(rig, Writer(Path(file)))
    observer.look()
    print("looking", flush=True)
    poll = select.poll()
    poll.register(0, select.POLLIN | select.POLLHUP)
    while not poll.poll(LOOK_SECONDS * 1000):
        observer.look()
    observer.finish()


if __name__ == "__main__":
    main(*sys.argv[1:])
