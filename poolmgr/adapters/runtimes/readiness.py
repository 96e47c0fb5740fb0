"""Event-loop callbacks for what `add_reader` cannot ask of a descriptor: POLLPRI, or nothing but a hang-up."""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable


class Watch:
    """Calls back whenever `fd` shows one of `events`, until closed. A nested epoll object carries the question."""

    def __init__(self, loop: asyncio.AbstractEventLoop, fd: int, events: int, callback: Callable[[], object]) -> None:
        self._loop = loop
        self._epoll = select.epoll()
        self._epoll.register(fd, events)
        loop.add_reader(self._epoll.fileno(), callback)

    def close(self) -> None:
        if not self._epoll.closed:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
