"""The main job, shown on a real engine: `make demo`.

Makes two small random-weight models, starts the daemon, preloads a real llama.cpp server, leases a slot, completes text
through the leased endpoint, kills the engine and watches the daemon bring it back, reloads to the second model under a
lease and rolls back, kills the daemon and starts another, drains, and leaves nothing behind.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from poolmgr.client import CallError, Client, LeaseRefused
from poolmgr.testing.gguf import write_tiny_llama
from poolmgr.v1 import lease_pb2
from poolmgr.v1 import pool_pb2 as pb

POOL = "demo"
SECONDS = 50.0
BIN = Path(sys.executable).parent
console = Console(highlight=False)


def say(text: str) -> None:
    console.print(f"[bold cyan]demo[/] {text}", soft_wrap=True)


def wait_for_address(log: Path, daemon: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline and daemon.poll() is None:
        for line in log.read_text().splitlines():
            if '"daemon_started"' in line:
                return str(json.loads(line)["address"])
        time.sleep(0.02)
    raise SystemExit(f"demo: the daemon did not start:\n{log.read_text()}")


def start_daemon(directory: Path, address: str = "127.0.0.1:0") -> tuple[str, subprocess.Popen[bytes]]:
    log = directory / "daemon.log"
    command = [sys.executable, "-m", "poolmgr", "--addr", address, "--state-dir", str(directory / "state")]
    command += ["--set", "observability.log_format=json"]
    with log.open("wb") as output:
        daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    return wait_for_address(log, daemon), daemon


@contextmanager
def running_daemon(directory: Path) -> Iterator[str]:
    address, _ = start_daemon(directory)
    try:
        yield address
    finally:
        if not os.environ.get("KEEP"):
            with Client(address) as client:
                pid = client.status().pid
                client.shutdown(stop_engines=True)
            wait_for_end(pid)


def wait_for_end(pid: int) -> None:
    """Of a process that may be nobody's child here."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    select.select([descriptor], [], [], 20)
    os.close(descriptor)


