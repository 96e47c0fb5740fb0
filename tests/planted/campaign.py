"""Who finds which planted bug, and how soon."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.planted.manifest import Bug
from tests.planted.trees import apply, copy_tree

MIN_SHARE = 0.95
STEPS = (100, 1_000)  # seeds, before scenarios and then crash points have their turn
POINTS_EVERY = 10

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Stretch:
    """What is tried next: the words of `tests.planted.search`, and how many seeds have been tried at its begin."""

    kind: str
    first: int
    stop: int

    @property
    def words(self) -> list[str]:
        return [self.kind, str(self.first), str(self.stop)]


def stretches(seeds: int, points_every: int = POINTS_EVERY) -> Iterator[Stretch]:
    """Rising counts of seeds; the scenarios and a sample of their crash points in between, for they cost less."""
    first, *rest = sorted({min(step, seeds) for step in (*STEPS, seeds)})
    yield Stretch("seeds", 0, first)
    yield Stretch("scenarios", 0, 1)
    if points_every:
        yield Stretch("points", 0, points_every)
    for stop in rest:
        yield Stretch("seeds", first, stop)
        first = stop


@dataclass(slots=True)
class Search:
    """One bug. `seeds`: how many were tried until it was found, or in vain."""

    bug: Bug
    tree: Path
    seeds: int = 0
    run: str = ""
    rule: str = ""
    text: str = ""

    @property
    def found(self) -> bool:
        return bool(self.rule)


@dataclass(slots=True)
class Result:
    searches: list[Search]
    clean: list[dict[str, str]] = field(default_factory=list)
    clean_runs: int = 0

    def figures(self) -> dict[str, object]:
        found = [s for s in self.searches if s.found]
        return {
            "bugs": len(self.searches),
            "found": len(found),
            "missed": [s.bug.name for s in self.searches if not s.found],
            "share": round(len(found) / len(self.searches), 4) if self.searches else 0.0,
            "seeds_p50": int(statistics.median(s.seeds for s in found)) if found else None,
            "found_by_seeds": sum(1 for s in found if s.run.isdigit()),
            "found_by_scenarios": sum(1 for s in found if not s.run.isdigit()),
            "clean_runs": self.clean_runs,
            "clean_violations": len(self.clean),
        }

    @property
    def good(self) -> bool:
        found = sum(1 for s in self.searches if s.found)
        return not self.clean and found >= MIN_SHARE * len(self.searches)


def campaign(bugs: list[Bug], root: Path, seeds: int, jobs: int, say: Say, points_every: int = POINTS_EVERY) -> Result:
    """Each bug in a copy of `root`, until it is found; and `root` itself over all the runs that any bug needed."""
    with tempfile.TemporaryDirectory(prefix="poolmgr-planted-") as directory, ThreadPoolExecutor(jobs) as pool:
        clean = copy_tree(root, Path(directory, "clean"))
        result = Result([Search(bug, planted(bug, clean, Path(directory, bug.name))) for bug in bugs])
        for stretch in stretches(seeds, points_every):
            left = [search for search in result.searches if not search.found]
            if not left:
                break
            clean_runs(clean, stretch, result, pool, jobs)
            dirty = sorted({one["rule"] for one in result.clean})
            for search in pool.map(lambda one: seek(one, stretch, dirty), left):  # noqa: B023 - done within the turn
                if search.found:
                    bug = search.bug
                    say(f"{bug.name} ({bug.behaviour}): {search.rule} in {search.run}: {search.text[:120]}")
        say(f"clean tree: {len(result.clean)} violations in {result.clean_runs} runs")
        for one in result.clean[:20]:
            say(f"    {one['rule']} in {one['run']}: {one['text'][:160]}")
    return result


def planted(bug: Bug, clean: Path, target: Path) -> Path:
    """Raises DoesNotFitError."""
    copy_tree(clean, target)
    apply(bug.patch, target)
    return target


def clean_runs(tree: Path, stretch: Stretch, result: Result, pool: ThreadPoolExecutor, jobs: int) -> None:
    """The same runs without a bug. A rule that is broken all the same proves nothing of any bug."""
    for answer in pool.map(lambda part: search(tree, part, "--all"), parts(stretch, jobs)):
        result.clean += answer["broken"]
        result.clean_runs += answer["tried"]


def parts(stretch: Stretch, jobs: int) -> list[Stretch]:
    if stretch.kind == "points":
        return [Stretch("points", n * stretch.stop, jobs * stretch.stop) for n in range(jobs)]
    if stretch.kind == "scenarios":
        return [stretch]
    size = -(-(stretch.stop - stretch.first) // jobs)
    bounds = range(stretch.first, stretch.stop, size)
    return [Stretch("seeds", n, min(n + size, stretch.stop)) for n in bounds]


def seek(one: Search, stretch: Stretch, dirty: list[str]) -> Search:
    answer = search(one.tree, stretch, "--skip", *dirty)
    if stretch.kind == "seeds":
        one.seeds = stretch.first + answer["tried"]
    if answer["broken"]:
        first = answer["broken"][0]
        one.run, one.rule, one.text = first["run"], first["rule"], first["text"].replace("\n", " ")
    return one


def search(tree: Path, stretch: Stretch, *more: str) -> dict:
    argv = [sys.executable, "-m", "tests.planted.search", *stretch.words, *more]
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(argv, cwd=tree, env=environment, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        text = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        return {"broken": [{"run": stretch.kind, "rule": "FAILED", "text": text}], "tried": 0}
    return json.loads(done.stdout.splitlines()[-1])
