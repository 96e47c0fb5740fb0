"""``python -m tests.planted``: plants each bug of `planted.toml` in a copy of the tree and lets the simulator find it.

The last line is one JSON object; the exit status is 1 when too few are found or the clean tree breaks a rule.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path

from tests.planted.campaign import POINTS_EVERY, campaign
from tests.planted.manifest import MANIFEST, for_the_simulator, load
from tests.planted.trees import ROOT

SAMPLE = ("one-slot-too-many", "adoption-forgotten", "half-open-lets-all-through")
SAMPLE_SEEDS = 100


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.planted", description=__doc__)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--seeds", type=int, default=20_000, help="at most so many for each bug")
    parser.add_argument("--points-every", type=int, default=POINTS_EVERY, help="of the crash points; 0 for none")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--sample", action="store_true", help=f"only {', '.join(SAMPLE)}")
    parser.add_argument("--manifest", type=Path, default=MANIFEST)
    return parser.parse_args(arguments)


def say(text: str) -> None:
    print(text, flush=True)


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    bugs = for_the_simulator(load(options.manifest))
    only = SAMPLE if options.sample else options.only
    unknown = set(only) - {bug.name for bug in bugs}
    if unknown:
        print(f"no such bug for the simulator: {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    bugs = [bug for bug in bugs if not only or bug.name in only]
    seeds = min(options.seeds, SAMPLE_SEEDS) if options.sample else options.seeds
    points_every = 0 if options.sample else options.points_every
    result = campaign(bugs, ROOT, seeds, options.jobs, say, points_every)
    for search in result.searches:
        if not search.found:
            say(f"MISSED after {search.seeds} seeds: {search.bug.name} ({search.bug.behaviour}): {search.bug.breaks}")
    say(json.dumps(result.figures()))
    return 0 if result.good else 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to end"))  # copies are removed on the way
    sys.exit(main(sys.argv[1:]))