def get(endpoint: str, path: str, body: dict[str, object] | None = None) -> dict[str, object]:
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(f"http://{endpoint}{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as response:
        return dict(json.load(response))


def preload(client: Client) -> float:
    """Seconds from the call to READY, with the progress on the screen."""
    begun = time.monotonic()
    client.preload(POOL)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("preloading")
        for change in client.watch_pools(pool_id=POOL):
            pools = [change.upsert] if change.HasField("upsert") else list(change.snapshot.pools)
            for pool in pools:
                state = pb.Pool.State.Name(pool.state)
                progress.update(task, description=f"{state}: {pool.state_reason}")
                if pool.state == pb.Pool.READY:
                    return time.monotonic() - begun
                if pool.state in (pb.Pool.BACKOFF, pb.Pool.PARKED, pb.Pool.STOPPED):
                    raise SystemExit(f"demo: preload failed: {pool.last_error.reason}: {pool.last_error.message}")
    raise SystemExit("demo: the pool did not get ready")


def lease_and_complete(client: Client) -> tuple[float, float]:
    """(seconds to the lease, seconds of the completion). Shows that the engine is a real one."""
    begun = time.monotonic()
    with client.lease(POOL, holder="demo") as lease:
        leased = time.monotonic() - begun
        say(f"lease {lease.lease.lease_id}: engine at {lease.endpoint}, fencing token {lease.lease.fencing_token}")
        props = get(lease.endpoint, "/props")
        say(f"engine says: build [bold]{props['build_info']}[/], model {props['model_path']}")
        begun = time.monotonic()
        answer = get(lease.endpoint, "/v1/completions", {"prompt": "hello", "max_tokens": 12, "temperature": 0})
        completed = time.monotonic() - begun
        choices = answer["choices"]
        assert isinstance(choices, list)
        say(f"completion of {answer['usage']}: {choices[0]['text']!r} (random weights: nonsense is right)")
    return leased, completed


def crash(client: Client) -> dict[str, float]:
    """SIGKILLs the engine; seconds from the kill to each thing that the daemon tells its watchers."""
    seen: dict[str, float] = {}
    changes = client.watch_pools(pool_id=POOL)
    pid = next(iter(changes)).snapshot.pools[0].pid
    say(f"kill -9 {pid}")
    os.kill(pid, signal.SIGKILL)
    begun = time.monotonic()
    for change in changes:
        pool, state = change.upsert, pb.Pool.State.Name(change.upsert.state)
        if state not in seen and pool.pid != pid:
            say(f"  {1000 * (time.monotonic() - begun):7.1f} ms {state}: {pool.state_reason}")
        if state == "STOPPING":
            seen.setdefault("detected", time.monotonic() - begun)
        seen.setdefault(state, time.monotonic() - begun)
        if pool.state == pb.Pool.READY and pool.pid != pid:
            seen["recovered"] = time.monotonic() - begun
            say(f"  back with pid {pool.pid}, restarts {pool.restart_count}, cause {pool.last_error.reason}")
            return seen
    raise SystemExit("demo: the engine did not come back")


def reload_and_back(client: Client, second: Path) -> dict[str, float]:
    """To another model and back, while somebody holds a lease; seconds of each."""
    times = {}
    before = client.get_pool(POOL)
    with client.lease(POOL, holder="demo") as lease:
        spec = pb.PoolSpec()
        spec.CopyFrom(before.spec)
        spec.model.path = str(second)
        begun = time.monotonic()
        new = client.reload(POOL, spec, wait=SECONDS)
        times["reload to READY"] = time.monotonic() - begun
        if not new.ready or new.generation == before.generation:
            raise SystemExit(f"demo: the reload failed: {new.last_error.reason}: {new.last_error.message}")
        say(f"reloaded to generation {new.generation}: {get(new.endpoint, '/props')['model_path']}, pid {new.pid}")
        answer = get(lease.endpoint, "/v1/completions", {"prompt": "hello", "max_tokens": 2})
        say(f"the lease on generation {before.generation} still works: {answer['usage']}")
    wait_for_pool(client, lambda pool: not pool.reload_phase)
    begun = time.monotonic()
    back = client.rollback(POOL, wait=SECONDS)
    times["rollback to READY"] = time.monotonic() - begun
    if not back.ready or back.generation != before.generation:
        raise SystemExit(f"demo: the rollback failed: {back.last_error.reason}: {back.last_error.message}")
    say(f"rolled back to generation {back.generation}: {get(back.endpoint, '/props')['model_path']}")
    wait_for_pool(client, lambda pool: not pool.reload_phase)
    return times


def wait_for_pool(client: Client, reached: Callable[[pb.Pool], bool]) -> pb.Pool:
    for change in client.watch_pools(pool_id=POOL):
        for pool in [change.upsert] if change.HasField("upsert") else change.snapshot.pools:
            if reached(pool):
                return pool
    raise SystemExit("demo: the watch ended")


def next_daemon(directory: Path, address: str) -> float:
    """kill -9 of the daemon while a lease is held; seconds until the next one answers. The lease goes on."""
    with Client(address) as client:
        pool, pid = client.get_pool(POOL), client.status().pid
        lease = client.acquire(POOL, holder="demo", ttl=60)
    say(f"kill -9 {pid}, which is the daemon")
    os.kill(pid, signal.SIGKILL)
    begun = time.monotonic()
    wait_for_end(pid)
    start_daemon(directory, address)
    with Client(address) as client:
        after = wait_for_pool(client, lambda pool: pool.ready)
        seconds = time.monotonic() - begun
        outcome = lease_pb2.Lease.Outcome.Name(client.renew(lease.lease_id, lease.token).outcome)
        say(f"the next daemon has the same engine (pid {after.pid}), and the lease is {outcome}")
        client.release(lease.lease_id, lease.token)
    if (after.pid, after.restart_count, outcome) != (pool.pid, pool.restart_count, "RENEWED"):
        raise SystemExit("demo: the engine or the lease was lost")
    return seconds


def drain(client: Client) -> float:
    begun = time.monotonic()
    pool = client.drain(POOL, wait=SECONDS)
    if pool.state != pb.Pool.STOPPED:
        raise SystemExit(f"demo: the drain ended in {pb.Pool.State.Name(pool.state)}")
    try:
        client.acquire(POOL, holder="too-late")
    except LeaseRefused as refused:
        say(f"a lease after the drain is refused: {refused.reason}")
    return time.monotonic() - begun


def show(times: dict[str, float]) -> None:
    table = Table("step", "ms", title="measured in this run")
    for step, seconds in times.items():
        table.add_row(step, f"{1000 * seconds:.1f}")
    console.print(table)


def main() -> None:
    signal.alarm(int(SECONDS) + 10)  # whatever hangs, the demo does not
    directory = Path(tempfile.mkdtemp(prefix="poolmgr-demo-"))
    first, second = directory / "tiny.gguf", directory / "other.gguf"
    for model in (first, second):
        write_tiny_llama(model)
    say(f"models: {first} and {second.name} ({first.stat().st_size} bytes, random weights)")
    with running_daemon(directory) as address:
        times = life_of_a_pool(directory, address, first, second)
        if os.environ.get("KEEP"):
            show(times)
            say(f"kept running; look at it: {BIN}/poolmgr --addr {address} pool list")
            say(f"end it: {BIN}/poolmgr --addr {address} shutdown --stop-engines")
            console.print("demo: ok")
            return
        with Client(address) as client:
            times["drain and stop"] = drain(client)
            client.delete(POOL)
    show(times)
    left = leftovers(directory)
    if left:
        raise SystemExit(f"demo: left behind: {left}")
    shutil.rmtree(directory)
    console.print("demo: ok")


def life_of_a_pool(directory: Path, address: str, first: Path, second: Path) -> dict[str, float]:
    """From creation to where it could be drained; what took how many seconds."""
    with Client(address) as client:
        say(f"daemon: pid {client.status().pid} at {address}")
        model = pb.Model(path=str(first), context_length=512)
        client.create_pool(POOL, pb.PoolSpec(engine=pb.ENGINE_LLAMACPP, model=model, slots=2, device_mask="none"))
        times = {"preload to READY": preload(client)}
        times["lease"], times["completion"] = lease_and_complete(client)
        seen = crash(client)
        times["kill to detection"] = seen["detected"]
        times["kill to BACKOFF"] = seen["BACKOFF"]
        times["kill to READY again (1 s backoff)"] = seen["recovered"]
        times |= reload_and_back(client, second)
    times["kill of the daemon to its successor's READY"] = next_daemon(directory, address)
    return times


def leftovers(directory: Path) -> list[str]:
    """Command lines of processes that still name the demo's directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue  # ended while we looked
            if str(directory) in command:
                found.append(f"{entry.name}: {command}")
    return found


if __name__ == "__main__":
    try:
        main()
    except CallError as error:
        raise SystemExit(f"demo: {error}") from error
