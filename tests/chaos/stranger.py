"""A process that is nobody's engine: it writes down every signal that it gets, and who sent it.

Run by path with ``python -I -S stranger.py FILE [PORT]``; with a port it listens there and answers 200 to everything.
"""

import contextlib
import os
import signal
import socket
import sys
import threading

ASK_SECONDS = 2.0
ANSWER = b'HTTP/1.1 200 OK\r\nContent-Length: 15\r\nConnection: close\r\n\r\n{"status":"ok"}'


def serve(listener: socket.socket) -> None:
    while True:
        connection, _ = listener.accept()
        with contextlib.suppress(OSError), connection:  # who asks may die before it has asked
            connection.settimeout(ASK_SECONDS)
            connection.recv(65536)
            connection.sendall(ANSWER)


def main(file: str, port: int = 0) -> None:
    caught = set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP}
    signal.pthread_sigmask(signal.SIG_BLOCK, caught)
    out = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    if port:
        listener = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
    os.write(out, b"ready\n")
    while True:
        got = signal.sigwaitinfo(caught)
        os.write(out, f"signal {got.si_signo} from pid {got.si_pid}\n".encode())


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
