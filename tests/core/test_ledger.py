"""One device's memory, number by number."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolmgr.core.memory import after_stop, entry, room
from poolmgr.model.memory import LedgerEntry, Reserved

pytestmark = pytest.mark.behaviour("MEM-2")

GIB = 1 << 30
TOTAL = 80 * GIB


def ledger(free: int | None, *reserved: tuple[int, int], claimed: int | None = 0, total: int | None = TOTAL):
    rows = [Reserved(f"pool-{i}", promised, seen) for i, (promised, seen) in enumerate(reserved)]
    return entry("GPU-a", total, free, rows, claimed)


def test_an_idle_device_has_all_that_the_driver_reports_as_free():
    assert ledger(79 * GIB) == LedgerEntry("GPU-a", TOTAL, GIB, 0, 0, GIB, 79 * GIB, 0)


def test_what_is_promised_and_not_yet_seen_is_not_free():
    got = ledger(70 * GIB, (20 * GIB, 8 * GIB))
    assert (got.reserved_bytes, got.measured_bytes, got.pending_bytes) == (20 * GIB, 8 * GIB, 12 * GIB)
    assert got.free_bytes == 70 * GIB - 12 * GIB
    assert got.unmanaged_bytes == 10 * GIB - 8 * GIB


def test_what_is_promised_and_seen_counts_once():
    assert ledger(60 * GIB, (20 * GIB, 20 * GIB)).free_bytes == 60 * GIB


def test_one_that_took_more_than_was_promised_does_not_lend_it_to_another():
    got = ledger(50 * GIB, (10 * GIB, 30 * GIB), (20 * GIB, 0))
    assert got.pending_bytes == 20 * GIB
    assert got.free_bytes == 30 * GIB


def test_a_strangers_use_is_not_free_and_is_told_as_unmanaged():
    got = ledger(30 * GIB, (10 * GIB, 10 * GIB), claimed=5 * GIB)
    assert (got.used_bytes, got.measured_bytes, got.unmanaged_bytes) == (50 * GIB, 15 * GIB, 35 * GIB)
    assert got.free_bytes == 30 * GIB


def test_it_is_never_more_than_the_reservations_leave_of_the_total_where_the_free_memory_lags():
    got = ledger(TOTAL, (30 * GIB, 30 * GIB), (10 * GIB, 4 * GIB), claimed=2 * GIB)
    assert got.free_bytes == TOTAL - 30 * GIB - 10 * GIB - 2 * GIB
    assert got.unmanaged_bytes == 0


def test_more_promised_than_there_is_leaves_nothing_and_the_gap_is_known():
    got = ledger(10 * GIB, (30 * GIB, 0))
    assert (got.free_bytes, room(got)) == (0, -20 * GIB)
    exact = ledger(10 * GIB, (10 * GIB, 0))
    assert (exact.free_bytes, room(exact)) == (0, 0)


@pytest.mark.parametrize(
    ("total", "free"), [(TOTAL, None), (None, GIB), (None, None), (0, 0), (TOTAL, TOTAL + 1), (TOTAL, -1), (-1, -1)]
)
def test_what_the_driver_does_not_tell_or_cannot_mean_is_unknown_and_never_zero_or_free(total, free):
    got = ledger(free, (GIB, 0), total=total)
    assert (got.used_bytes, got.unmanaged_bytes, got.free_bytes, room(got)) == (None, None, None, None)
    assert got.reserved_bytes == GIB
    assert after_stop(got, GIB) == got


@pytest.mark.parametrize(("free", "used"), [(0, TOTAL), (TOTAL, 0)])
def test_a_full_and_an_empty_device_are_readings_like_any_other(free, used):
    assert (ledger(free).used_bytes, ledger(free).free_bytes) == (used, free)


def test_where_a_known_holders_use_is_not_told_the_strangers_part_is_unknown_and_the_rest_is_not():
    got = ledger(70 * GIB, (5 * GIB, 5 * GIB), claimed=None)
    assert (got.unmanaged_bytes, got.measured_bytes, got.free_bytes) == (None, 5 * GIB, 70 * GIB)


def test_a_stop_gives_back_what_the_holder_held():
    before = ledger(30 * GIB, (40 * GIB, 40 * GIB))
    after = after_stop(before, 40 * GIB)
    assert (after.used_bytes, after.measured_bytes, after.free_bytes) == (10 * GIB, 0, 70 * GIB)
    assert after.unmanaged_bytes == 10 * GIB


def test_a_stop_pays_first_for_what_is_promised_and_not_there():
    before = ledger(10 * GIB, (30 * GIB, 0), (20 * GIB, 20 * GIB))
    assert room(before) == -20 * GIB
    assert after_stop(before, 20 * GIB).free_bytes == 0
    assert after_stop(before, 21 * GIB).free_bytes == GIB


def test_a_stop_gives_back_no_more_than_there_is():
    assert after_stop(ledger(60 * GIB, (20 * GIB, 20 * GIB)), 30 * GIB).free_bytes == TOTAL


def test_of_a_device_of_which_only_the_free_memory_is_said_that_is_what_counts():
    said = LedgerEntry("GPU-a", None, None, 0, 0, None, 7 * GIB)
    assert (room(said), after_stop(said, GIB).free_bytes) == (7 * GIB, 8 * GIB)
    full = LedgerEntry("GPU-a", TOTAL, None, 0, 0, None, 0)
    assert (room(full), after_stop(full, GIB).free_bytes) == (0, GIB)


sizes = st.integers(0, 100)


@given(st.integers(1, 100), sizes, st.lists(st.tuples(sizes, sizes), max_size=5), sizes)
def test_the_two_halves_of_the_rule_hold_of_any_numbers(total, free, reserved, claimed):
    got = ledger(free, *reserved, claimed=claimed, total=total)
    if free > total:
        assert got.free_bytes is None
        return
    by_report = free - sum(promised - seen for promised, seen in reserved if promised > seen)
    by_total = total - claimed - sum(max(pair) for pair in reserved)
    assert got.free_bytes == max(0, min(by_report, by_total))
    assert room(got) == min(by_report, by_total)
