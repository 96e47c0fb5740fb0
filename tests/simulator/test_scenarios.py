"""Scenario files, shorthands, and the catalogue of GPU models (SIM-2)."""

import re
from pathlib import Path

import pytest

from poolmgr.adapters.simulator import catalogue
from poolmgr.adapters.simulator.faults import KINDS
from poolmgr.adapters.simulator.host import SimulatedHost
from poolmgr.adapters.simulator.scenario import Scenario, load
from poolmgr.adapters.simulator.waves import SERIES
from poolmgr.errors import ClientError, Reason

H100 = "[[gpu]]\nmodel = 'H100'\n"
T4 = "[[gpu]]\nmodel = 'T4'\n"


def refused(text, line=None, key=None):
    with pytest.raises(ClientError) as error:
        load(text)
    assert error.value.reason == Reason.INVALID_SCENARIO
    assert error.value.numbers.get("line") == line
    assert error.value.numbers["key"] == (key or "")
    return error.value.message


@pytest.mark.behaviour("DEV-4", "SIM-2")
def test_a_shorthand_names_counts_models_and_instances():
    scenario = load("2xA100-80GB+1xT4+a30[1g.6gb,2g.12gb]")
    assert [gpu.model.name for gpu in scenario.gpus] == ["NVIDIA A100-SXM4-80GB"] * 2 + ["Tesla T4", "NVIDIA A30"]
    assert [gpu.mig for gpu in scenario.gpus] == [None, None, None, ("1g.6gb", "2g.12gb")]


@pytest.mark.behaviour("SIM-2")
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("2xA100-81GB", "there are A100-80GB"),
        ("65xT4", "1 to 64 can be simulated"),
        ("0xT4", "has 0 GPUs"),
        ("A100++T4", "is not of the form"),
        ("T4[1g.5gb]", "has no MIG"),
        ("A100-40GB[1g.6gb]", "there are 1g.5gb"),
        ("/no/such/file.toml", "cannot be read"),
    ],
)
def test_a_shorthand_with_a_mistake_tells_what_there_is(text, told):
    assert told in refused(text)


