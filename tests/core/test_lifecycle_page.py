"""docs/lifecycle.md is drawn from the tables and up to date."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from poolmgr.core.lifecycle import TRANSITIONS

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "lifecycle.md"


def check(page: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "draw_lifecycle.py"), "--check", "--target", str(page)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_the_page_says_what_the_tables_say():
    result = check(PAGE)
    assert result.returncode == 0, result.stderr


def test_a_page_with_one_arrow_changed_or_none_at_all_is_found(tmp_path):
    changed = tmp_path / "lifecycle.md"
    changed.write_text(PAGE.read_text().replace("READY --> DRAINING", "READY --> STOPPED"))
    assert check(changed).returncode == 1
    assert check(tmp_path / "missing.md").returncode == 1


def test_the_diagram_has_every_transition_and_no_other():
    arrows = re.findall(r"^ +(\w+) --> (\w+): (.*)$", PAGE.read_text(), re.MULTILINE)
    drawn = {(source, trigger, target) for source, target, names in arrows for trigger in names.split(", ")}
    assert drawn == {(str(s), str(t), str(target)) for (s, t), target in TRANSITIONS.items()}
