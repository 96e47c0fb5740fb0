"""A bare grpcio aio server in a process of its own: what a Python daemon on gRPC reaches that does nothing.

usage: python -m bench.echo [--tuned] METHOD=BYTES...    prints its port; /bench.Echo/METHOD answers with so many bytes

It knows no message: a request is taken and dropped as bytes. The options are the daemon's own. Its loop and gRPC's
switches are the libraries' defaults; with --tuned they are the daemon's, and it is what such a daemon reaches at most.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any

if "--tuned" in sys.argv:  # read when gRPC begins
    import poolmgr.__main__  # noqa: F401 - sets the daemon's own switches
else:
    os.environ.pop("GRPC_EXPERIMENTS", None)

import grpc
import uvloop

from poolmgr.api.server import ServerSettings, server_options
from poolmgr.config.schema import Server

SERVICE = "bench.Echo"


def replying(size: int) -> Callable[[bytes, Any], Awaitable[bytes]]:
    reply = b"x" * size

    async def answer(request: bytes, context: Any) -> bytes:
        return reply

    return answer


async def serve(sizes: dict[str, int]) -> None:
    shipped = Server()
    settings = ServerSettings(
        "127.0.0.1", 0, shipped.reflection, shipped.max_message_bytes, shipped.max_concurrent_rpcs
    )
    server = grpc.aio.server(options=server_options(settings), maximum_concurrent_rpcs=settings.max_concurrent_rpcs)
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        name: grpc.unary_unary_rpc_method_handler(replying(size)) for name, size in sizes.items()
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if word != "--tuned"]
    factory = uvloop.new_event_loop if "--tuned" in sys.argv else None
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(serve({name: int(size) for name, _, size in (word.partition("=") for word in words)}))
