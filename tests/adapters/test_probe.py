"""`NetworkProbe` against real sockets that answer well, badly, slowly, without end, or not at all."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import grpc.aio
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from poolmgr.adapters.probe import BODY_LIMIT, NetworkProbe, http_get_json
from poolmgr.errors import EnvironmentFault, Reason
from poolmgr.model.engine import ProbeOutcome, ProbeResult, ProbeTarget

pytestmark = pytest.mark.behaviour("PRE-2")

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
TIMEOUT = 0.3
OK, LOADING, FAILED = ProbeOutcome.OK, ProbeOutcome.LOADING, ProbeOutcome.FAILED


@asynccontextmanager
async def peer(handler: Handler) -> AsyncIterator[int]:
    """A server on an ephemeral port; each connection runs `handler`. Leaving waits until the other side has left."""
    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.current_task())  # type: ignore[arg-type]
        with suppress(ConnectionError):
            await handler(reader, writer)
        writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
        await asyncio.gather(*serving)


def says(raw: bytes) -> Handler:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(raw)
        await writer.drain()
        await reader.read()

    return handler


def http(status: int, body: bytes = b"") -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)


def target(port: int, kind: str = "HTTP", **more: object) -> ProbeTarget:
    fields = {"path": "/health", "timeout": TIMEOUT, **more}
    return ProbeTarget(kind, "127.0.0.1", port, **fields)  # type: ignore[arg-type]


async def ask(handler: Handler, kind: str = "HTTP", **more: object) -> ProbeResult:
    async with peer(handler) as port:
        return await NetworkProbe()(target(port, kind, **more))


async def refused_port() -> int:
    async with peer(says(b"")) as port:
        pass
    return port


@pytest.mark.parametrize(
    ("status", "outcome", "detail"),
    [
        (200, OK, ""),
        (503, LOADING, "HTTP 503"),
        (204, FAILED, "HTTP 204"),
        (302, FAILED, "HTTP 302"),
        (404, FAILED, "HTTP 404"),
        (500, FAILED, "HTTP 500"),
    ],
)
async def test_200_is_ready_and_503_is_loading_and_anything_else_is_not_yet(
    status: int, outcome: ProbeOutcome, detail: str
) -> None:
    result = await ask(says(http(status)))
    assert (result.outcome, result.detail) == (outcome, detail)


async def test_the_request_names_host_and_path_and_asks_to_close() -> None:
    seen: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(http(200))

    async with peer(handler) as port:
        await NetworkProbe()(target(port, path="/v1/health?x=1"))
    assert seen[0].startswith(b"GET /v1/health?x=1 HTTP/1.1\r\n")
    assert b"Host: 127.0.0.1:%d\r\n" % port in seen[0]
    assert b"Connection: close" in seen[0]


async def test_interim_answers_are_passed_over() -> None:
    assert (await ask(says(b"HTTP/1.1 100 Continue\r\n\r\n" * 3 + http(200)))).outcome is OK


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x00\xff" * 50,
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nbroken",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000,
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    ],
    ids=["nothing", "binary", "ssh", "cut", "no-status", "endless-head", "upgrade"],
)
async def test_an_answer_that_is_not_http_fails_and_never_raises(raw: bytes) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(raw)
        writer.write_eof()
        await reader.read()

    result = await ask(handler)
    assert result.outcome is FAILED
    assert result.detail.startswith("no HTTP answer")


async def test_a_refused_connection_is_named() -> None:
    result = await NetworkProbe()(target(await refused_port()))
    assert (result.outcome, result.detail) == (FAILED, "connection refused")


async def test_a_connection_that_is_reset_fails() -> None:
    async def handler(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    assert (await ask(handler)).outcome is FAILED


async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A header line for every 20 ms: each read succeeds, the whole never ends."""
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\n")
    reading = asyncio.ensure_future(reader.read())
    while not (await asyncio.wait({reading}, timeout=0.02))[0]:
        writer.write(b"X-Drip: 1\r\n")


async def silence(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    await reader.read()


@pytest.mark.parametrize("handler", [silence, drip])
@pytest.mark.parametrize("kind", ["HTTP", "SYNTHETIC"])
async def test_the_timeout_bounds_the_whole_exchange_and_not_each_read(handler: Handler, kind: str) -> None:
    started = time.monotonic()
    result = await ask(handler, kind, body="{}")
    assert (result.outcome, result.detail) == (FAILED, "no answer within 0.3 s")
    assert TIMEOUT <= time.monotonic() - started < TIMEOUT + 1


async def test_the_timeout_holds_in_a_task_that_handled_a_task_group_failure() -> None:
    async def fail() -> None:
        raise ZeroDivisionError

    with suppress(ExceptionGroup):
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())
            await asyncio.Event().wait()
    assert (await ask(silence)).detail == "no answer within 0.3 s"


