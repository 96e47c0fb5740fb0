"""The engines of this daemon as claims see them: who runs, since when, and on which devices it may (TEL-6, MASK-3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from poolmgr.core.state import Pool
from poolmgr.model.claim import RunningEngine

Reserved = Callable[[str], Mapping[str, int]]


def _nothing(engine_id: str) -> Mapping[str, int]:
    return {}


def running_engines(
    pools: Sequence[Pool], devices_of: Callable[[str], tuple[str, ...] | None], reserved: Reserved = _nothing
) -> Sequence[RunningEngine]:
    """`devices_of`: what the engine with this id was started to see; None where nobody knows. `reserved`: bytes by
    device that are set aside for it.
    """
    return [engine for pool in pools for engine in _of(pool, devices_of, reserved)]


def _of(pool: Pool, devices_of: Callable[[str], tuple[str, ...] | None], reserved: Reserved) -> Iterator[RunningEngine]:
    for each in (pool, pool.beside):
        run = each.engine if each is not None else None
        if run is not None:
            engine_id = run.engine_id
            yield RunningEngine(
                engine_id, pool.pool_id, run.pid, devices_of(engine_id), run.started, reserved(engine_id)
            )
    if pool.registered is not None:  # somebody else runs it: what it may use is not ours to say
        theirs = pool.registered
        yield RunningEngine(theirs.engine.engine_id, pool.pool_id, theirs.engine.pid, None, theirs.heard or 0.0)
