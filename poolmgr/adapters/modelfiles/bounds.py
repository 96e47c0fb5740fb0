"""What a header may be at most, and how one that is more is refused."""

from __future__ import annotations

from typing import NoReturn

from poolmgr.errors import ClientError, Number, Reason
from poolmgr.model.plan import MAX_LAYERS as MAX_LAYERS

MAX_PARTS = 1024  # files of one model
MAX_TENSORS = 131_072  # of one file: 1,500 in the largest GGUF, 20,000 per shard of quantised experts
MAX_KEYS = 4096  # of metadata; models have 30 to 200
MAX_NUMBER_KEYS = 512  # of them, those that are kept
MAX_NAME_BYTES = 65_535  # of a key, by the GGUF specification
MAX_TENSOR_NAME_BYTES = 256  # ggml's own limit is 64; safetensors has none
MAX_TEXT_BYTES = 256  # of a text that is kept
MAX_STRINGS = 4_000_000  # in all arrays of a file: a second of walking; vocabularies with merges have 800,000
MAX_DIMENSIONS = 4
MAX_ELEMENTS = 1 << 50  # of a tensor
MAX_LENGTH = 1 << 31  # of any length, width or count that is multiplied later
MAX_JSON_BYTES = 512 << 10  # of a config.json, which is some KB
MAX_HEADER_BYTES = 32 << 20  # of a safetensors header: 100 KB, 3 MB for quantised experts in few shards
ENTRY_BYTES = 128 << 10  # of one tensor's entry in it, which is some 150 bytes, or of its __metadata__
MAX_INDEX_BYTES = 64 << 20  # of a shard index, which is only scanned; that of DeepSeek-V3 is 9 MB


def invalid(path: str, message: str, **numbers: Number) -> NoReturn:
    raise ClientError(Reason.MODEL_INVALID, f"{path}: {message}", numbers={"path": path, **numbers})


def missing(path: str, error: OSError) -> NoReturn:
    message = f"{path}: {error.strerror or error}"
    raise ClientError(Reason.MODEL_NOT_FOUND, message, numbers={"path": path, "errno": error.errno or 0}) from error


def limited(path: str, what: str, value: int, limit: int) -> int:
    """`value`, where it is at most `limit` and not negative."""
    if not 0 <= value <= limit:
        invalid(path, f"{what} is {value}, at most {limit}", value=value, limit=limit)
    return value
