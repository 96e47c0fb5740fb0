"""A scripted inference engine: a real process with real sockets that behaves well or badly on demand.

Run as ``python -m poolmgr.testing.engine --port N`` or by path with ``python -I -S``; standard library only and no
heavy module of it, so that it starts in about 20 ms. It takes llama-server's own flags and answers its endpoints.

While it runs, ``POST /_control`` with a JSON object changes it at once: ``{"health": 500}`` sets the status of
/health, ``{"hang": true}`` holds completions until ``{"hang": false}``, ``{"lie": true}`` fails them with 500,
``{"stuck": 2}`` shows two requests in flight that never get on, ``{"spin": true}`` computes for nothing,
``{"log": "text"}`` prints, ``{"gpu": {"GPU-<uuid>": 1048576}}`` holds bytes of a simulated GPU, whether it is in the
mask or not, ``{"exit": 3}`` and ``{"signal": 9}`` end it after the answer is sent.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn

MAX_REQUEST_BYTES = 1 << 20
STAGES = ("spawn", "bind", "load", "ready")
Reply = tuple[int, object]
Ending = tuple[str, int]  # "exit" or "signal", and its number


def say(text: str) -> None:
    print(text, flush=True)


class Script:
    """What the engine is told to do; `main` fills it from the command line, /_control changes it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.health = 200
        self.loading = True
        self.lie = bool(options.lie_ready)
        self.flowing = threading.Event()
        self.endings: queue.SimpleQueue[Ending] = queue.SimpleQueue()
        self.lock = threading.Lock()
        self.processing = 0
        self.completions = 0
        self.stuck = int(options.stuck)
        self.spinning = threading.Event()
        self.gpus = Gpus(str(options.gpu_library), str(options.gpu_state)) if options.gpu_library else None
        if not options.hang_requests:
            self.flowing.set()

    def control(self, change: dict[str, Any]) -> list[Ending]:
        """Applies one /_control object but for its endings, which it returns."""
        self.health = int(change.get("health", self.health))
        self.lie = bool(change.get("lie", self.lie))
        if "hang" in change:
            (self.flowing.clear if change["hang"] else self.flowing.set)()
        self.stuck = int(change.get("stuck", self.stuck))
        if "spin" in change:
            (self.spinning.set if change["spin"] else self.spinning.clear)()
        for uuid, held in change.get("gpu", {}).items():
            self.hold(uuid, int(held))
        if "log" in change:
            say(str(change["log"]))
        return [(kind, int(change[kind])) for kind in ("exit", "signal") if kind in change]

    def hold(self, uuid: str, held: int) -> None:
        """Holds so many bytes of a device, as CUDA does it: what does not fit, or is not there, ends the process."""
        if self.gpus is None:
            say("no simulated GPU: --gpu-library is missing")
            return
        wrong = self.gpus.hold(uuid, held)
        if wrong:
            say(f"CUDA error: {os.strerror(wrong)}: {held} bytes on device {uuid}")
            self.endings.put(("exit", 1))
        else:
            say(f"holds {held} bytes of {uuid}")

    def complete(self, request: dict[str, Any]) -> Reply:
        with self.lock:
            self.processing += 1
        try:
            self.flowing.wait()
            if self.lie:
                return 500, error(500, "scripted failure")
            with self.lock:
                self.completions += 1
            text = request.get("prompt", "")
            return 200, {"object": "text_completion", "content": text, "choices": [{"text": text, "index": 0}]}
        finally:
            with self.lock:
                self.processing -= 1


class Gpus:
    """Memory of simulated GPUs, by the door that the simulated driver's library has for programs."""

    def __init__(self, library: str, state: str) -> None:
        import ctypes  # only who has GPUs pays for it

        os.environ["POOLMGR_SIM_STATE"] = state
        self._driver = ctypes.CDLL(library)
        self._bytes = ctypes.c_ulonglong

    def hold(self, uuid: str, held: int) -> int:
        """In place of what was held there; 0 gives it back. The errno of what went wrong, 0 when nothing did."""
        name, pid = uuid.encode(), os.getpid()
        if held == 0:
            return -int(self._driver.poolmgr_sim_release(name, pid))
        return -int(self._driver.poolmgr_sim_take(name, pid, self._bytes(held)))


def error(code: int, message: str) -> object:
    return {"error": {"code": code, "message": message, "type": "scripted"}}


def health(script: Script) -> Reply:
    if script.loading:
        return 503, error(503, "Loading model")
    return script.health, {"status": "ok"} if script.health == 200 else error(script.health, "scripted")


