"""What the observer sees at this moment, by reading on in the file that it writes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.journal import Line


@dataclass(frozen=True, slots=True)
class Death:
    """`said`: `exit 3`, `signal 9` or `unknown`."""

    said: str


class Live:
    """The engines that the observer sees alive now, by reading on in its file."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._rest = b""
        self._engines: dict[tuple[object, object], dict[str, object]] = {}
        self._deaths: dict[tuple[int, int], Death] = {}

    def engines(self, pool_id: str) -> list[Line]:
        """As they were born, with their `ports` once they listen."""
        self._read()
        return [line for line in self._engines.values() if line["pool"] == pool_id]

    def died(self, pid: int, start: int) -> Death | None:
        """None until the observer knows of its end and its status."""
        self._read()
        return self._deaths.get((pid, start))

    def close(self) -> None:
        self._file.close()

    def _read(self) -> None:
        *lines, self._rest = (self._rest + self._file.read()).split(b"\n")
        for text in lines:
            line = json.loads(text)
            key = (line.get("pid"), line.get("start"))
            if line["event"] == "birth":
                self._engines[key] = line
            elif line["event"] == "port" and key in self._engines:
                self._engines[key]["ports"] = line["ports"]
            elif line["event"] == "death":
                self._engines.pop(key, None)
            elif line["event"] == "status":
                self._deaths[line["pid"], line["start"]] = Death(str(line["cause"]))
