"""Many trials, side by side."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from tests.mutants.mutations import Mutation, difference, mutated
from tests.mutants.trials import Tier, TrialError, Verdict, copy_tree, preload, run, try_mutation


@dataclass(frozen=True, slots=True)
class Trial:
    mutation: Mutation
    verdict: Verdict
    by: str
    what: str


@dataclass(frozen=True, slots=True)
class Bench:
    """Where one process makes its trials: a tree of its own, on which the tests pass."""

    tree: Path
    tiers: tuple[Tier, ...]


_bench: list[Bench] = []  # of this process


def trials(
    root: Path, chosen: Sequence[Mutation], tiers: Sequence[Tier], jobs: int, directory: Path
) -> Iterator[Trial]:
    """In the order in which they end. Raises TrialError when the tests fail on the tree as it is."""
    context = multiprocessing.get_context("spawn")
    free = context.SimpleQueue()
    for n in range(jobs):
        free.put(Bench(copy_tree(root, directory / str(n)), tuple(tiers)))
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin, initargs=(free,))
    try:
        for future in as_completed([pool.submit(_try, mutation) for mutation in chosen]):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(free: multiprocessing.SimpleQueue) -> None:
    preload()
    _bench.append(free.get())
    for tier in _bench[0].tiers:
        verdict, by = run(_bench[0].tree, tier, keep_bytecode=True)  # also compiles all there is, once
        if verdict is not Verdict.SURVIVED:
            raise TrialError(f"without a fault: {verdict} by {by or tier.tests}")


def _try(mutation: Mutation) -> Trial:
    bench = _bench[0]
    source = (bench.tree / mutation.path).read_text()
    verdict, by = try_mutation(bench.tree, mutation, bench.tiers)
    return Trial(mutation, verdict, by, difference(source, mutated(mutation, source)))
