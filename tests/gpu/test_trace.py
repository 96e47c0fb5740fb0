"""scripts/record_trace.py: what it records of the simulated driver is what a replay of it shows (SIM-2)."""

from __future__ import annotations

import csv
import runpy

import pytest
from poolmgr_ext import simstate
from poolmgr_ext.nvml import Library

from poolmgr.adapters.simulator.host import SimulatedHost, library_path
from poolmgr.adapters.simulator.scenario import load
from tests.gpu.drivers import ROOT

trace = runpy.run_path(str(ROOT / "scripts" / "record_trace.py"))
MICROSECOND = 1000  # what the file's times are rounded to
RECORDED_SECONDS = 2.5
SCENARIO = """
[[gpu]]
model = "H200"
temperature = { wave = "ramp", from = 30, to = 90, seconds = 2 }
power = { wave = "noise", value = 400, spread = 100 }
utilization = { wave = "step", from = 0, to = 98, seconds = 0.7, repeat = true }
clock_sm = { wave = "ramp", from = 345, to = 1980, seconds = 3 }
memory_used = { wave = "ramp", from = 0, to = 1e11, seconds = 3 }
pcie_tx = 1500
[[gpu]]
model = "RTX4090"
fan = { wave = "sine", value = 50, spread = 40, seconds = 2 }
temperature = false
"""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """(traces, the scenario that was written)"""
    folder = tmp_path_factory.mktemp("trace")
    host = SimulatedHost(load(SCENARIO), folder / "state")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POOLMGR_SIM_STATE", str(host.path))
        library = Library(library_path())
        traces = trace["record"](library, RECORDED_SECONDS, 20.0)
        yield traces, trace["save"](library, traces, folder / "out")
        library.close()


def test_a_trace_has_every_series_that_the_device_told(recorded):
    first, second = recorded[0]
    assert {"temperature", "power", "utilization", "clock_sm", "memory_used", "pcie_tx"} <= first.columns.keys()
    assert "fan" in second.columns and "temperature" not in second.columns and "fan" not in first.columns
    assert len(first.columns["clock_sm"]) >= 20
    assert {value for _, value in first.columns["pcie_tx"]} == {1500.0}


@pytest.mark.behaviour("SIM-2")
def test_a_replay_shows_at_each_moment_what_was_recorded_then(recorded, tmp_path):
    traces, path = recorded
    scenario = load(path)
    state = SimulatedHost(scenario, tmp_path / "state").state
    begin = simstate.now()
    for gpu, each in enumerate(traces):
        waves = dict(scenario.gpus[gpu].waves)
        for series, points in each.columns.items():
            wave = waves[series]
            # From a time that we know, and renewed at every call: what the driver makes of it is not asked here.
            state.set_wave(gpu, series, wave.kind, period=wave.period, points=wave.points, from_ns=begin)
            shown = [state.series(gpu, series, begin + at - each.begin_ns + MICROSECOND) for at, _ in points[:-1]]
            assert shown == pytest.approx([value for _, value in points[:-1]], rel=1e-9), series


def test_what_a_device_did_not_tell_the_replay_does_not_either(recorded, tmp_path):
    host = SimulatedHost(load(recorded[1]), tmp_path / "state")
    assert host.value(1, "temperature") is None and host.value(0, "fan") is None
    assert host.value(0, "pcie_tx") == 1500


def test_the_file_is_small_where_nothing_changes_and_every_column_ends_with_it(recorded):
    traces, scenario = recorded
    rows = list(csv.DictReader((scenario.parent / "gpu0.csv").read_text().splitlines()))
    assert list(rows[0]) == ["seconds", *traces[0].columns]
    assert all(rows[0].values()) and all(rows[-1].values())
    assert sum(bool(row["pcie_tx"]) for row in rows) == 2
    assert float(rows[-1]["seconds"]) == pytest.approx((traces[0].end_ns - traces[0].begin_ns) / 1e9, abs=1e-5)
