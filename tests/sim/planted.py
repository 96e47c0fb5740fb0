"""Bugs that a test plants in its own process, to see that the oracle notices them."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable

from poolmgr.core import restart
from poolmgr.core.leases import LeaseTable
from poolmgr.runtime.bus import Bus
from poolmgr.runtime.host_counters import HostCounters
from poolmgr.runtime.recording import Recording
from poolmgr.runtime.recovery import Recovery
from poolmgr.runtime.remembering import Remembering
from tests.sim import outside
from tests.sim.runtime import SimRuntime

Set = Callable[..., None]  # pytest's monkeypatch.setattr


def adoption_forgotten(patch: Set) -> None:
    """A living engine that the daemon finds at its start is not told to its pool."""
    patch(Recovery, "_adopt", lambda self, *rest: None)


def every_slot_is_free(patch: Set) -> None:
    """A slot is given to whoever asks."""
    patch(LeaseTable, "free", property(lambda table: 1))


def killed_by_bare_pid(patch: Set) -> None:
    """SIGTERM goes to the number that was remembered, whoever has it now."""

    def terminate(self, engine_id: str) -> None:
        identity = self._known[engine_id].identity
        process = self._kernel.processes.get(identity.pid) if identity else None
        if process is not None:
            self._kernel.signal(process, signal.SIGTERM)

    def kill_tree(self, engine_id: str) -> None:
        terminate(self, engine_id)
        for process in self._kernel.leaf(engine_id):
            self._kernel.signal(process, signal.SIGKILL)

    patch(SimRuntime, "terminate", terminate)
    patch(SimRuntime, "kill_tree", kill_tree)


def breaker_never_opens(patch: Set) -> None:
    """Failures in a row open nothing."""
    patch(restart, "_opens", lambda *rest: "")


def backoff_forgotten(patch: Set) -> None:
    """Every restart comes at once."""
    patch(restart, "backoff_delay", lambda *rest: 0.0)


def fences_from_one(patch: Set) -> None:
    """Every daemon counts fencing numbers from one."""

    def add_fences(self, fences: range | None) -> None:
        self._fences, self.next_fence, self._asked = range(1, 1000), max(1, self.next_fence), False

    patch(HostCounters, "add_fences", add_fences)


def leases_not_recorded(patch: Set) -> None:
    """Grants and ends stay in memory."""

    def record(self, pool_id: str, effect: object, granter: object) -> None:
        for lease in effect.granted:
            self._counters.fence_used(lease.fencing_token)

    patch(Recording, "record", record)


def nothing_is_remembered(patch: Set) -> None:
    """Stops, breakers and counts stay in memory."""

    async def put(self, memo: object, record: object = None) -> None:
        if record is not None:
            await self._store.put_pool(record, "")

    patch(Remembering, "put", put)
    patch(Remembering, "changed", lambda self, memo: None)


def directories_are_left(patch: Set) -> None:
    """What a deleted pool leaves behind is not removed."""

    async def remove(self, engine_id: str) -> None:
        pass

    patch(SimRuntime, "remove", remove)


def a_change_is_skipped(patch: Set) -> None:
    """Now and then watchers are not told of a change."""
    whole, count = Bus._append, itertools.count(1)

    def append(self, change: object) -> None:
        whole(self, change)
        if next(count) % 7 == 0:
            self._changes.pop()

    patch(Bus, "_append", append)


def chance_from_outside(patch: Set) -> None:
    """The product's randomness is not the seed's."""
    patch(outside.SimRng, "random", lambda self: int.from_bytes(os.urandom(4), "big") / 2**32)