def props(script: Script) -> Reply:
    options = script.options
    return 200, {
        "build_info": "scripted-1",
        "model_path": options.model,
        "total_slots": options.parallel,
        "default_generation_settings": {"n_ctx": options.ctx_size // options.parallel},
    }


def slots(script: Script) -> Reply:
    total, busy = script.options.parallel, script.processing + script.stuck
    context = script.options.ctx_size // total
    return 200, [{"id": i, "n_ctx": context, "is_processing": i < busy} for i in range(total)]


def metrics(script: Script) -> Reply:
    total, busy = script.options.parallel, script.processing + script.stuck
    return 200, (
        f"llamacpp:requests_processing {min(busy, total)}\n"
        f"llamacpp:requests_deferred {max(busy - total, 0)}\n"
        f"llamacpp:n_decode_total {script.completions}\n"
    )


def models(script: Script) -> Reply:
    return 200, {"object": "list", "data": [{"id": script.options.model, "object": "model"}]}


GET: dict[str, Callable[[Script], Reply]] = {
    "/health": health,
    "/metrics": metrics,
    "/props": props,
    "/slots": slots,
    "/v1/models": models,
}


def answer(script: Script, method: str, path: str, body: bytes, endings: list[Ending]) -> Reply:
    """What to send; `endings` takes what must happen once it is sent."""
    if method == "GET" and path in GET:
        return GET[path](script) if path == "/health" or not script.loading else (503, error(503, "Loading model"))
    if method != "POST":
        return 404, error(404, "File Not Found")
    try:
        request = json.loads(body)
    except ValueError as wrong:
        return 400, error(400, str(wrong))
    if path == "/_control":
        endings += script.control(request)
        return 200, {}
    if path in ("/v1/completions", "/completion"):
        return script.complete(request) if not script.loading else (503, error(503, "Loading model"))
    return 404, error(404, "File Not Found")


def serve_connection(script: Script, connection: socket.socket) -> None:
    """One request, one answer, closed: enough HTTP for a probe and a client that reads to the end."""
    with connection, connection.makefile("rb") as stream:
        method, _, rest = stream.readline(8192).decode("latin-1").partition(" ")
        length = 0
        while (line := stream.readline(8192).strip()) != b"":
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = min(int(value), MAX_REQUEST_BYTES)
        endings: list[Ending] = []
        status, content = answer(script, method, rest.partition(" ")[0], stream.read(length), endings)
        payload = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        head = f"HTTP/1.1 {status} Scripted\r\nContent-Length: {len(payload)}\r\nConnection: close\r\n\r\n"
        try:
            connection.sendall(head.encode() + payload)
        except OSError as gone:  # the client left first, as a probe with a timeout does
            say(f"client gone: {gone.strerror}")
    for ending in endings:
        script.endings.put(ending)


def listen(script: Script) -> None:
    """Binds and answers in background threads, as llama-server does while it still loads."""
    options = script.options
    if options.no_listen or options.port == 0:
        return
    try:
        listener = socket.create_server((options.host, options.port), backlog=128)
    except OSError as taken:
        say(f"couldn't bind HTTP server socket, hostname: {options.host}, port: {options.port}: {taken.strerror}")
        if not options.ignore_bind_failure:
            os._exit(1)
        return

    def accept() -> None:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=serve_connection, args=(script, connection), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    say(f"listening on http://{options.host}:{options.port}")


def leave_children(options: argparse.Namespace) -> None:
    """Children that outlive the main process and do not listen to SIGTERM; with --escape in sessions of their own."""
    for _ in range(options.leave_children):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            if options.escape:
                os.setsid()
            os.close(reading)
            os.close(writing)
            while True:
                signal.pause()
        os.close(writing)
        os.read(reading, 1)  # the end of the pipe: what is printed next is true
        os.close(reading)
        say(f"child pid={child}")


def load(script: Script) -> None:
    """Loads for as long as it is told, in ten steps with a line each; an ending that comes meanwhile is performed.

    What it is to hold of GPUs it holds from the beginning, on all that it is shown.
    """
    options = script.options
    visible = [uuid for uuid in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if uuid]
    for number, uuid in enumerate(visible if any(options.gpu_memory) else ()):
        script.hold(uuid, options.gpu_memory[min(number, len(options.gpu_memory) - 1)])
    for percent in range(10, 101, 10):
        due = None if options.never_ready and percent == 100 else options.load_seconds / 10
        await_ending(script, due)
        if not options.silent_load:
            say(f"loading model: {percent} %")
    script.loading = False


def await_ending(script: Script, seconds: float | None) -> None:
    """Waits `seconds` (None: for ever) and ends the process when told to within them."""
    if seconds == 0 and script.endings.empty():
        return
    try:
        kind, number = script.endings.get(timeout=seconds)
    except queue.Empty:
        return
    end(kind, number)


def end(kind: str, number: int) -> NoReturn:
    say(f"ending: {kind} {number}")
    if kind == "signal":
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        signal.pause()  # a blocked or stopping signal: never go on as if nothing had been asked
    os._exit(number)


def reach(script: Script, stage: str) -> None:
    """Crashes here when the command line says so, and arms what counts from READY on."""
    options = script.options
    ending = ("signal", options.signal) if options.signal else ("exit", options.exit_code)
    if options.crash_at == stage:
        end(*ending)
    if stage != "ready":
        return
    if options.crash_at and options.crash_at not in STAGES:
        after(float(options.crash_at), lambda: script.endings.put(ending))
    if options.unhealthy_after is not None:
        after(options.unhealthy_after, lambda: script.control({"health": 500}))


def spin(script: Script) -> None:
    """Keeps a core at work while it is told to; half of it, so that the others are answered."""
    never = threading.Event()
    while True:
        script.spinning.wait()
        for _ in range(100_000):
            pass
        never.wait(0.005)


def after(seconds: float, action: Callable[[], object]) -> None:
    timer = threading.Timer(seconds, action)
    timer.daemon = True
    timer.start()


def crash_stage(text: str) -> str:
    """A stage by name, or seconds after READY."""
    return text if text in STAGES else str(float(text))


def sizes_of(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripted-engine", allow_abbrev=False)
    parser.add_argument("--port", type=int, default=0, help="0 listens nowhere")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--model", default="scripted")
    parser.add_argument("--ctx-size", type=int, default=2048, help="tokens over all slots")
    parser.add_argument("--parallel", type=int, default=1, help="slots")
    for ignored in ("--slots", "--metrics"):
        parser.add_argument(ignored, action="store_true", help="always on; accepted as llama-server does")
    for ignored in ("--cache-type-k", "--cache-type-v"):
        parser.add_argument(ignored, help="accepted as llama-server does")
    parser.add_argument("--load-seconds", type=float, default=0.0, help="503 on /health for so long")
    parser.add_argument("--never-ready", action="store_true", help="loads to 90 %% and stays there")
    parser.add_argument("--silent-load", action="store_true", help="prints no progress")
    parser.add_argument("--crash-at", type=crash_stage, metavar="|".join(STAGES) + "|SECONDS")
    parser.add_argument("--exit-code", type=int, default=1, help="of --crash-at")
    parser.add_argument("--signal", type=int, default=0, help="of --crash-at, instead of an exit")
    parser.add_argument("--ignore-sigterm", action="store_true")
    parser.add_argument("--leave-children", type=int, default=0, metavar="N")
    parser.add_argument("--escape", action="store_true", help="children leave the session and process group")
    parser.add_argument("--hang-requests", action="store_true", help="completions hang while /health answers")
    parser.add_argument("--stuck", type=int, default=0, metavar="N", help="N requests in flight that never get on")
    parser.add_argument("--lie-ready", action="store_true", help="/health says 200, completions fail with 500")
    parser.add_argument("--unhealthy-after", type=float, metavar="SECONDS", help="/health says 500 from then on")
    parser.add_argument("--no-listen", action="store_true", help="runs without a socket")
    parser.add_argument("--ignore-bind-failure", action="store_true", help="runs on when a stranger has the port")
    parser.add_argument("--gpu-library", default="", help="of the simulated driver, for what follows")
    parser.add_argument("--gpu-state", default="", help="the simulated driver's state file")
    sizes = "held of each device of the mask in its order; the last of all that follow"
    parser.add_argument("--gpu-memory", type=sizes_of, default=[0], metavar="BYTES,…", help=sizes)
    return parser.parse_args(argv)


def main(argv: list[str]) -> NoReturn:
    options = parse(argv)
    script = Script(options)
    stop = signal.SIG_IGN if options.ignore_sigterm else lambda *_: script.endings.put(("exit", 0))
    signal.signal(signal.SIGTERM, stop)
    say(f"scripted engine pid={os.getpid()} port={options.port}")
    leave_children(options)
    threading.Thread(target=spin, args=(script,), daemon=True).start()
    reach(script, "spawn")
    listen(script)
    reach(script, "bind")
    load(script)
    reach(script, "load")
    say("model loaded")
    reach(script, "ready")
    while True:
        await_ending(script, None)


if __name__ == "__main__":
    main(sys.argv[1:])
