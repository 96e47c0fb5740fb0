"""One GGUF file's header, walked value by value: metadata, then what each tensor is (ggml/docs/gguf.md).

Every count is held against the bytes that are left and against `bounds` before anything is done with it. Arrays are
stepped over; of texts and lists only the few that a caller may need are kept, so memory stays below a megabyte whatever
the file says.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BufferedReader

from poolmgr.adapters.modelfiles.bounds import (
    MAX_DIMENSIONS,
    MAX_ELEMENTS,
    MAX_KEYS,
    MAX_LAYERS,
    MAX_NAME_BYTES,
    MAX_NUMBER_KEYS,
    MAX_STRINGS,
    MAX_TENSOR_NAME_BYTES,
    MAX_TENSORS,
    MAX_TEXT_BYTES,
    invalid,
    limited,
)
from poolmgr.adapters.modelfiles.ggml_types import BLOCKS

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 1 << 20
WINDOW_BYTES = 256 * 1024  # read at a time
# Value types by number: format of struct and bytes.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
MIN_TENSOR_BYTES = 8 + 4 + 8 + 4 + 8
MIN_KEY_BYTES = 8 + 4 + 1
KEPT_TEXTS = frozenset({"general.architecture", "general.name"})
# After the architecture's name and a dot: lists with one number per layer.
KEPT_LISTS = frozenset({"attention.head_count", "attention.head_count_kv", "attention.sliding_window_pattern"})
MAX_LISTS = 16
VOCABULARY = "tokenizer.ggml.tokens"

Number = int | float


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """`dimensions`: the row's length first, as the file has them. `offset`: from the begin of the data."""

    name: str
    dimensions: tuple[int, ...]
    size: int
    offset: int


