"""``python -m tests.mutants``: puts small faults into `poolmgr/core`, one by one, and sees whether its tests notice.

Survivors are listed with file, line and what was changed; the last line is one JSON object. The exit status is 1 when
fewer than 85 % are killed. A time-out is no kill. What no test could tell apart, and what even an import would, is not
tried: how many those are is printed first, by reason (`tests.mutants.mutations`).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.mutants.campaign import Trial, trials
from tests.mutants.mutations import left_out, sample
from tests.mutants.trials import Tier, Verdict

ROOT = Path(__file__).resolve().parent.parent.parent
CORE = "poolmgr/core"
MIN_SHARE = 0.85
MACHINES = (
    "tests/core/test_leases_machine.py",
    "tests/core/test_restart_machine.py",
    "tests/core/test_pool_machine.py",
)
# Starts real engines: slow, and what it shows the others show by numbers that were taken from it.
ENGINES = ("tests/core/test_estimate_engine.py",)
# Examples first, then the daemon around them, and the long searches for whatever is left; without the tests that plant
# faults themselves, which would be looked for in code that has one already. The examples are in parts, each well within
# the limit of a trial; a fault meets those of its own module first (`Tier.about`), and in the end all of them.
SPLITS = ("split*",)
PLACES = (
    "placement*", "eviction", "memory", "estimate", "cache_types", "llamacpp_graph", "ggml_allocator", "cordons",
    "remembered_devices", "fault_domains", "device_states",
)  # fmt: skip


def tests_of(*names: str) -> tuple[str, ...]:
    """The files of tests/core whose names are like these."""
    found = (path for name in names for path in (ROOT / "tests/core").glob(f"test_{name}.py"))
    return tuple(sorted({str(path.relative_to(ROOT)) for path in found} - {*ENGINES}))


OF_SPLITS = tests_of("split*")
OF_PLACES = tests_of("placement*", "ledger*", "estimate*", "fault_domains", "device_states*")
TIERS = {
    "examples": Tier(("tests/core",), deselected=(*MACHINES, *ENGINES, *OF_SPLITS, *OF_PLACES)),
    "splits": Tier(OF_SPLITS, about=SPLITS),
    "places": Tier(OF_PLACES, about=PLACES),
    "daemon": Tier(("tests/runtime",), cpu_seconds=60),
    "searches": Tier(MACHINES, matching="not planted and not absence", cpu_seconds=120),
}


def commit(root: Path) -> str:
    return subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, check=True, capture_output=True, text=True).stdout


def core_files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in (root / CORE).glob("*.py"))


def figures(done: Sequence[Trial]) -> dict[str, object]:
    killed = sum(1 for t in done if t.verdict is Verdict.KILLED)
    return {
        "mutants": len(done),
        "killed": killed,
        "survived": sum(1 for t in done if t.verdict is Verdict.SURVIVED),
        "timeouts": sum(1 for t in done if t.verdict is Verdict.TIMEOUT),
        "share": round(killed / len(done), 4) if done else 0.0,
    }


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seed", default="", metavar="COMMIT", help="what decides which; default: HEAD")
    parser.add_argument("--file", nargs="+", default=[], help="only these of poolmgr/core")
    parser.add_argument("--tiers", nargs="+", choices=tuple(TIERS), default=list(TIERS), help="which tests, in turn")
    parser.add_argument("--verbose", action="store_true", help="also says what was killed, and by what")
    return parser.parse_args(arguments)


def show(trial: Trial) -> None:
    m = trial.mutation
    by = f" by {trial.by}" if trial.by else ""
    print(f"{trial.verdict}{by}: {m.path}:{m.line} {m.operator}: {trial.what}", flush=True)


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    seed = (options.seed or commit(ROOT)).strip()
    files = [f"{CORE}/{name}" for name in options.file] or core_files(ROOT)
    chosen = sample(ROOT, files, options.count, seed)
    tiers = [TIERS[name] for name in options.tiers]
    for why, number in sorted(left_out(ROOT, files).items()):
        print(f"left out: {number} ({why})", flush=True)
    started, done = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="poolmgr-mutants-") as directory:
        for trial in trials(ROOT, chosen, tiers, options.jobs, Path(directory)):
            done.append(trial)
            if options.verbose or trial.verdict is not Verdict.KILLED:
                show(trial)
    result = {**figures(done), "seed": seed, "seconds": round(time.monotonic() - started)}
    print(json.dumps(result))
    return 0 if result["share"] >= MIN_SHARE else 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to end"))  # copies are removed on the way
    os.environ["HYPOTHESIS_EFFORT"] = "1"
    sys.exit(main(sys.argv[1:]))
