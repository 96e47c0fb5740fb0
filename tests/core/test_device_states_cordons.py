"""Cordons in time, and what of a device outlives a daemon, to the second."""

from __future__ import annotations

from dataclasses import replace

import pytest

from poolmgr.core import cordons
from poolmgr.core.device_states import Record
from poolmgr.core.remembered_devices import PROVED_STEP, Remembered, first_seen, to_remember
from poolmgr.model.device import DeviceState
from poolmgr.model.device_health import Cordon
from poolmgr.testing.devices import a_gpu

pytestmark = pytest.mark.behaviour("STATE-1")
GPU = a_gpu(0)
NOW = 1000.0
PLAIN = Record(GPU, since=0.0)


def cordon(starts=None, ends=None, at=0.0):
    return Cordon("new fan", at, starts, ends)


def test_a_cordon_of_later_is_planned_and_one_of_now_is_in_force():
    for starts, later in ((None, False), (NOW - 1, False), (NOW, False), (NOW + 1, True)):
        word = cordon(starts)
        after = cordons.ordered(replace(PLAIN, cordon=cordon(), planned=cordon()), word, NOW)
        assert (after.cordon, after.planned) == ((None, word) if later else (word, None))
    after = cordons.ordered(replace(PLAIN, cordon=cordon(), planned=cordon()), None, NOW)
    assert (after.cordon, after.planned) == (None, None)


@pytest.mark.parametrize(
    ("early", "begun"), [(1.0, False), (0.01, False), (cordons.ROUNDING / 2, True), (0.0, True), (-5.0, True)]
)
def test_a_window_begins_and_ends_on_time_and_a_rounding_early(early, begun):
    planned = replace(PLAIN, planned=cordon(NOW, NOW + 100))
    after = cordons.timed(planned, NOW - early)
    assert (after.cordon, after.planned) == ((planned.planned, None) if begun else (None, planned.planned))
    in_force = replace(PLAIN, cordon=cordon(NOW - 100, NOW))
    assert (cordons.timed(in_force, NOW - early).cordon is None) is begun


def test_a_time_that_is_reached_to_the_last_digit_has_come():
    at = NOW + cordons.ROUNDING
    assert cordons.timed(replace(PLAIN, cordon=cordon(None, at)), NOW).cordon is None
    assert cordons.timed(replace(PLAIN, planned=cordon(at)), NOW).planned is None
    assert cordons.timed(replace(PLAIN, planned=cordon()), 0.0).cordon == cordon()


def test_a_window_that_nobody_saw_leaves_nothing_and_one_without_an_end_stays():
    gone = cordons.timed(replace(PLAIN, planned=cordon(NOW - 20, NOW - 10)), NOW)
    assert (gone.cordon, gone.planned) == (None, None)
    stays = cordons.timed(replace(PLAIN, cordon=cordon(), planned=cordon(NOW + 10)), NOW)
    assert (stays.cordon, stays.planned) == (cordon(), cordon(NOW + 10))


def test_what_is_due_is_the_start_of_a_plan_or_the_end_of_what_is_in_force():
    assert cordons.due(PLAIN) is None and cordons.due(replace(PLAIN, cordon=cordon())) is None
    assert cordons.due(replace(PLAIN, cordon=cordon(None, 7.0))) == 7.0
    assert cordons.due(replace(PLAIN, cordon=cordon(None, 7.0), planned=cordon(9.0))) == 9.0


def test_a_cordon_is_the_same_whenever_it_was_said_and_another_with_any_other_word():
    assert cordons.same(None, None) and cordons.same(cordon(at=1.0), cordon(at=2.0))
    assert not cordons.same(None, cordon()) and not cordons.same(cordon(), None)
    assert not cordons.same(cordon(), cordon(ends=1.0)) and not cordons.same(cordon(), replace(cordon(), drain=True))


# Over the end of a daemon; the offset is Unix time less boot time.

OFFSET = 1e9
BAD = Record(GPU, DeviceState.QUARANTINED, "XID 79", 500.0, 900.0, 400.0, 130.0)
KEPT = Remembered(DeviceState.QUARANTINED, "XID 79", OFFSET + 500.0, OFFSET + 900.0, 400.0, 120.0)


def test_a_quarantine_is_remembered_in_unix_time_and_what_is_proved_in_whole_minutes():
    assert PROVED_STEP == 60.0
    assert to_remember({"a": BAD}, {}, OFFSET) == {"a": KEPT}
    for proved, kept in ((59.0, 0.0), (60.0, 60.0), (121.0, 120.0)):
        assert to_remember({"a": replace(BAD, proved=proved)}, {}, OFFSET)["a"].proved == kept
    assert to_remember({"a": replace(BAD, until=None)}, {}, OFFSET)["a"].until is None


def test_it_comes_back_as_it_was_in_the_boot_time_of_the_next_daemon():
    assert first_seen(GPU, KEPT, OFFSET - 50.0, 700.0) == replace(BAD, since=550.0, until=950.0, proved=120.0)
    assert first_seen(GPU, replace(KEPT, until=None), OFFSET, 700.0).until is None
    assert first_seen(GPU, None, OFFSET, 700.0) == Record(GPU, since=700.0)


def test_a_healthy_device_is_forgotten_but_for_its_cordon_in_force_or_planned():
    assert to_remember({"a": PLAIN}, {}, OFFSET) == {}
    assert to_remember({"a": replace(PLAIN, proved=600.0, since=9.0)}, {}, OFFSET) == {}
    for record in (replace(PLAIN, cordon=cordon()), replace(PLAIN, planned=cordon())):
        assert to_remember({"a": record}, {}, OFFSET) == {"a": Remembered(cordon=cordon())}
    both = replace(BAD, cordon=cordon(ends=5.0), planned=cordon(9.0))
    assert to_remember({"a": both}, {}, OFFSET)["a"].cordon == cordon(ends=5.0)


def test_a_device_that_was_never_seen_is_remembered_as_it_was_told():
    assert to_remember({"b": PLAIN}, {"a": KEPT}, OFFSET) == {"a": KEPT}


def test_a_remembered_cordon_is_in_force_or_planned_by_the_time_of_now():
    for starts, later in ((OFFSET + 699.0, False), (OFFSET + 701.0, True)):
        record = first_seen(GPU, Remembered(cordon=cordon(starts)), OFFSET, 700.0)
        assert (record.planned is not None, record.cordon is not None) == (later, not later)
