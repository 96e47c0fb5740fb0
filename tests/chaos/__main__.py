"""``python -m tests.chaos [--fault F] [--count N] [--bug NAME]``: the last line is one JSON object."""

from __future__ import annotations

import argparse
import json
import pickle
import signal
import sys
from pathlib import Path

from tests.chaos.campaign import FAULTS, campaign
from tests.chaos.isolation import run_apart
from tests.chaos.planted import run_with
from tests.chaos.verdict import Figures


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--fault", choices=sorted(FAULTS), help="only this one")
    parser.add_argument("--count", type=int, help="runs of each fault")
    parser.add_argument("--seed", default="0", help="what decides the random times and choices")
    parser.add_argument("--bug", help="on a copy of the tree with tests/planted/BUG.patch applied")
    parser.add_argument("--figures", type=Path, help="we run apart already: write what was shown to this file")
    return parser.parse_args(argv)


def run(options: argparse.Namespace) -> Figures:
    total = Figures()
    for name in [options.fault] if options.fault else FAULTS:
        fault, count = FAULTS[name], options.count or FAULTS[name].count
        if fault.launcher and options.figures is None:
            told = ["--fault", name, "--count", str(count), "--seed", options.seed]
            total.add(run_apart(fault.launcher, told))
        else:
            total.add(campaign(name, count, options.seed))
    return total


def main(argv: list[str]) -> int:
    options = parse(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to end"))  # rigs are taken down on the way
    if options.bug:
        return run_with(options.bug, [word for word in argv if word not in ("--bug", options.bug)])
    total = run(options)
    if options.figures is not None:
        options.figures.write_bytes(pickle.dumps(total))
    print(json.dumps(total.summary()))
    return 1 if total.violations else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
