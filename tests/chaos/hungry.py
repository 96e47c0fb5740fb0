"""An engine that is well until it is told to eat all the memory it can get: ``python -I -S hungry.py PORT``."""

import socket
import sys
import threading

STEP_BYTES = 16 << 20


def eat() -> None:
    held = []
    while True:
        held.append(b"x" * STEP_BYTES)


def main(port: int) -> None:
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    listener = socket.create_server(("127.0.0.1", port))
    while True:
        connection, _ = listener.accept()
        with connection:
            asked = connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
        if asked.startswith(b"POST /eat "):
            threading.Thread(target=eat).start()


if __name__ == "__main__":
    main(int(sys.argv[1]))
