"""Who may start an engine, and who waits for what."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolmgr.core.permits import Ask, grants

pytestmark = pytest.mark.behaviour("PRE-7")

GPUS = ("GPU-a", "GPU-b", "GPU-c")


def keys(asks):
    return [ask.key for ask in asks]


def test_two_first_starts_run_at_once_and_the_third_waits_and_is_told_for_what():
    granted, places = grants([], [Ask("1", "a"), Ask("2", "b"), Ask("3", "c")], 2)
    assert keys(granted) == ["1", "2"]
    assert (places["3"].position, places["3"].reason) == (1, "waits for one of 2 starts at a time on this host")


def test_one_start_at_a_time_per_gpu_names_the_pool_that_is_waited_for():
    granted, places = grants([Ask("1", "a", ("GPU-a",))], [Ask("2", "b", ("GPU-b", "GPU-a"))], 9)
    assert granted == []
    assert places["2"].reason == "waits for the start of pool a on GPU-a"


def test_an_engine_that_was_ready_before_waits_for_its_gpu_and_not_for_the_host():
    running = [Ask("1", "a", ("GPU-a",)), Ask("2", "b")]
    granted, places = grants(running, [Ask("3", "c", first=False), Ask("4", "d", ("GPU-a",), first=False)], 2)
    assert keys(granted) == ["3"]
    assert list(places) == ["4"]


def test_nobody_overtakes_on_a_gpu_that_an_earlier_one_waits_for():
    waiting = [Ask("2", "b", ("GPU-a", "GPU-b")), Ask("3", "c", ("GPU-b",)), Ask("4", "d", ("GPU-c",))]
    granted, places = grants([Ask("1", "a", ("GPU-a",))], waiting, 9)
    assert keys(granted) == ["4"]
    assert [places[k].position for k in ("2", "3")] == [1, 2]
    assert places["3"].reason == "waits for the start of pool b on GPU-b"


asks = st.lists(
    st.tuples(st.sets(st.sampled_from(GPUS), max_size=2).map(sorted).map(tuple), st.booleans()), max_size=8
).map(lambda them: [Ask(str(i), f"p{i}", devices, first) for i, (devices, first) in enumerate(them)])


@given(asks, st.integers(1, 3))
def test_whatever_is_asked_no_gpu_starts_two_the_limit_holds_and_everybody_starts_in_the_end(waiting, limit):
    running, started = [], []
    while waiting:
        granted, places = grants(running, waiting, limit)
        running += granted
        waiting = [ask for ask in waiting if ask not in granted]
        assert sorted(places) == sorted(keys(waiting))
        assert [places[ask.key].position for ask in waiting] == list(range(1, len(waiting) + 1))
        used = [device for ask in running for device in ask.devices]
        assert len(used) == len(set(used))
        assert sum(ask.first for ask in running) <= limit
        assert running, "nothing runs and nothing may start"
        started.append(running.pop(0))
