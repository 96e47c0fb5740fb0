"""How many fsyncs a respawn costs, counted by strace in a run of its own: tracing is not free, so it is not timed."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path

from bench.common import parent_of
from bench.supervisors import Party
from bench.tracing import traced

SYNCS = ("fsync", "fdatasync", "sync_file_range")
# "PID SECONDS.MICROSECONDS fsync(3) = 0", wall time
_CALL = re.compile(r"^\d+ +(\d+\.\d+) (?:fsync|fdatasync|sync_file_range)\(")


def count_syncs(party: Party, daemon: int, log: Path, kills: int, settle: float) -> tuple[float, float] | None:
    """(on the path from the kill to the first line, in all) per respawn; None when it cannot be traced here.

    Counted in the daemon and in the shim, which is the child's parent.
    """
    with traced([daemon, parent_of(party.child)], SYNCS, log) as attached:
        windows = _kill(party, kills, settle) if attached else None
    return None if windows is None else count(log.read_text().splitlines(), windows)


def _kill(party: Party, kills: int, settle: float) -> list[tuple[float, float]]:
    """From the kill to the first line of each respawn, in Unix seconds."""
    windows = []
    for _ in range(kills):
        began = time.time()
        windows.append((began, began + party.respawn() / 1000))
        time.sleep(settle)
    return windows


def count(lines: Sequence[str], windows: Sequence[tuple[float, float]]) -> tuple[float, float]:
    times = [float(call[1]) for call in map(_CALL.match, lines) if call]
    on_path = sum(1 for at in times if any(began <= at <= ended for began, ended in windows))
    return on_path / len(windows), len(times) / len(windows)
