"""A run of the sampler over all fields of all devices, and what it says of each."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from poolmgr_ext.nvml import Library
from poolmgr_ext.ring import RingReader
from poolmgr_ext.sampler import FIELDS, Sampler

from tests.gpu.drivers import DriverUnderTest

RATE_HZ = 10.0
STRIKES = 3
SECONDS = (STRIKES - 1) * max(each.cadence for each in FIELDS) + 1.0
LOOK_SECONDS = 0.01
PATIENCE = 60.0
NANOSECONDS = 1e9
Points = list[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Recording:
    """`history` by device and field, `unsupported` by device; `seconds` it took, `speed` times the daemon's rate."""

    library: Library
    reader: RingReader
    speed: float
    seconds: float
    tallies: Mapping[str, int]
    history: dict[str, dict[str, Points]]
    latest: dict[str, dict[str, float | None]]
    unsupported: dict[str, set[str]]
    ended: bool

    def close(self) -> None:
        self.reader.close()
        self.library.close()

    def values(self, device: str, field: str) -> list[float]:
        return [value for _, value in self.history[device][field]]


def record(driver: DriverUnderTest, ring: Path) -> Recording:
    """As the daemon samples, `driver.speed` times as fast, until each field was asked often enough."""
    library = Library(driver.library)
    library.discover()
    cadences = {each.name: each.cadence / driver.speed for each in FIELDS}
    sampler = Sampler(library, str(ring), 1, rate_hz=RATE_HZ * driver.speed, depth_seconds=60.0, cadences=cadences)
    thread = threading.Thread(target=sampler.run)
    thread.start()
    reader = RingReader(ring)
    try:
        _wait_for_sweeps(sampler, round(SECONDS * RATE_HZ))
    finally:
        sampler.stop()
        thread.join(PATIENCE)
    devices = reader.device_ids
    names = [each.name for each in reader.fields]
    return Recording(
        library,
        reader,
        driver.speed,
        SECONDS / driver.speed,
        sampler.tallies,
        {device: {name: reader.history(device, name, PATIENCE) for name in names} for device in devices},
        {device: dict(zip(names, _latest(reader, device), strict=True)) for device in devices},
        {device: set(sampler.unsupported(device)) for device in devices},
        reader.ended,
    )


def _latest(reader: RingReader, device: str) -> list[float | None]:
    found = reader.latest(device)
    assert found is not None, f"no row of {device}"
    return found[1]


def _wait_for_sweeps(sampler: Sampler, count: int) -> None:
    never, waited = threading.Event(), 0.0
    while sampler.tallies["sweeps"] < count:  # the loop tells nobody
        never.wait(LOOK_SECONDS)
        waited += LOOK_SECONDS
        assert waited < PATIENCE, f"{sampler.tallies} after {waited} s"
