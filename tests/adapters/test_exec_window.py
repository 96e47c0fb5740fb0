"""A process in the midst of its exec shows no environment; it must not be taken for somebody else's."""

from __future__ import annotations

import os

import pytest

from poolmgr.adapters.runtimes import procfs

pytestmark = pytest.mark.behaviour("PROC-6")
MARK = b"POOLMGR_ENGINE_ID=abc\0"


@pytest.fixture
def environments(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What /proc shows of one process, look after look."""
    looks: list[bytes] = []
    monkeypatch.setattr(procfs.Path, "read_bytes", lambda path: looks.pop(0) if len(looks) > 1 else looks[0])
    return looks


def fields(monkeypatch: pytest.MonkeyPatch, state: str, flags: int, begins: int) -> None:
    told = {procfs.proc.STATE: state, 9: str(flags), 50: str(begins)}
    monkeypatch.setattr(procfs.proc, "stat_field", lambda pid, number: told[number])


def test_an_exec_under_way_is_waited_for(monkeypatch, environments):
    fields(monkeypatch, "R", 0, 0)
    environments += [b"", b"", MARK]
    assert procfs.carries_engine_id(7, "abc") is True
    environments += [b"", MARK]
    environments.pop(0)
    assert procfs.marks_of(7) == {"POOLMGR_ENGINE_ID": "abc"}


@pytest.mark.parametrize(
    ("state", "flags", "begins"),
    [("S", 0x00200000, 0), ("Z", 0, 0), ("S", 0, 0x7FFC0000)],
    ids=["a kernel thread", "a zombie", "a program without any environment"],
)
def test_what_shows_none_for_good_is_not_waited_for(monkeypatch, environments, state, flags, begins):
    fields(monkeypatch, state, flags, begins)
    environments += [b"", MARK]
    assert procfs.carries_engine_id(7, "abc") is False
    assert environments == [MARK]


def test_an_exec_that_does_not_end_is_not_waited_for_for_ever(monkeypatch, environments):
    fields(monkeypatch, "D", 0, 0)
    monkeypatch.setattr(procfs, "EXEC_LOOK_SECONDS", 0.0)
    environments.append(b"")
    assert procfs.carries_engine_id(7, "abc") is False


def test_this_process_has_an_environment_and_is_in_no_exec():
    assert procfs._in_exec(os.getpid()) is False
    assert procfs.carries_engine_id(os.getpid(), "nobody") is False
