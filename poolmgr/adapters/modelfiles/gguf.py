"""A GGUF file, or a series of them, as the shape of a model.

Keys and tensor names: ggml/docs/gguf.md and gguf-py/gguf/constants.py. A series is `<name>-00001-of-0000N.gguf` and on,
with `split.no` and `split.count` in each (src/llama-model-loader.cpp); the first of them is the one to name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from poolmgr.adapters.modelfiles.bounds import MAX_LAYERS, MAX_LENGTH, MAX_PARTS, invalid, limited
from poolmgr.adapters.modelfiles.files import opened
from poolmgr.adapters.modelfiles.gguf_walk import Metadata, TensorInfo, Walk, read_header
from poolmgr.adapters.modelfiles.windows import windows
from poolmgr.model.shape import LatentAttention, LayerShape, ModelFormat, ModelShape

PART = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf\Z", re.DOTALL)
LAYER = re.compile(r"blk\.(\d{1,6})\.(.+)\Z", re.DOTALL)
EMBEDDINGS = ("token_embd", "per_layer_token_embd", "position_embd", "token_types")
HEAD = "output.weight"


@dataclass(slots=True)
class Sums:
    """What the tensors of all files add up to."""

    layers: list[LayerShape]
    embedding: int = 0
    output: int = 0
    headed: bool = False
    normed: bool = False
    vocabulary: int = 0
    tensors: int = 0
    bytes: int = 0
    parts: list[str] = field(default_factory=list)


def read_gguf(path: str) -> ModelShape:
    """Raises ClientError MODEL_NOT_FOUND for a file that is not there, MODEL_INVALID for one that is no model."""
    with opened(path) as (file, size):
        metadata, tensors = read_header(Walk(path, file, size))
        if metadata.numbers.get("split.no"):
            invalid(path, f"is part {metadata.numbers['split.no']}, counted from 0, of a series: name the first")
        facts = Facts(path, metadata)
        count = facts.number("split.count", 1, MAX_PARTS)
        sums = Sums([LayerShape() for _ in range(facts.layers)], bytes=size, parts=[path])
        _add(path, sums, tensors)
    for number in range(1, count):
        _add_part(path, sums, number, count)
    if not sums.tensors:
        invalid(path, "has no tensors")
    expected = facts.number("split.tensors.count", sums.tensors, MAX_LENGTH)
    if expected != sums.tensors:
        invalid(path, f"its {count} files have {sums.tensors} tensors, not {expected}", tensors=sums.tensors)
    return _shape(facts, sums)


class Facts:
    """Numbers of the metadata, each held against a limit. Keys after the architecture's name and a dot."""

    def __init__(self, path: str, metadata: Metadata) -> None:
        self.path = path
        self._metadata = metadata
        self.name = metadata.texts.get("general.name", "")
        self.architecture = metadata.texts.get("general.architecture", "")
        if not self.architecture:
            invalid(path, "does not say its general.architecture")
        self.layers = self.of("block_count")
        if not 1 <= self.layers <= MAX_LAYERS:
            invalid(path, f"has {self.layers} layers, 1 to {MAX_LAYERS} are known", layers=self.layers)

    def number(self, key: str, default: int, limit: int) -> int:
        value = self._metadata.numbers.get(key, default)
        if not isinstance(value, int):
            invalid(self.path, f"{key} is {value!r}, not a whole number")
        return limited(self.path, key, value, limit)

    def of(self, key: str, default: int = 0) -> int:
        return self.number(f"{self.architecture}.{key}", default, MAX_LENGTH)

    def per_layer(self, key: str, default: int = 0) -> tuple[int, ...]:
        """One number for each layer, from a list of them or from one for all."""
        listed = self._metadata.lists.get(f"{self.architecture}.{key}")
        if listed is None:
            return (self.of(key, default),) * self.layers
        numbers = [limited(self.path, key, int(value), MAX_LENGTH) for value in listed if isinstance(value, int)]
        if len(numbers) < self.layers:
            invalid(self.path, f"{key} has {len(numbers)} numbers for {self.layers} layers")
        return tuple(numbers[: self.layers])

    def pattern(self) -> int | tuple[object, ...]:
        key = "attention.sliding_window_pattern"
        return self._metadata.lists.get(f"{self.architecture}.{key}") or self.of(key)

    @property
    def vocabulary(self) -> int:
        return self._metadata.vocabulary or self.of("vocab_size")


def _add_part(first: str, sums: Sums, number: int, count: int) -> None:
    named = PART.match(first)
    if named is None or int(named["count"]) != count:
        invalid(first, f"is the first of {count} files and not named -00001-of-{count:05d}.gguf", count=count)
    path = f"{named['stem']}-{number + 1:05d}-of-{count:05d}.gguf"
    with opened(path) as (file, size):
        metadata, tensors = read_header(Walk(path, file, size))
        if (metadata.numbers.get("split.no"), metadata.numbers.get("split.count")) != (number, count):
            invalid(path, f"does not say that it is part {number + 1} of {count}", part=number + 1, count=count)
        sums.bytes += size
        sums.parts.append(path)
        _add(path, sums, tensors)


