"""`poolmgr engine …`."""

from __future__ import annotations

from typing import Annotated

import typer

from poolmgr.cli.session import Session, command

app = typer.Typer(no_args_is_help=True, help="Look at the engines behind the pools.")


@command(app, "list")
def list_(session: Session, pool: Annotated[str, typer.Option(help="Only of this pool.")] = "") -> None:
    """Lists engines: those that the daemon runs, and those that registered themselves."""
    from poolmgr.cli import show
    from poolmgr.v1 import engine_pb2

    with session.client() as client:
        session.answer(engine_pb2.ListEnginesResponse(engines=client.list_engines(pool)), show.engines)