@pytest.mark.behaviour("SIM-2")
@pytest.mark.parametrize(
    ("text", "line", "key", "told"),
    [
        ("name = 'x'\n[[gpu]]\nmodel = 'H1000'\n", 3, "gpu[1].model", "there are H100"),
        (H100 + "\n[[gpu]]\nmodel = 'H100'\ncolour = 3\n", 6, "gpu[2].colour", "is not known"),
        (H100 + "temperatur = 3\n", 3, "gpu[1].temperatur", "did you mean 'temperature'"),
        (H100 + "count = 0\n", 3, "gpu[1].count", "outside of 1 to 64"),
        (H100 + "count = '2'\n", 3, "gpu[1].count", "has to be a number"),
        (H100 + "utilization = 101\n", 3, "gpu[1].utilization", "outside of 0 to 100"),
        (H100 + "power = { wave = 'ram' }\n", 3, "gpu[1].power.wave", "there are ramp"),
        (H100 + "[gpu.power]\nwave = 'ramp'\nfrom = 1\nto = 2\n", 3, "gpu[1].power.seconds", "is missing"),
        (H100 + "power = { wave = 'replay', points = [[1, 2], [1, 3]] }\n", 3, "gpu[1].power.points", "rise"),
        (H100 + "power = { wave = 'replay', file = 'no.csv', column = 'a' }\n", 3, "gpu[1].power.file",
         "cannot be read"),
        (T4 + "mig = ['1g.5gb']\n", 3, "gpu[1].mig", "has no MIG"),
        (T4 + "set = { colour = 3 }\n", 3, "gpu[1].set.colour", "cannot be set"),
        (T4 + "unsupported = ['nvmlFoo']\n", 3, "gpu[1].unsupported", "neither a function"),
        (T4 + "uuid = 'GPU-1'\n", 3, "gpu[1].uuid", "of the form GPU-"),
        (T4 + "[[fault]]\nkind = 'xid'\n", 3, "fault[1].code", "is missing"),
        (T4 + "[[fault]]\nkind = 'xdi'\n", 4, "fault[1].kind", "there are xid"),
        (T4 + "[[fault]]\nkind = 'lost'\ngpu = 1\n", 5, "fault[1].gpu", "outside of 0 to 0"),
        (T4 + "[[fault]]\nkind = 'mismatch'\ngpu = 0\n", 5, "fault[1].gpu", "of the whole host"),
        (T4 + "[[process]]\ngpu = 0\nmemory = 'much'\n", 5, "process[1].memory", "has to be bytes"),
        (T4 + "[[process]]\ngpu = 0\nmemory = 1\ninstance = 0\n", 6, "process[1].instance", "has 0 MIG"),
        (T4 + "[topology]\nlink = [{ gpus = [0, 0], lanes = 1 }]\n", 4, "topology.link[1].gpus", "two different"),
        ("cuda = 'thirteen'\n" + T4, 1, "cuda", "of the form 13.0"),
        ("[[gpu]\nmodel = 'T4'\n", 1, "", "is not TOML"),
        ("gpu = 3\n", 1, "gpu", "has to be a list of tables"),
        ("gpu = [3]\n", 1, "gpu[1]", "has to be a table"),
        ("name = 'none'\n\n", None, "", "has 0 GPUs"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_file_is_told_with_line_and_key(text, line, key, told):
    assert told in refused(text, line, key)


@pytest.mark.behaviour("SIM-2")
def test_instances_that_do_not_fit_together_are_refused(tmp_path):
    with pytest.raises(ClientError, match="no room"):
        SimulatedHost(load("A100-40GB[4g.20gb,4g.20gb]"), tmp_path / "state")


@pytest.mark.behaviour("SIM-2")
def test_a_trace_of_a_file_is_read_beside_the_scenario(tmp_path):
    (tmp_path / "trace.csv").write_text("seconds,power,temperature\n0,60,34\n1,300,\n2.5,310,60\n")
    (tmp_path / "real.toml").write_text(
        H100 + "power = { wave = 'replay', file = 'trace.csv', column = 'power' }\n"
        "temperature = { wave = 'replay', file = 'trace.csv', column = 'temperature', repeat = false }\n"
    )
    waves = dict(load(tmp_path / "real.toml").gpus[0].waves)
    assert waves["power"].points == ((0, 60), (1, 300), (2.5, 310)) and waves["power"].period == 2.5
    assert waves["temperature"].points == ((0, 34), (2.5, 60)) and waves["temperature"].period == 0
    (tmp_path / "bad.toml").write_text(
        "[[gpu]]\nmodel='H100'\npower={wave='replay', file='trace.csv', column='watts'}\n"
    )
    with pytest.raises(ClientError, match=r"bad.toml:3: gpu\[1\].power.column: trace.csv has no column 'watts'"):
        load(tmp_path / "bad.toml")


@pytest.mark.behaviour("SIM-2")
def test_nvlinks_are_wired_as_the_models_are_sold_or_as_the_scenario_says(simulate):
    def peers(host, gpu):
        import pynvml as nv

        found = []
        handle = nv.nvmlDeviceGetHandleByIndex(gpu)
        for link in range(18):
            try:
                found.append(nv.nvmlDeviceGetNvLinkRemotePciInfo(handle, link).busId)
            except nv.NVMLError_NotSupported:
                continue
        return found

    assert len(peers(simulate("4xH100"), 0)) == 18
    assert len(peers(simulate("H100"), 0)) == 0, "there is nobody at the other end"
    mesh = peers(simulate("4xV100"), 0)
    assert sorted(set(mesh)) == ["00000000:02:00.0", "00000000:03:00.0", "00000000:04:00.0"] and len(mesh) == 6
    assert peers(simulate("2xRTX3090"), 0) == [], "bridges are bought separately"
    host = simulate("[[gpu]]\nmodel='RTX3090'\ncount=3\n[topology]\nlink=[{gpus=[0,2], lanes=4}]\n")
    assert peers(host, 0) == ["00000000:03:00.0"] * 4 and peers(host, 1) == []


@pytest.mark.behaviour("SIM-2")
def test_the_catalogue_has_twenty_models_and_each_figure_a_source():
    models = {model.name: model for model in catalogue.models().values()}
    assert len(models) >= 20
    for model in models.values():
        assert {"board", "device_id", "memory_mib", "bar1"} <= set(model.sources) and all(model.sources.values())
        assert bool(model.thermal) == ("thermal" in model.sources)
        assert bool(model.profiles) == ("mig" in model.sources)


@pytest.mark.behaviour("SIM-2", "DEV-1")
def test_bus_width_and_memory_clock_give_the_bandwidth_of_the_data_sheet():
    for model in catalogue.models().values():
        computed = 2 * model.memory_clock * model.bus_width / 8 / 1000
        assert computed == pytest.approx(model.bandwidth_gbs, rel=0.03), model.name


@pytest.mark.behaviour("SIM-2")
def test_profiles_fit_the_gpu_that_they_cut():
    for model in catalogue.models().values():
        for profile in model.profiles:
            assert profile.memory_mib * (1 if profile.count > 1 else 0.99) < model.memory_mib
            assert profile.sms <= model.sms and profile.slices <= model.mig_maximum
            assert all(
                start + profile.memory_slices <= (8 if model.mig_maximum == 7 else 4) for start in profile.starts
            )


@pytest.mark.behaviour("SIM-2")
def test_every_model_makes_a_host(simulate):
    import pynvml as nv

    for name in catalogue.models():
        host = simulate(name)
        handle = nv.nvmlDeviceGetHandleByIndex(0)
        assert nv.nvmlDeviceGetName(handle) == catalogue.find(name).name
        assert nv.nvmlDeviceGetMemoryInfo(handle).total == catalogue.find(name).memory_mib << 20
        assert isinstance(host.scenario, Scenario)


@pytest.mark.behaviour("SIM-2")
def test_the_scenario_of_the_documentation_is_sound(tmp_path):
    documentation = (Path(__file__).parents[2] / "docs" / "simulator.md").read_text()
    example = re.search(r"```toml\n(.*?)```", documentation, re.DOTALL)[1]
    host = SimulatedHost(load(example), tmp_path / "state")
    assert len(host.uuids()) == 3 and len(host.instances(2)) == 2
    for kind in KINDS:
        assert re.search(rf"^\| .*\b{kind}\b", documentation, re.MULTILINE), f"{kind} is not described"
    for series in SERIES:
        assert series in documentation
