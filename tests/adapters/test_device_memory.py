"""The one file that remembers devices."""

from __future__ import annotations

import os

import pytest

from poolmgr.adapters.device_memory import MAX_BYTES, NAME, FileDeviceMemory
from poolmgr.errors import EnvironmentFault, Reason


def test_what_was_saved_last_is_loaded_and_nothing_before_the_first_time(tmp_path):
    memory = FileDeviceMemory(tmp_path)
    assert memory.load() == ""
    for text in ("first", "", "ü" * 3):
        memory.save(text)
        assert FileDeviceMemory(tmp_path).load() == text
    assert os.listdir(tmp_path) == [NAME]
    assert (tmp_path / NAME).stat().st_mode & 0o777 == 0o600


def test_a_save_that_fails_leaves_what_was_saved_before(tmp_path):
    memory = FileDeviceMemory(tmp_path)
    memory.save("first")
    (tmp_path / f"{NAME}.new").mkdir()
    with pytest.raises(EnvironmentFault) as refused:
        memory.save("second")
    assert refused.value.reason is Reason.STORE_UNAVAILABLE and refused.value.numbers == {"errno": "EISDIR"}
    assert memory.load() == "first"


def test_a_link_in_its_place_is_not_followed(tmp_path):
    (tmp_path / f"{NAME}.new").symlink_to(tmp_path / "victim")
    with pytest.raises(EnvironmentFault):
        FileDeviceMemory(tmp_path).save("text")
    assert not (tmp_path / "victim").exists()


def test_a_directory_that_cannot_be_read_is_a_fault_of_the_state_directory(tmp_path):
    (tmp_path / NAME).mkdir()
    with pytest.raises(EnvironmentFault) as refused:
        FileDeviceMemory(tmp_path).load()
    assert refused.value.reason is Reason.STATE_DIR


def test_a_file_without_end_is_read_to_a_limit(tmp_path):
    (tmp_path / NAME).write_bytes(b"x" * (MAX_BYTES + 5))
    assert len(FileDeviceMemory(tmp_path).load()) == MAX_BYTES
