"""What every Clock, Rng and Workers keeps to, the host's and the fakes alike."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial

import pytest
import uvloop

from poolmgr.adapters.system import SystemClock, SystemRng, ThreadWorkers
from poolmgr.ports import Clock, Rng, Workers
from poolmgr.testing.fakes import FakeClock, InlineWorkers, SeededRng


@dataclass
class TimedClock:
    clock: Clock
    pass_time: Callable[[float], Awaitable[object]]


@pytest.fixture(params=["system", "fake"])
def timed(request: pytest.FixtureRequest) -> TimedClock:
    if request.param == "system":
        return TimedClock(SystemClock(), asyncio.sleep)
    fake = FakeClock()
    return TimedClock(fake, fake.advance)


@pytest.fixture(params=[SystemRng, SeededRng])
def rng(request: pytest.FixtureRequest) -> Rng:
    made: Rng = request.param()
    return made


@pytest.fixture(params=["threads", "inline"])
def workers(request: pytest.FixtureRequest) -> Iterator[Workers]:
    if request.param == "inline":
        yield InlineWorkers()
        return
    threads = ThreadWorkers("test", 2)
    yield threads
    threads.close()


async def test_a_timer_fires_in_order_and_never_early(timed: TimedClock) -> None:
    fired: list[tuple[str, float]] = []
    start = timed.clock.now()
    timed.clock.call_at(start + 0.04, lambda: fired.append(("late", timed.clock.now())))
    timed.clock.call_at(start + 0.02, lambda: fired.append(("soon", timed.clock.now())))
    await timed.pass_time(0.06)
    assert [name for name, _ in fired] == ["soon", "late"]
    assert fired[0][1] >= start + 0.02
    assert fired[1][1] >= start + 0.04


def test_no_timer_is_early_on_the_daemons_loop_which_counts_in_milliseconds() -> None:
    clock, early = SystemClock(), []

    async def wait() -> None:
        done = asyncio.get_running_loop().create_future()

        def fired(when: float, last: bool) -> None:
            early.append(when - clock.now())
            if last:
                done.set_result(None)

        begin = clock.now()
        for i in range(100):  # at all fractions of a millisecond
            clock.call_at(begin + 0.0203 + i * 0.00037, partial(fired, begin + 0.0203 + i * 0.00037, i == 99))
        await done

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(wait())
    assert len(early) == 100
    assert max(early) <= 0.0


async def test_a_cancelled_timer_does_not_fire(timed: TimedClock) -> None:
    fired: list[int] = []
    timed.clock.call_at(timed.clock.now() + 0.01, lambda: fired.append(1)).cancel()
    await timed.pass_time(0.03)
    assert fired == []


async def test_a_timer_of_the_past_fires_soon(timed: TimedClock) -> None:
    fired: list[int] = []
    timed.clock.call_at(timed.clock.now() - 5, lambda: fired.append(1))
    await timed.pass_time(0.01)
    assert fired == [1]


async def test_the_wall_clock_goes_with_the_boot_clock(timed: TimedClock) -> None:
    offset = timed.clock.wall() - timed.clock.now()
    await timed.pass_time(0.02)
    assert timed.clock.wall() - timed.clock.now() == pytest.approx(offset, abs=0.01)


def test_chance_is_within_its_range_and_ids_differ(rng: Rng) -> None:
    assert all(0 <= rng.random() < 1 for _ in range(1000))
    ids = {rng.hex(16) for _ in range(1000)}
    assert len(ids) == 1000
    assert all(len(i) == 32 and set(i) <= set("0123456789abcdef") for i in ids)


def test_the_same_seed_gives_the_same_chances() -> None:
    one, other = SeededRng(7), SeededRng(7)
    assert [one.random(), one.hex(4)] == [other.random(), other.hex(4)]


async def test_work_gives_its_result_and_its_error(workers: Workers) -> None:
    assert await workers.run(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await workers.run(divmod, 1, 0)


async def test_work_runs_beside_the_loop_and_not_in_it() -> None:
    threads = ThreadWorkers("named", 1)
    assert (await threads.run(lambda: threading.current_thread().name)).startswith("named")
    threads.close()


async def test_closing_asks_long_work_to_end_and_drops_what_has_not_begun() -> None:
    threads = ThreadWorkers("closing", 1)
    loop, begun = asyncio.get_running_loop(), asyncio.Event()

    def long_work() -> bool:
        loop.call_soon_threadsafe(begun.set)
        return threads.stopping.wait(10)

    async with asyncio.TaskGroup() as group:
        long = group.create_task(threads.run(long_work))
        queued = group.create_task(threads.run(int))
        await begun.wait()
        threads.close()
    assert await long
    assert queued.cancelled()
