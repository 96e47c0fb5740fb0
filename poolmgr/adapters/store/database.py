"""The blocking half of the Store on SQLite: what has gathered becomes one transaction.

A full disk refuses a transaction whole and the next one may succeed. After a failed fsync, or any other failed write,
the handle takes no more changes: the kernel may call pages clean that were lost, so that a later fsync would lie. What
is refused then may be found after a restart all the same: nobody can know.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final

import apsw

from poolmgr.adapters.store import rows
from poolmgr.adapters.store.faults import (
    DamageError,
    broken,
    closed,
    is_fatal,
    is_full,
    unavailable,
)
from poolmgr.adapters.store.opening import Opened
from poolmgr.errors import EnvironmentFault

CHECKPOINT_PAGES: Final = 1000  # of the WAL: what SQLite itself takes, 4 MiB


@dataclass(frozen=True, slots=True)
class Job:
    """Work for the connection; `changes` when it needs a transaction, which it shares with its neighbours."""

    work: Callable[[apsw.Connection], Any]
    changes: bool = True


@dataclass(frozen=True, slots=True)
class Outcome:
    """A result or an EnvironmentFault for every job; `changes` counts the transactions there ever were."""

    results: list[Any]
    changes: int


class Database:
    """Its methods run on any thread, one at a time."""

    def __init__(self, opened: Opened) -> None:
        self._directory = opened.directory
        self._connection = opened.connection
        self._undo = opened.undo
        self._changes = opened.changes
        self._mutex = threading.Lock()
        self._refusal: EnvironmentFault | None = None
        self._pages = 0
        self._connection.set_wal_hook(self._count_pages)

    def run(self, jobs: Sequence[Job]) -> Outcome:
        """Does the jobs in order; those that change something and stand together in one transaction."""
        results: list[Any] = []
        with self._mutex:
            for changes, group in groupby(jobs, key=lambda job: job.changes):
                together = list(group)
                results += self._commit(together) if changes else map(self._look, together)
            return Outcome(results, self._changes)

    def close(self) -> None:
        with self._mutex:
            self._undo.close()

    def _commit(self, jobs: list[Job]) -> list[Any]:
        """One transaction, durable on return. A fault is every job's: nothing of it was changed."""
        if self._refusal is not None:
            return [self._refusal] * len(jobs)
        try:
            with self._connection:
                results = [job.work(self._connection) for job in jobs]
                self._connection.execute(rows.COUNT_CHANGE)
        except apsw.Error as error:
            return [self._fault(error)] * len(jobs)
        self._changes += 1
        self._checkpoint()
        return results

    def _look(self, job: Job) -> Any:
        try:
            return job.work(self._connection)
        except DamageError as damage:
            return broken(self._directory, str(damage))
        except apsw.Error as error:
            return self._fault(error)

    def _checkpoint(self) -> None:
        """What was acknowledged is safe in the WAL, so a full disk puts this off; a failed fsync does not stay hidden,
        as it would when SQLite did this by itself.
        """
        if self._pages < CHECKPOINT_PAGES:
            return
        try:
            self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        except apsw.Error as error:
            self._fault(error)

    def _count_pages(self, connection: apsw.Connection, name: str, pages: int) -> int:
        self._pages = pages
        return apsw.SQLITE_OK

    def _fault(self, error: apsw.Error) -> EnvironmentFault:
        if isinstance(error, apsw.ConnectionClosedError):
            return closed(self._directory)
        errno = self._connection.system_errno
        if is_full(error, errno):
            return unavailable(self._directory, error, "the disk is full, and nothing was changed: ")
        if is_fatal(error, errno) or self._connection.in_transaction:
            self._refusal = unavailable(self._directory, error, "no more changes are taken until a restart: ")
            self._connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)  # a sync that succeeds now may lie
            return self._refusal
        return unavailable(self._directory, error)
