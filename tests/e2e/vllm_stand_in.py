"""A stand-in for `vllm`: takes its command line, answers its pages, loads no model. Not vLLM.

It says what a real one says that the daemon reads: the port is bound before the model is loaded and listens after it,
/health has no body, /metrics is a Prometheus page. `STAND_IN_DIES=FILE` prints a recorded log and ends with 1.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

VERSION = "0.33.0-stand-in"


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="vllm")
    serve = parser.add_subparsers(required=True).add_parser("serve", usage="vllm serve [model_tag] [options]")
    serve.add_argument("model_tag")
    serve.add_argument("--host", required=True)
    serve.add_argument("--port", type=int, required=True)
    serve.add_argument("--max-num-seqs", type=int, required=True)
    serve.add_argument("--max-model-len", type=int, default=2048)
    serve.add_argument("--tensor-parallel-size", type=int, default=1)
    serve.add_argument("--enforce-eager", action="store_true")
    return parser.parse_args(argv)


class Pages(BaseHTTPRequestHandler):
    options: argparse.Namespace
    tokens = 0

    def do_GET(self) -> None:
        model = self.options.model_tag
        card = {"id": model, "object": "model", "root": model, "max_model_len": self.options.max_model_len}
        pages: dict[str, Any] = {
            "/health": "",
            "/version": {"version": VERSION},
            "/v1/models": {"object": "list", "data": [card]},
            "/metrics": f"vllm:num_requests_running 0.0\nvllm:generation_tokens_total {float(Pages.tokens)}\n",
            "/environment": dict(os.environ),
        }
        self.answer(200 if self.path in pages else 404, pages.get(self.path, {}))

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/v1/completions":
            self.answer(404, {})
            return
        Pages.tokens += request["max_tokens"]
        self.answer(200, {"object": "text_completion", "choices": [{"index": 0, "text": request["prompt"]}]})

    def answer(self, status: int, content: object) -> None:
        body = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


def main(argv: list[str]) -> int:
    Pages.options = parse(argv)
    print(f"(APIServer pid={os.getpid()}) INFO non-default args: {vars(Pages.options)}", flush=True)
    dies = os.environ.get("STAND_IN_DIES")
    if dies:
        with open(dies, encoding="utf-8") as log:
            print(log.read(), flush=True)
        return 1
    server = HTTPServer((Pages.options.host, Pages.options.port), Pages, bind_and_activate=False)
    server.server_bind()  # as vLLM does it: nobody can take the port while the model is loaded
    server.server_activate()
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    server.serve_forever(poll_interval=0.02)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
