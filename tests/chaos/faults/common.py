"""What several faults do: pools of one run, and engines that are ended with a known cause."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from poolmgr.client import CallError, Client
from poolmgr.v1 import pool_pb2 as pb
from tests.chaos import procs
from tests.chaos.journal import Line
from tests.chaos.pools import PoolPlan
from tests.chaos.rig import Rig
from tests.e2e.daemon import eventually
from tests.e2e.engines import tell

AT_REST = (pb.Pool.READY, pb.Pool.STOPPED, pb.Pool.PENDING)
DEATH_SECONDS = 10.0
EXIT_CODES = (1, 2, 3, 42, 127, 255)
SIGNALS = (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGTERM, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)
# What a pool may say of an end that nobody of ours could witness.
UNWITNESSED = "UNKNOWN"


@dataclass(frozen=True, slots=True)
class Ending:
    """How an engine is made to end: by an exit code, or by a signal."""

    kind: str
    number: int

    @property
    def cause(self) -> str:
        return "EXIT_CODE" if self.kind == "exit" else "SIGNAL"

    def __str__(self) -> str:
        return f"{self.kind} {self.number}"


def any_ending(rng: random.Random) -> Ending:
    if rng.random() < 0.5:
        return Ending("exit", rng.choice(EXIT_CODES))
    return Ending("signal", int(rng.choice(SIGNALS)))


def made_ready(rig: Rig, *flags: object, **fields: object) -> PoolPlan:
    """A new pool that is READY and whose engine must live."""
    plan = rig.subject(*flags, **fields)
    with rig.client() as client:
        client.create_pool(plan.pool_id, plan.spec)
    if not rig.await_ready([plan], rule="PRE-1"):
        raise AssertionError(f"{plan.pool_id} does not get ready")
    rig.must_live(plan.pool_id)
    return plan


def reach(client: Client, plan: PoolPlan, state: int) -> None:
    eventually(lambda: client.get_pool(plan.pool_id).state == state, 10, lambda: client.get_pool(plan.pool_id))


def at_rest(rig: Rig, plan: PoolPlan) -> None:
    """The pool comes to rest, and has an engine exactly where it says so."""

    def rests() -> bool:
        with rig.client() as client:
            pool = client.get_pool(plan.pool_id)
        seen = [line["pid"] for line in rig.live.engines(plan.pool_id)]
        return pool.state in AT_REST and seen == ([pool.pid] if pool.pid else [])

    rig.expect("PROC-6", rests, f"{plan.pool_id} comes to rest, with an engine exactly where it says so")


def forget(rig: Rig, plan: PoolPlan) -> None:
    """Deletes it; nothing of it is left then."""
    rig.may_end(plan.pool_id)
    with rig.client(60) as client:
        try:
            client.stop(plan.pool_id, grace=0, wait=10)
            client.delete(plan.pool_id, drain_deadline=0)
        except CallError as error:
            rig.fail("DRN-5", f"{plan.pool_id} cannot be deleted: {error.reason} {error.message}", [rig.tail()])
    rig.expect("DRN-5", lambda: not rig.live.engines(plan.pool_id), f"no engine of {plan.pool_id} is left", 10)


def end_engine(rig: Rig, pool_id: str, ending: Ending) -> Line:
    """Ends the pool's engine as told; returns what it was once the observer saw it die with that status."""
    engine = rig.engine_of(pool_id)
    pid, start = int(engine["pid"]), int(engine["start"])  # type: ignore[call-overload]
    rig.may_end(pool_id)
    rig.deeds.write("end-engine", pool=pool_id, pid=pid, ending=str(ending))
    if ending.kind == "signal" and ending.number == signal.SIGKILL:
        os.kill(pid, signal.SIGKILL)
    else:
        with suppress(OSError):  # it may be gone before its answer is
            tell(rig.endpoint_of(engine), **{ending.kind: ending.number})
    status = eventually(lambda: rig.live.died(pid, start), DEATH_SECONDS)
    if status.said not in (str(ending), "unknown"):
        rig.fail("LIVE-3", f"the engine of {pool_id} should have ended by {ending}, and did by {status.said}", [engine])
    return engine


def check_cause(rig: Rig, pool_id: str, engine: Line, ending: Ending, where: str, witnessed: bool = True) -> None:
    """The pool is READY again by another engine, and tells the cause of that one's end."""
    if not rig.await_again(pool_id, engine):
        return
    with rig.client() as client:
        pool = client.get_pool(pool_id)
        client.reset_breaker(pool_id)
    rig.must_live(pool_id)
    error = pool.last_error
    told = {
        "reason": error.reason,
        "exit": error.exit_code if error.HasField("exit_code") else None,
        "signal": error.signal if error.HasField("signal") else None,
    }
    right = {"reason": ending.cause, "exit": None, "signal": None, ending.kind: ending.number}
    unknown = {"reason": UNWITNESSED, "exit": None, "signal": None}
    if told != right and (witnessed or told != unknown):
        text = f"{pool_id} ended by {ending} ({where}), and tells {told}"
        rig.fail("LIVE-3", text, [engine, pool.state_reason], "cause")
    rig.deeds.write("exit-checked", cause=told["reason"], where=where, pool=pool_id, ending=str(ending), told=told)


def await_no_shim(rig: Rig, engine: Line) -> None:
    """The shim has ended and is reaped: the engine has another parent."""
    eventually(lambda: rig.shim_of(engine) is None, DEATH_SECONDS)


def kill_shim(rig: Rig, engine: Line) -> bool:
    """SIGKILL to the shim; False when the engine has none."""
    shim = rig.shim_of(engine)
    if shim is None:
        return False
    rig.deeds.write("kill-shim", pid=shim, engine=engine["engine"])
    os.kill(shim, signal.SIGKILL)
    await_no_shim(rig, engine)
    return True


def is_alive(engine: Line) -> bool:
    stat = procs.stat(int(engine["pid"]))  # type: ignore[call-overload]
    return stat is not None and stat.start == engine["start"] and stat.state not in ("Z", "X")


def check_same(rig: Rig, before: Mapping[str, Line], rule: str, but: frozenset[str] = frozenset()) -> None:
    """Every pool is served by the engine that served it before."""
    for pool_id, engine in before.items():
        if pool_id not in but and not is_alive(engine):
            rig.fail(rule, f"the engine of {pool_id} did not live through it", [engine], "signal")


def engines(rig: Rig) -> dict[str, Line]:
    return {plan.pool_id: rig.engine_of(plan.pool_id) for plan in rig.pools}
