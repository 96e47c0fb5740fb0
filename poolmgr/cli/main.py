"""The `poolmgr` command. Exit codes: 0 done, 1 the daemon said no, 2 wrong usage, 3 no daemon answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from poolmgr import __version__
from poolmgr.cli import config, daemon, devices, engine, lease, plan, pool, sim, telemetry
from poolmgr.cli.session import Address, Json

app = typer.Typer(
    name="poolmgr",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
daemon.register(app)
telemetry.register(app)
app.add_typer(pool.app, name="pool")
app.add_typer(engine.app, name="engine")
app.add_typer(devices.app, name="devices")
app.add_typer(lease.app, name="lease")
app.add_typer(plan.app, name="plan")
app.add_typer(config.app, name="config")
app.add_typer(sim.app, name="sim")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"poolmgr {__version__}")
        raise typer.Exit


@app.callback()
def root(
    addr: Address = None,
    as_json: Json = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """Keeps pools of inference engines alive on one host.

    --addr and --json may stand here or after a command.
    """


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one command line, this process's unless `argv` is given. Always ends in SystemExit."""
    app(args=argv)
