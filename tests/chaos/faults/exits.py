"""Engines that end with a known cause, in batches: the pool's `last_error` has to tell it (LIVE-3, PROC-6)."""

from __future__ import annotations

import errno
import os
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

from poolmgr.v1 import pool_pb2 as pb
from tests.chaos import hungry
from tests.chaos.design import Design, nothing
from tests.chaos.faults.common import (
    Ending,
    any_ending,
    check_cause,
    end_engine,
    engines,
    forget,
    kill_shim,
    made_ready,
)
from tests.chaos.pools import mark
from tests.chaos.rig import Rig
from tests.e2e.daemon import eventually
from tests.e2e.engines import HEALTH, ask, scripted, tell

BATCH = 8
MEMORY_LIMIT = 900 << 20
REMOVE_SECONDS = 10.0
V1_MEMORY = Path("/sys/fs/cgroup/memory")
# LIVE-3 names them; each needs hardware or a product part that this host does not have.
NOT_HERE = "causes that this host cannot produce: GPU_OOM, CUDA_ERROR, DEVICE_LOST (no GPU)"
NO_OOM = "HOST_OOM was not produced: no v1 memory cgroup that we may make"
# In the cgroup, and nothing that the OOM killer may choose: only the engine that eats offers itself. While the kernel
# still takes back what that one had, it would else take the next best, which is the daemon.
JOIN = (
    "import os, sys; open(sys.argv[1], 'w').write('0'); open('/proc/self/oom_score_adj', 'w').write('-1000'); "
    "os.execv(sys.argv[2], sys.argv[2:])"
)


def design() -> Design:
    group = memory_group()
    prefix = [] if group is None else [sys.executable, "-I", "-S", "-c", JOIN, str(group / "cgroup.procs")]
    undo = nothing if group is None else lambda: eventually(lambda: removed(group), REMOVE_SECONDS)
    return Design(llamas=0, scripted=BATCH, prefix=prefix, load={"workers": 2}, undo=undo)


def removed(group: Path) -> bool:
    """Whether the cgroup could be removed: its last process may yet be dying."""
    try:
        group.rmdir()
    except OSError as busy:
        return busy.errno != errno.EBUSY
    return True


def memory_group() -> Path | None:
    """A memory cgroup with a limit, which daemon, shims and engines will be in."""
    if not (V1_MEMORY / "memory.limit_in_bytes").exists() or os.geteuid() != 0:
        return None
    group = V1_MEMORY / f"poolmgr-chaos-{uuid.uuid4().hex[:12]}"
    group.mkdir()
    (group / "memory.limit_in_bytes").write_text(str(MEMORY_LIMIT))
    return group


def strike(rig: Rig, number: int) -> None:
    """One batch: `BATCH` ends in one circumstance."""
    batch = number // BATCH
    if batch == 0:
        rig.deeds.write("note", text=NOT_HERE)
        if not rig.design.prefix:
            rig.deeds.write("note", text=NO_OOM)
    names = list(CIRCUMSTANCES)
    name = names[batch % len(names)]
    for run in range(number, number + BATCH):
        rig.deeds.write("run", fault="exits", run=run, detail=name)
    CIRCUMSTANCES[name](rig, name)
    rig.await_ready(rig.pools)


Deed = Callable[[], None]


def all_end(rig: Rig, where: str, *, witnessed: bool = True, before: Deed, after: Deed) -> None:
    endings = {plan.pool_id: any_ending(rig.rng) for plan in rig.pools}
    before()
    ended = {pool_id: end_engine(rig, pool_id, ending) for pool_id, ending in endings.items()}
    after()
    for pool_id, ending in endings.items():
        check_cause(rig, pool_id, ended[pool_id], ending, where, witnessed)


def daemon_alive(rig: Rig, where: str) -> None:
    all_end(rig, where, before=nothing, after=nothing)


def daemon_dead(rig: Rig, where: str) -> None:
    all_end(rig, where, before=lambda: rig.kill_daemon("exits"), after=rig.start_daemon)


def shims_die(rig: Rig) -> None:
    for engine in engines(rig).values():
        kill_shim(rig, engine)


