"""`poolmgr pool …`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from poolmgr.cli import flags
from poolmgr.cli.flags import SpecFlags, StrategyChoice
from poolmgr.cli.session import REFUSED, Session, command, report

if TYPE_CHECKING:
    from poolmgr.v1 import pool_pb2

app = typer.Typer(no_args_is_help=True, help="Declare, start, drain, stop and look at pools.")

PoolId = Annotated[str, typer.Argument(metavar="POOL", help="The pool's id.")]
Wait = Annotated[float, typer.Option("--wait", min=0, metavar="SECONDS", help="Wait until done, at most so long.")]

DrainDeadline = Annotated[float | None, typer.Option(min=0, metavar="SECONDS", help="Else the spec's.")]


@command(app)
def create(
    session: Session,
    pool_id: Annotated[str, typer.Argument(metavar="POOL", help="Its id: 1 to 63 of a-z, 0-9 and -.")],
    engine: flags.Engine = None,
    model: flags.Model = None,
    context: flags.Context = None,
    slots: flags.Slots = None,
    program: flags.Program = None,
    args: flags.Args = None,
    env: flags.Env = None,
    devices: flags.Devices = None,
    split: flags.Split = None,
    port: flags.Port = None,
    labels: flags.Labels = None,
    restart: flags.Restart = None,
    file: flags.File = None,
    preload: Annotated[bool, typer.Option("--preload", help="Start it at once and after every restart.")] = False,
    wait: Wait = 0.0,
) -> None:
    """Declares a pool. The same again changes nothing; the same id with another spec is refused."""
    from poolmgr.cli.spec import spec_from

    said = SpecFlags(
        engine, model, context, slots, program, args or (), env or (), devices, port, labels or (), restart, preload,
        split,
    )  # fmt: skip
    spec = spec_from(file, said)
    if wait and not spec.preload:
        raise typer.BadParameter("--wait needs --preload: nothing is started without it")
    with session.client() as client:
        pool = client.create_pool(pool_id, spec)
    if wait:
        _preload(session, pool_id, wait)
    else:
        _show(session, pool)


@command(app, "list")
def list_(session: Session) -> None:
    """Lists the pools."""
    from poolmgr.cli import show
    from poolmgr.v1 import pool_pb2

    with session.client() as client:
        session.answer(pool_pb2.ListPoolsResponse(pools=client.list_pools()), show.pools)


@command(app)
def show(session: Session, pool_id: PoolId) -> None:
    """Shows one pool, and what ended its last engine."""
    with session.client() as client:
        _show(session, client.get_pool(pool_id))


@command(app)
def preload(session: Session, pool_id: PoolId, wait: Wait = 0.0) -> None:
    """Starts a pool. With --wait, fails unless it is READY in time."""
    _preload(session, pool_id, wait)


@command(app)
def drain(
    session: Session,
    pool_id: PoolId,
    deadline: DrainDeadline = None,
    wait: Wait = 0.0,
) -> None:
    """Gives no more leases, lets running ones finish, then stops."""
    from poolmgr.cli.progress import following

    with following(session, pool_id), session.client() as client:
        pool = client.drain(pool_id, deadline=deadline, wait=wait)
    _show(session, pool)
    _require(pool, "STOPPED", wait)


@command(app)
def undrain(session: Session, pool_id: PoolId) -> None:
    """Cancels a drain."""
    with session.client() as client:
        _show(session, client.undrain(pool_id))


@command(app)
def reload(
    session: Session,
    pool_id: PoolId,
    engine: flags.Engine = None,
    model: flags.Model = None,
    context: flags.Context = None,
    slots: flags.Slots = None,
    program: flags.Program = None,
    args: flags.Args = None,
    env: flags.Env = None,
    devices: flags.Devices = None,
    split: flags.Split = None,
    port: flags.Port = None,
    labels: flags.Labels = None,
    restart: flags.Restart = None,
    file: flags.File = None,
    strategy: Annotated[StrategyChoice, typer.Option(help="Which engine goes first.")] = StrategyChoice.AUTO,
    drain_deadline: DrainDeadline = None,
    wait: Wait = 0.0,
) -> None:
    """Moves a pool to a changed spec, or restarts it as it is when nothing is said of one.

    Options change the pool's spec as it is, a file replaces it. With --wait, fails when the pool stays what it was.
    """
    from poolmgr.cli.progress import following
    from poolmgr.cli.spec import strategy_from, updated_spec

    said = SpecFlags(
        engine, model, context, slots, program, args or (), env or (), devices, port, labels or (), restart,
        split=split,
    )  # fmt: skip
    with session.client() as client:
        before = client.get_pool(pool_id)
        spec = updated_spec(before.spec, file, said)
        with following(session, pool_id):
            pool = client.reload(
                pool_id, spec, strategy=strategy_from(strategy), drain_deadline=drain_deadline, wait=wait
            )
    _show(session, pool)
    _require_moved(before, pool, wait)


@command(app)
def rollback(
    session: Session,
    pool_id: PoolId,
    generation: Annotated[int, typer.Option(min=0, help="As `pool generations` shows it; else the last good one.")] = 0,
    drain_deadline: DrainDeadline = None,
    wait: Wait = 0.0,
) -> None:
    """Goes back to a generation that is kept. With --wait, fails when the pool stays what it was."""
    from poolmgr.cli.progress import following

    with following(session, pool_id), session.client() as client:
        before = client.get_pool(pool_id)
        pool = client.rollback(pool_id, generation, drain_deadline=drain_deadline, wait=wait)
    _show(session, pool)
    _require_moved(before, pool, wait)


@command(app)
def generations(session: Session, pool_id: PoolId) -> None:
    """Lists the versions of a pool's spec that are kept, oldest first."""
    from poolmgr.cli import show
    from poolmgr.v1 import pool_pb2

    with session.client() as client:
        found = client.generations(pool_id)
    session.answer(pool_pb2.ListPoolGenerationsResponse(generations=found), show.generations)


