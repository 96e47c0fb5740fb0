"""What the next daemon has to know of devices, as text and written behind; a cordon is written ahead."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Final

from poolmgr.core.remembered_devices import Remembered
from poolmgr.errors import EnvironmentFault
from poolmgr.model.device import DeviceState
from poolmgr.model.device_health import Cordon
from poolmgr.ports import DeviceMemory, Workers
from poolmgr.runtime.tasks import Tasks

VERSION: Final = 1
MAX_DEVICES: Final = 1024
Devices = Mapping[str, Remembered]


def encode(devices: Devices) -> str:
    rows = {device_id: asdict(memory) for device_id, memory in sorted(devices.items())[:MAX_DEVICES]}
    return json.dumps({"version": VERSION, "devices": rows}, sort_keys=True)


def decode(text: str) -> Devices | None:
    """None for what is not ours to read."""
    try:
        document = json.loads(text)
        if document["version"] != VERSION:
            return None
        return {str(device_id): _row(row) for device_id, row in document["devices"].items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _row(row: dict[str, Any]) -> Remembered:
    cordon = row.get("cordon")
    until = row.get("until")
    return Remembered(
        DeviceState(row["health"]),
        str(row["reason"]),
        float(row["since"]),
        None if until is None else float(until),
        float(row["length"]),
        float(row["proved"]),
        None if cordon is None else _cordon(cordon),
    )


def _cordon(row: dict[str, Any]) -> Cordon:
    """One of an early version has no window."""
    starts, ends = row.get("starts"), row.get("ends")
    return Cordon(
        str(row["reason"]),
        float(row["at"]),
        None if starts is None else float(starts),
        None if ends is None else float(ends),
        bool(row.get("drain", False)),
    )


class Remembering:
    """One write at a time, the newest wins. `on_fault` hears of what could not be written behind, once per trouble."""

    def __init__(
        self, memory: DeviceMemory, workers: Workers, spawn: Tasks, on_fault: Callable[[EnvironmentFault], None]
    ) -> None:
        self._memory = memory
        self._workers = workers
        self._spawn = spawn
        self._on_fault = on_fault
        self._turn = asyncio.Lock()
        self._stored = encode({})
        self._wanted = self._stored
        self._behind = False
        self._told = False

    async def load(self) -> Devices | None:
        """None: something is there that cannot be read. Raises EnvironmentFault(STATE_DIR)."""
        text = await self._workers.run(self._memory.load)
        if not text:
            return {}
        devices = decode(text)
        if devices is not None:
            self._stored = self._wanted = encode(devices)
        return devices

    async def put(self, devices: Callable[[], Devices]) -> None:
        """Durable on return; `devices` is asked when it is its turn. Raises EnvironmentFault(STORE_UNAVAILABLE)."""
        async with self._turn:
            await self._save(encode(devices()))

    def changed(self, devices: Devices) -> None:
        """To be made durable soon. What fails is tried again with the next change."""
        self._wanted = encode(devices)
        if self._wanted != self._stored and not self._behind:
            self._behind = True
            self._spawn(self._write_behind(), "remember devices")

    async def flush(self) -> None:
        """At the daemon's end."""
        await self._write_behind()

    async def _write_behind(self) -> None:
        try:
            async with self._turn:
                while self._wanted != self._stored:
                    await self._save(self._wanted)
            self._told = False
        except EnvironmentFault as fault:
            if not self._told:
                self._on_fault(fault)
            self._told = True
        finally:
            self._behind = False

    async def _save(self, text: str) -> None:
        await self._workers.run(self._memory.save, text)
        self._stored = text
