"""With the daemon dead, state is deleted, cut or flipped: engines live on, and no second one is started (PROC-7)."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterable
from pathlib import Path

from poolmgr.client import CallError, Client
from poolmgr.v1 import pool_pb2 as pb
from tests.chaos.design import Design
from tests.chaos.faults.common import check_same, engines, reach
from tests.chaos.journal import Line
from tests.chaos.pools import PoolPlan
from tests.chaos.rig import Rig

REBUILD_SECONDS = 15.0
FLIPS = 16


# Where records of leases are lost the slots stay closed for the longest lease there may be: here that is soon over.
LONGEST_SECONDS = 5.0
FLOW_SECONDS = 20.0


def design() -> Design:
    settings = {"leases.ttl_max_secs": LONGEST_SECONDS, "leases.ttl_default_secs": LONGEST_SECONDS}
    return Design(settings=settings, load={"ttls": [3.0, LONGEST_SECONDS], "wait": 0.0})


def files(rig: Rig, *patterns: str) -> list[Path]:
    """Those of the state directory itself; what engines and shims have is in the directories below."""
    found = [path for pattern in patterns for path in rig.state.glob(pattern) if path.is_file()]
    return sorted(set(found))


def delete(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink()


def truncate(rig: Rig, paths: Iterable[Path]) -> None:
    for path in paths:
        os.truncate(path, int(path.stat().st_size * rig.rng.random()))


def flip(rig: Rig, paths: Iterable[Path]) -> None:
    for path in paths:
        content = bytearray(path.read_bytes())
        for _ in range(FLIPS if content else 0):
            content[rig.rng.randrange(len(content))] ^= 1 << rig.rng.randrange(8)
        path.write_bytes(bytes(content))


DATABASE, LEASES, EPOCH = "state.db*", "leases*", "epoch*"
# What is done, and whether records of leases are destroyed with it.
VARIANTS: dict[str, tuple[Callable[[Rig], object], bool]] = {
    "database deleted": (lambda rig: delete(files(rig, DATABASE)), False),
    "database file deleted": (lambda rig: delete(files(rig, "state.db")), False),
    "database cut": (lambda rig: truncate(rig, files(rig, DATABASE)), False),
    "database flipped": (lambda rig: flip(rig, files(rig, DATABASE)), False),
    "leases deleted": (lambda rig: delete(files(rig, LEASES)), True),
    "leases cut": (lambda rig: truncate(rig, files(rig, LEASES)), True),
    "leases flipped": (lambda rig: flip(rig, files(rig, LEASES)), True),
    "epoch deleted": (lambda rig: delete(files(rig, EPOCH)), False),
    "epoch flipped": (lambda rig: flip(rig, files(rig, EPOCH)), False),
    "all files deleted": (lambda rig: delete(files(rig, "*")), True),
    "all files flipped": (lambda rig: flip(rig, files(rig, "*")), True),
}
ORPHAN = "engine directory deleted"


def strike(rig: Rig, number: int) -> None:
    names = [*VARIANTS, ORPHAN]
    name = names[number % len(names)]
    rig.deeds.write("run", fault="state-loss", run=number, detail=name)
    before = engines(rig)
    rig.kill_daemon("state-loss")
    if name == ORPHAN:
        orphan(rig, number)
        return
    change, forfeits = VARIANTS[name]
    if forfeits:
        rig.deeds.write("forfeit")
    change(rig)
    rig.start_daemon()
    rebuilt = rig.await_ready(rig.pools, REBUILD_SECONDS, rule="PROC-7")
    check_same(rig, before, "PROC-7")
    if not rebuilt:
        make_again(rig)
        rig.await_ready(rig.pools)
    await_flow(rig)


def await_flow(rig: Rig) -> None:
    """Leases are granted again on every pool."""
    with rig.client() as client:
        closed = {plan.pool_id for plan in rig.pools}

        def flows() -> bool:
            closed.difference_update({lease.pool_id for lease in client.list_leases()})
            return not closed

        rig.expect("LEASE-3", flows, f"leases are granted again on {sorted(closed)}", FLOW_SECONDS)


def make_again(rig: Rig) -> None:
    """What an operator does to pools that are not there: makes them as they were. No second engine may come of it."""
    with rig.client(60) as client:
        for plan in rig.pools:
            try:
                client.create_pool(plan.pool_id, plan.spec)
                client.preload(plan.pool_id, wait=20)
            except CallError as error:
                rig.fail("PROC-7", f"{plan.pool_id} cannot be made again: {error.reason} {error.message}")


def orphan(rig: Rig, number: int) -> None:
    """An engine whose directory is gone: its pool is UNKNOWN, keeps its leases and gets no second engine beside it.

    An operator ends what runs and stops the pool; then it starts again.
    """
    plan = rig.pools[number % len(rig.pools)]
    engine = rig.engine_of(plan.pool_id)
    shutil.rmtree(rig.state / "engines" / str(engine["engine"]))
    rig.start_daemon()
    rig.await_ready([other for other in rig.pools if other is not plan])
    rig.pause(1.0, 2.0)
    with rig.client(60) as client:
        in_doubt(rig, client, plan, engine)
        rig.may_end(plan.pool_id)
        os.kill(int(engine["pid"]), signal.SIGKILL)  # type: ignore[call-overload]
        rig.expect("PROC-6", lambda: not rig.live.engines(plan.pool_id), f"no engine of {plan.pool_id} is left")
        client.stop(plan.pool_id, wait=10)
        reach(client, plan, pb.Pool.STOPPED)
        client.preload(plan.pool_id, wait=20)
    rig.await_ready(rig.pools)
    rig.must_live(plan.pool_id)
    await_flow(rig)


def in_doubt(rig: Rig, client: Client, plan: PoolPlan, engine: Line) -> None:
    pool, seen = client.get_pool(plan.pool_id), rig.live.engines(plan.pool_id)
    if [line["pid"] for line in seen] != [engine["pid"]]:
        rig.fail("PROC-6", f"{plan.pool_id} should have its one engine still, whose directory is gone", [engine, *seen])
    if pool.state != pb.Pool.UNKNOWN or str(engine["pid"]) not in pool.state_reason:
        text = f"{plan.pool_id} should tell that it is in doubt, and by which process"
        rig.fail("PROC-6", text, [engine, pb.Pool.State.Name(pool.state), pool.state_reason])
    if not any(plan.pool_id in warning for warning in client.status().warnings):
        rig.fail("PROC-6", f"no warning tells an operator of {plan.pool_id}", list(client.status().warnings))
