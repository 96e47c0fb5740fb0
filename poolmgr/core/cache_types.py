"""How many bytes a row of a key-value cache takes, by the name of its type.

GGUF's: ggml/src/ggml-common.h (a block of 32 elements and its scales). vLLM's: `--kv-cache-dtype`.
"""

from __future__ import annotations

from collections.abc import Mapping

from poolmgr.errors import ClientError, Reason

# Elements of a block, and its bytes.
LLAMACPP: Mapping[str, tuple[int, int]] = {
    "f32": (1, 4),
    "f16": (1, 2),
    "bf16": (1, 2),
    "q8_0": (32, 34),
    "q4_0": (32, 18),
    "q4_1": (32, 20),
    "iq4_nl": (32, 18),
    "q5_0": (32, 22),
    "q5_1": (32, 24),
}
OTHERS: Mapping[str, tuple[int, int]] = {
    "auto": (1, 2),  # that of the weights, which are of 16 bits wherever they are not quantised
    "f16": (1, 2),
    "float16": (1, 2),
    "bfloat16": (1, 2),
    "fp8": (1, 1),
    "fp8_e4m3": (1, 1),
    "fp8_e5m2": (1, 1),
    "nvfp4": (16, 9),
}


def row_bytes(kinds: Mapping[str, tuple[int, int]], kind: str, width: int) -> int:
    """Of one token's `width` elements; blocks are whole."""
    block, size = kinds[kind]
    return -(-width // block) * size


def known(kinds: Mapping[str, tuple[int, int]], asked: str, default: str) -> str:
    """ClientError(BAD_ARGUMENTS) for a type that the engine does not have."""
    kind = asked or default
    if kind not in kinds:
        message = f"cache_type {kind!r} is none of {', '.join(sorted(kinds))}"
        raise ClientError(Reason.BAD_ARGUMENTS, message, numbers={"cache_type": kind})
    return kind
