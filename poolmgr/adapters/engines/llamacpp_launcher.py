"""Runs the llama.cpp server that the xllamacpp wheel carries, under llama-server's own flags.

Run by path with ``python -I``: it imports the standard library and xllamacpp, nothing of poolmgr. It differs from
llama-server in that /slots and /metrics are always on and --fit is off, so that what was asked for is what runs.
Exit codes: 0 after SIGTERM or SIGINT, 1 when the server could not start, 2 for wrong arguments. Before the line
``launcher: ready`` those signals end it at once.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import socket
import stat
import sys
import threading
from typing import NoReturn

import xllamacpp

READY = "launcher: ready"
STOP_SECONDS = 4.0  # below the daemon's 5 s between SIGTERM and SIGKILL (PROC-3)
POLL_SECONDS = 0.05
CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
FLASH_ATTENTION = {"on": "ENABLED", "off": "DISABLED", "auto": "AUTO"}
BUSY = re.compile(r"^llamacpp:requests_(?:processing|deferred) [^0]", re.MULTILINE)


def parse(argv: list[str]) -> argparse.Namespace:
    """The part of llama-server's flags that changes what a pool is; others are an error, never ignored."""
    parser = argparse.ArgumentParser(prog="llama-server", allow_abbrev=False)
    add = parser.add_argument
    add("-m", "--model", required=True)
    add("-a", "--alias")
    add("--host", default="127.0.0.1")
    add("--port", type=int, required=True)
    add("-c", "--ctx-size", type=int, default=0, help="tokens over all slots, 0: as the model says")
    add("-np", "--parallel", type=int, default=1, help="slots")
    add("-ctk", "--cache-type-k", choices=CACHE_TYPES, default="f16")
    add("-ctv", "--cache-type-v", choices=CACHE_TYPES, default="f16")
    add("-t", "--threads", type=int, default=-1)
    add("-tb", "--threads-batch", type=int, default=-1)
    add("-b", "--batch-size", type=int, default=2048)
    add("-ub", "--ubatch-size", type=int, default=512)
    add("-ngl", "--gpu-layers", "--n-gpu-layers", type=int, default=0)
    add("-cram", "--cache-ram", type=int, default=0, metavar="MIB", help="prompt cache; llama-server's own is 8192")
    add("-fa", "--flash-attn", choices=tuple(FLASH_ATTENTION), default="auto")
    add("-lv", "--verbosity", "--log-verbosity", type=int, default=3, help="from 4 on buffer sizes are printed")
    add("--embedding", "--embeddings", action="store_true")
    add("--slots", action="store_true", help="always on")
    add("--metrics", action="store_true", help="always on")
    add("--stop-seconds", type=float, default=STOP_SECONDS, help="for requests in flight at SIGTERM")
    return parser.parse_args(argv)


def parameters(options: argparse.Namespace) -> xllamacpp.CommonParams:
    """llama.cpp's parameters. What it would otherwise choose by the host is set here, so that starts are alike."""
    params = xllamacpp.CommonParams()
    params.model.path = options.model
    if options.alias:
        params.model_alias = {options.alias}
    params.hostnames = [options.host]
    params.port = options.port
    params.n_ctx = options.ctx_size
    params.n_parallel = options.parallel
    params.cache_type_k = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{options.cache_type_k.upper()}")
    params.cache_type_v = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{options.cache_type_v.upper()}")
    params.cpuparams.n_threads = options.threads
    params.cpuparams_batch.n_threads = options.threads_batch
    params.n_batch = options.batch_size
    params.n_ubatch = options.ubatch_size
    params.n_gpu_layers = options.gpu_layers
    params.cache_ram_mib = options.cache_ram
    flash = f"LLAMA_FLASH_ATTN_TYPE_{FLASH_ATTENTION[options.flash_attn]}"
    params.flash_attn_type = getattr(xllamacpp.llama_flash_attn_type, flash)
    params.verbosity = options.verbosity
    params.embedding = options.embedding
    params.fit_params = False
    params.endpoint_metrics = True
    params.endpoint_slots = True
    return params


def wait_for_stop() -> None:
    """Returns at SIGTERM or SIGINT, whichever thread the kernel gives it to."""
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    signal.set_wakeup_fd(writing.fileno())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    print(READY, flush=True)
    reading.recv(1)


def stop_admitting(host: str, port: int) -> None:
    """Closes the listening socket under the server, so that new connections are refused and running ones go on.

    The server has no call for it, and shutdown(2) on its listener makes it cut running streams. So another listener,
    which nobody can reach, takes the descriptor's place; the accept(2) that still waits on the old one is woken once.
    """
    listener = listening_descriptor(port)
    if listener is None:
        return
    with socket.socket(socket.AF_UNIX) as unreachable:
        unreachable.bind("")
        unreachable.listen()
        os.dup2(unreachable.fileno(), listener)
    with socket.socket() as waker:
        waker.connect_ex((host, port))


def listening_descriptor(port: int) -> int | None:
    for name in os.listdir("/proc/self/fd"):
        descriptor = int(name)
        try:
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                continue
            with socket.socket(fileno=os.dup(descriptor)) as sock:
                if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) and sock.getsockname()[1] == port:
                    return descriptor
        except OSError:  # a connection that ended since the folder was read
            continue
    return None


def drain(server: xllamacpp.Server) -> None:
    """Returns when no request was processed or waited for a slot, seen twice: a free slot's answer may yet be sent."""
    pause, idle = threading.Event(), 0
    while idle < 2:
        idle = 0 if BUSY.search(server.handle_metrics()) else idle + 1
        pause.wait(POLL_SECONDS)


def main(argv: list[str]) -> NoReturn:
    options = parse(argv)
    build = xllamacpp.BUILD_INFO
    print(f"launcher: xllamacpp {xllamacpp.__version__} ({build['compiler']}, {build['build_target']})", flush=True)
    print(f"launcher: {xllamacpp.get_system_info()}", flush=True)
    # Loading holds the GIL, so no handler could run: SIGTERM keeps its default until then and ends a load at once.
    try:
        server = xllamacpp.Server(parameters(options))
    except RuntimeError as error:
        # Not os._exit: llama.cpp writes its log from a thread, and only a regular exit waits for the last lines.
        sys.exit(f"launcher: error: {error}")
    wait_for_stop()
    print(f"launcher: stopping, at most {options.stop_seconds:g} s for requests in flight", flush=True)
    # Closing the Server waits for its requests without a limit, and asking it for metrics waits for its batch.
    deadline = threading.Timer(options.stop_seconds, os._exit, (0,))
    deadline.daemon = True
    deadline.start()
    stop_admitting(options.host, options.port)
    drain(server)
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
