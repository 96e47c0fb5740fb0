"""TelemetryService over the facade."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from poolmgr.api.guard import Context
from poolmgr.convert.telemetry import ask_from_proto, device_to_proto, fields_from, interval_from, ring_to_proto
from poolmgr.errors import EnvironmentFault
from poolmgr.model.telemetry import DeviceReading
from poolmgr.runtime.facade import Facade
from poolmgr.runtime.readings import Readings
from poolmgr.v1 import telemetry_pb2 as pb
from poolmgr.v1 import telemetry_pb2_grpc


class TelemetryServicer(telemetry_pb2_grpc.TelemetryServiceServicer):
    def __init__(self, facade: Facade) -> None:
        self._facade = facade

    async def GetTelemetry(self, request: pb.GetTelemetryRequest, context: Context) -> pb.GetTelemetryResponse:
        readings = self._facade.readings.read(request.device_id, ask_from_proto(request))
        return pb.GetTelemetryResponse(devices=[device_to_proto(one) for one in readings])

    async def StreamTelemetry(
        self, request: pb.StreamTelemetryRequest, context: Context
    ) -> AsyncIterator[pb.StreamTelemetryResponse]:
        """A message that could not be taken in its interval is skipped, and counted."""
        readings, fields = self._facade.readings, fields_from(request.fields)
        interval = interval_from(request.interval if request.HasField("interval") else None)
        readings.ring()
        sent = 0
        async for tick in readings.ticks(interval):
            sent += 1
            devices = [device_to_proto(one) for one in _sampled(readings, request.device_id, fields)]
            yield pb.StreamTelemetryResponse(sequence=tick, skipped=tick - sent, devices=devices)

    async def GetRingInfo(self, request: pb.GetRingInfoRequest, context: Context) -> pb.RingInfo:
        return ring_to_proto(self._facade.readings.ring())


def _sampled(readings: Readings, device_id: str, fields: Sequence[str]) -> Sequence[DeviceReading]:
    """None while the telemetry process is replaced: the stream goes on and shows that there is nothing."""
    try:
        return readings.latest(device_id, fields)
    except EnvironmentFault:
        return ()
