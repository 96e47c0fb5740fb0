"""`poolmgr telemetry`."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final

import typer

from poolmgr.cli.session import Session, command

if TYPE_CHECKING:
    from poolmgr.client import Client
    from poolmgr.v1 import telemetry_pb2

PLOTTED: Final = 40  # values of a plot that grows


class Window(StrEnum):
    """Seconds of which statistics are kept."""

    SECOND = "1"
    TEN_SECONDS = "10"
    MINUTE = "60"
    TEN_MINUTES = "600"


def register(app: typer.Typer) -> None:
    command(app)(telemetry)


def telemetry(
    session: Session,
    device: Annotated[str, typer.Argument(metavar="[DEVICE]", help="Only this one, named as in a mask.")] = "",
    field: Annotated[list[str] | None, typer.Option("--field", help="Only this field; once more for another.")] = None,
    window: Annotated[Window, typer.Option(help="Seconds of the statistics and the plot.")] = Window.MINUTE,
    watch: Annotated[bool, typer.Option("--watch", help="Go on, until Ctrl-C.")] = False,
    interval: Annotated[float, typer.Option(min=0.1, max=60.0, help="Seconds between two values of --watch.")] = 1.0,
) -> None:
    """Shows what devices do: the latest values with statistics and a plot, or with --watch value after value."""
    with session.client() as client:
        if watch:
            _follow(session, client.stream_telemetry(device, fields=field or (), interval=interval))
        else:
            _once(session, client, device, field or [], float(window))


def _once(session: Session, client: Client, device: str, fields: list[str], window: float) -> None:
    from poolmgr.cli import show_devices

    answer = client.get_telemetry(device, fields=fields, windows=(window,), quantiles=True, history=window)
    session.answer(answer, show_devices.telemetry)


def _follow(session: Session, answers: Iterator[telemetry_pb2.StreamTelemetryResponse]) -> None:
    from poolmgr.cli import output, show_devices

    if session.as_json or not sys.stdout.isatty():
        for answer in answers:
            if session.as_json:
                output.print_json(answer, one_line=True)
            else:
                show_devices.line(answer)
        return
    _plot(answers)


def _plot(answers: Iterator[telemetry_pb2.StreamTelemetryResponse]) -> None:
    """A table that stays where it is and whose plots grow."""
    from rich.live import Live

    from poolmgr.cli import output, show_devices

    past: dict[tuple[str, str], deque[float]] = {}
    with Live(console=output.console(), auto_refresh=False) as screen:
        for answer in answers:
            for one in answer.devices:
                for field in one.fields:
                    if field.HasField("value"):
                        values = past.setdefault((one.device_id, field.name), deque(maxlen=PLOTTED))
                        values.append(field.value)
            screen.update(show_devices.live(answer, past), refresh=True)
