"""Pools and what becomes of their devices: away from those that are not to be used, and back when they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from poolmgr.core.effects import NoteName
from poolmgr.core.messages import DevicesChanged, Evacuate
from poolmgr.core.state import Pool
from poolmgr.model.pool import PoolState
from poolmgr.runtime.bus import Noted
from poolmgr.runtime.places import NO_MASK
from poolmgr.runtime.pool_actor import PoolActor
from poolmgr.runtime.supervisor import Supervisor

# After these a pool that was asked to leave a device, and could not, can.
_SETTLED: Final = (NoteName.POOL_READY, NoteName.RELOAD_FINISHED)


class Leaving:
    """Tells pools of their devices. A pool that has no other device waits.

    `to_leave`: why work is to leave a device now, empty when it may stay.
    """

    def __init__(self, supervisor: Supervisor, to_leave: Callable[[str], str]) -> None:
        self._supervisor = supervisor
        self._to_leave = to_leave
        supervisor.bus.listen(self._noted)

    def move_away(self, device_id: str, reason: str) -> None:
        """Work on this device is to go elsewhere."""
        for actor in self._supervisor.actors():
            if device_id in self._devices(actor.pool):
                _evacuate(actor, device_id, reason)

    def devices_changed(self) -> None:
        """What keeps a pool from its devices may be over."""
        for actor in self._supervisor.actors():
            if actor.pool.state is PoolState.BACKOFF:
                actor.tell(DevicesChanged())

    def _noted(self, noted: Noted) -> None:
        note = noted.note
        if note.name in _SETTLED:
            self._settled(noted.pool.pool_id)
        elif _has_ended(noted) and noted.pool.spec.device_mask not in NO_MASK:
            self.devices_changed()  # its memory is back

    def _settled(self, pool_id: str) -> None:
        """One that was starting, found running or on its way to another generation when its device was to be left,
        leaves it once it serves."""
        actor = self._supervisor.find(pool_id)
        if actor is None:
            return
        for device_id in self._devices(actor.pool):
            if reason := self._to_leave(device_id):
                _evacuate(actor, device_id, reason)

    def _devices(self, pool: Pool) -> tuple[str, ...]:
        return self._supervisor.engines.devices_of(pool.engine.engine_id) or () if pool.engine else ()


def _has_ended(noted: Noted) -> bool:
    """Whether nothing is left of an engine, on its GPUs neither."""
    note = noted.note
    return note.name is NoteName.POOL_TRANSITION and note.fields.get("old_state") == str(PoolState.STOPPING)


def _evacuate(actor: PoolActor, device_id: str, reason: str) -> None:
    actor.tell(Evacuate(f"device {device_id}: {reason}"))
