"""A tiny world around one pool: engines that exist only between their start and the end of their tree.

It performs effects the way a runtime would, refuses what no runtime could do, keeps what a store would keep, and checks
after every step what must hold of any pool at any time (`tests.core.beliefs`). It knows nothing of how `step` decides.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from poolmgr.core import memo as memo_module
from poolmgr.core import pool as pool_module
from poolmgr.core import state as state_module
from poolmgr.core.effects import (
    Commit,
    Discard,
    Forget,
    KillTree,
    LeaseAnswered,
    RecordLeases,
    Rest,
    RunProbe,
    Start,
    Terminate,
    Verify,
)
from poolmgr.core.messages import (
    Acquire,
    Adopted,
    AdoptedBeside,
    ChangeSpec,
    Committed,
    Delete,
    Drain,
    Event,
    Exited,
    Found,
    LeasesKept,
    Moment,
    Preload,
    Probed,
    Recovered,
    Spawned,
    StartRefused,
    Stop,
    Tick,
    TreeEmpty,
    Undrain,
    Verified,
)
from poolmgr.core.settle import next_deadline
from poolmgr.core.state import ReloadPhase, new_pool, version
from poolmgr.errors import ClientError
from poolmgr.model.engine import Diagnosis, ExitRecord, ProbeResult, Usage
from poolmgr.model.lease import EndedLease, Lease
from poolmgr.model.pool import Origin, PoolRecord, PoolSpec, PoolState
from poolmgr.model.settings import LeaseSettings, SupervisionSettings
from tests.core import beliefs
from tests.core.helpers import EXIT_0, KILLED, OK, a_pool

S = PoolState
UNKNOWN_SECONDS = 361.0  # in which a store says that there may be leases of which it has lost the record


@dataclass
class Engine:
    """One process tree. `ended`: how the main process ended, None while it runs; `told`: the pool knows of it."""

    engine_id: str
    generation: int
    args: tuple[str, ...]
    slots: int
    pid: int
    ended: ExitRecord | None = None
    diagnosis: Diagnosis | None = None
    told: bool = False
    left: bool = True  # processes besides the main one
    asked_to_end: bool = False

    @property
    def port(self) -> int:
        return 8000 + self.pid

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"


@dataclass
class Launch:
    """A start that is under way."""

    effect: Start
    spec: PoolSpec
    engine_id: str


@dataclass
class Kept:
    """What survives the daemon. `generations` are the specs; leases are recorded before anybody is told of them."""

    memo: memo_module.Memo
    generations: dict[int, PoolSpec]
    leases: dict[str, Lease] = field(default_factory=dict)
    ended: list[EndedLease] = field(default_factory=list)
    lost_at: float | None = None  # records of leases


@dataclass
class World:
    """`fact` and `command` are the only ways in; both check everything."""

    spec: PoolSpec
    now: float = 1000.0
    jitter: float = 0.5
    fence: int = 1
    engines: dict[str, Engine] = field(default_factory=dict)
    starting: dict[int, Launch] = field(default_factory=dict)
    directories: dict[str, tuple[tuple[str, ...], int]] = field(default_factory=dict)
    probes: dict[str, RunProbe] = field(default_factory=dict)
    old_probes: list[tuple[str, int]] = field(default_factory=list)
    verifying: Verify | None = None
    committing: Commit | None = None
    asked: list[str] = field(default_factory=list)
    answered: dict[str, Any] = field(default_factory=dict)
    out: dict[str, tuple[Lease, Engine]] = field(default_factory=dict)  # as clients hold them, whatever is recorded
    forgets: int = 0
    made: int = 0
    recovering: bool = False
    word: bool | None = None  # the operators' last: whether they want an engine

    def __post_init__(self) -> None:
        self.pool = a_pool(self.spec)
        self.kept = Kept(state_module.memo_of(self.pool), {1: self.spec})

    @property
    def state(self) -> PoolState:
        return self.pool.state

    @property
    def engine(self) -> Engine | None:
        """The pool's own."""
        run = self.pool.engine
        return self.engines.get(run.engine_id) if run is not None else None

    @property
    def phase(self) -> ReloadPhase | None:
        return self.pool.reload.phase if self.pool.reload is not None else None

    # In.

    def fact(self, event: Event) -> list[Any]:
        """A fact never raises."""
        before, moment = self.pool, Moment(self.now, 1.7e9 + self.now, self.jitter, self.fence, 0)
        self.pool, effects = pool_module.step(self.pool, event, moment)
        beliefs.of_the_step(self, before, event, list(effects))
        for effect in effects:
            self.perform(effect)
        beliefs.of_the_world(self)
        if not isinstance(event, ChangeSpec):
            assert self.pool.generation == self.kept.memo.generation, "another generation than is stored"
        return list(effects)

    def command(self, event: Event) -> bool:
        """Whether it was taken; a refused command has changed nothing. What it makes the pool remember is durable."""
        before, word = self.pool, self.word
        if isinstance(event, Acquire):
            self.asked.append(event.ask.lease_id)
        if isinstance(event, ChangeSpec):
            self.kept.generations[event.generation] = event.spec
        if isinstance(event, Preload | Stop | Drain | Delete) or (self.state is S.DRAINING and event == Undrain()):
            self.word = isinstance(event, Preload | Undrain)
        try:
            self.fact(event)
        except ClientError:
            assert self.pool is before
            self.word = word
            return False
        self.write_behind()
        return True

    def write_behind(self) -> None:
        self.kept.memo = state_module.memo_of(self.pool)

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

    def spawn(self, pick: int = 0) -> None:
        launch = self.starting.pop(sorted(self.starting)[pick % len(self.starting)])
        engine = self.run(launch)
        self.fact(
            Spawned(engine.engine_id, engine.pid, engine.port, engine.slots, engine.pid, launch.effect.generation)
        )

    def run(self, launch: Launch) -> Engine:
        """A start that was proven is the last one again; any other is made of the spec, whatever lay there before."""
        if not launch.effect.proven:
            self.directories[launch.engine_id] = (launch.spec.args, launch.spec.slots)
        args, slots = self.directories[launch.engine_id]
        self.made += 1
        engine = Engine(launch.engine_id, launch.effect.generation, args, slots, self.made)
        self.engines[engine.engine_id] = engine
        return engine

    def adopt(self, current: bool) -> None:
        """An engine of an earlier daemon, perhaps of another spec."""
        args = self.spec.args if current else ("--of-before",)
        self.directories["adopted"] = (args, self.spec.slots)
        self.engines["adopted"] = Engine("adopted", 1, *self.directories["adopted"], pid=0)
        self.pool = state_module.remembering(self.pool, memo_module.Memo(1, 1, wanted=True, good=(1,)))
        self.fact(Adopted("adopted", 0, 8000, current))
        self.fact(LeasesKept())
        self.fact(Recovered())
        self.write_behind()

    def refuse(self, permanent: bool, pick: int = 0) -> None:
        generation = sorted(self.starting)[pick % len(self.starting)]
        del self.starting[generation]
        self.fact(StartRefused("SPAWN_FAILED", "no such file", permanent, generation))

    def end(self, engine: Engine, record: ExitRecord, diagnosis: Diagnosis | None = None, leaves: bool = False) -> None:
        """The main process ends; the pool hears of it by `report`."""
        if engine.ended is None:
            engine.ended, engine.diagnosis, engine.left = record, diagnosis, leaves
            self.out = {name: held for name, held in self.out.items() if held[1] is not engine}

    def report(self, engine: Engine) -> None:
        """Tells the next thing that the pool does not know of the engine's end, if there is one."""
        if engine.ended is None:
            return
        if not engine.told:
            engine.told = True
            self.fact(Exited(engine.engine_id, engine.ended, ("last words",), engine.diagnosis))
        elif not engine.left:
            del self.engines[engine.engine_id]
            self.probes.pop(engine.engine_id, None)
            self.fact(TreeEmpty(engine.engine_id))

    def answer(self, result: ProbeResult, owned: bool | None = True, pick: int = 0) -> None:
        engine_id = sorted(self.probes)[pick % len(self.probes)]
        serial = self.probes.pop(engine_id).serial
        self.old_probes.append((engine_id, serial))
        self.fact(Probed(engine_id, serial, result, Usage(), owned))

    def verify(self, detail: str = "") -> None:
        asked, self.verifying = self.verifying, None
        assert asked is not None
        if asked.engine_id in self.engines:
            self.fact(Verified(asked.generation, detail))

    def commit(self, fault: str = "") -> None:
        """A command that came before it leaves it undone."""
        commit, self.committing = self.committing, None
        assert commit is not None
        if self.phase is not ReloadPhase.COMMITTING:
            return
        if not fault:
            self.kept.memo = commit.memo
        self.fact(Committed(commit.generation, fault))
        self.write_behind()

    # The daemon dies, and another one comes.

    def die(self, known: bool = True, started: bool = True) -> None:
        """`known`: whether the leases were recorded; `started`: what becomes of the starts that are under way."""
        launches, self.starting = list(self.starting.values()), {}
        for launch in launches if started else ():
            self.run(launch)
        self.probes, self.old_probes, self.verifying, self.committing = {}, [], None, None
        self.asked = [name for name in self.asked if name in self.answered]
        memo, specs = self.kept.memo, self.kept.generations
        record = PoolRecord("p", specs[memo.generation], memo.generation, Origin.API, 0.0)
        pool = new_pool(record, SupervisionSettings(), LeaseSettings())
        self.pool = state_module.remembering(pool, memo)
        self.recovering = True
        out, empty = dict(self.out), not self.engines
        self.take_over(memo)
        kept = self.kept
        if not known:
            kept.leases, kept.ended, kept.lost_at = {}, [], self.now
        known = kept.lost_at is None or self.now - kept.lost_at >= UNKNOWN_SECONDS
        recorded = set(kept.leases)
        self.fact(LeasesKept(tuple(kept.leases.values()), tuple(kept.ended), known))
        beliefs.of_kept_leases(self, memo, {name: engine for name, (_, engine) in out.items() if name in recorded})
        self.recovering = False
        self.fact(Recovered())
        beliefs.of_memory(self, memo, empty)
        self.write_behind()

    def take_over(self, memo: memo_module.Memo) -> None:
        for engine in self.engines.values():  # what is left of a dead engine's tree is killed
            engine.left = engine.left and engine.ended is None
        alive = [e for e in self.engines.values() if e.ended is None]
        dead = [e for e in self.engines.values() if e.ended is not None]
        second = next((e for e in alive if memo.retiring == e.engine_id or memo.target == e.generation), None)
        own = [e for e in alive if e is not second]
        assert len(own) <= 1, "two engines of which nobody can tell which is the pool's"
        self.engines = {e.engine_id: e for e in alive}
        if second is not None:
            retiring, spec = memo.retiring == second.engine_id, self.kept.generations[second.generation]
            self.fact(AdoptedBeside(self.adopted(second, True), spec, second.generation, retiring))
        if own:
            (mine,) = own
            current = mine.args == self.pool.spec.args and self.pool.spec.slots <= mine.slots
            self.fact(self.adopted(mine, current))
        else:
            self.find(memo, dead)
        home = {p.home.engine_id for p in (self.pool, self.pool.beside) if p is not None and p.home is not None}
        self.directories = {name: d for name, d in self.directories.items() if name in home}

    def adopted(self, engine: Engine, current: bool) -> Adopted:
        return Adopted(engine.engine_id, engine.pid, engine.port, current, engine.slots, engine.pid)

    def find(self, memo: memo_module.Memo, dead: list[Engine]) -> None:
        """The place of the last engine of a generation that the pool has; an empty directory tells of no end."""
        mine = [e for e in dead if e.generation <= memo.generation]
        last = max(mine, key=lambda e: e.generation, default=None)
        kept = {e.engine_id for e in (*self.engines.values(), *([last] if last else []))}
        self.directories = {name: d for name, d in self.directories.items() if name in kept}
        if last is not None:
            assert last.ended is not None
            told = Exited(last.engine_id, last.ended, ("last words",), last.diagnosis)
            self.fact(Found(last.engine_id, last.pid, last.pid, told))

    # What the pool does to it.

    def perform(self, effect: Any) -> None:  # noqa: C901 - flat match
        match effect:
            case Start():
                self.begin(effect)
            case RunProbe(engine_id, serial):
                assert engine_id in self.engines
                assert engine_id not in self.probes, "a second probe before the first one is answered"
                assert (engine_id, serial) not in self.old_probes, "the serial of an earlier probe"
                self.probes[engine_id] = effect
            case Verify(engine_id):
                assert engine_id in self.engines
                self.verifying = effect
            case Commit():
                assert self.committing is None or self.committing.generation == effect.generation
                self.committing = effect
            case Terminate(engine_id):
                self.engines[engine_id].asked_to_end = True
            case KillTree(engine_id):
                engine = self.engines[engine_id]
                self.end(engine, KILLED)
                engine.left = False
            case Discard(engine_id):
                assert engine_id not in self.engines, "the directory of a running engine is removed"
                del self.directories[engine_id]
            case Rest(engine_id):
                assert engine_id not in self.engines
                assert engine_id in self.directories
            case Forget():
                self.forgets += 1
                assert self.forgets == 1, "forgotten twice"
                assert not self.directories, "forgotten with a directory left behind"
            case RecordLeases(granted, ended):
                self.record(granted, ended)
            case LeaseAnswered(answer):
                self.tell(answer.lease_id, answer.result)

    def begin(self, effect: Start) -> None:
        assert self.word is not False, "a start that nobody wants"
        assert effect.generation not in self.starting, "a second start before the first one is answered"
        assert not effect.engine_id or effect.engine_id in self.directories, "a start in a directory that is not there"
        assert effect.engine_id not in self.engines, "a start while a process is left"
        mine = version(self.pool, effect.generation)
        self.starting[effect.generation] = Launch(effect, mine.spec, effect.engine_id or f"engine{self.made}")
        self.made += 1

    def record(self, granted: tuple[Lease, ...], ended: tuple[EndedLease, ...]) -> None:
        for lease in granted:
            self.kept.leases[lease.lease_id] = lease
        for end in ended:
            self.kept.leases.pop(end.lease_id, None)
            self.kept.ended.append(end)
            self.out.pop(end.lease_id, None)

    def tell(self, lease_id: str, result: Any) -> None:
        assert lease_id in self.asked, "an answer that nobody asked for"
        assert lease_id not in self.answered, "a second answer"
        self.answered[lease_id] = result
        if isinstance(result, Lease) and result.lease_id == lease_id:
            assert lease_id in self.kept.leases, "told of a grant that is not recorded"
            assert result.fencing_token >= self.fence, "a fencing number that was used before"
            self.fence = result.fencing_token + 1
            self.out[lease_id] = (result, next(e for e in self.engines.values() if e.endpoint == result.endpoint))

    # How it ends when everybody does what he should.

    def cooperate(self, seconds: float, until: frozenset[PoolState] = frozenset()) -> None:
        """Starts succeed, probes are answered, asked ends are obeyed, and what happened is reported."""
        end = self.now + seconds
        for _ in range(20_000):
            if self.state in until and self.pool.reload is None:
                return
            if not self.one_good_thing() and not self.to_next_deadline(end):
                self.now = end
                return
        raise AssertionError("the pool never comes to rest")

    def one_good_thing(self) -> bool:
        """Whether anybody had something to do."""
        leaving = [e for e in self.engines.values() if e.asked_to_end and e.ended is None]
        over = [e for e in self.engines.values() if e.ended and (not e.told or not e.left)]
        if self.starting:
            self.spawn()
        elif leaving:
            self.end(leaving[0], EXIT_0)
        elif over:
            self.report(over[0])
        elif self.probes:
            self.answer(OK)
        elif self.verifying is not None:
            self.verify()
        elif self.committing is not None:
            self.commit()
        else:
            return False
        return True