def _add(path: str, sums: Sums, tensors: Iterable[TensorInfo]) -> None:
    for tensor in tensors:
        sums.tensors += 1
        named = LAYER.match(tensor.name)
        if named is None:
            _add_outside(sums, tensor)
        elif int(named[1]) >= len(sums.layers):
            invalid(path, f"tensor {tensor.name!r} is of layer {named[1]}, it has {len(sums.layers)}")
        else:
            index = int(named[1])
            sums.layers[index] = _with(sums.layers[index], named[2], tensor)
            sums.normed |= named[2].startswith(("attn_q_norm", "attn_k_norm"))


def _add_outside(sums: Sums, tensor: TensorInfo) -> None:
    if tensor.name.startswith(EMBEDDINGS):
        sums.embedding += tensor.size
        if tensor.name == "token_embd.weight" and len(tensor.dimensions) == 2:
            sums.vocabulary = tensor.dimensions[1]
    else:
        sums.output += tensor.size
        sums.headed |= tensor.name == HEAD


def _with(layer: LayerShape, name: str, tensor: TensorInfo) -> LayerShape:
    """The layer with one more tensor: `_exps` are routed experts, `_shexp` those that every token passes."""
    stem, _, rest = name.partition(".")
    # A bias of experts has two dimensions too, and its second is their number.
    width = tensor.dimensions[1] if rest == "weight" and len(tensor.dimensions) > 1 else 0
    if stem.endswith("_exps"):
        length = width if stem == "ffn_up_exps" and width else layer.expert_feed_forward
        return replace(layer, expert_bytes=layer.expert_bytes + tensor.size, expert_feed_forward=length)
    if stem.endswith("_shexp") or stem.startswith(("ffn_gate_inp", "exp_probs")):
        length = width if stem == "ffn_up_shexp" and width else layer.shared_feed_forward
        return replace(layer, shared_bytes=layer.shared_bytes + tensor.size, shared_feed_forward=length)
    if stem.startswith("ffn_") and "norm" not in stem:
        length = width if stem == "ffn_up" and width else layer.feed_forward
        return replace(layer, dense_bytes=layer.dense_bytes + tensor.size, feed_forward=length)
    query = width if name == "attn_q.weight" else layer.query_width
    return replace(layer, attention_bytes=layer.attention_bytes + tensor.size, query_width=query)


def _shape(facts: Facts, sums: Sums) -> ModelShape:
    heads = facts.per_layer("attention.head_count")
    kv_heads = facts.per_layer("attention.head_count_kv", max(heads))
    return ModelShape(
        ModelFormat.GGUF,
        facts.architecture,
        _attending(facts, sums, heads, kv_heads),
        name=facts.name,
        embedding_bytes=sums.embedding,
        output_bytes=sums.output,
        tied=not sums.headed,
        embedding_length=facts.of("embedding_length"),
        vocabulary=sums.vocabulary or facts.vocabulary,
        heads=max(heads),
        kv_heads=max(kv_heads),
        context_limit=facts.of("context_length"),
        experts=facts.of("expert_count"),
        experts_used=facts.of("expert_used_count"),
        latent=_latent(facts),
        query_key_norm=sums.normed,
        files=len(sums.parts),
        file_bytes=sums.bytes,
    )


def _attending(facts: Facts, sums: Sums, heads: tuple[int, ...], kv_heads: tuple[int, ...]) -> tuple[LayerShape, ...]:
    """The layers with what they cache. A head's length is the embedding's share where the file does not say it."""
    share = facts.of("embedding_length") // max(1, *heads)
    key, value = facts.of("attention.key_length", share), facts.of("attention.value_length", share)
    latent = _latent(facts)
    slides = windows(facts.architecture, facts.layers, facts.of("attention.sliding_window"), facts.pattern())
    return tuple(
        replace(
            layer,
            query_width=layer.query_width or count * key,
            key_width=latent.rank + latent.rope_length if latent else cached * key,
            value_width=0 if latent else cached * value,
            window=window,
        )
        for layer, count, cached, window in zip(sums.layers, heads, kv_heads, slides, strict=True)
    )


def _latent(facts: Facts) -> LatentAttention | None:
    """Old files have no absorbed matrices and no `key_length_mla`: llama.cpp caches whole keys and values of them."""
    length = facts.of("attention.key_length_mla")
    if not length:
        return None
    rope = facts.of("rope.dimension_count")
    return LatentAttention(
        rank=facts.of("attention.kv_lora_rank"),
        rope_length=rope,
        query_rank=facts.of("attention.q_lora_rank"),
        head_length=max(0, length - rope),
        value_length=facts.of("attention.value_length_mla"),
    )
