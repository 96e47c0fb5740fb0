"""The calls that are about devices and what they do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from poolmgr.client.connection import DEFAULT_TIMEOUT, Connection, all_pages
from poolmgr.convert.common import duration_to_proto, optional_duration, optional_timestamp
from poolmgr.v1 import device_pb2, telemetry_pb2
from poolmgr.v1.device_pb2_grpc import DeviceServiceStub
from poolmgr.v1.telemetry_pb2_grpc import TelemetryServiceStub


class DeviceCalls(Connection):
    """A device may be named by its UUID, index, MIG slot, unique beginning of its UUID, or PCI bus id."""

    def __init__(self, address: str | None = None, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        super().__init__(address, timeout=timeout)
        self._devices = DeviceServiceStub(self._channel)
        self._telemetry = TelemetryServiceStub(self._channel)

    def list_devices(self) -> list[device_pb2.Device]:
        """GPUs by index, each before its MIG instances. None is no error: `status().driver` tells why."""

        def page(token: str) -> tuple[Sequence[device_pb2.Device], str]:
            answer = self._call(self._devices.ListDevices, device_pb2.ListDevicesRequest(page_token=token))
            return answer.devices, answer.next_page_token

        return all_pages(page)

    def get_device(self, device_id: str) -> device_pb2.Device:
        return self._call(self._devices.GetDevice, device_pb2.GetDeviceRequest(device_id=device_id))

    def watch_devices(
        self, *, from_revision: int = 0, device_id: str = ""
    ) -> Iterator[device_pb2.WatchDevicesResponse]:
        """Every change in order, without end. Closing the iterator ends the watch."""
        request = device_pb2.WatchDevicesRequest(from_revision=from_revision, device_id=device_id)
        return self._stream(self._devices.WatchDevices, request)

    def parse_mask(self, mask: str, *, allow_partitioned: bool = False) -> device_pb2.ParseMaskResponse:
        request = device_pb2.ParseMaskRequest(mask=mask, allow_partitioned=allow_partitioned)
        return self._call(self._devices.ParseMask, request)

    def list_claims(self, device_id: str = "") -> list[device_pb2.Claim]:
        """Of every device unless one is named."""

        def page(token: str) -> tuple[Sequence[device_pb2.Claim], str]:
            request = device_pb2.ListClaimsRequest(device_id=device_id, page_token=token)
            answer = self._call(self._devices.ListClaims, request)
            return answer.claims, answer.next_page_token

        return all_pages(page)

    def cordon_device(
        self,
        device_id: str,
        *,
        reason: str = "",
        start_time: float | None = None,
        end_time: float | None = None,
        drain: bool = False,
    ) -> device_pb2.Device:
        """No new work on it from `start_time` until `end_time`, in Unix seconds, or `uncordon_device`.

        What runs goes on, or with `drain` drains and goes elsewhere.
        """
        request = device_pb2.CordonDeviceRequest(
            device_id=device_id,
            reason=reason,
            start_time=optional_timestamp(start_time),
            end_time=optional_timestamp(end_time),
            drain=drain,
        )
        return self._call(self._devices.CordonDevice, request)

    def uncordon_device(self, device_id: str) -> device_pb2.Device:
        """Ends a cordon; a quarantine goes on."""
        return self._call(self._devices.UncordonDevice, device_pb2.UncordonDeviceRequest(device_id=device_id))

    def get_telemetry(
        self,
        device_id: str = "",
        *,
        fields: Sequence[str] = (),
        windows: Sequence[float] = (),
        quantiles: bool = False,
        history: float = 0.0,
    ) -> telemetry_pb2.GetTelemetryResponse:
        """Of every device and field unless some are named. `windows` of 1, 10, 60 and 600 s; `history` in seconds."""
        request = telemetry_pb2.GetTelemetryRequest(
            device_id=device_id,
            fields=fields,
            windows=[duration_to_proto(window) for window in windows],
            quantiles=quantiles,
            history=duration_to_proto(history) if history else None,
        )
        return self._call(self._telemetry.GetTelemetry, request)

    def stream_telemetry(
        self, device_id: str = "", *, fields: Sequence[str] = (), interval: float | None = None
    ) -> Iterator[telemetry_pb2.StreamTelemetryResponse]:
        """The latest values every `interval` seconds, 1 s unless said, without end."""
        request = telemetry_pb2.StreamTelemetryRequest(
            device_id=device_id, fields=fields, interval=optional_duration(interval)
        )
        return self._stream(self._telemetry.StreamTelemetry, request)

    def ring_info(self) -> telemetry_pb2.RingInfo:
        return self._call(self._telemetry.GetRingInfo, telemetry_pb2.GetRingInfoRequest())