async def test_a_body_without_end_is_cut_at_the_limit() -> None:
    sent = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while sent < 64 * BODY_LIMIT:
            writer.write(b"10000\r\n" + b"a" * 65536 + b"\r\n")
            sent += 65536
            await writer.drain()

    result = await ask(handler, "SYNTHETIC", body="{}", expect="b", timeout=20.0)
    assert (result.outcome, result.detail) == (FAILED, f"answer of more than {BODY_LIMIT} bytes")
    assert sent < 64 * BODY_LIMIT


async def test_a_synthetic_request_posts_json_and_needs_its_answer() -> None:
    seen: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        seen.append(head + await reader.readexactly(len(b'{"prompt": "\xc3\xa9"}')))
        writer.write(http(200, b'{"text": "pong"}'))
        await reader.read()

    body = '{"prompt": "é"}'
    assert (await ask(handler, "SYNTHETIC", path="/v1/completions", body=body, expect="pong")).outcome is OK
    assert seen[0].startswith(b"POST /v1/completions HTTP/1.1\r\n")
    assert b"Content-Type: application/json\r\n" in seen[0]
    assert seen[0].endswith(body.encode())
    result = await ask(handler, "SYNTHETIC", body=body, expect="ping")
    assert (result.outcome, result.detail) == (FAILED, "answer lacks 'ping'")


@pytest.mark.parametrize(("status", "outcome"), [(503, LOADING), (500, FAILED)])
async def test_a_synthetic_request_that_is_turned_down_fails_by_its_status(status: int, outcome: ProbeOutcome) -> None:
    result = await ask(says(http(status, b"pong")), "SYNTHETIC", body="{}", expect="pong")
    assert (result.outcome, result.detail) == (outcome, f"HTTP {status}")


async def test_an_accepted_connection_is_all_that_tcp_asks_for() -> None:
    assert (await ask(silence, "TCP")).outcome is OK
    result = await NetworkProbe()(target(await refused_port(), "TCP"))
    assert (result.outcome, result.detail) == (FAILED, "connection refused")


async def test_no_probe_is_always_ok_and_an_unknown_one_never() -> None:
    assert (await NetworkProbe()(target(0, "NONE"))).outcome is OK
    assert (await NetworkProbe()(target(0, "TELEPATHY"))).outcome is FAILED


@asynccontextmanager
async def grpc_health() -> AsyncIterator[tuple[int, health.aio.HealthServicer]]:
    server, servicer = grpc.aio.server(), health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port, servicer
    finally:
        await server.stop(None)


async def test_grpc_health_is_ok_only_when_the_named_service_is_serving() -> None:
    async with grpc_health() as (port, servicer):
        await servicer.set("llm", health_pb2.HealthCheckResponse.SERVING)
        await servicer.set("busy", health_pb2.HealthCheckResponse.NOT_SERVING)
        probe = NetworkProbe()
        results = [await probe(target(port, "GRPC", service=name, timeout=5.0)) for name in ("llm", "busy", "absent")]
    assert [(r.outcome, r.detail) for r in results] == [(OK, ""), (FAILED, "NOT_SERVING"), (FAILED, "gRPC NOT_FOUND")]


async def test_grpc_health_asks_anew_each_time_and_is_not_held_up_by_an_earlier_refusal() -> None:
    port = await refused_port()
    probe = NetworkProbe()
    assert (await probe(target(port, "GRPC", timeout=5.0))).detail == "gRPC UNAVAILABLE"
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        assert (await probe(target(port, "GRPC", timeout=5.0))).outcome is OK
    finally:
        await server.stop(None)


async def test_grpc_health_of_a_peer_that_never_answers_ends_in_time() -> None:
    started = time.monotonic()
    assert (await ask(silence, "GRPC")).outcome is FAILED
    assert time.monotonic() - started < TIMEOUT + 1


async def test_cancelling_a_probe_cancels_it_and_closes_its_socket() -> None:
    connected, closed = asyncio.Event(), asyncio.Event()

    async def handler(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        connected.set()
        with suppress(ConnectionError):
            await reader.read()
        closed.set()

    async with peer(handler) as port:
        asking = asyncio.ensure_future(NetworkProbe()(target(port, timeout=60.0)))
        await connected.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        async with asyncio.timeout(5):
            await closed.wait()


async def test_a_json_document_is_read_and_anything_else_is_unreachable() -> None:
    async with peer(says(http(200, b'{"slots": [1, 2]}'))) as port:
        assert await http_get_json("127.0.0.1", port, "/props", 5.0) == {"slots": [1, 2]}
    for raw in (http(404), http(200, b"{"), http(200, b"\xff"), b"nonsense\r\n\r\n"):
        async with peer(says(raw)) as port:
            with pytest.raises(EnvironmentFault) as failure:
                await http_get_json("127.0.0.1", port, "/props", 5.0)
            assert failure.value.reason is Reason.UNREACHABLE
    async with peer(silence) as port:
        with pytest.raises(EnvironmentFault, match=r"no answer within 0\.1 s"):
            await http_get_json("127.0.0.1", port, "/props", 0.1)
