"""``python -m tests.planted.search KIND FIRST STOP``: runs the simulator of the tree that it is started in.

One line of JSON: `broken`, the runs that broke a rule, and `tried`, how many runs there were. It stops at the first
unless `--all` is given. KIND: `seeds` FIRST to STOP, `scenarios`, or `points`: every STOP-th of the crash points and
faults of all scenarios, from the FIRST on. `--skip` names rules that prove nothing.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import poolmgr
from tests.sim import runner
from tests.sim.scenarios import SCENARIOS

CPU_SECONDS = 30.0  # of one run, which takes a tenth of a second: a bug may make the daemon spin
COLLECT_EVERY = 50


class Spinning(BaseException):
    """Not an Exception: nothing on the way may swallow it."""


def spins(number: int, frame: object) -> None:
    raise Spinning


def jobs(kind: str, first: int, stop: int) -> Iterator[runner.Job]:
    if kind == "seeds":
        yield from (runner.Job(seed=n) for n in range(first, stop))
        return
    for name in SCENARIOS:
        if kind == "scenarios":
            yield runner.clean(name)
        else:
            yield from points(name, first, stop)


def points(name: str, first: int, every: int) -> Iterator[runner.Job]:
    try:
        calls = runner.run(runner.clean(name)).calls
    except Exception:  # noqa: BLE001 - told by the run without any crash point
        return
    every_one = [*runner.crash_points(name, calls), *runner.fault_points(name, calls)]
    yield from every_one[first::every]


def broken(job: runner.Job, skip: list[str]) -> dict[str, str] | None:
    """The rule that this run breaks. A simulator that fails or does not come to an end shows a bug too."""
    signal.setitimer(signal.ITIMER_VIRTUAL, CPU_SECONDS)
    try:
        found = [(v.rule, v.text) for v in runner.run(job).violations if v.rule not in skip]
    except Spinning:
        found = [("ENDLESS", f"no end within {CPU_SECONDS:g} s of processor time")]
    except Exception as error:  # noqa: BLE001 - whatever it is, `make sim` would end with it
        found = [("FAILED", repr(error))]
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    return {"run": job.name, "rule": found[0][0], "text": found[0][1]} if found else None


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.planted.search", description=__doc__)
    parser.add_argument("kind", choices=("seeds", "scenarios", "points"))
    parser.add_argument("first", type=int)
    parser.add_argument("stop", type=int)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--skip", nargs="*", default=[])
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    if not Path(poolmgr.__file__).is_relative_to(Path.cwd()):
        print(f"poolmgr of {poolmgr.__file__} would be tried, not this tree's", file=sys.stderr)
        return 2
    signal.signal(signal.SIGVTALRM, spins)
    gc.disable()
    found, tried = [], 0
    for job in jobs(options.kind, options.first, options.stop):
        one = broken(job, options.skip)
        tried += 1
        if tried % COLLECT_EVERY == 0:
            gc.collect()
        if one is not None:
            found.append(one)
            if not options.all:
                break
    print(json.dumps({"broken": found, "tried": tried}))
    return 0


if __name__ == "__main__":
    sys.stdout.flush()
    code = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)  # what a broken tree leaves behind is not worth an orderly end
