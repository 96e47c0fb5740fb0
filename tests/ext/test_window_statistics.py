"""Streaming window statistics against exact arithmetic (TEL-3), and what looks at every sample."""

from __future__ import annotations

import random
from array import array
from fractions import Fraction
from math import isclose, sqrt

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from poolmgr_ext.stats import Statistics, Windows, counter_difference, percentiles, theil_sen

from tests.ext import exact_statistics as twin
from tests.ext.exact_statistics import SECOND, Exact

WINDOWS = (1, 10, 60, 600)
GAP = 3.0
# A window's expiring end is kept in single precision (2**-24), the rest in double.
PRECISION = 2e-7


def fed(samples: list[tuple[int, float]], until: int | None = None) -> Windows:
    windows = Windows(longest_gap=GAP)
    for at, value in samples:
        windows.add(at, value)
    windows.close_to(samples[-1][0] // SECOND + 1 if until is None else until)
    return windows


def check(found: Statistics | None, wanted: Exact | None, travelled: float = 0.0) -> None:
    """`travelled`: how far the series has been from its first value, which its means are relative to."""
    if wanted is None:
        assert found is None
        return
    assert found is not None
    assert (found.count, found.last, found.minimum, found.maximum) == (
        wanted.count, wanted.last, wanted.minimum, wanted.maximum,
    )  # fmt: skip
    spread = max(wanted.maximum - wanted.minimum, 1e-12 * max(abs(wanted.maximum), abs(wanted.minimum)))
    assert isclose(found.mean, wanted.mean, rel_tol=1e-14, abs_tol=1e-9 * spread + 1e-15 * travelled)
    assert isclose(
        found.standard_deviation, sqrt(wanted.variance), rel_tol=PRECISION, abs_tol=1e-9 * spread + 1e-15 * travelled
    )
    size = max(abs(wanted.maximum), abs(wanted.minimum))
    assert isclose(found.integral, wanted.integral, rel_tol=PRECISION, abs_tol=PRECISION * size)
    assert (found.slope is None) == (wanted.slope is None)
    if found.slope is not None and wanted.slope is not None:
        # What the slope can be at most by its own noise: the line through the extremes in the shortest time.
        assert isclose(found.slope, wanted.slope, rel_tol=PRECISION, abs_tol=PRECISION * slope_scale(wanted, spread))
    assert (found.slope_error is None) == (wanted.slope_error is None)
    if found.slope_error is not None and wanted.slope_error is not None:
        assert isclose(found.slope_error, wanted.slope_error, rel_tol=1e-3, abs_tol=1e-3 * slope_scale(wanted, spread))


def slope_scale(wanted: Exact, spread: float) -> float:
    """spread / standard deviation of the times: slopes of this size are what rounding is relative to."""
    return max(abs(float(wanted.slope or 0)), (wanted.slope_error or 0) * sqrt(wanted.count), spread * 1e-3)


values = st.one_of(
    st.floats(-1e6, 1e6, allow_nan=False),
    st.integers(0, 100).map(float),
    st.integers(0, 200 * 2**30).map(float),
)


@st.composite
def traces(draw: st.DrawFn) -> list[tuple[int, float]]:
    """Samples at irregular times over up to twenty minutes, with pauses."""
    at = draw(st.integers(0, 10**8)) * SECOND + draw(st.integers(0, SECOND - 1))
    shape = random.Random(draw(st.integers(0, 2**32)))
    base, samples = draw(values), []
    for _ in range(draw(st.integers(1, 400))):
        samples.append((at, base + shape.choice((0.0, 1.0, 5.0, shape.random()))))
        at += shape.choice(
            (10**8, 10**8, SECOND // 3, SECOND, 7 * SECOND, 50 * SECOND if shape.random() < 0.1 else 10**8)
        )
    return samples


@pytest.mark.behaviour("TEL-3")
@settings(max_examples=60, deadline=None)
@given(traces())
def test_every_window_says_what_exact_arithmetic_says(samples: list[tuple[int, float]]) -> None:
    windows = fed(samples)
    newest = samples[-1][0] // SECOND
    travelled = max(abs(value - samples[0][1]) for _, value in samples)
    for window in WINDOWS:
        check(windows.statistics(window), twin.exact(samples, newest, window, Fraction(GAP)), travelled)


@pytest.mark.behaviour("TEL-3")
def test_long_windows_slide_by_a_second_and_forget_nothing_and_keep_nothing() -> None:
    noise = random.Random(5)
    start = 12_345_678 * SECOND
    samples = [(start + i * SECOND // 2, 1e11 + 1e6 * noise.random()) for i in range(2 * 1500)]
    windows, done = Windows(longest_gap=GAP), 0
    for second in range(1500):
        while done < len(samples) and samples[done][0] < start + (second + 1) * SECOND:
            windows.add(*samples[done])
            done += 1
        newest = start // SECOND + second
        windows.close_to(newest + 1)
        if second % 97 == 0 or second in (9, 10, 59, 60, 598, 599, 600, 601, 609, 610):
            for window in WINDOWS:
                check(windows.statistics(window), twin.exact(samples[:done], newest, window, Fraction(GAP)))


@pytest.mark.behaviour("TEL-3")
@pytest.mark.parametrize("base", [0.0, 1e3, 80e9, 2.0**53 - 2**20])
def test_a_small_motion_of_a_large_value_is_told_to_six_digits_after_a_year_of_uptime(base: float) -> None:
    start = 365 * 86400 * SECOND
    samples = [(start + i * 10**8, base + (i % 7)) for i in range(6000)]
    windows = fed(samples)
    for window in WINDOWS:
        found, wanted = windows.statistics(window), twin.exact(samples, start // SECOND + 599, window, Fraction(GAP))
        assert found is not None and wanted is not None
        assert isclose(found.standard_deviation, sqrt(wanted.variance), rel_tol=1e-6)
        check(found, wanted)


def test_a_straight_line_has_its_slope_and_next_to_no_error() -> None:
    start = 86400 * SECOND
    windows = fed([(start + i * 10**8, 5e10 + 1e7 * i) for i in range(600)])
    for window in (10, 60):
        found = windows.statistics(window)
        assert found is not None and found.slope is not None and found.slope_error is not None
        assert isclose(found.slope, 1e8, rel_tol=1e-9)
        assert found.slope_error < 1e8 * 1e-5


@pytest.mark.behaviour("TEL-3")
def test_seconds_without_a_sample_empty_the_windows_one_after_the_other() -> None:
    start = 1000 * SECOND
    windows = fed([(start, 4.0)])
    seen = {window: [] for window in WINDOWS}
    for second in range(1001, 1001 + 700):
        for window in WINDOWS:
            if windows.statistics(window) is not None:
                seen[window].append(second - 1000)
        windows.close_to(second + 1)
    assert {window: (each[0], each[-1]) for window, each in seen.items()} == {w: (1, w) for w in WINDOWS}


def test_a_pause_longer_than_every_window_leaves_nothing_of_before() -> None:
    windows = Windows(longest_gap=GAP)
    windows.add(1000 * SECOND, 1e9)
    windows.add(5_000_000 * SECOND, 2.0)
    windows.close_to(5_000_001)
    for window in WINDOWS:
        assert windows.statistics(window) == Statistics(1, 2.0, 2.0, 2.0, 2.0, 0.0, None, None, 0.0)


def test_nothing_is_integrated_over_a_longer_gap_than_was_said() -> None:
    for gap, wanted in ((3, 30.0), (4, 0.0)):
        assert fed([(SECOND, 10.0), ((1 + gap) * SECOND, 10.0)]).statistics(60).integral == wanted  # type: ignore[union-attr]


@pytest.mark.parametrize(("at", "value"), [(5 * SECOND, 1.0), (4 * SECOND, 1.0), (6 * SECOND, float("nan"))])
def test_time_that_does_not_rise_and_a_value_that_is_none_are_refused(at: int, value: float) -> None:
    windows = Windows()
    windows.add(5 * SECOND, 0.0)
    with pytest.raises(ValueError, match=r"does not rise|is unknown"):
        windows.add(at, value)
    with pytest.raises(ValueError, match="no window of 30 s"):
        windows.statistics(30)


def test_the_check_turns_red_on_statistics_of_other_samples() -> None:
    samples = [(1000 * SECOND + i * 10**8, float(i % 13)) for i in range(50)]
    wanted = twin.exact(samples, 1004, 10, Fraction(GAP))
    check(fed(samples).statistics(10), wanted)
    for i in (0, 25, 49):
        off = [(t, x + (0.001 if j == i else 0)) for j, (t, x) in enumerate(samples)]
        with pytest.raises(AssertionError):
            check(fed(off).statistics(10), wanted)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.integers(0, 3).map(float), st.floats(-1e9, 1e9)), min_size=1, max_size=300))
def test_percentiles_are_the_nearest_ranks(numbers: list[float]) -> None:
    assert percentiles(array("d", numbers)) == tuple(twin.nearest_rank(numbers, p) for p in (50, 95, 99))


@pytest.mark.parametrize(
    "numbers", [[7.0] * 6000, list(map(float, range(6000))), list(map(float, range(6000, 0, -1))), [0.0, 1.0] * 3000]
)
def test_percentiles_of_columns_that_are_sorted_or_full_of_equals_are_the_nearest_ranks(numbers: list[float]) -> None:
    assert percentiles(array("d", numbers)) == tuple(twin.nearest_rank(numbers, p) for p in (50, 95, 99))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.01, 2.0), st.integers(-1000, 1000)), min_size=1, max_size=120), st.floats(0.5, 5.0)
)
def test_the_robust_slope_is_theil_and_sens_over_block_means(steps: list[tuple[float, int]], width: float) -> None:
    times, now = [], 0.0
    for step, _ in steps:
        now += step
        times.append(now)
    numbers = [float(value) for _, value in steps]
    found = theil_sen(array("d", times), array("d", numbers), 0.0, width)
    wanted = twin.theil_sen(times, numbers, 0.0, width)
    assert (found is None) == (wanted is None)
    if found is not None and wanted is not None:
        assert isclose(found, wanted, rel_tol=1e-6, abs_tol=1e-6)


def test_a_fifth_of_wild_values_does_not_move_the_robust_slope() -> None:
    times = [i * 0.1 for i in range(600)]
    wild = random.Random(1)
    numbers = [2.0 * t + (1e6 * wild.random() if i // 10 % 5 == 0 else 0.0) for i, t in enumerate(times)]
    found = theil_sen(array("d", times), array("d", numbers), 0.0, 1.0)
    assert found is not None and abs(found - 2.0) < 1.0


@pytest.mark.behaviour("TEL-5")
@pytest.mark.parametrize(
    ("before", "now", "bits", "step"),
    [
        (10, 10, 64, 0),
        (10, 25, 64, 15),
        (1000, 5, 64, 5),  # reset: it has counted five since
        (2**32 - 10, 5, 32, 15),  # wrap
        (2**32 - 10, 5, 64, 5),  # a counter of 64 bits does not wrap there
        (100, 5, 32, 5),  # too far from the end for a wrap
        (2**32 - 1, 2**31 + 5, 32, 2**31 + 5),  # too far a way for one
    ],
)
def test_a_counter_is_counted_by_differences_over_wraps_and_resets(before: int, now: int, bits: int, step: int) -> None:
    assert counter_difference(before, now, bits) == step
