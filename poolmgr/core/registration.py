"""What an engine that registers itself tells, and what it is told (ENG-1)."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from poolmgr.core.memo import RegisteredEngine
from poolmgr.core.state import Pool, heartbeat_ttl
from poolmgr.errors import ClientError, Reason
from poolmgr.model.pool import PoolSpec, PoolState, RestartMode
from poolmgr.model.registration import DesiredState, Registration

T = TypeVar("T")

BEATS_PER_TTL = 3  # so many are due before an engine counts as lost: two may go astray


def introduced(said: Registration) -> tuple[RegisteredEngine, PoolSpec]:
    """The engine and its pool's spec as first told. ClientError(INVALID_ARGUMENT) that names what is missing."""
    needed = {"endpoint": said.endpoint, "engine": said.engine, "slots_total": said.slots_total}
    missing = [name for name, value in needed.items() if value is None]
    if said.engine is None or missing:
        raise _missing(said, missing)
    spec = PoolSpec(said.engine, restart=RestartMode.NEVER, preload=True)
    return _with(RegisteredEngine(), said), _spec_with(spec, said)


def retold(pool: Pool, said: Registration) -> tuple[RegisteredEngine, PoolSpec]:
    """As it is known, with what is said now. ClientError(INVALID_ARGUMENT) when what was known has been lost."""
    assert pool.registered is not None
    engine = _with(pool.registered.engine, said)
    if not engine.endpoint:
        raise _missing(said, ["endpoint"])
    return engine, _spec_with(pool.spec, said)


def _missing(said: Registration, names: list[str]) -> ClientError:
    text = f"the first registration of engine {said.engine_id} needs {', '.join(names)}"
    return ClientError(Reason.INVALID_ARGUMENT, text, numbers={"field": names[0]})


def _with(known: RegisteredEngine, said: Registration) -> RegisteredEngine:
    return replace(
        known,
        engine_id=said.engine_id,
        endpoint=said_or(said.endpoint, known.endpoint),
        version=said_or(said.engine_version, known.version),
        pid=said_or(said.pid, known.pid),
        ttl=said_or(said.ttl, known.ttl),
    )


def _spec_with(spec: PoolSpec, said: Registration) -> PoolSpec:
    return replace(
        spec,
        engine=said_or(said.engine, spec.engine),
        slots=said_or(said.slots_total, spec.slots),
        device_mask=said_or(said.device_mask, spec.device_mask),
    )


def said_or(said: T | None, known: T) -> T:
    return known if said is None else said


def desired(pool: Pool) -> DesiredState:
    if pool.wanted:
        return DesiredState.SERVE
    return DesiredState.GONE if pool.state is PoolState.STOPPED else DesiredState.DRAIN


def heartbeat_interval(pool: Pool) -> float:
    """Seconds until the next heartbeat."""
    return min(pool.settings.heartbeat_interval, heartbeat_ttl(pool) / BEATS_PER_TTL)


def not_ours(pool: Pool) -> ClientError:
    """Why its spec is not changed here."""
    text = f"the engine of pool {pool.pool_id} registered itself: it is changed where it runs, and registers again"
    return ClientError(Reason.POOL_STATE, text, numbers={"pool_id": pool.pool_id, "state": pool.state})
