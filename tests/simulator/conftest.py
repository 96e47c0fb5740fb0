"""A simulated host for one test, with nvidia-ml-py talking to it inside of this process."""

import ctypes

import pynvml
import pytest

from poolmgr.adapters.simulator.host import SimulatedHost, library_path
from poolmgr.adapters.simulator.scenario import load


@pytest.fixture
def simulate(tmp_path, monkeypatch):
    """simulate(scenario, init=True) -> host. nvidia-ml-py is pointed at the library itself: it is loaded only once."""
    started = []

    def start(scenario, *, init=True):
        host = SimulatedHost(load(scenario), tmp_path / f"state{len(started)}")
        monkeypatch.setenv("POOLMGR_SIM_STATE", str(host.path))
        monkeypatch.setattr(pynvml, "nvmlLib", ctypes.CDLL(str(library_path())))
        pynvml._nvmlGetFunctionPointer_cache.clear()
        started.append(init)
        if init:
            pynvml.nvmlInit()
        return host

    yield start
    for initialised in started:
        if initialised:
            pynvml.nvmlShutdown()
    pynvml._nvmlGetFunctionPointer_cache.clear()


@pytest.fixture
def library():
    return ctypes.CDLL(str(library_path()))
