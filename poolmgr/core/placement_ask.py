"""What an ask for a place has to be, and how many devices it is for. What contradicts itself is refused by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import isfinite
from typing import Final

from poolmgr.errors import ClientError, Number, Reason
from poolmgr.model.names import EngineName
from poolmgr.model.placement import Candidate, IdlePool, PlacementAsk, SplitMode
from poolmgr.model.plan import MAX_DEVICES

MAX_CANDIDATES: Final = 1024  # devices of one host, MIG instances among them
MAX_BYTES: Final = 1 << 62
EQUAL_SHARDS: Final = frozenset({EngineName.VLLM, EngineName.TGI})  # they know no ratios

Problem = tuple[str, dict[str, Number]]


def validate(ask: PlacementAsk, candidates: Sequence[Candidate], idle: Sequence[IdlePool]) -> None:
    """Raises ClientError(INVALID_ARGUMENT) with the first thing that is wrong."""
    for message, numbers in _problems(ask, candidates, idle):
        raise ClientError(Reason.INVALID_ARGUMENT, message, numbers=numbers)


def wanted(ask: PlacementAsk) -> int:
    """How many devices, of a valid ask; 0: as many as it takes."""
    if ask.exact and ask.mask is not None:
        return len(ask.mask)
    if ask.split is SplitMode.EXPLICIT:
        return len(ask.ratios)
    if ask.split is SplitMode.AUTO and ask.estimate is not None:
        return ask.device_count
    return ask.device_count or 1


def _problems(ask: PlacementAsk, candidates: Sequence[Candidate], idle: Sequence[IdlePool]) -> Iterator[Problem]:
    if len(candidates) > MAX_CANDIDATES:
        message = f"there are {len(candidates)} devices, at most {MAX_CANDIDATES} are looked at"
        yield message, {"devices": len(candidates), "limit": MAX_CANDIDATES}
    twice = _twice([one.device.device_id for one in candidates]) or _twice(ask.mask or ())
    if twice:
        yield f"the device {twice!r} is there twice", {"device_id": twice}
    yield from _numbers(ask)
    yield from _exactness(ask)
    yield from _ratios(ask)
    for pool in idle:
        yield from _pool(pool)


def _twice(names: Sequence[str]) -> str:
    return next((name for place, name in enumerate(names) if name in names[:place]), "")


def _numbers(ask: PlacementAsk) -> Iterator[Problem]:
    if not 0 <= ask.bytes_per_device <= MAX_BYTES:
        message = f"bytes_per_device is {ask.bytes_per_device}, it has to be 0 to {MAX_BYTES}"
        yield message, {"value": ask.bytes_per_device, "limit": MAX_BYTES}
    if not 0 <= ask.device_count <= MAX_DEVICES:
        message = f"device_count is {ask.device_count}, it has to be 0 to {MAX_DEVICES}"
        yield message, {"value": ask.device_count, "limit": MAX_DEVICES}
    if ask.mig_profile and not ask.allow_mig:
        yield f"a MIG profile is asked for ({ask.mig_profile}), and MIG is not allowed", {}


def _exactness(ask: PlacementAsk) -> Iterator[Problem]:
    if not ask.exact:
        return
    if ask.mask is None:
        yield "all devices of a mask are asked for, and there is none", {}
        return
    if len(ask.mask) > MAX_DEVICES:
        message = f"the mask names {len(ask.mask)} devices, at most {MAX_DEVICES} go together"
        yield message, {"devices": len(ask.mask), "limit": MAX_DEVICES}
    if ask.device_count not in (0, len(ask.mask)):
        message = f"the mask names {len(ask.mask)} devices, and {ask.device_count} are asked for"
        yield message, {"named": len(ask.mask), "asked": ask.device_count}


def _ratios(ask: PlacementAsk) -> Iterator[Problem]:
    if ask.split is not SplitMode.EXPLICIT:
        if ask.ratios:
            yield f"ratios are given, and the split is {ask.split}", {"ratios": len(ask.ratios)}
        return
    if not all(isfinite(ratio) and ratio >= 0 for ratio in ask.ratios) or not 0 < sum(ask.ratios) < float("inf"):
        yield "ratios have to be finite, none below zero, and their sum above it", {"ratios": len(ask.ratios)}
    count = len(ask.mask) if ask.exact and ask.mask is not None else ask.device_count or len(ask.ratios)
    if len(ask.ratios) != count or count > MAX_DEVICES:
        message = f"there are {len(ask.ratios)} ratios for {count} devices"
        yield message, {"ratios": len(ask.ratios), "devices": count, "limit": MAX_DEVICES}
    if ask.engine in EQUAL_SHARDS:
        yield f"{ask.engine} takes equal shards, no ratios", {"ratios": len(ask.ratios)}


def _pool(pool: IdlePool) -> Iterator[Problem]:
    paid = (pool.reload_seconds, pool.uses_per_hour)
    if not all(isfinite(value) and value >= 0 for value in paid):
        yield f"the idle pool {pool.pool_id!r} has a cost that is none", {"pool_id": pool.pool_id}
    if any(size < 0 for size in pool.frees.values()):
        yield f"the idle pool {pool.pool_id!r} frees less than nothing", {"pool_id": pool.pool_id}