@command(app)
def stop(
    session: Session,
    pool_id: PoolId,
    grace: Annotated[float | None, typer.Option(min=0, metavar="SECONDS", help="From SIGTERM to the kill.")] = None,
    wait: Wait = 0.0,
) -> None:
    """Stops the engine without a drain; live leases are revoked."""
    with session.client() as client:
        pool = client.stop(pool_id, grace=grace, wait=wait)
    _show(session, pool)
    _require(pool, "STOPPED", wait)


@command(app)
def delete(
    session: Session,
    pool_id: PoolId,
    drain_deadline: DrainDeadline = None,
) -> None:
    """Drains, stops and forgets a pool; done when it is gone."""
    from poolmgr.cli.progress import following

    with following(session, pool_id), session.client() as client:
        client.delete(pool_id, drain_deadline=drain_deadline)
    typer.echo("{}" if session.as_json else f"{pool_id} is deleted")


@command(app, "reset-breaker")
def reset_breaker(session: Session, pool_id: PoolId) -> None:
    """Closes the breaker and forgets the failures of a pool; a PARKED one starts again."""
    with session.client() as client:
        _show(session, client.reset_breaker(pool_id))


@command(app)
def watch(
    session: Session,
    pool_id: Annotated[str, typer.Argument(metavar="[POOL]", help="Only this one.")] = "",
    from_revision: Annotated[int, typer.Option(min=0, help="The first revision not yet seen; 0: all as it is.")] = 0,
) -> None:
    """Prints every change as it happens, one a line, until Ctrl-C."""
    from poolmgr.cli import output, show

    with session.client() as client:
        for response in client.watch_pools(from_revision=from_revision, pool_id=pool_id):
            if session.as_json:
                output.print_json(response, one_line=True)
            else:
                show.change(response)


@command(app)
def logs(
    session: Session,
    pool_id: PoolId,
    lines: Annotated[int, typer.Option("-n", "--lines", min=1, max=10_000, help="How many to begin with.")] = 50,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Then new ones as they are written.")] = False,
) -> None:
    """Prints the last lines of the engine's log as they are, with --json one JSON string a line."""
    with session.client() as client:
        for line in client.tail_logs(pool_id, lines=lines, follow=follow):
            print(json.dumps(line) if session.as_json else line, flush=True)


def _preload(session: Session, pool_id: str, wait: float) -> None:
    from poolmgr.cli.progress import following

    with following(session, pool_id), session.client() as client:
        pool = client.preload(pool_id, wait=wait)
    _show(session, pool)
    _require(pool, "READY", wait)


def _show(session: Session, pool: pool_pb2.Pool) -> None:
    from poolmgr.cli import show

    session.answer(pool, show.pool)


def _require(pool: pool_pb2.Pool, state: str, wait: float) -> None:
    """Who waited for a state and did not get it must see that from the exit code."""
    reached = type(pool).State.Name(pool.state)
    if wait and reached != state:
        why = pool.last_error.message or pool.state_reason
        report(
            f"pool {pool.pool_id} is {reached} and was to be {state} within {wait:g} s" + (f": {why}" if why else ""),
            pool.last_error.reason or "POOL_STATE",
        )
        raise typer.Exit(REFUSED)


def _require_moved(before: pool_pb2.Pool, pool: pool_pb2.Pool, wait: float) -> None:
    """Who waited for a reload that failed, or is not over, must see that from the exit code."""
    if not wait:
        return
    error, name = pool.last_error, f"pool {pool.pool_id}"
    if pool.reload_phase not in ("", "retiring"):
        message = f"{name} is still {pool.reload_phase} on its way to generation {pool.reload_generation}"
        report(f"{message} after {wait:g} s", "RELOAD_IN_PROGRESS")
    elif error.reason and error != before.last_error:
        report(f"{name} stays at generation {pool.generation}: {error.message}", error.reason)
    else:
        return
    raise typer.Exit(REFUSED)
