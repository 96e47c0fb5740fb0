"""What the command line can say of a pool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class EngineChoice(StrEnum):
    LLAMACPP = "llamacpp"
    COMMAND = "command"
    VLLM = "vllm"


class RestartChoice(StrEnum):
    ON_FAILURE = "on-failure"
    ALWAYS = "always"
    NEVER = "never"


class StrategyChoice(StrEnum):
    AUTO = "auto"
    MAKE_BEFORE_BREAK = "make-before-break"
    BREAK_BEFORE_MAKE = "break-before-make"


Engine = Annotated[EngineChoice | None, typer.Option(help="Else what --model or --command mean.")]
Model = Annotated[Path | None, typer.Option(help="Model file on the daemon's host.")]
Context = Annotated[int | None, typer.Option(min=0, help="Tokens of context per slot.")]
Slots = Annotated[int | None, typer.Option(min=1, help="Requests that may be leased at once.")]
Program = Annotated[str | None, typer.Option("--command", help="Executable: absolute, or on PATH.")]
Args = Annotated[list[str] | None, typer.Option("--arg", help="One more argument; {port} is the port.")]
Env = Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="One more variable.")]
Devices = Annotated[str | None, typer.Option(metavar="MASK", help="GPUs: 0,1 or UUIDs, 1.2, all, none.")]
Port = Annotated[int | None, typer.Option(min=0, max=65535, help="Preferred port.")]
Labels = Annotated[list[str] | None, typer.Option("--label", metavar="NAME=VALUE", help="For people.")]
Split = Annotated[
    str | None, typer.Option(metavar="MODE", help="Over the GPUs: none, auto, or explicit:3,1 by these shares.")
]
Restart = Annotated[RestartChoice | None, typer.Option(help="When its engine ends.")]
File = Annotated[Path | None, typer.Option("--file", "--spec", help="TOML, as a pool in the configuration, or JSON.")]


@dataclass(frozen=True, slots=True)
class SpecFlags:
    """What the command line says of a pool; None and empty are what it does not say."""

    engine: EngineChoice | None = None
    model: Path | None = None
    context: int | None = None
    slots: int | None = None
    command: str | None = None
    args: Sequence[str] = ()
    env: Sequence[str] = ()
    devices: str | None = None
    port: int | None = None
    labels: Sequence[str] = ()
    restart: RestartChoice | None = None
    preload: bool = False
    split: str | None = None
