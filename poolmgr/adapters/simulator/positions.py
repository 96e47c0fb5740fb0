"""Where a key stands in a TOML document: the parser tells no positions."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from typing import Any

Path = Sequence[str | int]


def key_name(path: Path) -> str:
    """`gpu[1].power.from`: counted from 1, as people count."""
    named = ""
    for part in path:
        named += f"[{part + 1}]" if isinstance(part, int) else f".{part}" if named else part
    return named


def line_of(text: str, path: Path) -> int | None:
    """The line from 1 where the key, or the nearest table around it, begins; None where nothing of it is there.

    A document cut after a line is a document again, unless the cut is inside of a value of several lines.
    """
    lines = text.split("\n")
    for depth in range(len(path), 0, -1):
        start = 1
        for cut in range(1, len(lines) + 1):
            table = _parse("\n".join(lines[:cut]))
            if table is None:
                continue
            if _holds(table, path[:depth]):
                return start
            start = cut + 1
    return None


def syntax_line(error: tomllib.TOMLDecodeError) -> int | None:
    found = re.search(r"at line (\d+)", str(error))
    return int(found[1]) if found else None


def _parse(text: str) -> dict[str, Any] | None:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return None


def _holds(table: Any, path: Path) -> bool:
    for part in path:
        if isinstance(part, int):
            if not isinstance(table, list) or len(table) <= part:
                return False
        elif not isinstance(table, dict) or part not in table:
            return False
        table = table[part]
    return True
