"""A tiny world around one pool: an engine that exists only between its start and the end of its tree.

It performs effects the way a runtime would, refuses what no runtime could do, and checks after every step what must
hold of any pool at any time. It knows nothing of how `step` decides.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from poolmgr.core import pool as pool_module
from poolmgr.core import state as state_module
from poolmgr.core.messages import (
    Acquire,
    Adopted,
    Discard,
    Event,
    Exited,
    Forget,
    KillTree,
    LeaseAnswered,
    Moment,
    Note,
    NoteName,
    Probed,
    Rest,
    RunProbe,
    Spawned,
    Start,
    StartRefused,
    Terminate,
    Tick,
    TreeEmpty,
)
from poolmgr.core.settle import next_deadline
from poolmgr.errors import ClientError
from poolmgr.model.engine import Diagnosis, ExitRecord, ProbeResult, Usage
from poolmgr.model.lease import Lease
from poolmgr.model.pool import PoolSpec, PoolState
from tests.core.helpers import KILLED, OK, a_pool

S = PoolState
NO_PROCESS = frozenset({S.PENDING, S.STOPPED, S.BACKOFF, S.PARKED})
SERVING = frozenset({S.READY, S.DRAINING})


@dataclass
class Engine:
    """One process tree. `ended`: how the main process ended, None while it runs; `told`: the pool knows of it."""

    engine_id: str
    args: tuple[str, ...]
    slots: int
    ended: ExitRecord | None = None
    diagnosis: Diagnosis | None = None
    told: bool = False
    left: bool = True  # processes besides the main one
    asked_to_end: bool = False


@dataclass
class World:
    """`fact` and `command` are the only ways in; both check everything."""

    spec: PoolSpec
    now: float = 1000.0
    jitter: float = 0.5
    fence: int = 1
    generation: int = 1
    engine: Engine | None = None
    starting: Start | None = None
    launched: tuple[PoolSpec, str] | None = None
    directories: dict[str, tuple[tuple[str, ...], int]] = field(default_factory=dict)
    probe: RunProbe | None = None
    old_probes: list[int] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    answered: dict[str, Any] = field(default_factory=dict)
    forgets: int = 0
    made: int = 0

    def __post_init__(self) -> None:
        self.pool = a_pool(self.spec)

    @property
    def state(self) -> PoolState:
        return self.pool.state

    # In.

    def fact(self, event: Event) -> list[Any]:
        """A fact never raises."""
        before, moment = self.pool, Moment(self.now, 1.7e9 + self.now, self.jitter, self.fence, 0)
        self.pool, effects = pool_module.step(self.pool, event, moment)
        self.check(before, event, list(effects))
        for effect in effects:
            self.perform(effect)
        self.check_world()
        return list(effects)

    def command(self, event: Event) -> bool:
        """Whether it was taken; a refused command has changed nothing."""
        before = self.pool
        if isinstance(event, Acquire):
            self.asked.append(event.ask.lease_id)
        try:
            self.fact(event)
        except ClientError:
            assert self.pool is before
            return False
        return True

    def tick(self) -> None:
        self.fact(Tick())

    def to_next_deadline(self, limit: float) -> bool:
        """Whether there was one before `limit`."""
        due = next_deadline(self.pool)
        if due is None or due > limit:
            return False
        self.now = max(self.now, due)
        self.tick()
        return True

    # What the outside does.

    def spawn(self) -> None:
        assert self.starting is not None
        assert self.launched is not None
        spec, engine_id = self.launched
        args, slots = self.directories.setdefault(engine_id, (spec.args, spec.slots))
        self.starting, self.launched = None, None
        self.engine = Engine(engine_id, args, slots)
        self.fact(Spawned(engine_id, 100 + self.made, 8000))

    def adopt(self, current: bool) -> None:
        """An engine of an earlier daemon, perhaps of another spec."""
        args = self.spec.args if current else ("--of-before",)
        self.directories["adopted"] = (args, self.spec.slots)
        self.engine = Engine("adopted", *self.directories["adopted"])
        self.fact(Adopted("adopted", 99, 8000, current))

    def refuse(self, permanent: bool) -> None:
        self.starting, self.launched = None, None
        self.fact(StartRefused("SPAWN_FAILED", "no such file", permanent))

    def end(self, record: ExitRecord, diagnosis: Diagnosis | None = None, leaves: bool = False) -> None:
        """The main process ends; the pool hears of it by `report`."""
        assert self.engine is not None
        if self.engine.ended is None:
            self.engine.ended, self.engine.diagnosis, self.engine.left = record, diagnosis, leaves

    def report(self) -> None:
        """Tells the next thing that the pool does not know of the engine's end, if there is one."""
        engine = self.engine
        if engine is None or engine.ended is None:
            return
        if not engine.told:
            engine.told = True
            self.fact(Exited(engine.engine_id, engine.ended, ("last words",), engine.diagnosis))
        elif not engine.left:
            self.engine = None
            self.probe = None
            self.fact(TreeEmpty(engine.engine_id))

    def answer(self, result: ProbeResult, owned: bool | None = True) -> None:
        assert self.probe is not None
        serial, self.probe = self.probe.serial, None
        self.old_probes.append(serial)
        self.fact(Probed(serial, result, Usage(), owned))

    # What the pool does to it.

    def perform(self, effect: Any) -> None:  # noqa: C901 - flat match
        match effect:
            case Start(engine_id):
                assert self.engine is None, "a start while a process is left"
                assert self.starting is None, "a second start before the first one is answered"
                assert not engine_id or engine_id in self.directories, "a start in a directory that is not there"
                self.starting, self.made = effect, self.made + 1
                self.launched = (self.pool.spec, engine_id or f"engine{self.made}")
            case RunProbe(serial):
                assert self.engine is not None
                assert self.probe is None, "a second probe before the first one is answered"
                assert serial not in self.old_probes, "the serial of an earlier probe"
                self.probe = effect
            case Terminate(engine_id):
                assert self.engine is not None
                assert engine_id == self.engine.engine_id
                self.engine.asked_to_end = True
            case KillTree(engine_id):
                assert self.engine is not None
                assert engine_id == self.engine.engine_id
                self.end(KILLED)
                self.engine.left = False
            case Discard(engine_id):
                assert self.engine is None, "the directory of a running engine is removed"
                del self.directories[engine_id]
            case Rest(engine_id):
                assert self.engine is None
                assert engine_id in self.directories
            case Forget():
                self.forgets += 1
                assert self.forgets == 1, "forgotten twice"
                assert not self.directories, "forgotten with a directory left behind"
            case LeaseAnswered(answer):
                assert answer.lease_id in self.asked, "an answer that nobody asked for"
                assert answer.lease_id not in self.answered, "a second answer"
                self.answered[answer.lease_id] = answer.result
                if isinstance(answer.result, Lease) and answer.result.lease_id == answer.lease_id:
                    assert answer.result.fencing_token >= self.fence, "a fencing number that was used before"
                    self.fence = answer.result.fencing_token + 1

    # What must hold.

    def check(self, before: Any, event: Event, effects: list[Any]) -> None:
        pool = self.pool
        due = next_deadline(pool)
        assert due is None or due > self.now, f"left undone: {due - self.now} s ago"
        granted = [
            e for e in effects
            if isinstance(e, LeaseAnswered) and isinstance(e.answer.result, Lease)
            and e.answer.result.lease_id not in before.leases.live
        ]  # fmt: skip
        live = len(pool.leases.live)
        assert not granted or live <= pool.leases.slots, "granted above the limit"
        assert live <= max(pool.leases.slots, len(before.leases.live))
        assert not live or pool.state in SERVING, "a lease on an engine that does not serve"
        if pool.state is S.READY and before.state is S.STARTING:
            assert isinstance(event, Probed)
            assert event.result is OK
            assert event.owned is True
            assert event.serial == before.probes, "ready by an answer to another probe"
        if pool.state is not before.state:
            moved = [e for e in effects if isinstance(e, Note) and e.name is NoteName.POOL_TRANSITION]
            assert moved, "a transition without an event"
            assert moved[-1].fields["new_state"] == pool.state
        self.check_looks()

    def check_looks(self) -> None:
        """A watcher is shown the pool as it is."""
        pool, shown = self.pool, state_module.view(state_module.fingerprint(self.pool), 0, 0.0)
        run, held = pool.engine, pool.leases
        for name in ("pool_id", "spec", "origin", "generation", "state", "create_time", "restart_count", "last_error"):
            assert getattr(shown, name) == getattr(pool, name), name
        assert (shown.state_reason, shown.backoff_until) == (pool.reason, pool.resume_at)
        assert (shown.slots_total, shown.active_leases) == (held.slots, len(held.live))
        assert shown.waiting == len(held.waiters)
        assert shown.slots_free == (held.free if pool.state is S.READY and not pool.deleting else 0)
        assert shown.live == (run is not None and run.main_alive), "a death is not seen"
        assert shown.pid == (run.pid if run else 0)
        assert shown.ready_time == (run.ready_at if run else None)
        assert shown.breaker_state == pool.policy.breaker_state

    def check_world(self) -> None:
        state, engine = self.state, self.engine
        assert engine is None or self.starting is None
        if state is S.READY:
            assert engine is not None
            assert not engine.told, "ready with an engine known to be dead"
            assert engine.args == self.pool.spec.args, "ready with the engine of another spec"
            assert self.pool.leases.slots <= engine.slots, "more slots than the engine was started with"
        if state in NO_PROCESS:
            assert engine is None, f"{state} with a process"
            assert self.starting is None, f"{state} with a start under way"
        if state is S.PROVISIONING:
            assert self.starting is not None, "waits for a start that nobody makes"
        if state in (S.STARTING, S.READY, S.DRAINING):
            assert engine is not None
        if state is S.STOPPING:
            assert engine is not None or self.starting is not None, "waits for the end of nothing"
        if self.forgets:
            assert self.pool.deleting

    # How it ends when everybody does what he should.

    def cooperate(self, seconds: float, until: frozenset[PoolState] = frozenset()) -> None:
        """Starts succeed, probes are answered, asked ends are obeyed, and what happened is reported."""
        end = self.now + seconds
        for _ in range(20_000):
            if self.state in until:
                return
            if self.starting is not None:
                self.spawn()
            elif self.engine is not None and self.engine.asked_to_end and self.engine.ended is None:
                self.end(ExitRecord(exit_code=0, source="shim"))
            elif self.engine is not None and self.engine.ended and (not self.engine.told or not self.engine.left):
                self.report()
            elif self.probe is not None:
                self.answer(OK)
            elif not self.to_next_deadline(end):
                self.now = end
                return
        raise AssertionError("the pool never comes to rest")
