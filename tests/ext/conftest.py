from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.ext import stub_driver


@pytest.fixture(scope="session")
def compiled_stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stub_driver.compiled(tmp_path_factory.mktemp("stub"))


@pytest.fixture
def stub(compiled_stub: Path, tmp_path: Path) -> stub_driver.Stub:
    """A copy: the loader gives one library per file, and the last test's answers are not this one's."""
    return stub_driver.Stub(Path(shutil.copy(compiled_stub, tmp_path / "libstub.so")))
