"""The bugs that are planted, as `planted.toml` lists them."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
MANIFEST = HERE / "planted.toml"


@dataclass(frozen=True, slots=True)
class Bug:
    """`behaviour`: the id of the rule that it breaks. `found_by`: sim or chaos. `not_planted`: why it has no patch."""

    name: str
    behaviour: str
    breaks: str
    file: str
    found_by: str
    patch: Path
    not_planted: str = ""
    note: str = ""


def load(manifest: Path = MANIFEST) -> list[Bug]:
    """In the order of the manifest, whose patches stand beside it."""
    entries = tomllib.loads(manifest.read_text())["bug"]
    return [Bug(patch=manifest.parent / f"{entry['name']}.patch", **entry) for entry in entries]


def for_the_simulator(bugs: list[Bug]) -> list[Bug]:
    return [bug for bug in bugs if bug.found_by == "sim" and not bug.not_planted]
