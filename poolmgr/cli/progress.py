"""Shows how a pool is coming along while a call waits for it, as WatchPools tells it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from poolmgr.cli.output import bytes_text, plain
from poolmgr.cli.session import Session
from poolmgr.client import CallError, Client
from poolmgr.v1 import pool_pb2


@contextmanager
def following(session: Session, pool_id: str) -> Iterator[None]:
    """A progress bar on a terminal's stderr for the time of the block; nothing elsewhere and for --json."""
    console = Console(stderr=True)
    if session.as_json or not console.is_terminal:
        yield
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(20), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar, session.client() as watcher:
        task = bar.add_task(pool_id, total=None)
        threading.Thread(target=_follow, args=(watcher, pool_id, bar, task), daemon=True).start()
        yield


def _follow(watcher: Client, pool_id: str, bar: Progress, task: TaskID) -> None:
    most = 0
    try:
        for response in watcher.watch_pools(pool_id=pool_id):
            for pool in (response.upsert, *response.snapshot.pools):
                if pool.pool_id == pool_id:
                    bar.update(task, description=describe(pool))
                    if pool.draining:
                        most = max(most, pool.active_leases)
                        bar.update(task, total=most, completed=most - pool.active_leases)
    except CallError:
        # Closed at the end of the block; anything else the call that is waited for meets too, and tells.
        return


def describe(pool: pool_pb2.Pool) -> str:
    """One line: the state, and what the pool waits for."""
    parts = [pool.pool_id, pool_pb2.Pool.State.Name(pool.state)]
    if pool.reload_phase:
        parts.append(f"{pool.reload_phase}, to generation {pool.reload_generation}")
    if pool.draining:
        parts.append(f"{pool.active_leases} leases left")
    parts += [pool.progress.phase, bytes_text(pool.progress.bytes_done), pool.progress.message]
    return plain(" · ".join(part for part in parts if part)).plain
