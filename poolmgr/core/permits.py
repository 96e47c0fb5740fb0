"""Who may start an engine now, and who waits for what (PRE-7).

Engines size themselves by the memory that is free when they start: two that start on one GPU at once size themselves
against each other. So one start at a time per GPU, and a limit on first starts per host. An engine that has been READY
before comes back at once as far as the host is concerned: an outage does not queue behind preloads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ask:
    """One start. `key` is its own; `whose`: the pool, for the reasons of others. `first`: it has never been READY."""

    key: str
    whose: str
    devices: tuple[str, ...] = ()
    first: bool = True


@dataclass(frozen=True, slots=True)
class Place:
    """In the queue, from 1, and what is waited for."""

    position: int
    reason: str


def grants(running: Sequence[Ask], waiting: Sequence[Ask], limit: int) -> tuple[list[Ask], dict[str, Place]]:
    """Those of `waiting` that may start beside `running`, and the places of the others by key.

    In order: nobody overtakes on a GPU that somebody before it waits for. `limit`: first starts at once on the host.
    """
    busy = {device: ask.whose for ask in running for device in ask.devices}
    first = sum(1 for ask in running if ask.first)
    granted: list[Ask] = []
    places: dict[str, Place] = {}
    for ask in waiting:
        reason = _hindrance(ask, busy, first, limit)
        if reason:
            places[ask.key] = Place(len(places) + 1, reason)
        else:
            granted.append(ask)
            first += ask.first
        busy.update((device, ask.whose) for device in ask.devices if device not in busy)
    return granted, places


def _hindrance(ask: Ask, busy: dict[str, str], first: int, limit: int) -> str:
    """What keeps it from starting; empty when nothing does."""
    taken = next((device for device in ask.devices if device in busy), None)
    if taken is not None:
        return f"waits for the start of pool {busy[taken]} on {taken}"
    if ask.first and first >= limit:
        return f"waits for one of {limit} starts at a time on this host"
    return ""
