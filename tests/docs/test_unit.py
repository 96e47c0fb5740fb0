"""The systemd unit says what the daemon relies on, and systemd understands it."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from poolmgr.config.load import load_config

UNIT = Path(__file__).resolve().parent.parent.parent / "deploy/poolmgr.service"


def service(text: str) -> configparser.SectionProxy:
    unit = configparser.ConfigParser(interpolation=None, strict=True)
    unit.optionxform = str  # type: ignore[assignment,method-assign] # systemd's keys know upper case
    unit.read_string(text)
    return unit["Service"]


def complaints(directory: Path, text: str) -> str:
    """What systemd says of a unit whose programs and user are there; nothing where there is no systemd."""
    if not shutil.which("systemd-analyze"):
        return ""
    text = re.sub(r"/opt/\S+/poolmgr", sys.executable, text).replace("User=poolmgr\n", "")
    path = directory / UNIT.name
    path.write_text(text)
    done = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True)
    return "\n".join(line for line in done.stderr.splitlines() if UNIT.name in line)


@pytest.mark.behaviour("PROC-8")
def test_a_stop_of_the_unit_leaves_engines_alone():
    assert service(UNIT.read_text())["KillMode"] == "process"
    assert service(UNIT.read_text())["OOMPolicy"] == "continue"


@pytest.mark.behaviour("PROC-5")
def test_the_unit_gives_the_daemon_a_cgroup_of_its_own_to_put_leaves_into():
    assert service(UNIT.read_text())["Delegate"] == "yes"


def test_the_daemon_takes_the_environment_of_the_unit():
    name, _, value = service(UNIT.read_text())["Environment"].partition("=")
    assert str(load_config(None, {name: value}, {}).config.state.dir) == "/var/lib/poolmgr"


def test_systemd_understands_the_unit_and_a_mistake_in_it_would_be_told(tmp_path):
    assert complaints(tmp_path, UNIT.read_text()) == ""
    if shutil.which("systemd-analyze"):
        assert "KillMod" in complaints(tmp_path, UNIT.read_text().replace("KillMode", "KillMod"))
