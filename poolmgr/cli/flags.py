"""What the command line can say of a pool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class EngineChoice(StrEnum):
    LLAMACPP = "llamacpp"
    COMMAND = "command"


class RestartChoice(StrEnum):
    ON_FAILURE = "on-failure"
    ALWAYS = "always"
    NEVER = "never"


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
    port: int | None = None
    labels: Sequence[str] = ()
    restart: RestartChoice | None = None
    preload: bool = False
