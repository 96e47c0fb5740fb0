"""When the memory of an engine that ended counts as given back."""

from __future__ import annotations

import pytest

from poolmgr.core.vram import TOLERANCE_BYTES, DeviceUse, held
from poolmgr.model.device import DeviceProcess

pytestmark = pytest.mark.behaviour("PROC-4")
GIB = 1024**3


def use(free: int | None, *processes: tuple[int, int | None]) -> DeviceUse:
    return DeviceUse(80 * GIB, free, [DeviceProcess(pid, used) for pid, used in processes])


def test_memory_is_back_when_no_process_of_the_engine_is_listed_and_use_is_what_it_was():
    assert held(use(79 * GIB), use(79 * GIB), {7}) is None
    assert held(None, use(3 * GIB), {7}) is None


def test_a_process_of_ours_that_is_still_listed_holds_it_and_is_named_with_its_bytes():
    left = held(use(79 * GIB), use(59 * GIB, (7, 20 * GIB), (9, GIB)), {7, 8})
    assert (left.pids, left.used_bytes) == ((7,), 20 * GIB)
    assert "held by process 7" in str(left)


def test_bytes_that_the_driver_does_not_tell_are_not_zero():
    left = held(None, use(59 * GIB, (7, None)), {7})
    assert left.used_bytes is None
    assert "unknown amount" in str(left)


def test_use_that_no_process_accounts_for_counts_from_what_it_was_before_the_start():
    before = use(79 * GIB)
    assert held(before, use(79 * GIB - TOLERANCE_BYTES), ()) is None
    left = held(before, use(70 * GIB), ())
    assert (left.pids, left.used_bytes) == ((), 9 * GIB)
    assert "no process that the driver shows" in str(left)


def test_what_others_took_meanwhile_is_theirs():
    assert held(use(79 * GIB), use(49 * GIB, (9, 30 * GIB)), {7}) is None


@pytest.mark.parametrize("now", [use(None), DeviceUse(80 * GIB, 3 * GIB, None), use(3 * GIB, (9, None))])
def test_where_it_cannot_be_told_nothing_is_claimed(now):
    assert held(use(79 * GIB), now, {7}) is None
