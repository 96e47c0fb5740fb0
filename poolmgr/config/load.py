"""Reads the configuration: defaults, under the file, under the environment, under flags (CFG-1). All or nothing.

The layers are laid over one another first and checked once, as JSON, so that a wrong value is the same error wherever
it comes from. Every problem is reported, each with where it comes from.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, get_type_hints

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from poolmgr.config.schema import SECTIONS, Config
from poolmgr.errors import ClientError, Number, Reason
from poolmgr.model.pool import PoolSpec

PREFIX: Final = "POOL_MANAGERD_"
CONFIG_VARIABLE: Final = f"{PREFIX}CONFIG"
KEYS: Final = tuple(f"{name}.{key}" for name, section in SECTIONS.items() for key in section.model_fields)
VARIABLES: Final[dict[str, str]] = {
    **{PREFIX + key.replace(".", "_").upper(): key for key in KEYS},
    f"{PREFIX}ADDR": "server.addr",
}

_UNKNOWN: Final = ("extra_forbidden", "unexpected_keyword_argument")


class ValueOrigin(StrEnum):
    """Where a value comes from, the weakest first."""

    DEFAULT = "default"
    FILE = "file"
    ENVIRONMENT = "environment"
    FLAG = "flag"


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """`origins`: by "section.key" for every key, and by "pools.<id>" for every declared pool."""

    config: Config
    origins: Mapping[str, ValueOrigin]
    file: Path | None


def load_config(path: Path | None, environ: Mapping[str, str], flags: Mapping[str, object]) -> LoadedConfig:
    """`path` is `--config`, else POOL_MANAGERD_CONFIG names the file, else there is none.

    `flags` go by "section.key"; None is a flag that was not given. Raises ClientError(INVALID_CONFIG): one line per
    problem, with file and line, or variable, or flag; `numbers` has the first one's `file`, `line` and `key`.
    """
    named = environ.get(CONFIG_VARIABLE)
    draft = _Draft(path or (Path(named) if named else None))
    draft.read_file()
    draft.read_environment(environ)
    draft.read_flags(flags)
    draft.complete(environ)
    config = draft.validated()
    return LoadedConfig(config, draft.origins, draft.file)


def describe(loaded: LoadedConfig) -> list[tuple[str, object, ValueOrigin]]:
    """(key, value as JSON has it, origin) of every key and declared pool, in the order of the schema."""
    sections: dict[str, dict[str, object]] = loaded.config.model_dump(mode="json")
    values = {f"{name}.{key}": value for name, section in sections.items() for key, value in section.items()}
    return [(key, value, loaded.origins[key]) for key, value in values.items()]


def default_state_dir(environ: Mapping[str, str]) -> str:
    """By the XDG base directory specification; root's is the host's. Empty when there is no home to put it in."""
    if environ.get("XDG_STATE_HOME", "").startswith("/"):
        return os.path.join(environ["XDG_STATE_HOME"], "poolmgr")
    if os.geteuid() == 0:
        return "/var/lib/poolmgr"
    return os.path.join(environ["HOME"], ".local/state/poolmgr") if environ.get("HOME") else ""


@dataclass(frozen=True, slots=True)
class _Problem:
    text: str
    key: str = ""
    source: str = ""
    line: int | None = None

    def __str__(self) -> str:
        where = f"{self.source}:{self.line}" if self.line else self.source
        return ": ".join(part for part in (where, self.key, self.text) if part)


@dataclass(slots=True)
class _Draft:
    """The layers as they are laid over one another. `sources`: the variable or flag that set a key."""

    file: Path | None
    text: str = ""
    document: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, ValueOrigin] = field(default_factory=lambda: dict.fromkeys(KEYS, ValueOrigin.DEFAULT))
    sources: dict[str, str] = field(default_factory=dict)
    problems: list[_Problem] = field(default_factory=list)

    def read_file(self) -> None:
        if self.file is not None:
            self.text = _read(self.file)
            self.document = _parse(self.text, self.file)
        for name in (*SECTIONS, "pools"):
            table = self.document.setdefault(name, {})
            if isinstance(table, dict):
                known = (key for key in table if name == "pools" or key in SECTIONS[name].model_fields)
                self.origins.update((f"{name}.{key}", ValueOrigin.FILE) for key in known)

    def read_environment(self, environ: Mapping[str, str]) -> None:
        for variable in sorted(environ):
            if not variable.startswith(PREFIX) or variable == CONFIG_VARIABLE:
                continue
            key = VARIABLES.get(variable)
            if key is None:
                self.problems.append(_Problem(_unknown(variable, VARIABLES), variable, "environment"))
            elif key in self.sources:
                self.problems.append(_Problem(f"set by {self.sources[key]} already", key, f"variable {variable}"))
            else:
                self._put(key, environ[variable], ValueOrigin.ENVIRONMENT, f"variable {variable}")

    def read_flags(self, flags: Mapping[str, object]) -> None:
        for key, value in flags.items():
            if key not in KEYS:
                self.problems.append(_Problem(_unknown(key, KEYS), key, "flag"))
            elif value is not None:
                self._put(key, value, ValueOrigin.FLAG, "flag")

    def complete(self, environ: Mapping[str, str]) -> None:
        """The two defaults that depend on something else."""
        state, supervision, pools = (self.document[name] for name in ("state", "supervision", "pools"))
        directory = default_state_dir(environ)
        if isinstance(state, dict) and directory:
            state.setdefault("dir", directory)
        if not isinstance(supervision, dict) or not isinstance(pools, dict):
            return
        if "drain_deadline_secs" in supervision:
            for pool in pools.values():
                if isinstance(pool, dict):
                    pool.setdefault("drain_deadline", supervision["drain_deadline_secs"])

    def validated(self) -> Config:
        try:
            # A date is of no key's type; a list of lists is not either, and JSON has it.
            text = json.dumps(self.document, default=lambda date: [[str(date)]])
            config = Config.model_validate_json(text)
        except ValidationError as error:
            self.problems.extend(self._translated(details) for details in error.errors())
        if self.problems:
            raise _invalid(self.problems, self.file)
        return config

    def _put(self, key: str, value: object, origin: ValueOrigin, source: str) -> None:
        section, _, name = key.partition(".")
        table = self.document[section]
        if isinstance(table, dict):
            table[name] = _typed(key, value)
            self.origins[key] = origin
            self.sources[key] = source

    def _translated(self, details: ErrorDetails) -> _Problem:
        location = tuple(str(part) for part in details["loc"] if part != "[key]")
        key = ".".join(location)
        text = _message(details, location)
        source = self.sources.get(".".join(location[:2]))
        if source is not None:
            return _Problem(text, key, source)
        if self.file is None:
            return _Problem(text, key)
        return _Problem(text, key, str(self.file), _line_of(self.text, location))


def _read(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except OSError as error:
        raise _invalid([_Problem(error.strerror or str(error), source=str(file))], file) from error
    except UnicodeDecodeError as error:
        raise _invalid([_Problem(f"is not UTF-8: {error.reason}", source=str(file))], file) from error


def _parse(text: str, file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))
        problem = _Problem(f"is not TOML: {error}", source=str(file), line=int(line[1]) if line else None)
        raise _invalid([problem], file) from error


def _typed(key: str, value: object) -> object:
    """Text of a variable as the type of its key; what is not of that type stays text and is refused as such."""
    section, _, name = key.partition(".")
    if not isinstance(value, str) or SECTIONS[section].model_fields[name].annotation not in (int, float, bool):
        return str(value) if isinstance(value, Path) else value
    try:
        parsed: object = json.loads(value)
    except ValueError:
        return value
    return parsed


def _message(details: ErrorDetails, location: Sequence[str]) -> str:
    if details["type"] in _UNKNOWN:
        return _unknown(location[-1], _known_beside(location))
    if details["type"] == "value_error":
        return str(details["ctx"]["error"])
    if details["type"] == "missing":
        return "is required"
    return f"{details['msg']}, not {details['input']!r}"


def _unknown(name: str, known: Sequence[str] | Mapping[str, str]) -> str:
    (nearest,) = get_close_matches(name, known, n=1, cutoff=0.0)
    return f"unknown key {name!r}; the nearest known one is {nearest!r}"


def _known_beside(location: Sequence[str]) -> list[str]:
    """The names that could stand where the last part of `location` does."""
    match location:
        case (_,):
            return list(Config.model_fields)
        case ("pools", _, _):
            return [known.name for known in fields(PoolSpec)]
        case ("pools", _, part, _):
            return [known.name for known in fields(get_type_hints(PoolSpec)[part])]
        case _:
            return list(SECTIONS[location[0]].model_fields)


def _line_of(text: str, location: Sequence[str]) -> int | None:
    """The line from 1 where the key, or the nearest table around it, begins; None when the file has neither.

    TOML's parser tells no positions, but a document cut after a line is a document again, unless the cut is inside
    a value: so this is the shortest cut that has the key.
    """
    lines = text.split("\n")
    for depth in range(len(location), 0, -1):
        if _holds(lines, len(lines), location[:depth]):
            return bisect_left(range(len(lines)), True, key=lambda cut: _holds(lines, cut, location[:depth]))
    return None


def _holds(lines: Sequence[str], cut: int, location: Sequence[str]) -> bool:
    while True:
        try:
            table: Any = tomllib.loads("\n".join(lines[:cut]))
            break
        except tomllib.TOMLDecodeError:
            cut += 1
    for part in location:
        if not isinstance(table, dict) or part not in table:
            return False
        table = table[part]
    return True


def _invalid(problems: Sequence[_Problem], file: Path | None) -> ClientError:
    first = problems[0]
    found: dict[str, Number | None] = {"key": first.key, "line": first.line, "file": str(file) if file else ""}
    return ClientError(
        Reason.INVALID_CONFIG,
        "\n".join(str(problem) for problem in problems),
        numbers={name: value for name, value in found.items() if value},
    )