@dataclass(slots=True)
class Metadata:
    """What was kept. Lists have one number per layer. `vocabulary`: tokens that the file lists, 0 for none."""

    numbers: dict[str, Number] = field(default_factory=dict)
    lists: dict[str, tuple[Number, ...]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    vocabulary: int = 0


class Walk:
    """Reads the file from the front in windows; `left` is what is left of it. Raises ClientError(MODEL_INVALID)."""

    def __init__(self, path: str, file: BufferedReader, size: int) -> None:
        self.path = path
        self._file = file
        self._size = size
        self._window = b""
        self._start = 0  # of the window in the file
        self._at = 0  # in the window

    @property
    def position(self) -> int:
        return self._start + self._at

    @property
    def left(self) -> int:
        return self._size - self.position

    def take(self, count: int) -> bytes:
        """`count` bytes, which a caller has bounded."""
        if count > self.left:
            message = f"ends at byte {self._size}, {count} more are needed at {self.position}"
            invalid(self.path, message, size=self._size, position=self.position)
        if self._at + count > len(self._window):
            self._refill(count)
        self._at += count
        return self._window[self._at - count : self._at]

    def skip(self, count: int) -> None:
        if count > self.left:
            message = f"ends at byte {self._size}, {count} more are needed at {self.position}"
            invalid(self.path, message, size=self._size, position=self.position)
        self._at += count

    def number(self, format_: str) -> Number:
        layout = struct.Struct("<" + format_)
        value: Number = layout.unpack(self.take(layout.size))[0]
        return value

    def count(self, format_: str = "Q") -> int:
        return int(self.number(format_))

    def text(self, what: str, limit: int) -> str:
        length = limited(self.path, f"length of {what}", self.count(), limit)
        return self.take(length).decode("utf-8", "replace")

    def skip_texts(self, count: int) -> None:
        """Steps over `count` texts: 8 bytes of length each, and as many bytes."""
        unpack = struct.Struct("<Q").unpack_from
        for _ in range(count):
            # The same as `skip(self.count())`, in the window: half a million texts are usual.
            if self._at + 8 > len(self._window):
                self.take(8)
                self._at -= 8
            length = unpack(self._window, self._at)[0]
            self._at += 8
            if length > self.left:
                message = f"a text of {length} bytes at {self.position}, {self.left} are left"
                invalid(self.path, message, value=length, position=self.position, size=self._size)
            self._at += length

    def _refill(self, count: int) -> None:
        self._start += self._at
        self._at = 0
        self._file.seek(self._start)
        self._window = self._file.read(max(count, WINDOW_BYTES))
        if len(self._window) < count:
            invalid(self.path, f"has become shorter than {self._size} bytes", size=self._size)


def read_header(walk: Walk) -> tuple[Metadata, Iterator[TensorInfo]]:
    """The metadata, and the tensors, which are read as they are asked for and checked against the file's size."""
    if walk.take(4) != MAGIC:
        invalid(walk.path, "is no GGUF file: it does not begin with GGUF", size=walk.left + 4)
    version = walk.count("I")
    if version not in VERSIONS:
        invalid(walk.path, f"GGUF version {version} is none of 2 and 3, little-endian", version=version)
    tensors = limited(walk.path, "the number of tensors", walk.count(), MAX_TENSORS)
    keys = limited(walk.path, "the number of metadata keys", walk.count(), MAX_KEYS)
    least = tensors * MIN_TENSOR_BYTES + keys * MIN_KEY_BYTES
    if least > walk.left:
        message = f"{tensors} tensors and {keys} keys take {least} bytes at least, {walk.left} are left"
        invalid(walk.path, message, tensors=tensors, keys=keys, left=walk.left)
    metadata = _metadata(walk, keys)
    return metadata, _tensors(walk, tensors, _alignment(walk, metadata))


def _metadata(walk: Walk, keys: int) -> Metadata:
    kept = Metadata()
    strings = 0
    for _ in range(keys):
        key = walk.text("a key", MAX_NAME_BYTES)
        kind = walk.count("I")
        if kind == STRING:
            _text(walk, kept, key)
        elif kind == ARRAY:
            strings = _array(walk, kept, key, strings)
        elif kind in SCALARS:
            kept.numbers[key[:MAX_TEXT_BYTES]] = walk.number(SCALARS[kind])
        else:
            invalid(walk.path, f"key {key[:MAX_TEXT_BYTES]!r} has the unknown type {kind}", type=kind)
        if len(kept.numbers) > MAX_NUMBER_KEYS:
            invalid(walk.path, f"more than {MAX_NUMBER_KEYS} keys with numbers", limit=MAX_NUMBER_KEYS)
    return kept


def _text(walk: Walk, kept: Metadata, key: str) -> None:
    length = limited(walk.path, f"length of {key[:MAX_TEXT_BYTES]!r}", walk.count(), walk.left)
    if key not in KEPT_TEXTS:
        walk.skip(length)
        return
    kept.texts[key] = walk.take(limited(walk.path, f"length of {key}", length, MAX_TEXT_BYTES)).decode(
        "utf-8", "replace"
    )


def _array(walk: Walk, kept: Metadata, key: str, strings: int) -> int:
    """Returns how many texts were stepped over so far."""
    kind, count = walk.count("I"), walk.count()
    key = key[:MAX_TEXT_BYTES]
    if kind == STRING:
        limited(walk.path, f"texts in arrays up to {key!r}", strings + count, MAX_STRINGS)
        limited(walk.path, f"length of {key!r}", count, walk.left // 8)
        walk.skip_texts(count)
        strings += count
    elif kind in SCALARS:
        width = struct.calcsize("<" + SCALARS[kind])
        limited(walk.path, f"length of {key!r}", count, walk.left // width)
        if key.partition(".")[2] in KEPT_LISTS and count <= MAX_LAYERS and len(kept.lists) < MAX_LISTS:
            kept.lists[key] = struct.unpack(f"<{count}{SCALARS[kind]}", walk.take(count * width))
        else:
            walk.skip(count * width)
    else:
        invalid(walk.path, f"{key!r} is an array of type {kind}", type=kind)
    if key == VOCABULARY:
        kept.vocabulary = count
    return strings


def _alignment(walk: Walk, metadata: Metadata) -> int:
    value = metadata.numbers.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(value, int) or not 8 <= value <= MAX_ALIGNMENT or value & (value - 1):
        invalid(walk.path, f"general.alignment {value} is no power of two from 8 to {MAX_ALIGNMENT}")
    return value


def _tensors(walk: Walk, count: int, alignment: int) -> Iterator[TensorInfo]:
    """Ends with the check that the file holds what its tensors say."""
    end = total = 0
    for _ in range(count):
        tensor = _tensor(walk)
        end = max(end, tensor.offset + tensor.size)
        total += tensor.size
        yield tensor
    begin = -(-walk.position // alignment) * alignment
    have = walk.position + walk.left
    for what, need in (("its last tensor ends", begin + end), ("its tensors without gaps end", begin + total)):
        if need > have:
            invalid(
                walk.path, f"has {have} bytes, {what} at {need}: it is cut short or damaged", size=have, needed=need
            )


def _tensor(walk: Walk) -> TensorInfo:
    name = walk.text("a tensor's name", MAX_TENSOR_NAME_BYTES)
    rank = limited(walk.path, f"the number of dimensions of {name!r}", walk.count("I"), MAX_DIMENSIONS)
    dimensions = tuple(walk.count() for _ in range(rank))
    kind, offset = walk.count("I"), walk.count()
    if kind not in BLOCKS:
        invalid(walk.path, f"tensor {name!r} has the unknown type {kind}", type=kind)
    elements = 1
    for length in dimensions:
        elements = limited(walk.path, f"elements of {name!r}", elements * length, MAX_ELEMENTS)
    block, size = BLOCKS[kind]
    if elements < 1 or (rank and dimensions[0] % block):
        invalid(walk.path, f"tensor {name!r} of {dimensions} elements has no whole blocks of {block}", block=block)
    return TensorInfo(name, dimensions, elements // block * size, offset)