def shim_dead(rig: Rig, where: str) -> None:
    all_end(rig, where, before=lambda: shims_die(rig), after=nothing)


def both_dead(rig: Rig, where: str) -> None:
    """Nobody of ours is left to see it: the truth, or UNKNOWN."""

    def die() -> None:
        shims_die(rig)
        rig.kill_daemon("exits")

    all_end(rig, where, witnessed=False, before=die, after=rig.start_daemon)


def special(rig: Rig, where: str) -> None:
    """Causes that are no exit code and no signal of the engine's own."""
    for n in range(BATCH):
        (graceful, unhealthy, stalled, out_of_memory)[n % 4](rig)


def graceful(rig: Rig) -> None:
    """Exit 0 unasked: no error and no restart."""
    plan = made_ready(rig)
    end_engine(rig, plan.pool_id, Ending("exit", 0))
    with rig.client() as client:
        pool = eventually(lambda: stopped(client.get_pool(plan.pool_id)), 20)
    if pool.HasField("last_error"):
        rig.fail("LIVE-3", f"{plan.pool_id} exited with 0, and has an error", [pool.last_error], "cause")
    rig.deeds.write("exit-checked", cause="GRACEFUL", where="daemon_alive", pool=plan.pool_id)
    forget(rig, plan)


def stopped(pool: pb.Pool) -> pb.Pool | None:
    return pool if pool.state == pb.Pool.STOPPED else None


def unhealthy(rig: Rig) -> None:
    plan = made_ready(rig, supervision={"health_check_interval_ms": 100, "backoff_initial_ms": 60_000})
    rig.may_end(plan.pool_id)
    tell(rig.endpoint_of(rig.engine_of(plan.pool_id)), health=500)
    await_reason(rig, plan.pool_id, "HEALTH_CHECK_FAILED")
    forget(rig, plan)


def stalled(rig: Rig) -> None:
    supervision = {"stall_timeout_secs": 1, "backoff_initial_ms": 60_000}
    plan = rig.subject("--never-ready", "--silent-load", supervision=supervision)
    with rig.client() as client:
        client.create_pool(plan.pool_id, plan.spec)
    await_reason(rig, plan.pool_id, "STALLED")
    forget(rig, plan)


def out_of_memory(rig: Rig) -> None:
    if not rig.design.prefix:
        return
    pool_id = rig.subject().pool_id
    args = ["-I", "-S", str(Path(hungry.__file__)), "{port}"]
    spec = scripted(args=args, readiness=HEALTH, preload=True, supervision={"backoff_initial_ms": 60_000})
    plan = mark(rig.id, pool_id, spec)
    with rig.client() as client:
        client.create_pool(plan.pool_id, plan.spec)
    rig.await_ready([plan], rule="PRE-1")
    # All are in the one cgroup. Engines offer themselves before daemon and shims, and while the kernel still takes back
    # what the one that ate had, it takes the next best: seen twice in 17, with both cores busy.
    for other in rig.pools:
        rig.may_end(other.pool_id)
    ask(rig.endpoint_of(rig.engine_of(pool_id)), "/eat", {})
    await_reason(rig, pool_id, "HOST_OOM")
    forget(rig, plan)
    rig.await_ready(rig.pools)
    for other in rig.pools:
        rig.must_live(other.pool_id)


def await_reason(rig: Rig, pool_id: str, reason: str) -> None:
    def told() -> str | None:
        with rig.client() as client:
            pool = client.get_pool(pool_id)
        return pool.last_error.reason if pool.state == pb.Pool.BACKOFF else None

    found = eventually(told, 30)
    if found != reason:
        rig.fail("LIVE-3", f"{pool_id} should tell {reason}, and tells {found}", [rig.tail()], "cause")
    rig.deeds.write("exit-checked", cause=found, where="daemon_alive", pool=pool_id)


CIRCUMSTANCES: dict[str, Callable[[Rig, str], None]] = {
    f.__name__: f for f in (daemon_alive, daemon_dead, shim_dead, both_dead, special)
}
