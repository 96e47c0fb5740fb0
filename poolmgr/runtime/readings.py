"""Samples, statistics and points of devices as the API answers them: from the ring, without a call of the driver."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Mapping, Sequence

from poolmgr.errors import ClientError, EnvironmentFault, Reason
from poolmgr.model.device import Device, FieldInfo, RingInfo, Sample
from poolmgr.model.telemetry import MAX_POINTS, WINDOWS, DeviceReading, FieldReading, TelemetryAsk
from poolmgr.ports import Clock, Telemetry
from poolmgr.runtime.devices import DeviceRegistry


class Readings:
    """Every method raises EnvironmentFault(NO_TELEMETRY) while nothing is sampled."""

    def __init__(self, registry: DeviceRegistry, telemetry: Telemetry, clock: Clock) -> None:
        self._registry = registry
        self._telemetry = telemetry
        self._clock = clock

    def ring(self) -> RingInfo:
        ring = self._telemetry.ring()
        if ring is None:
            look = self._registry.discovery
            why = ". ".join(text for text in (look.message, look.advice) if text) or "no telemetry process runs now"
            raise EnvironmentFault(Reason.NO_TELEMETRY, f"nothing is sampled: {why}", retry_after=1.0)
        return ring

    def latest(self, name: str, fields: Sequence[str]) -> Sequence[DeviceReading]:
        """The newest values of one device, or with an empty name of all that are there."""
        return self._read(name, TelemetryAsk(fields=tuple(fields)), ())

    async def ticks(self, interval: float) -> AsyncGenerator[int, None]:
        """1, at once, then a number each `interval` seconds; whoever comes back late finds that some have passed."""
        began = self._clock.now()
        tick = 0
        while True:
            tick = max(tick, int((self._clock.now() - began) / interval)) + 1
            await self._until(began + (tick - 1) * interval)
            yield tick

    async def _until(self, when: float) -> None:
        if when <= self._clock.now():
            return
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        timer = self._clock.call_at(when, lambda: None if over.done() else over.set_result(None))
        try:
            await over
        finally:
            timer.cancel()

    def read(self, name: str, ask: TelemetryAsk) -> Sequence[DeviceReading]:
        """Raises ClientError(DEVICE_NOT_FOUND, FIELD_NOT_FOUND) for a name that is not known."""
        return self._read(name, ask, ask.windows or WINDOWS)

    def _read(self, name: str, ask: TelemetryAsk, windows: Sequence[float]) -> Sequence[DeviceReading]:
        fields = self._fields(ask.fields)
        devices = [self._registry.device(name).view.device] if name else self._registry.present()
        ordered = sorted(devices, key=lambda device: device.order)
        return [self._device(device, fields, ask, windows) for device in ordered]

    def _fields(self, names: Sequence[str]) -> Sequence[FieldInfo]:
        known = {field.name: field for field in self.ring().fields}
        for name in names:
            if name not in known:
                message = f"there is no field {name[:60]!r}; there are {', '.join(known)}"
                raise ClientError(Reason.FIELD_NOT_FOUND, message, numbers={"field": name[:60]})
        return [known[name] for name in dict.fromkeys(names)] if names else list(known.values())

    def _device(
        self, device: Device, fields: Sequence[FieldInfo], ask: TelemetryAsk, windows: Sequence[float]
    ) -> DeviceReading:
        sample = self._telemetry.latest(device.device_id)
        readings = tuple(self._field(device.device_id, field, sample, ask, windows) for field in fields)
        if sample is None:
            return DeviceReading(device.device_id, device.index, None, None, readings)
        return DeviceReading(device.device_id, device.index, self._clock.wall() - sample.age, sample.age, readings)

    def _field(
        self, device_id: str, info: FieldInfo, sample: Sample | None, ask: TelemetryAsk, windows: Sequence[float]
    ) -> FieldReading:
        told = (self._telemetry.statistics(device_id, info.name, window) for window in windows)
        statistics = tuple(one for one in told if one is not None)
        quantiles: dict[float, Mapping[float, float]] = {}
        for one in statistics if ask.quantiles else ():
            quantiles[one.window] = self._telemetry.quantiles(device_id, info.name, one.window)
        value = sample.values.get(info.name) if sample else None
        return FieldReading(info, value, statistics, quantiles, self._points(device_id, info.name, ask.history))

    def _points(self, device_id: str, name: str, seconds: float) -> tuple[tuple[float, float], ...]:
        if seconds <= 0:
            return ()
        now = self._clock.now()
        history = self._telemetry.history(device_id, name, seconds)
        return tuple((max(0.0, now - at), value) for at, value in thinned(history, MAX_POINTS))


def thinned(points: Sequence[tuple[float, float]], most: int) -> Sequence[tuple[float, float]]:
    """At most `most` points: each the mean of as many neighbours, in time and value."""
    if len(points) <= most:
        return points
    bounds = [len(points) * number // most for number in range(most + 1)]
    return [_mean(points[begin:end]) for begin, end in itertools.pairwise(bounds)]


def _mean(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return sum(at for at, _ in points) / len(points), sum(value for _, value in points) / len(points)
