"""SIGKILL to the daemon in every phase of a pool's life, while the steady pools are under load."""

from __future__ import annotations

from collections.abc import Callable

from poolmgr.v1 import lease_pb2
from poolmgr.v1 import pool_pb2 as pb
from tests.chaos.design import Design
from tests.chaos.faults.common import forget, made_ready, reach
from tests.chaos.pools import PoolPlan, scripted_pool
from tests.chaos.rig import Rig
from tests.e2e.engines import tell

LONG_BACKOFF = {"backoff_initial_ms": 1500, "health_check_interval_ms": 1000}
# An engine that is deaf to SIGTERM has the grace of a stop, 1 s here, once more; the grace of a drain is 30 s.
STOPPED_SECONDS = 8.0
DRAIN_SECONDS = 20.0


def design() -> Design:
    return Design(registered=1)


def strike(rig: Rig, number: int) -> None:
    name = list(PHASES)[number % len(PHASES)]
    rig.deeds.write("run", fault="daemon-kill", run=number, detail=name)
    PHASES[name](rig)
    rig.await_ready(rig.pools)
    rig.await_registered()


def restart(rig: Rig, phase: str) -> None:
    rig.kill_daemon(phase)
    rig.pause(0.0, 0.2)
    rig.start_daemon()


def idle(rig: Rig) -> None:
    """No call is under way; leases are held."""
    rig.tell_clients("quiet")
    restart(rig, "idle")
    rig.tell_clients("resume")


def traffic(rig: Rig) -> None:
    rig.pause(0.0, 0.5)
    restart(rig, "traffic")


def recovery(rig: Rig) -> None:
    """Killed, and its successor too while it takes over what runs."""
    rig.kill_daemon("traffic")
    rig.launch_daemon()
    rig.pause(0.2, 1.2)
    rig.kill_daemon("recovery")
    rig.start_daemon()


def starting(rig: Rig) -> None:
    plan = rig.subject("--load-seconds", 1)
    with rig.client() as client:
        client.create_pool(plan.pool_id, plan.spec)
        reach(client, plan, pb.Pool.STARTING)
    rig.pause(0.0, 0.3)
    restart(rig, "starting")
    rig.await_ready([plan])
    forget(rig, plan)


def ready(rig: Rig) -> None:
    plan = made_ready(rig)
    rig.pause(0.0, 0.05)
    restart(rig, "ready")
    rig.await_ready([plan])
    forget(rig, plan)


def draining(rig: Rig) -> None:
    """The lease that the drain waits for lives through it; once it is given back the drain is over (DRN-1)."""
    plan = made_ready(rig)
    with rig.client() as client:
        held = client.acquire(plan.pool_id, holder="harness", ttl=30)
        client.drain(plan.pool_id, deadline=DRAIN_SECONDS)
        reach(client, plan, pb.Pool.DRAINING)
    rig.pause(0.0, 0.1)
    restart(rig, "draining")
    with rig.client() as client:
        renewed = client.renew(held.lease_id, held.token).outcome
        if renewed != lease_pb2.Lease.RENEWED:
            rig.fail("LEASE-3", f"the lease that {plan.pool_id} drains for is {renewed}", [held, rig.tail()], "lost")
        reach(client, plan, pb.Pool.DRAINING)
        rig.may_end(plan.pool_id)
        client.release(held.lease_id, held.token)
    await_stopped(rig, plan, "DRN-1")
    forget(rig, plan)


def stopping(rig: Rig) -> None:
    """It does not listen to SIGTERM, and the daemon dies between that and the SIGKILL."""
    plan = made_ready(rig, "--ignore-sigterm")
    with rig.client() as client:
        rig.may_end(plan.pool_id)
        client.stop(plan.pool_id, grace=1)
        reach(client, plan, pb.Pool.STOPPING)
    rig.pause(0.0, 1.1)
    restart(rig, "stopping")
    await_stopped(rig, plan, "PROC-3")
    forget(rig, plan)


def await_stopped(rig: Rig, plan: PoolPlan, rule: str) -> None:
    def stopped() -> bool:
        with rig.client() as client:
            return client.get_pool(plan.pool_id).state == pb.Pool.STOPPED and not rig.live.engines(plan.pool_id)

    rig.expect(rule, stopped, f"{plan.pool_id} is stopped, and no engine of it is left", STOPPED_SECONDS)


def backoff(rig: Rig) -> None:
    plan = made_ready(rig, supervision=LONG_BACKOFF)
    with rig.client() as client:
        rig.may_end(plan.pool_id)
        tell(client.get_pool(plan.pool_id).endpoint, exit=3)
        reach(client, plan, pb.Pool.BACKOFF)
    rig.pause(0.0, 0.2)
    restart(rig, "backoff")
    rig.await_ready([plan], rule="RST-8")
    forget(rig, plan)


def reloading(rig: Rig, strategy: pb.ReloadStrategy.ValueType = pb.RELOAD_MAKE_BEFORE_BREAK) -> None:
    """A changed spec replaces the engine; the daemon dies anywhere on the way, and it goes forward or back (DRN-3)."""
    plan = made_ready(rig)
    changed = scripted_pool(rig.id, plan.pool_id, "--ctx-size", 4096, version=2)
    with rig.client() as client:
        rig.may_end(plan.pool_id)
        client.reload(plan.pool_id, changed.spec, strategy=strategy)
    rig.pause(0.0, 0.4)
    restart(rig, "reloading")
    rig.await_ready([plan], rule="DRN-3")
    text = f"{plan.pool_id} and its engine are of one generation"
    rig.expect("DRN-3", lambda: one_generation(rig, plan.pool_id), text)
    forget(rig, plan)


def replacing(rig: Rig) -> None:
    reloading(rig, pb.RELOAD_BREAK_BEFORE_MAKE)


def rolling_back(rig: Rig) -> None:
    """To the generation before, which is kept under its own number (DRN-4)."""
    plan = made_ready(rig)
    changed = scripted_pool(rig.id, plan.pool_id, "--ctx-size", 4096, version=2)
    with rig.client(60) as client:
        rig.may_end(plan.pool_id)
        client.reload(plan.pool_id, changed.spec, strategy=pb.RELOAD_MAKE_BEFORE_BREAK, wait=20)
        rig.await_ready([plan], rule="DRN-2")
        client.rollback(plan.pool_id)
    rig.pause(0.0, 0.4)
    restart(rig, "rolling_back")
    rig.await_ready([plan], rule="DRN-4")
    text = f"{plan.pool_id} and its engine are of one generation"
    rig.expect("DRN-4", lambda: one_generation(rig, plan.pool_id), text)
    forget(rig, plan)


def one_generation(rig: Rig, pool_id: str) -> bool:
    """The generation that the pool says it is of is the one that its engine was started with."""
    with rig.client() as client:
        generation = client.get_pool(pool_id).generation
    return [line["v"] for line in rig.live.engines(pool_id)] == [str(generation)]


PHASES: dict[str, Callable[[Rig], None]] = {
    f.__name__: f
    for f in (
        traffic, idle, starting, ready, draining, stopping, backoff, recovery, reloading, replacing, rolling_back
    )
}  # fmt: skip
