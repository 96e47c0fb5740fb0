"""Operations of many workers on one Session stream: what gathers while a batch is on its way goes into the next."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque

import grpc
import grpc.aio

from poolmgr.v1 import lease_pb2 as pb

BATCH = 64
RECONNECT_SECONDS = 0.05


class Failed(Exception):
    """A call that ended with an error: the name of its code, as UNAVAILABLE, and its text."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(f"{code} {text}")
        self.code = code


_Waiting = tuple[pb.LeaseOperation, "asyncio.Future[pb.LeaseResult]"]


class Batches:
    """A broken stream fails what has no answer yet with UNAVAILABLE; the next one is opened for what comes then."""

    def __init__(self, stub) -> None:
        self._stub = stub
        self._waiting: deque[_Waiting] = deque()
        self._sent: dict[tuple[int, int], asyncio.Future[pb.LeaseResult]] = {}
        self._something = asyncio.Event()
        self._batches = 0
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def do(self, operation: pb.LeaseOperation, timeout: float) -> pb.LeaseResult:
        """Raises Failed."""
        future: asyncio.Future[pb.LeaseResult] = asyncio.get_running_loop().create_future()
        self._waiting.append((operation, future))
        self._something.set()
        try:
            result = await asyncio.wait_for(future, timeout)
        except TimeoutError:
            raise Failed("DEADLINE_EXCEEDED", f"no result for {timeout:g} s") from None
        if result.HasField("error"):
            code = next(code.name for code in grpc.StatusCode if code.value[0] == result.error.code)
            raise Failed(code, f"{result.error.reason} {result.error.message}")
        return result

    async def _run(self) -> None:
        while True:
            stream = self._stub.Session()
            sender = asyncio.create_task(self._send(stream))
            try:
                async for response in stream:
                    self._deliver(response)
                self._break("the stream has ended")
            except grpc.aio.AioRpcError as error:
                self._break(error.details() or "")
            finally:
                sender.cancel()
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _send(self, stream) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            while True:
                await self._something.wait()
                self._something.clear()
                while self._waiting:
                    await stream.write(self._next_batch())

    def _next_batch(self) -> pb.SessionRequest:
        self._batches += 1
        request = pb.SessionRequest(batch_id=self._batches)
        while self._waiting and len(request.operations) < BATCH:
            operation, future = self._waiting.popleft()
            if not future.done():
                self._sent[self._batches, len(request.operations)] = future
                request.operations.append(operation)
        return request

    def _deliver(self, response: pb.SessionResponse) -> None:
        for result in response.results:
            future = self._sent.pop((response.batch_id, result.index), None)
            if future is not None and not future.done():
                future.set_result(result)

    def _break(self, why: str) -> None:
        lost = [*self._sent.values(), *(future for _, future in self._waiting)]
        self._sent.clear()
        self._waiting.clear()
        for future in lost:
            if not future.done():
                future.set_exception(Failed("UNAVAILABLE", why))
