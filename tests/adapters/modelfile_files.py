"""Model files for tests: GGUF by hand, byte for byte, and safetensors directories."""

from __future__ import annotations

import json
import struct
from pathlib import Path

U32, STRING, ARRAY, U64 = 4, 8, 9, 10


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def number(key: str, value: int) -> bytes:
    return pair(key, U32, struct.pack("<I", value))


def array(key: str, kind: int, count: int, values: bytes = b"") -> bytes:
    return pair(key, ARRAY, struct.pack("<IQ", kind, count) + values)


def tensor(name: str, dimensions: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    lengths = struct.pack(f"<{len(dimensions)}Q", *dimensions)
    return text(name) + struct.pack("<I", len(dimensions)) + lengths + struct.pack("<IQ", kind, offset)


def header(pairs: list[bytes], tensors: list[bytes], counts: tuple[int, int] | None = None) -> bytes:
    n_tensors, n_pairs = counts or (len(tensors), len(pairs))
    return b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_pairs) + b"".join(pairs) + b"".join(tensors)


def llama(*more: bytes) -> list[bytes]:
    """The least that a model says of itself, and more."""
    return [
        pair("general.architecture", STRING, text("llama")),
        number("llama.block_count", 2),
        number("llama.embedding_length", 64),
        number("llama.attention.head_count", 4),
        number("llama.context_length", 2048),
        *more,
    ]


def write_safetensors(
    path: Path, tensors: dict[str, tuple[str, tuple[int, ...], int]], data: bytes | None = None
) -> None:
    """`tensors`: name to type, shape and bytes of one element. The data is a hole."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (kind, shape, width) in tensors.items():
        size = width
        for count in shape:
            size *= count
        entries[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text_ = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text_)) + text_ + (data or b""))
        file.truncate(8 + len(text_) + at)


def block(
    layer: int, width: int, query: int, kv: int, ffn: int, prefix: str = "model."
) -> dict[str, tuple[str, tuple[int, ...], int]]:
    """One dense layer as transformers names its tensors."""
    name = f"{prefix}layers.{layer}."
    matrices = {
        "self_attn.q_proj.weight": (query, width),
        "self_attn.k_proj.weight": (kv, width),
        "self_attn.v_proj.weight": (kv, width),
        "self_attn.o_proj.weight": (width, query),
        "mlp.gate_proj.weight": (ffn, width),
        "mlp.up_proj.weight": (ffn, width),
        "mlp.down_proj.weight": (width, ffn),
        "input_layernorm.weight": (width,),
        "post_attention_layernorm.weight": (width,),
    }
    return {name + key: ("BF16", shape, 2) for key, shape in matrices.items()}


def write_directory(
    directory: Path, config: dict[str, object], parts: list[dict[str, tuple[str, tuple[int, ...], int]]]
) -> Path:
    """config.json, and either one file or shards with an index."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    if len(parts) == 1:
        write_safetensors(directory / "model.safetensors", parts[0])
        return directory
    weight_map: dict[str, str] = {}
    for number_, part in enumerate(parts):
        name = f"model-{number_ + 1:05d}-of-{len(parts):05d}.safetensors"
        write_safetensors(directory / name, part)
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory
