"""Whether an engine that runs is what its pool asks for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from poolmgr.core.starting import engine_arguments
from poolmgr.model.engine import LaunchSpec
from poolmgr.model.pool import PoolSpec


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
