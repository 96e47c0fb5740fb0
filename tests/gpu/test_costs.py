"""scripts/gpu_costs.py against a driver of which cost and periods are known."""

from __future__ import annotations

import json
import runpy

import pytest
from poolmgr_ext.nvml import Library
from poolmgr_ext.ring import Field

from poolmgr.adapters.simulator.host import SimulatedHost, library_path
from poolmgr.adapters.simulator.scenario import load
from tests.gpu.drivers import ROOT

costs = runpy.run_path(str(ROOT / "scripts" / "gpu_costs.py"))
SCENARIO = """
[[gpu]]
model = "H200"
utilization = { wave = "noise", value = 50, spread = 50 }
power = { wave = "noise", value = 400, spread = 100 }
temperature = 50
[[fault]]
at = 0
kind = "slow"
microseconds = 400
function = "nvmlDeviceGetPowerUsage"
[[fault]]
at = 0
kind = "slow"
microseconds = 2000
function = "nvmlDeviceGetMemoryInfo_v2"
"""
SECONDS = 5.0  # of reading: some 30 renewals of the slowest


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    host = SimulatedHost(load(SCENARIO), tmp_path_factory.mktemp("costs") / "state")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POOLMGR_SIM_STATE", str(host.path))
        library = Library(library_path())
        yield costs["measure"](library, None, 30, SECONDS)
        library.close()


def test_a_call_costs_what_the_driver_spends_in_it(measured):
    """No upper bound: this machine may be busy."""
    calls = measured["calls"]
    assert calls["nvmlDeviceGetPowerUsage"]["median_us"] >= 400
    assert calls["nvmlDeviceGetMemoryInfo_v2"]["median_us"] >= 2000
    for cost in calls.values():
        assert not cost["supported"] or cost["median_us"] <= cost["p99_us"] <= cost["most_us"]
    assert calls["nvmlDeviceGetMemoryInfo_v2"]["share"] >= 0.02
    assert "nvmlDeviceGetMemoryInfo_v2" in measured["too_expensive"]
    assert "nvmlDeviceGetMemoryInfo_v2" in measured["heavy_and_not_marked"]
    assert measured["share"] >= sum(calls[name]["share"] for name in measured["too_expensive"])


def test_what_a_device_does_not_support_has_no_cost(measured):
    assert measured["calls"]["nvmlDeviceGetFanSpeed"] == {"supported": False, "heavy": False}
    assert "fan" not in measured["fields"]


def test_a_period_is_how_often_the_driver_renews_a_value(measured):
    """The simulator renews utilisation every sixth of a second and power every tenth."""
    fields = measured["fields"]
    assert 130 <= fields["utilization_gpu"]["period_ms"] <= 200
    assert 70 <= fields["power"]["period_ms"] <= 130
    assert fields["temperature"]["period_ms"] is None and fields["temperature"]["changes"] == 0
    assert fields["energy"]["verdict"] == "at_every_reading"


@pytest.mark.parametrize(
    ("cadence", "period", "expected"),
    [
        (0.2, 0.17, "right"),
        (0.1, 0.17, "too_fast"),
        (0.1, None, "changed_too_seldom"),
        (0.1, 0.011, "at_every_reading"),
    ],
)
def test_a_cadence_that_is_faster_than_the_driver_is_called_so(cadence, period, expected):
    assert costs["verdict"](Field("power", "watts", "gauge", cadence), period, 0.01) == expected


def test_percentiles_are_by_nearest_rank_and_nothing_costs_less_than_nothing():
    assert costs["summary"]([3.0] * 98 + [9.0, 10.0], 1.0) == {
        "count": 100, "median_us": 2.0, "p99_us": 8.0, "most_us": 9.0,
    }  # fmt: skip
    assert costs["summary"]([1.0], 2.0)["median_us"] == 0
    steps = [(second * 10**9, float(second // 2)) for second in range(60)]
    assert costs["change_period"](steps) == (29, 2.0)
    assert costs["change_period"](steps[:9]) == (4, None)


def test_what_is_printed_is_json_with_a_line_per_call(measured):
    text = costs["shown"](measured)
    assert json.loads(text) == measured
    assert len(text.splitlines()) > len(measured["calls"]) + len(measured["fields"])
