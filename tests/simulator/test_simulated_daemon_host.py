"""The simulated GPUs of a daemon: they stay over its restarts, as its engines do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from poolmgr.adapters.simulator.host import DAEMON_PREFIX, of_daemon
from poolmgr.errors import ClientError, Reason

pytestmark = pytest.mark.behaviour("DEV-4", "SIM-2")
GIB = 1024**3


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.name.startswith(DAEMON_PREFIX))


def test_the_next_daemon_with_the_same_scenario_finds_the_same_gpus_and_who_holds_them(tmp_path):
    first = of_daemon("2xA100-80GB", tmp_path, "boot")
    first.process_take(0, os.getpid(), GIB)
    first.set(1, "temperature", 77)
    again = of_daemon("2xA100-80GB", tmp_path, "boot")
    assert (again.path, again.uuids()) == (first.path, first.uuids())
    assert again.value(1, "temperature") == 77


@pytest.mark.parametrize(("scenario", "boot"), [("1xT4", "boot"), ("2xA100-80GB", "another boot")])
def test_another_scenario_or_another_boot_begins_anew_and_leaves_one_file(tmp_path, scenario, boot):
    first = of_daemon("2xA100-80GB", tmp_path, "boot")
    other = of_daemon(scenario, tmp_path, boot)
    assert other.path != first.path
    assert files(tmp_path) == [other.path.name]


def test_a_file_that_changed_is_another_scenario(tmp_path):
    scenario = tmp_path / "gpus.toml"
    scenario.write_text('[[gpu]]\nmodel = "T4"\n')
    first = of_daemon(str(scenario), tmp_path, "boot")
    scenario.write_text('[[gpu]]\nmodel = "L4"\n')
    assert of_daemon(str(scenario), tmp_path, "boot").path != first.path


def test_what_another_version_left_is_made_anew(tmp_path):
    first = of_daemon("1xT4", tmp_path, "boot")
    first.path.write_bytes(b"x" * 4096)
    assert len(of_daemon("1xT4", tmp_path, "boot").uuids()) == 1


def test_a_scenario_with_a_mistake_leaves_nothing(tmp_path):
    with pytest.raises(ClientError) as refused:
        of_daemon("2xA999", tmp_path, "boot")
    assert refused.value.reason is Reason.INVALID_SCENARIO
    assert files(tmp_path) == []
