"""Asks an engine whether it is well: HTTP, a synthetic request, TCP or grpc.health.v1, each within one time budget.

The other side is not trusted: what it sends is bounded in size and time, and nothing it does raises here.
"""

from __future__ import annotations

import asyncio
import errno
import json
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import TypeVar

import h11

from poolmgr.errors import EnvironmentFault, Reason
from poolmgr.model.engine import ProbeOutcome, ProbeResult, ProbeTarget

HEAD_LIMIT = 64 * 1024
BODY_LIMIT = 1024 * 1024
READ_SIZE = 64 * 1024
# Of the daemon or its host: descriptors, memory, local ports.
OUR_OWN = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL})

T = TypeVar("T")


class NetworkProbe:
    """Implements `ports.Probe` over real sockets; holds no state, so one serves every pool."""

    async def __call__(self, target: ProbeTarget) -> ProbeResult:
        """Its outcome with a detail such as ``HTTP 404``, at the latest after `target.timeout` seconds."""
        try:
            return await _within(target.timeout, _ask(target))
        except TimeoutError:
            return _failed(f"no answer within {target.timeout:g} s")
        except _Refused as refused:
            local = isinstance(refused.__cause__, OSError) and refused.__cause__.errno in OUR_OWN
            return ProbeResult(ProbeOutcome.NOT_ASKED if local else ProbeOutcome.FAILED, str(refused))


async def http_get_json(host: str, port: int, path: str, timeout: float) -> object:
    """The JSON value at ``http://host:port/path``. EnvironmentFault(UNREACHABLE) for anything but 200 and JSON."""
    text = await http_get_text(host, port, path, timeout)
    try:
        return json.loads(text)
    except ValueError as error:
        raise _unreachable(host, port, path, str(error)) from error


async def http_get_text(host: str, port: int, path: str, timeout: float) -> str:
    """What stands at ``http://host:port/path``. EnvironmentFault(UNREACHABLE) for anything but 200 and UTF-8."""
    try:
        status, body = await _within(timeout, _exchange(host, port, "GET", path))
        if status != 200:
            raise _Refused(f"HTTP {status}")
        return body.decode()
    except (TimeoutError, _Refused, ValueError) as error:
        raise _unreachable(host, port, path, str(error) or f"no answer within {timeout:g} s") from error


def _unreachable(host: str, port: int, path: str, detail: str) -> EnvironmentFault:
    message = f"{host}:{port}{path}: {detail}"
    return EnvironmentFault(Reason.UNREACHABLE, message, numbers={"port": port, "path": path})


class _Refused(Exception):
    """The other side did not answer as asked; the text says how."""


async def _ask(target: ProbeTarget) -> ProbeResult:
    match target.kind:
        case "HTTP":
            status, _ = await _exchange(target.host, target.port, "GET", target.path, want_body=False)
            return _judge(status)
        case "SYNTHETIC":
            status, body = await _exchange(target.host, target.port, "POST", target.path, target.body.encode())
            if status == 200 and target.expect.encode() not in body:
                return _failed(f"answer lacks {target.expect!r}")
            return _judge(status)
        case "TCP":
            async with _connection(target.host, target.port):
                return ProbeResult(ProbeOutcome.OK)
        case "GRPC":
            return await _grpc_health(target)
        case "NONE":
            return ProbeResult(ProbeOutcome.OK)
    return _failed(f"unknown probe kind {target.kind!r}")


def _judge(status: int) -> ProbeResult:
    """PRE-2: 200 is ready, 503 is loading, anything else is not yet."""
    if status == 200:
        return ProbeResult(ProbeOutcome.OK)
    outcome = ProbeOutcome.LOADING if status == 503 else ProbeOutcome.FAILED
    return ProbeResult(outcome, f"HTTP {status}")


def _failed(detail: str) -> ProbeResult:
    return ProbeResult(ProbeOutcome.FAILED, detail)


