"""Which candidates come into question at all (PLACE-1, PLACE-4): mask, state, compute capability, MIG; in this order.

What is not known is not admitted: a device whose state could not be read, one of unknown compute capability where one
is asked for. Memory is no filter here: how much is needed depends on how the work is laid out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from poolmgr.core.placement_fates import Why, fate
from poolmgr.model.placement import Candidate, Fate, PlacementAsk


@dataclass(frozen=True, slots=True)
class Sifted:
    """`admitted` in the mask's order, or in the candidates' where there is no mask. `fates` of all others."""

    admitted: tuple[Candidate, ...]
    fates: tuple[Fate, ...]
    in_mask: int


def sift(ask: PlacementAsk, candidates: Sequence[Candidate]) -> Sifted:
    named, fates = _masked(ask, candidates)
    admitted: list[Candidate] = []
    for candidate in named:
        refused = next((found for check in _CHECKS if (found := check(ask, candidate)) is not None), None)
        if refused is None:
            admitted.append(candidate)
        else:
            fates.append(refused)
    return Sifted(tuple(admitted), tuple(fates), len(named))


def _masked(ask: PlacementAsk, candidates: Sequence[Candidate]) -> tuple[Sequence[Candidate], list[Fate]]:
    if ask.mask is None:
        return candidates, []
    known = {one.device.device_id: one for one in candidates}
    fates = [
        fate(one, Why.NOT_IN_MASK, "the mask does not name it")
        for device_id, one in known.items()
        if device_id not in ask.mask
    ]
    fates += [
        Fate(name, Why.ABSENT, "the mask names it, and nothing shows it") for name in ask.mask if name not in known
    ]
    return [known[name] for name in ask.mask if name in known], fates


def _state(ask: PlacementAsk, candidate: Candidate) -> Fate | None:
    if not candidate.state_known:
        return fate(candidate, Why.STATE_UNKNOWN, "its state could not be read, and unknown is not healthy")
    if candidate.refusal is not None:
        numbers = {} if candidate.refusal.until is None else {"until_seconds": candidate.refusal.until}
        return fate(candidate, candidate.refusal.reason, candidate.refusal.message, numbers)
    if not candidate.device.usable:
        return fate(candidate, Why.PARTITIONED, "it is in MIG mode: only its instances take work, if it has any")
    return None


def _compute_capability(ask: PlacementAsk, candidate: Candidate) -> Fate | None:
    wanted, has = ask.min_compute_capability, candidate.device.compute_capability
    if wanted is None or (has is not None and has >= wanted):
        return None
    needs = ".".join(map(str, wanted))
    shown = "unknown" if has is None else ".".join(map(str, has))
    message = f"its compute capability is {shown}, {needs} is asked for"
    return fate(candidate, Why.COMPUTE_CAPABILITY, message, {"compute_capability": shown, "asked": needs})


def _mig(ask: PlacementAsk, candidate: Candidate) -> Fate | None:
    device = candidate.device
    if device.is_instance and not ask.allow_mig:
        return fate(candidate, Why.MIG_NOT_ALLOWED, "it is a MIG instance, and whole GPUs are asked for")
    if ask.mig_profile and device.mig_profile != ask.mig_profile:
        shown = device.mig_profile or ("unknown" if device.is_instance else "none: it is a whole GPU")
        message = f"its MIG profile is {shown}, {ask.mig_profile} is asked for"
        return fate(candidate, Why.MIG_PROFILE, message, {"mig_profile": shown, "asked": ask.mig_profile})
    return None


_CHECKS: Final[Sequence[Callable[[PlacementAsk, Candidate], Fate | None]]] = (_state, _compute_capability, _mig)
