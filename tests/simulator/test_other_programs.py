"""Other people's programs, unchanged, against the simulated driver; and `poolmgr sim` (SIM-3)."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from poolmgr.adapters.simulator.host import LiveHost, SimulatedHost, environment, library_path
from poolmgr.adapters.simulator.scenario import load
from poolmgr.cli.main import main

BIN = Path(sys.executable).parent
SCENARIO = """
name = "shown"
driver = "570.86.15"
cuda = "12.8"
[[gpu]]
model = "A100-80GB"
utilization = 77
temperature = 66
power = 222
encoder = 3
[[gpu]]
model = "RTX4090"
fan = 41
temperature = 51
[[gpu]]
model = "A100-40GB"
mig = ["3g.20gb", "2g.10gb"]
"""


def run(*command, env=None, **options):
    return subprocess.run([str(c) for c in command], env=env or os.environ, capture_output=True, text=True, timeout=60,
                          **options)  # fmt: skip


@pytest.fixture
def shown(tmp_path):
    host = SimulatedHost(load(SCENARIO), tmp_path / "state")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as holder:
        host.process_take(0, holder.pid, 3 << 30, load=70)
        host.process_take(2, holder.pid, 1 << 30, instance=1)
        yield host, os.environ | environment(host.path), holder.pid
        holder.kill()


@pytest.mark.behaviour("SIM-3")
def test_gpustat_shows_the_scenarios_numbers(shown):
    host, env, pid = shown
    done = run(BIN / "gpustat", "--json", env=env)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["driver_version"] == "570.86.15"
    first, second, parted = told["gpus"]
    assert first["uuid"] == host.uuid(0)
    assert (first["temperature.gpu"], first["utilization.gpu"], first["power.draw"]) == (66, 77, 222)
    assert (first["enforced.power.limit"], first["memory.total"], first["memory.used"]) == (400, 81920, 3072)
    assert first["utilization.enc"] == 3
    assert [(p["pid"], p["gpu_memory_usage"]) for p in first["processes"]] == [(pid, 3072)]
    assert (second["name"], second["fan.speed"], second["temperature.gpu"]) == ("NVIDIA GeForce RTX 4090", 41, 51)
    assert parted["utilization.gpu"] is None


@pytest.mark.behaviour("SIM-3")
def test_nvitop_shows_the_scenarios_numbers(shown):
    _, env, pid = shown
    done = run(BIN / "nvitop", "--once", "--no-unicode", env=env | {"COLUMNS": "100"})
    assert done.returncode == 0, done.stderr
    text = done.stdout
    assert "Driver Version: 570.86.15" in text and "CUDA Driver Version: 12.8" in text
    assert re.search(r"N/A +66C +P0 +222W / 400W \| +3072MiB / 80\.00GiB \| +77%", text), text
    assert re.search(r"41% +51C .* / 450W", text), text
    assert re.search(r"2:1 +2g\.10gb @ GI/CI: 3/0 \| +1024MiB / +9856MiB", text), text
    assert re.search(rf"0 +{pid} C .* 3072MiB", text), text
    assert "Error" not in done.stderr and "FunctionNotFound" not in done.stderr


@pytest.mark.behaviour("SIM-3")
def test_nvidia_ml_py_finds_it_by_itself_in_a_program_of_its_own(shown):
    _, env, _ = shown
    program = "import pynvml as n; n.nvmlInit(); print(n.nvmlDeviceGetName(n.nvmlDeviceGetHandleByIndex(1)))"
    assert run(sys.executable, "-c", program, env=env).stdout == "NVIDIA GeForce RTX 4090\n"


def test_a_link_to_a_library_that_has_moved_is_made_again(shown):
    host, _, _ = shown
    link = host.path.with_name(host.path.name + ".lib") / "libnvidia-ml.so.1"
    link.unlink()
    link.symlink_to("/no/such/library.so")
    environment(host.path)
    assert link.resolve() == library_path().resolve()


@pytest.mark.behaviour("SIM-3")
def test_sim_run_gives_a_program_simulated_gpus_and_exits_as_it_does():
    program = "import pynvml as n, sys; n.nvmlInit(); print(n.nvmlDeviceGetCount()); sys.exit(7)"
    done = run(BIN / "poolmgr", "sim", "run", "2xA100-80GB+1xT4", "--", sys.executable, "-c", program)
    assert (done.returncode, done.stdout) == (7, "3\n"), done.stderr
    state = re.search(r"state in (\S+)", done.stderr)[1]
    assert not Path(state).exists(), "the state ends with the program"


@pytest.fixture
def command(capsys):
    """command(*arguments) -> (exit status, stdout, stderr), in this process: starting one takes a second."""

    def call(*arguments):
        with pytest.raises(SystemExit) as end:
            main([str(a) for a in arguments])
        return (end.value.code or 0, *capsys.readouterr())

    return call


@pytest.mark.behaviour("SIM-2")
def test_sim_set_and_fault_change_it_live_and_watch_shows_it(shown, command, monkeypatch):
    host, env, _ = shown
    monkeypatch.delenv("POOLMGR_SIM_STATE", raising=False)
    nowhere = command("sim", "set", "0", "temperature=3")
    assert nowhere[0] == 1 and "state file" in nowhere[2]
    monkeypatch.setenv("POOLMGR_SIM_STATE", env["POOLMGR_SIM_STATE"])
    assert command("sim", "set", "0", "temperature=80", "power=none", "pcie_replays=3", "memory_used=2GiB")[0] == 0
    assert host.value(0, "temperature") == 80 and host.value(0, "power") is None and host.value(0, "pcie_replays") == 3
    assert host.value(0, "memory_used") == 2 << 30
    assert command("sim", "fault", "lost", "--gpu", host.uuid(1))[0] == 0
    assert host.value(1, "lost") == 1
    assert command("sim", "fault", "mig-create", "profile=1g.5gb", "--gpu", "2")[0] == 0
    assert len(LiveHost(host.path).instances(2)) == 3
    text = command("sim", "watch", "--count", "1")[1]
    assert re.search(rf"{host.uuid(1)}.*lost", text) and re.search(r"0 +GPU-\S+ +77 +80 +- ", text), text
    for wrong in ("temprature=3", "temperature", "temperature=hot"):
        status, _, told = command("sim", "set", "0", wrong)
        assert status == 1 and wrong.partition("=")[0] in told
    assert command("sim", "fault", "mig-destroy")[0] == 1


@pytest.mark.behaviour("SIM-2")
def test_sim_check_tells_line_and_key(tmp_path, command):
    (tmp_path / "bad.toml").write_text("[[gpu]]\nmodel = 'H100'\ncount = 99\n")
    status, _, told = command("sim", "check", tmp_path / "bad.toml")
    assert status == 1 and f"{tmp_path / 'bad.toml'}:3: gpu[1].count" in told
    status, text, _ = command("sim", "check", "8xH200")
    assert status == 0 and "8 GPUs" in text
    assert "NVIDIA H200" in command("sim", "models")[1]


def test_sim_run_tells_what_it_cannot_run(command):
    assert command("sim", "run", "T4", "--", "/no/such/program")[0] == 127
    status, _, told = command("sim", "run", "T5", "--", "true")
    assert status == 1 and "INVALID_SCENARIO" in told


def test_programs_of_others_are_installed():
    """Without them the tests above would show nothing."""
    assert shutil.which("nvitop", path=BIN) and shutil.which("gpustat", path=BIN)