async def _within(timeout: float, work: Coroutine[object, object, T]) -> T:
    """The result of `work`, or TimeoutError after `timeout` seconds; `work` has ended then.

    A task of its own instead of `asyncio.timeout`, which on Python 3.11.2 raises CancelledError in a task that has
    handled a TaskGroup failure before; not `wait_for` either, which loses a cancellation that meets the result.
    It cannot be lost: this frame holds it, and is not left before it has ended and its outcome was looked at.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task}, timeout=timeout)
    finally:
        # Cleaning up is a matter of one turn of the loop; no socket is left when we leave, however we leave.
        task.cancel()
        await asyncio.wait({task})
        _ = task.cancelled() or task.exception()  # looked at, or asyncio would log it when we were cancelled
    if task.cancelled():
        raise TimeoutError
    return task.result()


@asynccontextmanager
async def _connection(host: str, port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    try:
        reader, writer = await asyncio.open_connection(host, port, limit=READ_SIZE)
    except OSError as error:
        raise _Refused(_why(error)) from error
    try:
        yield reader, writer
    except OSError as error:
        raise _Refused(_why(error)) from error
    finally:
        # Not close(): that would wait for a peer that does not read what we sent.
        writer.transport.abort()


def _why(error: OSError) -> str:
    # asyncio words a refusal as "Multiple exceptions" or "Connect call failed (address)"; errno says it plainly.
    match error:
        case ConnectionRefusedError():
            return "connection refused"
        case ConnectionResetError() | BrokenPipeError():
            return "connection reset"
    return error.strerror or str(error)


async def _exchange(
    host: str, port: int, method: str, path: str, body: bytes = b"", *, want_body: bool = True
) -> tuple[int, bytes]:
    """One request on a connection of its own: (status, body). _Refused for anything that is not a whole answer."""
    headers = [("Host", f"{host}:{port}"), ("Connection", "close"), ("Accept", "*/*")]
    if method == "POST":
        headers += [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    async with _connection(host, port) as (reader, writer):
        wire = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_LIMIT)
        try:
            writer.write(wire.send(h11.Request(method=method, target=path, headers=headers)) or b"")
            writer.write((wire.send(h11.Data(body)) or b"") + (wire.send(h11.EndOfMessage()) or b""))
            await writer.drain()
            return await _answer(wire, reader, want_body)
        except h11.ProtocolError as error:
            raise _Refused(f"no HTTP answer: {error}") from error


async def _answer(wire: h11.Connection, reader: asyncio.StreamReader, want_body: bool) -> tuple[int, bytes]:
    incoming, status, body = _Incoming(wire, reader), 0, bytearray()
    while True:
        match await incoming.event():
            case h11.Response() as response:
                status = response.status_code
                if not want_body:
                    return status, b""
            case h11.Data() as data:
                body += data.data
            case h11.EndOfMessage():
                return status, bytes(body)


class _Incoming:
    """The events of one answer. Counts heads, interim answers and framing too: none of them may go on for ever."""

    def __init__(self, wire: h11.Connection, reader: asyncio.StreamReader) -> None:
        self._wire = wire
        self._reader = reader
        self._budget = HEAD_LIMIT + BODY_LIMIT

    async def event(self) -> object:
        while (event := self._wire.next_event()) is h11.NEED_DATA:
            chunk = await self._reader.read(READ_SIZE)
            self._budget -= len(chunk)
            if self._budget < 0:
                raise _Refused(f"answer of more than {BODY_LIMIT} bytes")
            self._wire.receive_data(chunk)
        if event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
            raise _Refused("no HTTP answer: the connection was taken over or closed")
        return event


async def _grpc_health(target: ProbeTarget) -> ProbeResult:
    """grpc.health.v1.Health/Check, once; only SERVING is OK. The libraries cost 9 MB: only who probes so loads them."""
    import grpc.aio
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    options = (
        ("grpc.enable_http_proxy", 0),
        # The shared pool would answer from a refused connection's backoff instead of asking again.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_receive_message_length", HEAD_LIMIT),
        # Also the limit of a handshake, 20 s otherwise: a silent peer's socket would outlive the closed channel by it.
        ("grpc.min_reconnect_backoff_ms", max(100, int(target.timeout * 1000))),
    )
    channel = grpc.aio.insecure_channel(f"{target.host}:{target.port}", options=options)
    try:
        request = health_pb2.HealthCheckRequest(service=target.service)
        reply = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=target.timeout)
    except grpc.aio.AioRpcError as error:
        return _failed(f"gRPC {error.code().name}")
    finally:
        await channel.close()
    if reply.status == health_pb2.HealthCheckResponse.SERVING:
        return ProbeResult(ProbeOutcome.OK)
    return _failed(health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status))
