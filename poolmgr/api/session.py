"""One stream of LeaseService.Session: batches of acquire, renew and release, and the answers of acquires that wait.

A batch in which nothing waits is served without giving up the event loop, and each result is written where it will be
sent from: this is the path of tens of thousands of leases a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterable
from typing import TYPE_CHECKING, Final

from poolmgr.api.status import CODES
from poolmgr.convert.common import invalid, write_duration
from poolmgr.convert.lease import OUTCOMES, ask_from_proto, refusal_to_proto, write_grant, write_renewal
from poolmgr.convert.pool import pool_id_from
from poolmgr.errors import ClientError, EnvironmentFault, PoolmgrError
from poolmgr.model.lease import Lease, LeaseAsk, Refusal, RefusalReason
from poolmgr.runtime.facade import Facade
from poolmgr.v1 import lease_pb2 as pb

if TYPE_CHECKING:
    from google.protobuf.internal.containers import RepeatedCompositeFieldContainer as Repeated

MAX_OPERATIONS: Final = 256
MAX_WAITING_BATCHES: Final = 16
MAX_UNSENT: Final = 16  # responses; then no batch is read until the client has taken them

# Not InternalError: that ends the stream, as it ends a call, with a correlation id and nothing of the inside.
_TOLD: Final = (ClientError, EnvironmentFault)


class _Batch:
    """A batch and how many of its acquires wait. `unsent` gathers what came since a response was taken last."""

    __slots__ = ("batch_id", "left", "unsent")

    def __init__(self, batch_id: int) -> None:
        self.batch_id = batch_id
        self.left = 0
        self.unsent: pb.SessionResponse | None = None

    def take(self) -> pb.SessionResponse:
        response, self.unsent = self.unsent, None
        assert response is not None
        return response


class LeaseSession:
    """Lives as long as the stream. Whoever ends iterating over `responses` forgets what waits; leases stay."""

    def __init__(self, facade: Facade) -> None:
        self._facade = facade
        self._outbox: asyncio.Queue[pb.SessionResponse | _Batch | None] = asyncio.Queue()  # bounded by `_read`
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        self._waiting_batches = 0

    async def responses(self, requests: AsyncIterator[pb.SessionRequest]) -> AsyncGenerator[pb.SessionResponse, None]:
        self._begin(self._read(requests))
        try:
            while (item := await self._outbox.get()) is not None:
                yield item.take() if isinstance(item, _Batch) else item
                self._outbox.task_done()
        finally:
            for task in self._tasks:
                task.cancel()
        if self._failure is not None:
            raise self._failure

    def _begin(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """The stream ends with the last of its tasks, or with the first that fails."""
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._failure = self._failure or task.exception()
        if self._failure is not None or not self._tasks:
            self._outbox.put_nowait(None)

    async def _read(self, requests: AsyncIterator[pb.SessionRequest]) -> None:
        async for request in requests:
            self._outbox.put_nowait(self._serve(request))
            if self._outbox.qsize() >= MAX_UNSENT:
                await self._outbox.join()

    def _serve(self, request: pb.SessionRequest) -> pb.SessionResponse:
        count = len(request.operations)
        if count > MAX_OPERATIONS:
            message = f"has {count} entries, at most {MAX_OPERATIONS} are allowed in a batch"
            raise invalid("operations", message, value=count, high=MAX_OPERATIONS)
        response, batch = pb.SessionResponse(batch_id=request.batch_id), _Batch(request.batch_id)
        try:
            with self._facade.lease_batch():
                self._operate(request.operations, response.results, batch)
        except EnvironmentFault as fault:
            _void(response.results, fault)
        response.done = not batch.left
        self._waiting_batches += batch.left > 0
        return response

    def _operate(
        self, operations: Iterable[pb.LeaseOperation], results: Repeated[pb.LeaseResult], batch: _Batch
    ) -> None:
        facade, offset = self._facade, self._facade.wall_offset()
        for index, operation in enumerate(operations):
            try:
                match operation.WhichOneof("operation"):
                    case "acquire":
                        self._acquire(operation.acquire, index, offset, results, batch)
                    case "release":
                        outcome = OUTCOMES[facade.release(operation.release.lease_id, operation.release.token)]
                        results.add(index=index).release.outcome = outcome
                    case "renew":
                        renewed = facade.renew(operation.renew.lease_id, operation.renew.token)
                        write_renewal(results.add(index=index).renew, *renewed, offset)
                    case _:
                        raise invalid(f"operations[{index}]", "is none of acquire, renew and release")
            except _TOLD as error:
                _write_error(results.add(index=index), error)

    def _acquire(
        self,
        request: pb.AcquireLeaseRequest,
        index: int,
        offset: float,
        results: Repeated[pb.LeaseResult],
        batch: _Batch,
    ) -> None:
        facade, pool_id = self._facade, pool_id_from(request.pool_id)
        ask = ask_from_proto(request, *facade.lease_key(pool_id), facade.lease_settings)
        outcome = facade.try_acquire(pool_id, ask)
        if outcome is None and self._waiting_batches >= MAX_WAITING_BATCHES:
            message = f"{self._waiting_batches} batches of this stream wait already, which is the limit"
            outcome = Refusal(RefusalReason.OVERLOADED, message)
        if outcome is None:
            batch.left += 1
            self._begin(self._wait(batch, index, pool_id, ask))
        else:
            _write_outcome(results.add(index=index).acquire, pool_id, outcome, offset)

    async def _wait(self, batch: _Batch, index: int, pool_id: str, ask: LeaseAsk) -> None:
        outcome: Lease | Refusal | PoolmgrError
        try:
            outcome = await self._facade.acquire(pool_id, ask)
        except _TOLD as error:
            outcome = error
        if batch.unsent is None:
            batch.unsent = pb.SessionResponse(batch_id=batch.batch_id)
            self._outbox.put_nowait(batch)
        result = batch.unsent.results.add(index=index)
        if isinstance(outcome, PoolmgrError):
            _write_error(result, outcome)
        else:
            _write_outcome(result.acquire, pool_id, outcome, self._facade.wall_offset())
        batch.left -= 1
        if not batch.left:
            batch.unsent.done = True
            self._waiting_batches -= 1


def _write_outcome(message: pb.AcquireLeaseResponse, pool_id: str, outcome: Lease | Refusal, offset: float) -> None:
    if isinstance(outcome, Lease):
        write_grant(message, pool_id, outcome, offset)
    else:
        message.refusal.CopyFrom(refusal_to_proto(outcome))


def _void(results: Iterable[pb.LeaseResult], fault: EnvironmentFault) -> None:
    """What was granted could not be recorded, and what was refused was refused for such grants."""
    for result in results:
        if result.HasField("acquire"):
            _write_error(result, fault)


def _write_error(result: pb.LeaseResult, error: PoolmgrError) -> None:
    told = result.error
    told.code, told.reason, told.message = CODES[error.reason].value[0], error.reason, error.message
    for name, value in error.numbers.items():
        told.metadata[name] = str(value)
    if error.retry_after is not None:
        write_duration(told.retry_after, error.retry_after)
