"""Leases by the batch, on one stream: for who takes and gives back thousands of slots a second."""

from __future__ import annotations

import itertools
import queue
import threading
import time
import uuid
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self, TypeAlias

import grpc

from poolmgr.client.errors import CallError, LeaseRefused, call_error, result_error
from poolmgr.convert.common import duration_to_proto, optional_duration, seconds
from poolmgr.v1 import lease_pb2

BATCH: Final = 64
BATCHES_AHEAD: Final = 4

Method: TypeAlias = "grpc.StreamStreamMultiCallable[lease_pb2.SessionRequest, lease_pb2.SessionResponse]"
_C: Final = grpc.StatusCode


def acquiring(
    pool_id: str, *, holder: str, ttl: float | None = None, wait: float = 0.0, priority: int = 0
) -> lease_pb2.LeaseOperation:
    """Take a slot. Its result has `acquire`, with a lease or a refusal; times in seconds."""
    return lease_pb2.LeaseOperation(
        acquire=lease_pb2.AcquireLeaseRequest(
            pool_id=pool_id,
            holder=holder,
            ttl=optional_duration(ttl),
            wait=duration_to_proto(wait) if wait else None,
            priority=priority,
            request_id=uuid.uuid4().hex,
        )
    )


def renewing(lease: lease_pb2.Lease) -> lease_pb2.LeaseOperation:
    """Keep a slot for another TTL. Its result has `renew`."""
    return lease_pb2.LeaseOperation(renew=lease_pb2.RenewLeaseRequest(lease_id=lease.lease_id, token=lease.token))


def releasing(lease: lease_pb2.Lease) -> lease_pb2.LeaseOperation:
    """Give a slot back. Its result has `release`."""
    return lease_pb2.LeaseOperation(release=lease_pb2.ReleaseLeaseRequest(lease_id=lease.lease_id, token=lease.token))


def granted(result: lease_pb2.LeaseResult) -> lease_pb2.Lease:
    """The lease that an acquire got. Raises LeaseRefused, or CallError for one that could not be done."""
    if result.HasField("error"):
        raise result_error(result.error)
    if result.acquire.HasField("refusal"):
        raise LeaseRefused(result.acquire.refusal)
    return result.acquire.lease


class LeaseSession:
    """Used by one thread at a time. When it ends nothing is released, and what it took expires by its TTL.

    A result says by `error` that its operation could not be done. CallError: the stream is broken, and the session
    with it. What became of the operations of that `run` is not known then: do the same ones again in a new session;
    the request ids that they carry make it the same leases.
    """

    def __init__(self, method: Method, address: str, timeout: float) -> None:
        self._address, self._timeout = address, timeout
        self._requests: queue.SimpleQueue[lease_pb2.SessionRequest | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[lease_pb2.SessionResponse | CallError] = queue.SimpleQueue()
        self._batches = itertools.count(1)
        self._broken: CallError | None = None
        self._call = method(iter(self._requests.get, None))
        self._reader = threading.Thread(target=self._read, name="lease session", daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the stream; acquires that wait are forgotten."""
        self._requests.put(None)
        self._call.cancel()
        self._reader.join()
        self._broken = self._broken or CallError("CANCELLED", "the session is closed", {}, _C.CANCELLED)

    def run(self, operations: Sequence[lease_pb2.LeaseOperation]) -> list[lease_pb2.LeaseResult]:
        """Does them in their order and returns their results in that order, each with its `index` in `operations`.

        Returns when all have one: an acquire that waits holds up the results of the others, not their doing. At most
        4 batches of 64 are sent ahead of their answers. Raises CallError.
        """
        if self._broken is not None:
            raise self._broken
        deadline = time.monotonic() + self._timeout + max((_wait(operation) for operation in operations), default=0.0)
        ahead = deque(range(0, len(operations), BATCH))
        starts: dict[int, int] = {}  # of the batches that are not done
        unanswered: set[int] = set()
        results: dict[int, lease_pb2.LeaseResult] = {}
        while ahead or starts:
            while ahead and len(unanswered) < BATCHES_AHEAD:
                start = ahead.popleft()
                batch_id = self._send(operations[start : start + BATCH])
                starts[batch_id] = start
                unanswered.add(batch_id)
            response = self._receive(deadline)
            unanswered.discard(response.batch_id)
            _collect(response, starts, results)
        if len(results) != len(operations):
            raise self._break("INTERNAL", f"{len(results)} results for {len(operations)} operations", _C.INTERNAL)
        return [results[index] for index in range(len(operations))]

    def _send(self, operations: Sequence[lease_pb2.LeaseOperation]) -> int:
        batch_id = next(self._batches)
        self._requests.put(lease_pb2.SessionRequest(batch_id=batch_id, operations=operations))
        return batch_id

    def _receive(self, deadline: float) -> lease_pb2.SessionResponse:
        try:
            answer = self._answers.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise self._break("DEADLINE_EXCEEDED", "no answer in time", _C.DEADLINE_EXCEEDED) from None
        if isinstance(answer, CallError):
            self._broken = answer
            raise answer
        return answer

    def _break(self, reason: str, message: str, code: grpc.StatusCode) -> CallError:
        self._broken = CallError(reason, f"the session with {self._address} is broken: {message}", {}, code)
        self._call.cancel()
        return self._broken

    def _read(self) -> None:
        try:
            for response in self._call:
                self._answers.put(response)
        except grpc.RpcError as error:
            self._answers.put(call_error(error, self._address))
        else:
            self._answers.put(CallError("CANCELLED", "the daemon ended the session", {}, _C.CANCELLED))


def _collect(
    response: lease_pb2.SessionResponse, starts: dict[int, int], results: dict[int, lease_pb2.LeaseResult]
) -> None:
    start = starts.get(response.batch_id)
    if start is None:
        return  # of a run that an exception from outside, such as KeyboardInterrupt, has left
    for result in response.results:
        result.index += start
        results[result.index] = result
    if response.done:
        del starts[response.batch_id]


def _wait(operation: lease_pb2.LeaseOperation) -> float:
    return seconds(operation.acquire.wait)
