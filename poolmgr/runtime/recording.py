"""Grants and ends of leases on their way to the store: alone at once, or many in one batch (LEASE-4).

Nobody hears of a grant before it is recorded. In a batch that is at its end: whoever was waiting is told then, and a
batch that could not be recorded takes back what it granted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from poolmgr.core.effects import RecordLeases
from poolmgr.errors import EnvironmentFault
from poolmgr.model.lease import Lease
from poolmgr.ports import Store
from poolmgr.runtime.host_counters import HostCounters
from poolmgr.runtime.idle import Uses

Tell = Callable[[], None]


class Granter(Protocol):
    """Whose grants they are."""

    def take_back(self, lease: Lease, fault: EnvironmentFault) -> None:
        """It could not be recorded: it is void, and whoever is still to be told of it hears `fault` instead."""
        ...

    def all_told(self, lease: Lease) -> None:
        """Nobody is to be told of it any more."""
        ...


class Recording:
    """Used on the event loop only; a batch is left without an await."""

    def __init__(self, store: Store, counters: HostCounters, uses: Uses) -> None:
        self._store = store
        self._counters = counters
        self._uses = uses
        self._batch: list[tuple[Lease, Granter]] | None = None
        self._waiting: list[Tell] = []

    def record(self, pool_id: str, effect: RecordLeases, granter: Granter) -> None:
        """A grant that cannot be recorded is taken back: now, or at the end of the batch."""
        for lease in effect.granted:
            self._counters.fence_used(lease.fencing_token)
            self._uses.count(pool_id)
        try:
            if effect.granted:
                self._counters.check_fences()
            self._store.record([(pool_id, lease) for lease in effect.granted], effect.ended)
        except EnvironmentFault as fault:
            for lease in effect.granted:
                granter.take_back(lease, fault)
            return
        if self._batch is not None:
            self._batch += [(lease, granter) for lease in effect.granted]

    def when_recorded(self, tell: Tell) -> None:
        """Calls `tell` once what was recorded so far is in the store."""
        if self._batch is None:
            tell()
        else:
            self._waiting.append(tell)

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Raises EnvironmentFault at its end when nothing in it could be recorded."""
        granted = self._batch = []
        try:
            with self._store.batch():
                yield
        except EnvironmentFault as fault:
            self._batch = None
            for lease, granter in granted:
                granter.take_back(lease, fault)
            self._tell()
            for lease, granter in granted:
                granter.all_told(lease)
            raise
        finally:
            self._batch = None
            self._tell()

    def _tell(self) -> None:
        waiting, self._waiting = self._waiting, []
        for tell in waiting:
            tell()
