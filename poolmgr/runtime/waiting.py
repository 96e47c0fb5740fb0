"""Waiting on the clock that is injected, and not on the event loop's."""

from __future__ import annotations

import asyncio
from functools import partial

from poolmgr.ports import Clock


def resolve(future: asyncio.Future[None]) -> None:
    """Once: a waiter may have been let go already."""
    if not future.done():
        future.set_result(None)


async def pause(clock: Clock, seconds: float) -> None:
    over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    timer = clock.call_at(clock.now() + seconds, partial(resolve, over))
    try:
        await over
    finally:
        timer.cancel()
