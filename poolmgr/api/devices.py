"""DeviceService over the facade."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from typing import cast

from poolmgr.api.guard import Context
from poolmgr.api.paging import page
from poolmgr.convert.device import claim_to_proto, device_to_proto, mask_to_proto, reason_from, window_from
from poolmgr.runtime.bus import Change, DeviceChange, PublishedDevice, Resync
from poolmgr.runtime.facade import Facade
from poolmgr.v1 import device_pb2 as pb
from poolmgr.v1 import device_pb2_grpc


def encoded_device(published: PublishedDevice) -> pb.Device:
    """The message of a published device, made once per revision."""
    if published.encoded is None:
        published.encoded = device_to_proto(published.view, published.revision)
    return cast(pb.Device, published.encoded)


class DeviceServicer(device_pb2_grpc.DeviceServiceServicer):
    def __init__(self, facade: Facade) -> None:
        self._facade = facade

    async def ListDevices(self, request: pb.ListDevicesRequest, context: Context) -> pb.ListDevicesResponse:
        devices, token = page(self._facade.devices.devices(), _key, request.page_size, request.page_token)
        return pb.ListDevicesResponse(devices=[encoded_device(one) for one in devices], next_page_token=token)

    async def GetDevice(self, request: pb.GetDeviceRequest, context: Context) -> pb.Device:
        return encoded_device(self._facade.devices.device(request.device_id))

    async def WatchDevices(
        self, request: pb.WatchDevicesRequest, context: Context
    ) -> AsyncIterator[pb.WatchDevicesResponse]:
        only = self._facade.devices.device(request.device_id).device_id if request.device_id else ""
        after = request.from_revision - 1
        while True:
            if after < 0:
                after = self._facade.bus.revision
                yield self._snapshot(only, after)
            async with aclosing(self._facade.watch(after)) as changes:
                async for batch in changes:
                    if isinstance(batch, Resync):
                        revision = self._facade.bus.revision
                        resync = pb.WatchDevicesResponse.Resync(reason=batch.reason, revision=revision)
                        yield pb.WatchDevicesResponse(resync=resync)
                        break
                    for response in _responses(batch, only):
                        yield response
            after = -1

    def _snapshot(self, only: str, revision: int) -> pb.WatchDevicesResponse:
        wanted = (one for one in self._facade.devices.devices() if not only or one.device_id == only)
        snapshot = pb.WatchDevicesResponse.Snapshot(devices=[encoded_device(one) for one in wanted], revision=revision)
        return pb.WatchDevicesResponse(snapshot=snapshot)

    async def ParseMask(self, request: pb.ParseMaskRequest, context: Context) -> pb.ParseMaskResponse:
        return mask_to_proto(self._facade.devices.mask_view(request.mask, request.allow_partitioned))

    async def ListClaims(self, request: pb.ListClaimsRequest, context: Context) -> pb.ListClaimsResponse:
        devices, offset = self._facade.devices, self._facade.wall_offset()
        device_id = devices.device(request.device_id).device_id if request.device_id else ""
        found = devices.claims(device_id)
        claims, token = page(
            found, lambda claim: f"{claim.device_id} {claim.claim_id}", request.page_size, request.page_token
        )
        return pb.ListClaimsResponse(claims=[claim_to_proto(one, offset) for one in claims], next_page_token=token)

    async def CordonDevice(self, request: pb.CordonDeviceRequest, context: Context) -> pb.Device:
        reason = reason_from(request.reason)
        window = window_from(request)
        return encoded_device(await self._facade.devices.cordon(request.device_id, reason, window, request.drain))

    async def UncordonDevice(self, request: pb.UncordonDeviceRequest, context: Context) -> pb.Device:
        return encoded_device(await self._facade.devices.uncordon(request.device_id))


def _key(published: PublishedDevice) -> str:
    gpu, instance, device_id = published.view.device.order
    return f"{gpu:010d} {instance:010d} {device_id}"


def _responses(batch: Sequence[Change | DeviceChange], only: str) -> Iterator[pb.WatchDevicesResponse]:
    """What a watcher of `only` (or of all) is sent for a batch; a bookmark where the end of it is not for them."""
    sent = 0
    for change in batch:
        if isinstance(change, DeviceChange) and (not only or change.device_id == only):
            sent = change.revision
            yield _response(change)
    if sent != batch[-1].revision:
        yield pb.WatchDevicesResponse(bookmark=batch[-1].revision)


def _response(change: DeviceChange) -> pb.WatchDevicesResponse:
    if change.device is None:
        deletion = pb.WatchDevicesResponse.Deletion(device_id=change.device_id, revision=change.revision)
        return pb.WatchDevicesResponse(delete=deletion)
    return pb.WatchDevicesResponse(upsert=encoded_device(change.device))
