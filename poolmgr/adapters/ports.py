"""TCP ports for engines: found by binding, remembered until released."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator

from poolmgr.errors import EnvironmentFault, Reason

SEARCH_WIDTH = 100
ANY_ATTEMPTS = 64
MAX_PORT = 65535
NO_IPV6 = {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}


class LoopbackPorts:
    """Implements `ports.Ports`. Used from the event loop only; nothing in it blocks.

    A port that was handed out stays taken until `release`, although nobody may listen on it yet: two engines that
    start at once never get the same one (PRE-5). Between the look and the engine's own bind a stranger may still
    take it; the check of who listens (PRE-4) is for that.
    """

    def __init__(self) -> None:
        self._reserved: set[int] = set()

    def reserve(self, preferred: int) -> int:
        """`preferred` when free, else the next free one within 100, else any; 0 prefers none.

        Raises EnvironmentFault(PORT_UNAVAILABLE) with `preferred` and `reserved` when the kernel has none to give.
        """
        try:
            for port in self._candidates(preferred):
                # TIME_WAIT of the engine before must not push a pool off its own port for a minute: engines bind
                # with SO_REUSEADDR. Any other port has no such claim and must be wholly unused.
                if port not in self._reserved and _bindable(port, reuse=port == preferred):
                    self._reserved.add(port)
                    return port
        except OSError as error:
            raise self._unavailable(preferred, error.strerror or str(error)) from error
        raise self._unavailable(preferred, "all are taken")

    def claim(self, port: int) -> None:
        """Marks the port of a recovered engine, which listens already, as taken."""
        self._reserved.add(port)

    def release(self, port: int) -> None:
        """No effect for a port that is not taken."""
        self._reserved.discard(port)

    def _unavailable(self, preferred: int, why: str) -> EnvironmentFault:
        numbers = {"preferred": preferred, "reserved": len(self._reserved)}
        return EnvironmentFault(Reason.PORT_UNAVAILABLE, f"no TCP port on 127.0.0.1: {why}", numbers=numbers)

    @staticmethod
    def _candidates(preferred: int) -> Iterator[int]:
        if preferred:
            yield from range(preferred, min(preferred + SEARCH_WIDTH, MAX_PORT) + 1)
        for _ in range(ANY_ATTEMPTS):
            with socket.socket() as sock:
                sock.bind(("127.0.0.1", 0))
                port: int = sock.getsockname()[1]
            yield port


def _bindable(port: int, *, reuse: bool) -> bool:
    """Whether an engine could listen on `port`, be it on 127.0.0.1 or on every address of either family.

    A wildcard bind also fails when any single address is taken, so two binds cover all. With `reuse`, sockets in
    TIME_WAIT do not count; one that listens always does.
    """
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        try:
            with socket.socket(family) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(reuse))
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.bind((address, port))
        except OSError as error:
            if family == socket.AF_INET6 and error.errno in NO_IPV6:
                continue
            return False
    return True
