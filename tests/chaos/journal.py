"""Files of JSON lines that show what is missing of them: every line is numbered, the last one says so."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.procs import now

END = "end"
Line = Mapping[str, object]


class Writer:
    """Appends lines, each with its number and the time; whole or not at all, for a line is one write."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._number = 0

    def write(self, event: str, **fields: object) -> int:
        """The time of the line, nanoseconds on the boot-time clock."""
        at = now()
        line = {"number": self._number, "at": at, "event": event, **fields}
        os.write(self._fd, json.dumps(line).encode() + b"\n")
        self._number += 1
        return at

    def close(self) -> None:
        """Writes the last line. A file without it was cut off."""
        self.write(END)
        os.close(self._fd)


@dataclass(frozen=True, slots=True)
class Journal:
    """`problem`: what is missing of the file; empty when it is whole."""

    lines: list[Line] = field(default_factory=list)
    problem: str = ""

    def of(self, *events: str) -> list[Line]:
        return [line for line in self.lines if line["event"] in events]


def read(path: Path) -> Journal:
    """What is whole of a file, and what is wrong with it."""
    if not path.exists():
        return Journal(problem=f"{path.name} is missing")
    lines: list[Line] = []
    for text in path.read_bytes().split(b"\n")[:-1]:
        try:
            line = json.loads(text)
        except ValueError:
            return Journal(lines, f"{path.name}: line {len(lines)} is damaged")
        if line.get("number") != len(lines):
            return Journal(lines, f"{path.name}: line {len(lines)} is missing")
        lines.append(line)
    if not lines or lines[-1]["event"] != END:
        return Journal(lines, f"{path.name} is cut off after line {len(lines) - 1}")
    return Journal(lines)
