"""Who a process is, by /proc: whose engine, whose container, which user (TEL-6).

The driver tells pids as the host's own pid namespace has them; a daemon in a container of its own cannot look those up,
and finds nothing, unless it shares that namespace.
"""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Collection, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Final

from poolmgr.adapters.shim import procfs, wire
from poolmgr.model.claim import ProcessFacts

# `<own cgroup>/poolmgr/<engine id>`, as the engines' leaves are named.
_ENGINE = re.compile(r"/poolmgr/([0-9a-f]{32})(?:/|$)", re.MULTILINE)
# Docker, Podman, containerd and CRI-O name a container's cgroup by its id: `docker-<id>.scope`, `/docker/<id>`, ...
_CONTAINER = re.compile(r"(?:^|[/:-])([0-9a-f]{64})(?:\.scope)?(?:/|$)", re.MULTILINE)
_USERS: Final = 256  # names that are remembered


class ProcProcesses:
    """The port `ProcessInfo`."""

    def __init__(self, root: Path = Path("/proc")) -> None:
        self._root = root

    def look(self, pids: Collection[int]) -> Mapping[int, ProcessFacts]:
        return {pid: facts for pid in pids if (facts := self._facts(pid)) is not None}

    def _facts(self, pid: int) -> ProcessFacts | None:
        ticks = procfs.start_ticks(pid)
        if ticks is None:
            return None
        groups = self._read(pid, "cgroup")
        engine, container = _ENGINE.search(groups), _CONTAINER.search(groups)
        return ProcessFacts(
            pid,
            ticks,
            engine[1] if engine else self._marked(pid),
            container[1] if container else "",
            self._user(pid),
            self._read(pid, "comm").strip(),
        )

    def _marked(self, pid: int) -> str:
        """What its environment says, where no cgroup holds the engine together."""
        mark = f"{wire.ENGINE_ID_VARIABLE}="
        found = (item for item in self._read(pid, "environ").split("\0") if item.startswith(mark))
        return next(found, mark).removeprefix(mark)

    def _user(self, pid: int) -> str:
        try:
            return _name_of(os.stat(self._root / str(pid)).st_uid)
        except OSError:
            return ""

    def _read(self, pid: int, name: str) -> str:
        try:
            return (self._root / str(pid) / name).read_bytes().decode(errors="replace")
        except OSError:
            return ""


@lru_cache(_USERS)
def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
