"""SIGKILL to the daemon at named points: as each call to its store and its runtime begins, and as it ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc

from poolmgr.client import CallError, Client, LeaseRefused
from poolmgr.v1 import pool_pb2 as pb
from tests.chaos.design import Design
from tests.chaos.faults.common import AT_REST, forget
from tests.chaos.pools import PoolPlan, scripted_pool
from tests.chaos.rig import Rig
from tests.e2e.daemon import eventually

ARMING = Path(__file__).parents[1] / "crash"
DEATH_SECONDS = 10.0
STORE, RUNTIME = "poolmgr.adapters.store.sqlite:SqliteStore", "poolmgr.adapters.runtimes.process:ProcessRuntime"
DIRECTORY = "poolmgr.adapters.runtimes.enginedir:EngineDirectory"
CALLS = (
    *(f"{STORE}.{m}" for m in ("load", "put_pool", "put_state", "delete_pool", "reserve_fences", "record")),
    *(f"{RUNTIME}.{m}" for m in ("start", "terminate", "kill_tree", "rest", "remove", "recover", "attach")),
    *(f"{DIRECTORY}.{m}" for m in ("create", "listen", "remove")),
    "poolmgr.runtime.supervisor:Supervisor.recover",
)
POINTS = tuple(f"{call}:{moment}" for call in CALLS for moment in ("enter", "leave"))
# Which call of it: the first comes while the daemon starts, or early in a pool's life; later ones anywhere.
COUNTS = (1, 2, 4, 7)


def design() -> Design:
    return Design(llamas=1, scripted=4)


def strike(rig: Rig, number: int) -> None:
    point = f"{POINTS[number % len(POINTS)]}:{COUNTS[number // len(POINTS) % len(COUNTS)]}"
    rig.deeds.write("run", fault="crash-point", run=number, detail=point)
    rig.kill_daemon("before-crash-point")
    rig.launch_daemon({"CHAOS_CRASH_POINT": point, "PYTHONPATH": str(ARMING)})
    plan, created = rig.subject(), False
    if rig.await_serving():
        created = live_a_life(rig, plan)
    status = None if rig.daemon is None else rig.daemon.poll()
    if status is None:
        rig.deeds.write("crash-point-missed", point=point)
        rig.kill_daemon("after-crash-point")
    elif status == -signal.SIGKILL:
        rig.deeds.write("crash-point", point=point)
    else:
        rig.fail("PROC-7", f"{point}: the daemon ended with {status}", [rig.tail()])
        rig.deeds.write("crash-point", point=point)
    rig.start_daemon()
    rig.await_ready(rig.pools)
    clear_up(rig, plan, created)


def live_a_life(rig: Rig, plan: PoolPlan) -> bool:
    """All that a pool can go through, until the daemon dies of it.

    Returns whether the pool has to be there: its creation was acknowledged, and its deletion not asked for.
    """
    created = False
    with rig.client(5.0) as client:
        for step in steps(rig, client, plan):
            try:
                step()
            except (CallError, LeaseRefused, grpc.RpcError, AssertionError):
                if eventually_dead(rig):
                    return created
                raise
            created = step.__name__ not in ("stop", "delete")
            if rig.dead():
                return created
    return False


def steps(rig: Rig, client: Client, plan: PoolPlan) -> Iterator[Callable[[], object]]:
    pool_id = plan.pool_id
    changed = scripted_pool(rig.id, pool_id, "--ctx-size", 4096, version=2)

    def create() -> None:
        client.create_pool(pool_id, plan.spec)
        until_ready(rig, client, pool_id)

    def lease() -> None:
        held = client.acquire(pool_id, holder="harness", ttl=30)
        client.renew(held.lease_id, held.token)
        client.release(held.lease_id, held.token)

    def crash() -> None:
        engine = rig.engine_of(pool_id)
        os.kill(int(engine["pid"]), signal.SIGKILL)  # type: ignore[call-overload]
        eventually(lambda: client.get_pool(pool_id).restart_count or None, 10)
        until_ready(rig, client, pool_id)

    def change() -> None:
        client.update_pool(pool_id, changed.spec)
        eventually(lambda: client.get_pool(pool_id).generation == 2 or None, 10)
        until_ready(rig, client, pool_id)

    def drain() -> None:
        client.drain(pool_id, wait=10)
        client.preload(pool_id, wait=10)

    def stop() -> None:
        client.stop(pool_id, grace=0.2, wait=10)

    def delete() -> None:
        client.delete(pool_id, drain_deadline=0)

    yield from (create, lease, crash, change, drain, stop, delete)


def until_ready(rig: Rig, client: Client, pool_id: str) -> None:
    eventually(lambda: rig.dead() or rig.is_settled(client, pool_id) or None, 15)


def eventually_dead(rig: Rig) -> bool:
    """A call failed: either the daemon is dying of its point, or the failure is one."""
    try:
        eventually(lambda: rig.dead() or None, 1.0)
    except AssertionError:
        return False
    return True


def clear_up(rig: Rig, plan: PoolPlan, created: bool) -> None:
    """What was acknowledged is there; the pool comes to rest with at most one engine, and can be deleted."""
    with rig.client() as client:
        there = any(pool.pool_id == plan.pool_id for pool in client.list_pools())
    if created and not there:
        rig.fail("LEASE-4", f"{plan.pool_id} was acknowledged and is not there after a crash")
    if not there:
        rig.expect("PROC-7", lambda: not rig.live.engines(plan.pool_id), f"{plan.pool_id} is gone with its engines", 10)
        return

    def rests() -> bool:
        with rig.client() as client:
            pool = client.get_pool(plan.pool_id)
        seen = [line["pid"] for line in rig.live.engines(plan.pool_id)]
        return pool.state in (*AT_REST, pb.Pool.PARKED) and seen == ([pool.pid] if pool.pid else [])

    rig.expect("PROC-6", rests, f"{plan.pool_id} comes to rest, with an engine exactly where it says so")
    forget(rig, plan)
