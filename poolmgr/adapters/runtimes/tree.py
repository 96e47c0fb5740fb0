"""All processes of one engine: its cgroup leaf or, without one, whatever carries the engine's id in its environment.

The second is for daemons that cannot have cgroups, and only when no shim is there to ask: a shim knows its descendants.
"""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import Callable, Iterable
from typing import Protocol

from poolmgr.adapters.runtimes import procfs
from poolmgr.adapters.runtimes.cgroup import Leaf
from poolmgr.adapters.runtimes.readiness import Watch

# How long to wait for a descriptor where the process or the host has none left.
_RETRY_SECONDS = 1.0


class Closeable(Protocol):
    def close(self) -> None: ...


class Tree:
    def __init__(self, engine_id: str, leaf: Leaf | None) -> None:
        self._engine_id = engine_id
        self.leaf = leaf
        self._killing = False
        self._dying: dict[int, int] = {}

    def pids(self) -> list[int]:
        return self.leaf.pids() if self.leaf is not None else procfs.marked_pids(self._engine_id)

    def alive(self) -> bool:
        return self.leaf.populated() if self.leaf is not None else bool(self.pids())

    def cpu_seconds(self, pids: Iterable[int]) -> float | None:
        """Of all its processes, which are `pids`; by the leaf, where there is one: it forgets none that ended."""
        told = None if self.leaf is None else self.leaf.cpu_seconds()
        return procfs.cpu_seconds(pids) if told is None else told

    def kill(self) -> None:
        """SIGKILL to every process. Without a leaf a fork may slip through: `watch` kills on until none is left."""
        if self.leaf is not None:
            self.leaf.kill()
        else:
            self._killing = True
            self._keep(procfs.open_marked(self._engine_id, kill=True))

    def survivors(self) -> dict[int, int]:
        """Pidfds by pid, the caller's to close: of what was killed and may be dying yet, and of what a kill missed.

        A dying process shows no environment any more, and so no mark, but still has its sockets. Raises OSError.
        """
        self._keep(procfs.open_marked(self._engine_id, kill=self._killing))
        found, self._dying = self._dying, {}
        self._killing = self._killing and bool(found)  # the next run is not to be killed
        return found

    def _keep(self, found: dict[int, int]) -> None:
        for pid, pidfd in found.items():
            if pid in self._dying:
                os.close(pidfd)
            else:
                self._dying[pid] = pidfd

    def watch(self, on_empty: Callable[[], None]) -> Closeable:
        """Calls back once when no process is left, from within this call if that is so already."""
        if self.leaf is not None:
            return _LeafWatch(self.leaf, on_empty)
        return _PidWatch(self, on_empty)


class _LeafWatch:
    """`cgroup.events` shows POLLPRI at every change since it was last read."""

    def __init__(self, leaf: Leaf, on_empty: Callable[[], None]) -> None:
        self._leaf = leaf
        self._on_empty = on_empty
        self._loop = asyncio.get_running_loop()
        self._watch: Watch | None = None
        self._events: int | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._begin()

    def _begin(self) -> None:
        try:
            self._events = self._leaf.open_events()
            if self._events is not None:
                self._watch = Watch(self._loop, self._events, select.EPOLLPRI, self._changed)
        except OSError:
            self.close()
            self._retry = self._loop.call_later(_RETRY_SECONDS, self._begin)
        else:
            self._changed()  # it may have emptied before it was watched

    def _changed(self) -> None:
        """Tells when it is empty now."""
        if self._events is None or _says_empty(self._events):
            self.close()
            self._on_empty()

    def close(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        if self._events is not None:
            os.close(self._events)
            self._events = None


def _says_empty(events: int) -> bool:
    try:
        return b"populated 0" in os.pread(events, 4096, 0)
    except OSError:  # ENODEV: it was removed, which needs it to be empty
        return True


class _PidWatch:
    """A pidfd for each process that is left, held until it has ended; at every death it looks again."""

    def __init__(self, tree: Tree, on_empty: Callable[[], None]) -> None:
        self._tree = tree
        self._on_empty = on_empty
        self._loop = asyncio.get_running_loop()
        self._pidfds: dict[int, int] = {}
        self._retry: asyncio.TimerHandle | None = None
        self._look()

    def _look(self) -> None:
        self._drop(pid for pid, pidfd in self._pidfds.items() if procfs.has_ended(pidfd))
        try:
            found = self._tree.survivors()
        except OSError:
            self._retry = self._loop.call_later(_RETRY_SECONDS, self._look)
            return
        for pid, pidfd in found.items():
            if pid in self._pidfds:
                os.close(pidfd)
            else:
                self._pidfds[pid] = pidfd
                self._loop.add_reader(pidfd, self._look)
        if not self._pidfds:
            self._on_empty()

    def _drop(self, pids: Iterable[int]) -> None:
        for pid in list(pids):
            pidfd = self._pidfds.pop(pid)
            self._loop.remove_reader(pidfd)
            os.close(pidfd)

    def close(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
        self._drop(self._pidfds)
