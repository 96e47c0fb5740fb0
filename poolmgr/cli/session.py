"""What every command that talks to the daemon shares: its address, --json, and how it fails.

Libraries are imported on first use, so that `--help` does not wait for gRPC.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, Final, ParamSpec, TypeVar

import typer

from poolmgr.cli.hints import HINTS
from poolmgr.errors import PoolmgrError, Reason

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from poolmgr.client import Client

ADDRESS_VARIABLE: Final = "POOL_MANAGERD_ADDR"
DEFAULT_ADDRESS: Final = "127.0.0.1:9200"
REFUSED: Final = 1
UNREACHABLE: Final = 3
INTERRUPTED: Final = 130

P = ParamSpec("P")
M = TypeVar("M", bound="Message")


def _checked_address(address: str | None) -> str | None:
    if address is None:
        return None
    host, _, port = address.rpartition(":")
    # gRPC would take an address without a port as one with port 443.
    if not host or not (port.isascii() and port.isdecimal()):
        raise typer.BadParameter(f"{address!r} is not HOST:PORT")
    return address


Address = Annotated[
    str | None,
    typer.Option(
        "--addr",
        metavar="HOST:PORT",
        callback=_checked_address,
        help=f"Where the daemon listens; else {ADDRESS_VARIABLE}, else {DEFAULT_ADDRESS}.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Answer in JSON, as protobuf maps it.")]


@dataclass(frozen=True, slots=True)
class Session:
    """One run of the command line."""

    address: str
    as_json: bool

    def client(self) -> Client:
        from poolmgr.client import Client

        return Client(self.address)

    def answer(self, message: M, render: Callable[[M], None]) -> None:
        """Shows the message as JSON where that was asked for, else as `render` does."""
        from poolmgr.cli.output import print_json

        if self.as_json:
            print_json(message)
        else:
            render(message)


def command(
    app: typer.Typer, name: str | None = None
) -> Callable[[Callable[Concatenate[Session, P], None]], Callable[Concatenate[Session, P], None]]:
    """Registers a function of a Session as a command, with --addr and --json among its options."""

    def register(function: Callable[Concatenate[Session, P], None]) -> Callable[Concatenate[Session, P], None]:
        app.command(name, help=inspect.getdoc(function))(_runner(function))
        return function

    return register


def report(message: str, reason: str, details: Mapping[str, object] | None = None) -> None:
    """An error on stderr: what happened, its stable reason, the numbers, and what to do next."""
    typer.echo(f"error: {message}", err=True)
    typer.echo(f"reason: {reason}", err=True)
    for name, value in (details or {}).items():
        typer.echo(f"{name}: {value}", err=True)
    if reason in HINTS:
        typer.echo(f"hint: {HINTS[reason]}", err=True)


def _runner(function: Callable[..., None]) -> Callable[..., None]:
    def run(ctx: typer.Context, addr: str | None, as_json: bool, **arguments: Any) -> None:
        root = ctx.find_root().params
        address = addr or root["addr"] or os.environ.get(ADDRESS_VARIABLE) or DEFAULT_ADDRESS
        session = Session(address, as_json or root["as_json"])
        with _reported():
            function(session, **arguments)

    own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
    shared = [
        inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context),
        inspect.Parameter("addr", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Address),
        inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Json),
    ]
    parameters = [*(one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own), *shared]
    run.__name__ = function.__name__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run


@contextmanager
def _reported() -> Iterator[None]:
    from poolmgr.client import CallError, LeaseRefused

    try:
        yield
    except CallError as error:
        # A protobuf map has no order, and an error is to look the same each time.
        details: dict[str, object] = dict(sorted(error.metadata.items()))
        if error.retry_after is not None:
            details["retry_after"] = f"{error.retry_after:g} s"
        report(error.message, error.reason, details)
        silent = error.reason in (Reason.UNREACHABLE, "DEADLINE_EXCEEDED")
        raise typer.Exit(UNREACHABLE if silent else REFUSED) from error
    except LeaseRefused as refusal:
        retry = {} if refusal.retry_after is None else {"retry_after": f"{refusal.retry_after:g} s"}
        report(refusal.message, refusal.reason, retry)
        raise typer.Exit(REFUSED) from refusal
    except PoolmgrError as error:
        report(error.message, error.reason)
        raise typer.Exit(REFUSED) from error
    except KeyboardInterrupt as interrupt:
        raise typer.Exit(INTERRUPTED) from interrupt
