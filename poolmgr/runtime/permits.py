"""Start permits: taken before a spawn, given back when the start has succeeded or failed (PRE-7)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from poolmgr.core.permits import Ask, Place, grants

Told = Callable[[Place], None]


class StartPermits:
    """`limit`: first starts at once on this host. What waits is bounded by the number of pools."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._running: dict[str, Ask] = {}
        self._waiting: dict[str, tuple[Ask, asyncio.Future[None], Told]] = {}

    @asynccontextmanager
    async def hold(self, ask: Ask, told: Told, withdrawn: Callable[[], Awaitable[None]]) -> AsyncIterator[bool]:
        """For the time of the block, which begins once nothing is in the way, with True.

        With False once what `withdrawn` returns is done before that. `told` hears of each place in the queue.
        """
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[ask.key] = (ask, granted, told)
        try:
            self._decide()
            if not granted.done():
                await _first_of(granted, withdrawn())
            yield granted.done()
        finally:
            self._waiting.pop(ask.key, None)
            self._running.pop(ask.key, None)
            self._decide()

    @contextmanager
    def taken(self, ask: Ask) -> Iterator[None]:
        """By a start that nobody here has made: it waits for nobody, and others wait for it."""
        self._running[ask.key] = ask
        try:
            yield
        finally:
            self._running.pop(ask.key, None)
            self._decide()

    def _decide(self) -> None:
        asks = [ask for ask, _, _ in self._waiting.values()]
        granted, places = grants(tuple(self._running.values()), asks, self._limit)
        for ask in granted:
            _, future, _ = self._waiting.pop(ask.key)
            self._running[ask.key] = ask
            if not future.done():
                future.set_result(None)
        for key, place in places.items():
            self._waiting[key][2](place)


async def _first_of(granted: asyncio.Future[None], withdrawn: Awaitable[None]) -> None:
    """Returns when one of the two is done."""
    watching = asyncio.ensure_future(withdrawn)
    try:
        await asyncio.wait((granted, watching), return_when=asyncio.FIRST_COMPLETED)
    finally:
        watching.cancel()
