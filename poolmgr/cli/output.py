"""How answers are shown: tables for people, protobuf's JSON for programs."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final

from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.table import Table
from rich.text import Text

# A pipe has no width; rich would cut at 80 columns what grep is to find.
PIPE_WIDTH: Final = 240
_COLOURS: Final = {
    "READY": "green",
    "PENDING": "dim",
    "STOPPED": "dim",
    "BACKOFF": "red",
    "PARKED": "red",
    "UNKNOWN": "red",
    "LOST": "red",
    "AVAILABLE": "green",
    "ALLOCATED": "green",
    "QUARANTINED": "red",
    "OFFLINE": "red",
}
_MIB: Final = 1024 * 1024


def print_json(message: Message, *, one_line: bool = False) -> None:
    """Zeros too: a script that reads `slots_free` must find it when it is 0. `one_line` for streams."""
    text = MessageToJson(
        message,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
        indent=None if one_line else 2,
    )
    print(text, flush=True)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str | Text]]) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(plain(cell) if isinstance(cell, str) else cell for cell in row))
    console().print(table)


def print_fields(fields: Iterable[tuple[str, str | Text]]) -> None:
    """One field a line; what is empty is left out."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in fields:
        if value:
            table.add_row(name, plain(value) if isinstance(value, str) else value)
    console().print(table)


def console() -> Console:
    return Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)


def plain(text: str) -> Text:
    """No markup of rich and no control characters: an engine's words must not drive the operator's terminal."""
    return Text("".join(letter if letter.isprintable() or letter == "\n" else "�" for letter in text))


def state_text(name: str) -> Text:
    return Text(name, style=_COLOURS.get(name, "yellow"))


def time_text(stamp: Timestamp) -> str:
    """Local time; empty for an absent time."""
    if not stamp.seconds:
        return ""
    return datetime.fromtimestamp(stamp.seconds).astimezone().isoformat(" ")


def bytes_text(count: int) -> str:
    return f"{count / _MIB:,.1f} MiB" if count else ""
