"""What every bench shares: figures and their bars, the report, where state may lie, what /proc says of a process."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from shutil import rmtree

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
SOURCES = Path(__file__).resolve().parent
MEMORY_FILESYSTEMS = frozenset({"tmpfs", "ramfs", "devtmpfs"})
console = Console(highlight=False)


@dataclass(frozen=True, slots=True)
class Bar:
    """What a figure or ratio has to reach: at most, or at least, `bound`."""

    name: str
    bound: float
    at_most: bool

    def met_by(self, value: float) -> bool:
        """False for NaN: what was not measured is not reached."""
        return value <= self.bound if self.at_most else value >= self.bound

    def __str__(self) -> str:
        return f"at {'most' if self.at_most else 'least'} {self.bound:g}"


def at_most(name: str, bound: float) -> Bar:
    return Bar(name, bound, True)


def at_least(name: str, bound: float) -> Bar:
    return Bar(name, bound, False)


def judge(bars: Sequence[Bar], values: Mapping[str, float]) -> list[tuple[Bar, float, bool]]:
    """(bar, value, met) in the order of the bars. A value that is missing counts as NaN, which meets nothing."""
    measured = [(bar, values.get(bar.name, float("nan"))) for bar in bars]
    return [(bar, value, bar.met_by(value)) for bar, value in measured]


@dataclass(slots=True)
class Report:
    """What a bench found. `figures` carry their unit in the name; `ratios` have none."""

    bench: str
    bars: Sequence[Bar]
    figures: dict[str, float] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)

    def print(self, as_json: bool) -> None:
        """A line per bar, then, asked for, everything as one line of JSON, the last."""
        for bar, value, met in judge(self.bars, {**self.figures, **self.ratios}):
            console.print(f"[{'green]met' if met else 'red]below'}:[/] {bar.name} {value:.3g} ({bar})")
        if as_json:
            figures, ratios = ({k: round(v, 4) for k, v in each.items()} for each in (self.figures, self.ratios))
            print(json.dumps({"bench": self.bench, "figures": figures, "ratios": ratios}), flush=True)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of all values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, ceil(len(ordered) * percent / 100) - 1)]


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def arguments(doc: str) -> argparse.Namespace:
    """`json`, `quick`, `directory`."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="the figures as JSON in the last line")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions; ends within a minute")
    parser.add_argument(
        "--directory", type=Path, default=ROOT / ".state", help="where state is kept while it runs; must be on a disk"
    )
    return parser.parse_args()


def filesystem(path: Path, mountinfo: str) -> str:
    """The type of the file system that holds `path`; `mountinfo` as in proc(5)."""
    mounts = {}
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        mounts[Path(before.split()[4].replace("\\040", " "))] = after.split()[0]  # a later mount hides an earlier one
    resolved = path.resolve()
    return next(mounts[place] for place in (resolved, *resolved.parents) if place in mounts)


@contextmanager
def state_directory(parent: Path, bench: str) -> Iterator[Path]:
    """An empty directory on a real disk; removed unless the bench fails. SystemExit on a file system in memory."""
    parent.mkdir(parents=True, exist_ok=True)
    kind = filesystem(parent, Path("/proc/self/mountinfo").read_text())
    if kind in MEMORY_FILESYSTEMS:
        raise SystemExit(f"{parent} is on {kind}, where fsync costs nothing; name a disk with --directory")
    directory = parent.resolve() / f"bench-{bench}-{os.getpid()}"
    directory.mkdir()
    try:
        yield directory
    except BaseException:
        console.print(f"what it left is in {directory}")
        raise
    rmtree(directory)


def compile_c(name: str, into: Path) -> Path:
    """The program made of `bench/<name>.c`. CalledProcessError when gcc refuses it."""
    program = into / name
    subprocess.run(["gcc", "-O2", "-Wall", "-Werror", "-o", program, SOURCES / f"{name}.c"], check=True)
    return program


# Processes, from proc(5).


def cpu_seconds(pid: int) -> float:
    """User and system time of all threads so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def rss_mb(pid: int) -> float:
    """Resident memory in MB (10**6 bytes), shared pages included."""
    return _kilobytes(Path(f"/proc/{pid}/status"), ("VmRSS",)) / 1000


def private_mb(pid: int) -> float:
    """Resident memory in MB that no other process shares."""
    return _kilobytes(Path(f"/proc/{pid}/smaps_rollup"), ("Private_Clean", "Private_Dirty")) / 1000


def _kilobytes(path: Path, names: Sequence[str]) -> float:
    lines = (line.partition(":") for line in path.read_text().splitlines())
    return sum(int(value.split()[0]) for name, _, value in lines if name in names) * 1.024
