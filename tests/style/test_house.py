"""The house rules that no linter knows hold, and their checker can fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts import check_house

LONG = "def long():\n" + "    x = 1\n" * check_house.MAX_FUNCTION_LINES
LIAR = "def liar(x):  # noqa: C901\n    match x:\n        case 1:\n            x += 1\n            return x\n"
FLAT = "def flat(x):  # noqa: C901\n    match x:\n        case 1:\n            return x\n"


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty house of our own making."""
    monkeypatch.setattr(check_house, "ROOT", tmp_path)
    return tmp_path


def found_in(house: Path, name: str, text: str) -> list[str]:
    path = house / name
    path.parent.mkdir(parents=True)
    path.write_text(text)
    problems, _ = check_house.problems([path])
    return problems


def test_the_house_rules_hold(capsys):
    assert check_house.main() == 0, capsys.readouterr().out
    assert f"exceptions: {len(check_house.EXCEPTIONS)}/8" in capsys.readouterr().out


def test_the_checker_looks_at_every_module_and_not_at_generated_ones():
    names = {str(path.relative_to(check_house.ROOT)) for path in check_house.product_files()}
    written = {str(path.relative_to(check_house.ROOT)) for path in (check_house.ROOT / "poolmgr").rglob("*.py")}
    assert {name for name in written if not name.startswith("poolmgr/v1/")} <= names
    assert "ext/poolmgr_ext/sockdiag.pyx" in names
    assert not any(name.startswith("poolmgr/v1/") for name in names)


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("poolmgr/core/a.py", LONG, "poolmgr/core/a.py:long has 51 lines, the limit is 50"),
        ("poolmgr/api/a.py", "x = 1\n" * 401, "poolmgr/api/a.py has 401 lines, the limit is 400"),
        ("ext/poolmgr_ext/a.pyx", "x = 1\n" * 401, "ext/poolmgr_ext/a.pyx has 401 lines, the limit is 400"),
        ("poolmgr/core/a.py", "import time\n", "poolmgr/core/a.py:1 core imports time"),
        ("poolmgr/core/a.py", "from asyncio import sleep\n", "poolmgr/core/a.py:1 core imports asyncio"),
        ("poolmgr/core/a.py", "def f():\n    import os.path\n", "poolmgr/core/a.py:2 core imports os.path"),
        ("poolmgr/runtime/a.py", "from random import random\n", "poolmgr/runtime/a.py:1 runtime imports random"),
        (
            "poolmgr/runtime/a.py",
            "asyncio.create_task(x)\n",
            "poolmgr/runtime/a.py makes a task outside runtime/tasks.py",
        ),
        ("poolmgr/api/a.py", "from poolmgr.api.b import _c\n", "poolmgr/api/a.py imports the private _c"),
        ("poolmgr/core/a.py", LIAR, "poolmgr/core/a.py:liar is marked as a flat match and is none"),
    ],
)
def test_a_planted_break_is_reported(house, name, text, problem):
    assert found_in(house, name, text) == [problem]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("poolmgr/core/a.py", FLAT),
        ("poolmgr/core/a.py", LONG.replace("    x = 1\n", "", 1)),
        ("poolmgr/runtime/a.py", "import asyncio\n"),
        ("poolmgr/adapters/a.py", "import os\nimport time\n"),
    ],
)
def test_what_is_allowed_is_not_reported(house, name, text):
    assert found_in(house, name, text) == []
