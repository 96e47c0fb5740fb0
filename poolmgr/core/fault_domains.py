"""Who is to blame when engines fail on a GPU: it, or what they were started with (RST-3).

One generation that fails on a GPU may be a bad configuration. When a second one fails there too, it is the GPU. When
the one fails on a second GPU as well, it is the generation. What CUDA itself reports says more of a card than any other
end of an engine, and is counted apart.
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
ELSEWHERE: Final = 2  # failures on a second GPU that show that it was not the first one's fault
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


@dataclass(frozen=True, slots=True)
class Blame:
    """In words; empty where it is not to blame. Never both."""

    device: str = ""
    generation: str = ""


def add(failures: Sequence[Failure], new: Failure) -> tuple[tuple[Failure, ...], Blame]:
    """(what is remembered from now on, whether the GPU or the generation of `new` is to blame)."""
    kept = (*(f for f in failures if new.at - f.at < WINDOW_SECONDS), new)[-REMEMBERED:]
    why = _generation(kept, new)
    if why:  # none of its failures says anything of a GPU
        return tuple(f for f in kept if (f.pool_id, f.generation) != (new.pool_id, new.generation)), Blame("", why)
    kept, why = _device(kept, new)
    return kept, Blame(why)


def shunned(failures: Sequence[Failure], pool_id: str, generation: int, now: float) -> frozenset[str]:
    """GPUs on which this generation has failed often enough: another one would tell whose fault that is."""
    own = [f for f in failures if (f.pool_id, f.generation) == (pool_id, generation) and now - f.at < WINDOW_SECONDS]
    return frozenset(f.device_id for f in own if _count(own, f.device_id, f.of_cuda) >= _limit(f.of_cuda))


def _limit(of_cuda: bool) -> int:
    return CUDA_FAILURES if of_cuda else FAILURES


def _count(failures: Sequence[Failure], device_id: str, of_cuda: bool) -> int:
    return sum(1 for f in failures if f.device_id == device_id and f.of_cuda == of_cuda)


def _generation(kept: Sequence[Failure], new: Failure) -> str:
    own = [f for f in kept if (f.pool_id, f.generation, f.of_cuda) == (new.pool_id, new.generation, new.of_cuda)]
    counts = {device: _count(own, device, new.of_cuda) for device in sorted({f.device_id for f in own})}
    failing = [device for device, count in counts.items() if count >= _limit(new.of_cuda)]
    if not any(count >= ELSEWHERE and device != first for first in failing for device, count in counts.items()):
        return ""
    text = ", ".join(f"{count} on {device}" for device, count in counts.items())
    kind = "CUDA errors" if new.of_cuda else "failures"
    return f"generation {new.generation} has {kind} on {len(counts)} GPUs ({text}): it is not the GPUs' fault"


def _device(kept: tuple[Failure, ...], new: Failure) -> tuple[tuple[Failure, ...], str]:
    here = [f for f in kept if f.device_id == new.device_id and f.of_cuda == new.of_cuda]
    counts: dict[tuple[str, int], int] = {}
    for one in here:
        who = (one.pool_id, one.generation)
        counts[who] = counts.get(who, 0) + 1
    failing = [who for who, count in counts.items() if count >= _limit(new.of_cuda)]
    if len(failing) < GENERATIONS:
        return kept, ""
    names = ", ".join(f"pool {pool_id} generation {generation}" for pool_id, generation in sorted(failing))
    kind = "CUDA errors" if new.of_cuda else "failures"
    left = tuple(f for f in kept if f.device_id != new.device_id)  # judged; what comes after is counted anew
    return left, f"{kind} of {len(failing)} generations on it within {WINDOW_SECONDS:.0f} s: {names}"
