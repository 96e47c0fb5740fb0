"""Reads tables of a scenario with every mistake named by line and key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from poolmgr.adapters.simulator.positions import Path, key_name, line_of
from poolmgr.errors import ClientError, Reason

SIZES = {"": 1, "B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "KB": 10**3, "MB": 10**6, "GB": 10**9}
SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMG]?I?B?)\s*", re.IGNORECASE)
SHOWN_CHOICES = 12


@dataclass(frozen=True, slots=True)
class Document:
    text: str
    source: str

    def wrong(self, path: Path, problem: str, line: int | None = None) -> ClientError:
        """The error to raise, INVALID_SCENARIO; its numbers are `line`, `key` and `file`."""
        found = line if line is not None else line_of(self.text, path)
        where = f"{self.source}:{found}" if found else self.source
        key = key_name(path)
        numbers = {"key": key, "file": self.source} | ({"line": found} if found else {})
        return ClientError(Reason.INVALID_SCENARIO, f"{where}: {key}: {problem}" if key else f"{where}: {problem}",
                           numbers=numbers)  # fmt: skip


def parse_size(text: str) -> int | None:
    """Bytes of "10GiB", "512 MB" or "1024"; None where it is no size."""
    match = SIZE.fullmatch(text)
    unit = match[2].upper() if match else "?"
    return round(float(match[1]) * SIZES[unit]) if match and unit in SIZES else None


class Table:
    """One table of the document. What was not taken is unknown, and `done` says so."""

    def __init__(self, document: Document, path: Path, values: Any) -> None:
        self.document, self.path = document, tuple(path)
        if not isinstance(values, Mapping):
            raise document.wrong(self.path, "has to be a table")
        self.values: Mapping[str, Any] = values
        self.taken: set[str] = set()

    def wrong(self, key: str, problem: str) -> ClientError:
        return self.document.wrong((*self.path, key) if key else self.path, problem)

    def raw(self, key: str, default: Any = None) -> Any:
        self.taken.add(key)
        return self.values.get(key, default)

    def number(self, key: str, default: float | None = None, *, low: float = 0.0, high: float = 1e18) -> float:
        value = self.raw(key, default)
        if value is None:
            raise self.wrong(key, "is missing")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(key, f"has to be a number, not {value!r}")
        if not low <= value <= high:
            raise self.wrong(key, f"is {value}, outside of {low:g} to {high:g}")
        return value

    def whole(self, key: str, default: int | None = None, *, low: int = 0, high: int = 2**62) -> int:
        value = self.number(key, default, low=low, high=high)
        if not isinstance(value, int):
            raise self.wrong(key, f"has to be a whole number, not {value!r}")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        value = self.raw(key, default)
        if value is None:
            raise self.wrong(key, "is missing")
        if not isinstance(value, str):
            raise self.wrong(key, f"has to be a text, not {value!r}")
        return value

    def choice(self, key: str, choices: Iterable[str], default: str | None = None) -> str:
        value, known = self.text(key, default), tuple(choices)
        if value not in known:
            near = difflib.get_close_matches(value, known, n=3) or known[:SHOWN_CHOICES]
            raise self.wrong(key, f"is {value!r}; there are {', '.join(near)}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.raw(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, f"has to be true or false, not {value!r}")
        return value

    def size(self, key: str, default: int | None = None) -> int:
        value = self.raw(key, default)
        if isinstance(value, str):
            value = parse_size(value)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self.wrong(key, f'has to be bytes, such as "10GiB", not {self.values.get(key)!r}')
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        values = self.raw(key, [])
        if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
            raise self.wrong(key, "has to be a list of texts")
        return tuple(values)

    def tables(self, key: str) -> Iterator[Table]:
        values = self.raw(key, [])
        if not isinstance(values, list):
            raise self.wrong(key, f"has to be a list of tables: [[{key}]]")
        for i, value in enumerate(values):
            yield Table(self.document, (*self.path, key, i), value)

    def done(self) -> None:
        for key in self.values:
            if key not in self.taken:
                near = difflib.get_close_matches(key, self.taken, n=1)
                raise self.wrong(key, "is not known" + (f"; did you mean {near[0]!r}?" if near else ""))
