"""`poolmgr config …`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from poolmgr.cli.session import REFUSED, Session, command, report
from poolmgr.errors import PoolmgrError

app = typer.Typer(no_args_is_help=True, help="Check, show and reload the configuration.")


@app.command()
def check(file: Annotated[Path | None, typer.Argument(help="Else what POOL_MANAGERD_CONFIG names.")] = None) -> None:
    """Checks a configuration file, with this environment over it. Needs no daemon and changes nothing."""
    from poolmgr.config.load import load_config

    try:
        loaded = load_config(file, os.environ, {})
    except PoolmgrError as error:
        report(error.message, error.reason)
        raise typer.Exit(REFUSED) from error
    typer.echo(f"{loaded.file or 'the configuration (no file)'} is sound, with {len(loaded.config.pools)} pools")


@command(app)
def show(session: Session) -> None:
    """Shows every value that the daemon runs with, and where it comes from."""
    from poolmgr.cli import show as shown

    with session.client() as client:
        session.answer(client.config(), shown.config)


@command(app)
def reload(
    session: Session,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would change.")] = False,
) -> None:
    """Makes the daemon read its file again and apply the difference; a bad file changes nothing."""
    from poolmgr.cli import show as shown

    with session.client() as client:
        session.answer(client.reload_config(validate_only=dry_run), shown.reload)
