"""One run of an engine, watched to its end: `exited` once, then `tree_empty` once, whoever dies in whatever order.

The shim's word is the truth. Without a shim the pidfd tells of the end, the kernel of its cause, the tree of the rest.
"""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress

from poolmgr.adapters.runtimes import procfs
from poolmgr.adapters.runtimes.enginedir import EngineDirectory
from poolmgr.adapters.runtimes.readiness import Watch
from poolmgr.adapters.runtimes.tree import Closeable, Tree
from poolmgr.model.engine import ExitRecord, ProcessIdentity
from poolmgr.ports import EngineListener

# How long a shim may take to report an exit that we see, and how long a reap may take that we need (PROC-6), seconds.
_CAUSE_SECONDS = 3.0


class Life:
    """`pidfd` becomes its property; None: the process has gone. `known`: how it ended, when that is known already."""

    def __init__(
        self,
        identity: ProcessIdentity,
        pidfd: int | None,
        directory: EngineDirectory,
        tree: Tree,
        listener: EngineListener,
        *,
        known: ExitRecord | None = None,
    ) -> None:
        self.identity = identity
        self.gone = False
        self._pidfd = pidfd
        self._directory = directory
        self._tree = tree
        self._listener = listener
        self._known = known
        self._shim_watches = True
        self._dead = pidfd is None
        self._ended = False
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._watches: list[Closeable] = []
        if pidfd is not None:
            self._loop.add_reader(pidfd, self._pidfd_readable)

    def terminate(self) -> None:
        if self._pidfd is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGTERM)

    def close(self) -> None:
        """Watches no longer and tells nothing more."""
        self._ended = self.gone = True
        self._settle()

    def shim_said_exit(self, record: ExitRecord) -> None:
        self._end(record)

    def shim_said_empty(self) -> None:
        """No descendant of the shim is left. Someone may have put a foreign process into the leaf: it is asked too."""
        self._end_if_unknown()
        if self._tree.leaf is None:
            self._vanished()
        else:
            self._await_empty_tree()

    def shim_lost(self) -> None:
        """It died, hung up, knows nothing of this run, or is silent for too long."""
        self._shim_watches = False
        if self._ended:
            self._await_empty_tree()
        elif self._dead:
            self._ask_kernel()

    def _pidfd_readable(self) -> None:
        self._dead = True
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
        if self._shim_watches:
            self._timer = self._loop.call_later(_CAUSE_SECONDS, self.shim_lost)
        else:
            self._ask_kernel()

    def _ask_kernel(self) -> None:
        """The ways of PROC-6, surest first."""
        record = self._known or self._directory.exit_of(self.identity)
        if record is None and self._pidfd is not None:
            record = _cause(self.identity, self._pidfd)
        if record is not None or self._pidfd is None:
            self._end(record or ExitRecord())
            return
        # A zombie that we may not look at: its exit status comes with its reap, which a pidfd shows as a hang-up.
        self._timer = self._loop.call_later(_CAUSE_SECONDS, self._end_if_unknown)
        with suppress(OSError):  # EMFILE: the timer asks too
            self._watches.append(Watch(self._loop, self._pidfd, 0, self._end_if_unknown))

    def _end_if_unknown(self) -> None:
        if not self._ended:
            told = None if self._pidfd is None else procfs.cause_by_pidfd(self._pidfd)
            self._end(self._directory.exit_of(self.identity) or told or ExitRecord())

    def _end(self, record: ExitRecord) -> None:
        if self._ended:
            return
        self._ended = True
        self._settle()
        self._listener.exited(record)
        if not self._shim_watches:
            self._await_empty_tree()

    def _settle(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        while self._watches:
            self._watches.pop().close()
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None

    def _await_empty_tree(self) -> None:
        if not self.gone and not self._watches:
            self._watches.append(self._tree.watch(self._vanished))

    def _vanished(self) -> None:
        if self.gone:
            return
        self.gone = True
        self._settle()
        self._listener.tree_empty()


def _cause(identity: ProcessIdentity, pidfd: int) -> ExitRecord | None:
    record = procfs.cause_by_wait(pidfd)
    if record is None:
        with suppress(OSError):  # EMFILE: the pidfd may tell
            record = procfs.cause_of_zombie(identity)
    return record or procfs.cause_by_pidfd(pidfd)
