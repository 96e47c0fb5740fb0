"""`poolmgr lease …`."""

from __future__ import annotations

import getpass
import socket
from typing import Annotated

import typer

from poolmgr.cli.session import REFUSED, Session, command, report

app = typer.Typer(no_args_is_help=True, help="Take, give back and list leases by hand.")


@command(app)
def acquire(
    session: Session,
    pool_id: Annotated[str, typer.Argument(metavar="POOL")],
    holder: Annotated[str, typer.Option(help="Who holds it; else you at this host.")] = "",
    ttl: Annotated[float | None, typer.Option(min=0, metavar="SECONDS", help="It ends by itself after.")] = None,
    wait: Annotated[float, typer.Option(min=0, metavar="SECONDS", help="Queue for a slot at most so long.")] = 0.0,
    priority: Annotated[int, typer.Option(help="Higher goes first among waiters.")] = 0,
) -> None:
    """Takes one slot. Nothing renews it: it ends after its TTL, or by `lease release`."""
    from poolmgr.cli import show

    holder = holder or f"{getpass.getuser()}@{socket.gethostname()}"
    with session.client() as client:
        lease = client.acquire(pool_id, holder=holder, ttl=ttl, wait=wait, priority=priority)
    session.answer(lease, show.lease)


@command(app)
def release(
    session: Session,
    lease_id: Annotated[str, typer.Argument(metavar="LEASE")],
    token: Annotated[str, typer.Argument(metavar="TOKEN", help="As `lease acquire` showed it.")],
) -> None:
    """Gives a slot back. Once more is no error; a lease that ended otherwise is."""
    from poolmgr.v1 import lease_pb2

    with session.client() as client:
        answer = client.release(lease_id, token)
    outcome = lease_pb2.Lease.Outcome.Name(answer.outcome)
    session.answer(answer, lambda _: typer.echo(outcome))
    if answer.outcome not in (lease_pb2.Lease.RELEASED, lease_pb2.Lease.ALREADY_RELEASED):
        message = f"lease {lease_id} was not there to release: it ended by itself, or its id or token is wrong"
        report(message, f"LEASE_{outcome}")
        raise typer.Exit(REFUSED)


@command(app, "list")
def list_(session: Session, pool: Annotated[str, typer.Option(help="Only of this pool.")] = "") -> None:
    """Lists live leases in the order of their grant."""
    from poolmgr.cli import show
    from poolmgr.v1 import lease_pb2

    with session.client() as client:
        session.answer(lease_pb2.ListLeasesResponse(leases=client.list_leases(pool)), show.leases)
