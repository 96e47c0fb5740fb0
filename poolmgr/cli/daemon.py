"""`poolmgr serve`, `status` and `shutdown`."""

from __future__ import annotations

import os
import select
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from poolmgr.cli.session import Address, Session, command

if TYPE_CHECKING:
    from poolmgr.v1 import admin_pb2


GONE_SECONDS = 60.0


def register(app: typer.Typer) -> None:
    app.command()(serve)
    command(app)(status)
    command(app)(shutdown)


def serve(
    context: typer.Context,
    config: Annotated[Path | None, typer.Option(help="Configuration file in TOML.")] = None,
    addr: Address = None,
    state_dir: Annotated[Path | None, typer.Option(help="Where the daemon keeps everything.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="One value over file and environment."),
    ] = None,
    log_level: Annotated[str | None, typer.Option(metavar="debug|info|warning|error")] = None,
    simulate: Annotated[
        str | None, typer.Option(metavar="SCENARIO", help="Simulated GPUs: a TOML file, or such as 2xA100-80GB+1xT4.")
    ] = None,
) -> None:
    """Runs the daemon in the foreground. Engines outlive it; SIGTERM ends it, SIGHUP reloads the file."""
    flags = {
        "--config": config,
        "--addr": addr or context.find_root().params["addr"],
        "--state-dir": state_dir,
        "--log-level": log_level,
        "--simulate": simulate,
    }
    argv = [sys.executable, "-m", "poolmgr"]
    argv += [f"{flag}={value}" for flag, value in flags.items() if value is not None]
    argv += [f"--set={setting}" for setting in settings or ()]
    # In place of this process, so that the libraries of the command line are not in the daemon's memory.
    os.execv(sys.executable, argv)


def status(session: Session) -> None:
    """Shows what the daemon is and how it is."""
    from poolmgr.cli import show

    with session.client() as client:
        session.answer(client.status(), show.status)


def shutdown(
    session: Session,
    stop_engines: Annotated[bool, typer.Option("--stop-engines", help="Stop every engine first.")] = False,
) -> None:
    """Ends the daemon and waits until it is gone. Engines go on, and the next daemon takes them over, unless
    --stop-engines is given."""

    def told(answer: admin_pb2.ShutdownResponse) -> None:
        typer.echo(f"the daemon ends; {answer.engines_left_running} engines go on without it")

    with session.client() as client:
        ends = _end_of(client.status().pid)
        session.answer(client.shutdown(stop_engines=stop_engines), told)
        if ends is not None and not select.select([ends], [], [], GONE_SECONDS)[0]:
            raise typer.Exit(1)


def _end_of(pid: int) -> int | None:
    """A descriptor that is readable once the daemon has ended, taken while it answers, so that its pid is its own.

    None where it cannot be watched: another user's pid namespace.
    """
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None
