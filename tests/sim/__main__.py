"""`python -m tests.sim --seeds N [--first K]`: random stories, then every scenario with its crash points and faults.

The last line is one JSON object; the exit status is 1 when a rule was broken. One run again: `--seed N`, or
`--scenario NAME [--crash CALL/WHEN] [--fault CALL/ERROR]`, as the violation names it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable

from tests.sim import runner
from tests.sim.gate import CrashPoint, FaultPoint
from tests.sim.oracle import Violation
from tests.sim.scenarios import SCENARIOS

TAIL = 60
SHOWN = 10  # violations with the tail of their trace
NAMED = 200


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    summary = runner.Summary()
    started = time.monotonic()
    say = (lambda text: None) if options.json else print
    if options.seed is not None or options.scenario:
        one_again(options, summary)
    else:
        all_of_them(options, summary, say)
    figures = summary.figures()
    figures["seconds"] = round(time.monotonic() - started, 1)
    if not options.json:
        for number, violation in enumerate(summary.violations[:NAMED]):
            show(violation, TAIL if number < SHOWN else 0)
        by_rule: dict[str, int] = {}
        for violation in summary.violations:
            by_rule[violation.rule] = by_rule.get(violation.rule, 0) + 1
        say(f"violations by rule: {by_rule}")
    print(json.dumps(figures))
    return 1 if summary.violations else 0


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, help="only this one, with its trace")
    parser.add_argument("--scenario", choices=sorted(SCENARIOS), help="only this one, with its trace")
    parser.add_argument("--crash", help="CALL/WHEN: the daemon dies before, during or after that call of a port")
    parser.add_argument("--fault", help="CALL/ERROR: that call of a port fails")
    parser.add_argument("--crash-points", choices=("none", "sampled", "whole", "thorough"), default="whole")
    parser.add_argument("--json", action="store_true", help="nothing but the last line")
    parser.add_argument("--processes", type=int, default=None)
    return parser.parse_args(arguments)


def one_again(options: argparse.Namespace, summary: runner.Summary) -> None:
    crash = fault = None
    if options.crash:
        call, when = options.crash.split("/")
        crash = CrashPoint(int(call), when)
    if options.fault:
        call, error = options.fault.split("/")
        fault = FaultPoint(int(call), int(error))
    job = runner.Job(options.seed, options.scenario or "", crash, fault, twice=True)
    outcome = runner.run_checked(job)
    summary.add(outcome, seed=options.seed is not None)


def all_of_them(options: argparse.Namespace, summary: runner.Summary, say: Callable) -> None:
    for outcome in runner.run_all(runner.seeds(options.first, options.seeds), options.processes):
        summary.add(outcome, seed=True)
    say(f"{options.seeds} seeds from {options.first}: {len(summary.violations)} violations")
    if options.crash_points != "none":
        scenarios(options, summary, say)


def scenarios(options: argparse.Namespace, summary: runner.Summary, say: Callable) -> None:
    jobs = []
    names = list(SCENARIOS)
    for name, outcome in zip(names, runner.run_all([runner.clean(n) for n in names], options.processes), strict=True):
        summary.add(outcome, seed=False)
        summary.event_sets.setdefault(outcome.events, name)
        every = 10 if options.crash_points == "sampled" else 1
        points = runner.all_crash_points if options.crash_points == "thorough" else runner.crash_points
        jobs += points(name, outcome.calls, *([every] if every > 1 else []))
        jobs += runner.fault_points(name, outcome.calls, every)
    summary.scenarios = len(names)
    say(f"{len(names)} scenarios, {len(summary.event_sets)} distinct sets of event types")
    for outcome in runner.run_all(jobs, options.processes):
        summary.add(outcome, seed=False)
    say(f"{len(jobs)} crash points and faults: {len(summary.violations)} violations in all")


def show(violation: Violation, lines: int) -> None:
    print(violation)
    for line in violation.tail[len(violation.tail) - lines :]:
        print("    " + line)


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "tests.sim", *sys.argv[1:]])
    sys.exit(main(sys.argv[1:]))
