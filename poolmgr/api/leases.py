"""LeaseService over the facade."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from poolmgr.api.guard import Context
from poolmgr.api.paging import page
from poolmgr.api.session import LeaseSession
from poolmgr.convert.lease import (
    ask_from_proto,
    granted_to_proto,
    lease_to_proto,
    refusal_to_proto,
    released_to_proto,
    write_renewal,
)
from poolmgr.convert.pool import pool_id_from
from poolmgr.model.lease import Lease
from poolmgr.runtime.facade import Facade
from poolmgr.v1 import lease_pb2 as pb
from poolmgr.v1 import lease_pb2_grpc


class LeaseServicer(lease_pb2_grpc.LeaseServiceServicer):
    def __init__(self, facade: Facade) -> None:
        self._facade = facade

    async def AcquireLease(self, request: pb.AcquireLeaseRequest, context: Context) -> pb.AcquireLeaseResponse:
        facade, pool_id = self._facade, pool_id_from(request.pool_id)
        ask = ask_from_proto(request, *facade.lease_key(pool_id), facade.lease_settings)
        result = await facade.acquire(pool_id, ask)
        if isinstance(result, Lease):
            return granted_to_proto(pool_id, result, facade.wall_offset())
        return pb.AcquireLeaseResponse(refusal=refusal_to_proto(result))

    async def RenewLease(self, request: pb.RenewLeaseRequest, context: Context) -> pb.RenewLeaseResponse:
        response = pb.RenewLeaseResponse()
        write_renewal(response, *self._facade.renew(request.lease_id, request.token), self._facade.wall_offset())
        return response

    async def ReleaseLease(self, request: pb.ReleaseLeaseRequest, context: Context) -> pb.ReleaseLeaseResponse:
        return released_to_proto(self._facade.release(request.lease_id, request.token))

    async def Session(
        self, request_iterator: AsyncIterator[pb.SessionRequest], context: Context
    ) -> AsyncIterator[pb.SessionResponse]:
        async with aclosing(LeaseSession(self._facade).responses(request_iterator)) as responses:
            async for response in responses:
                yield response

    async def ListLeases(self, request: pb.ListLeasesRequest, context: Context) -> pb.ListLeasesResponse:
        offset = self._facade.wall_offset()
        ordered = sorted(self._facade.leases(request.pool_id), key=_key)
        leases, token = page(ordered, _key, request.page_size, request.page_token)
        return pb.ListLeasesResponse(
            leases=[lease_to_proto(pool_id, lease, offset, False) for pool_id, lease in leases], next_page_token=token
        )


def _key(item: tuple[str, Lease]) -> str:
    """In the order of the grants, which their fencing numbers give; stable while leases come and go."""
    return f"{item[1].fencing_token:020d}"
