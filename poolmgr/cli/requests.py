"""A request from a JSON file: strictly, and what is wrong is named by its path."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final, TypeVar

import typer
from google.protobuf.json_format import Parse, ParseDict, ParseError
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from poolmgr.errors import ClientError, Reason

MAX_FILE_BYTES: Final = 4 * 1024 * 1024  # as much as a message to the daemon

M = TypeVar("M", bound=Message)

# What protobuf puts around the cause: which field it was, without its place in a list, and what else there would be.
_WRAPPING: Final = re.compile(r"^(?:Failed to parse [\w.]+ field: )+")
_TRAILING: Final = re.compile(r" at \w+(?:\.[\w\[\].]+)?\.*$")


def read_request(file: Path, message: M) -> M:
    """`message` filled from the file: protobuf's JSON, where no field is unknown and none comes twice.

    Raises typer.BadParameter for a file that cannot be read and ClientError(INVALID_ARGUMENT) for what is in it.
    """
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise typer.BadParameter(f"{file}: {error.strerror}") from error
    if len(data) > MAX_FILE_BYTES:
        raise _wrong(file, "", f"is larger than {MAX_FILE_BYTES} bytes")
    try:
        return Parse(data.decode(), message)
    except UnicodeDecodeError as error:
        raise _wrong(file, "", "is no UTF-8 text") from error
    except ParseError as error:
        path, cause = _cause(data, type(message), error)
        raise _wrong(file, path, cause) from error


def _wrong(file: Path, path: str, cause: str) -> ClientError:
    where = f"{file}: {path}: " if path else f"{file}: "
    return ClientError(Reason.INVALID_ARGUMENT, where + cause, numbers={"field": path} if path else {})


def _cause(data: bytes, of: type[Message], error: ParseError) -> tuple[str, str]:
    """(path, what is wrong there): of the innermost value that protobuf does not take."""
    if str(error).startswith("Failed to load JSON"):
        return "", re.sub(r"^(?:Failed to load JSON: )+", "is no JSON: ", str(error)).rstrip(".")
    return _innermost(json.loads(data), of, "") or ("", _plainly(error))


def _innermost(value: Any, of: type[Message], path: str) -> tuple[str, str] | None:
    if not isinstance(value, dict):
        return path, f"must be an object, not {json.dumps(value)[:80]}"
    for name, inner in value.items():
        try:
            ParseDict({name: inner}, of())
        except ParseError as error:
            here = f"{path}.{name}" if path else name
            fields = of.DESCRIPTOR.fields
            field: Any = next((each for each in fields if name in (each.name, each.camelcase_name)), None)
            if field is None:
                return here, "there is no such field; there are " + ", ".join(each.name for each in fields)
            if field.message_type is not None:
                of_field = GetMessageClass(field.message_type)
                return _inside(inner, of_field, here) or (here, _plainly(error))
            return here, _plainly(error) + _choice(field.enum_type)
    return None


def _inside(value: Any, of: type[Message], path: str) -> tuple[str, str] | None:
    """Further down; None when it is the value itself."""
    if not isinstance(value, list):
        return _innermost(value, of, path)
    for number, each in enumerate(value):
        found = _innermost(each, of, f"{path}[{number}]")
        if found is not None:
            return found
    return None


def _choice(enum: Any) -> str:
    """What an enum has; nothing where the field is of no enum. Any: protobuf has its descriptors under two types."""
    return f"; there are {', '.join(each.name for each in enum.values)}" if enum else ""


def _plainly(error: ParseError) -> str:
    if "use quoted" in str(error):  # which would only be refused later
        return "must be a finite number"
    return _TRAILING.sub("", _WRAPPING.sub("", str(error)).rstrip("."))
