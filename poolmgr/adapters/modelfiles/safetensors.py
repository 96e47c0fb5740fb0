"""The headers of safetensors files: which tensors, of which type and length, at which place.

The format (huggingface.co/docs/safetensors): eight bytes of length, as much JSON, then the data. What is sharded has a
`model.safetensors.index.json` beside it; of that only the shards' names are taken, by scanning, since it may list a
hundred thousand tensors and the shards' own headers say the same.
"""

from __future__ import annotations

import codecs
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from typing import TypeGuard

from poolmgr.adapters.modelfiles.bounds import (
    ENTRY_BYTES,
    MAX_ELEMENTS,
    MAX_HEADER_BYTES,
    MAX_INDEX_BYTES,
    MAX_JSON_BYTES,
    MAX_PARTS,
    MAX_TENSORS,
    invalid,
    limited,
)
from poolmgr.adapters.modelfiles.files import opened, whole

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SHARD = re.compile(rb'"([^"\\/\x00-\x1f]{1,200}\.safetensors)"')
CHUNK_BYTES = 1 << 20
NAME = r'\s*"((?:[^"\\\x00-\x1f]|\\.){1,512})"\s*:\s*'
FIRST, NEXT, END = re.compile(r"\s*\{" + NAME), re.compile(r"\s*," + NAME), re.compile(r"\s*\}\s*\Z")
OVERLAP = 512  # longer than a shard's name with its quotes
TYPE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """`shape`: as torch has it, rows first. `type`: safetensors' name of it."""

    name: str
    type: str
    shape: tuple[int, ...]
    size: int


def shards(directory: str) -> Sequence[str]:
    """The paths of a model's files, in order: those that its index names, else the single one."""
    index = os.path.join(directory, INDEX)
    if not os.path.exists(index):
        return (os.path.join(directory, SINGLE),)
    names: set[bytes] = set()
    with opened(index) as (file, size):
        limited(index, "the size of its index", size, MAX_INDEX_BYTES)
        tail = b""
        while chunk := file.read(CHUNK_BYTES):
            names.update(SHARD.findall(tail + chunk))
            limited(index, "the number of its files", len(names), MAX_PARTS)
            tail = chunk[-OVERLAP:]
    if not names:
        invalid(index, "names no safetensors file")
    return tuple(os.path.join(directory, name.decode("utf-8", "replace")) for name in sorted(names))


def tensors(path: str) -> Iterator[StoredTensor]:
    """Raises ClientError MODEL_NOT_FOUND, MODEL_INVALID."""
    total = count = 0
    with opened(path) as (file, size):
        length = int.from_bytes(file.read(8), "little")
        if size < 10 or length > size - 8:
            invalid(path, f"has {size} bytes, its header would have {length}: it is cut short or none", size=size)
        limited(path, "the size of its header", length, MAX_HEADER_BYTES)
        room = size - 8 - length
        for name, entry in _entries(path, file, length):
            count = limited(path, "the number of its tensors", count + 1, MAX_TENSORS)
            if name != "__metadata__":
                tensor = _tensor(path, name, entry, room)
                total += tensor.size
                yield tensor
    if total > room:
        invalid(path, f"its tensors have {total} bytes, the file {room} for them", needed=total, size=room)


def parsed(path: str, data: bytes) -> dict[str, object]:
    """A JSON object. Text that is none, or too deep, is ClientError(MODEL_INVALID)."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        invalid(path, f"holds no JSON: {type(error).__name__}")
    if not isinstance(value, dict):
        invalid(path, "holds no JSON object")
    return value


def config(directory: str) -> dict[str, object]:
    path = os.path.join(directory, "config.json")
    return parsed(path, whole(path, "configuration", MAX_JSON_BYTES))


def _entries(path: str, file: BufferedReader, length: int) -> Iterator[tuple[str, object]]:
    """The header's members one by one, so that no more of it than two entries' room is in memory, as text or parsed."""
    scan, text, at, first = json.JSONDecoder(), "", 0, True
    decode = codecs.getincrementaldecoder("utf-8")().decode
    try:
        while True:
            if len(text) - at < ENTRY_BYTES and length:
                chunk = file.read(min(length, ENTRY_BYTES))
                length = length - len(chunk) if chunk else 0
                text, at = text[at:] + decode(chunk, not length), 0
            if END.match(text, at) and not length and not first:
                return
            name = (FIRST if first else NEXT).match(text, at)
            if name is None:
                invalid(path, f"its header is no JSON object of tensors: {text[at : at + 40]!r}")
            value, at = scan.raw_decode(text, name.end())
            first = False
            yield name[1], value
    except (ValueError, RecursionError) as error:
        invalid(path, f"its header is no JSON, or has an entry of over {ENTRY_BYTES} bytes: {type(error).__name__}")


def _tensor(path: str, name: str, entry: object, room: int) -> StoredTensor:
    short = name[:80]
    if not isinstance(entry, dict):
        invalid(path, f"tensor {short!r} is no object")
    kind, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(kind, str) or not _whole_numbers(shape) or not _whole_numbers(offsets) or len(offsets) != 2:
        invalid(path, f"tensor {short!r} lacks its type, shape or place")
    begin, end = offsets
    if not 0 <= begin <= end <= room:
        invalid(path, f"tensor {short!r} is at {begin} to {end} of {room} bytes", begin=begin, end=end, size=room)
    elements = 1
    for count in shape:
        elements = limited(path, f"elements of {short!r}", elements * count, MAX_ELEMENTS)
    if kind in TYPE_BYTES and elements * TYPE_BYTES[kind] != end - begin:
        message = f"tensor {short!r} of {elements} {kind} has {end - begin} bytes"
        invalid(path, message, elements=elements, bytes=end - begin)
    return StoredTensor(name, kind, tuple(shape), end - begin)


def _whole_numbers(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and len(value) <= 8 and all(type(one) is int for one in value)
