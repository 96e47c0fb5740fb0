"""Splits: whether ours are the best there are, how far others are from them, and what it costs to find them.

Named mixes of GPUs with real models, and random cases from a seed. What is the best is proved by brute force, by the
best over all subsets, and by HiGHS; the cost formula is written a second time for it. Then the searches are timed, in
turn with accelerate's, and the native one is compared with the readable one.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import exp, inf, isclose, log, nan
from pathlib import Path

from bench import common, placement_speed
from bench.placement_accelerate import Accelerate, Answer, interpreter
from bench.placement_cases import Case, named_cases, random_cases
from bench.placement_judge import TOLERANCE, Proof, Verdict, is_of_time, objective_of, prove, verdict
from bench.placement_peers import RULES
from bench.placement_solver import can_be_asked, confirms
from bench.placement_speed import Search, batch, sample
from poolmgr.core.split_search import search as reference_search
from poolmgr.model.plan import Found, Objective, SplitRequest

BARS = (
    common.at_most("worst_vs_optimum", 1.0 + TOLERANCE),
    common.at_most("out_of_memory_where_a_fit_exists", 0.0),
    common.at_most("ties_missed", 0.0),
    common.at_most("bounds_above_the_optimum", 0.0),
    common.at_most("native_unlike_reference", 0.0),
    common.at_most("us_80x3", 30.0),
    common.at_most("us_8_different_bottleneck", 1000.0),
    common.at_most("us_8_different_latency", 5000.0),
    common.at_most("ms_16_different", 200.0),
    common.at_least("accelerate_vs_native", 300.0),
    common.at_most("estimate_median_error", 0.05),
    common.at_most("estimate_worst_error", 0.15),
)
SHOWN = 5  # of what was wrong


@dataclass(frozen=True, slots=True)
class Effort:
    """`every`: of the named cases only each so-manieth. `solved`: how many of them HiGHS is asked about."""

    every: int
    brute: int
    wide: int
    solved: int
    solver_seconds: float
    cases: int
    rounds: int
    accelerate_rounds: int


FULL = Effort(1, 4000, 150, 60, 10.0, 100_000, 101, 3)
QUICK = Effort(7, 400, 12, 4, 3.0, 2_000, 31, 2)


@dataclass(slots=True)
class Tally:
    """What the judge found of our planner."""

    verdicts: list[Verdict] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    bounds_above: int = 0
    not_proved_by_us: int = 0
    proofs: list[tuple[Case, Proof]] = field(default_factory=list)

    def add(self, case: Case, found: Found) -> None:
        proof = prove(case.request)
        if proof is None:
            return
        mine = verdict(case.name, case.request, proof, found.stages, found.context_length)
        self.verdicts.append(mine)
        self.proofs.append((case, proof))
        above = is_of_time(case.request) and found.lower_bound > proof.value * (1 + TOLERANCE)
        self.bounds_above += above
        self.not_proved_by_us += not found.optimal
        if above or mine.ratio > 1.0 + TOLERANCE or mine.tie_missed:
            self.wrong.append(f"{mine} by {found}")

    def figures(self) -> dict[str, float]:
        by = [each.by for each in self.verdicts]
        return {
            "cases_proved": len(by),
            "cases_by_brute_force": by.count("brute"),
            "cases_by_subsets": by.count("subsets"),
            "cases_that_fit": sum(proof.value < inf for _, proof in self.proofs),
            "out_of_memory_where_a_fit_exists": sum(
                not each.fits and proof.value < inf for each, (_, proof) in zip(self.verdicts, self.proofs, strict=True)
            ),
            "ties_missed": sum(each.tie_missed is True for each in self.verdicts),
            "bounds_above_the_optimum": self.bounds_above,
            "not_claimed_optimal": self.not_proved_by_us,
        }

    @property
    def worst(self) -> float:
        return max((each.ratio for each in self.verdicts), default=nan)


def judge_ours(search: Search, cases: Iterable[Case]) -> Tally:
    tally = Tally()
    for case in cases:
        tally.add(case, search(case.request))
    for line in tally.wrong[:SHOWN]:
        common.console.print(f"[red]wrong:[/] {line}")
    return tally


def all_cases(seed: int, effort: Effort) -> Iterator[Case]:
    """Those that the judge is asked about."""
    yield from list(named_cases())[:: effort.every]
    yield from random_cases(seed, effort.brute, 5, 10)
    yield from random_cases(seed, effort.wide, 8, 60)


def ask_solver(tally: Tally, effort: Effort) -> dict[str, float]:
    """Whether HiGHS knows better than the judge's best; AssertionError when it does, for then the judge is wrong."""
    confirmed, silent = 0, 0
    asked = [(c, p) for c, p in tally.proofs if can_be_asked(c.request) and not c.name.startswith("random")]
    step = max(1, len(asked) // effort.solved)
    for case, proof in asked[::step]:
        answer = confirms(case.request, proof.value, effort.solver_seconds)
        if answer is False:
            raise AssertionError(f"HiGHS has a better plan than the judge for {case.name}")
        confirmed += answer is True
        silent += answer is None
    return {"cases_confirmed_by_solver": confirmed, "cases_the_solver_left_open": silent}


# Others.


@dataclass(slots=True)
class Party:
    """`ratios`: to the best, of its plans that fit, for each objective."""

    name: str
    ratios: dict[Objective, list[float]] = field(default_factory=dict)

    def add(self, objective: Objective, found: Verdict) -> None:
        if found.fits:
            self.ratios.setdefault(objective, []).append(found.ratio)

    def report(self, report: common.Report) -> list[str]:
        every = [ratio for ratios in self.ratios.values() for ratio in ratios]
        report.figures[f"{self.name}_fits"] = len(every)
        mean, worst = geometric_mean(every), max(every, default=nan)
        report.ratios |= {f"{self.name}_geomean_vs_optimum": mean, f"{self.name}_worst_vs_optimum": worst}
        parts = [self.ratios.get(objective, []) for objective in placement_speed.OBJECTIVES.values()]
        return [
            self.name,
            str(len(every)),
            *(f"{geometric_mean(part):.3f}, {max(part, default=nan):.3f}" for part in (*parts, every)),
        ]


def geometric_mean(values: Sequence[float]) -> float:
    return exp(sum(log(each) for each in values) / len(values)) if values else nan


def measure_peers(
    search: Search, tally: Tally, accelerate: Accelerate | None, rounds: int, report: common.Report
) -> None:
    """On the named cases that fit. accelerate and the native search are timed in turn, case by case."""
    parties = {name: Party(name) for name in (*RULES, "accelerate")}
    faster: list[float] = []
    cases = [(c, p) for c, p in tally.proofs if p.value < inf and not c.name.startswith("random")]
    for case, proof in cases:
        plans = {name: rule(case.request) for name, rule in RULES.items()}
        if accelerate is not None:
            answer = accelerate.ask(case.request, rounds)
            plans["accelerate"] = answer.plan
            faster.append(times_faster(search, case.request, answer))
        for name, plan in plans.items():
            parties[name].add(objective_of(case.request), verdict(case.name, case.request, proof, plan, 0))
    shown = [party.report(report) for party in parties.values() if party.ratios]
    report.ratios["accelerate_vs_native"] = common.median(faster) if faster else nan
    report.ratios["accelerate_vs_native_least"] = min(faster, default=nan)
    title = f"{len(cases)} named cases that fit: geometric mean and worst, against the best there is"
    common.print_table(title, ["rule", "fits", *placement_speed.OBJECTIVES, "both"], shown)


def times_faster(search: Search, request: SplitRequest, answer: Answer) -> float:
    calls = batch(search, request)
    ours = common.median([sample(search, request, calls) for _ in answer.seconds])
    return common.median(answer.seconds) / ours


# Native and readable.


def unlike(search: Search, reference: Search, seed: int, count: int) -> int:
    """In how many random cases two searches differ: one in ten of them wider."""
    wide = count // 10
    different: list[str] = []
    for cases in (random_cases(seed, count - wide, 4, 10), random_cases(seed, wide, 6, 20)):
        for case in cases:
            one, other = search(case.request), reference(case.request)
            if not same(one, other):
                different.append(f"{case.name}: {one} and {other}")
    for line in different[:SHOWN]:
        common.console.print(f"[red]unlike:[/] {line}")
    return len(different)


def same(one: Found, other: Found) -> bool:
    return (one.stages, one.optimal, one.context_length) == (other.stages, other.optimal, other.context_length) and (
        isclose(one.lower_bound, other.lower_bound, rel_tol=TOLERANCE)
    )


def estimates(seed: int) -> dict[str, float]:
    """Of the memory a real engine reports, against what was estimated from the file; in all and by its parts."""
    from bench.estimates import score  # it needs the engine, and nothing else here does

    median, worst, rows = score(seed)
    parts = {
        f"estimate_worst_error_{part}": max(row.error(part) for row in rows) for part in ("model", "kv", "compute")
    }
    return {"estimate_median_error": median, "estimate_worst_error": worst, **parts}


def native_search() -> Search:
    from poolmgr.adapters.planning.native import NativePlanner

    return NativePlanner().search


def run(options: argparse.Namespace, effort: Effort, search: Search) -> common.Report:
    report = common.Report("placement", BARS)
    tally = judge_ours(search, all_cases(options.seed, effort))
    report.figures |= tally.figures() | ask_solver(tally, effort)
    report.ratios["worst_vs_optimum"] = tally.worst
    with ExitStack() as stack:
        python = interpreter(options.directory / "accelerate")
        party = stack.enter_context(Accelerate(python)) if python is not None else None
        measure_peers(search, tally, party, effort.accelerate_rounds, report)
    report.figures |= placement_speed.named_sizes(search, effort.rounds)
    if effort is FULL:
        report.ratios["sixteen_vs_optimum"] = placement_speed.sixteen_proved(search)
    times = placement_speed.table(search, max(3, effort.rounds // 5))
    report.figures |= times
    placement_speed.print_table(times)
    placement_speed.write_chart(options.directory / "placement.svg", times)
    cases = options.cases or effort.cases
    report.figures["cases_native_and_reference"] = cases
    report.figures["native_unlike_reference"] = unlike(search, reference_search, options.seed, cases)
    report.figures |= estimates(options.seed)
    report.figures["seed"] = options.seed
    return report


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="the figures as JSON in the last line")
    parser.add_argument("--quick", action="store_true", help="fewer cases and repetitions")
    parser.add_argument("--directory", type=Path, default=common.ROOT / ".state", help="for the chart and accelerate")
    parser.add_argument("--seed", type=int, default=None, help="of the random cases; a fresh one unless given")
    parser.add_argument("--cases", type=int, default=0, help="on which native and readable search are compared")
    options = parser.parse_args()
    if options.seed is None:
        options.seed = int.from_bytes(os.urandom(4))
    return options


def main() -> None:
    options = arguments()
    common.console.print(f"seed {options.seed}")
    run(options, QUICK if options.quick else FULL, native_search()).print(options.json)


if __name__ == "__main__":
    main()
