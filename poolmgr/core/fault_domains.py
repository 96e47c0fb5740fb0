"""Which GPU is to blame when engines fail on it (RST-3).

One generation that fails on a GPU may be a bad configuration. When a second one fails there too, it is the GPU. What
CUDA itself reports says more of a card than any other end of an engine, and is counted apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from poolmgr.core.restart import CUDA_CAUSES

WINDOW_SECONDS: Final = 3600.0
FAILURES: Final = 5  # of one generation on one GPU, until it counts as failing there: as many as open its breaker
CUDA_FAILURES: Final = 2
GENERATIONS: Final = 2
REMEMBERED: Final = 256  # failures in all


@dataclass(frozen=True, slots=True)
class Failure:
    """An engine's end that was counted, on the one GPU that it ran on. `at`: boot-time seconds."""

    at: float
    device_id: str
    pool_id: str
    generation: int
    cause: str

    @property
    def of_cuda(self) -> bool:
        return self.cause in CUDA_CAUSES


def add(failures: Sequence[Failure], new: Failure) -> tuple[tuple[Failure, ...], str]:
    """(what is remembered from now on, why the GPU of `new` is to blame: empty when it is not)."""
    kept = (*(f for f in failures if new.at - f.at < WINDOW_SECONDS), new)[-REMEMBERED:]
    here = [f for f in kept if f.device_id == new.device_id and f.of_cuda == new.of_cuda]
    counts: dict[tuple[str, int], int] = {}
    for one in here:
        who = (one.pool_id, one.generation)
        counts[who] = counts.get(who, 0) + 1
    failing = [who for who, count in counts.items() if count >= (CUDA_FAILURES if new.of_cuda else FAILURES)]
    if len(failing) < GENERATIONS:
        return kept, ""
    names = ", ".join(f"pool {pool_id} generation {generation}" for pool_id, generation in sorted(failing))
    kind = "CUDA errors" if new.of_cuda else "failures"
    left = tuple(f for f in kept if f.device_id != new.device_id)  # judged; what comes after is counted anew
    return left, f"{kind} of {len(failing)} generations on it within {WINDOW_SECONDS:.0f} s: {names}"
