"""Engines' cgroup v2 leaves, under the daemon's own cgroup: `<own>/poolmgr/<engine id>`."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from poolmgr.adapters.shim import linux

_GROUP = "poolmgr"


class Hierarchy:
    """The cgroup v2 mount. `root` is the cgroup that the mount point shows, "/" but in containers."""

    def __init__(self, mount: Path, root: str) -> None:
        self._mount = mount
        self._root = root

    @classmethod
    def find(cls) -> Hierarchy | None:
        """None on a host without a cgroup v2 mount (unified or hybrid)."""
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            mount, filesystem = (half.split() for half in line.split(" - ", 1))
            if filesystem[0] == "cgroup2":
                return cls(Path(mount[4]), mount[3])
        return None

    def directory_of(self, pid: int | str) -> Path | None:
        """Where a live process is; None when it has gone or lies outside of the mount."""
        try:
            lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            return None
        path = next((line[3:] for line in lines if line.startswith("0::")), None)
        if path is None or os.path.commonpath((self._root, path)) != self._root:
            return None
        return self._mount / os.path.relpath(path, self._root)

    def place_for_leaves(self) -> Path | None:
        """The directory that leaves go into; None where engines cannot be born in a leaf and killed by it.

        Cloning into a leaf needs write access to `cgroup.procs` of the nearest common ancestor, which is our own
        cgroup (cgroups(7)); `cgroup.kill` came with Linux 5.14.
        """
        own = self.directory_of("self")
        if own is None or not os.access(own / "cgroup.procs", os.W_OK) or not linux.has_clone3():
            return None
        place = own / _GROUP
        try:
            place.mkdir(exist_ok=True)
        except OSError:
            return None
        return place if (place / "cgroup.kill").exists() else None


@contextmanager
def _unless_removed() -> Iterator[None]:
    """Passes over a cgroup that is not there, or goes while one of its files is open (ENODEV)."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENODEV):
            raise


class Leaf:
    """One engine's cgroup. A leaf that is not there is empty.

    A cgroup that `cgroup.kill` was written to once is spent: Linux 6.18 kills at birth whatever is cloned into it
    later (the clone compares the kill count of its parent's cgroup with that of the new one). Anybody may have done
    that, so a leaf is made anew for every start: 0.1 ms.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def create(self) -> None:
        """Makes an empty leaf that was never killed. Raises OSError."""
        self.remove()
        self.path.mkdir(parents=True)

    def populated(self) -> bool:
        """Whether a live process is in it or below; zombies do not count."""
        with _unless_removed():
            return "populated 1" in (self.path / "cgroup.events").read_text()
        return False

    def open_events(self) -> int | None:
        """A descriptor of `cgroup.events`, for POLLPRI."""
        with _unless_removed():
            return os.open(self.path / "cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
        return None

    def kill(self) -> None:
        """SIGKILL to everything in it and below, forks in flight included."""
        with _unless_removed():
            (self.path / "cgroup.kill").write_text("1")

    def pids(self) -> list[int]:
        found: list[int] = []
        for directory, _, _ in os.walk(self.path):
            with _unless_removed():
                found += map(int, Path(directory, "cgroup.procs").read_text().split())
        return found

    def cpu_seconds(self) -> float | None:
        """What was computed in it and below, by processes that have ended too; needs no controller (cgroup-v2.rst)."""
        with suppress(OSError, ValueError):
            for line in (self.path / "cpu.stat").read_text().splitlines():
                name, value = line.split()
                if name == "usage_usec":
                    return int(value) / 1_000_000
        return None

    def remove(self) -> None:
        """Removes it with whatever cgroups the engine made inside. Raises OSError (EBUSY) while it is populated."""
        for directory, _, _ in os.walk(self.path, topdown=False):
            with suppress(FileNotFoundError):
                os.rmdir(directory)
