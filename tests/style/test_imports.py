"""Who may import whom: the contracts of .importlinter hold, and can fail."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
LINTER = Path(sys.executable).parent / "lint-imports"


def lint(checkout: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [LINTER, "--no-cache"], cwd=checkout, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_imports_go_one_way():
    result = lint(ROOT)
    assert result.returncode == 0, result.stdout
    assert "0 broken" in result.stdout


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the linter says of a copy in which several arrows were turned round."""
    checkout = tmp_path_factory.mktemp("checkout")
    shutil.copy(ROOT / ".importlinter", checkout)
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "poolmgr", checkout / "poolmgr", ignore=skip)
    shutil.copytree(ROOT / "ext/poolmgr_ext", checkout / "poolmgr_ext", ignore=skip)
    for module, imported in PLANTED:
        with (checkout / "poolmgr" / module).open("a") as file:
            file.write(f"\nimport {imported}\n")
    result = lint(checkout)
    assert result.returncode == 1, result.stdout
    return result.stdout


PLANTED = [
    ("core/leases.py", "poolmgr.adapters.probe"),
    ("model/lease.py", "poolmgr.ports"),
    ("adapters/probe.py", "poolmgr.core.leases"),
    ("adapters/store/memory.py", "poolmgr.adapters.ports"),
    ("runtime/bus.py", "grpc"),
    ("api/paging.py", "poolmgr.core.leases"),
    ("cli/show.py", "poolmgr.runtime.bus"),
    ("cli/show_plan.py", "poolmgr.offline"),
    ("offline.py", "poolmgr.convert.common"),
    ("config/schema.py", "poolmgr.ports"),
    ("convert/lease.py", "poolmgr.runtime.bus"),
]


@pytest.mark.parametrize(("module", "imported"), PLANTED)
def test_an_import_against_the_arrows_is_reported(broken, module, imported):
    importer = f"poolmgr.{module.removesuffix('.py').replace('/', '.')}"
    assert f"{importer} -> {imported}" in broken
