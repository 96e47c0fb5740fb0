"""The readable twin of `poolmgr_ext.stats`: window statistics by their definitions, in exact arithmetic."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, sqrt
from statistics import median

SECOND = 10**9


@dataclass(frozen=True)
class Exact:
    count: int
    last: float
    minimum: float
    maximum: float
    mean: Fraction
    variance: Fraction
    slope: Fraction | None
    residual: Fraction | None  # mean square about the line, with two degrees of freedom less
    slope_error: float | None
    integral: Fraction


def areas(samples: Sequence[tuple[int, float]], longest_gap: Fraction) -> list[Fraction]:
    """What each sample adds to the integral: the trapezium between it and the one before."""
    found = [Fraction(0)]
    for (before, was), (now, value) in itertools.pairwise(samples):
        seconds = Fraction(now - before, SECOND)
        found.append((Fraction(was) + Fraction(value)) / 2 * seconds if seconds <= longest_gap else Fraction(0))
    return found


def exact(samples: Sequence[tuple[int, float]], newest: int, window: int, longest_gap: Fraction) -> Exact | None:
    """Of the samples in the `window` whole seconds that end with second `newest`."""
    added = areas(samples, longest_gap)
    inside = [
        (t, x, area) for (t, x), area in zip(samples, added, strict=True) if newest - window < t // SECOND <= newest
    ]
    if not inside:
        return None
    times = [Fraction(t, SECOND) for t, _, _ in inside]
    values = [Fraction(x) for _, x, _ in inside]
    count = len(inside)
    mean_t, mean = sum(times) / count, sum(values) / count
    tt = sum((t - mean_t) ** 2 for t in times)
    xx = sum((x - mean) ** 2 for x in values)
    tx = sum((t - mean_t) * (x - mean) for t, x in zip(times, values, strict=True))
    slope = tx / tt if count >= 2 else None
    residual = (xx - tx * tx / tt) / (count - 2) if count >= 3 else None
    raw = [x for _, x, _ in inside]
    return Exact(
        count, raw[-1], min(raw), max(raw), mean, Fraction(xx, count), slope, residual,
        sqrt(residual / tt) if residual is not None else None, sum((area for _, _, area in inside), Fraction(0)),
    )  # fmt: skip


def nearest_rank(values: Sequence[float], percent: int) -> float:
    return sorted(values)[ceil(len(values) * percent / 100) - 1]


def theil_sen(times: Sequence[float], values: Sequence[float], begin: float, width: float) -> float | None:
    """The median slope of all pairs of block means."""
    blocks: dict[int, list[tuple[float, float]]] = {}
    for t, x in zip(times, values, strict=True):
        blocks.setdefault(min(59, int((t - begin) / width)), []).append((t, x))
    points = [
        (sum(Fraction(t) for t, _ in block) / len(block), sum(Fraction(x) for _, x in block) / len(block))
        for _, block in sorted(blocks.items())
    ]
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for i, a in enumerate(points) for b in points[i + 1 :]]
    return float(median(slopes)) if slopes else None
