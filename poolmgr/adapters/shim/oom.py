"""Whether the kernel's out-of-memory killer was at work in the engine's memory cgroup."""

from __future__ import annotations

import os


def counter_file(leaf: str | None) -> str | None:
    """The file that counts OOM kills for the engine: cgroup v2 `memory.events`, else v1 `memory.oom_control`.

    On v2 the nearest cgroup that has the memory controller; on v1 the engine inherits this process's cgroup.
    """
    mounts = _mounts()
    if leaf is not None and "cgroup2" in mounts:
        directory = leaf
        while directory.startswith(mounts["cgroup2"]):
            if os.path.exists(path := os.path.join(directory, "memory.events")):
                return path
            directory = os.path.dirname(directory)
    if "memory" in mounts:
        path = os.path.join(mounts["memory"] + _own_v1_memory_cgroup(), "memory.oom_control")
        return path if os.path.exists(path) else None
    return None


def kills(path: str | None) -> int:
    """The `oom_kill` count; 0 when the host does not tell."""
    if path is None:
        return 0
    try:
        with open(path) as file:
            return next((int(line.split()[1]) for line in file if line.startswith("oom_kill ")), 0)
    except OSError:  # the cgroup is gone, and with it the evidence
        return 0


def _mounts() -> dict[str, str]:
    """Mount points: "cgroup2" and, for v1, "memory"."""
    mounts = {}
    with open("/proc/self/mountinfo") as file:
        for line in file:
            fields, kind = (half.split() for half in line.split(" - ", 1))
            if kind[0] == "cgroup2":
                mounts["cgroup2"] = fields[4]
            elif kind[0] == "cgroup" and "memory" in kind[2].split(","):
                mounts["memory"] = fields[4]
    return mounts


def _own_v1_memory_cgroup() -> str:
    with open("/proc/self/cgroup") as file:
        for line in file:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            if "memory" in controllers.split(","):
                return path.rstrip("/")
    return ""
