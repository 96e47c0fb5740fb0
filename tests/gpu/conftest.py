"""One suite, every driver that there is (SIM-4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pynvml
import pytest
from poolmgr_ext.nvml import Library

from tests.gpu.drivers import DriverUnderTest, load_for_peer, real, simulated, why_no_real_driver
from tests.gpu.sampling import Recording, record

ONLY_SIMULATED = "no NVIDIA driver on this host: only the simulated driver was tested"
ANNOUNCER = "test_a_real_driver_is_tested_where_this_host_has_one"
_REMARKS: list[str] = []
_LEFT_OUT: list[str] = []


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "driver" in metafunc.fixturenames:
        names = ["simulated"]
        if metafunc.definition.get_closest_marker("gpu"):
            names = []  # what only a real one can show
        if not why_no_real_driver() or not names:
            names.append(pytest.param("real", marks=pytest.mark.gpu))
        metafunc.parametrize("driver", names, indirect=True, scope="module")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where there is no real driver, one test says so for all that need one."""
    needing = [item for item in items if "tests/gpu/" in item.nodeid and item.get_closest_marker("gpu")]
    left_out = [item for item in needing if ANNOUNCER not in item.name]
    if why_no_real_driver() and left_out:
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)
        _LEFT_OUT[:] = [str(len(left_out))]


@pytest.fixture(scope="module")
def driver(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> DriverUnderTest:
    if request.param == "simulated":
        return simulated(tmp_path_factory.mktemp("simulated"))
    if why_no_real_driver():
        left = f"; {_LEFT_OUT[0]} tests that only a real one can pass are left out" if _LEFT_OUT else ""
        pytest.skip(f"gpu: {ONLY_SIMULATED} ({why_no_real_driver()}){left}")
    return real()


@pytest.fixture(scope="module")
def variables(driver: DriverUnderTest) -> Iterator[None]:
    """The simulated library is told by a variable of this process where its state is."""
    with pytest.MonkeyPatch.context() as patch:
        if "POOLMGR_SIM_STATE" in driver.environment:
            patch.setenv("POOLMGR_SIM_STATE", driver.environment["POOLMGR_SIM_STATE"])
        yield


@pytest.fixture
def library(driver: DriverUnderTest, variables: None) -> Iterator[Library]:
    """Opened, and not discovered yet."""
    opened = Library(driver.library)
    yield opened
    opened.close()


@pytest.fixture
def peer(driver: DriverUnderTest, variables: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[pynvml]]:
    """nvidia-ml-py on the same driver, initialised."""
    monkeypatch.setattr(pynvml, "nvmlLib", load_for_peer(driver))
    pynvml._nvmlGetFunctionPointer_cache.clear()
    pynvml.nvmlInit()
    yield pynvml
    pynvml.nvmlShutdown()
    pynvml._nvmlGetFunctionPointer_cache.clear()


@pytest.fixture(scope="module")
def recording(
    driver: DriverUnderTest, variables: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Recording]:
    """Every field of every device, for long enough that a field that nobody supports is known to be one."""
    made = record(driver, tmp_path_factory.mktemp("ring") / "ring")
    yield made
    made.close()


@pytest.fixture
def remark() -> Callable[[str], None]:
    """For what a real driver does otherwise and may: shown at the end, for docs/gpu.md."""
    return lambda text: _REMARKS.append(text) if text not in _REMARKS else None


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for text in _REMARKS:
        terminalreporter.write_line(f"remark: {text}")
    if why_no_real_driver():
        terminalreporter.write_line(ONLY_SIMULATED)
