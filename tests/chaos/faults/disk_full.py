"""The state directory's disk is full while the daemon runs: what lives goes on, changes are refused, and it passes."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from poolmgr.client import CallError, Client
from poolmgr.v1 import lease_pb2
from tests.chaos.design import Design
from tests.chaos.faults.common import Ending, check_same, end_engine, engines, forget, made_ready
from tests.chaos.rig import Rig

SIZE = "24m"
REFUSAL = "STORE_UNAVAILABLE"
# Together far more than a write-ahead log has room for before it grows.
ROOM_POOLS = 400
PADDINGS, PADDING_BYTES = 8, 4000
# The shim looks every 5 s whether there is room for a record that the disk refused.
RECORD_SECONDS = 10.0


def design() -> Design:
    """In a mount namespace of this run alone, so that nothing is left mounted."""
    disk = Path(tempfile.mkdtemp(prefix="poolmgr-chaos-disk-"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "chaos", str(disk)], check=True)

    def undo() -> None:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
        disk.rmdir()

    return Design(state=disk / "state", undo=undo)


def fill(path: Path) -> None:
    """To the last byte."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        for size in (1 << 20, 4096, 1):
            try:
                while True:
                    os.write(fd, bytes(size))
            except OSError:
                continue
    finally:
        os.close(fd)


def strike(rig: Rig, number: int) -> None:
    crash, killed = number % 3 == 1, number % 3 == 2
    rig.deeds.write("run", fault="disk-full", run=number, detail="an engine ends" if crash else "")
    before = engines(rig)
    filler = rig.state.parent / "filler"
    with rig.client() as client:
        held = [client.acquire("load-0", holder="harness", ttl=30, wait=20) for _ in range(2)]
        fill(filler)
        try:
            renewed = client.renew(held[0].lease_id, held[0].token).outcome
            released = client.release(held[1].lease_id, held[1].token).outcome
            kept = until_refused(rig, client)
            if crash:
                end_engine(rig, "llama-0", Ending("signal", int(signal.SIGKILL)))
            rig.pause(0.3, 1.5)
        finally:
            filler.unlink()
        if renewed != lease_pb2.Lease.RENEWED or released != lease_pb2.Lease.RELEASED:
            rig.fail("LEASE-3", f"with a full disk a renewal is answered {renewed} and a release {released}")
        if crash:  # there and then, or where it could not start without room for its log, once there is
            rig.await_again("llama-0", before["llama-0"])
            await_record(rig, "llama-0")
        client.release(held[0].lease_id, held[0].token)
        client.reset_breaker("llama-0")
    rig.must_live("llama-0")
    if killed:
        rig.kill_daemon("disk-full")
        rig.start_daemon()
    rig.await_ready(rig.pools)
    check_same(rig, before, "PROC-7", frozenset(["llama-0"] if crash else []))
    check_kept(rig, kept)
    forget(rig, made_ready(rig))


def await_record(rig: Rig, pool_id: str) -> None:
    """Whose engine was started while the disk was full: without the record the next daemon could not take it over."""
    record = rig.state / "engines" / str(rig.engine_of(pool_id)["engine"]) / "ident"
    rig.expect(
        "PROC-5", record.exists, f"the engine of {pool_id} has its record, now that there is room", RECORD_SECONDS
    )


def until_refused(rig: Rig, client: Client) -> list[str]:
    """Makes pools that are not to start. The database may have room of its own left: what it takes it has to keep.

    Returns what was acknowledged before the first refusal.
    """
    kept: list[str] = []
    while len(kept) < ROOM_POOLS:
        plan = rig.subject(preload=False)
        for n in range(PADDINGS):
            plan.spec.env[f"PADDING_{n}"] = "x" * PADDING_BYTES
        try:
            client.create_pool(plan.pool_id, plan.spec)
        except CallError as error:
            if error.reason != REFUSAL:
                rig.fail("PROC-7", f"a full disk refuses a pool with {error.reason}, not {REFUSAL}", [error.message])
            return kept
        kept.append(plan.pool_id)
    rig.fail("PROC-7", f"{len(kept)} pools were acknowledged though the disk is full", kept)
    return kept


def check_kept(rig: Rig, kept: Sequence[str]) -> None:
    with rig.client() as client:
        there = {pool.pool_id for pool in client.list_pools()}
        for pool_id in kept:
            if pool_id in there:
                client.delete(pool_id)
            else:
                rig.fail("PROC-7", f"{pool_id} was acknowledged while the disk was full, and is gone")
