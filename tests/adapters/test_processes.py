"""Who a process is, by a /proc of our own making and by the real one."""

from __future__ import annotations

import getpass
import os
import subprocess
import sys
from pathlib import Path

import pytest

from poolmgr.adapters.processes import ProcProcesses
from poolmgr.adapters.shim.wire import ENGINE_ID_VARIABLE

pytestmark = pytest.mark.behaviour("TEL-6")

ENGINE, CONTAINER = "0123456789abcdef" * 2, "0f" * 32
ME = os.getpid()  # a pid that has a start time


def look(root: Path, cgroup: str, environ: bytes = b"", comm: str = "python3\n"):
    directory = root / str(ME)
    directory.mkdir()
    (directory / "cgroup").write_text(cgroup)
    (directory / "environ").write_bytes(environ)
    (directory / "comm").write_text(comm)
    return ProcProcesses(root).look([ME])[ME]


@pytest.mark.parametrize(
    "cgroup",
    [
        f"0::/user.slice/app.slice/poolmgr/{ENGINE}\n",
        f"0::/poolmgr/{ENGINE}/worker\n",
        f"12:cpu:/\n0::/a/poolmgr/{ENGINE}\n",
    ],
)
def test_a_process_in_an_engines_leaf_is_of_that_engine(tmp_path, cgroup):
    assert look(tmp_path, cgroup).engine_id == ENGINE


def test_where_no_cgroup_holds_it_the_environment_names_the_engine(tmp_path):
    mark = f"PATH=/bin\0{ENGINE_ID_VARIABLE}={ENGINE}\0X=1\0".encode()
    assert look(tmp_path, "0::/\n", mark).engine_id == ENGINE


@pytest.mark.parametrize(
    "cgroup",
    [
        f"0::/system.slice/docker-{CONTAINER}.scope\n",
        f"0::/docker/{CONTAINER}\n",
        f"5:memory:/docker/{CONTAINER}\n0::/\n",
        f"0::/machine.slice/libpod-{CONTAINER}.scope/container\n",
        f"0::/kubepods.slice/pod1.slice/cri-containerd-{CONTAINER}.scope\n",
        f"0::/k8s.io/{CONTAINER}\n",
    ],
)
def test_a_process_in_a_container_is_of_that_container(tmp_path, cgroup):
    found = look(tmp_path, cgroup)
    assert (found.container_id, found.engine_id) == (CONTAINER, "")


@pytest.mark.parametrize(
    "cgroup", ["0::/\n", "0::/user.slice/user-1000.slice/session-3.scope\n", "0::/poolmgr/short\n", ""]
)
def test_any_other_process_is_of_no_engine_and_no_container(tmp_path, cgroup):
    found = look(tmp_path, cgroup, b"POOLMGR_ENGINE=x\0", "train\n")
    assert (found.engine_id, found.container_id, found.command) == ("", "", "train")


def test_a_real_child_has_its_user_its_command_and_its_start_time():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        found = ProcProcesses().look([child.pid, ME])
        assert found[child.pid].user == found[ME].user == getpass.getuser()
        assert found[child.pid].command.startswith("python")
        assert found[child.pid].start_ticks >= found[ME].start_ticks > 0
        child.communicate(b"\n")
    assert ProcProcesses().look([child.pid]) == {}
