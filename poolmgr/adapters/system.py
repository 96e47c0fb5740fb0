"""Time, randomness and threads as this host has them."""

from __future__ import annotations

import asyncio
import math
import random
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_DRAW_BYTES = 4096


class SystemClock:
    """CLOCK_BOOTTIME, which goes on in suspend, and the host's wall clock."""

    def __init__(self) -> None:
        self.boot_id = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()

    def now(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def wall(self) -> float:
        return time.time()

    def call_at(self, when: float, callback: Callable[[], object]) -> asyncio.TimerHandle:
        # The loop's timers run on CLOCK_MONOTONIC, which stands still in suspend: a timer can be late by that. uvloop
        # counts in whole milliseconds from the last whole one: rounded up, and one more, it is never early.
        delay = when - self.now()
        return asyncio.get_running_loop().call_later(math.ceil(delay * 1000 + 1) / 1000 if delay > 0 else 0.0, callback)


class SystemRng:
    """Jitter needs no secrecy, ids and tokens do."""

    def __init__(self) -> None:
        self._jitter = random.Random()  # seeded by the system
        self._drawn = ""
        self._used = 0

    def random(self) -> float:
        return self._jitter.random()

    def hex(self, nbytes: int) -> str:
        if self._used + 2 * nbytes > len(self._drawn):
            self._drawn, self._used = secrets.token_hex(max(_DRAW_BYTES, nbytes)), 0  # each draw is a system call
        begin = self._used
        self._used = begin + 2 * nbytes
        return self._drawn[begin : self._used]


class ThreadWorkers:
    """At most `threads` threads, named, started when first needed.

    `stopping` is set when what is under way should come to an end: work that takes long looks at it now and then.
    """

    def __init__(self, name: str, threads: int) -> None:
        self.stopping = threading.Event()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)

    async def run(self, function: Callable[..., T], *args: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *args)

    def close(self) -> None:
        """Drops what has not begun and waits for what is under way."""
        self.stopping.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
