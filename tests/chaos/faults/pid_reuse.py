"""A dead engine's pid is a stranger's before the daemon looks (PROC-6): in a pid namespace, whose pids we choose."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from subprocess import Popen

from poolmgr.v1 import pool_pb2 as pb
from tests.chaos import procs
from tests.chaos.design import Design
from tests.chaos.faults.common import Ending, await_no_shim, end_engine, forget, is_alive, made_ready
from tests.chaos.journal import Line
from tests.chaos.pools import PoolPlan
from tests.chaos.rig import Rig

LAST_PID = Path("/proc/sys/kernel/ns_last_pid")
TRIES = 200


def design() -> Design:
    return Design(llamas=1, scripted=2, load={"workers": 2})


def strike(rig: Rig, number: int) -> None:
    name = list(VARIANTS)[number % len(VARIANTS)]
    rig.deeds.write("run", fault="pid-reuse", run=number, detail=name)
    plan = made_ready(rig)
    stranger = VARIANTS[name](rig, plan, f"{number}-{name}")
    rig.pause(0.1, 0.3)
    check_unharmed(rig, plan, stranger, name)
    with rig.client() as client:
        doubted = client.get_pool(plan.pool_id).state == pb.Pool.UNKNOWN
    if doubted:  # what it asks for: what is not wanted is ended, and the daemon started again
        rig.check_stranger(stranger)
        rig.kill_daemon("pid-reuse")
        rig.start_daemon()
        rig.await_ready([plan])
        forget(rig, plan)
    else:
        forget(rig, plan)
        rig.check_stranger(stranger)
    rig.await_ready(rig.pools)


def check_unharmed(rig: Rig, plan: PoolPlan, stranger: Popen[bytes], name: str) -> None:
    with rig.client() as client:
        pool = client.get_pool(plan.pool_id)
    if pool.pid == stranger.pid:
        rig.fail("PROC-6", f"{plan.pool_id} has taken the stranger with pid {pool.pid} for its engine ({name})", [pool])
    if stranger.poll() is not None:
        rig.fail("PROC-6", f"the stranger with pid {stranger.pid} was killed ({name})", [stranger.poll()], "signal")


def take(rig: Rig, pid: int, name: str, environment: Mapping[str, str], *arguments: object) -> Popen[bytes]:
    """A stranger with this pid. Others fork too, so it may take a few tries."""
    for _ in range(TRIES):
        if Path(f"/proc/{pid}").exists():
            raise AssertionError(f"pid {pid} is taken: {Path(f'/proc/{pid}/cmdline').read_bytes()!r}")
        LAST_PID.write_text(str(pid - 1))
        stranger = rig.stranger(name, environment, *arguments)
        if stranger.pid == pid:
            rig.deeds.write("pid-reused", pid=pid, name=name)
            return stranger
        rig.check_stranger(stranger)
    raise AssertionError(f"pid {pid} could not be had in {TRIES} tries")


def killed(rig: Rig, plan: PoolPlan) -> Line:
    return end_engine(rig, plan.pool_id, Ending("signal", int(signal.SIGKILL)))


def await_gone(rig: Rig, pid: int) -> None:
    rig.expect("PROC-6", lambda: not Path(f"/proc/{pid}").exists(), f"pid {pid} is free", 10)


def dead_daemon(rig: Rig, plan: PoolPlan, name: str) -> Popen[bytes]:
    """Its shim has reaped the engine and keeps the record of its end."""
    rig.kill_daemon("pid-reuse")
    return reuse_and_return(rig, plan, name, killed(rig, plan), {})


def no_record(rig: Rig, plan: PoolPlan, name: str) -> Popen[bytes]:
    """The shim died first, so that nothing tells that the engine has ended."""
    engine = rig.engine_of(plan.pool_id)
    rig.kill_daemon("pid-reuse")
    shim = rig.shim_of(engine)
    assert shim is not None
    os.kill(shim, signal.SIGKILL)
    await_no_shim(rig, engine)
    return reuse_and_return(rig, plan, name, killed(rig, plan), {})


def on_its_port(rig: Rig, plan: PoolPlan, name: str) -> Popen[bytes]:
    """The stranger answers 200 where the engine did."""
    port = rig.endpoint_of(rig.engine_of(plan.pool_id)).rpartition(":")[2]
    rig.kill_daemon("pid-reuse")
    return reuse_and_return(rig, plan, name, killed(rig, plan), {}, port)


def reuse_and_return(
    rig: Rig, plan: PoolPlan, name: str, engine: Line, environment: Mapping[str, str], *arguments: object
) -> Popen[bytes]:
    """The stranger takes the pid, then the daemon comes back; the pool has a new engine."""
    pid = int(engine["pid"])  # type: ignore[call-overload]
    await_gone(rig, pid)
    stranger = take(rig, pid, name, environment, *arguments)
    rig.start_daemon()
    rig.await_again(plan.pool_id, engine)
    return stranger


def lookalike(rig: Rig, plan: PoolPlan, name: str) -> Popen[bytes]:
    """The stranger carries the engine's own mark: in doubt, it is neither adopted nor ended."""
    rig.kill_daemon("pid-reuse")
    engine = killed(rig, plan)
    pid = int(engine["pid"])  # type: ignore[call-overload]
    await_gone(rig, pid)
    stranger = take(rig, pid, name, {procs.ENGINE_VARIABLE: str(engine["engine"])})
    rig.start_daemon()
    return stranger


def while_stopped(rig: Rig, plan: PoolPlan, name: str) -> Popen[bytes]:
    """The daemon lives, and does not see it happen."""
    os.kill(rig.pid, signal.SIGSTOP)
    try:
        engine = killed(rig, plan)
        pid = int(engine["pid"])  # type: ignore[call-overload]
        await_gone(rig, pid)
        stranger = take(rig, pid, name, {})
    finally:
        os.kill(rig.pid, signal.SIGCONT)
    rig.await_again(plan.pool_id, engine)
    return stranger


def of_the_shim(rig: Rig, plan: PoolPlan, name: str) -> Popen[bytes]:
    """The shim's pid is taken; its engine lives, is adopted, and is stopped for good afterwards."""
    engine = rig.engine_of(plan.pool_id)
    shim = rig.shim_of(engine)
    assert shim is not None
    rig.kill_daemon("pid-reuse")
    os.kill(shim, signal.SIGKILL)
    await_no_shim(rig, engine)
    await_gone(rig, shim)
    stranger = take(rig, shim, name, {})
    rig.start_daemon()
    rig.await_ready([plan])
    if not is_alive(engine):
        rig.fail("PROC-7", f"the engine of {plan.pool_id} did not live through it", [engine], "signal")
    return stranger


VARIANTS: dict[str, Callable[[Rig, PoolPlan, str], Popen[bytes]]] = {
    f.__name__: f for f in (dead_daemon, no_record, on_its_port, lookalike, while_stopped, of_the_shim)
}
