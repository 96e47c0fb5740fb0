"""Bugs about limits, health, versions and registered engines that a test plants in its own process."""

from __future__ import annotations

import signal
from dataclasses import replace

from poolmgr.core import engine, leases, pool, registered, registered_health, registration, restart
from poolmgr.core.lifecycle import Trigger
from poolmgr.core.messages import Committed
from poolmgr.core.state import silent_at
from poolmgr.errors import ClientError, Reason
from poolmgr.model.engine import ProbeOutcome, ProbeResult
from poolmgr.model.pool import PoolState
from poolmgr.runtime import pool_actor, registrations
from poolmgr.runtime.host_counters import HostCounters
from poolmgr.runtime.registered_host import RegisteredHost
from poolmgr.runtime.registrations import Registrations
from tests.sim.outside import SimPorts
from tests.sim.planted import Set


def claims_are_forgotten(patch: Set) -> None:
    """The port of an engine that is taken over counts as free."""
    patch(SimPorts, "claim", lambda self, number: None)


def rate_is_not_limited(patch: Set) -> None:
    """Only failures in a row open a breaker."""
    whole = restart._opens

    def opens(policy: object, consecutive: int, *rest: object) -> str:
        return whole(policy, consecutive, *rest) if consecutive >= rest[-1].breaker_threshold else ""

    patch(restart, "_opens", opens)


def nothing_parks(patch: Set) -> None:
    """However often an engine fails in a day."""
    whole = restart.failed
    patch(restart, "failed", lambda *args, **more: replace(whole(*args, **more), parked=False))


def deaths_are_each_pools_own(patch: Set) -> None:
    """Nobody looks whether they come at once."""
    patch(HostCounters, "count_death", lambda self, *rest: ())


def waiters_are_left_waiting(patch: Set) -> None:
    """Until their own deadline, whatever becomes of the pool."""
    patch(leases, "refuse_waiters", lambda table, *rest: (table, ()))


def hung_is_well(patch: Set) -> None:
    """No answer counts against an engine that was ready once."""
    patch(engine, "_judge_health", lambda turn, fact, run: engine._next_liveness(turn))


def well_is_hung(patch: Set) -> None:
    """Every answer of an engine that serves counts against it."""
    whole, bad = engine._judge_health, ProbeResult(ProbeOutcome.FAILED, "planted")
    patch(engine, "_judge_health", lambda turn, fact, run: whole(turn, replace(fact, result=bad), run))


def commits_are_shown_first(patch: Set) -> None:
    """And made durable soon."""

    async def commit(self, effect: object) -> None:
        self.tell(Committed(effect.generation))
        self._remembering.changed(pool_actor.memo_of(self.pool))

    patch(pool_actor.PoolActor, "_commit", commit)


def edits_change_no_engine(patch: Set) -> None:
    """Whatever is asked for, the engine that runs is taken for one that does it."""
    patch(pool, "needs_restart", lambda *rest: False)


def registrations_are_forgotten(patch: Set) -> None:
    """Every third heartbeat finds nothing."""
    whole, beats = Registrations.heartbeat, []

    def heartbeat(self, beat: object) -> object:
        beats.append(beat)
        if len(beats) % 3 == 0:
            raise ClientError(Reason.ENGINE_NOT_FOUND, "planted", numbers={"engine_id": beat.engine_id})
        return whole(self, beat)

    patch(Registrations, "heartbeat", heartbeat)


def what_is_not_said_is_lost(patch: Set) -> None:
    """A registration that leaves the slots out makes it one."""

    def retold(known_as: object, said: object) -> object:
        known, spec = registration.retold(known_as, said)
        return known, spec if said.slots_total is not None else replace(spec, slots=1)

    patch(registrations, "retold", retold)


def silence_is_nothing(patch: Set) -> None:
    """Whoever is silent for too long counts as heard."""

    def hears(turn: object) -> None:
        due = silent_at(turn.pool)
        if due is not None and due <= turn.at.now:
            turn.set(registered=replace(registered_health.run_of(turn), heard=turn.at.now))

    patch(registered, "lose_silent", hears)


def heartbeats_bring_nothing_back(patch: Set) -> None:
    """A lost engine stays lost."""
    whole = registered._heard
    patch(registered, "_heard", lambda turn: None if turn.pool.state is PoolState.LOST else whole(turn))


def registered_and_hung_is_well(patch: Set) -> None:
    """No answer counts against a registered engine that was ready once."""

    def judge(turn: object, fact: object, run: object) -> None:
        registered_health._next_probe(turn, 5.0)

    patch(registered_health, "_judge_health", judge)


def registered_is_ready_unasked(patch: Set) -> None:
    """It is believed that it is well because it told of itself."""

    def judge(turn: object, fact: object) -> None:
        turn.set(registered=replace(registered_health.run_of(turn), ready_at=turn.at.now))
        turn.go(Trigger.BECAME_READY, "planted")
        registered_health._next_probe(turn, 5.0)

    patch(registered_health, "_judge_readiness", judge)


def registered_is_told_to_end(patch: Set) -> None:
    """A probe that fails is followed by a signal to whoever listens there."""
    whole = RegisteredHost._probe

    async def probe(self, actor: object, effect: object) -> None:
        await whole(self, actor, effect)
        world = self._outside.probe._world
        listener = world.kernel.listener(self._target(actor, effect).port)
        if listener is not None and not listener.healthy(world.timeline.now):
            world.kernel.signal(listener, signal.SIGTERM)

    patch(RegisteredHost, "_probe", probe)
