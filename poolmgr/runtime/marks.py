"""What an engine was started for, and whether it still is what its pool asks for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from poolmgr.core.starting import engine_arguments
from poolmgr.core.state import EngineRun
from poolmgr.model.engine import LaunchSpec, ProcessIdentity
from poolmgr.model.pool import PoolRecord, PoolSpec
from poolmgr.runtime.pool_actor import PoolActor


def mark_of(spec: PoolSpec) -> str:
    """Equal for two specs that an engine cannot tell apart: a digest, for an environment may hold what is not shown.

    Only what differs from the defaults counts, so that a field of a later version changes nothing of today's marks.
    """
    noticed = _differing(asdict(engine_arguments(spec)), asdict(PoolSpec(engine=spec.engine)))
    noticed["engine"] = spec.engine
    return hashlib.sha256(json.dumps(noticed, sort_keys=True).encode()).hexdigest()


def _differing(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _differing(value, defaults.get(key) or {}) if isinstance(value, dict) else value
        for key, value in values.items()
        if value != defaults.get(key)
    }


def still_serves(before: LaunchSpec, now: LaunchSpec) -> bool:
    """Whether what was launched is what would be launched now. A record of an early version has no mark."""
    if not before.mark:
        return before.generation == now.generation
    return before.mark == now.mark and now.slots <= before.slots


def over(run: EngineRun | None, started: ProcessIdentity) -> bool:
    """Whether this start has succeeded, or nothing of it is left."""
    return run is None or run.ready_at is not None or (run.pid, run.ticks) != (started.pid, started.start_ticks)


def record_of(actor: PoolActor, spec: PoolSpec, generation: int) -> PoolRecord:
    """What the pool can be made of again if the store is lost and this engine is not (PROC-7)."""
    pool = actor.pool
    return PoolRecord(pool.pool_id, spec, generation, pool.origin, pool.create_time)
