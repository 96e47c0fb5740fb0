"""Asks engines that registered themselves whether they are well, and can do nothing else to them (ENG-2)."""

from __future__ import annotations

from dataclasses import replace

from poolmgr.core.effects import Effect, RunProbe
from poolmgr.core.messages import Probed
from poolmgr.errors import InternalError
from poolmgr.model.engine import ProbeTarget, Usage
from poolmgr.model.pool import ProbeKind
from poolmgr.runtime.engine_host import Outside
from poolmgr.runtime.pool_actor import PoolActor
from poolmgr.runtime.tasks import Tasks


class RegisteredHost:
    """For pools of registered engines what `EngineHost` is for ours."""

    def __init__(self, outside: Outside, spawn: Tasks) -> None:
        self._outside = outside
        self._spawn = spawn

    def perform(self, actor: PoolActor, effect: Effect) -> None:
        """Raises InternalError for all that would start, signal or remove something."""
        if not isinstance(effect, RunProbe):
            raise InternalError(f"{effect} cannot be done to the engine of pool {actor.pool.pool_id}: it is not ours")
        self._spawn(self._probe(actor, effect), "probe")

    async def _probe(self, actor: PoolActor, effect: RunProbe) -> None:
        result = await self._outside.probe(self._target(actor, effect))
        actor.tell(Probed(effect.engine_id, effect.serial, result, Usage()))

    def _target(self, actor: PoolActor, effect: RunProbe) -> ProbeTarget:
        """As one of ours of its kind is asked, at its own address; where nothing is known to ask, that it listens."""
        pool = actor.pool
        if pool.registered is None:
            raise InternalError(f"pool {pool.pool_id} has no registered engine")
        host, port = _address(pool.registered.engine.endpoint)
        kind = self._outside.kinds.get(pool.spec.engine)
        if kind is not None:
            ask = kind.readiness if effect.readiness else kind.liveness
            target = replace(ask(pool.spec, port, effect.timeout), host=host)
            if target.kind != ProbeKind.NONE:
                return target
        return ProbeTarget(ProbeKind.TCP.value, host, port, timeout=effect.timeout)


def _address(endpoint: str) -> tuple[str, int]:
    """Of host:port; an IPv6 address loses its brackets."""
    host, _, port = endpoint.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)
