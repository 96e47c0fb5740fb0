"""The catalogue of XIDs: complete where NVIDIA documents one, and honest where nobody does."""

from __future__ import annotations

import pytest

from poolmgr.model.xid import CATALOGUE, LISTING, XIDS, XidAction, XidOrigin, XidSeverity, lookup

# What operators of GPUs meet: those of NVIDIA's debug guidelines, and of its device plugin's list of applications' own.
MET = (13, 31, 32, 38, 43, 45, 48, 61, 62, 63, 64, 68, 69, 74, 79, 92, 94, 95, 109, 110, 119, 120, 136, 140, 143, 154)


@pytest.mark.behaviour("TEL-4")
def test_every_code_that_operators_meet_is_known_with_its_source() -> None:
    for code in MET:
        assert lookup(code).source in (CATALOGUE, LISTING), code
    assert len(XIDS) >= 40


@pytest.mark.behaviour("TEL-4")
@pytest.mark.parametrize("code", [0, 1, 5, 49, 173, 99999])
def test_a_code_that_is_in_no_list_is_unknown_and_not_harmless(code: int) -> None:
    found = lookup(code)
    assert (found.severity, found.origin) == (XidSeverity.UNKNOWN, XidOrigin.UNKNOWN)
    assert found.action is not XidAction.NONE
    assert not found.blames_application
    assert str(code) in found.meaning


@pytest.mark.behaviour("TEL-4")
@pytest.mark.parametrize(
    ("code", "severity", "origin", "action"),
    [
        (13, XidSeverity.WARNING, XidOrigin.APPLICATION, XidAction.RESTART_APPLICATION),
        (31, XidSeverity.WARNING, XidOrigin.APPLICATION, XidAction.RESTART_APPLICATION),
        (48, XidSeverity.CRITICAL, XidOrigin.HARDWARE, XidAction.RESET_GPU),
        (63, XidSeverity.WARNING, XidOrigin.HARDWARE, XidAction.NONE),
        (64, XidSeverity.CRITICAL, XidOrigin.HARDWARE, XidAction.RESET_GPU),
        (79, XidSeverity.CRITICAL, XidOrigin.HARDWARE, XidAction.REBOOT),
        (94, XidSeverity.WARNING, XidOrigin.HARDWARE, XidAction.RESTART_APPLICATION),
        (95, XidSeverity.CRITICAL, XidOrigin.HARDWARE, XidAction.RESET_GPU),
        (119, XidSeverity.CRITICAL, XidOrigin.DRIVER, XidAction.RESET_GPU),
        (154, XidSeverity.WARNING, XidOrigin.HARDWARE, XidAction.FOLLOW_DRIVER),
    ],
)
def test_the_codes_that_decide_about_a_device_say_what_nvidia_says(
    code: int, severity: XidSeverity, origin: XidOrigin, action: XidAction
) -> None:
    found = lookup(code)
    assert (found.severity, found.origin, found.action) == (severity, origin, action)


@pytest.mark.behaviour("TEL-4")
def test_what_needs_a_reset_or_more_takes_the_device_out_and_an_applications_doing_never_does() -> None:
    for found in XIDS.values():
        if found.action in (XidAction.RESET_GPU, XidAction.REBOOT, XidAction.CHECK_CONNECTIONS):
            assert found.severity is XidSeverity.CRITICAL, found
        if found.blames_application:
            assert found.severity is not XidSeverity.CRITICAL, found


def test_no_code_is_listed_twice_and_each_has_a_meaning_of_its_own_words() -> None:
    from poolmgr.model import xid

    rows = [*xid._IN_CATALOGUE, *xid._IN_LISTING]
    assert len({row[0] for row in rows}) == len(rows) == len(XIDS)
    assert all(found.meaning and found.code == code for code, found in XIDS.items())
