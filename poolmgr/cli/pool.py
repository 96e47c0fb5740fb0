"""`poolmgr pool …`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from poolmgr.cli.flags import EngineChoice, RestartChoice, SpecFlags
from poolmgr.cli.session import REFUSED, Session, command, report

if TYPE_CHECKING:
    from poolmgr.v1 import pool_pb2

app = typer.Typer(no_args_is_help=True, help="Declare, start, drain, stop and look at pools.")

PoolId = Annotated[str, typer.Argument(metavar="POOL", help="The pool's id.")]
Wait = Annotated[float, typer.Option("--wait", min=0, metavar="SECONDS", help="Wait until done, at most so long.")]


@command(app)
def create(
    session: Session,
    pool_id: Annotated[str, typer.Argument(metavar="POOL", help="Its id: 1 to 63 of a-z, 0-9 and -.")],
    engine: Annotated[EngineChoice | None, typer.Option(help="Else what --model or --command mean.")] = None,
    model: Annotated[Path | None, typer.Option(help="Model file on the daemon's host.")] = None,
    context: Annotated[int | None, typer.Option(min=0, help="Tokens of context per slot.")] = None,
    slots: Annotated[int | None, typer.Option(min=1, help="Requests that may be leased at once.")] = None,
    program: Annotated[str | None, typer.Option("--command", help="Executable: absolute, or on PATH.")] = None,
    args: Annotated[list[str] | None, typer.Option("--arg", help="One more argument; {port} is the port.")] = None,
    env: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="One more variable.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Preferred port.")] = None,
    labels: Annotated[list[str] | None, typer.Option("--label", metavar="NAME=VALUE", help="For people.")] = None,
    restart: Annotated[RestartChoice | None, typer.Option(help="When its engine ends.")] = None,
    file: Annotated[Path | None, typer.Option(help="TOML, as a pool in the configuration, or JSON.")] = None,
    preload: Annotated[bool, typer.Option("--preload", help="Start it at once and after every restart.")] = False,
    wait: Wait = 0.0,
) -> None:
    """Declares a pool. The same again changes nothing; the same id with another spec is refused."""
    from poolmgr.cli.spec import spec_from

    flags = SpecFlags(
        engine=engine,
        model=model,
        context=context,
        slots=slots,
        command=program,
        args=args or (),
        env=env or (),
        port=port,
        labels=labels or (),
        restart=restart,
        preload=preload,
    )
    spec = spec_from(file, flags)
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
    deadline: Annotated[float | None, typer.Option(min=0, metavar="SECONDS", help="Else the spec's.")] = None,
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
    drain_deadline: Annotated[float | None, typer.Option(min=0, metavar="SECONDS", help="Else the spec's.")] = None,
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
